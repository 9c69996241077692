"""JSONL: one JSON object a line, read line by line and held to what JSON really allows."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rft.data.rows import Row, RowError
from rft.errors import DataError

MAX_LINE_BYTES = 8 * 2**20
MAX_DEPTH = 64
"""Nesting of a row."""


def jsonl_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of a JSONL file; blank lines are skipped, unreadable lines given as errors."""
    is_first = True
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), 1):
            place = f"{name}:{number}"
            if isinstance(line, RowError):
                yield Row(place, line)
                continue
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            if is_first and (line.strip() in (b"[", b"{") or line.lstrip().startswith(b"[{")):
                remedy = "write one object a line: jq -c '.[]' data.json > data.jsonl"
                raise DataError("the file is JSON, not JSONL", where=place, remedy=remedy)
            is_first = False
            yield Row(place, _parse_or_error(line))


def _parse_or_error(line: bytes) -> Any:
    try:
        return _parse(line)
    except RowError as error:
        return error


def _lines(file: BinaryIO) -> Iterator[bytes | RowError]:
    """Lines by `\\n` alone; one that is too long is skipped and given as an error."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield RowError(f"the line is longer than {MAX_LINE_BYTES} bytes", "shorten it")


def decoded(line: bytes) -> str:
    """The text of a line; raises RowError with the first byte that is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise RowError(what, "save the file as UTF-8") from None


def _parse(line: bytes) -> Any:
    """One line of JSON, held to what JSON really allows."""
    text = decoded(line)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        what = f"not valid JSON: {error.msg} at column {error.colno}"
        raise RowError(what, "write one JSON object a line") from None
    except RecursionError:
        raise RowError("nested too deeply", f"at most {MAX_DEPTH} levels") from None
    _check_depth(value)
    if "\\u" in text:
        _check_surrogates(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise RowError(f"the key {json.dumps(key)} stands twice", "keep one of them")
        made[key] = value
    return made


def _refuse_constant(name: str) -> Any:
    raise RowError(f"{name} is not JSON", "write a finite number or null")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise RowError(f"the number {digits[:24]} is too large", "write a smaller one")
    return number


def _integer(digits: str) -> int:
    if len(digits) > 300:
        raise RowError(f"a number has {len(digits)} digits", "write it as text")
    return int(digits)


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RowError("nested too deeply", f"at most {MAX_DEPTH} levels")
        level = [
            child
            for node in level
            for child in (
                node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
            )
        ]


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        what = "a text holds half a surrogate pair (\\ud800…\\udfff)"
        raise RowError(what, "remove the escape, or write the whole character") from None
