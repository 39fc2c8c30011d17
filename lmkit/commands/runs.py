"""`lmkit runs`: what was trained, how far, how well; `runs reproduce`: how to have it again."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lmkit.base.errors import CONTROL, UserError
from lmkit.base.runs import is_in_use, read_status
from lmkit.base.units import show_count
from lmkit.commands.app import app
from lmkit.commands.options import Json


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
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder\n  → lmkit runs FOLDER, or `lmkit pretrain demo` makes runs/demo")
    statuses = [*folder.glob("*/status.json"), *folder.glob("*/seed-*/status.json")]
    statuses = [p for p in statuses if not any(x.is_symlink() for x in p.parents)]  # `latest` would come twice
    rows = [facts_of_run(p.parent) for p in sorted(statuses, key=lambda p: p.stat().st_mtime)]
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print_table(folder, rows)


@runs_app.command(name="reproduce", epilog="Example: lmkit runs reproduce runs/demo")
def runs_reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Print the commands that make a run again, and what is not as it was: versions, code, data, machine."""
    from lmkit.ops import reproduce

    reproduce.print_reproduction(run, as_json)


def _print_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    longest = max((len(row["run"]) for row in rows), default=1)  # a name that is cut is no name for --resume
    for column in ("run", "model", "tokens", "step", "best score", "state"):
        left, width = column in ("run", "model", "state"), longest if column == "run" else None
        table.add_column(column, justify="left" if left else "right", min_width=width)
    for row in rows:
        tokens = show_count(row["tokens"]) if row["tokens"] is not None else "-"
        best = row["best"] if isinstance(row["best"], dict) else {}
        name = next((key for key in best if key != "step"), None)
        shown = "-" if name is None else f"{name.removeprefix('val_')} {best[name]:.4f}"
        table.add_row(
            escape(row["run"].translate(CONTROL)),
            escape(row["model"].translate(CONTROL)),
            tokens,
            str(row["step"]),
            shown,
            row["state"],
        )
    Console(soft_wrap=True).print(table if rows else f"no runs in {escape(str(folder))}")


def facts_of_run(run: Path) -> dict[str, Any]:
    """Returns the facts of a run, read from the files of its directory alone."""
    from lmkit.recipe.recipe_file import parse_yaml

    status, recipe = read_status(run), dict[str, Any]()
    with suppress(OSError, ValueError, UserError):  # what a person or a crash has damaged hides no other run
        parsed = parse_yaml((run / "recipe.yaml").read_text(), str(run / "recipe.yaml"))
        recipe = parsed if isinstance(parsed, dict) else {}
    model = recipe.get("model", {})
    if isinstance(model, str):  # fine-tuned: from where
        task = recipe.get("task")
        sizes = f"{task.get('name', '?') if isinstance(task, dict) else '?'}: {Path(model).name}"
    else:
        model = model if isinstance(model, dict) else {}
        sizes = f"{model.get('family', '?')} {model.get('num_layers', '?')}×{model.get('hidden_size', '?')}"
    facts = {k: status.get(k) for k in ("state", "step", "tokens", "best", "time", "reason")}
    if facts["state"] == "running" and not is_in_use(run):
        facts["state"] = "killed"  # which nobody could write down
    return {"run": str(run), "model": sizes, **facts}
