"""Wall-clock seconds by what they were spent on."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


class Clock:
    """Starts when made."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._spent: dict[str, float] = {}

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.add(what, time.monotonic() - begin)

    def add(self, what: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._spent[what] = self._spent.get(what, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Seconds spent so far by name, `full_iteration` being all since the clock was made."""
        return {**self._spent, "full_iteration": time.monotonic() - self._start}


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What cumulative counts grew by."""
    return {key: value - before.get(key, 0.0) for key, value in after.items()}


def over_ranks(spent: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the ranks spent side by side: tokens (`…_tokens`) add up, of seconds the longest counts."""
    keys = dict.fromkeys(key for one in spent for key in one)
    return {
        key: (sum if key.endswith("_tokens") else max)([one.get(key, 0.0) for one in spent])
        for key in keys
    }
