"""Fine-tuned models on labelled rows: scores with intervals, and whether one model is better than another."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.data.palette import as_texts, holds_images, load_palette
from lmkit.data.tables import Table, read_table
from lmkit.display import note
from lmkit.downstream import DownstreamConfig, TableConfig, TranslateConfig
from lmkit.errors import ModelError, UserError
from lmkit.evaluation import paired
from lmkit.evaluation.intervals import Estimate
from lmkit.pretrained import Pretrained
from lmkit.runs import seeds_of
from lmkit.solvers.classify import SEPARATOR, Classifier, split_labels
from lmkit.solvers.score_table import as_json, confusion_table, score_table
from lmkit.solvers.solver import Solver
from lmkit.solvers.trained import trained_solver
from lmkit.solvers.write import Writer
from lmkit.task_settings import settings_of


@dataclass
class Evaluated:
    name: str
    solver: Solver
    outputs: list[Any]
    scores: dict[str, Estimate]
    seeds: dict[str, dict[str, Estimate]]  # the scores of each alone, where several answer together

    def columns(self) -> dict[str, dict[str, Estimate]]:
        return self.seeds | {self.name: self.scores}


def read_labelled(
    sources: list[str], task: DownstreamConfig, columns: dict[str, str | None], labelled: bool, folder: Path
) -> Table:
    """The rows, images in the words of the model in `folder`, and notes about what was left out. Columns that are not
    named are those the model's run was given, where these files have them."""
    named = {role: column for role, column in columns.items() if column is not None}
    settings = settings_of(folder)
    learnt = settings.columns if settings else {}
    try:
        table = _read(sources, task, learnt | named, labelled)
    except UserError:
        if not learnt.keys() - named.keys():
            raise
        table = _read(sources, task, named, labelled)
    for kind, n in table.problems.counts.items():
        note(f"left out: {n:,} {kind}, like {table.problems.examples[kind][0]}")
    if not holds_images(table):
        return table
    if (palette := load_palette(folder)) is None:
        raise ModelError(f"{folder}: reads texts, and the data holds images")
    return as_texts(table, palette)


def _read(sources: list[str], task: DownstreamConfig, columns: dict[str, str], labelled: bool) -> Table:
    try:
        return read_table(sources, task.name, TableConfig(train=sources, **columns), labelled)
    except UserError as e:  # columns are named by options here
        raise type(e)(re.sub(r"\bdata\.(text|pair|label|target)(=| )", r"--\1 ", str(e))) from None


def together(outputs: Sequence[list[Any]]) -> list[Any]:
    """Of one model, or the mean of the probabilities of several: an ensemble (Lakshminarayanan et al. 2017)."""
    return outputs[0] if len(outputs) == 1 else list(np.mean(outputs, axis=0))


def evaluate(model: str, loaded: Sequence[Pretrained], task: DownstreamConfig, table: Table) -> Evaluated:
    """loaded: one, or those of several seeds. Raises DataError for labels that are none of the model's."""
    solver = trained_solver(model, loaded[0], task)
    if isinstance(solver, Classifier):
        table = split_labels(table, solver.kind, _separator(model))
    examples = solver.examples(table)
    if cut := len({e["row"] for e in examples if e["cut"]}):
        note(f"{model}: {cut:,} of {len(table.rows):,} rows are longer than it reads and were cut")
    each = [solver.outputs(one.model, table, examples) for one in loaded]
    seeds = {str(p): solver.scores(table, o, True) for p, o in zip(seeds_of(model), each, strict=False)}
    outputs = together(each)
    return Evaluated(model, solver, outputs, solver.scores(table, outputs, True), seeds)


def _separator(model: str) -> str:
    """What is between the labels of a row, as the run that learnt them had it."""
    settings = settings_of(model)
    return (settings.separator if settings else None) or SEPARATOR


def run(
    models: dict[str, list[Pretrained]], tasks: Sequence[DownstreamConfig], sources: list[str],
    columns: dict[str, str | None], as_lines: bool,
) -> None:  # fmt: skip
    """Print a table, or one JSON object; of two models also whether their difference is evidence."""
    if len({task.name for task in tasks}) > 1:
        raise UserError(f"these models solve different tasks: {', '.join(task.name for task in tasks)}")
    task = tasks[0]
    table = read_labelled(sources, task, columns, True, next(iter(models.values()))[0].folder)
    found = [evaluate(name, loaded, t, table) for (name, loaded), t in zip(models.items(), tasks, strict=True)]
    systems = {name: scores for e in found for name, scores in e.columns().items()}
    compared = compare(found[0], found[1], task, table) if len(found) == 2 else None
    if as_lines:
        facts: dict[str, Any] = {"task": task.name, "data": sources, "rows": len(table.rows)}
        facts["skipped"] = table.problems.counts
        facts["models"] = {name: as_json(scores) for name, scores in systems.items()}
        if compared:
            facts["comparison"] = {"difference": compared.difference._asdict(), "p": compared.p, "test": compared.test}
        print(json.dumps(facts))
        return
    print(score_table(", ".join(sources), systems, len(table.rows)))
    if isinstance(found[0].solver, Writer):
        print("\n".join(found[0].solver.stated()))
    if len(found) == 1 and isinstance(found[0].solver, Classifier):
        solver = found[0].solver
        if matrix := confusion_table(solver, split_labels(table, solver.kind), found[0].outputs):
            print(matrix)
    if compared:
        print(paired.verdict(compared, found[0].name, found[1].name))


def compare(a: Evaluated, b: Evaluated, task: DownstreamConfig, table: Table) -> paired.Comparison:
    """BLEU of translations is of the corpus; all else is the mean over rows."""
    if isinstance(task, TranslateConfig):
        references = [row["target"] for row in table.rows]
        return paired.paired_bleu(a.outputs, b.outputs, references, task.tokenize)
    return paired.paired(np.array(a.solver.per_row(table, a.outputs)), np.array(b.solver.per_row(table, b.outputs)))
