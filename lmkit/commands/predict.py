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
    """Lines hold `place`, the file and line of the row, and what the task predicts. Raises UserError for a model
    that is not fine-tuned, StorageError where `out` cannot be written."""
    chosen = task_of(model, task)
    if chosen is not None and chosen.name in ("chat", "lm"):
        raise UserError(f"{model}: fine-tuned for {chosen.name}, and labels no rows\n  → `lmkit generate`")
    if chosen is None:
        raise UserError(f"{model}: not fine-tuned for a task\n  → `lmkit generate` continues texts and fills masks")
    loaded = load_all(model, chosen)
    solver = trained_solver(model, loaded[0], chosen)
    table = read_labelled(sources, chosen, columns, False, loaded[0].folder)
    unlabelled = [{k: v for k, v in row.items() if k not in ("label", "tags")} for row in table.rows]
    table = replace(table, rows=unlabelled)  # labels that the model does not have are no hindrance
    examples = solver.examples(table)
    if cut := len({e["row"] for e in examples if e["cut"]}):
        note(f"{cut:,} of {len(table.rows):,} rows are longer than the model reads and were cut")
    outputs = together([solver.outputs(one.model, table, examples) for one in loaded])
    lines = (
        json.dumps({"place": place} | solver.say(output), ensure_ascii=False) + "\n"
        for place, output in zip(table.places, outputs, strict=True)
    )
    if out is None:
        sys.stdout.writelines(lines)
        return
    try:
        with out.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as e:
        raise StorageError(f"{out}: cannot be written: {e.strerror}") from None
    print(f"{len(table.rows):,} rows → {out}")
