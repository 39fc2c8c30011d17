"""A run as its directory tells it: recipe, state, curves, scores, events. Nothing here imports torch or writes.

Whatever a crash or a person has damaged is left out, so that it does not hide the rest."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.base.errors import UserError
from lmkit.base.files import folder_bytes
from lmkit.base.runs import find_run, is_in_use, read_jsonl, read_status, seeds_of
from lmkit.base.units import seconds
from lmkit.recipe.recipe_file import parse_yaml

Curve = tuple[np.ndarray, np.ndarray]  # (points,) places on an axis, (points,) values
SWEEP = "sweep.json"  # says in a folder of runs that they are the trials of a sweep
AXES = ("step", "tokens", "time")  # that a curve may be drawn over; time is in seconds of training


@dataclass(frozen=True)
class RunRecord:
    """The files of one run directory, each read when it is asked for."""

    path: Path

    @property
    def name(self) -> str:
        is_one_of_seeds = self.path.name.startswith("seed-") and (self.path.parent / "recipe.yaml").is_file()
        return f"{self.path.parent.name}/{self.path.name}" if is_one_of_seeds else self.path.resolve().name

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe as a tree; {} where it cannot be read."""
        with suppress(OSError, ValueError, UserError):
            tree = parse_yaml((self.path / "recipe.yaml").read_text(encoding="utf-8"), str(self.path / "recipe.yaml"))
            return tree if isinstance(tree, dict) else {}
        return {}

    @cached_property
    def status(self) -> dict[str, Any]:
        return read_status(self.path)

    @property
    def state(self) -> str:
        """running, done, stopped, diverged, interrupted or failed; `killed` where a process ended without a word."""
        state = str(self.status.get("state", "not begun"))
        return "killed" if state == "running" and not is_in_use(self.path) else state

    @cached_property
    def environment(self) -> dict[str, Any]:
        return self._json("environment.json")

    @cached_property
    def scores(self) -> dict[str, Any]:
        """Scores of a fine-tuned model after training; {} where there are none."""
        return self._json("scores.json")

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.path / "events.jsonl"))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The held-out rows of a fine-tuned model, with what it says of each; [] where they were not kept."""
        return list(read_jsonl(self.path / "held_out.jsonl"))

    @property
    def introduced(self) -> dict[str, Any]:
        """What was told of data and model when the run began: `lines`, and of tables the `lengths` of their rows."""
        return next((event for event in self.events if event.get("event") == "introduced"), {})

    @property
    def task(self) -> str:
        """The objective or task by its name, as `causal_lm` or `classify`; `?` where the recipe does not say it."""
        task = self.recipe.get("task")
        return str(task.get("name", "?")) if isinstance(task, dict) else "?"

    @property
    def model(self) -> str:
        """A few words on the model: `llama 6×384`, or of fine-tuning `classify: minilm`."""
        model = self.recipe.get("model", {})
        if isinstance(model, str):  # where fine-tuning started from
            return f"{self.task}: {Path(model).name}"
        model = model if isinstance(model, dict) else {}
        return f"{model.get('family', '?')} {model.get('num_layers', '?')}×{model.get('hidden_size', '?')}"

    @property
    def best(self) -> dict[str, float]:
        """The scores of the best checkpoint during training, and its step; {} where nothing was scored."""
        best = self.status.get("best")
        return best if isinstance(best, dict) else {}

    @property
    def share_done(self) -> float | None:
        """How much of its budget is trained, from 0 to 1; None where that is not known."""
        if not len(self.columns.get("step", ())):
            return None
        if steps := self.status.get("horizon"):
            return min(1.0, float(self.columns["step"][-1]) / steps)
        with suppress(KeyError, TypeError, ValueError):
            return min(1.0, float(self.columns["seconds"][-1]) / seconds(self.recipe["train"]["budget"]))
        return None

    @property
    def verdict(self) -> list[str]:
        lines = self.status.get("verdict")
        return [str(line) for line in lines] if isinstance(lines, list) else []

    @cached_property
    def size(self) -> int:
        """Bytes of all files in the directory."""
        return folder_bytes(self.path)

    # ---- curves

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The numbers of metrics.jsonl by name, (steps,) each, NaN where a step has none; and `seconds` of training up
        to each step, and `tokens_per_second`, from timing.jsonl."""
        columns, timing = _numbers(self.path / "metrics.jsonl"), _numbers(self.path / "timing.jsonl")
        if not len(columns.get("step", ())) or not len(timing.get("step", ())):
            return columns
        passed = np.cumsum(np.nan_to_num(timing["seconds"]))
        columns["seconds"] = np.interp(columns["step"], timing["step"], passed)
        if len(columns["step"]) > 1:
            tokens, seconds = np.diff(columns["tokens"]), np.diff(columns["seconds"])
            with np.errstate(divide="ignore", invalid="ignore"):
                columns["tokens_per_second"] = np.concatenate(([math.nan], tokens / seconds))
        return columns

    def curve(self, name: str, axis: str = "step") -> Curve:
        """Returns the points of a column that are numbers. axis: one of AXES. Raises KeyError for an unknown column."""
        values, places = self.columns[name], self.columns.get("seconds" if axis == "time" else axis)
        if places is None:
            return np.empty(0), np.empty(0)
        is_number = np.isfinite(values) & np.isfinite(places)
        return places[is_number], values[is_number]

    @cached_property
    def samples(self) -> list[tuple[int, str]]:
        """The texts written during training, with their steps."""
        rows = read_jsonl(self.path / "samples.jsonl")
        return [(row["step"], str(row.get("sample"))) for row in rows if isinstance(row.get("step"), int)]

    def _json(self, name: str) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        return {}


def _numbers(log: Path) -> dict[str, np.ndarray]:
    """Returns the numbers of a log by name, (rows,) each, NaN where a row has none."""
    from pyarrow import ArrowInvalid, types
    from pyarrow import json as arrow

    if not log.is_file() or not log.stat().st_size:
        return {}
    try:  # ten times faster than Python's parser, and more strict
        table = arrow.read_json(log)
    except ArrowInvalid:
        rows = list(read_jsonl(log))
        names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value))
        return {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
    numeric = [f.name for f in table.schema if types.is_floating(f.type) or types.is_integer(f.type)]
    return {name: table[name].to_numpy().astype(float) for name in numeric}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else math.nan


def read_runs(paths: list[Path]) -> list[RunRecord]:
    """Returns the records of runs, each once; a run of several seeds stands for the run of each seed, and a sweep for
    those of its trials.

    Raises UserError for a path that is no run directory."""
    runs = [run for path in paths for run in (_trials_of(path) or seeds_of(find_run(path)) or [path])]
    return [RunRecord(run) for run in {run.resolve(): run for run in runs}.values()]


def sweep_metric(paths: list[Path]) -> str:
    """Returns what the trials of a sweep are compared by, where `paths` is one that was asked for a metric; else ""."""
    return str(RunRecord(paths[0])._json(SWEEP).get("metric") or "") if len(paths) == 1 else ""


def _trials_of(path: Path) -> list[Path]:
    """Returns the runs of a sweep; [] for another folder."""
    return sorted(p.parent for p in path.glob("*/recipe.yaml")) if (path / SWEEP).is_file() else []


def runs_in(folder: Path) -> Iterator[RunRecord]:
    """Yields the runs in a folder, and those of seeds and sweeps in it, oldest change first."""
    trials = [run / "status.json" for sweep in folder.glob(f"*/{SWEEP}") for run in _trials_of(sweep.parent)]
    statuses = [*folder.glob("*/status.json"), *folder.glob("*/seed-*/status.json"), *filter(Path.is_file, trials)]
    own = [p for p in statuses if not any(x.is_symlink() for x in p.parents)]  # `latest` would come twice
    for status in sorted(own, key=lambda p: p.stat().st_mtime):
        yield RunRecord(status.parent)
