"""Out of memory: how it shows, and sampling that goes on in less of it."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch

from rft.errors import MachineError
from rft.rollout.sampler import Sampled, Sampler, SampleRequest, SamplingSettings

SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "out of memory",
)
"""What the RuntimeErrors of allocators and kernels say when there is no memory left."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the device or on this machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@runtime_checkable
class SlottedSampler(Sampler, Protocol):
    """A sampler whose memory grows with the completions it decodes side by side."""

    @property
    def num_slots(self) -> int:
        """Completions side by side, at most."""

    def halve_slots(self) -> None:
        """Decode half as many from the next `sample` on, at least one; their memory is given back."""

    def release_memory(self) -> bool:
        """Give back the memory that is kept from one `sample` to the next; whether there was any."""


def release_memory(sampler: Sampler) -> bool:
    """Have a sampler give back what it keeps between calls, if it keeps any; whether it did."""
    return isinstance(sampler, SlottedSampler) and sampler.release_memory()


def sample_within_memory(
    sampler: Sampler, requests: Sequence[SampleRequest], settings: SamplingSettings
) -> Iterator[Sampled]:
    """All completions asked for; when memory runs out, the sampler goes on with half its slots.

    A completion depends on its request alone, so one that is drawn again is the same; none is given twice.
    Raises MachineError when not even one completion fits.
    """
    missing = [set(range(request.num_samples)) for request in requests]
    while True:
        asked = [index for index, samples in enumerate(missing) if samples]
        try:
            for sampled in sampler.sample([requests[index] for index in asked], settings):
                index = asked[sampled.request]
                if sampled.sample in missing[index]:
                    missing[index].remove(sampled.sample)
                    yield Sampled(index, sampled.sample, sampled.completion)
        except Exception as error:
            if not (isinstance(sampler, SlottedSampler) and is_out_of_memory(error)):
                raise
            if sampler.num_slots <= 1:
                raise MachineError(
                    "memory does not suffice to sample a single completion",
                    where="engine.rollout.max_completion_tokens",
                    remedy="take shorter completions, a smaller model or engine.model.quantization",
                ) from error
        else:
            return
        # outside the except clause: the error holds the frames, and these the tensors, of what failed
        sampler.halve_slots()


def num_slots(sampler: Sampler) -> int | None:
    """Completions side by side, at most; None where the engine cannot tell."""
    return sampler.num_slots if isinstance(sampler, SlottedSampler) else None


def shrink_to(sampler: Sampler, limit: int) -> None:
    """Halve the slots until there are at most `limit`."""
    while isinstance(sampler, SlottedSampler) and sampler.num_slots > max(1, limit):
        sampler.halve_slots()
