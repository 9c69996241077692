"""One step: sample and grade groups, turn rewards into advantages, update the policy, refresh the sampler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rft.data import PromptStream
from rft.job import ResolvedJob
from rft.rollout.collect import Collector, Draw, RolloutPlan
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import Sampler, SamplingSettings
from rft.training.advantages import advantages
from rft.training.batch import TrainingGroup, training_groups
from rft.training.clock import Clock, growth, over_ranks
from rft.training.ranks import Ranks
from rft.training.update import Update, Updater
from rft.types import Group, Prompt


@dataclass(frozen=True, slots=True)
class StepRecord:
    """All that happened in a step, the same on every rank."""

    step: int
    groups: tuple[Group, ...]
    """The groups of the update, of all ranks, in the order of the stream."""
    advantages: tuple[tuple[float | None, ...], ...]
    replaced: tuple[Group, ...]
    """Zero-signal groups that fresh prompts took the place of."""
    updates: tuple[Update, ...]
    seconds: Mapping[str, float]
    sampler_spent: Mapping[str, float] = field(default_factory=dict)
    """What `Sampler.spent` grew by in the step: seconds of the rank that took longest, tokens of all;
    empty where the engine cannot tell."""


class Trainer:
    """Walks through the stream of prompts, a batch a step."""

    def __init__(
        self,
        job: ResolvedJob,
        prompts: Sequence[Prompt],
        sampler: Sampler,
        collector: Collector,
        updater: Updater,
        ranks: Ranks,
    ):
        self._job = job
        self._prompts = prompts
        self._sampler = sampler
        self._collector = collector
        self._updater = updater
        self._ranks = ranks
        self.go_to(0)

    def go_to(self, cursor: int) -> None:
        """Go on after so many prompts drawn."""
        is_shuffled = self._job.engine.data.shuffle
        self.stream = PromptStream(len(self._prompts), self._job.seed, cursor, is_shuffled)

    def step(self, step: int) -> StepRecord:
        """One rollout batch and the updates it feeds; `step` counts from 1."""
        clock, waited = Clock(), self._collector.seconds_waited
        spent = self._sampler.spent
        with clock.measure("sampling"):
            groups, replaced = self.rollouts(step)
        clock.add("grading_wait", self._collector.seconds_waited - waited)
        spent = over_ranks(self._ranks.gather([growth(spent, self._sampler.spent)]))
        values = advantages(groups, self._job.engine.training.advantage_scaling)
        with clock.measure("training"):
            updates = self.train(step, groups, values)
        with clock.measure("sync"):
            self._sampler.refresh()
        seconds = clock.seconds()
        return StepRecord(
            step, tuple(groups), tuple(values), tuple(replaced), tuple(updates), seconds, spent
        )

    def rollouts(self, step: int) -> tuple[list[Group], list[Group]]:
        """The step's groups, and the zero-signal groups that were replaced by fresh prompts.

        Dynamic sampling (Yu et al. 2025, DAPO) bounded by `resample_zero_signal` rounds; a group that
        still has no signal then stays.
        """
        groups = self._collect(step, self._job.hyperparameters.batch_size)
        replaced: list[Group] = []
        for _ in range(self._job.engine.training.resample_zero_signal):
            dull = [group for group in groups if not group.has_signal]
            if not dull:
                break
            fresh = self._collect(step, len(dull))
            replaced += dull
            groups = [group for group in groups if group.has_signal] + fresh
        return groups, replaced

    def train(
        self, step: int, groups: Sequence[Group], values: Sequence[tuple[float | None, ...]]
    ) -> list[Update]:
        """`num_iterations` passes over the groups, each in `minibatches` optimizer updates."""
        settings = self._job.engine.training
        members = training_groups(groups, values, settings.mask_truncated)
        is_single = settings.num_iterations * settings.minibatches == 1
        anchors = None if is_single else self._updater.anchors(members)
        minibatches = split(members, settings.minibatches) * settings.num_iterations
        return [
            self._updater.update(step, minibatch, anchors, number)
            for number, minibatch in enumerate(minibatches)
        ]

    def _collect(self, step: int, num_prompts: int) -> list[Group]:
        """Sample the next prompts of the stream, each group whole on one rank; all ranks get all groups."""
        draws = [
            Draw(ordinal, self._prompts[row]) for ordinal, row in self.stream.take(num_prompts)
        ]
        groups = self._collector.collect(self._ranks.share(draws), rollout_plan(self._job, step))
        return sorted(self._ranks.gather(groups), key=lambda group: group.ordinal)


def rollout_plan(job: ResolvedJob, step: int) -> RolloutPlan:
    """What a training step draws for each prompt."""
    rollout = job.engine.rollout
    sampling = SamplingSettings(
        rollout.temperature,
        rollout.top_p,
        rollout.max_completion_tokens,
        tuple(rollout.stop),
        schema=job.completion_schema,
    )
    return RolloutPlan(rollout.group_size, job.seed, Purpose.TRAIN, step, sampling)


def split(groups: Sequence[TrainingGroup], num_parts: int) -> list[Sequence[TrainingGroup]]:
    """Consecutive parts whose sizes differ by at most one; empty parts are left out."""
    bounds = [len(groups) * part // num_parts for part in range(num_parts + 1)]
    parts = [groups[low:high] for low, high in pairwise(bounds)]
    return [part for part in parts if part] or [groups]
