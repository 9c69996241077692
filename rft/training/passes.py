"""The model's passes over groups in micro-batches, shared among the ranks, in as much memory as there is."""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

import torch

from rft.errors import MachineError
from rft.policy import Policy
from rft.rollout.memory import is_out_of_memory
from rft.training.batch import Batch, TrainingGroup, cut_to_budget, micro_batches
from rft.training.ranks import Ranks
from rft.training.spare import num_spare_passes, spare_pass

T = TypeVar("T")


class Outcome(Enum):
    """How a rank fared with its micro-batches."""

    FITS = auto()
    TOO_LARGE = auto()
    """Memory ran out on several completions at once."""
    NEVER_FITS = auto()
    """Memory ran out on one completion alone."""


@dataclass(frozen=True, slots=True)
class Attempt(Generic[T]):
    """One rank's way through its micro-batches."""

    outcome: Outcome
    largest: int
    """Tokens of the largest micro-batch, as the budget counts them."""
    results: Sequence[T]


class Passes:
    """Micro-batches under a token budget that is lowered, on all ranks together, when memory runs out."""

    def __init__(
        self,
        policy: Policy,
        ranks: Ranks,
        token_budget: int,
        has_reference: bool,
        make_room: Callable[[], bool],
        copy_cost: float,
    ):
        """`make_room`: has others give back memory that they keep; whether there was any. `copy_cost`: what a
        completion's copy of a token of its prompt costs, in tokens."""
        self._policy = policy
        self._ranks = ranks
        self._has_reference = has_reference
        self._make_room = make_room
        self._copy_cost = copy_cost
        self.token_budget: int = token_budget
        """Packed tokens of a micro-batch, the same on every rank."""
        self.num_passes: int = 0
        """Of this rank so far."""

    def over(
        self,
        groups: Sequence[TrainingGroup],
        compute: Callable[[int, Batch], T],
        during: Callable[[], AbstractContextManager[object]],
    ) -> list[T]:
        """What `compute` gives for each micro-batch, of all ranks; `during` surrounds this rank's.

        Collective. When memory runs out on any rank, all throw away their gradients and begin again: as they are,
        if others gave back memory, and else with half of what the largest micro-batch held, so that nothing
        tells the result from one that began with that budget. Raises MachineError when a single completion
        does not fit.
        """
        while True:
            told = self._ranks.gather([self._attempt(groups, compute, during)])
            outcomes = {attempt.outcome for attempt in told}
            if outcomes == {Outcome.FITS}:
                return [result for attempt in told for result in attempt.results]
            if self._release():
                continue
            if Outcome.NEVER_FITS in outcomes or self.token_budget == 1:
                raise MachineError(
                    "memory does not suffice to train on a single completion with its prompt",
                    where="engine.training",
                    remedy="set engine.training.gradient_checkpointing=true, or take a smaller "
                    "engine.rollout.max_completion_tokens, or engine.model.quantization",
                )
            largest = max(attempt.largest for attempt in told)
            self.token_budget = max(1, min(self.token_budget, largest) // 2)

    def micro_batches(self, groups: Sequence[TrainingGroup]) -> list[Batch]:
        """This rank's: groups, or parts of large ones, dealt so that all ranks have about as many tokens."""
        parts = cut_to_budget(groups, self.token_budget, self._copy_cost)
        mine = self._ranks.share_by_cost(parts, [part.num_input_tokens for part in parts])
        policy = self._policy
        is_unpacked = policy.why_unpacked is not None
        return micro_batches(
            mine,
            self.token_budget,
            policy.device,
            self._copy_cost,
            num_rows=policy.num_rows,
            are_apart=is_unpacked,
        )

    def _attempt(
        self,
        groups: Sequence[TrainingGroup],
        compute: Callable[[int, Batch], T],
        during: Callable[[], AbstractContextManager[object]],
    ) -> "Attempt[T]":
        """This rank's micro-batches, until memory runs out.

        Unless they share a base, no rank waits for another in here, so one that fails leaves none behind.
        """
        results: list[T] = []
        num_completions, largest = 0, self.token_budget
        try:
            with during():
                batches = self.micro_batches(groups)
                largest = max((batch.num_budget_tokens for batch in batches), default=0)
                num_spare = num_spare_passes(self._policy, self._ranks, len(batches))
                for index, batch in enumerate(batches):
                    num_completions = len(batch.advantages)
                    results.append(compute(index, batch))
                    self.num_passes += 1
                for _ in range(num_spare):
                    spare_pass(self._policy, self._has_reference)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self._policy.is_sharded:
                raise MachineError(
                    f"memory ran out on micro-batches of {self.token_budget} tokens, and ranks that share "
                    "one base cannot begin again",
                    where="engine.training.token_budget",
                    remedy="halve it, and go on with --resume",
                ) from error
            outcome = Outcome.NEVER_FITS if num_completions == 1 else Outcome.TOO_LARGE
            return Attempt(outcome, largest, [])
        return Attempt(Outcome.FITS, largest, results)

    def _release(self) -> bool:
        """Give back what an attempt that ran out of memory left; whether any rank's `make_room` gave more."""
        has_more = self._make_room()
        for parameter in self._policy.parameters().values():
            parameter.grad = None
        gc.collect()
        if self._policy.device.type == "cuda":
            torch.cuda.empty_cache()
        return any(self._ranks.gather([has_more]))
