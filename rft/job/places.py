"""Where the parts of a document were written, and what is wrong with them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
KeyPath = tuple[str | int, ...]
"""The keys and list indices that lead from the top of a document to a value."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a key or a value was written: a file's line and column, or an override."""

    is_override: bool
    line: int
    column: int
    source: str

    def __str__(self) -> str:
        source = one_line(self.source)
        return source if self.is_override else f"{source}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a document, still tied to its key path."""

    path: KeyPath
    what: str
    remedy: str
    place: Place | None = None
    """When the path alone does not say it, such as at a duplicate key."""
    at_key: bool = False
    """Whether the key is at fault, not its value."""
    not_yet: bool = False
    """Whether the value is legal but what it asks for is not built."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A document as plain values, with the places of its keys and values."""

    value: Any
    keys: Mapping[KeyPath, Place]
    values: Mapping[KeyPath, Place]
    faults: tuple[Fault, ...] = ()
    """Each stands at a path whose value could not be read; the value is then null."""

    def place_of_key(self, path: KeyPath) -> Place | None:
        """The place of a key; of the nearest enclosing one when the path was not written."""
        return self._nearest(self.keys, path)

    def place_of_value(self, path: KeyPath) -> Place | None:
        """The place of a value; of the nearest enclosing one when the path was not written."""
        return self._nearest(self.values, path)

    def _nearest(self, places: Mapping[KeyPath, Place], path: KeyPath) -> Place | None:
        for length in range(len(path), -1, -1):
            if path[:length] in places:
                return places[path[:length]]
        return None


def place_after(text: str, source: str) -> Place:
    """The place of what follows a text, in lines as YAML counts them."""
    lines = _LINE_BREAK.split(text)
    return Place(False, len(lines), len(lines[-1]) + 1, source)


def dotted(path: KeyPath) -> str:
    """A key path as a person writes it: `engine.lora.rank`, `integrations[0].type`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def one_line(text: str) -> str:
    """A text as one line of at most 600 printable characters, for errors that repeat a document."""
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:601])
    return printable if len(printable) <= 600 else f"{printable[:600]}…"
