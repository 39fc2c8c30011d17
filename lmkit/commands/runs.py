"""`lmkit runs`: what was trained, how far, how well."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmkit.base.errors import CONTROL, UserError
from lmkit.base.runs import read_status
from lmkit.base.units import show_count
from lmkit.recipe.recipe_file import parse_yaml


def run(folder: Path, as_json: bool) -> None:
    """Prints one line a run, newest last. Raises UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder\n  → lmkit runs FOLDER, or `lmkit pretrain demo` makes runs/demo")
    found_in = [*folder.glob("*/status.json"), *folder.glob("*/seed-*/status.json")]
    states = [p for p in found_in if not any(x.is_symlink() for x in p.parents)]  # `latest` would come twice
    found = [describe(p.parent) for p in sorted(states, key=lambda p: p.stat().st_mtime)]
    if as_json:
        for row in found:
            print(json.dumps(row))
        return
    table = Table(box=None, pad_edge=False)
    longest = max((len(row["run"]) for row in found), default=1)  # a name that is cut is no name for --resume
    for column in ("run", "model", "tokens", "step", "best score", "state"):
        left, width = column in ("run", "model", "state"), longest if column == "run" else None
        table.add_column(column, justify="left" if left else "right", min_width=width)
    for row in found:
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
    Console(soft_wrap=True).print(table if found else f"no runs in {escape(str(folder))}")


def describe(run: Path) -> dict[str, Any]:
    """From the files of a run directory alone."""
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
    return {"run": str(run), "model": sizes, **facts}
