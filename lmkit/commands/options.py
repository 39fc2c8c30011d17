"""The options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="A run, or a Hugging Face folder.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change, like train.budget='10 min'."),
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="Processes on this machine that share the work.")
]
Restarts = Annotated[
    int, typer.Option("--max-restarts", min=0, help="With --processes: start all again if one fails, so often.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load old .bin weights (weights only, nothing else runs).")
]
Text = Annotated[str, typer.Option("--text", help="Column or key of the text in .jsonl, .csv and .parquet.")]
Column = Annotated[str | None, typer.Option("--text", help="Column or key of the text; of pairs the sources.")]
Pair = Annotated[str | None, typer.Option("--pair", help="Column of the second text of a pair.")]
Label = Annotated[str | None, typer.Option("--label", help="Column or key of the label.")]
Data = Annotated[list[str], typer.Option("--data", "-d", help="Files, folders or globs. Repeatable.")]
TaskName = Annotated[str | None, typer.Option("--task", help="translate or summarize, for models without a run.")]
Target = Annotated[str | None, typer.Option("--target", help="Pairs: column, key or file ending of the target text.")]
Separator = Annotated[str | None, typer.Option("--separator", help="Text that ends a document inside .txt files.")]


def _named_path(path: str) -> Path:
    if not path:
        raise typer.BadParameter("the name is empty\n  → is a variable of the shell not set?")
    return Path(path)


def run_folder(default: str) -> Any:
    """The option that names a run directory; default: where it is otherwise."""
    return typer.Option("--out", "-o", metavar="PATH", parser=_named_path, help=f"Run directory. Default: {default}.")


# Of the commands that write: generate, chat, fill, draw, answer.
Prompt = Annotated[str | None, typer.Argument(help="The text to read; '-' or nothing reads standard input.")]
PromptFile = Annotated[Path | None, typer.Option("--file", "-f", help="Prompts, one a line.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Most tokens to add.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option("--top-k", help="Only the K likeliest tokens; 0: all. For masks: how many to list.")]
TopP = Annotated[float, typer.Option("--top-p", help="Only the likeliest tokens that make up this share.")]
MinP = Annotated[float, typer.Option("--min-p", help="Only tokens this likely, relative to the likeliest.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1 avoids repeats.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same text.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End before this text. Repeatable.")]
Stream = Annotated[bool | None, typer.Option("--stream/--no-stream", help="Print as it is written.")]
