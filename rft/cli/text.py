"""Text for a terminal: safe, aligned, short."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but newline and tab, marks that turn text around, lone surrogates."""

ESCAPE_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]"
)
"""What terminals obey: control sequences, command strings, two-character escapes."""


def clean(text: str) -> str:
    """The text without anything a terminal would obey."""
    return UNSAFE.sub("", ESCAPE_SEQUENCES.sub("", text.replace("\r\n", "\n")))


def shorten(text: str, width: int) -> str:
    """The text on one line of at most `width` characters."""
    line = " ".join(clean(text[: 8 * width]).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def indented(text: str, indent: str, width: int, max_lines: int) -> list[str]:
    """The text wrapped below `width` characters, each line indented; the rest is cut.

    Empty lines are left out.
    """
    lines = [
        part
        for line in clean(text).strip().split("\n")
        for part in textwrap.wrap(line, max(20, width - len(indent)))
    ]
    shown = lines[:max_lines]
    if len(lines) > max_lines:
        shown[-1] += " …"
    return [indent + line for line in shown]


def decimal(value: Any, digits: int = 3) -> str:
    """A number with that many decimals; a dash when there is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def signed(value: Any) -> str:
    """A difference with its sign."""
    text = decimal(value)
    return f"+{text}" if text[0] not in "-–" else text


def duration(seconds: float) -> str:
    """A time a person grasps: 4.2 s, 7 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns below a header; numbers stand to the right."""
    cells = [list(header), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    is_right = [
        bool(rows) and all(re.fullmatch(r"[-+–]?[\d./,±\s%]*", row[column]) for row in rows)
        for column in range(len(header))
    ]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_right, strict=True)
        ).rstrip()
        for row in cells
    ]


def outline(value: Any, indent: str = "") -> list[str]:
    """A document of mappings and lists as indented `key  value` lines."""
    if isinstance(value, Mapping):
        return _mapping_outline(value, indent)
    if isinstance(value, list | tuple):
        return [line for entry in value for line in _entry_outline(entry, indent)]
    return [indent + _scalar(value)]


def _mapping_outline(mapping: Mapping[str, Any], indent: str) -> list[str]:
    names = {key: str(key).replace("_", " ") for key in mapping}
    width = max((len(names[key]) for key, value in mapping.items() if _is_flat(value)), default=0)
    lines: list[str] = []
    for key, value in mapping.items():
        if _is_flat(value):
            lines.append(f"{indent}{names[key].ljust(width)}  {_scalar(value)}")
        else:
            lines.append(f"{indent}{names[key]}")
            lines += outline(value, indent + "  ")
    return lines


def _entry_outline(entry: Any, indent: str) -> list[str]:
    first, *rest = outline(entry, indent + "  ") or [indent + "  "]
    return [f"{indent}- {first[len(indent) + 2 :]}", *rest]


def _is_flat(value: Any) -> bool:
    is_short_list = isinstance(value, list | tuple) and all(
        isinstance(entry, int | float) for entry in value
    )
    return not isinstance(value, Mapping | list | tuple) or not value or is_short_list


def _scalar(value: Any) -> str:
    if value is None or (isinstance(value, Mapping | list | tuple) and not value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_scalar(entry) for entry in value)
    return shorten(str(value), 400)
