"""A line chart of braille dots with labelled axes: pure, any size, no terminal needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

DOTS_X, DOTS_Y = 2, 4  # dots in one braille cell
# Bit of each dot, by column then row from the top (Unicode 28xx).
BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
MARK = "◆"
MIN_WIDTH, MIN_HEIGHT = 24, 3


@dataclass(frozen=True)
class Chart:
    """Rows from the top. ``label`` stands left of the axis; ``cells`` are the line, ``marks`` the columns of marked points."""

    rows: list[tuple[str, str, frozenset[int]]]
    axis: str
    ticks: str


def draw(line: Sequence[Point], marks: Sequence[Point] = (), *, width: int, height: int) -> Chart | None:
    """Draw ``line`` through its points and ``marks`` as single signs, into ``width`` × ``height`` characters in all.

    The two lowest rows are the axis and its ticks. None when there is nothing finite to draw, or no room for it.
    """
    line = _keep_finite(line)
    marks = _keep_finite(marks)
    if not (line or marks) or width < MIN_WIDTH or height < MIN_HEIGHT + 2:
        return None
    plot_height = height - 2
    low, high = _find_range([y for _, y in [*line, *marks]])
    labels = _label_rows(low, high, plot_height)
    margin = max(map(len, labels))
    plot_width = width - margin - 2
    first, last = _find_domain([x for x, _ in [*line, *marks]])
    grid = _Grid(plot_width, plot_height, (first, last), (low, high))
    grid.trace(_thin(line, plot_width * DOTS_X))
    marked = grid.place(marks)
    rows = [
        (label.rjust(margin), grid.render(row, marked[row]), frozenset(marked[row])) for row, label in enumerate(labels)
    ]
    start, end = f"{first:g}", f"{last:g}"
    ticks = start + end.rjust(plot_width - len(start)) if first != last else start
    return Chart(rows, " " * margin + " └" + "─" * plot_width, " " * (margin + 2) + ticks)


class _Grid:
    """Braille cells, and where a value falls among them."""

    def __init__(self, width: int, height: int, domain: tuple[float, float], range_: tuple[float, float]) -> None:
        self.width, self.height = width, height
        self._domain, self._range = domain, range_
        self._cells = [[0] * width for _ in range(height)]

    def _find_dot(self, point: Point) -> tuple[int, int]:
        (x0, x1), (y0, y1) = self._domain, self._range
        across = (point[0] - x0) / (x1 - x0) if x1 > x0 else 0.0
        up = (point[1] - y0) / (y1 - y0)
        return round(across * (self.width * DOTS_X - 1)), round((1 - up) * (self.height * DOTS_Y - 1))

    def trace(self, points: Sequence[Point]) -> None:
        """Set the dots of the line through ``points``."""
        dots = [self._find_dot(point) for point in points]
        for (x0, y0), (x1, y1) in zip(dots, dots[1:] or dots, strict=False):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for step in range(steps + 1):
                x = round(x0 + (x1 - x0) * step / steps)
                y = round(y0 + (y1 - y0) * step / steps)
                self._cells[y // DOTS_Y][x // DOTS_X] |= BITS[x % DOTS_X][y % DOTS_Y]

    def place(self, points: Sequence[Point]) -> list[set[int]]:
        """Return, for each row, the columns in which a mark stands."""
        columns: list[set[int]] = [set() for _ in range(self.height)]
        for point in points:
            x, y = self._find_dot(point)
            columns[y // DOTS_Y].add(x // DOTS_X)
        return columns

    def render(self, row: int, marked: set[int]) -> str:
        """Return one row of cells as text."""
        return "".join(
            MARK if column in marked else chr(0x2800 + bits) if bits else " "
            for column, bits in enumerate(self._cells[row])
        )


def _keep_finite(points: Sequence[Point]) -> list[Point]:
    return sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))


def _find_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        pad = abs(low) * 0.1 or 1.0  # a flat line runs through the middle
        return low - pad, high + pad
    return low, high


def _find_domain(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _label_rows(low: float, high: float, height: int) -> list[str]:
    """Label the top, the middle and the bottom row with as many decimals as tell them apart."""
    decimals = max(0, min(6, 2 - math.floor(math.log10(high - low))))
    labelled = {0: high, height - 1: low}
    if height % 2:
        labelled[height // 2] = (low + high) / 2
    return [f"{labelled[row]:.{decimals}f}" if row in labelled else "" for row in range(height)]


def _thin(points: Sequence[Point], limit: int) -> list[Point]:
    """Average neighbours until there is at most one point for each column of dots."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / limit)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
