"""The curves of runs as PNG files, for papers and slides."""

import re
from collections.abc import Sequence
from pathlib import Path

from lmkit.base.errors import UserError
from lmkit.report.page import charted, series
from lmkit.report.record import RunRecord


def write_pictures(runs: Sequence[RunRecord], beside: Path) -> list[Path]:
    """Writes a picture of each curve by step, beside a file and called after it. Returns their paths.

    Raises UserError where matplotlib is not there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('--png draws with matplotlib\n  → pip install "lmkit[plot]"') from None

    files = []
    for name, title in charted(runs).items():
        drawn = [s for s in series(runs, name, "step") if len(s.values) > 1]
        if not drawn:
            continue
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for s in drawn:
            axes.plot(s.places, s.values, label=s.name, linewidth=1.2)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        if len(drawn) > 1:
            axes.legend()
        file = beside.with_name(f"{beside.stem}-{re.sub(r'[^a-z0-9]+', '-', title.lower())}.png")
        figure.savefig(file, dpi=150)
        files.append(file)
    return files
