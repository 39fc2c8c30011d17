"""`lmkit predict`: what a fine-tuned model says of each row."""

from pathlib import Path
from typing import Annotated

import typer

from lmkit.commands.app import app
from lmkit.commands.options import (
    Column,
    Data,
    Labels,
    Model,
    OwnEncoding,
    Pair,
    SourceLang,
    TargetLang,
    Task,
    TaskBeam,
    task_changes,
)


@app.command(epilog="Example: lmkit predict runs/classify-reviews --data new.csv --out predictions.jsonl")
def predict(
    model: Model,
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File (.jsonl, .csv, .tsv; qa: .json); else standard output.")
    ] = None,
    task: Task = None,
    text: Column = None,
    pair: Pair = None,
    labels: Labels = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Of several labels, or of the second of two; over the model's.")
    ] = None,
    keep: Annotated[str | None, typer.Option("--keep", metavar="a,b", help="Columns to copy to the output.")] = None,
    encoding: OwnEncoding = None,
    source_lang: SourceLang = None,
    target_lang: TargetLang = None,
    beam: TaskBeam = None,
) -> None:
    """What a fine-tuned model says of each row, as JSON lines."""
    from lmkit.ops import predictions

    changes = task_changes(labels, threshold=threshold, source_lang=source_lang, target_lang=target_lang, beam=beam)
    kept_columns = [name.strip() for name in (keep or "").split(",") if name.strip()]
    predictions.predict_rows(
        model, data, out, {"text": text, "pair": pair, "encoding": encoding}, task, changes, kept_columns
    )
