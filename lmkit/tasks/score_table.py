"""Scores as a table for people and an object for machines, beside those of simpler answers to the same task."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from lmkit.evaluation import classification
from lmkit.evaluation.intervals import Estimate

PLAIN_WIDTH = 240  # of tables that go to a file: no column is cut
MOST_CLASSES = 12  # of a confusion matrix, and of a table of classes


def score_table(title: str, columns: Mapping[str, Mapping[str, Estimate]], rows: int) -> str:
    """One row a score, one column a system: value and 95% interval."""
    grid = Grid("", *map(escape, columns), title=escape(title), caption=f"{rows:,} rows; 95% intervals over rows")
    for name in dict.fromkeys(name for scores in columns.values() for name in scores):
        grid.add_row(name.replace("_", " "), *(_said(scores.get(name)) for scores in columns.values()))
    return _drawn(grid)


def _said(e: Estimate | None) -> str:
    if e is None:
        return "-"
    return f"{e.value:.4f}" if e.low is None else f"{e.value:.4f} ({e.low:.4f}-{e.high:.4f})"


def _drawn(grid: Grid) -> str:
    """The lines of a table, in the colours and the width of a terminal; elsewhere plain and as wide as it is."""
    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    with console.capture() as lines:
        console.print(grid)
    return lines.get().rstrip("\n")


def confusion_table(labels: Sequence[str], gold: np.ndarray, predicted: np.ndarray) -> str:
    """Gold classes in rows, predicted ones in columns, with precision, recall and F1 of each. gold, predicted: (rows,)
    numbers of labels."""
    names = [escape(label) for label in labels]
    grid = Grid("gold \\ predicted", *names, "precision", "recall", "f1", "rows")
    matrix = classification.confusion(gold, predicted, len(labels))
    each = classification.per_class(gold, predicted, len(labels))
    for name, counts, c in zip(names, matrix, each, strict=True):
        grid.add_row(name, *(f"{n:,}" for n in counts), *(f"{x:.3f}" for x in c[:3]), f"{c[3]:,}")
    return _drawn(grid)


def as_json(scores: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: e._asdict() for name, e in scores.items()}


def seeds_line(found: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Mean and spread of several runs' scores. found: of each run, its scores as `as_json` gives them."""
    lines = [f"{len(found)} seeds: mean, standard deviation, each"]
    for name in found[0]:
        values = np.array([scores[name]["value"] for scores in found])
        each = " ".join(f"{v:.4f}" for v in values)
        lines.append(f"  {name.replace('_', ' '):14} {values.mean():.4f} ± {values.std(ddof=1):.4f}   {each}")
    return "\n".join(lines)
