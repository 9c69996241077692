"""What ends or pauses a job before its last step, each as a sentence or None."""

from collections import Counter
from collections.abc import Sequence

from rft.job import ResolvedJob
from rft.runs.failures import cause_of, last_lines
from rft.training.metrics import errors_by_part, grading_failures
from rft.training.states import Progress
from rft.types import Grade, Group

NUM_OFFENDERS = 3
"""Failing grades that are quoted when a job pauses on them."""

NUM_QUOTED_LINES = 3
"""Lines of a traceback that are quoted: the place in the code, the code, the exception."""


def budget_spent(job: ResolvedJob, step: int, hours: float) -> str | None:
    """Whether so many finished steps, or hours since the start, are all the job may take."""
    budget = job.engine.budget
    if budget.steps is not None and step >= budget.steps:
        return f"the budget of {budget.steps} steps is spent"
    if budget.hours is not None and hours >= budget.hours:
        return f"the budget of {budget.hours:g} hours is spent"
    return None


def grading_failure(job: ResolvedJob, groups: Sequence[Group], split: str) -> list[str]:
    """When more grades failed than `error_pause_rate` allows: how many, and three offenders.

    `split`: of which rows they are, training or validation.
    """
    failures = grading_failures(groups)
    num_grades = sum(len(group.rollouts) for group in groups)
    limit = job.engine.grading.error_pause_rate
    if not failures or len(failures) / num_grades <= limit:
        return []
    grades = [group.rollouts[sample].grade for group, sample in failures]
    counts = Counter(
        f"{kind} in {part}"
        for grade in grades
        for part, errors in errors_by_part(grade).items()
        for kind in errors
    )
    return [
        f"{len(failures)} of {num_grades} {split} grades failed, more than "
        f"engine.grading.error_pause_rate = {limit:g} allows: "
        + ", ".join(f"{count} with {kind}" for kind, count in counts.most_common()),
        *(f"{split} {offence(group, sample)}" for group, sample in offenders(failures)),
    ]


def offenders(failures: Sequence[tuple[Group, int]]) -> list[tuple[Group, int]]:
    """Three of the failures, with different causes as far as there are."""
    seen: set[frozenset[tuple[str, str, str]]] = set()
    firsts: list[tuple[Group, int]] = []
    others: list[tuple[Group, int]] = []
    for group, sample in failures:
        causes = causes_of(group.rollouts[sample].grade)
        (others if causes in seen else firsts).append((group, sample))
        seen.add(causes)
    return [*firsts, *others][:NUM_OFFENDERS]


def causes_of(grade: Grade) -> frozenset[tuple[str, str, str]]:
    return frozenset(
        (part, kind, cause_of(details))
        for part, errors in errors_by_part(grade).items()
        for kind, details in errors.items()
    )


def offence(group: Group, sample: int) -> str:
    """A failing completion: where it stands, what it says, and what went wrong with its grade."""
    rollout = group.rollouts[sample]
    lines = [
        f"row {group.prompt.example.row} sample {sample}: {rollout.completion.output_text[:80]!r}"
    ]
    for part, errors in errors_by_part(rollout.grade).items():
        for kind, details in errors.items():
            quoted = last_lines(details, NUM_QUOTED_LINES).splitlines()
            lines += [f"  {part}: {kind}", *(f"    {line[:200]}" for line in quoted)]
    return "\n".join(lines)


def early_end(job: ResolvedJob, progress: Progress) -> str | None:
    """Whether an evaluation has reached `stop_at`, or `patience` is at its end; a pure function of where the
    run stands, so that a run that is killed before it says so still ends."""
    settings = job.engine.evaluation
    best, since_best = progress.best_reward, progress.evaluations_since_best
    if settings.stop_at is not None and best is not None and best >= settings.stop_at:
        return (
            f"Ended at step {progress.step}: valid_reward_mean {best:.3f} "
            f"reached stop_at {settings.stop_at:g}"
        )
    if settings.patience is not None and since_best >= settings.patience:
        return f"Ended at step {progress.step}: no new best in {since_best} evaluations (patience)"
    return None
