"""`lmkit predict MODEL --data FILE`: what a fine-tuned model says of each row, one JSON line a row."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmkit.base.display import note
from lmkit.base.errors import UserError
from lmkit.base.files import replacing
from lmkit.data.tables.table import Table
from lmkit.tasks.evaluate import read_labelled, together
from lmkit.tasks.table import TASKS, changed, load_all, task_of, trained_task


def predict_rows(
    model: str, sources: list[str], out: Path | None, columns: dict[str, str | None], task_name: str | None,
    changes: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes a JSON line for each row: `place`, its file and line, and what the task predicts; for a row that cannot be
    read, `error` says why. A file `out` appears when all lines are written. Raises UserError for a model that is not
    fine-tuned and for an `out` that is read, StorageError for one that cannot be written."""
    if out is None:
        sys.stdout.writelines(_lines(_predictions(model, sources, out, columns, task_name, changes)))
        return
    with replacing(out) as part:
        records = _predictions(model, sources, out, columns, task_name, changes)
        with part.open("w", encoding="utf-8") as file:
            file.writelines(_lines(records))
    errors = sum("error" in record for record in records)
    print(f"{len(records):,} rows → {out}" + (f" ({errors:,} of them not read: `error` says why)" if errors else ""))


def _lines(records: list[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _predictions(
    model: str, sources: list[str], out: Path | None, columns: dict[str, str | None], task_name: str | None,
    changes: dict[str, Any] | None,
) -> list[dict[str, Any]]:  # fmt: skip
    config = task_of(model, task_name)
    if config is not None and not (config.name in TASKS and TASKS[config.name].labels_rows):
        raise UserError(f"{model}: fine-tuned for {config.name}, and labels no rows\n  → `lmkit generate`")
    if config is None:
        raise UserError(f"{model}: not fine-tuned for a task\n  → `lmkit generate` continues texts and fills masks")
    config = changed(config, changes or {})
    loaded = load_all(model, config)
    task = trained_task(model, loaded[0], config)
    table = read_labelled(sources, config, columns, False, loaded[0].folder, task)
    if out is not None and out.is_file() and (name := _same_file(out, table)):
        raise UserError(f"--out {out}: it is read ({name}), and would be lost\n  → name another file")
    unlabelled = [{k: v for k, v in row.items() if k != "tags"} for row in table.rows]
    table = replace(table, rows=unlabelled)  # tags that the model does not have are no hindrance
    examples = task.examples(table)
    if cut := len({e["row"] for e in examples if e["cut"]}):
        note(f"{cut:,} of {len(table.rows):,} rows are longer than the model reads and were cut")
    outputs = together([task.outputs(one.model, table, examples) for one in loaded])
    predictions = map(task.say_of, table.rows, outputs)
    records = [{"place": place} | prediction for place, prediction in zip(table.places, predictions, strict=True)]
    for lost in reversed(table.lost):
        records.insert(lost.before, {"place": lost.place, "error": lost.reason})
    return records


def _same_file(out: Path, table: Table) -> str | None:
    """Returns the file of the table that `out` is, by whatever name."""
    places = [*table.places, *(lost.place for lost in table.lost)]
    names = dict.fromkeys(place.rpartition(":")[0] or place for place in places)
    return next((name for name in names if os.path.exists(name) and out.samefile(name)), None)
