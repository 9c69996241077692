"""What a running job tells whoever watches it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    status: str
    """succeeded | paused | failed."""
    run_folder: Path
    step: int
    baseline: float | None
    """`valid_reward_mean` of the evaluation at step 0, if there was one."""
    best_step: int | None
    best: float | None
    """`valid_reward_mean` of the best checkpoint."""
    final: float | None
    """`valid_reward_mean` of the last evaluation."""
    gain_standard_error: float | None
    """Standard error of best − baseline over validation rows."""
    message: str
    """Why it ended, in a sentence."""


@runtime_checkable
class Report(Protocol):
    """A watcher; it may show or ignore what it is told, never change it."""

    def started(self, facts: Mapping[str, Any]) -> None: ...

    def step(self, metrics: Mapping[str, Any]) -> None: ...

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def event(self, level: str, message: str) -> None: ...

    def finished(self, outcome: Outcome) -> None: ...


class Silent:
    """The watcher of ranks other than the first, and of library use."""

    def started(self, facts: Mapping[str, Any]) -> None: ...

    def step(self, metrics: Mapping[str, Any]) -> None: ...

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def event(self, level: str, message: str) -> None: ...

    def finished(self, outcome: Outcome) -> None: ...
