"""What a watch remembers from step to step, in numbers that a resume state can hold."""

from collections.abc import Mapping


class Conditions:
    """Counts how long conditions have held, and keeps what a run began with."""

    def __init__(self, numbers: Mapping[str, float] | None = None):
        self.numbers: dict[str, float] = dict(numbers or {})
        """All that is remembered, by name; finite."""

    def after(self, limit: int, condition: str, text: str | None) -> str | None:
        """The text when the condition has held `limit` times in a row, and then no more until it ends."""
        count = self.numbers.get(condition, 0) + 1 if text else 0
        self.numbers[condition] = count
        return text if count == limit else None

    def once(self, limit: int, condition: str, text: str | None) -> str | None:
        """The same, but no more for the rest of the run."""
        if self.numbers.get(condition, 0) >= limit:
            return None
        return self.after(limit, condition, text)

    def first(self, name: str, value: float) -> float:
        """The first value that was given under this name."""
        return self.numbers.setdefault(f"first {name}", value)

    def mean_of_first(self, name: str, value: float, count: int) -> float:
        """Mean of the first `count` values that were given under this name."""
        total, so_far = f"first {name}: sum", f"first {name}: count"
        if self.numbers.get(so_far, 0) < count:
            self.add(total, value)
            self.add(so_far, 1)
        return self.numbers[total] / self.numbers[so_far]

    def add(self, name: str, value: float) -> None:
        """Count `value` on top of what is there."""
        self.numbers[name] = self.numbers.get(name, 0) + value

    def take_mean(self, name: str) -> float | None:
        """Mean of the values that were given to `count` since the last call; None for none."""
        total = self.numbers.pop(f"{name}: sum", 0.0)
        count = self.numbers.pop(f"{name}: count", 0)
        return total / count if count else None

    def count(self, name: str, value: float) -> None:
        """Let a value enter the next `take_mean`."""
        self.add(f"{name}: sum", value)
        self.add(f"{name}: count", 1)
