"""Fine-tuned models on labelled rows: scores with intervals, and whether one model is better than another."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.base.display import note, waiting
from lmkit.base.errors import ModelError, UserError
from lmkit.base.runs import seeds_of
from lmkit.data.tables.table import Table, read_table
from lmkit.data.tables.task_tables import TABLES
from lmkit.evaluation import paired
from lmkit.evaluation.intervals import Estimate
from lmkit.images.palette import as_texts, holds_images, load_palette
from lmkit.pretrained import Pretrained
from lmkit.recipe.recipe_file import build_recipe
from lmkit.recipe.task_settings import settings_of
from lmkit.recipe.tasks import TableConfig, TaskConfig
from lmkit.tasks.table import trained_task
from lmkit.tasks.task import Task, score_table, scores_as_json


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
    trained = {"separator": settings.separator, "words": settings.words} if settings else {}
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
    columns: dict[str, str | None], as_lines: bool,
) -> None:  # fmt: skip
    """Prints a table, or one JSON object; for two models also whether their difference is evidence."""
    if len({config.name for config in configs}) > 1:
        raise UserError(f"these models solve different tasks: {', '.join(config.name for config in configs)}")
    tasks = [
        trained_task(name, loaded[0], config) for (name, loaded), config in zip(models.items(), configs, strict=True)
    ]
    if len(kinds := sorted({task.read_as()[0] for task in tasks})) > 1:
        raise UserError(f"these models label in different ways ({', '.join(kinds)})\n  → name one")
    table = read_labelled(sources, configs[0], columns, True, next(iter(models.values()))[0].folder, tasks[0])
    for task in tasks:
        table = task.known_rows(table)
    evaluations = [evaluate_task(*model, task, table) for model, task in zip(models.items(), tasks, strict=True)]
    systems = {name: scores for e in evaluations for name, scores in e.columns().items()}
    compared = None
    if len(evaluations) == 2:
        compared = evaluations[0].task.compare(
            evaluations[1].task, table, evaluations[0].outputs, evaluations[1].outputs
        )
    if as_lines:
        facts: dict[str, Any] = {"task": configs[0].name, "data": sources, "rows": len(table.rows)}
        facts["skipped"] = table.problems.counts
        facts["models"] = {name: scores_as_json(scores) for name, scores in systems.items()}
        facts["classes"] = {e.name: scores_as_json(e.task.class_scores(table, e.outputs)) for e in evaluations}
        if compared:
            facts["comparison"] = {"difference": compared.difference._asdict(), "p": compared.p, "test": compared.test}
        print(json.dumps(facts))
        return
    details = evaluations[0].task.details(table, evaluations[0].outputs) if len(evaluations) == 1 else []
    print(
        "\n".join([score_table(", ".join(sources), systems, len(table.rows)), *evaluations[0].task.stated(), *details])
    )
    if compared:
        print(paired.verdict(compared, evaluations[0].name, evaluations[1].name))
