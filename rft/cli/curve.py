"""The reward curve of a run, drawn with characters."""

from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]
"""(step, reward)."""

BRAILLE = 0x2800
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bit of each dot of a braille character, by column and row."""

LABEL_WIDTH = 8


def draw_curve(
    train: Sequence[Point],
    valid: Sequence[Point],
    width: int = 72,
    height: int = 8,
    is_unicode: bool = True,
) -> list[str]:
    """The training rewards as a line and the evaluations as marks; empty below two points.

    Plain ASCII without `is_unicode`. `width` and `height` count characters, labels included in the
    width.
    """
    points = [*train, *valid]
    if len(points) < 2:
        return []
    columns = max(10, width - LABEL_WIDTH - 2)
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    low, high = bounds([value for _, value in points])

    def place(point: Point, num_across: int, num_down: int) -> tuple[int, int]:
        """The cell of a point, counted from the upper left corner."""
        across = (point[0] - first) / (last - first) if last > first else 0.0
        down = (high - point[1]) / (high - low)
        return round(across * (num_across - 1)), round(down * (num_down - 1))

    across_dots, down_dots = (2, 4) if is_unicode else (1, 1)
    dots = [place(point, columns * across_dots, height * down_dots) for point in train]
    cells = _line_cells(dots, across_dots, down_dots) if is_unicode else dict.fromkeys(dots, ".")
    marks = {place(point, columns, height): "●" if is_unicode else "o" for point in valid}
    cells = cells | marks
    rows = ["".join(cells.get((x, y), " ") for x in range(columns)) for y in range(height)]
    return [*_framed(rows, low, high, is_unicode), *_footer(first, last, columns, is_unicode)]


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: that of the values, never empty."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _line_cells(
    dots: Sequence[tuple[int, int]], across: int, down: int
) -> dict[tuple[int, int], str]:
    """Braille characters of a line through the dots, each column of dots at the mean of its own."""
    by_column: dict[int, list[int]] = {}
    for x, y in dots:
        by_column.setdefault(x, []).append(y)
    means = [(x, round(sum(ys) / len(ys))) for x, ys in sorted(by_column.items())]
    bits: dict[tuple[int, int], int] = {}
    for x, y in _joined(means):
        cell = (x // across, y // down)
        bits[cell] = bits.get(cell, 0) | DOTS[x % across][y % down]
    return {cell: chr(BRAILLE + bit) for cell, bit in bits.items()}


def _joined(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The points with straight lines between neighbours, one dot per column or row."""
    joined = list(points[:1])
    for (x, y), (to_x, to_y) in pairwise(points):
        count = max(to_x - x, abs(to_y - y), 1)
        joined += [
            (x + round((to_x - x) * part / count), y + round((to_y - y) * part / count))
            for part in range(1, count + 1)
        ]
    return joined


def _framed(rows: Sequence[str], low: float, high: float, is_unicode: bool) -> list[str]:
    edge = "┤" if is_unicode else "|"
    labels = {0: f"{high:.3f}", len(rows) - 1: f"{low:.3f}"}
    return [
        f"{labels.get(index, ''):>{LABEL_WIDTH}} {edge}{row}".rstrip()
        for index, row in enumerate(rows)
    ]


def _footer(first: float, last: float, columns: int, is_unicode: bool) -> list[str]:
    left, right = f"step {first:g}", f"{last:g}"
    indent = " " * (LABEL_WIDTH + 2)
    train, valid = ("⠒", "●") if is_unicode else (".", "o")
    return [
        indent + left + right.rjust(columns - len(left)),
        f"{indent}{train} training reward   {valid} validation reward",
    ]
