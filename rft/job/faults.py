"""Pydantic's complaints about a job document → faults a person can act on."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from rft.job.marked import NUMBER
from rft.job.places import Fault, KeyPath, dotted
from rft.job.schema import (
    Schema,
    accepts,
    follow,
    json_schema,
    key_paths,
    legal_keys,
    legal_texts,
    wanted,
)

MAX_VALUE_SHOWN = 50
"""Characters of a value that an error repeats."""


def faults_of(error: ValidationError, document: Any) -> list[Fault]:
    """One fault for each place pydantic complains about, however many union members complained."""
    root = json_schema()
    faults: dict[KeyPath, Fault] = {}
    for detail in error.errors(include_url=False):
        path, schema = follow(root, detail["loc"], document)
        kind = detail["type"]
        if detail["loc"][-1:] == ("[key]",):
            what = (
                f"the key `{str(path[-1])[:MAX_VALUE_SHOWN]}…` in {dotted(path[:-1])} is not legal"
            )
            faults[path] = Fault(path, what, detail["msg"].replace("String", "a key"))
        elif kind == "extra_forbidden":
            parent = follow(root, detail["loc"][:-1], document)[1]
            path = (*path, detail["loc"][-1]) if path[-1:] != detail["loc"][-1:] else path
            faults[path] = _unknown_key(path, legal_keys(parent), root)
        elif kind == "missing" and isinstance(detail["loc"][-1], str):
            meaning = " ".join(schema.get("description", "").split()).split(". ")[0].rstrip(".")
            remedy = f"add `{path[-1]}: …`: {meaning or wanted(schema, root)}"
            faults.setdefault(path, Fault(path, f"`{dotted(path)}` is missing", remedy))
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            faults[path] = _wrong_type(path, _at(document, path), schema)
        elif kind in ("value_error", "assertion_error"):
            message = detail["msg"].split(", ", 1)[-1]
            faults.setdefault(path, Fault(path, f"{dotted(path)}: {message}", ""))
        else:
            faults.setdefault(path, _ill_formed(path, _at(document, path), schema, root))
    return [fault for path, fault in faults.items() if not _has_inner(path, faults)]


def nearest(name: str, legal: Sequence[str]) -> str:
    """The remedy for a misspelt name: the nearest legal one, or all of them."""
    close = get_close_matches(name, legal, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else f"legal: {', '.join(legal)}"


def shown(value: Any) -> str:
    """A value as an error names it."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value}"
    if isinstance(value, str):
        text = value if len(value) <= MAX_VALUE_SHOWN else value[:MAX_VALUE_SHOWN] + "…"
        return f"the text {text!r}"
    if isinstance(value, list):
        return f"a list of {len(value)} values"
    return f"a mapping of {len(value)} keys"


def _unknown_key(path: KeyPath, legal: Sequence[str], root: Schema) -> Fault:
    """Names the nearest legal key of that place, or the place where that very key is legal."""
    name, parent = str(path[-1])[:100], dotted(path[:-1])
    what = f"unknown key `{name}`" + (f" in {parent}" if parent else "")
    elsewhere = [dotted(known) for known in key_paths(root, root) if known[-1] == name]
    close = get_close_matches(name, legal, n=1, cutoff=0.6)
    if elsewhere and not close:
        return Fault(path, what, f"it belongs at {elsewhere[0]}", at_key=True)
    return Fault(path, what, nearest(name, legal) if legal else "remove it", at_key=True)


def _wrong_type(path: KeyPath, value: Any, schema: Schema) -> Fault:
    """For a grader whose `type` is missing or unknown."""
    legal = list(schema.get("discriminator", {}).get("mapping", {}))
    if not isinstance(value, dict):
        what, remedy = (
            f"{dotted(path)} is {shown(value)}",
            "write a grader: a mapping with a `type`",
        )
        return Fault(path, what, remedy)
    if "type" not in value:
        return Fault(path, f"`{dotted(path)}.type` is missing", f"legal: {', '.join(legal)}")
    what = f"{dotted(path)}.type is {shown(value['type'])}, which is no grader type here"
    close = get_close_matches(str(value["type"]), legal, n=1, cutoff=0.6)
    remedy = (f"did you mean {close[0]}? " if close else "") + f"legal: {', '.join(legal)}"
    return Fault((*path, "type"), what, remedy)


def _ill_formed(path: KeyPath, value: Any, schema: Schema, root: Schema) -> Fault:
    what = f"{dotted(path) or 'the document'} is {shown(value)}"
    takes_number = accepts(schema, "integer") or accepts(schema, "number")
    takes_text = accepts(schema, "string")
    remedy = f"write {wanted(schema, root)}"
    if isinstance(value, str):
        close = get_close_matches(value, legal_texts(schema), n=1, cutoff=0.6)
        if takes_number and NUMBER.fullmatch(value):
            return Fault(path, what, f"remove the quotes: {remedy}")
        if close:
            return Fault(path, what, f"did you mean {close[0]}? {remedy}")
    elif takes_text and isinstance(value, (bool, int, float)):
        return Fault(path, what, f"put it in quotes: {remedy}")
    elif takes_number and isinstance(value, bool):
        return Fault(path, what, f"true and false are no numbers: {remedy}")
    return Fault(path, what, remedy)


def _at(document: Any, path: Iterable[str | int]) -> Any:
    for part in path:
        document = document[part] if isinstance(part, int) else document.get(part)
    return document


def _has_inner(path: KeyPath, faults: Iterable[KeyPath]) -> bool:
    """Whether a fault deeper inside says more than this one, where a whole union failed."""
    return any(len(inner) > len(path) and inner[: len(path)] == path for inner in faults)
