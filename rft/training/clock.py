"""Wall-clock seconds by what they were spent on."""

import time
from collections.abc import Iterator
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
