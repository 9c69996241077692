"""Out of memory: what counts as it, and sampling that goes on with fewer slots."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from rft.errors import MachineError
from rft.rollout.memory import (
    is_out_of_memory,
    num_slots,
    release_memory,
    sample_within_memory,
    shrink_to,
)
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampled, Sampler, SampleRequest, SamplingSettings
from rft.types import Completion

SETTINGS = SamplingSettings(1.0, 1.0, 4)
REQUESTS = [SampleRequest((9, row), 3, 0, Purpose.TRAIN, 1, row) for row in range(3)]


class Plain(Sampler):
    """Completes with (ordinal, sample); fails after twice `room` of them when it has more slots than `room`."""

    is_exact, facts = True, {}

    def __init__(self, slots: int, room: int):
        self.slots, self.room = slots, room
        self.asked: list[list[int]] = []

    def refresh(self) -> None: ...

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> Iterator[Sampled]:
        self.asked.append([request.ordinal for request in requests])
        places = [(i, s) for i, r in enumerate(requests) for s in range(r.num_samples)]
        for count, (index, sample) in enumerate(places, 1):
            if self.slots > self.room and count > 2 * self.room:
                torch.empty(10**17, dtype=torch.uint8)
            ids = (requests[index].ordinal, sample)
            yield Sampled(index, sample, Completion(ids, (0.0, 0.0), "stop", "", ""))


class Slotted(Plain):
    @property
    def num_slots(self) -> int:
        return self.slots

    def halve_slots(self) -> None:
        self.slots = max(1, self.slots // 2)

    def release_memory(self) -> bool:
        return self.slots > 1


def completions(sampler: Sampler) -> list[tuple[int, int, tuple[int, ...]]]:
    sampled = sample_within_memory(sampler, REQUESTS, SETTINGS)
    return [(one.request, one.sample, one.completion.token_ids) for one in sampled]


ALL = [(row, sample, (row, sample)) for row in range(3) for sample in range(3)]


def test_only_a_sampler_that_keeps_memory_is_asked_for_it() -> None:
    assert release_memory(Slotted(2, room=8))
    assert not release_memory(Slotted(1, room=8)) and not release_memory(Plain(2, room=8))


def test_with_enough_memory_the_sampler_is_asked_once() -> None:
    sampler = Slotted(8, room=8)
    assert completions(sampler) == ALL
    assert (sampler.asked, sampler.slots) == ([[0, 1, 2]], 8)


def test_what_is_missing_is_sampled_again_with_half_the_slots() -> None:
    """Each failing call gives four completions before it fails; those of prompt 1 are given once."""
    sampler = Slotted(8, room=2)
    assert completions(sampler) == ALL
    assert sampler.slots == 2
    assert sampler.asked == [[0, 1, 2], [1, 2], [2]]


def test_without_room_for_one_the_job_ends_with_a_remedy() -> None:
    sampler = Slotted(4, room=0)
    with pytest.raises(MachineError, match="a single completion") as raised:
        completions(sampler)
    assert "shorter completions" in raised.value.problems[0].remedy
    assert sampler.slots == 1


def test_a_sampler_without_slots_fails_as_before() -> None:
    with pytest.raises(RuntimeError, match=r"can't allocate memory|not enough memory"):
        completions(Plain(8, room=2))


def test_a_resumed_sampler_is_as_small_as_it_was() -> None:
    sampler = Slotted(12, room=12)
    shrink_to(sampler, 5)
    assert num_slots(sampler) == 3
    shrink_to(sampler, 5)
    assert num_slots(sampler) == 3
    plain = Plain(12, room=12)
    shrink_to(plain, 5)
    assert (num_slots(plain), plain.slots) == (None, 12)


@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_lack: bool) -> None:
    assert is_out_of_memory(error) is is_lack


def test_the_allocator_of_this_machine_says_it() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**17, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
