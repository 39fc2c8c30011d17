"""What differs between runs: keys of their recipes, scores on the rows that they share, and what they cost."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from lmkit.base.units import brief
from lmkit.evaluation import paired
from lmkit.evaluation.row_records import main_prediction, worst_rows
from lmkit.report.record import RunRecord

MACHINE = ("git", "python", "cpu", "device", "precision", "processes")  # of environment.json
MOST_PAIRS = 45  # of runs that are tested against each other: all pairs of ten
LOWER = ("loss", "perplexity", "bits_per_byte", "ece", "rmse", "mae", "ter")  # scores of which the least is best
MEASURED = ("train.micro_batch", "train.compile")  # keys that a run settles by its machine, and no score depends on


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


def deciding(run: RunRecord) -> str:
    """Returns the score that the run chose its best checkpoint by, which stands first."""
    return next((name.removeprefix("val_") for name in run.best if name != "step"), "loss")


def score_of(run: RunRecord, metric: str = "") -> float | None:
    """Returns the score of the model to use, by default the deciding one; None where there is none, or no number."""
    name = metric or deciding(run)
    value = final_scores(run).get(name, {}).get("value")
    value = run.best.get(f"val_{name}") if value is None else value
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def loss_of(run: RunRecord) -> float:
    """Returns the validation loss of the best checkpoint, which decides between equal scores."""
    loss = run.best.get("val_loss")
    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else math.inf


def summary(runs: Sequence[RunRecord], metric: str = "") -> dict[str, Any]:
    """Returns what runs that differ in their seed alone came to: the metric, its scores, mean and standard deviation
    (of several), their mean validation loss, names and states."""
    scores = [score for run in runs if (score := score_of(run, metric)) is not None]
    return {
        "metric": metric or deciding(runs[0]), "scores": scores, "runs": [run.name for run in runs],
        "mean": statistics.fmean(scores) if scores else None,
        "loss": loss if math.isfinite(loss := statistics.fmean(map(loss_of, runs))) else None,
        "deviation": statistics.stdev(scores) if len(scores) > 1 else None, "states": [run.state for run in runs],
    }  # fmt: skip


def best_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns summaries in their order, those of equal scores by their loss, those without a score last."""
    sign = 1 if rows and rows[0]["metric"] in LOWER else -1
    tie = lambda row: math.inf if row["loss"] is None else row["loss"]
    return sorted(rows, key=lambda row: (row["mean"] is None, sign * (row["mean"] or 0), tie(row)))


def ranking(runs: Sequence[RunRecord], metric: str = "") -> list[dict[str, Any]]:
    """Returns summaries of the runs, best first, each with `settings`, the keys in which it differs from the others,
    and `records`, its runs; [] for fewer than two runs, and for those of different tasks.

    metric: what they are ranked by; "": what they chose their best checkpoints by, or where their tokenizers differ
    bits per byte, since a loss per token is no measure then."""
    if len({run.task for run in runs}) != 1 or len(runs) < 2:
        return []
    metric = metric or Counter(map(deciding, runs)).most_common(1)[0][0]
    vocabularies = {json.dumps([run.recipe.get("tokenizer"), _vocabulary(run)], sort_keys=True) for run in runs}
    if metric == "loss" and len(vocabularies) > 1 and None not in [score_of(run, "bits_per_byte") for run in runs]:
        metric = "bits_per_byte"
    groups: dict[str, list[RunRecord]] = {}
    trees = [{key: value for key, value in leaves(run.recipe) if key not in ("train.seed", *MEASURED)} for run in runs]
    for run, tree in zip(runs, trees, strict=True):
        groups.setdefault(json.dumps(tree, sort_keys=True), []).append(run)
    settings = [json.loads(group) for group in groups]
    keys = [
        key for key in dict.fromkeys(k for s in settings for k in s) if len({_shown(s.get(key)) for s in settings}) > 1
    ]
    rows = [
        summary(group, metric) | {"settings": " ".join(f"{k}={_shown(s.get(k))}" for k in keys), "records": group}
        for s, group in zip(settings, groups.values(), strict=True)
    ]
    return best_first(rows)


def _vocabulary(run: RunRecord) -> Any:
    model = run.recipe.get("model")
    return model.get("vocab_size") if isinstance(model, dict) else model


def which_is_best(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a sentence on the two best of a ranking, and whether their difference is evidence; "" where
    fewer than two have a score."""
    scored = [row for row in rows if row["mean"] is not None]
    if len(scored) < 2:
        return ""
    first, second = scored[:2]
    (a, name), (b, other) = (
        (f"{row['metric'].replace('_', ' ')} {row['mean']:.4f}", row["runs"][0]) for row in scored[:2]
    )
    if first["mean"] == second["mean"]:
        return f"{name} and {other} score the same: {a}."
    best = f"Best is {name} with {a}, ahead of {other} with {b.rpartition(' ')[2]}."
    if first["deviation"] is not None and second["deviation"] is not None:
        return f"{best} {_over_seeds(first['scores'], second['scores'])}"
    if tests := tested([first["records"][0], second["records"][0]]):
        return f"{best} On the rows that both were scored on {tests[0]['verdict']}"
    return f"{best} With one run each, chance may have decided: runs with other seeds tell (train.seed=0..2)."


def _over_seeds(a: Sequence[float], b: Sequence[float]) -> str:
    from scipy.stats import ttest_ind

    if len({*a}) == len({*b}) == 1:
        return "No seed changes either score."
    p = float(ttest_ind(a, b, equal_var=False).pvalue)
    conclusion = "That is evidence" if p < paired.EVIDENCE else "That is no evidence that it is better"
    return f"{conclusion} (p = {p:.2g}, Welch's t-test over {len(a)} and {len(b)} seeds)."


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


def best_scores(run: RunRecord) -> dict[str, float]:
    """Returns the scores of the best checkpoint, and its step: as the model was scored at the end, where it was."""
    final = final_scores(run)
    return {name: final.get(name.removeprefix("val_"), {}).get("value", value) for name, value in run.best.items()}


def baseline_scores(run: RunRecord) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the scores of each simpler answer to the same task, by its name; of continued pretraining those of the
    model that it began with, `before`."""
    baselines = run.scores.get("baselines") or run.status.get("baselines")
    if not baselines and (before := run.scores.get("before")):
        baselines = {"before": {name.removeprefix("val_"): value for name, value in before.items()}}
    if not isinstance(baselines, dict):
        return {}
    as_score = lambda value: value if isinstance(value, dict) else {"value": value}
    return {name: {key: as_score(value) for key, value in scores.items()} for name, scores in baselines.items()}


def standing(run: RunRecord) -> str:
    """Returns a sentence on how good the model to use is beside the baselines of its run; "" where it has no score."""
    scores = final_scores(run)
    metric = "bits_per_byte" if "bits_per_byte" in scores else deciding(run)
    value, sign = score_of(run, metric), -1 if metric in LOWER else 1
    if value is None:
        return ""
    rivals = {name: s[metric]["value"] for name, s in baseline_scores(run).items() if metric in s}
    shown = {name: f"{name} ({rival:.4g})" for name, rival in rivals.items()}
    beaten = ", ".join(shown[name] for name, rival in rivals.items() if sign * value > sign * rival)
    others = ", ".join(shown[name] for name, rival in rivals.items() if not sign * value > sign * rival)
    parts = [f"better than {beaten}"] * bool(beaten) + [f"no better than {others}"] * bool(others)
    sentence = f"{metric.replace('_', ' ')} {value:.4g}" + (f": {'; '.join(parts)}" if parts else "") + "."
    if (step := run.best.get("step")) is not None and run.status.get("step") is not None:
        sentence += f" The model to use, `best`, is of step {step:,.0f} of {run.status['step']:,}."
    return sentence


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


def columns(runs: Sequence[RunRecord]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Returns name and scores of each run, and then of each baseline, once where it is the same for several runs."""
    baselines: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for run in runs:
        for name, scores in baseline_scores(run).items():
            alike = baselines.setdefault(name, [])
            if scores not in [known for _, known in alike]:
                alike.append((run.name, scores))
    return [(run.name, final_scores(run)) for run in runs] + [
        (name if len(alike) == 1 else f"{name} of {run}", scores)
        for name, alike in baselines.items() for run, scores in alike
    ]  # fmt: skip


def confused(counts: dict[str, dict[str, int]], most: int) -> list[tuple[str, str, int]]:
    """Returns the pairs of a `confusion` that are taken for each other most often: gold, prediction, rows."""
    pairs = [(gold, said, n) for gold, row in counts.items() for said, n in row.items() if gold != said]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]


def mistaken(run: RunRecord) -> str:
    """Returns how many held-out rows are wrong, in a sentence; "" where rows are not right or wrong."""
    scores = [row["score"] for row in run.rows if isinstance(row.get("score"), int | float)]
    if not scores or any(score not in (0, 1) for score in scores):
        return ""
    wrong = scores.count(0)
    if not wrong:
        return "No held-out row is wrong; these are the least certain."
    return f"{wrong:,} of {len(scores):,} held-out rows are wrong."


def shown_mistakes(run: RunRecord, most: int) -> list[dict[str, Any]]:
    """Returns the worst held-out rows as texts: place, gold, prediction, text; and their loss."""
    return [
        {"place": row.get("place"), "gold": _shown(row.get("gold")), "prediction": _shown(main_prediction(row)),
         "loss": row.get("loss"), "text": brief(" ⏎ ".join(map(str, (row.get("row") or {}).values())), 400)}
        for row in worst_rows(run.rows, most)
    ]  # fmt: skip
