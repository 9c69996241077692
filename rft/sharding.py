"""A base model that no one device holds: each process keeps a part of every decoder layer (FSDP2).

Only the frozen weights of the decoder layers are sharded. A layer's weights are gathered for its pass
and freed after it. Embedding, final norm and head are whole on every process, as sampling distributions
are computed from the head's weight itself. An adapter is put on afterwards, so that no wrapper knows of
it: its matrices are plain tensors, whole on every process, and so is the adapter that is saved.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rft.errors import ModelError

SOURCE = 0
"""The rank whose weights all others take over."""


def num_processes() -> int:
    """How many processes there are to spread a base over."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_source() -> bool:
    """Whether the others take over this process's weights."""
    return torch.distributed.get_rank() == SOURCE


def shard_base(base: PreTrainedModel, device: str) -> PreTrainedModel:
    """Spread the decoder layers of `base` over the processes; gives the same model, on `device`.

    Collective. Rank 0 brings the weights, in host memory; on the other ranks `base` may be without
    storage (`meta`). A device holds its part and one whole layer at a time.

    Afterwards each pass of the decoder is collective too: all ranks make equally many, forward and
    backward.
    """
    decoder = base.get_decoder()
    layers = [
        module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    if not layers:
        raise ModelError(
            f"the layers of {type(base).__name__} cannot be told apart, so they cannot be sharded",
            where="engine.model.sharding",
            remedy="set it to none, or take another model family",
        )
    # peft takes sharded weights for parts of a tensor-parallel layer unless the dimension has this name
    mesh = init_device_mesh(device, (num_processes(),), mesh_dim_names=("fsdp",))
    for layer in layers:
        _take_over(layer, device)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    _take_over(base, device)
    whole = {parameter for parameter in base.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(decoder, mesh=mesh, ignored_params=whole)
    return base


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of the model, so that they must make its passes together."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _take_over(module: nn.Module, device: str) -> None:
    """Put rank 0's tensors in place of the module's own, on `device`; those already sharded stay."""
    taken: dict[Tensor, Tensor] = {}  # a tied weight stays one tensor
    for owner, name, tensor in list(_tensors(module)):
        if tensor not in taken:
            taken[tensor] = _broadcast(tensor, device)
        setattr(owner, name, taken[tensor])


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every place of a whole parameter or buffer: its owner, its name there, and itself."""
    for owner in module.modules():
        for own in (owner._parameters, owner._buffers):
            for name, tensor in own.items():
                if tensor is not None and not isinstance(tensor, DTensor):
                    yield owner, name, tensor


@torch.no_grad()
def _broadcast(tensor: Tensor, device: str) -> Tensor:
    values = tensor.to(device) if is_source() else torch.empty_like(tensor, device=device)
    values = values.detach().contiguous()
    torch.distributed.broadcast(values, SOURCE)
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values
