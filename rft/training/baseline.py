"""What the untrained model earns on a few training prompts, before any training."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median, pstdev, stdev
from typing import Any

from rft.graders.canaries import CANARY_KINDS, CanaryKind
from rft.job import ResolvedJob
from rft.rollout.collect import Collector, Draw, RolloutPlan
from rft.rollout.randomness import Purpose
from rft.training.evaluation import (
    CanaryGrade,
    Evaluation,
    canaries_on,
    evenly_spread,
    grading_canaries,
    mean,
)
from rft.training.metrics import (
    all_errors,
    distinct_fraction,
    errors_by_part,
    grading_failures,
    is_dull,
)
from rft.training.trainer import rollout_plan
from rft.training.verdict import Baseline, judge
from rft.training.watch_metrics import (
    canary_errors,
    canary_reward,
    correlation_within_groups,
    mean_or_none,
    pearson,
    repeated_fraction,
    rewards_and_lengths,
)
from rft.types import Grade, Group, Prompt

NUM_PROMPTS = 24
"""Training prompts that are looked at, evenly spread over the file: enough to know a share of them to
±0.1 (one standard error), at a cost of a minute or two for a small model on a CPU."""

RewardOf = Callable[[Grade], float | None]
"""The reward of a grade, or of a part of it."""


def measure_baseline(
    job: ResolvedJob, prompts: Sequence[Prompt], collector: Collector, samples_per_prompt: int
) -> dict[str, Any]:
    """Sample and grade as a training step would, grade the canaries of the same rows, and judge."""
    chosen = [prompts[row] for row in evenly_spread(len(prompts), NUM_PROMPTS)]
    draws = [Draw(index, prompt) for index, prompt in enumerate(chosen)]
    sampling = rollout_plan(job, 0).sampling
    plan = RolloutPlan(samples_per_prompt, job.seed, Purpose.TRAIN, 0, sampling)
    began, waited = time.monotonic(), collector.seconds_waited
    groups = collector.collect(draws, plan)
    seconds, waited = time.monotonic() - began, collector.seconds_waited - waited
    # after the sampling, whose waiting for grades they must not lengthen
    asked = canaries_on(job.grader, chosen, len(chosen))
    with grading_canaries(collector, chosen, asked) as canaries:
        pass
    return baseline_document(job, groups, canaries, seconds, waited)


def baseline_document(
    job: ResolvedJob,
    groups: Sequence[Group],
    canaries: Sequence[CanaryGrade],
    seconds: float,
    seconds_waited: float,
) -> dict[str, Any]:
    """All that is known of the baseline, with the verdict; null where a number does not exist."""
    baseline = baseline_of(job, groups, canaries, seconds_waited / max(seconds, 1e-9))
    verdict = judge(baseline)
    grades = [rollout.grade for group in groups for rollout in group.rollouts]
    lengths = [len(r.completion.token_ids) for group in groups for r in group.rollouts]
    overall = pearson(*rewards_and_lengths(groups))
    return {
        "num_prompts": len(groups),
        "samples_per_prompt": baseline.samples_per_prompt,
        "temperature": job.engine.rollout.temperature,
        "seconds": seconds,
        "reward": spread(groups, lambda grade: grade.reward),
        "parts": {key: spread(groups, part_reward(key)) for key in part_keys(grades)},
        "groups": {
            "with_signal_fraction": baseline.signal,
            "all_zero_fraction": baseline.all_zero,
            "all_passing_fraction": baseline.all_passing,
            "all_equal_between_fraction": baseline.all_equal_between,
            "skipped_fraction": mean([float(len(group.graded) < 2) for group in groups]),
            "with_signal_per_step": baseline.signal_groups_per_step,
            "batch_size": baseline.batch_size,
            "group_size": baseline.group_size,
        },
        "pass_threshold": baseline.pass_threshold,
        "pass_at": {str(k): value for k, value in baseline.pass_at.items()},
        "ungraded_fraction": mean([float(grade.reward is None) for grade in grades]),
        "errors": error_counts(grades),
        "reward_length_correlation": {
            "overall": overall,
            "within_groups": baseline.length_correlation,
        },
        "completions": {
            "tokens_mean": mean(lengths),
            "truncated_fraction": baseline.truncated,
            "distinct_fraction": baseline.distinct,
            "repeated_fraction": repeated_fraction(groups),
        },
        "canaries": {kind: canary_document(canaries, kind) for kind in CANARY_KINDS},
        "grading": grading_seconds(grades) | {"waited_fraction": baseline.waited},
        "verdict": verdict.word,
        "findings": [
            {"weight": finding.weight, "about": finding.about, "text": finding.text}
            for finding in verdict.findings
        ],
    }


def baseline_of(
    job: ResolvedJob, groups: Sequence[Group], canaries: Sequence[CanaryGrade], waited: float
) -> Baseline:
    """The numbers that the verdict rests on."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [r.grade.reward for r in rollouts if r.grade.reward is not None]
    threshold = job.engine.evaluation.pass_threshold
    batch_size, group_size = job.hyperparameters.batch_size, job.engine.rollout.group_size
    signals = [signal_probability(group, group_size) for group in groups]
    kinds = Counter(kind for rollout in rollouts for kind in all_errors(rollout.grade))
    return Baseline(
        num_groups=len(groups),
        samples_per_prompt=len(groups[0].rollouts),
        group_size=group_size,
        batch_size=batch_size,
        pass_threshold=threshold,
        error_pause_rate=job.engine.grading.error_pause_rate,
        reward_mean=mean_or_none(rewards),
        reward_max=max(rewards, default=None),
        reward_min=min(rewards, default=None),
        signal=mean([float(group.has_signal) for group in groups]),
        **equal_fractions(groups, threshold),
        all_zero_rewards=all_zero_rewards(groups, threshold),
        signal_groups_per_step=batch_size * mean(signals),
        pass_at=Evaluation(0, tuple(groups), 0.0).pass_at(threshold),
        error_rates={kind: count / len(rollouts) for kind, count in sorted(kinds.items())},
        failed=len(grading_failures(groups)) / len(rollouts),
        length_correlation=correlation_within_groups(groups),
        truncated=mean([float(rollout.completion.is_truncated) for rollout in rollouts]),
        distinct=mean([distinct_fraction(group) for group in groups]),
        canaries={kind: canary_reward(canaries, kind) for kind in CANARY_KINDS},
        canary_errors=canary_errors(canaries),
        waited=waited,
    )


def equal_fractions(groups: Sequence[Group], pass_threshold: float) -> dict[str, float]:
    """Shares of the groups whose rewards are all equal, by what they are."""
    equal = [group.graded[0].grade.reward for group in groups if is_dull(group)]
    kinds = Counter(equal_kind(reward, pass_threshold) for reward in equal if reward is not None)
    names = ("all_zero", "all_passing", "all_equal_between")
    return {name: kinds[name] / len(groups) for name in names}


def all_zero_rewards(groups: Sequence[Group], pass_threshold: float) -> tuple[float, ...]:
    """The different rewards of the groups that are equal at 0 or below, the lowest first."""
    equal = {group.graded[0].grade.reward for group in groups if is_dull(group)}
    known = (reward for reward in equal if reward is not None)
    return tuple(sorted(r for r in known if equal_kind(r, pass_threshold) == "all_zero"))


def equal_kind(reward: float, pass_threshold: float) -> str:
    if reward >= pass_threshold:
        return "all_passing"
    return "all_zero" if reward <= 0 else "all_equal_between"


def signal_probability(group: Group, group_size: int) -> float:
    """Probability that `group_size` completions of the prompt do not all earn the same.

    1 − Σ_v C(n_v, g) / C(n, g) over the distinct rewards v of n graded samples, which is unbiased; with
    fewer samples than `group_size`, 1 − Σ_v (n_v / n)^g.
    """
    counts = Counter(rollout.grade.reward for rollout in group.graded).values()
    num_samples = sum(counts)
    if num_samples < 2:
        return 0.0
    if num_samples < group_size:
        return 1 - math.fsum((count / num_samples) ** group_size for count in counts)
    subsets = math.comb(num_samples, group_size)
    return 1 - sum(math.comb(count, group_size) for count in counts) / subsets


def spread(groups: Sequence[Group], reward_of: RewardOf) -> dict[str, float | None]:
    """Mean, spread (ddof 0), mean spread within groups (ddof 1, as advantages have it), lowest and highest."""
    by_group = [
        [reward for r in group.rollouts if (reward := reward_of(r.grade)) is not None]
        for group in groups
    ]
    rewards = [reward for group_rewards in by_group for reward in group_rewards]
    within = [stdev(group_rewards) for group_rewards in by_group if len(group_rewards) > 1]
    return {
        "mean": mean_or_none(rewards),
        "std": pstdev(rewards) if rewards else None,
        "within_group_std": mean_or_none(within),
        "min": min(rewards, default=None),
        "max": max(rewards, default=None),
    }


def part_keys(grades: Sequence[Grade]) -> list[str]:
    """The keys of a multi grader's parts, in document order."""
    return list(dict.fromkeys(key for grade in grades for key in grade.sub_grades))


def part_reward(key: str) -> RewardOf:
    """A function to the reward of that part."""
    return lambda grade: grade.sub_rewards.get(key)


def error_counts(grades: Sequence[Grade]) -> dict[str, dict[str, dict[str, float]]]:
    """By grader and kind of error, how many of the grades have it, and which share."""
    counts = Counter(
        (who, kind)
        for grade in grades
        for who, errors in errors_by_part(grade).items()
        for kind in errors
    )
    document: dict[str, dict[str, dict[str, float]]] = {}
    for (who, kind), count in sorted(counts.items()):
        document.setdefault(who, {})[kind] = {"count": count, "rate": count / len(grades)}
    return document


def canary_document(canaries: Sequence[CanaryGrade], kind: CanaryKind) -> dict[str, Any]:
    """Mean rewards of a canary over the rows where it was graded without error, and the errors."""
    asked = [canary.grade for canary in canaries if canary.kind == kind]
    grades = [grade for grade in asked if not grade.errors]

    def mean_of(reward_of: RewardOf) -> float | None:
        return mean_or_none([reward for g in grades if (reward := reward_of(g)) is not None])

    return {
        "num_rows": len(asked),
        "num_graded": sum(grade.reward is not None for grade in grades),
        "reward_mean": mean_of(lambda grade: grade.reward),
        "parts": {key: mean_of(part_reward(key)) for key in part_keys(grades)},
        "errors": error_counts(asked),
    }


def grading_seconds(grades: Sequence[Grade]) -> dict[str, float | int | None]:
    """Seconds of the calls that were made; equal answers to a prompt are graded once."""
    calls = sorted(grade.latency for grade in grades if grade.latency > 0)
    return {
        "num_calls": len(calls),
        "seconds_median": median(calls) if calls else None,
        "seconds_p95": calls[math.ceil(0.95 * len(calls)) - 1] if calls else None,
    }
