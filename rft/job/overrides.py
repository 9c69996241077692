"""Dotted overrides, laid over a document: `engine.training.learning_rate=1e-4`."""

from collections.abc import Sequence
from typing import Any

from rft.job.marked import read_marked
from rft.job.places import Fault, KeyPath, Marked, Place, dotted
from rft.job.values import MAX_DEPTH

MAX_OVERRIDES = 200
"""Each is laid over a copy of the whole document."""
MAX_SHOWN = 100
"""Characters of an override that an error repeats."""


def apply_overrides(document: Marked, overrides: Sequence[str]) -> Marked:
    """The document with each `key.sub=value` laid over it in turn.

    A value is YAML and replaces what stood there; sections that are missing are made.
    """
    for text in overrides[:MAX_OVERRIDES]:
        document = _apply(document, text)
    if len(overrides) > MAX_OVERRIDES:
        what = f"there are {len(overrides)} overrides, and at most {MAX_OVERRIDES} are read"
        place = _place(overrides[MAX_OVERRIDES])
        return _with_fault(document, Fault((), what, "write them into the job file", place))
    return document


def _apply(document: Marked, text: str) -> Marked:
    place = _place(text)
    if any("\ud800" <= character <= "\udfff" for character in text):  # how Python keeps such bytes
        return _with_fault(document, Fault((), "not UTF-8", "write the override in UTF-8", place))
    key, equals, value_text = text.partition("=")
    path: KeyPath = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path) or len(path) > MAX_DEPTH:
        return _with_fault(document, Fault((), "not an override", "write key.sub=value", place))
    value = read_marked(value_text if value_text.strip() else "null", place.source)
    try:
        merged = _set(document.value, path, value.value)
    except _NoSectionError as error:
        what = f"{dotted(error.path)} holds {error.seen}, so nothing can be set inside it"
        return _with_fault(document, Fault(path, what, "name a key of a section", place))
    here = {(*path, *inner): place for inner in ((), *value.keys, *value.values)}
    for length in range(1, len(path)):
        if path[:length] not in document.keys:
            here[path[:length]] = place
    keys = {p: at for p, at in document.keys.items() if p[: len(path)] != path}
    values = {p: at for p, at in document.values.items() if p[: len(path)] != path}
    faults = [f for f in document.faults if not f.path or f.path[: len(path)] != path]
    faults += [Fault((*path, *f.path), f.what, f.remedy, place) for f in value.faults]
    return Marked(merged, {**keys, **here}, {**values, **here}, tuple(faults))


def _place(text: str) -> Place:
    shown = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    return Place(True, 0, 0, f"override {shown}")


class _NoSectionError(Exception):
    def __init__(self, path: KeyPath, seen: str):
        super().__init__(seen)
        self.path, self.seen = path, seen


def _set(section: Any, path: KeyPath, value: Any, done: KeyPath = ()) -> Any:
    if not path:
        return value
    if section is None:
        section = {}
    if not isinstance(section, dict):
        raise _NoSectionError(done, "a list" if isinstance(section, list) else repr(section))
    head = path[0]
    return {**section, head: _set(section.get(head), path[1:], value, (*done, head))}


def _with_fault(document: Marked, fault: Fault) -> Marked:
    return Marked(document.value, document.keys, document.values, (*document.faults, fault))
