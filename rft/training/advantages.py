"""Rewards → advantages. A reward means something only against its group."""

from collections.abc import Sequence
from typing import Literal

from rft.types import Group

EPSILON = 1e-4
"""Added to a standard deviation before dividing by it."""


def advantages(
    groups: Sequence[Group], scaling: Literal["group", "batch", "none"]
) -> list[tuple[float | None, ...]]:
    """Per group, the advantage of each rollout; None for an ungraded one.

    reward − mean of the group's graded rewards, divided by (standard deviation + 1e-4, ddof 1) of the
    group's rewards under `group` (Shao et al. 2024), of all graded rewards of the batch under `batch`
    (Hu et al. 2025), undivided under `none` (Liu et al. 2025). A group whose graded rewards are all
    exactly equal has no signal: zeros. A group with fewer than two graded rollouts is skipped: Nones.
    """
    usable = [group for group in groups if len(group.graded) >= 2]
    batch_deviation = _deviation([reward for group in usable for reward in _rewards(group)])
    return [_of_group(group, scaling, batch_deviation) for group in groups]


def _of_group(
    group: Group, scaling: Literal["group", "batch", "none"], batch_deviation: float
) -> tuple[float | None, ...]:
    rewards = _rewards(group)
    if len(rewards) < 2:
        return (None,) * len(group.rollouts)
    if not group.has_signal:
        return tuple(None if r.grade.reward is None else 0.0 for r in group.rollouts)
    mean = sum(rewards) / len(rewards)
    divisor = {
        "group": _deviation(rewards) + EPSILON,
        "batch": batch_deviation + EPSILON,
        "none": 1.0,
    }[scaling]
    return tuple(
        None if r.grade.reward is None else (r.grade.reward - mean) / divisor
        for r in group.rollouts
    )


def _rewards(group: Group) -> list[float]:
    return [r.grade.reward for r in group.graded if r.grade.reward is not None]


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation with ddof 1; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)
