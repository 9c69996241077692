"""A decoding copy of the policy: base + LoRA in one weight matrix, all other tensors shared with the base."""

import copy

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from rft.policy import ADAPTER, Policy


class MergedModel:
    """A model without adapter layers whose targeted weights are recomputed from the pristine base.

    Only for float32: in bfloat16 the sum would swallow small updates. Nothing is ever merged in place.
    """

    def __init__(self, policy: Policy):
        base = policy.base
        tensors = [*base.parameters(), *base.buffers()]
        shared: dict[int, object] = {id(tensor): tensor for tensor in tensors}
        shared[id(base.config)] = copy.deepcopy(base.config)
        self.model: PreTrainedModel = copy.deepcopy(base, shared)
        self._pairs: list[tuple[LoraLayer, Tensor]] = []
        for name, module in list(self.model.named_modules()):
            if isinstance(module, LoraLayer):
                self._replace(name, module, base.get_submodule(name))
        self.model.eval()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute every merged weight as W + scaling · B A from the policy's current matrices."""
        for layer, merged in self._pairs:
            weight = layer.get_base_layer().weight
            if getattr(layer, "fan_in_fan_out", False):
                torch.add(weight, layer.get_delta_weight(ADAPTER), out=merged)
                continue
            lora_a, lora_b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            torch.addmm(weight, lora_b, lora_a, alpha=layer.scaling[ADAPTER], out=merged)

    def _replace(self, name: str, copied: LoraLayer, source: nn.Module) -> None:
        assert isinstance(source, LoraLayer)
        linear = copied.get_base_layer()
        merged = nn.Parameter(torch.empty_like(linear.weight), requires_grad=False)
        linear.weight = merged
        parent, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, linear)
        self._pairs.append((source, merged.data))
