"""The processes of a job: who has which group, and the few things they tell each other."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

T = TypeVar("T")


class Ranks:
    """All calls are collective: every rank makes them, in the same order. One process needs no launcher."""

    def __init__(self, use_cpu: bool):
        """Join the group that a launcher (accelerate, torchrun) set up; gloo on CPU, NCCL on GPUs."""
        self._state = PartialState(cpu=use_cpu)
        self.rank: int = self._state.process_index
        self.size: int = self._state.num_processes
        self.num_exchanges: int = 0
        """Collectives that this rank has come out of."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def backend(self) -> str:
        """The communication backend, `none` for one process."""
        return torch.distributed.get_backend() if self.size > 1 else "none"

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part: every `size`-th item from its own number on."""
        return list(items[self.rank :: self.size])

    def share_by_cost(self, items: Sequence[T], costs: Sequence[int]) -> list[T]:
        """This rank's part, in order, such that the costs of the ranks' parts differ little."""
        owners = balanced(costs, self.size)
        return [item for item, owner in zip(items, owners, strict=True) if owner == self.rank]

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all ranks, rank after rank, on every rank."""
        if self.size == 1:
            return list(items)
        gathered = list(gather_object(list(items)))
        self.num_exchanges += 1
        return gathered

    def broadcast(self, value: T) -> T:
        """Rank 0's value on every rank."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        broadcast_object_list(box)
        return box[0]  # type: ignore[no-any-return]

    def sum_into(self, tensors: Sequence[Tensor]) -> None:
        """Replace each float32 tensor by its sum over all ranks, in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        self.num_exchanges += 1
        offset = 0
        for tensor in tensors:
            tensor.detach().copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()

    def close(self) -> None:
        self._state.destroy_process_group()


def balanced(costs: Sequence[int], num_ranks: int) -> list[int]:
    """The rank of each item: the costliest first, each to the rank with the least so far (Graham 1969,
    longest processing time first). Among equals the earlier item and the lower rank come first."""
    owners, loads = [0] * len(costs), [0] * num_ranks
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners
