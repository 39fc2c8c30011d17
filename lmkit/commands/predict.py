"""`lmkit predict MODEL --data FILE`: what a fine-tuned model says of each row, one JSON line a row."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from lmkit.display import note
from lmkit.errors import StorageError, UserError
from lmkit.solvers.evaluate import read_labelled, together
from lmkit.solvers.trained import load_all, task_of, trained_solver


def run(model: str, sources: list[str], out: Path | None, columns: dict[str, str | None], task: str | None) -> None:
    """Lines hold `place`, the file and line of the row, and what the task predicts; of a row that cannot be read,
    `error` says why. Raises UserError for a model that is not fine-tuned, StorageError for an `out` that cannot be
    written."""
    chosen = task_of(model, task)
    if chosen is not None and chosen.name in ("chat", "lm"):
        raise UserError(f"{model}: fine-tuned for {chosen.name}, and labels no rows\n  → `lmkit generate`")
    if chosen is None:
        raise UserError(f"{model}: not fine-tuned for a task\n  → `lmkit generate` continues texts and fills masks")
    loaded = load_all(model, chosen)
    solver = trained_solver(model, loaded[0], chosen)
    table = read_labelled(sources, chosen, columns, False, loaded[0].folder, solver)
    unlabelled = [{k: v for k, v in row.items() if k != "tags"} for row in table.rows]
    table = replace(table, rows=unlabelled)  # tags that the model does not have are no hindrance
    examples = solver.examples(table)
    if cut := len({e["row"] for e in examples if e["cut"]}):
        note(f"{cut:,} of {len(table.rows):,} rows are longer than the model reads and were cut")
    outputs = together([solver.outputs(one.model, table, examples) for one in loaded])
    records = [{"place": place} | solver.say(output) for place, output in zip(table.places, outputs, strict=True)]
    for lost in reversed(table.lost):
        records.insert(lost.before, {"place": lost.place, "error": lost.reason})
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    if out is None:
        sys.stdout.writelines(lines)
        return
    try:
        with out.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as e:
        raise StorageError(f"{out}: cannot be written: {e.strerror}") from None
    errors = sum("error" in record for record in records)
    print(f"{len(lines):,} rows → {out}" + (f" ({errors:,} of them not read: `error` says why)" if errors else ""))
