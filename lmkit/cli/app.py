"""The application that the commands of this package are added to, and the options they share. Bodies of commands import
what they need, so `--help` and a typo in a recipe never wait for torch."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # rich help costs 0.1 s of imports
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, evaluate and sample Transformer language models.",
    epilog="Example: lmkit recipes",
)

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
Target = Annotated[str | None, typer.Option("--target", help="Pairs: column, key or file ending of the target text.")]
Separator = Annotated[str | None, typer.Option("--separator", help="Text that ends a document inside .txt files.")]


def _named_path(path: str) -> Path:
    if not path:
        raise typer.BadParameter("the name is empty\n  → is a variable of the shell not set?")
    return Path(path)


def run_folder(default: str) -> Any:
    """The option that names a run directory; default: where it is otherwise."""
    return typer.Option("--out", "-o", metavar="PATH", parser=_named_path, help=f"Run directory. Default: {default}.")


def in_options(message: str, command_name: str) -> str:
    """An error of this command, in which keys of `data` are named by its options where it takes no KEY=VALUE."""
    command = typer.main.get_command(app).commands.get(command_name)  # type: ignore[attr-defined]
    names = {option.name for option in command.params} if command else set()
    if "overrides" in names:
        return message
    for key in sorted(names & {"text", "pair", "label", "target", "separator", "validation"}):
        message = re.sub(rf"\bdata\.{key}=(?=\S)", f"--{key} ", message)
        message = re.sub(rf"\bdata\.{key}\b", f"--{key}", message)
    return message


def _show_version(asked: bool) -> None:
    if asked:
        from lmkit import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None: ...
