"""What ends or pauses a job before its last step, each as a sentence or None."""

from collections.abc import Sequence

from rft.job import ResolvedJob
from rft.training.evaluation import Evaluation
from rft.training.metrics import all_errors, grading_failures
from rft.types import Group

NUM_OFFENDERS = 3
"""Failing grades that are quoted when a job pauses on them."""


def budget_spent(job: ResolvedJob, step: int, hours: float) -> str | None:
    """Whether so many finished steps, or hours since the start, are all the job may take."""
    budget = job.engine.budget
    if budget.steps is not None and step >= budget.steps:
        return f"the budget of {budget.steps} steps is spent"
    if budget.hours is not None and hours >= budget.hours:
        return f"the budget of {budget.hours:g} hours is spent"
    return None


def grading_failure(job: ResolvedJob, groups: Sequence[Group]) -> str | None:
    """Whether more grades failed than `error_pause_rate` allows, with three offenders."""
    failures = grading_failures(groups)
    rate = len(failures) / sum(len(group.rollouts) for group in groups)
    limit = job.engine.grading.error_pause_rate
    if rate <= limit:
        return None
    offenders = [
        f"row {group.prompt.example.row}, {rollout.completion.output_text[:80]!r}: "
        + "; ".join(f"{k}: {v.strip()[-200:]}" for k, v in all_errors(rollout.grade).items())
        for group, rollout in failures[:NUM_OFFENDERS]
    ]
    return (
        f"{rate:.0%} of the grades failed (engine.grading.error_pause_rate is {limit:g}). "
        "For example: " + " | ".join(offenders)
    )


def early_end(
    job: ResolvedJob, evaluation: Evaluation | None, evaluations_since_best: int
) -> str | None:
    """Whether an evaluation reached `stop_at`, or `patience` is at its end."""
    settings = job.engine.evaluation
    if evaluation is None or not evaluation.can_rank:
        return None
    if settings.stop_at is not None and evaluation.reward_mean >= settings.stop_at:
        return (
            f"Ended at step {evaluation.step}: valid_reward_mean {evaluation.reward_mean:.3f} "
            f"reached stop_at {settings.stop_at:g}"
        )
    if settings.patience is not None and evaluations_since_best >= settings.patience:
        return (
            f"Ended at step {evaluation.step}: no new best in {evaluations_since_best} "
            "evaluations (patience)"
        )
    return None
