"""Curves and histograms as SVG, which needs no script and no network to be seen.

Colours are classes (`c0`, `c1`, ...), so that the page around decides them for light, dark and printed paper; lines
also differ by their dashes."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from lmkit.base.units import show_count, show_seconds

WIDTH, HEIGHT = 640, 260  # of the view box
LEFT, RIGHT, TOP, BOTTOM = 62, 8, 10, 34  # margins, in which the ticks are written
MOST_POINTS = 160  # of a drawn curve
EARLY = 0.05  # share of a curve at its beginning that does not stretch the picture
STYLES = 10  # colours and dashes, which come again after so many curves
Ranges = tuple[float, float, float, float]  # from where to where on both axes


class Series(NamedTuple):
    """One curve: its name, and (points,) places and values."""

    name: str
    places: np.ndarray
    values: np.ndarray
    style: int  # number of its colour


def thinned(places: np.ndarray, values: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, ...]:
    """Returns at most so many points: the means over equal shares of the points; and the least and greatest value of
    each share. All (points,)."""
    if len(values) <= most:
        return places, values, values, values
    begins = np.linspace(0, len(values), most, endpoint=False).astype(int)
    counts = np.diff([*begins, len(values)])
    mean = lambda x: np.add.reduceat(x, begins) / counts
    return mean(places), mean(values), np.minimum.reduceat(values, begins), np.maximum.reduceat(values, begins)


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Returns round numbers from low to high: multiples of 1, 2 or 5 times a power of ten; only `whole` ones, if so."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def shown_place(value: float, axis: str) -> str:
    if axis == "time":
        return show_seconds(value) if value else "0"
    return show_count(value)


def line_chart(title: str, series: Sequence[Series], axis: str) -> str:
    """Returns a chart of curves over an axis of `record.AXES`; "" where no curve has two points."""
    drawn = [s for s in series if len(s.values) > 1]
    if not drawn:
        return ""
    thin = [thinned(s.places, s.values) for s in drawn]
    ranges = _ranges(thin)
    parts = [_frame(ranges, axis)]
    for s, (places, means, lows, highs) in zip(drawn, thin, strict=True):
        if len(series) <= 3 and lows is not highs:  # of many curves the spread would hide the others
            around = np.concatenate((places, places[::-1])), np.concatenate((highs, lows[::-1]))
            parts.append(f'<polygon class="band c{s.style % STYLES}" points="{_points(*around, ranges)}"/>')
        parts.append(f'<polyline class="line c{s.style % STYLES}" points="{_points(places, means, ranges)}"/>')
    summary = "; ".join(f"{s.name}: {s.values[0]:.4g} to {s.values[-1]:.4g}, least {s.values.min():.4g}" for s in drawn)
    return _svg(title, f"{title} by {axis}. {summary}", parts)


def histogram(title: str, rows: Sequence[int], edges: Sequence[float], limit: float | None, unit: str) -> str:
    """Returns a chart of how many rows lie between each two edges, with a line at the limit if it lies among them."""
    if not len(rows) or not edges[-1] > edges[0]:
        return ""
    ranges = (edges[0], edges[-1], 0.0, max(rows) or 1)
    parts = [_frame(ranges, "step")]
    for n, begin, end in zip(rows, edges[:-1], edges[1:], strict=True):
        (x0, y), (x1, _) = _place(begin, n, ranges), _place(end, n, ranges)
        parts.append(f'<rect class="bar c0" x="{x0:.1f}" y="{y:.1f}" width="{max(x1 - x0 - 1, 1):.1f}"'
                     f' height="{HEIGHT - BOTTOM - y:.1f}"/>')  # fmt: skip
    if limit and edges[0] < limit < edges[-1]:
        x, _ = _place(limit, 0, ranges)
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return _svg(title, f"{title}: {sum(rows):,} rows of {edges[0]:,.0f} to {edges[-1]:,.0f} {unit}", parts)


def _ranges(thin: Sequence[tuple[np.ndarray, ...]]) -> Ranges:
    """Returns what is drawn: all places, and all values but those of the first moments that lie higher."""
    later = [t[1][int(len(t[1]) * EARLY):] if len(t[1]) > 20 else t[1] for t in thin]  # fmt: skip
    low, high = min(float(v.min()) for v in later), max(float(v.max()) for v in later)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (
        min(float(t[0].min()) for t in thin), max(float(t[0].max()) for t in thin),
        0.0 if 0 <= low < room * 2 else low - room, high + room,
    )  # fmt: skip


def _place(x: float, y: float, ranges: Ranges) -> tuple[float, float]:
    left, right, low, high = ranges
    return (
        LEFT + (x - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT),
        HEIGHT - BOTTOM - (y - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM),
    )


def _points(places: np.ndarray, values: np.ndarray, ranges: Ranges) -> str:
    """Returns points for SVG; what lies outside is drawn at the border of the picture."""
    _, _, low, high = ranges
    pairs = (_place(x, y, ranges) for x, y in zip(places, np.clip(values, low, high), strict=True))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _frame(ranges: Ranges, axis: str) -> str:
    left, right, low, high = ranges
    parts = []
    for value in ticks(low, high):
        _, y = _place(left, value, ranges)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')  # fmt: skip
    marks = ticks(left, right, 6, whole=axis != "time")
    if len(labels := [shown_place(value, axis) for value in marks]) > len({*labels}):
        labels = [f"{v:.6g} s" if axis == "time" else f"{v:,.0f}" for v in marks]  # rounded they would be alike
    for value, label in zip(marks, labels, strict=True):
        x, _ = _place(value, low, ranges)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
                     f"{escape(label)}</text>")  # fmt: skip
    return "".join(parts)


def _svg(title: str, description: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
