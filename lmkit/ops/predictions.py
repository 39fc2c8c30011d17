"""`lmkit predict MODEL --data FILE`: what a fine-tuned model says of each row, one JSON line a row."""

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import IO, Any

from lmkit.base.display import note, waiting
from lmkit.base.errors import DataError, UserError
from lmkit.base.files import replacing
from lmkit.data.tables.splitting import same_input
from lmkit.data.tables.table import Table, read_table
from lmkit.data.tables.task_tables import TABLES
from lmkit.recipe.tasks import TableConfig
from lmkit.tasks.evaluate import read_labelled, table_config, together
from lmkit.tasks.table import TASKS, changed, load_all, task_of, trained_task
from lmkit.tasks.task import Task


def predict_rows(
    model: str, sources: list[str], out: Path | None, columns: dict[str, str | None], task_name: str | None,
    changes: dict[str, Any] | None = None, keep: Sequence[str] = (),
) -> None:  # fmt: skip
    """Writes a JSON line for each row: `place`, its file and line, the columns `keep`, what the task predicts, and
    `gold` and its `loss` where the row has them; for a row that cannot be read, `error` says why.

    By the end of its name a file `out` is CSV (.csv, .tsv), or the predictions of SQuAD (.json); it appears when all
    rows are written. Raises UserError for a model that is not fine-tuned and for an `out` that is read, StorageError
    for one that cannot be written."""
    if out is None:
        sys.stdout.writelines(_lines(_predictions(model, sources, out, columns, task_name, changes, keep)))
        return
    with replacing(out) as part:
        records = _predictions(model, sources, out, columns, task_name, changes, keep)
        with part.open("w", encoding="utf-8", newline="") as file:
            if out.suffix == ".json":
                json.dump({r["id"]: r.get("answer", "") for r in records if "id" in r}, file, ensure_ascii=False)
            elif out.suffix in (".csv", ".tsv"):
                _write_cells(records, file, "\t" if out.suffix == ".tsv" else ",")
            else:
                file.writelines(_lines(records))
    errors = sum("error" in record for record in records)
    print(f"{len(records):,} rows → {out}" + (f" ({errors:,} of them not read: `error` says why)" if errors else ""))


def _lines(records: list[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_cells(records: list[dict[str, Any]], file: IO[str], delimiter: str) -> None:
    """Writes a table with a header. What is nested is a column for each name, `scores.pos`; lists are JSON."""
    rows = []
    for record in records:
        nested = {f"{key}.{name}": v for key, d in record.items() if isinstance(d, dict) for name, v in d.items()}
        flat = {key: value for key, value in record.items() if not isinstance(value, dict)} | nested
        rows.append({k: json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for k, v in flat.items()})
    writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)


def _labelled(table: Table, golds: dict[str, dict[str, Any]], task_name: str) -> dict[int, dict[str, Any]]:
    """Returns the rows of `golds` that are rows of the table, by their numbers there."""
    same = lambda gold, row: "image" in gold or same_input(gold, task_name) == same_input(row, task_name)
    found = {i: golds.get(place) for i, place in enumerate(table.places)}
    return {i: gold for i, gold in found.items() if gold and same(gold, table.rows[i])}


def _golds(read_as: TableConfig, task_name: str, task: Task) -> dict[str, dict[str, Any]]:
    """Returns the rows that have what is to be predicted, by place; none where a file has no such column."""
    with suppress(DataError), redirect_stderr(StringIO()):  # the same files were read without it, and told of
        table = read_table(read_as.sources, task_name, read_as, True, *task.read_as())
        return dict(zip(table.places, table.rows, strict=True))
    return {}


def _predictions(
    model: str, sources: list[str], out: Path | None, columns: dict[str, str | None], task_name: str | None,
    changes: dict[str, Any] | None, keep: Sequence[str],
) -> list[dict[str, Any]]:  # fmt: skip
    config = task_of(model, task_name)
    if config is not None and not (config.name in TASKS and TASKS[config.name].labels_rows):
        raise UserError(f"{model}: fine-tuned for {config.name}, and labels no rows\n  → `lmkit generate`")
    if config is None:
        raise UserError(f"{model}: not fine-tuned for a task\n  → `lmkit generate` continues texts and fills masks")
    config = changed(config, changes or {})
    loaded = load_all(model, config)
    task = trained_task(model, loaded[0], config)
    if out is not None and out.suffix == ".json" and config.name != "qa":
        raise UserError(f"--out {out}: .json is for answers to the questions of SQuAD\n  → .jsonl, .csv or .tsv")
    table = read_labelled(sources, config, columns, False, loaded[0].folder, task, keep)
    if out is not None and out.is_file() and (name := _same_file(out, table)):
        raise UserError(f"--out {out}: it is read ({name}), and would be lost\n  → name another file")
    unlabelled = [{k: v for k, v in row.items() if k != "tags"} for row in table.rows]
    table = replace(table, rows=unlabelled)  # tags that the model does not have are no hindrance
    examples = task.examples(table)
    if cut := len({e["row"] for e in examples if e["cut"]}):
        note(f"{cut:,} of {len(table.rows):,} rows are longer than the model reads and were cut")
    with waiting(f"{model}: {len(table.rows):,} rows"):
        outputs = together([task.outputs(one.model, table, examples) for one in loaded])
    golds = _golds(table_config(sources, config, columns, True, loaded[0].folder), config.name, task)
    labelled = _labelled(table, golds, config.name)
    with_gold = replace(table, rows=list(labelled.values()), places=[table.places[i] for i in labelled])
    each = task.losses(loaded[0].model, with_gold, [outputs[i] for i in labelled]) if labelled else []
    losses = dict(zip(labelled, each, strict=True))
    records = []
    for i, (place, row, output) in enumerate(zip(table.places, table.rows, outputs, strict=True)):
        said, beside = task.say_of(row, output), table.beside.get(place, {})
        record = {"place": place} | {f"input.{k}" if k in said else k: v for k, v in beside.items()} | said
        if gold := labelled.get(i):
            record["gold"] = gold.get("references", gold[TABLES[config.name].learnt])
            if (loss := losses[i]) is not None:
                record["loss"] = round(loss, 6)
        records.append(record)
    for lost in reversed(table.lost):
        records.insert(lost.before, {"place": lost.place} | table.beside.get(lost.place, {}) | {"error": lost.reason})
    return records


def _same_file(out: Path, table: Table) -> str | None:
    """Returns the file of the table that `out` is, by whatever name."""
    places = [*table.places, *(lost.place for lost in table.lost)]
    names = dict.fromkeys(place.rpartition(":")[0] or place for place in places)
    return next((name for name in names if os.path.exists(name) and out.samefile(name)), None)
