"""`lmkit runs`: what was trained, how far, how well; runs beside each other; their curves; and what to delete."""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmkit.base.errors import CONTROL, INTERRUPTED, STOPPED_RESUMABLE, Diverged, ProcessFailed, UserError
from lmkit.base.files import folder_bytes
from lmkit.base.runs import delete_run, find_run, spare_checkpoints
from lmkit.base.units import show_bytes, show_count, show_seconds
from lmkit.commands.app import FirstByDefault, app
from lmkit.commands.options import Json

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)]
Axis = Annotated[str, typer.Option("--by", help="step, tokens or time.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ENDS = {"stopped": STOPPED_RESUMABLE, "diverged": Diverged.exit_code, "interrupted": INTERRUPTED}  # exit codes of runs
SORTS = ("time", "size", "step", "tokens", "best", "run")


runs_app = typer.Typer(
    cls=FirstByDefault,
    help="List, show, compare, plot, watch and delete runs. `lmkit runs FOLDER` lists those in FOLDER.",
    epilog="Example: lmkit runs runs",
)
app.add_typer(runs_app, name="runs")


@runs_app.command(name="list", epilog="Example: lmkit runs list runs --state done --sort best")
def runs_list(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
    task: Annotated[str | None, typer.Option(help="Only runs of this task or objective, as classify.")] = None,
    state: Annotated[str | None, typer.Option(help="Only runs in this state, as done or killed.")] = None,
    sort: Annotated[str, typer.Option(help=f"{', '.join(SORTS)}: the least comes first.")] = "time",
    as_json: Json = False,
) -> None:
    """List runs: task, model, tokens, best score, state, age, size."""
    from lmkit.report.record import runs_in

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder\n  → lmkit runs FOLDER, or `lmkit pretrain demo` makes runs/demo")
    if sort not in SORTS:
        raise UserError(f"--sort {sort}: not known\n  allowed: {', '.join(SORTS)}")
    rows = [facts_of_run(run) for run in runs_in(folder)]
    rows = [row for row in rows if task in (None, row["task"]) and state in (None, row["state"])]
    if sort != "time":  # in which they come
        rows.sort(key=lambda row: _sortable(row[sort]))
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print_table(folder, rows)


@runs_app.command(name="show", epilog="Example: lmkit runs show runs/demo")
def runs_show(run: Run, as_json: Json = False) -> None:
    """Show one run: state, verdict, scores, cost, curve, events, and what to do next."""
    from lmkit.base.display import sparkline
    from lmkit.report import comparison
    from lmkit.report.page import events, next_step, said_score
    from lmkit.report.record import RunRecord

    record = RunRecord(find_run(run))
    facts = facts_of_run(record) | {
        "cost": comparison.cost(record), "scores": comparison.final_scores(record), "verdict": record.verdict,
        "events": {kind: len(places) for kind, places in events(record).items()}, "next": next_step(record),
    }  # fmt: skip
    if as_json:
        print(json.dumps(facts))
        return
    lines = [f"{record.path}   {record.model}   {record.task}   {record.state}"]
    lines += [f"  {record.status['reason']}"] if record.status.get("reason") else []
    lines.append(f"  cost     {_said_cost(facts['cost'])}")
    lines += [f"  {name.replace('_', ' '):<8} {said_score(score)}" for name, score in facts["scores"].items()]
    if "loss" in record.columns:
        values = record.curve("loss")[1]
        lines.append(f"  loss     {sparkline(values.tolist(), 40)}  {values[0]:.4g} → {values[-1]:.4g}")
    lines += [f"  standing {standing}"] if (standing := comparison.standing(record)) else []
    lines += [f"  verdict  {line.replace(chr(10), chr(10) + ' ' * 9)}" for line in record.verdict]
    lines += [f"  event    {kind}: {count}" for kind, count in facts["events"].items()]
    print("\n".join([*lines, f"  report   lmkit report {shlex.quote(str(run))}", f"  next     {facts['next']}"]))


@runs_app.command(name="compare", epilog="Example: lmkit runs compare runs/a runs/b")
def runs_compare(runs: Runs, as_json: Json = False) -> None:
    """Compare runs: the keys that differ, scores with paired tests where their rows were kept, and cost."""
    from lmkit.report import comparison
    from lmkit.report.page import said_score
    from lmkit.report.record import read_runs

    records = read_runs(runs)
    if len(records) < 2:
        raise UserError("compares two runs or more\n  → lmkit runs compare RUN RUN; lmkit runs show RUN for one")
    facts: dict[str, Any] = {
        "runs": [str(r.path) for r in records], "differences": comparison.differing_keys(records),
        "scores": [comparison.final_scores(r) for r in records], "costs": [comparison.cost(r) for r in records],
        "tests": comparison.tested(records),
    }  # fmt: skip
    if as_json:
        print(json.dumps(facts))
        return
    rows = [(key, *values) for key, values in facts["differences"].items()] or [("no key differs",)]
    names = dict.fromkeys(name for scores in facts["scores"] for name in scores)
    rows += [(name.replace("_", " "), *(said_score(s.get(name)) for s in facts["scores"])) for name in names]
    rows += [("cost", *map(_said_cost, facts["costs"]))]
    _print_grid(("", *(r.name for r in records)), rows, right=())
    best = comparison.which_is_best(comparison.ranking(records))
    print("\n".join([test["verdict"] for test in facts["tests"]] or [best]))


@runs_app.command(name="plot", epilog="Example: lmkit runs plot runs/a runs/b --metric val_loss --by tokens")
def runs_plot(
    runs: Runs,
    metric: Annotated[str, typer.Option(help="A column of metrics.jsonl, or tokens_per_second.")] = "loss",
    axis: Axis = "step",
) -> None:
    """Plot a curve of runs, over each other, in the terminal."""
    from lmkit.report.page import series
    from lmkit.report.record import AXES, read_runs
    from lmkit.report.terminal import plot

    records = read_runs(runs)
    if axis not in AXES:
        raise UserError(f"--by {axis}: not known\n  allowed: {', '.join(AXES)}")
    drawn = [s for s in series(records, metric, axis) if len(s.values)]
    if not drawn:
        names = sorted({name for r in records for name in r.columns} - {"step", "tokens", "seconds"})
        raise UserError(f"--metric {metric}: no run has it\n  allowed: {', '.join(names) or 'nothing yet'}")
    if len(drawn) < len(records):
        missing = [r.name for r in records if metric not in r.columns]
        typer.echo(f"without {metric}: {', '.join(missing)}", err=True)
    _console().print(plot(metric, drawn, axis), end="")


@runs_app.command(name="watch", epilog="Example: lmkit runs watch runs/demo")
def runs_watch(
    run: Run,
    metric: Annotated[str, typer.Option(help="The column of metrics.jsonl that is drawn.")] = "loss",
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
) -> None:
    """Watch a run from another shell, until it ends, and exit as it did. Elsewhere than on a terminal, a line for each
    change."""
    from rich.console import Group
    from rich.live import Live

    from lmkit.report.page import series
    from lmkit.report.record import RunRecord
    from lmkit.report.terminal import plot

    path, console = find_run(run), _console()
    with Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else _Lines() as live:
        while True:
            record = RunRecord(path)  # anew, since it keeps what it has read
            line = _progress(record)
            drawn = [s for s in series([record], metric, "step") if len(s.values) > 1]
            shown = Group(plot(metric, drawn, "step", min(console.width, 100)), line) if drawn else line
            live.update(shown if console.is_terminal else line, refresh=True)  # type: ignore[arg-type]
            if record.state != "running":
                break
            time.sleep(every)
    if record.state != "done":
        raise typer.Exit(record.status.get("exit_code") or ENDS.get(record.state, ProcessFailed.exit_code))


@runs_app.command(name="rm", epilog="Example: lmkit runs rm runs/demo")
def runs_rm(runs: Runs, yes: Yes = False) -> None:
    """Delete runs with all that is in their directories; asks first. A run in use is refused."""
    from lmkit.report.record import RunRecord

    records = {path: RunRecord(find_run(path)) for path in dict.fromkeys(runs)}
    sizes = sum(record.size for record in records.values())
    listed = "".join(f"\n  {path}  {show_bytes(record.size)}  {record.state}" for path, record in records.items())
    _agree(f"delete {len(records)} run{'s' if len(records) > 1 else ''}, {show_bytes(sizes)}:{listed}", yes)
    for path in records:
        delete_run(path)
    print(f"freed {show_bytes(sizes)}")


@runs_app.command(name="prune", epilog="Example: lmkit runs prune runs")
def runs_prune(
    folder: Annotated[Path, typer.Argument(help="A folder of runs, or a run.")] = Path("runs"), yes: Yes = False
) -> None:
    """Delete the checkpoints of finished runs but the best one, or the latest where none is best; asks first."""
    from lmkit.report.record import RunRecord, runs_in

    records = [RunRecord(folder)] if (folder / "recipe.yaml").is_file() else list(runs_in(folder))
    spare = {record.path: spare_checkpoints(record.path) for record in records if record.state == "done"}
    sizes = {path: sum(map(folder_bytes, folders)) for path, folders in spare.items() if folders}
    if not sizes:
        print(f"nothing to delete: no finished run in {folder} has a checkpoint beside the one to use")
        return
    listed = "".join(f"\n  {path}  {len(spare[path])} checkpoints, {show_bytes(n)}" for path, n in sizes.items())
    _agree(f"delete {show_bytes(sum(sizes.values()))}; these runs cannot be trained further then:{listed}", yes)
    for path in sizes:
        delete_run(path, spare[path])
    print(f"freed {show_bytes(sum(sizes.values()))}")


@runs_app.command(name="reproduce", epilog="Example: lmkit runs reproduce runs/demo")
def runs_reproduce(run: Run, as_json: Json = False) -> None:
    """Print the commands that make a run again, and what is not as it was: versions, code, data, machine."""
    from lmkit.ops import reproduce

    reproduce.print_reproduction(run, as_json)


# ---------------------------------------------------------------- what is shown


def facts_of_run(run: Any) -> dict[str, Any]:
    """Returns the facts of a run, read from the files of its directory alone. run: a RunRecord."""
    from lmkit.report.comparison import best_scores

    facts = {key: run.status.get(key) for key in ("step", "tokens", "time", "reason")}
    facts["best"] = best_scores(run) or None
    return {"run": str(run.path), "task": run.task, "model": run.model, "state": run.state, **facts, "size": run.size}


def _sortable(value: Any) -> tuple[bool, Any]:
    """Returns a key by which what is missing comes first."""
    if isinstance(value, dict):  # scores of the best checkpoint, the one that decided first
        value = next((score for name, score in value.items() if name != "step"), None)
    return (value is not None, value if value is not None else 0)


def _print_table(folder: Path, rows: list[dict[str, Any]]) -> None:
    if not rows:
        print(f"no runs in {folder}")
        return
    shown = []
    for row in rows:
        best = row["best"] if isinstance(row["best"], dict) else {}
        name = next((key for key in best if key != "step"), None)
        score = "-" if name is None else f"{name.removeprefix('val_')} {best[name]:.4f}"
        tokens = show_count(row["tokens"]) if row["tokens"] is not None else "-"
        age = _age(row["time"])
        shown.append(
            (row["run"], row["model"], tokens, str(row["step"]), score, row["state"], age, show_bytes(row["size"]))
        )
    columns = ("run", "model", "tokens", "step", "best score", "state", "age", "size")
    _print_grid(columns, shown, right=("tokens", "step", "best score", "age", "size"))


def _print_grid(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[str, ...]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    longest = max((len(row[0]) for row in rows), default=1)  # a name that is cut is no name for --resume
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if column in right else "left", min_width=None if i else longest)
    for row in rows:
        table.add_row(*(escape(cell.translate(CONTROL)) for cell in row))
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)


def _age(when: Any) -> str:
    """Returns how long ago a time in status.json is: `5 min`, `3 h`, `12 d`."""
    try:
        passed = time.time() - time.mktime(time.strptime(str(when)[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return "-"
    minutes = max(0, round(passed / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} d"


def _said_cost(cost: dict[str, float | None]) -> str:
    steps, tokens, seconds = cost["steps"] or 0, cost["tokens"] or 0, cost["seconds"]
    took = "" if seconds is None else f" in {show_seconds(seconds)}"
    return f"{steps:,} steps, {show_count(tokens)} tokens{took}, {show_bytes(cost['bytes'] or 0)}"


def _progress(run: Any) -> str:
    from lmkit.report.comparison import best_scores

    columns, share = run.columns, run.share_done
    last = {name: values[-1] for name, values in columns.items()}
    speed = last.get("tokens_per_second")
    more = f" tok/s {speed:,.0f}" if speed is not None and speed == speed else ""
    best = next((f" best {k.removeprefix('val_')} {v:.4f}" for k, v in best_scores(run).items() if k != "step"), "")
    if not last:
        return f"{run.state}: no step yet"
    done = "" if share is None else f" ({share:.0%})"
    if share and share < 1 and run.state == "running" and "seconds" in last:
        more += f" eta {show_seconds(last['seconds'] * (1 - share) / share)}"
    tokens = show_count(last["tokens"])
    return f"{run.state} step {last['step']:.0f}{done} tokens {tokens} loss {last['loss']:.4f}{more}{best}"


class _Lines:
    """Stands in for rich's Live where nothing can be drawn over: writes what has changed, a line each time."""

    line = ""

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *error: object) -> None: ...

    def update(self, line: str, refresh: bool) -> None:
        if line != self.line:
            print(line, flush=True)
        self.line = line


def _agree(what: str, yes: bool) -> None:
    """Asks whether something is to be deleted. Raises UserError where nobody can answer, and Abort for a no."""
    typer.echo(what, err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("nothing was deleted: there is nobody to ask\n  → --yes")
    typer.confirm("Delete?", abort=True, err=True)
