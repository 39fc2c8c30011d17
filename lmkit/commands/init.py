"""`lmkit init`: asks what data and what goal, looks at the data, and writes a recipe."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lmkit.base.errors import DataError, UserError
from lmkit.commands.app import app
from lmkit.commands.options import Column, Label, Pair, Target


@app.command(epilog="Example: lmkit init classify --data reviews.csv --model runs/bert-tiny")
def init(
    goal: Annotated[
        str | None,
        typer.Argument(help="pretrain, continue, classify, tag, qa, translate, summarize or chat.", metavar="[GOAL]"),
    ] = None,
    goal_option: Annotated[str | None, typer.Option("--goal", help="The same, as an option.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Files, folders or globs. Repeatable.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A run or folder to start from; pretrain: a published size.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the recipe goes.")] = Path(
        "recipe.yaml"
    ),
    budget: Annotated[str | None, typer.Option("--budget", help="How long: '10 min', '3 epochs', '500 steps'.")] = None,
    text: Column = None,
    pair: Pair = None,
    label: Label = None,
    target: Target = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a recipe for your data and your goal, with comments that say why."""
    from lmkit.base.files import write_atomic
    from lmkit.ops.drafting import GOALS, Wish, check_goal, draft, look

    if out.exists() and not force:
        raise UserError(f"{out}: there is such a file already\n  → another --out, or --force")
    if goal and goal_option and goal != goal_option:
        raise UserError(f"{goal}, and --goal {goal_option}: two goals\n  → leave one out")
    goal = goal or goal_option
    asks = not yes and sys.stdin.isatty()
    if not asks and (not data or not goal):
        missing = [] if goal else [f"--goal {'|'.join(GOALS)}"]
        missing += [] if data else ["--data FILE"]
        raise UserError(f"the data and the goal must be known, and there is nobody to ask\n  → {' '.join(missing)}")
    if not data:
        data = shlex.split(typer.prompt("Data (files, folders or globs)", err=True))
    if not goal:
        typer.echo("".join(f"  {name:<10} {g.meaning}\n" for name, g in GOALS.items()), err=True, nl=False)
        goal = str(typer.prompt("Goal", err=True))
    needs_model = check_goal(goal).size is None
    if asks and model is None and goal != "pretrain":
        model = typer.prompt(f"Model to start from{'' if needs_model else ' (empty: a new one)'}", "", err=True) or None
    named = {"text": text, "pair": pair, "label": label, "target": target}
    columns = {key: column for key, column in named.items() if column is not None}
    wish = Wish(goal, data, out, model, budget, columns)
    try:
        seen = look(wish)
    except DataError as e:
        if not asks or "data." not in str(e):
            raise
        typer.echo(str(e), err=True)
        words = shlex.split(typer.prompt("Columns (as text=NAME label=NAME)", err=True))
        columns |= dict(word.removeprefix("data.").split("=", 1) for word in words if "=" in word)
        seen = look(wish)
    typer.echo(f"{', '.join(data)}: {seen.summary}", err=True)
    content = draft(wish, seen)
    write_atomic(out, content)
    verb = content.split(maxsplit=3)[2]
    print(f"wrote {out}\nnext  lmkit {verb} {shlex.quote(str(out))} --dry-run    (without --dry-run it trains)")
