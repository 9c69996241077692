"""From samples to medians to how many times better rft is than TRL."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Sample = Mapping[str, Any]
Medians = Mapping[str, Mapping[str, float]]

RATIOS = (
    "sample_tokens_per_second",
    "train_seconds",
    "step_seconds",
    "peak_memory",
    "time_to_reward",
)


def medians(samples: Mapping[str, Sequence[Sample]]) -> dict[str, dict[str, float]]:
    """By side, the median of every number that its samples share."""
    return {side: _medians_of(rows) for side, rows in samples.items() if rows}


def better_setting(measured: Medians, key: str, sides: Sequence[str]) -> str:
    """The side with the least `key` among those that were measured."""
    return min((side for side in sides if side in measured), key=lambda side: measured[side][key])


def times_less(ours: float | None, theirs: float | None) -> float | None:
    """How many times less ours is: theirs / ours; None where either was not measured."""
    return theirs / ours if ours and theirs else None


def times_more(ours: float | None, theirs: float | None) -> float | None:
    """How many times more ours is: ours / theirs."""
    return times_less(theirs, ours)


def all_ratios(**found: float | None) -> dict[str, float | None]:
    """Every ratio there is, None for those not found; raises KeyError for an unknown one."""
    unknown = set(found) - set(RATIOS)
    if unknown:
        raise KeyError(f"no such ratio: {sorted(unknown)}")
    return {name: found.get(name) for name in RATIOS}


def _medians_of(rows: Sequence[Sample]) -> dict[str, float]:
    numbers = [
        key
        for key, value in rows[0].items()
        if isinstance(value, int | float) and all(key in row for row in rows)
    ]
    return {key: statistics.median(row[key] for row in rows) for key in numbers}
