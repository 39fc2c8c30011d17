"""The report of runs as one HTML file, which needs no other file, no script and no network."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmkit.base.runs import going_on
from lmkit.base.units import show_bytes, show_count, show_seconds
from lmkit.recipe.finetuning import is_finetuning
from lmkit.report import comparison, curves
from lmkit.report.record import AXES, RunRecord

TEMPLATE = Path(__file__).with_name("page.html")
TRAINING = {"loss": "training loss", "lr": "learning rate", "grad_norm": "gradient norm",
            "tokens_per_second": "tokens per second"}  # columns that are drawn, and their titles  # fmt: skip
MOST_SAMPLES, MOST_WORST, MOST_CLASSES, MOST_CONFUSED = 12, 20, 30, 20  # shown of each run
FEW_CLASSES = 12  # of a confusion matrix that is read at a glance
UNUSED = "  # not used: the data were tokens already"
VALIDATION = "validation {}"
WRITTEN = ("val_bleu", "val_chrf", "val_rouge")  # scores of texts, which training writes without a beam


def report_page(runs: Sequence[RunRecord], metric: str = "") -> str:
    """Returns the page. runs: at least one; their curves are drawn over each other. metric: what several are ranked by,
    as `comparison.ranking` takes it."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)  # texts of users are in there
    environment.filters |= {"score": said_score, "count": show_count, "seconds": _seconds, "bytes": show_bytes}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    ranking = comparison.ranking(runs, metric)
    best = [row["records"][0] for row in ranking if row["mean"] is not None][:1]
    to_go_on = [run for run in runs if len(runs) == 1 or run in best or not best or run.state != "done"]
    return template.render(
        title=title, axes=AXES, runs=[_facts(run, style) for style, run in enumerate(runs)], charts=charts(runs),
        differences=comparison.differing_keys(runs) if len(runs) > 1 else {}, tests=comparison.tested(runs),
        score_names=list(dict.fromkeys(name for run in runs for name in comparison.final_scores(run))),
        score_columns=comparison.columns(runs), ranking=ranking, best=comparison.which_is_best(ranking),
        verdicts=_verdicts(runs), next_steps=[next_step(run) for run in to_go_on],
    )  # fmt: skip


def charts(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Returns the charts: `title`, and an SVG for each axis, "" where no run has points over it."""
    drawn = {
        title: {axis: curves.line_chart(title, series(runs, name, axis), axis) for axis in AXES}
        for name, title in charted(runs).items()
    }
    return [{"title": title, "drawn": by_axis} for title, by_axis in drawn.items() if any(by_axis.values())]


def charted(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Returns the columns of metrics.jsonl that are worth a chart, with their titles."""
    names = dict.fromkeys(name for run in runs for name in run.columns if name.startswith("val_"))
    titles = {name: VALIDATION.format(name[4:].replace("_", " ")) for name in names}
    greedy = {name: f"{title} (greedy search)" for name, title in titles.items() if name.startswith(WRITTEN)}
    return {"loss": TRAINING["loss"]} | titles | greedy | TRAINING


def series(runs: Sequence[RunRecord], name: str, axis: str) -> list[curves.Series]:
    """Returns the curve of each run that has this column of metrics.jsonl."""
    return [
        curves.Series(run.name, *run.curve(name, axis), style) for style, run in enumerate(runs) if name in run.columns
    ]


def _facts(run: RunRecord, style: int) -> dict[str, Any]:
    confusion = comparison.confusion(run)
    classes = list(dict.fromkeys([*confusion, *(label for row in confusion.values() for label in row)]))
    lengths = run.introduced.get("lengths") or {}
    return {
        "record": run, "style": style % curves.STYLES, "cost": comparison.cost(run),
        "standing": comparison.standing(run), "answers": run.scores.get("samples") or [],
        "classes": run.scores.get("classes") or {}, "confusion": confusion if len(classes) <= MOST_CLASSES else {},
        "confused": comparison.confused(confusion, MOST_CONFUSED) if len(classes) > FEW_CLASSES else [],
        "mistaken": comparison.mistaken(run),
        "labels": sorted(classes), "largest": max((n for row in confusion.values() for n in row.values()), default=0),
        "worst": comparison.shown_mistakes(run, MOST_WORST), "samples": run.samples[-MOST_SAMPLES:],
        "all_samples": len(run.samples), "lines": run.introduced.get("lines") or [],
        "lengths": lengths and curves.histogram(
            "tokens a row", lengths.get("rows", ()), lengths.get("edges", ()), lengths.get("limit"), "tokens"
        ),
        "limit": lengths.get("limit"), "events": events(run), "recipe": _recipe(run),
        "command": shlex.join(map(str, run.environment.get("command", []))),
    }  # fmt: skip


def _verdicts(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Returns each line of the verdicts, with the names of the runs that it is about."""
    names: dict[str, list[str]] = {}
    for run in runs:
        for line in run.verdict:
            names.setdefault(line, []).append(run.name)
    return {line: ", ".join(of_line) for line, of_line in names.items()}


def next_step(run: RunRecord) -> str:
    """Returns the command to go on with: resume what stopped, use what is done."""
    path = shlex.quote(str(run.path))
    verb = "finetune" if is_finetuning(run.recipe) else "pretrain"
    if run.state == "running":
        return f"lmkit runs watch {path}"
    if run.state != "done":
        return going_on(run.path, verb)
    if run.rows:
        return f"lmkit predict {path} --data FILE --out predictions.jsonl"
    return f"lmkit eval {path} --data FILE"


def events(run: RunRecord) -> dict[str, list[str]]:
    """Returns the events other than the beginning, by kind, with the steps of the last ones."""
    steps_by_kind: dict[str, list[str]] = {}
    for event in run.events:
        kind = str(event.get("event"))
        if kind not in ("start", "introduced", "sources"):
            steps_by_kind.setdefault(kind, []).append(str(event.get("step", event.get("time", ""))))
    return steps_by_kind


def _recipe(run: RunRecord) -> str:
    """Returns the recipe as it was resolved, with a remark on what a run on tokens did not use."""
    from lmkit.data.tokens.store import is_store

    file, data = run.path / "recipe.yaml", run.recipe.get("data")
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    train = data.get("train") if isinstance(data, dict) else None
    sources = [train] if isinstance(train, str) else train or []
    if len(sources) != 1 or not is_store(sources[0]):
        return text
    lines, section = list[str](), ""
    for line in text.splitlines():
        section = line if line[:1].strip() else section
        key = re.match(r"  (\w+):", line)
        unused = line == "tokenizer:" or (section == "data:" and key and key[1] not in ("train", "document_masking"))
        lines.append(line + UNUSED if unused else line)
    return "\n".join(lines)


def said_score(score: dict[str, Any] | None) -> str:
    if not score or not isinstance(score.get("value"), int | float):
        return "–"
    value, low, high = score["value"], score.get("low"), score.get("high")
    return f"{value:.4g}" if low is None or high is None else f"{value:.4g} ({low:.4g}–{high:.4g})"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else show_seconds(seconds)
