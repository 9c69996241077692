"""Two evaluations side by side: which answers changed, and by how much."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

EvaluationRow = Mapping[str, Any]
"""One completion of an evaluation, by the columns of its parquet file."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same prompt and sample number before and after."""

    before: EvaluationRow
    after: EvaluationRow

    @property
    def difference(self) -> float | None:
        """Reward gained; None when one side is ungraded."""
        before, after = self.before["reward"], self.after["reward"]
        return None if before is None or after is None else float(after - before)


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row of the validation file, over its samples that are graded on both sides."""

    row: int
    reward_before: float
    reward_after: float
    sub_rewards_before: Mapping[str, float]
    sub_rewards_after: Mapping[str, float]
    pairs: tuple[Pair, ...]

    @property
    def difference(self) -> float:
        return self.reward_after - self.reward_before


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed between two evaluations."""

    rows: tuple[RowChange, ...]
    """By row number."""
    mean_before: float | None
    mean_after: float | None
    mean_difference: float | None
    """Mean over rows; None when no row can be compared."""
    standard_error: float | None
    """Of `mean_difference`, over rows; None below two rows."""
    num_better: int
    num_worse: int
    num_same: int
    num_ungraded: int
    """Pairs left out because one side has no reward."""
    num_different_prompts: int
    """Pairs left out because the two sides answer different prompts."""
    num_unpaired: int
    """Completions that stand in one evaluation only."""

    def most_changed(self, count: int) -> list[RowChange]:
        """The rows with the largest change in either direction; rows that did not change never."""
        changed = [row for row in self.rows if row.difference != 0]
        return sorted(changed, key=lambda row: (-abs(row.difference), row.row))[:count]


def compare_evaluations(
    before: Sequence[EvaluationRow], after: Sequence[EvaluationRow]
) -> Comparison:
    """Join two evaluations by (row, sample) and measure the change row by row."""
    earlier = {(entry["row"], entry["sample"]): entry for entry in before}
    later = {(entry["row"], entry["sample"]): entry for entry in after}
    shared = sorted(earlier.keys() & later.keys())
    pairs = [Pair(earlier[key], later[key]) for key in shared]
    alike = [pair for pair in pairs if pair.before["messages"] == pair.after["messages"]]
    graded = [pair for pair in alike if pair.difference is not None]
    by_row: dict[int, list[Pair]] = defaultdict(list)
    for pair in graded:
        by_row[pair.before["row"]].append(pair)
    rows = tuple(_row_change(row, row_pairs) for row, row_pairs in sorted(by_row.items()))
    differences = [row.difference for row in rows]
    return Comparison(
        rows=rows,
        mean_before=fmean(row.reward_before for row in rows) if rows else None,
        mean_after=fmean(row.reward_after for row in rows) if rows else None,
        mean_difference=fmean(differences) if rows else None,
        standard_error=standard_error(differences),
        num_better=sum(difference > 0 for difference in differences),
        num_worse=sum(difference < 0 for difference in differences),
        num_same=sum(difference == 0 for difference in differences),
        num_ungraded=len(alike) - len(graded),
        num_different_prompts=len(pairs) - len(alike),
        num_unpaired=len(earlier.keys() ^ later.keys()),
    )


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values: std (ddof 1) / √n; None below two."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _row_change(row: int, pairs: Sequence[Pair]) -> RowChange:
    return RowChange(
        row=row,
        reward_before=fmean(pair.before["reward"] for pair in pairs),
        reward_after=fmean(pair.after["reward"] for pair in pairs),
        sub_rewards_before=_sub_reward_means([pair.before for pair in pairs]),
        sub_rewards_after=_sub_reward_means([pair.after for pair in pairs]),
        pairs=tuple(pairs),
    )


def _sub_reward_means(entries: Sequence[EvaluationRow]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        for key, reward in (entry["sub_rewards"] or {}).items():
            if reward is not None:
                values[key].append(reward)
    return {key: fmean(rewards) for key, rewards in values.items()}
