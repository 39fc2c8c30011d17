"""Curves as text: dots of Braille characters, four rows and two columns a character."""

import math
from collections.abc import Sequence

import numpy as np
from rich.text import Text

from lmkit.report.curves import Series, shown_place, thinned, ticks

COLOURS = ("blue", "yellow", "green", "red", "magenta", "cyan")
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of Unicode's Braille patterns, by row and column
AXIS = 9  # characters left of the picture


def plot(title: str, series: Sequence[Series], axis: str, width: int = 90, height: int = 16) -> Text:
    """Returns a chart of curves over an axis of `record.AXES`, with the name of each. width, height: in characters, of
    the whole and of the picture alone. At least one curve must have a point."""
    drawn = [s for s in series if len(s.values)]
    columns = width - AXIS
    thin = [thinned(s.places, s.values, 4 * columns)[:2] for s in drawn]
    left, right = min(p.min() for p, _ in thin), max(p.max() for p, _ in thin)
    low, high = min(v.min() for _, v in thin), max(v.max() for _, v in thin)
    cells, owner = np.zeros((height, columns), int), np.full((height, columns), -1)
    for number, (places, values) in enumerate(thin):
        x = (places - left) / ((right - left) or 1) * (2 * columns - 1)
        y = (high - values) / ((high - low) or 1) * (4 * height - 1)
        for row, column in _line(x, y):
            cells[row // 4, column // 2] |= DOTS[row % 4][column % 2]
            owner[row // 4, column // 2] = number
    marks = {round((high - t) / ((high - low) or 1) * (height - 1)): f"{t:.4g}" for t in ticks(low, high, 4)}
    picture = Text(f"{title} by {axis}\n")
    for row in range(height):
        picture.append(f"{marks.get(row, ''):>{AXIS - 2}} ┤")
        for cell, number in zip(cells[row], owner[row], strict=True):
            picture.append(chr(0x2800 + cell) if cell else " ", COLOURS[number % len(COLOURS)] if cell else "")
        picture.append("\n")
    ends = shown_place(left, axis), shown_place(right, axis)
    picture.append(f"{' ' * AXIS}{ends[0]}{ends[1]:>{max(columns - len(ends[0]), 1)}}\n")
    for number, s in enumerate(drawn):
        picture.append("  ── ", COLOURS[number % len(COLOURS)])
        picture.append(f"{s.name}: {s.values[0]:.4g} → {s.values[-1]:.4g}, least {s.values.min():.4g}\n")
    return picture


def _line(x: np.ndarray, y: np.ndarray) -> list[tuple[int, int]]:
    """Returns the row and the column of every dot on the way from point to point."""
    dots = [(round(y[0]), round(x[0]))]
    for i in range(len(x) - 1):
        steps = max(1, math.ceil(max(abs(x[i + 1] - x[i]), abs(y[i + 1] - y[i]))))
        way = np.linspace(0, 1, steps + 1)
        dots += zip(
            np.rint(y[i] + way * (y[i + 1] - y[i])).astype(int), np.rint(x[i] + way * (x[i + 1] - x[i])).astype(int),
            strict=True,
        )  # fmt: skip
    return dots
