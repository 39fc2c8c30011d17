"""The application that the commands of this package are added to. Commands import inside them what takes time to load,
so `--help` and a typo in a recipe never wait for torch."""

import re
from typing import Annotated

import typer
from typer.core import TyperGroup

from lmkit.base.errors import say

# Options of `generate` that became commands, and those that went there with them.
ALIASES = {"--chat": "chat", "--system": "chat", "--images": "draw", "--keep": "draw", "--kb": "answer"}


class WithAliases(TyperGroup):
    """`lmkit generate MODEL --chat` and its kin mean the commands that they became."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        given = {argument.partition("=")[0] for argument in args}
        option = next((option for option in ALIASES if option in given), None)
        if args[:1] == ["generate"] and option is not None:
            say(f"generate {option} is the command `lmkit {ALIASES[option]}` now")
            args = [ALIASES[option], *(arg for arg in args[1:] if arg != "--chat")]
        return super().parse_args(ctx, args)


class FirstByDefault(TyperGroup):
    """The first command of a group is meant where none is named: `lmkit runs FOLDER` is `lmkit runs list FOLDER`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=WithAliases,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich help costs 0.1 s of imports
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, evaluate and sample Transformer language models.",
    epilog="Example: lmkit recipes",
)


def in_options(message: str, command_name: str) -> str:
    """Returns an error message of this command, in which keys of `data` are called by the command's options where it
    takes no KEY=VALUE."""
    command = typer.main.get_command(app).commands.get(command_name)  # type: ignore[attr-defined]
    inner = getattr(command, "commands", {}).values()
    names = {option.name for one in (command, *inner) for option in one.params} if command else set()
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
