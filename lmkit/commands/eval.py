"""`lmkit eval`: how well a model predicts texts, does what it was fine-tuned for, or answers benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from lmkit.commands import options
from lmkit.commands.app import app
from lmkit.commands.options import (
    Column,
    Json,
    Label,
    OwnEncoding,
    Pair,
    Pickle,
    Separator,
    SourceLang,
    Target,
    TargetLang,
    Task,
    TaskBeam,
    TextFiles,
)

SHOWING = ("as_json", "again", "labels", "source_lang", "target_lang", "beam")  # the last four are `changes`

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        help="Benchmarks, with commas: `basics`, .jsonl files in the form of CORE, YAML files of lm-evaluation-harness,"
        " or its own tasks by name.",
    ),
]
TasksFrom = Annotated[
    str | None, typer.Option("--tasks-from", metavar="DIR", help="YAML files whose tasks --tasks may name.")
]
Shots = Annotated[int | None, typer.Option("--shots", min=0, help="--tasks: examples ahead of each row.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="--tasks: rows of each task at most.")]
ChatTemplate = Annotated[
    bool | None, typer.Option("--apply-chat-template", help="--tasks: rows as conversations, by the model's template.")
]
By = Annotated[str | None, typer.Option("--by", metavar="COLUMN", help="Scores for each value of this column too.")]
Worst = Annotated[int, typer.Option("--worst", min=0, help="List so many rows, or texts, with the largest loss.")]
Curve = Annotated[bool, typer.Option("--curve", help="Scores of runs by how much data each had; reads runs.")]
Again = Annotated[
    Path | None, typer.Option("--again", metavar="FILE", help="Score as this file of --json says, and compare.")
]


@app.command(
    name="eval", epilog="Example: lmkit eval runs/demo --data recipes/corpus/austen-emma.txt --separator $'\\f'"
)
def evaluate_command(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL [OTHER]", help="Runs, Hugging Face folders or GGUF files; two are compared."),
    ] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Files, folders or globs. Repeatable.")] = None,
    task: Task = None,
    tasks: Tasks = None,
    tasks_from: TasksFrom = None,
    shots: Shots = None,
    limit: Limit = None,
    apply_chat_template: ChatTemplate = None,
    by: By = None,
    worst: Worst = 0,
    curve: Curve = False,
    again: Again = None,
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
    encoding: OwnEncoding = None,
    text_files: TextFiles = None,
    source_lang: SourceLang = None,
    target_lang: TargetLang = None,
    beam: TaskBeam = None,
    as_json: Json = False,
    allow_pickle: Pickle = False,
) -> None:
    """How well a model predicts texts, masked tokens or targets, solves what it was fine-tuned for, or benchmarks."""
    from lmkit.ops import scores

    plain = lambda value: (list(value) or None) if isinstance(value, list | tuple) else value
    settings = {name: plain(value) for name, value in context.params.items() if name not in SHOWING}
    settings["changes"] = options.task_changes(labels, source_lang=source_lang, target_lang=target_lang, beam=beam)
    if again is not None:
        scores.evaluate_again(again, as_json)
    else:
        scores.evaluate(settings, as_json)
