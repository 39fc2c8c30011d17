"""`lmkit eval MODEL --tasks`: tasks of lm-evaluation-harness, and files in the form of CORE, which need no harness."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lmkit.base.display import waiting
from lmkit.base.errors import UserError
from lmkit.evaluation import core
from lmkit.evaluation.intervals import Estimate
from lmkit.generation.engine import generate
from lmkit.generation.prompts import prompt_ids, source_ids
from lmkit.generation.sampling import SamplingConfig
from lmkit.pretrained import Pretrained, load
from lmkit.tasks.task import drawn, scores_as_json, sliced

BASICS = Path(core.__file__).parent / "basics"  # small tasks that come with lmkit: `--tasks basics`
LINE_TOKENS = 32  # most tokens of a written answer
NORMAL = 1.96  # standard errors on each side of a mean, in which it lies with 95%


def evaluate_benchmarks(
    model: str, named: Sequence[str], tasks_from: str | None, shots: int | None, limit: int | None, by: str | None,
    worst: int, allow_pickle: bool = False, apply_chat_template: bool | None = None,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Returns the scores of one model on tasks, as JSON and as a table.

    named: names of the harness's tasks or of those in `tasks_from`, YAML files and folders of them; .jsonl files in the
    form of CORE, folders of them or nanochat's eval bundle; `basics`. shots: examples ahead; None: as each task says.
    limit: rows of each task at most. by: a key of rows by which scores are told apart. worst: how many rows are
    listed. apply_chat_template: of the harness's tasks."""
    loaded, tasks, others = load(model, allow_pickle), list[core.CoreTask](), list[str]()
    loaded.needs_tokenizer()
    for name in named:
        path = BASICS if name == "basics" else Path(name)
        if path.suffix == ".jsonl":
            tasks.append(core.read_core(path, shots or 0, limit))
        elif (path / "core.yaml").is_file() or (any(path.glob("*.jsonl")) and not any(path.glob("*.yaml"))):
            tasks += core.read_bundle(path, limit, shots)
        else:
            others.append(name)
    if tasks and apply_chat_template:
        raise UserError(
            f"--apply-chat-template: is for tasks of the harness, and {tasks[0].name} is none\n  → leave it out"
        )
    facts: dict[str, Any] = {"model": model, "tasks": {}}
    if by and not others and not any(by in row for task in tasks for row in task.rows):
        raise UserError(f"--by {by}: no row has it\n  → one of {', '.join(tasks[0].rows[0])}")
    for task in tasks:
        facts["tasks"][task.name] = _core_facts(loaded, task, by, worst)
    if tasks:
        centered = [facts["tasks"][task.name]["scores"]["centered"]["value"] for task in tasks]
        facts["centered_mean"] = sum(centered) / len(centered)  # CORE, where the tasks are those of its bundle
    if others:
        facts |= _harness_facts(
            loaded, others, tasks_from, shots, limit, bool(apply_chat_template), by, worst, facts["tasks"]
        )
    return facts, "\n".join(_tables(facts))


def _core_facts(loaded: Pretrained, task: core.CoreTask, by: str | None, worst: int) -> dict[str, Any]:
    def write(prompts: list[str]) -> list[str]:
        loaded.check_use("generate")
        config = SamplingConfig(max_tokens=LINE_TOKENS, temperature=0, stop=("\n",), rules=loaded.rules)
        words, opening, context = loaded.needs_tokenizer(), loaded.opening, loaded.config.context
        encode = prompt_ids if opening is None else source_ids
        room = max(1, context - LINE_TOKENS) if opening is None else context
        ids = [encode(words, prompt)[-room:] for prompt in prompts]  # what is too long loses its beginning
        written = generate(loaded.model, ids, config, loaded.eos, tokenizer=words, opening=opening)
        return [c.text for c in written]

    start = loaded.decoder_start if loaded.config.stacks == "encoder_decoder" else None
    with waiting(f"{task.name}: {len(task.rows):,} rows"):
        answers = core.answer_core(task, loaded.model, loaded.needs_tokenizer(), write, start)
    score = lambda rows: core.core_scores([answers[i] for i in rows], task.baseline)
    facts: dict[str, Any] = {
        "form": task.form, "rows": len(task.rows), "shots": task.shots, "delimiter": task.delimiter,
        "baseline": task.baseline, "scores": scores_as_json(score(range(len(answers)))),
    }  # fmt: skip
    if by and any(by in row for row in task.rows):
        parts = sliced(by, [row.get(by) for row in task.rows])
        facts["by"] = {by: {v: {"rows": len(rows)} | scores_as_json(score(rows)) for v, rows in parts.items()}}
    if worst:
        rows = zip(task.places, answers, task.rows, strict=True)
        facts["worst"] = _hardest([{"place": p} | a._asdict() | {"row": row} for p, a, row in rows], worst)
    return facts


def _hardest(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (not row["right"], row["loss"] or 0.0), reverse=True)[:most]


def _harness_facts(
    loaded: Pretrained, named: list[str], folder: str | None, shots: int | None, limit: int | None,
    apply_chat_template: bool, by: str | None, worst: int, tasks: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Adds to `tasks` what the harness says of each; returns what holds for all of them."""
    try:
        from lmkit.ops.harness import answer_facts, run_tasks, slice_scores
    except ImportError as e:
        raise UserError(
            f"--tasks {', '.join(named)}: tasks of lm-evaluation-harness need it ({e.name} is missing)\n"
            '  → pip install "lmkit[harness]", or name a .jsonl file in the form of CORE, or `basics`'
        ) from None
    needed = None if any("by" in task for task in tasks.values()) else by
    results = run_tasks(loaded, named, Path(folder) if folder else None, shots, limit, apply_chat_template, needed)
    for name, scores in results["results"].items():
        values = {}
        for key, value in scores.items():
            metric, _, filtered = key.partition(",")
            error = scores.get(f"{metric}_stderr,{filtered}")
            if filtered and not metric.endswith("_stderr") and isinstance(value, int | float):
                room = NORMAL * error if isinstance(error, float) else None
                low, high = (None, None) if room is None else (value - room, value + room)
                values[metric if filtered == "none" else key] = Estimate(value, low, high)
        count = results.get("n-samples", {}).get(name, {})
        tasks[name] = {
            "form": "harness", "rows": count.get("effective"), "shots": results.get("n-shot", {}).get(name),
            "version": results.get("versions", {}).get(name), "scores": scores_as_json(values),
            "config": results.get("configs", {}).get(name),
        }  # fmt: skip
        rows = results["samples"].get(name, [])  # of a group none
        rows = [row for row in rows if row["filter"] == rows[0]["filter"]]
        if by and any(by in row["doc"] for row in rows):
            parts = sliced(by, [row["doc"].get(by) for row in rows]).items()
            scored = {v: scores_as_json(slice_scores([rows[i] for i in numbers])) for v, numbers in parts}
            tasks[name]["by"] = {by: {v: {"rows": len(numbers)} | scored[v] for v, numbers in parts}}
        if worst and rows:
            tasks[name]["worst"] = _hardest([answer_facts(name, row) for row in rows], worst)
    return {"harness": results["lm_eval_version"]}


def _tables(facts: dict[str, Any]) -> list[str]:
    grid = Table("task", "rows", "shots", "score", "value", "95% interval", "at random", title=facts["model"])
    lists = list[str]()
    for name, task in facts["tasks"].items():
        parts = {"": task["scores"]} | {f"{column}={value}": scores for column, values in task.get("by", {}).items()
                                        for value, scores in values.items()}  # fmt: skip
        for part, scores in parts.items():
            for metric, e in scores.items():
                if metric != "rows":
                    at_random = f"{task['baseline']:.4f}" if metric == "accuracy" else ""
                    interval = "" if e["low"] is None else f"{e['low']:.4f} to {e['high']:.4f}"
                    rows, shots = scores.get("rows", task["rows"]), task["shots"]
                    cells = f"{name} {part}".strip(), str(rows), str(shots), metric, f"{e['value']:.4f}"
                    grid.add_row(*cells, interval, at_random)
        for row in task.get("worst", ()):
            outcome = [] if row["right"] is None else ["right" if row["right"] else "wrong"]
            outcome += [] if row["loss"] is None else [f"loss {row['loss']:.4f}"]
            outcome += [] if row["given"] is None else [f"given {row['given']!r}"]
            lists.append(f"{row['place']}: {', '.join(outcome)}")
    if "centered_mean" in facts:
        lists.append(f"mean of the centered accuracies: {facts['centered_mean']:.4f}")
    return [drawn(grid), *lists]
