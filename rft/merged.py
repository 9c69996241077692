"""A merged copy of the policy: base + LoRA in one matrix, to sample from and to train through.

Linear layers that read the same tensor (queries, keys and values; gate and up) are one product. Only for
float32: in bfloat16 the sum would swallow small updates. Nothing is ever merged in place.
"""

import copy
from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from rft.attention import PackedGroups, PackedSpan
from rft.errors import JobFailedError
from rft.lean import use_lean_layers
from rft.linear import Product
from rft.products import MergedLinear, SharedProduct, member_of

PROBE_TOKENS = 2
"""Length of the pass that shows which layers read the same tensor."""


class MergedModel:
    """The model without adapter layers; what no linear layer owns is shared with the base.

    Its matrices are those of the last `refresh`. Gradient reaches the policy's A and B as it would through
    the adapter's own layers.
    """

    def __init__(self, base: PreTrainedModel, adapter: str | None):
        """`adapter` None: the base by itself."""
        tensors = [*base.parameters(), *base.buffers()]
        replaced: dict[int, object] = {id(tensor): tensor for tensor in tensors}
        replaced[id(base.config)] = copy.deepcopy(base.config)
        self._products: list[SharedProduct] = []
        for layers in _layers_by_input(base):
            product = SharedProduct([member_of(layer, adapter) for layer in layers])
            self._products.append(product)
            for index, layer in enumerate(layers):
                replaced[id(layer)] = MergedLinear(product, index)
        self.model: PreTrainedModel = copy.deepcopy(base, replaced)
        self.model.eval()
        self.is_lean: bool = use_lean_layers(self.model)
        """Whether its layers are those of `rft.lean`."""

    @property
    def products(self) -> list[Product]:
        """Those of its linear layers."""
        return [shared.product for shared in self._products]

    def refresh(self) -> None:
        """Recompute as W + s · B A, from the present A and B, the matrices for which these changed."""
        for product in self._products:
            if product.is_stale:
                product.refresh()

    def begin_pass(self) -> None:
        """To be called before the model is. Raises JobFailedError when A or B changed since the last
        `refresh`: results would be stale."""
        for product in self._products:
            product.forget()
        if any(product.is_stale for product in self._products):
            raise JobFailedError(
                "the merged weights are older than the adapter",
                remedy="call Policy.refresh after every change of the LoRA matrices",
            )


def _layers_by_input(base: PreTrainedModel) -> Iterator[list[nn.Module]]:
    """The decoder's linear layers, those together that read the very same tensor in a forward pass."""
    layers = list(_linear_layers(base.get_decoder()))
    readers: dict[int, list[nn.Module]] = {}
    read: list[Tensor] = []  # kept alive, so that no other tensor gets the same id

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs[0])
        readers.setdefault(id(inputs[0]), []).append(layer)

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    device = base.get_input_embeddings().weight.device
    positions = torch.arange(PROBE_TOKENS, device=device)[None]
    layout = PackedGroups([PackedSpan(0, PROBE_TOKENS, ())])
    try:
        with torch.no_grad():
            base.get_decoder()(
                input_ids=positions, position_ids=positions, use_cache=False, layout=layout
            )
    finally:
        for hook in hooks:
            hook.remove()
    called = [layer for together in readers.values() for layer in together]
    if len(called) != len(set(called)):  # a layer used twice in a pass shares nothing
        readers = {index: [layer] for index, layer in enumerate(dict.fromkeys(called))}
    yield from readers.values()
    yield from ([layer] for layer in layers if layer not in set(called))


def _linear_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Outermost ones: what lies within an adapted layer belongs to it."""
    for child in module.children():
        if isinstance(child, LoraLayer) or type(child) is nn.Linear:
            yield child
        else:
            yield from _linear_layers(child)
