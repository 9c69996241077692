"""One pass over the validation set, and what it says."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rft.graders import GraderDocument
from rft.graders.canaries import CANARY_KINDS, Canary, CanaryKind, canaries_of
from rft.job import ResolvedJob
from rft.rollout.collect import Collector, Draw, RolloutPlan
from rft.rollout.randomness import Purpose
from rft.rollout.sampler import SamplingSettings
from rft.training.clock import Clock
from rft.training.ranks import Ranks
from rft.types import MAX_UNGRADED_FRACTION, Grade, Group, Prompt

NUM_CANARY_ROWS = 8
"""Validation rows whose canaries are graded at each evaluation: 32 grades at most."""


@dataclass(frozen=True, slots=True)
class CanaryGrade:
    """What the grader says of an answer whose worth is known."""

    row: int
    """Index among the prompts that were looked at."""
    kind: CanaryKind
    grade: Grade


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The validation rows' rollouts under one policy, the same on every rank."""

    step: int
    groups: tuple[Group, ...]
    """One per validation row, in row order."""
    seconds: float
    canaries: tuple[CanaryGrade, ...] = ()
    """Graded anew, on a few rows."""
    least_reward: float = 0.0
    """The grader's: what an ungraded sample counts as in `valid_reward_mean`."""

    @property
    def reward_mean(self) -> float:
        """`valid_reward_mean`: over all samples, an ungraded one counting as the minimum."""
        return mean([reward for row in self._rewards() for reward in row])

    @property
    def graded_reward_mean(self) -> float:
        """Over graded samples alone; NaN when there is none."""
        return mean(
            [r.grade.reward for g in self.groups for r in g.graded if r.grade.reward is not None]
        )

    @property
    def standard_error(self) -> float:
        """Of the mean of the row means; NaN for one row."""
        return standard_error([mean(row) for row in self._rewards()])

    @property
    def ungraded_fraction(self) -> float:
        num_samples = sum(len(group.rollouts) for group in self.groups)
        num_graded = sum(len(group.graded) for group in self.groups)
        return (num_samples - num_graded) / num_samples

    @property
    def can_rank(self) -> bool:
        """Whether its checkpoint may be among the best."""
        return self.ungraded_fraction <= MAX_UNGRADED_FRACTION and math.isfinite(self.reward_mean)

    def pass_at(self, pass_threshold: float) -> dict[int, float]:
        """pass@k for k = 1, 2, 4, … up to the samples per row: mean over rows of 1 − C(n−c, k) / C(n, k).

        The unbiased estimator of Chen et al. 2021; a graded sample passes at reward ≥ `pass_threshold`.
        """
        num_samples = len(self.groups[0].rollouts)
        graded = [[r.grade.reward for r in group.graded] for group in self.groups]
        passing = [
            sum(reward is not None and reward >= pass_threshold for reward in row) for row in graded
        ]
        powers = [2**n for n in range(num_samples.bit_length()) if 2**n <= num_samples]
        return {k: mean([_pass_at_k(num_samples, c, k) for c in passing]) for k in powers}

    def _rewards(self) -> list[list[float]]:
        return [
            [
                self.least_reward if r.grade.reward is None else r.grade.reward
                for r in group.rollouts
            ]
            for group in self.groups
        ]


def evaluate(
    step: int,
    job: ResolvedJob,
    prompts: Sequence[Prompt],
    collector: Collector,
    ranks: Ranks,
    num_canary_rows: int = NUM_CANARY_ROWS,
) -> Evaluation:
    """Sample and grade `eval_samples` completions of every validation prompt, and the canaries of a few,
    shared among the ranks.

    The uniforms are the same at every step, so that two evaluations differ by the policy alone.
    """
    clock = Clock()
    rollout, settings = job.engine.rollout, job.engine.evaluation
    top_p = 1.0 if settings.temperature == 0 else rollout.top_p
    sampling = SamplingSettings(
        settings.temperature,
        top_p,
        rollout.max_completion_tokens,
        tuple(rollout.stop),
        keeps_allowed_tokens=False,
        schema=job.completion_schema,
    )
    num_samples = job.hyperparameters.eval_samples
    plan = RolloutPlan(num_samples, job.seed, Purpose.EVALUATE, 0, sampling)
    draws = [Draw(row, prompt) for row, prompt in enumerate(prompts)]
    asked = ranks.share(canaries_on(job.grader, prompts, num_canary_rows))
    with grading_canaries(collector, prompts, asked) as canary_grades:
        mine = collector.collect(ranks.share(draws), plan)
    groups = sorted(ranks.gather(mine), key=lambda group: group.ordinal)
    canaries = sorted(ranks.gather(canary_grades), key=_canary_order)
    seconds = clock.seconds()["full_iteration"]
    least = job.grader.least_reward(job.grading_settings)
    return Evaluation(step, tuple(groups), seconds, tuple(canaries), least)


AskedCanary = tuple[int, Canary]
"""Index of a prompt, and a canary of it."""


def canaries_on(
    document: GraderDocument, prompts: Sequence[Prompt], num_rows: int
) -> list[AskedCanary]:
    """The canaries of at most `num_rows` evenly spread prompts."""
    return [
        (row, canary)
        for row in evenly_spread(len(prompts), num_rows)
        for canary in canaries_of(document, prompts[row].example)
    ]


@contextmanager
def grading_canaries(
    collector: Collector, prompts: Sequence[Prompt], asked: Sequence[AskedCanary]
) -> Iterator[list[CanaryGrade]]:
    """Canaries are graded anew while the body of the `with` runs; the list is full at its end."""
    graded: list[CanaryGrade] = []
    pairs = [(canary.sample, prompts[row].example.item) for row, canary in asked]
    with collector.grading_afresh(pairs) as pending:
        yield graded
        graded += [
            CanaryGrade(row, canary.kind, grade())
            for (row, canary), grade in zip(asked, pending, strict=True)
        ]


def evenly_spread(num_items: int, count: int) -> list[int]:
    """At most `count` indices from 0 on, at equal distances."""
    count = min(num_items, count)
    return [index * num_items // count for index in range(count)]


def _canary_order(canary: CanaryGrade) -> tuple[int, int]:
    return canary.row, CANARY_KINDS.index(canary.kind)


def sub_reward_means(groups: Sequence[Group]) -> Mapping[str, float]:
    """Mean of each sub-reward over the rollouts that have it."""
    values: dict[str, list[float]] = {}
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        for key, reward in rollout.grade.sub_rewards.items():
            if reward is not None:
                values.setdefault(key, []).append(reward)
    return {key: mean(rewards) for key, rewards in values.items()}


def mean(values: Sequence[float]) -> float:
    """NaN for none."""
    return sum(values) / len(values) if values else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation (ddof 1) / √n; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    variance = sum((value - centre) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def _pass_at_k(num_samples: int, num_passing: int, k: int) -> float:
    return 1 - math.comb(num_samples - num_passing, k) / math.comb(num_samples, k)
