"""JSON as a run folder keeps it: never NaN, always valid UTF-8, whole or absent."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """The value with every non-finite number in it replaced by None; tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """The value as JSON in valid UTF-8; a lone surrogate stands as its escape."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace")


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when the file is missing, torn or no object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines, without torn or foreign ones."""
    try:
        stream = path.open("rb")
    except OSError:
        return
    with stream:
        yield from parsed_lines(stream)


def parsed_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects of lines, without torn or foreign ones."""
    for line in lines:
        # a line without its end is still being written
        if not line.endswith(b"\n"):
            return
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value
