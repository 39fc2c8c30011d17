"""`lmkit runs`: what was trained; `runs reproduce`: how to have it again."""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from lmkit.cli.app import Json, app


class ListByDefault(TyperGroup):
    """`lmkit runs FOLDER` means `lmkit runs list FOLDER`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


runs_app = typer.Typer(
    cls=ListByDefault,
    help="List runs; say how to reproduce one. `lmkit runs FOLDER` lists those in FOLDER.",
    epilog="Example: lmkit runs runs",
)
app.add_typer(runs_app, name="runs")


@runs_app.command(name="list", epilog="Example: lmkit runs list runs")
def runs_list(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List runs: model, tokens, best score, state."""
    from lmkit.commands import runs as command

    command.run(folder, as_json)


@runs_app.command(name="reproduce", epilog="Example: lmkit runs reproduce runs/demo")
def runs_reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Print the commands that make a run again, and what is not as it was: versions, code, data, machine."""
    from lmkit.commands import reproduce as command

    command.run(run, as_json)
