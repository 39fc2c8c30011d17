"""`lmkit predict`: what a fine-tuned model says of each row."""

from pathlib import Path
from typing import Annotated

import typer

from lmkit.commands.app import app
from lmkit.commands.options import Column, Data, Encoding, Model, Pair, SourceLang, TargetLang, Task


@app.command(epilog="Example: lmkit predict runs/classify-reviews --data new.csv --out predictions.jsonl")
def predict(
    model: Model,
    data: Data,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File of JSON lines; else standard output.")] = None,
    task: Task = None,
    text: Column = None,
    pair: Pair = None,
    encoding: Encoding = "utf-8",
    source_lang: SourceLang = None,
    target_lang: TargetLang = None,
) -> None:
    """What a fine-tuned model says of each row, as JSON lines."""
    from lmkit.ops import predictions

    keys, languages = {"text": text, "pair": pair, "encoding": encoding}, (source_lang, target_lang)
    predictions.predict_rows(model, data, out, keys, task, languages)
