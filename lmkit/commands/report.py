"""`lmkit report`: what runs came to, as one file to read and to pass on."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from lmkit.base.errors import UserError
from lmkit.base.files import write_atomic
from lmkit.commands.app import app


@app.command(epilog="Example: lmkit report runs/demo")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Where to write it.", show_default="report.html in the run, or here for several")
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help='Also write the curves as pictures beside it (needs "lmkit[plot]").')
    ] = False,
) -> None:
    """Write a report of runs: verdict, curves, scores, mistakes, samples, data, recipe. One HTML file, for offline."""
    from lmkit.report.page import report_page
    from lmkit.report.record import read_runs, sweep_metric

    records = read_runs(runs)
    file = out or (records[0].path / "report.html" if len(records) == 1 else Path("report.html"))
    if file.is_dir():
        raise UserError(f"--out {file}: is a folder\n  → --out {shlex.quote(str(file / 'report.html'))}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, report_page(records, sweep_metric(runs)))
    print(file)
    if png:
        from lmkit.report.pictures import write_pictures

        for picture in write_pictures(records, file):
            print(picture)
