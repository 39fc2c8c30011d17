"""What differs between runs: keys of their recipes, scores on the rows that they share, and what they cost."""

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from lmkit.base.units import brief
from lmkit.evaluation import paired
from lmkit.evaluation.row_records import main_prediction, worst_rows
from lmkit.report.record import RunRecord

MACHINE = ("git", "python", "cpu", "device", "precision", "processes")  # of environment.json
MOST_PAIRS = 45  # of runs that are tested against each other: all pairs of ten


def leaves(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted key and the value of every leaf of a recipe."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, tree


def differing_keys(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Returns, of each key of the recipes whose value is not the same in all runs, the values; `-` where one has none.

    What differs in versions, code and machine stands there too, under its name in environment.json."""
    trees = [dict(leaves(run.recipe)) for run in runs]
    for tree, run in zip(trees, runs, strict=True):
        versions = {f"version of {name}": value for name, value in run.environment.get("versions", {}).items()}
        tree |= versions | {f"({name})": run.environment[name] for name in MACHINE if name in run.environment}
    keys = dict.fromkeys(key for tree in trees for key in tree)
    rows = {key: [_shown(tree.get(key)) for tree in trees] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def cost(run: RunRecord) -> dict[str, float | None]:
    """Returns steps, tokens read, seconds of training, bytes on the disk; None where a run does not say it."""
    seconds = run.columns.get("seconds")
    return {
        "steps": run.status.get("step"),
        "tokens": run.status.get("tokens"),
        "seconds": float(seconds[-1]) if seconds is not None and len(seconds) else None,
        "bytes": run.size,
    }


def tested(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Returns, of each two runs that kept the same held-out rows, which is better and whether that is evidence."""
    scores = [_row_scores(run) for run in runs]
    results = []
    for a, b in list(combinations(range(len(runs)), 2))[:MOST_PAIRS]:
        shared = [key for key in scores[a] if key in scores[b]]
        if not shared:
            continue
        compared = paired.paired([scores[a][key] for key in shared], [scores[b][key] for key in shared])
        results.append({
            "runs": [runs[a].name, runs[b].name], "difference": compared.difference._asdict(), "p": compared.p,
            "test": compared.test, "rows": len(shared), "verdict": paired.verdict(compared, runs[a].name, runs[b].name),
        })  # fmt: skip
    return results


def _row_scores(run: RunRecord) -> dict[tuple[str, str], float]:
    """Returns how good each held-out row is, by its place and what is right."""
    scored = (row for row in run.rows if isinstance(row.get("score"), int | float))
    return {(str(row.get("place")), json.dumps(row.get("gold"))): row["score"] for row in scored}


def final_scores(run: RunRecord) -> dict[str, dict[str, Any]]:
    """Returns the scores of the model to use, by name: `value`, and `low` and `high` where there is an interval.

    They are those of scores.json, else of the best checkpoint."""
    if scores := run.scores.get("scores"):
        return {name: score for name, score in scores.items() if isinstance(score, dict)}
    named = {name.removeprefix("val_"): value for name, value in run.best.items() if name != "step"}
    return {name: {"value": value} for name, value in named.items() if isinstance(value, int | float)}


def baseline_scores(run: RunRecord) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the scores of each simpler answer to the same task, by its name."""
    baselines = run.scores.get("baselines")
    return baselines if isinstance(baselines, dict) else {}


def confusion(run: RunRecord) -> dict[str, dict[str, int]]:
    """Returns how many held-out rows of each class have each prediction; {} where rows have no single label."""
    counts: dict[str, dict[str, int]] = {}
    for row in run.rows:
        gold, prediction = row.get("gold"), row.get("prediction")
        label = prediction.get("label") if isinstance(prediction, dict) else None
        if not isinstance(gold, str) or not isinstance(label, str):
            return {}
        of_gold = counts.setdefault(gold, {})
        of_gold[label] = of_gold.get(label, 0) + 1
    return counts


def shown_mistakes(run: RunRecord, most: int) -> list[dict[str, Any]]:
    """Returns the worst held-out rows as texts: place, gold, prediction, text; and their loss."""
    return [
        {"place": row.get("place"), "gold": _shown(row.get("gold")), "prediction": _shown(main_prediction(row)),
         "loss": row.get("loss"), "text": brief(" ⏎ ".join(map(str, (row.get("row") or {}).values())), 400)}
        for row in worst_rows(run.rows, most)
    ]  # fmt: skip
