"""Sweeps: which trials there are, which come into the next rung, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from scipy.stats import kstest

from lmkit.base.errors import STOPPED_RESUMABLE, UserError
from lmkit.base.runs import read_jsonl
from lmkit.ops import sweep
from lmkit.ops.sweep import (
    Sweep,
    budget_of_trial,
    conclude,
    draws,
    grid,
    is_swept,
    parts_done,
    results,
    run_sweep,
    rungs,
)
from tests.training.conftest import write_tiny


def test_a_grid_has_every_combination_once():
    trials = grid(["optimizer.lr=1e-3,3e-3", "train.seed=0..2", "optimizer.betas=[0.9,0.95],[0.9,0.99]"])
    assert len({t.changes for t in trials}) == len({t.name for t in trials}) == 12
    assert trials[-1].changes == ("optimizer.lr=3e-3", "train.seed=2", "optimizer.betas=[0.9,0.99]")
    assert [is_swept(c) for c in ("a=1", "a=[1,2]", "a='x,y'", "a=1,2", "a=0..3", "a=1e-4..1e-2")] == [False] * 3 + [
        True
    ] * 3
    with pytest.raises(UserError, match="--method random"):
        grid(["optimizer.lr=1e-4..1e-2"])


def test_rates_are_drawn_evenly_in_their_logarithm():
    values = [float(t.changes[0].partition("=")[2]) for t in draws(["optimizer.lr=1e-4..1e-2"], 3000, 0)]
    assert kstest(values, "loguniform", args=(1e-4, 1e-2)).pvalue > 0.01
    assert draws(["a=1..3"], 5, 1) == draws(["a=1..3"], 5, 1) != draws(["a=1..3"], 5, 2)


def test_a_budget_is_shared_by_all_trials():
    sizes = rungs(27)
    assert sizes == [27, 9, 3, 1]
    assert budget_of_trial("4 h", sizes, 2) == "2 h"  # four rungs of one hour of work each, on two jobs
    assert budget_of_trial("1M tokens", [8], 4) == "125000 token"
    with pytest.raises(UserError, match="--budget soon"):
        budget_of_trial("soon", [1], 1)


def test_a_running_trial_counts_by_its_age_beside_the_length_of_those_before():
    assert parts_done([4.0, 30.0], [10.0, 30.0]) == 0.2 + 1 and parts_done([4.0], []) == 0


@pytest.fixture
def pretended(monkeypatch):
    """Trials that end at once, with a loss that is how far their learning rate is from 0.01, in powers of ten."""
    import math

    started = []

    def start(of, trial, jobs, share):
        started.append((trial, share))
        folder = of.path / trial.name
        folder.mkdir(parents=True, exist_ok=True)
        changes = dict(c.split("=") for c in trial.changes)
        rate = float(changes.get("optimizer.lr", 1.0))
        (folder / "recipe.yaml").write_text(yaml.safe_dump({"optimizer": {"lr": rate}}))
        loss = abs(math.log10(rate / 0.01)) + 0.01 * int(changes.get("train.seed", 0))
        best = {"step": 1, "val_loss": loss if rate < 50 else None}
        (folder / "status.json").write_text(json.dumps({"state": "done" if rate < 50 else "diverged", "best": best}))
        return subprocess.Popen(["true"])

    monkeypatch.setattr(sweep, "_start", start)
    monkeypatch.setattr(sweep, "POLL", 0.01)
    return started


def test_halving_gives_the_better_third_three_times_as_much(pretended, tmp_path):
    rates = ["1e-5", "1e-4", "1e-3", "0.012", "0.1", "1", "10", "100", "0.3"]
    asked = Sweep(tmp_path / "s", "pretrain", None, (), "halving", trials=grid([f"optimizer.lr={','.join(rates)}"]))
    assert run_sweep(asked, 2) and [share for _, share in pretended] == [1 / 9] * 9 + [1 / 3] * 3 + [1] * 1
    assert {t.changes[0] for t, _ in pretended[9:12]} == {f"optimizer.lr={rate}" for rate in ("1e-3", "0.012", "0.1")}
    pretended.clear()
    again = Sweep.read(tmp_path / "s")  # all is done, so nothing runs again
    assert run_sweep(again, 2) and not pretended and again.trials == asked.trials
    (best,) = results(again)
    assert best["changes"] == ["optimizer.lr=0.012"] and best["runs"] == [asked.trials[-1].name]


def test_the_search_for_a_rate_goes_on_while_the_best_is_outermost(pretended, tmp_path):
    asked = Sweep(tmp_path / "s", "pretrain", None, (), "rates")
    assert run_sweep(asked, 1)
    tried = sorted(float(t.changes[0].split("=")[1]) if t.changes else 1.0 for t, _ in pretended)
    assert tried == pytest.approx([3.0**n for n in range(-5, 2)], rel=1e-3)
    assert results(asked)[0]["changes"] == ["optimizer.lr=0.01235"]


def test_seeds_are_one_result_and_a_diverged_trial_is_the_last(pretended, tmp_path):
    asked = Sweep(tmp_path / "s", "pretrain", None, (), "grid",
                  trials=grid(["optimizer.lr=100,0.01,0.1", "train.seed=0..2"]))  # fmt: skip
    assert run_sweep(asked, 3)
    rows, files = conclude(asked)
    assert [row["changes"] for row in rows] == [[f"optimizer.lr={rate}"] for rate in ("0.01", "0.1", "100")]
    assert rows[0]["mean"] == pytest.approx(0.01) and rows[0]["deviation"] == pytest.approx(0.01)
    assert rows[2]["mean"] is None and rows[2]["states"] == ["diverged"] * 3
    assert [file.name for file in files] == ["results.json", "best.yaml", "report.html"]


def test_equal_scores_are_told_apart_by_their_loss(pretended, tmp_path):
    asked = Sweep(tmp_path / "s", "finetune", None, (), "grid", "accuracy", trials=grid(["optimizer.lr=0.1,0.01"]))
    assert run_sweep(asked, 2)
    for trial in asked.trials:
        status = asked.path / trial.name / "status.json"
        facts = json.loads(status.read_text())
        status.write_text(json.dumps(facts | {"best": facts["best"] | {"val_accuracy": 1.0}}))
    assert [row["changes"] for row in results(asked)] == [["optimizer.lr=0.01"], ["optimizer.lr=0.1"]]


def test_a_stopped_sweep_goes_on_and_its_best_recipe_trains(tmp_path):
    write_tiny(tmp_path)
    environment = os.environ | {"LMKIT_CACHE": str(tmp_path / "cache"), "LMKIT_LOG_SECONDS": "0.1"}
    lmkit_ = lambda *a: [sys.executable, "-m", "lmkit", *a]
    first = subprocess.Popen(
        lmkit_("sweep", "tiny.yaml", "optimizer.lr=1e-3,0.03", "--out", "s"), cwd=tmp_path, env=environment,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    status = tmp_path / "s/000-lr=1e-3/status.json"
    while not status.exists() or json.loads(status.read_text())["state"] != "done":
        time.sleep(0.05)
        assert first.poll() is None
    written = status.stat().st_mtime_ns
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == STOPPED_RESUMABLE and "lmkit sweep --resume s" in first.stdout.read()
    second = subprocess.run(lmkit_("sweep", "--resume", "s", "--json"), cwd=tmp_path, env=environment,
                            capture_output=True, text=True, check=True)  # fmt: skip
    rows = json.loads(second.stdout)["results"]
    lowest = {run.name: min(r["val_loss"] for r in read_jsonl(run / "metrics.jsonl") if "val_loss" in r)
              for run in map(Path, (status.parent, tmp_path / "s/001-lr=0.03"))}  # fmt: skip
    assert {row["runs"][0]: row["mean"] for row in rows} == pytest.approx(lowest)
    assert status.stat().st_mtime_ns == written and [row["mean"] for row in rows] == sorted(lowest.values())
    best = yaml.safe_load((tmp_path / "s/best.yaml").read_text())
    assert f"lr={best['optimizer']['lr']:g}" in rows[0]["runs"][0].replace("1e-3", "0.001")
