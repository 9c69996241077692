"""JSON schemas: which of them a grammar can hold a text to, and what of them restricts nothing."""

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from llguidance import LLMatcher, LLTokenizer

SUBSCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
SUBSCHEMAS_IN_LIST = ("anyOf", "allOf", "oneOf", "prefixItems")
SUBSCHEMAS = ("items", "additionalProperties", "additionalItems")
ENFORCED = frozenset(
    (
        *(*SUBSCHEMAS_BY_NAME, *SUBSCHEMAS_IN_LIST, *SUBSCHEMAS),
        *("$ref", "const", "enum", "type", "required", "minProperties", "maxProperties"),
        *("minItems", "maxItems", "minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    )
)
ANNOTATIONS = frozenset(
    (
        *("$schema", "$id", "$anchor", "$comment", "title", "description", "default", "examples"),
        *("deprecated", "readOnly", "writeOnly", "id"),
    )
)
"""Keywords that restrict nothing."""

MAX_MULTIPLE = 20_000
"""Digits of a `multipleOf`, read without its point and zeros: the grammar has a state for each remainder."""
UNWRITABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]")
"""Characters of a text that JSON writes only as \\u escapes, which no completion may hold."""
UNWRITABLE_PATTERN = re.compile(r"[\x00-\x1f]|\\x[01]|\\u00[01]|\\c[A-Z]")


def unenforceable(schema: Mapping[str, Any]) -> str | None:
    """Why completions cannot be held to a schema, or None when they can."""
    if "x-guidance" in schema:
        return "x-guidance would change how the schema is enforced"
    for part in subschemas(schema):
        if reason := _fault_of(part):
            return reason
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    is_bad, reasons = LLMatcher.validate_grammar_with_warnings(grammar)
    if is_bad:
        return " ".join(" ".join(reasons).split())[:400]
    if not _matches(schema, ""):
        return "it admits no text at all, as where a $ref leads to itself"
    return None


def _fault_of(part: Mapping[str, Any]) -> str | None:
    """What the grammar would not keep of one schema, its inner ones left aside."""
    least, open_keys = part.get("minProperties"), part.get("additionalProperties") is not False
    if isinstance(least, int) and least > 1 and (open_keys or part.get("patternProperties")):
        return f"minProperties {least}: keys beyond `properties` may come twice"
    multiple = part.get("multipleOf")
    if isinstance(multiple, int | float) and _digits(multiple) > MAX_MULTIPLE:
        return f"multipleOf {multiple:g} has too many digits"
    for text in (part.get("const"), *_listed(part.get("enum")), *_listed(part.get("properties"))):
        if isinstance(text, str) and UNWRITABLE.search(text):
            return f"{text[:40]!r} holds a control character, which completions cannot write"
    pattern = part.get("pattern")
    if isinstance(pattern, str) and UNWRITABLE_PATTERN.search(pattern):
        return f"the pattern {pattern[:40]!r} asks for a control character, which completions cannot write"
    return _open_bound(part)


def _open_bound(part: Mapping[str, Any]) -> str | None:
    """A bound that is excluded, and that the grammar lets through all the same."""
    bounds = {
        key: part[key]
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        if key in part
    }
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        value = bounds.get(key)
        if isinstance(value, bool):
            return f"{key}: {str(value).lower()} is a number since draft 6"
        if isinstance(value, int | float) and _matches(
            {"type": "number", **bounds}, f"{value:g}", is_whole=True
        ):
            return f"{key} {value:g} cannot be kept between such bounds"
    return None


def _matches(schema: Mapping[str, Any], text: str, is_whole: bool = False) -> bool:
    """Whether a text of a schema may begin so, or be so."""
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    is_prefix = matcher.consume_tokens(list(text.encode())) if text else True
    matcher.compute_bitmask()
    return is_prefix and not matcher.is_error() and (matcher.is_accepting() or not is_whole)


def _digits(number: float) -> int:
    """The digits of a number without point, exponent and zeros at its ends: 0.25 → 25, 1200 → 12."""
    return int(f"{number:.15e}".partition("e")[0].replace(".", "").strip("-0") or "0")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | Mapping) else []


def schema_warnings(schema: Mapping[str, Any]) -> list[str]:
    """The keywords of a schema that are unknown, and so restrict nothing."""
    unknown = {key: None for part in subschemas(schema) for key in part}
    warnings = []
    for key in unknown:
        if key in ENFORCED or key in ANNOTATIONS:
            continue
        close = get_close_matches(key, ENFORCED, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        warnings.append(f"the schema's keyword {key[:50]!r} is unknown and restricts nothing{hint}")
    return warnings


def subschemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and all schemas in it."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Mapping):
            continue
        yield part
        for key in SUBSCHEMAS_BY_NAME:
            waiting += part[key].values() if isinstance(part.get(key), Mapping) else ()
        for key in SUBSCHEMAS_IN_LIST:
            waiting += part[key] if isinstance(part.get(key), (list, tuple)) else ()
        waiting += [part[key] for key in SUBSCHEMAS if key in part]
