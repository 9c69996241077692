"""Pydantic's complaints about a job document → faults a person can act on."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rft.job.places import Fault, KeyPath, dotted
from rft.job.scalars import NUMBER
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
    homes = {str(path[-1]): path for path in reversed(list(key_paths(root, root)))}
    faults: dict[KeyPath, Fault] = {}
    for detail in error.errors(include_url=False, include_input=False):
        fault = _fault(detail, root, homes, document)
        faults[fault.path] = fault
    outer = {path[:length] for path in faults for length in range(len(path))}
    return [fault for path, fault in faults.items() if path not in outer]


def _fault(
    detail: ErrorDetails, root: Schema, homes: Mapping[str, KeyPath], document: Any
) -> Fault:
    location, kind = detail["loc"], detail["type"]
    if kind == "extra_forbidden":
        section, schema = follow(root, location[:-1], document)
        return _unknown_key((*section, location[-1]), legal_keys(schema), homes)
    path, schema = follow(root, location, document)
    if location[-1:] == ("[key]",):
        remedy = detail["msg"].replace("String", "a key")
        what = f"the key {shown(path[-1])} in {dotted(path[:-1])} is not legal"
        return Fault(path, what, remedy, at_key=True)
    if kind == "missing" and isinstance(location[-1], str):
        meaning = " ".join(schema.get("description", "").split()).split(". ")[0].rstrip(".")
        remedy = f"add `{path[-1]}: …`: {meaning or wanted(schema, root)}"
        return Fault(path, f"`{dotted(path)}` is missing", remedy)
    value = _at(document, path)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_type(path, value, schema)
    if kind in ("value_error", "assertion_error"):
        message = detail["msg"].split(", ", 1)[-1]
        what, _, remedy = message.partition(" → ")
        return Fault(path, f"{dotted(path)}: {what}", remedy)
    return _ill_formed(path, value, schema, root)


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
        return f"a list of {len(value)}"
    return f"a mapping with {len(value)} key" + "s" * (len(value) != 1)


def _unknown_key(path: KeyPath, legal: Sequence[str], homes: Mapping[str, KeyPath]) -> Fault:
    """Names the nearest legal key of that place, or the place where that very key is legal."""
    name, section = str(path[-1])[:100], dotted(path[:-1])
    what = f"unknown key `{name}`" + (f" in {section}" if section else "")
    if close := get_close_matches(name, legal, n=1, cutoff=0.6):
        remedy = f"did you mean `{close[0]}`?"
    elif name in homes:
        remedy = f"it belongs at {dotted(homes[name])}"
    else:
        remedy = f"legal: {', '.join(legal)}"
    return Fault(path, what, remedy, at_key=True)


def _wrong_type(path: KeyPath, value: Any, schema: Schema) -> Fault:
    """For a grader whose `type` is missing or unknown."""
    legal = list(schema.get("discriminator", {}).get("mapping", {}))
    if not isinstance(value, dict):
        what = f"{dotted(path)} is {shown(value)}"
        return Fault(path, what, "write a grader: a mapping with a `type`")
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
