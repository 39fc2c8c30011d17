"""Fine-tuned models on labelled rows: scores with intervals, and whether one model is better than another."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as Grid

from lmkit.base.display import note, waiting
from lmkit.base.errors import ModelError, UserError
from lmkit.base.runs import seeds_of
from lmkit.base.units import brief
from lmkit.data.encodings import AS_IN_TRAINING
from lmkit.data.tables.table import Table, read_table
from lmkit.data.tables.task_tables import TABLES
from lmkit.evaluation import paired
from lmkit.evaluation.intervals import Estimate
from lmkit.evaluation.row_records import main_prediction, worst_rows
from lmkit.images.palette import as_texts, holds_images, load_palette
from lmkit.model.transformer import Transformer
from lmkit.pretrained import Pretrained
from lmkit.recipe.recipe_file import build_recipe
from lmkit.recipe.task_settings import settings_of
from lmkit.recipe.tasks import TableConfig, TaskConfig
from lmkit.tasks.table import trained_task
from lmkit.tasks.task import Task, drawn, score_table, scores_as_json, sliced


@dataclass
class Evaluated:
    name: str
    task: Task
    outputs: list[Any]
    scores: dict[str, Estimate]
    seeds: dict[str, dict[str, Estimate]]  # the scores of each alone, where several answer together

    def columns(self) -> dict[str, dict[str, Estimate]]:
        return self.seeds | {self.name: self.scores}


def table_config(
    sources: list[str], config: TaskConfig, columns: dict[str, str | None], labelled: bool, folder: Path
) -> TableConfig:
    """Returns how to read rows for the model in `folder`. Columns that are not named are those its run was trained
    with; without `labelled`, none of what is to be predicted. columns: by their keys of a recipe's `data`; and
    `encoding`."""
    settings = settings_of(folder)
    same_task = settings is not None and settings.task.name == config.name  # a reader of texts may serve another
    named = {key: column for key, column in columns.items() if column is not None}
    chosen = (settings.columns if settings and same_task else {}) | named
    if not labelled:
        chosen |= {role.key: "" for role in TABLES[config.name].roles if role.answer}
    trained = settings.model_dump(include={"separator", "encoding", "words"}) if settings else {}
    return build_recipe(TableConfig, {"train": sources} | trained | chosen, {}, where="command line")


def read_labelled(
    sources: list[str], config: TaskConfig, columns: dict[str, str | None], labelled: bool, folder: Path,
    task: Task | None = None, beside: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Returns the rows, as `table_config` has them read, with images in the words of the model in `folder`, and notes
    what was read and left out.

    task: of the model, whose labels the rows are read for. beside: columns to keep."""
    kind, known = ("auto", frozenset[str]()) if task is None else task.read_as()
    read_as = table_config(sources, config, columns, labelled, folder)
    if read_as.encoding not in ("utf-8", columns.get("encoding")):
        note(AS_IN_TRAINING.format(read_as.encoding))
    table = read_table(sources, config.name, read_as, labelled, kind, known, beside)
    for line in table.described(sources):
        note(line)
    if not holds_images(table):
        return table
    if (palette := load_palette(folder)) is None:
        raise ModelError(f"{folder}: reads texts, and the data holds images")
    return as_texts(table, palette)


def together(outputs: Sequence[list[Any]]) -> list[Any]:
    """Returns the outputs of one model, or the mean of the probabilities of several: an ensemble (Lakshminarayanan et
    al. 2017)."""
    return outputs[0] if len(outputs) == 1 else list(np.mean(outputs, axis=0))


def evaluate_task(model: str, loaded: Sequence[Pretrained], task: Task, table: Table) -> Evaluated:
    """Returns the scores of a task. loaded: one model, or those of several seeds."""
    examples = task.examples(table)
    if cut := len({e["row"] for e in examples if e["cut"]}):
        note(f"{model}: {cut:,} of {len(table.rows):,} rows are longer than it reads and were cut")
    with waiting(f"{model}: scoring {len(table.rows):,} rows"):
        each = [task.outputs(one.model, table, examples) for one in loaded]
    seeds = {str(p): task.scores(table, o, True) for p, o in zip(seeds_of(model), each, strict=False)}
    outputs = together(each)
    return Evaluated(model, task, outputs, task.scores(table, outputs, True), seeds)


def evaluate_tables(
    models: dict[str, list[Pretrained]], configs: Sequence[TaskConfig], sources: list[str],
    columns: dict[str, str | None], as_lines: bool, by: str | None = None, worst: int = 0,
    settings: dict[str, Any] | None = None, trained_on: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    """Prints a table, or one JSON object; for two models also whether their difference is evidence. Returns what stands
    in the JSON.

    by: a column by whose values scores are told apart. worst: how many rows with the largest loss are listed. settings:
    of the command, and trained_on: files that were learnt from, which stand in the JSON."""
    if len({config.name for config in configs}) > 1:
        raise UserError(f"these models solve different tasks: {', '.join(config.name for config in configs)}")
    tasks = [
        trained_task(name, loaded[0], config) for (name, loaded), config in zip(models.items(), configs, strict=True)
    ]
    if len(kinds := sorted({task.read_as()[0] for task in tasks})) > 1:
        raise UserError(f"these models label in different ways ({', '.join(kinds)})\n  → name one")
    folder, beside = next(iter(models.values()))[0].folder, [by] if by else []
    table = read_labelled(sources, configs[0], columns, True, folder, tasks[0], beside)
    for task in tasks:
        table = task.known_rows(table)
    evaluations = [evaluate_task(*model, task, table) for model, task in zip(models.items(), tasks, strict=True)]
    systems = {name: scores for e in evaluations for name, scores in e.columns().items()}
    facts: dict[str, Any] = {"task": configs[0].name, "data": sources, "rows": len(table.rows)}
    facts |= {"skipped": table.problems.counts} | ({"trained_on": trained_on} if trained_on else {})
    facts["models"] = {name: scores_as_json(scores) for name, scores in systems.items()}
    lines = [score_table(", ".join(sources), systems, len(table.rows)), *evaluations[0].task.stated()]
    for key, of_task in (("classes", _classes), ("confusion", _confusion), ("reliability", _reliability)):
        facts[key] = {e.name: of_task(e, table) for e in evaluations}
    facts["stated"] = {e.name: e.task.stated() for e in evaluations}
    if len(evaluations) == 1:
        lines += [
            *evaluations[0].task.details(table, evaluations[0].outputs),
            *_reliability_lines(evaluations[0], table),
        ]
    else:
        first, second = evaluations
        compared = first.task.compare(second.task, table, first.outputs, second.outputs)
        said = paired.verdict(compared, first.name, second.name)
        facts["comparison"] = {"difference": compared.difference._asdict(), "p": compared.p, "test": compared.test}
        facts["comparison"]["verdict"] = said
        lines.append(said)
    if by:
        slices = sliced(by, [table.beside[place][by] for place in table.places])
        facts["by"] = {by: {e.name: _slices(e, table, slices) for e in evaluations}}
        lines += [_slice_table(by, e, table, slices) for e in evaluations]
    if worst:
        learnt = TABLES[configs[0].name].learnt
        facts["worst"] = {e.name: worst_rows(row_records(e.task, loaded[0].model, table, e.outputs, learnt), worst)
                          for e, loaded in zip(evaluations, models.values(), strict=True)}  # fmt: skip
        lines += [f"{name}: the worst rows\n" + "\n".join(f"  {_brief(row)}" for row in rows)
                  for name, rows in facts["worst"].items()]  # fmt: skip
    print(json.dumps(facts | ({"settings": settings} if settings else {})) if as_lines else "\n".join(lines))
    return facts


def _classes(e: Evaluated, table: Table) -> dict[str, Any]:
    return scores_as_json(e.task.class_scores(table, e.outputs))


def _confusion(e: Evaluated, table: Table) -> dict[str, dict[str, int]]:
    return e.task.confusion(table, e.outputs)


def _reliability(e: Evaluated, table: Table) -> list[dict[str, Any]]:
    return [b._asdict() for b in e.task.reliability(table, e.outputs)]


def _reliability_lines(e: Evaluated, table: Table) -> list[str]:
    if not (bins := e.task.reliability(table, e.outputs)):
        return []
    grid = Grid("sure", "mean", "right", "rows", title="how sure, how often right")
    for b in bins:
        grid.add_row(f"{b.low:.2f} to {b.high:.2f}", f"{b.confidence:.3f}", f"{b.accuracy:.3f}", f"{b.rows:,}")
    return [drawn(grid)]


def _scores_of(e: Evaluated, table: Table, rows: list[int]) -> dict[str, Estimate]:
    part = replace(table, rows=[table.rows[i] for i in rows], places=[table.places[i] for i in rows])
    return e.task.scores(part, [e.outputs[i] for i in rows], True)


def _slices(e: Evaluated, table: Table, slices: dict[str, list[int]]) -> dict[str, Any]:
    return {v: {"rows": len(rows)} | scores_as_json(_scores_of(e, table, rows)) for v, rows in slices.items()}


def _slice_table(by: str, e: Evaluated, table: Table, slices: dict[str, list[int]]) -> str:
    columns = {f"{value} ({len(rows):,})": _scores_of(e, table, rows) for value, rows in slices.items()}
    return score_table(f"{e.name}, by {by} (rows)", columns, sum(map(len, slices.values())))


def row_records(
    task: Task, model: Transformer, table: Table, outputs: Sequence[Any], learnt: str
) -> list[dict[str, Any]]:
    """Returns what is known of each row: its place, loss (None in tasks without one), score in [0, 1], what is right
    (`gold`), the `prediction` as `say_of` gives it, and the texts of the row. learnt: the role of what is right."""
    losses, goodness = task.losses(model, table, outputs), task.per_row(table, outputs)
    records = list[dict[str, Any]]()
    for place, row, output, loss, score in zip(table.places, table.rows, outputs, losses, goodness, strict=True):
        shown = {key: value for key, value in row.items() if isinstance(value, str) and key != learnt}
        gold = row.get("references", row.get(learnt))
        prediction = task.say_of(row, output)
        records.append(
            {"place": place, "loss": loss, "score": score, "gold": gold, "prediction": prediction, "row": shown}
        )
    return records


def _brief(record: dict[str, Any]) -> str:
    loss = "" if record["loss"] is None else f" loss {record['loss']:.4f}"
    gold, predicted = brief(str(record["gold"])), brief(str(main_prediction(record)))
    text = next(iter(record["row"].values()), "")
    return f"{record['place']}:{loss} gold {gold}, predicted {predicted}: {brief(text)}"
