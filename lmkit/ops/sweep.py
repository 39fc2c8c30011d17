"""`lmkit sweep`: the runs of one recipe under several settings, as processes; which is best, and the recipe of it.

A sweep is a folder: sweep.json says what was asked, and each trial is a run directory beside it. What has been done is
read from those runs, so a sweep that is killed goes on where it was."""

import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.base.display import Meter, note
from lmkit.base.environment import usable_cores
from lmkit.base.errors import UserError
from lmkit.base.files import write_atomic, write_json
from lmkit.base.units import SECONDS, brief, split_quantity
from lmkit.report.comparison import LOWER, best_first, deciding, loss_of, score_of, summary
from lmkit.report.page import report_page
from lmkit.report.record import SWEEP as FILE
from lmkit.report.record import RunRecord
from lmkit.training.distributed import launch

ETA = 3  # successive halving keeps a third of the trials, and gives each of them three times as much
RATES = ("lr", "embedding_lr", "head_lr")
MOST_RATES = 7  # trials in the search for a rate
OVER = ("done", "diverged")  # states of runs that are not taken up again
POLL = 0.2  # seconds between two looks at the processes


@dataclass(frozen=True)
class Trial:
    name: str  # of its folder
    changes: tuple[str, ...]  # KEY=VALUE, beside those of the whole sweep
    rung: int = 0  # of successive halving, the cheapest first


@dataclass
class Sweep:
    """What was asked for. fixed: changes of the recipe in all trials. budget: of one trial in the last rung; None is
    that of the recipe."""

    path: Path
    verb: str
    recipe: str | None
    fixed: tuple[str, ...]
    method: str  # grid, random, halving or rates
    metric: str = ""  # "": what the runs choose their best checkpoint by
    budget: str | None = None
    trials: list[Trial] = field(default_factory=list)

    def write(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / FILE, asdict(self) | {"path": "."})

    @classmethod
    def read(cls, path: Path) -> "Sweep":
        """Raises UserError for a folder without a sweep."""
        try:
            facts = json.loads((path / FILE).read_text())
            trials = [Trial(t["name"], tuple(t["changes"]), t["rung"]) for t in facts.pop("trials")]
            return cls(**facts | {"path": path, "fixed": tuple(facts["fixed"]), "trials": trials})
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path}: no sweep lies here ({brief(str(e))})\n  → lmkit sweep RECIPE KEY=A,B") from None

    def record(self, trial: Trial) -> RunRecord:
        return RunRecord(self.path / trial.name)

    def score(self, trial: Trial) -> float | None:
        """Returns the score that trials are compared by; None where there is none, or it is no number."""
        return score_of(self.record(trial), self.metric)

    def ranked(self, rung: int) -> list[Trial]:
        """Returns the trials of a rung that have a score, best first."""
        scored = [(score, t) for t in self.trials if t.rung == rung and (score := self.score(t)) is not None]
        name = self.metric or next((deciding(self.record(t)) for _, t in scored), "")
        sign = 1 if name in LOWER else -1
        return [t for _, t in sorted(scored, key=lambda pair: (sign * pair[0], loss_of(self.record(pair[1]))))]


# ---------------------------------------------------------------- trials


def grid(swept: Sequence[str]) -> list[Trial]:
    """Returns a trial for each combination of values. swept: like `optimizer.lr=1e-3,3e-3` and `train.seed=0..2`."""
    keys = [change.partition("=")[0] for change in swept]
    values = [_listed(change) for change in swept]
    return [_trial(i, [f"{k}={v}" for k, v in zip(keys, one, strict=True)]) for i, one in enumerate(product(*values))]


def draws(swept: Sequence[str], number: int, seed: int) -> list[Trial]:
    """Returns so many trials with values drawn at random: evenly from lists; between the ends of `1e-4..1e-2` evenly in
    their logarithm, where both are above 0 and not whole."""
    rng = np.random.default_rng(seed)
    return [_trial(i, [f"{change.partition('=')[0]}={_drawn(change, rng)}" for change in swept]) for i in range(number)]


def _trial(number: int, changes: Sequence[str], rung: int = 0) -> Trial:
    parts = (change.partition("=") for change in changes)
    label = "-".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in parts)
    name = f"{number:03d}-{re.sub(r'[^A-Za-z0-9.=+-]+', '_', label)[:60]}"
    return Trial(f"rung{rung}-{name}" if rung else name, tuple(changes), rung)


def _split(change: str) -> list[str]:
    """Returns the values of a change, cut at commas that stand in no bracket or quotation."""
    values, depth, quoted = [""], 0, ""
    for c in change.partition("=")[2]:
        if c in "\"'":
            quoted = "" if c == quoted else quoted or c
        depth += (c in "[{(") - (c in "]})") if not quoted else 0
        if c == "," and not depth and not quoted:
            values.append("")
        else:
            values[-1] += c
    return [value.strip() for value in values]


def _ends(value: str) -> tuple[float, float] | None:
    ends = re.fullmatch(r"([-+.\deE]+?)\.\.([-+.\deE]+)", value)
    with suppress(ValueError):
        return (float(ends[1]), float(ends[2])) if ends else None
    return None


def is_swept(change: str) -> bool:
    """Says whether a change has several values."""
    values = _split(change)
    return len(values) > 1 or _ends(values[0]) is not None


def _listed(change: str) -> list[str]:
    """Returns the values of a change. Raises UserError for a range of numbers that are not whole."""
    listed = []
    for value in _split(change):
        ends = _ends(value)
        if ends is None:
            listed.append(value)
        elif all(end.is_integer() for end in ends):
            listed += [str(n) for n in range(int(ends[0]), int(ends[1]) + 1)]
        else:
            raise UserError(f"{change}: a grid needs values\n  → {change.partition('=')[0]}=A,B,C, or --method random")
    return listed


def _drawn(change: str, rng: np.random.Generator) -> str:
    values = _split(change)
    ends = _ends(values[0]) if len(values) == 1 else None
    if ends is None or all(end.is_integer() for end in ends):
        listed = _listed(change)
        return listed[rng.integers(len(listed))]
    low, high = ends
    drawn = math.exp(rng.uniform(math.log(low), math.log(high))) if low > 0 else rng.uniform(low, high)
    return f"{drawn:.4g}"


def rungs(trials: int) -> list[int]:
    """Returns how many trials each rung of successive halving has (Jamieson and Talwalkar 2016), the first first."""
    sizes = [trials]
    while sizes[-1] > 1:
        sizes.append(max(1, sizes[-1] // ETA))
    return sizes


def budget_of_trial(total: str, sizes: Sequence[int], jobs: int) -> str:
    """Returns the budget of a trial in the last rung, so that all trials together take `total`; a time is that of the
    clock, in which so many jobs run at once. Raises UserError for a budget that is none."""
    try:
        number, unit = split_quantity(total)
    except ValueError as e:
        raise UserError(f"--budget {total}: {e}") from None
    trials = sum(size / ETA ** (len(sizes) - 1 - rung) for rung, size in enumerate(sizes))
    return scaled(f"{number} {unit}", (jobs if unit in SECONDS else 1) / trials)


def scaled(budget: str, factor: float) -> str:
    number, unit = split_quantity(budget)
    number *= factor
    shown = f"{number:.4g}" if unit in SECONDS or unit == "epoch" else str(max(1, round(number)))
    return f"{shown} {unit}".strip()


# ---------------------------------------------------------------- running


def run_sweep(sweep: Sweep, jobs: int) -> bool:
    """Runs what is not done yet. Returns whether all of it is; False where it was stopped by a signal."""
    if sweep.method == "rates":
        return _run_rates(sweep)
    first = [t for t in sweep.trials if t.rung == 0]
    sizes = rungs(len(first)) if sweep.method == "halving" else [len(first)]
    for rung, size in enumerate(sizes):
        if rung and not any(t.rung == rung for t in sweep.trials):
            best = sweep.ranked(rung - 1)[:size]
            sweep.trials += [_trial(i, t.changes, rung) for i, t in enumerate(best)]
            sweep.write()
        share = ETA ** (rung - len(sizes) + 1)
        if not run_trials(sweep, [t for t in sweep.trials if t.rung == rung], jobs, share):
            return False
    return True


def _run_rates(sweep: Sweep) -> bool:
    """Runs the default rates, a third of them and three times them; and further on a side while that is best."""
    if not sweep.trials:
        sweep.trials = [Trial("000-default", ())]
        sweep.write()
    while True:
        if not run_trials(sweep, sweep.trials, 1, 1.0):
            return False
        optimizer = sweep.record(sweep.trials[0]).recipe.get("optimizer", {})
        rates = {key: optimizer[key] for key in RATES if isinstance(optimizer.get(key), int | float)}
        powers = {_power(t, rates): t for t in sweep.trials}
        ranked = [_power(t, rates) for t in sweep.ranked(0)]
        wanted = {-1, 1} if not ranked else {ranked[0] - 1, ranked[0] + 1}
        new = sorted(p for p in wanted if p not in powers)
        if not rates or not new or len(sweep.trials) >= MOST_RATES:
            return True
        for power in new:
            changes = [f"optimizer.{key}={rate * 3.0**power:.4g}" for key, rate in rates.items()]
            sweep.trials.append(_trial(len(sweep.trials), changes))
        sweep.write()


def _power(trial: Trial, rates: dict[str, float]) -> int:
    """Returns the power of three by which a trial multiplies the default rates."""
    changed = dict(change.removeprefix("optimizer.").split("=") for change in trial.changes)
    return next((round(math.log(float(changed[key]) / rate, 3)) for key, rate in rates.items() if key in changed), 0)


def run_trials(sweep: Sweep, trials: Sequence[Trial], jobs: int, share: float) -> bool:
    """Runs trials as processes, at most so many at once. share: of the budget that each gets. Returns whether all came
    to an end, or False where a signal stopped them."""
    waiting = [t for t in trials if sweep.record(t).state not in OVER]
    running: dict[str, subprocess.Popen[bytes]] = {}
    began, lengths = dict[str, float](), list[float]()  # of the trials, in seconds
    finished = len(trials) - len(waiting)
    with Meter("sweep", len(trials)) as meter, _until_stopped() as stop:
        while (waiting or running) and not stop:
            while waiting and len(running) < jobs:
                trial = waiting.pop(0)
                running[trial.name], began[trial.name] = _start(sweep, trial, jobs, share), time.monotonic()
            time.sleep(POLL)
            for trial in [t for t in trials if t.name in running and running[t.name].poll() is not None]:
                finished += 1
                lengths.append(time.monotonic() - began[trial.name])
                meter.line(_outcome(sweep, trial, running.pop(trial.name).returncode))
            ages = [time.monotonic() - began[name] for name in running]
            meter.update(finished + parts_done(ages, lengths), f"{finished} of {len(trials)} trials")
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return not stop


def parts_done(ages: Sequence[float], lengths: Sequence[float]) -> float:
    """Returns how many trials the running ones amount to, by their ages and how long those before took, in seconds."""
    mean = statistics.fmean(lengths) if lengths else math.inf
    return sum(min(age / mean, 1.0) for age in ages)


def _start(sweep: Sweep, trial: Trial, jobs: int, share: float) -> subprocess.Popen[bytes]:
    folder = sweep.path / trial.name
    command = [sys.executable, "-m", "lmkit", sweep.verb]
    if (folder / "recipe.yaml").exists():
        command += ["--resume", str(folder)]
    else:
        budget = [f"train.budget={scaled(sweep.budget, share)}"] if sweep.budget else []
        recipe = [sweep.recipe] if sweep.recipe else []
        command += [*recipe, *sweep.fixed, *trial.changes, *budget, "--out", str(folder)]
    environment = {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))} | os.environ
    with (sweep.path / f"{trial.name}.log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
            preexec_fn=launch.die_with_parent,
        )  # fmt: skip


def _outcome(sweep: Sweep, trial: Trial, code: int) -> str:
    if code and sweep.record(trial).state not in OVER:
        log = sweep.path / f"{trial.name}.log"
        lines = log.read_text(errors="replace").strip().splitlines()
        last = next((line for line in reversed(lines) if line.startswith("lmkit")), lines[-1] if lines else "")
        return f"{trial.name}: failed with exit code {code}: {brief(last, 120)} ({log})"
    score = sweep.score(trial)
    name = sweep.metric or deciding(sweep.record(trial))
    return f"{trial.name}: {name} {score:.4f}" if score is not None else f"{trial.name}: no {name}"


@contextmanager
def _until_stopped() -> Iterator[list[int]]:
    """Yields a list that gets the number of a signal that asks to stop."""
    stop: list[int] = []
    before = {s: signal.signal(s, lambda number, _: stop.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- results


def results(sweep: Sweep) -> list[dict[str, Any]]:
    """Returns the trials of the last rung, best first, those that differ in their seed alone as one: their changes,
    scores, mean, standard deviation (of several) and runs. Those without a score come last."""
    last = max((t.rung for t in sweep.trials), default=0)
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in [*sweep.ranked(last), *(t for t in sweep.trials if t.rung == last and sweep.score(t) is None)]:
        changes = tuple(change for change in trial.changes if not change.startswith("train.seed="))
        groups.setdefault(changes, []).append(trial)
    records = {changes: [sweep.record(t) for t in trials] for changes, trials in groups.items()}
    return best_first([{"changes": list(c)} | summary(runs, sweep.metric) for c, runs in records.items()])


def conclude(sweep: Sweep) -> tuple[list[dict[str, Any]], list[Path]]:
    """Writes the results, the recipe of the best trial and a report of all. Returns the results and these files."""
    rows, files = results(sweep), [sweep.path / "results.json"]
    write_json(files[0], {"results": rows})
    if rows and rows[0]["mean"] is not None:
        best = sweep.path / rows[0]["runs"][0] / "recipe.yaml"
        changes = shlex.join(rows[0]["changes"]) or "no change"
        write_atomic(sweep.path / "best.yaml", f"# The best of a sweep: {changes}\n{best.read_text(encoding='utf-8')}")
        files.append(sweep.path / "best.yaml")
    records = [sweep.record(t) for t in sweep.trials if (sweep.path / t.name / "recipe.yaml").exists()]
    if records:
        write_atomic(sweep.path / "report.html", report_page(records, sweep.metric))
        files.append(sweep.path / "report.html")
    if failed := [t.name for t in sweep.trials if sweep.record(t).state not in OVER]:
        again = f"lmkit sweep --resume {shlex.quote(str(sweep.path))}"
        note(f"{len(failed)} trials came to no end, as {failed[0]}\n  → {again} tries them again")
    return rows, files


def slurm_script(sweep: Sweep, jobs: int) -> str:
    """Returns a batch script that runs each trial as a task of an array; more jobs than one limit how many at once."""
    path, limit = shlex.quote(str(sweep.path)), f"%{jobs}" if jobs > 1 else ""
    return "\n".join([
        "#!/bin/bash", f"#SBATCH --job-name={sweep.path.name}", f"#SBATCH --array=0-{len(sweep.trials) - 1}{limit}",
        "#SBATCH --signal=TERM@60  # a minute before the time is over: the run saves, and a resume goes on",
        f"#SBATCH --output={path}/slurm-%a.log",
        f"lmkit sweep --resume {path} --trial $SLURM_ARRAY_TASK_ID",
        f"# when all have ended: lmkit sweep --resume {path}", "",
    ])  # fmt: skip
