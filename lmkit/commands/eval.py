"""`lmkit eval`: how well a model predicts texts, or does what it was fine-tuned for."""

from typing import Annotated

import typer

from lmkit.commands import options
from lmkit.commands.app import app
from lmkit.commands.options import (
    Column,
    Data,
    Encoding,
    Json,
    Label,
    Pair,
    Pickle,
    Separator,
    SourceLang,
    Target,
    TargetLang,
    Task,
    TextFiles,
)


@app.command(
    name="eval", epilog="Example: lmkit eval runs/demo --data recipes/corpus/austen-emma.txt --separator $'\\f'"
)
def evaluate_command(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL [OTHER]", help="Runs, Hugging Face folders or GGUF files; two are compared."),
    ],
    data: Data,
    task: Task = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="Decoders: tokens between windows. Default: the context.")
    ] = None,
    pll_tokens: Annotated[
        int | None,
        typer.Option("--pll-tokens", min=0, help="Encoders: most tokens of the pseudo-perplexity. Default: 2000."),
    ] = None,
    text: Column = None,
    pair: Pair = None,
    label: Label = None,
    target: Target = None,
    labels: options.Labels = None,
    separator: Separator = None,
    encoding: Encoding = "utf-8",
    text_files: TextFiles = None,
    source_lang: SourceLang = None,
    target_lang: TargetLang = None,
    as_json: Json = False,
    allow_pickle: Pickle = False,
) -> None:
    """How well a model predicts texts, masked tokens or targets, or solves what it was fine-tuned for."""
    from lmkit.ops import text_scores

    keys = {"text": text, "pair": pair, "label": label, "target": target, "encoding": encoding}
    changes = options.task_changes(labels, source_lang=source_lang, target_lang=target_lang)
    text_scores.evaluate_models(
        models, data, task, keys, as_json, allow_pickle, changes, stride=stride,
        pll_tokens=pll_tokens, separator=separator, text_files=text_files,
    )  # fmt: skip
