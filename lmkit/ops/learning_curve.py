"""`lmkit eval --curve RUN...`: scores of runs by how much data each had. It trains nothing and reads no data."""

import math
from typing import Any

import numpy as np
from rich.table import Table

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.base.runs import find_run
from lmkit.report.record import RunRecord
from lmkit.tasks.task import drawn


def learning_curve(runs: list[str]) -> tuple[dict[str, Any], str]:
    """Returns the scores that runs have on the rows they held out, as JSON and as a table, fewest data first.

    The amount is that of training rows, for runs of pretraining that of tokens read. `per_doubling` says by how much
    each score changes with twice the data: the slope of a line fitted over the logarithm to the base 2.

    Raises UserError for runs that are not done, or that do not compare."""
    points = sorted((_point(run) for run in runs), key=lambda point: point["amount"])
    if len(units := {point["unit"] for point in points}) > 1:
        raise UserError(f"--curve: these runs count {' and '.join(sorted(units))}\n  → name runs of one kind")
    if len({point["held_out"] for point in points}) > 1:
        note(
            "the runs held out different data, so that their scores differ for that too\n  → --validation FILE for all"
        )
    names = [name for name in points[0]["scores"] if all(name in point["scores"] for point in points)]
    logs = [math.log2(point["amount"]) for point in points]
    slopes = dict[str, float]()
    if len(set(logs)) > 1:
        slopes = {name: float(np.polyfit(logs, [p["scores"][name]["value"] for p in points], 1)[0]) for name in names}
    unit = points[0]["unit"]
    grid = Table("run", unit, *names, caption="best scores on held-out data; 95% intervals over rows")
    for point in points:
        grid.add_row(point["run"], f"{point['amount']:,}", *(_said(point["scores"][name]) for name in names))
    if slopes:
        grid.add_row("twice the data", "", *(f"{slopes[name]:+.4f}" for name in names))
    return {"curve": points, "unit": unit, "per_doubling": slopes}, drawn(grid)


def _said(score: dict[str, Any]) -> str:
    interval = f" ({score['low']:.4f}-{score['high']:.4f})" if score.get("low") is not None else ""
    return f"{score['value']:.4f}{interval}"


def _point(name: str) -> dict[str, Any]:
    run = RunRecord(find_run(name))
    scores, amount, unit = run.scores.get("scores") or {}, run.scores.get("train_rows"), "training rows"
    if not scores:
        amount, unit = run.status.get("tokens"), "tokens"
        scores = {key.removeprefix("val_"): {"value": value} for key, value in run.best.items() if key != "step"}
    if run.status.get("state") != "done" or not scores or not amount:
        raise UserError(f"{run.path}: {run.status.get('state', 'no state')}, and no scores beside its amount of data\n"
                        f"  → train it to its end, with held-out data")  # fmt: skip
    held_out = run.environment.get("held_out") or run.environment.get("validation")
    return {"run": str(run.path), "amount": amount, "unit": unit, "scores": scores, "held_out": held_out}
