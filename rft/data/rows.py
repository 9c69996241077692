"""A row of a data source on its way to becoming an example."""

from dataclasses import dataclass
from typing import Any

from rft.errors import Problem
from rft.job.places import one_line


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source before it becomes an example."""

    place: str
    """`file:line`, or `file row 3` where rows have no lines."""
    value: Any


class RowError(Exception):
    """A row, or a message of it, that cannot be used."""

    def __init__(
        self, what: str, remedy: str = "", *, message: int | None = None, not_yet: bool = False
    ):
        super().__init__(what)
        self.what, self.remedy = what, remedy
        self.message, self.not_yet = message, not_yet

    def problem(self, place: str) -> Problem:
        where = place if self.message is None else f"{place} message {self.message}"
        return Problem(one_line(self.what), where, one_line(self.remedy))


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a number")
