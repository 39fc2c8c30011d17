"""`lmkit runs`, `recipes`: what there is."""

from pathlib import Path
from typing import Annotated

import typer

from lmkit.cli.app import Json, app


@app.command(epilog="Example: lmkit runs runs")
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List runs: model, tokens, best score, state."""
    from lmkit.commands import runs as command

    command.run(folder, as_json)


@app.command(epilog="Example: lmkit recipes demo")
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A recipe to print; `keys`: every key there is; `families`: published sizes.")
    ] = None,
) -> None:
    """List the built-in recipes, print one, explain every key, or list families and sizes."""
    from lmkit.commands import recipes as command

    command.run(name)
