"""`lmkit sweep`: one recipe under several settings, and which of them is best."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmkit.base.errors import STOPPED_RESUMABLE, UserError
from lmkit.commands.app import app
from lmkit.commands.options import Json

if TYPE_CHECKING:
    from lmkit.ops.sweep import Sweep

METHODS = ("grid", "random", "halving")


@app.command(epilog="Example: lmkit sweep demo optimizer.lr=1e-3,3e-3,1e-2 train.seed=0..2 --budget '1 h'")
def sweep(
    recipe: Annotated[
        str | None, typer.Argument(help="A .yaml file, the name of a built-in recipe, or a run; or leave it out.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUES]...", help="Keys with one value, or several: A,B,C or 0..2."),
    ] = None,
    method: Annotated[str, typer.Option(help=f"How trials are chosen: {', '.join(METHODS)}.")] = "grid",
    trials: Annotated[int, typer.Option("--trials", min=1, help="random and halving: how many are drawn.")] = 9,
    seed: Annotated[int, typer.Option(help="random and halving: what the draws begin with.")] = 0,
    budget: Annotated[
        str | None, typer.Option(help="Of the whole sweep, like '1 h'; else each trial has that of the recipe.")
    ] = None,
    metric: Annotated[str, typer.Option(help="What trials are compared by. Default: what runs choose theirs by.")] = "",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trials at once, which share the cores.")] = 1,
    rates: Annotated[bool, typer.Option("--rates", help="Three short runs or a few more, to find a rate.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Its folder. Default: runs/sweep-RECIPE.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="SWEEP", help="Go on with this sweep.")] = None,
    trial: Annotated[int | None, typer.Option("--trial", help="With --resume: run this trial alone.")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Start nothing; print a script for a Slurm array.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train one recipe under several settings, each a run of its own, and tell which is best. Resumable."""
    from lmkit.ops.sweep import Sweep, conclude, run_sweep, run_trials, slurm_script

    if resume is not None:
        if recipe or out or rates:
            raise UserError("--resume goes on with a sweep as it is\n  → leave out everything but --jobs")
        planned = Sweep.read(resume)
    elif trial is not None:
        raise UserError("--trial: of which sweep?\n  → --resume SWEEP")
    else:
        planned = _planned(recipe, changes or [], method, trials, seed, budget, metric, jobs, rates, out)
    if slurm and planned.method in ("halving", "rates"):
        raise UserError(f"--slurm: trials of {planned.method} depend on each other\n  → --method grid or random")
    if resume is None:
        planned.write()
    if slurm:
        print(slurm_script(planned, jobs), end="")
        return
    if trial is not None:
        if not 0 <= trial < len(planned.trials):
            raise UserError(f"--trial {trial}: not there\n  allowed: 0 to {len(planned.trials) - 1}")
        raise typer.Exit(0 if run_trials(planned, [planned.trials[trial]], 1, 1.0) else STOPPED_RESUMABLE)
    if not run_sweep(planned, jobs):
        print(f"stopped; what ran is saved\n  → lmkit sweep --resume {shlex.quote(str(planned.path))}")
        raise typer.Exit(STOPPED_RESUMABLE)
    rows, files = conclude(planned)
    if as_json:
        print(json.dumps({"results": rows, "files": [str(file) for file in files]}))
        return
    _print_results(planned, rows, files)


def _print_results(planned: "Sweep", rows: list[dict[str, Any]], files: list[Path]) -> None:
    from lmkit.report.comparison import ranking, which_is_best
    from lmkit.report.record import RunRecord

    for row in rows:
        spread = f" ± {row['deviation']:.4f}" if row["deviation"] is not None else ""
        score = f"{row['metric']} {row['mean']:.4f}{spread}" if row["mean"] is not None else "/".join(row["states"])
        print(f"{score:<32} {shlex.join(row['changes']) or 'no change'}   {', '.join(row['runs'])}")
    if planned.fixed:
        print(f"  in all   {shlex.join(planned.fixed)}")
    records = [RunRecord(planned.path / run) for row in rows for run in row["runs"]]
    begun = [record for record in records if record.recipe]
    if best := which_is_best(ranking(begun, planned.metric)):
        print(f"  verdict  {best}")
    for file in files:
        print(f"  {file.stem:<8} {file}")
    if rows and rows[0]["mean"] is not None:
        again = [planned.recipe or "", *planned.fixed, *rows[0]["changes"]]
        print(f"  next     lmkit {planned.verb} {shlex.join(filter(None, again))}")


def _planned(
    recipe: str | None, changes: list[str], method: str, trials: int, seed: int, budget: str | None, metric: str,
    jobs: int, rates: bool, out: Path | None,
) -> "Sweep":  # fmt: skip
    """Returns a new sweep. A mistake in a recipe ends here, before anything is written."""
    from lmkit.ops.sweep import FILE, Sweep, budget_of_trial, draws, grid, is_swept, rungs

    if recipe is not None and "=" in recipe:
        changes, recipe = [recipe, *changes], None
    if method not in METHODS:
        raise UserError(f"--method {method}: not known\n  allowed: {', '.join(METHODS)}")
    swept, fixed = [c for c in changes if is_swept(c)], [c for c in changes if not is_swept(c)]
    if rates == bool(swept):
        way = "leave out the values, or --rates" if rates else "KEY=A,B,C, or --rates"
        raise UserError(f"which settings are to be tried?\n  → {way}")
    chosen_trials = [] if rates else grid(swept) if method == "grid" else draws(swept, trials, seed)
    verb, name, own_budget = _checked(recipe, fixed, [t.changes for t in chosen_trials] or [()])
    path = out or Path("runs") / f"sweep-{name}"
    if (path / FILE).exists():
        raise UserError(f"{path}: holds a sweep already\n  → lmkit sweep --resume {path}, or another --out")
    method, metric = "rates" if rates else method, metric.removeprefix("val_")
    planned = Sweep(path, verb, recipe, tuple(fixed), method, metric, trials=chosen_trials)
    sizes = rungs(len(chosen_trials)) if method == "halving" else [len(chosen_trials) or 3]
    if budget or rates:
        planned.budget = budget_of_trial(budget or "3 min", sizes, jobs)
    elif method == "halving":
        planned.budget = own_budget
    return planned


def _checked(recipe: str | None, fixed: list[str], trials: Sequence[tuple[str, ...]]) -> tuple[str, str, str]:
    """Returns the verb that trains the recipe, its name, and its budget. Raises UserError where the recipe of a trial
    is wrong."""
    from lmkit.recipe.either import load, verb_of
    from lmkit.recipe.recipe_file import as_tree, find_recipe

    path = find_recipe(recipe) if recipe else None
    loaded = [load(path, (*fixed, *changes)) for changes in trials]
    verb = verb_of(as_tree(loaded[0]))
    return verb, path.stem if path else loaded[0].task.name, loaded[0].train.budget
