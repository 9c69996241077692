"""JSON as graders may rely on it: finite numbers, whole characters, no nesting without end."""

import json
import math
from collections.abc import Sequence
from typing import Any

MAX_DEPTH = 64
"""Nesting of a value."""
MAX_DIGITS = 300
"""Of an integer, as in the rows of data: a longer one is beyond every float."""


class NotJson(ValueError):
    """A text is no JSON, or none that a grader could use; says why in a few words."""


def read_json(text: str) -> Any:
    """The value that the whole text is; of equal keys the last counts. Raises NotJson."""
    value, end = _read(LAST_KEY_COUNTS, text, skip_blanks(text, 0))
    if (rest := skip_blanks(text, end)) < len(text):
        raise NotJson(f"text after the JSON at character {rest + 1}")
    return value


def read_json_at(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at `start` after blanks, and where it ends.

    Raises NotJson, also for a key that stands twice in an object.
    """
    return _read(UNIQUE_KEYS, text, skip_blanks(text, start))


def skip_blanks(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    return start


def _read(decoder: json.JSONDecoder, text: str, start: int) -> tuple[Any, int]:
    try:
        value, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise NotJson(f"not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise NotJson("nested too deeply") from None
    if _is_deep(value):
        raise NotJson("nested too deeply")
    if text.find("\\u", start, end) >= 0 and _has_half_character(value):
        raise NotJson("a text holds half a surrogate pair")
    return value, end


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise NotJson(f"the number {digits[:24]} is too large")
    return number


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise NotJson(f"a number has {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> Any:
    raise NotJson(f"{name} is not JSON")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise NotJson("a key stands twice in an object")
    return made


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: Any) -> Sequence[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else ()


def _has_half_character(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


LAST_KEY_COUNTS = json.JSONDecoder(
    parse_float=_finite, parse_int=_integer, parse_constant=_refuse_constant
)
UNIQUE_KEYS = json.JSONDecoder(
    parse_float=_finite,
    parse_int=_integer,
    parse_constant=_refuse_constant,
    object_pairs_hook=_unique,
)
