"""What a person sees while a job runs: a line per step and per evaluation."""

import time
from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rft.cli.output import Screen
from rft.cli.text import decimal, duration, shorten, signed
from rft.runs.documents import read_lines
from rft.runs.layout import RunFolder
from rft.types import MAX_UNGRADED_FRACTION

if TYPE_CHECKING:
    from rft.training.report import Outcome

SHOWN_FACTS = (
    "model",
    "device",
    "dtype",
    "sampler",
    "num_processes",
    "num_training_rows",
    "num_validation_rows",
    "batch_size",
    "group_size",
)
STEPS_FOR_ETA = 20


class LiveReport:
    """The watcher of a job at a terminal, or in a log."""

    def __init__(self, screen: Screen):
        self.run_folder: Path | None = None
        self.outcome: Outcome | None = None
        self._screen = screen
        self._baseline: float | None = None
        self._best: float | None = None
        self._total_steps: int | None = None
        self._arrivals: deque[float] = deque(maxlen=STEPS_FOR_ETA + 1)

    def started(self, facts: Mapping[str, Any]) -> None:
        if facts.get("run_folder"):
            self.run_folder = Path(facts["run_folder"])
            self._screen.line(f"run  {self.run_folder}", style="bold")
            self._recall(self.run_folder)
        self._total_steps = facts.get("total_steps")
        shown = [
            f"{name.removeprefix('num_').replace('_', ' ')} {_fact(facts[name])}"
            for name in SHOWN_FACTS
            if facts.get(name) is not None
        ]
        if self._total_steps is not None:
            shown.append(f"{self._total_steps} steps")
        if shown:
            self._screen.line("     " + " · ".join(shown))
        self._arrivals.append(time.monotonic())

    def step(self, metrics: Mapping[str, Any]) -> None:
        self._total_steps = metrics.get("total_steps", self._total_steps)
        self._arrivals.append(time.monotonic())
        self._screen.line(step_line(metrics, self._total_steps, self._remaining(metrics)))

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
        value = metrics.get("valid_reward_mean")
        if step == 0:
            self._baseline = value
        is_best = can_rank(metrics) and (
            self._best is None or metrics["valid_reward_mean"] > self._best
        )
        self._best = value if is_best else self._best
        note = "best so far" if is_best and step > 0 else ""
        line = evaluation_line(step, metrics, self._baseline if step > 0 else None, note)
        self._screen.line(line, style="green" if note else "cyan")

    def event(self, level: str, message: str) -> None:
        if level == "info":
            self._screen.line(message)
        else:
            word, style = ("warning", "yellow") if level == "warn" else ("error", "red")
            self._screen.line(f"{word}: {message}", style=style)

    def finished(self, outcome: "Outcome") -> None:
        self.outcome = outcome
        self._screen.line()

    def _recall(self, folder: Path) -> None:
        """What a resumed run had earned before."""
        rows = [
            row
            for row in read_lines(RunFolder(folder).metrics)
            if row.get("valid_reward_mean") is not None
        ]
        self._baseline = {row.get("step"): row["valid_reward_mean"] for row in rows}.get(0)
        ranked = [row["valid_reward_mean"] for row in rows if can_rank(row)]
        self._best = max(ranked, default=None)

    def _remaining(self, metrics: Mapping[str, Any]) -> float | None:
        """Seconds to the end at the pace of the last steps, evaluations included."""
        if self._total_steps is None or len(self._arrivals) < 2:
            return None
        times = list(self._arrivals)
        pace = median(later - earlier for earlier, later in pairwise(times))
        mean = (times[-1] - times[0]) / (len(times) - 1)
        return max(pace, mean) * max(0, self._total_steps - int(metrics["step"]))


def can_rank(metrics: Mapping[str, Any]) -> bool:
    """Whether the evaluation may be called the best: as checkpoints are ranked."""
    ungraded = metrics.get("valid_ungraded_fraction") or 0.0
    return metrics.get("valid_reward_mean") is not None and ungraded <= MAX_UNGRADED_FRACTION


def step_line(metrics: Mapping[str, Any], total_steps: int | None, remaining: float | None) -> str:
    """One training step in one line; what was not measured is left out."""
    total = f"/{total_steps}" if total_steps else ""
    step = f"{metrics['step']}{total}".rjust(2 * len(str(total_steps or 0)) + 1)
    parts = [f"step {step}", f"reward {decimal(metrics.get('train_reward_mean'))}"]
    if (dull := metrics.get("rollout/zero_signal_groups")) is not None:
        groups = metrics.get("rollout/groups")
        parts.append(f"zero-signal {dull:g}" + (f"/{groups:g}" if groups is not None else ""))
    if (length := metrics.get("completion_tokens_mean")) is not None:
        parts.append(f"length {decimal(length, 1)}")
    if truncated := metrics.get("rollout/truncated_fraction"):
        parts.append(f"cut off {truncated:.0%}")
    if (speed := metrics.get("timing/sampling_tokens_per_second")) is not None:
        parts.append(f"{speed:,.0f} tok/s")
    if (seconds := metrics.get("timing/full_iteration")) is not None:
        parts.append(duration(seconds))
    if remaining:
        parts.append(f"ETA {duration(remaining)}")
    return "  ".join(parts)


def evaluation_line(
    step: int, metrics: Mapping[str, Any], baseline: float | None, note: str
) -> str:
    """One evaluation in one line, with its sub-rewards."""
    line = f"evaluation at step {step}: valid reward {decimal(metrics.get('valid_reward_mean'))}"
    if metrics.get("valid_reward_se") is not None:
        line += f" ± {decimal(metrics['valid_reward_se'])}"
    if baseline is not None and metrics.get("valid_reward_mean") is not None:
        line += f" ({signed(metrics['valid_reward_mean'] - baseline)})"
    parts = [
        f"{key.removeprefix('valid_reward_mean/')} {decimal(value)}"
        for key, value in metrics.items()
        if key.startswith("valid_reward_mean/")
    ]
    return line + "".join(f"  {part}" for part in [*parts, note] if part)


def _fact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return shorten(str(value), 60)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
