"""`lmkit runs` on run directories that were written by hand."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from lmkit.commands.main import app
from tests.report.test_report import STEPS, write_run


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one", "two")):
        write_run(tmp_path / "runs" / name, seed, optimizer={"lr": 0.1 * (seed + 1)})
        for step in (1, 2, 3):
            folder = tmp_path / f"runs/{name}/checkpoints/step-{step:08d}"
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(b"x" * 1000 * step)
        (tmp_path / f"runs/{name}/best").symlink_to("checkpoints/step-00000002")
        (tmp_path / f"runs/{name}/latest").symlink_to("checkpoints/step-00000003")
        (tmp_path / f"runs/{name}/lock").touch()
    (tmp_path / "runs/latest").symlink_to("two")
    return tmp_path / "runs"


def lmkit_(*arguments, code=0, **more):
    got = CliRunner().invoke(app, ["runs", *arguments], **more)
    assert got.exit_code == code, (got.output, got.exception)
    return got


def test_runs_are_listed_by_what_was_asked(home):
    status = json.loads((home / "two/status.json").read_text())
    (home / "two/status.json").write_text(json.dumps(status | {"state": "running", "tokens": 5}))
    rows = [json.loads(line) for line in lmkit_("list", "--json", "--sort", "tokens").stdout.splitlines()]
    assert [(r["run"], r["state"], r["task"]) for r in rows] == [
        ("runs/two", "killed", "classify"), ("runs/one", "done", "classify")
    ]  # fmt: skip
    sizes = {p.lstat().st_size for p in (home / "one").rglob("*") if p.is_file() and not p.is_symlink()}
    assert sum(sizes) <= rows[1]["size"] and rows[1]["size"] > 6000
    assert "runs/one" not in lmkit_("--state", "killed").stdout and "runs/two" in lmkit_("--state", "killed").stdout
    assert "no runs" in lmkit_("--task", "tag").stdout


def test_a_run_is_shown_and_two_are_compared(home):
    shown = json.loads(lmkit_("show", "runs/one", "--json").stdout)
    assert shown["scores"]["accuracy"]["low"] == 0.6 and shown["cost"]["seconds"] == STEPS / 2
    assert "never predicts" in lmkit_("show", "runs/one").stdout
    compared = json.loads(lmkit_("compare", "runs/one", "runs/two", "--json").stdout)
    assert compared["differences"] == {"optimizer.lr": ["0.1", "0.2"]}
    assert compared["tests"][0]["rows"] == 120 and compared["tests"][0]["test"] == "McNemar's exact test"
    assert compared["tests"][0]["verdict"] in lmkit_("compare", "runs/one", "runs/two").stdout


def test_a_curve_falls_from_its_first_value_to_its_last(home):
    picture = lmkit_("plot", "runs/one", "--metric", "val_loss", "--by", "time").stdout.splitlines()
    rows = [line[9:] for line in picture if "┤" in line]
    first = [next((i for i, row in enumerate(rows) if column < len(row) and row[column] != " "), None)
             for column in range(81)]  # fmt: skip
    heights = [height for height in first if height is not None]
    assert heights == sorted(heights) and heights[0] == 0 and heights[-1] == len(rows) - 1 and len(heights) == 81
    assert "1.01 → 1.002" in picture[-1] and re.search(r"0:50 +3:20", picture[-2])
    refused = lmkit_("plot", "runs/one", "--metric", "val_los", code=1)
    assert "val_loss" in str(refused.exception)


def test_a_run_in_use_is_not_deleted_and_others_only_after_a_yes(home):
    assert "nobody to ask" in str(lmkit_("rm", "runs/one", code=1).exception)
    with (home / "one/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use" in str(lmkit_("rm", "runs/one", "--yes", code=1).exception)
    assert (home / "one/recipe.yaml").exists()
    (home / "two").rename(home / "seed-0")  # a run of several seeds is in use while one of them is
    (home / "seeds").mkdir()
    (home / "seed-0").rename(home / "seeds/seed-0")
    (home / "seeds/recipe.yaml").write_text("seeds: 2")
    with (home / "seeds/seed-0/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use" in str(lmkit_("rm", "runs/seeds", "--yes", code=1).exception)
    (home / "seeds/seed-0").rename(home / "two")
    size = sum(p.lstat().st_size for p in (home / "two").rglob("*") if p.is_file() and not p.is_symlink())
    freed = lmkit_("rm", "runs/two", "--yes").stdout
    assert not (home / "two").exists() and not (home / "latest").is_symlink()
    assert float(re.search(r"freed ([\d.]+) ", freed)[1]) == pytest.approx(size / 1000, rel=0.05)


def test_pruning_leaves_the_checkpoint_to_use(home):
    status = json.loads((home / "two/status.json").read_text())
    (home / "two/status.json").write_text(json.dumps(status | {"state": "stopped"}))
    assert "4 kB" in lmkit_("prune", "--yes").stdout
    left = lambda run: sorted(p.name for p in (home / run / "checkpoints").iterdir())
    assert left("one") == ["step-00000002"] and len(left("two")) == 3
    assert (home / "one/best").exists() and not (home / "one/latest").is_symlink()
    assert "nothing to delete" in lmkit_("prune", "--yes").stdout


def test_watching_goes_on_until_the_run_ends(home):
    status = home / "one/status.json"
    done = status.read_text()
    lock = (home / "one/lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    status.write_text(done.replace('"done"', f'"running", "horizon": {2 * STEPS}'))
    command = [sys.executable, "-m", "lmkit", "runs", "watch", "runs/one", "--every", "0.1"]
    watch = subprocess.Popen(command, cwd=home.parent, stdout=subprocess.PIPE, text=True, env=os.environ)
    first = watch.stdout.readline()
    assert first.startswith(f"running step {STEPS} (50%) ") and " eta 3:20" in first  # 200 s for half of the steps
    with (home / "one/metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": STEPS + 1, "loss": 0.5, "tokens": 1}) + "\n")
    assert watch.stdout.readline().startswith(f"running step {STEPS + 1} (50%) tokens 1 loss 0.5000")
    time.sleep(0.2)
    status.write_text(done)
    assert watch.stdout.read().splitlines()[-1].startswith("done step") and watch.wait(10) == 0
    lock.close()
    for state, code in ({"state": "failed", "exit_code": 9}, 9), ({"state": "running"}, 8), ({"state": "stopped"}, 75):
        status.write_text(json.dumps(state))
        assert lmkit_("watch", "runs/one", code=code).stdout.split()[0] in ("failed", "killed", "stopped")


def test_the_best_score_is_that_of_the_end_in_all_lists(home):
    status = json.loads((home / "one/status.json").read_text())
    status["best"] = {"val_accuracy": 0.5, "val_loss": 0.2, "step": 300}
    (home / "one/status.json").write_text(json.dumps(status))
    best = {row["run"]: row["best"] for row in map(json.loads, lmkit_("list", "--json").stdout.splitlines())}
    assert best == {"runs/one": {"val_accuracy": 0.75, "val_loss": 0.2, "step": 300}, "runs/two": None}
    assert "accuracy 0.75: no better than TF-IDF (0.75). The model to use" in lmkit_("show", "runs/one").stdout


def test_a_sweep_is_listed_and_reported_by_its_trials(home):
    (home / "sweep").mkdir()
    for name in ("one", "two"):
        (home / name).rename(home / "sweep" / name)
    (home / "sweep/sweep.json").write_text("{}")
    rows = [json.loads(line)["run"] for line in lmkit_("list", "--json").stdout.splitlines()]
    assert sorted(rows) == ["runs/sweep/one", "runs/sweep/two"]
    got = CliRunner().invoke(app, ["report", "runs/sweep", "--out", "r.html"])
    assert got.exit_code == 0 and "optimizer.lr" in (home.parent / "r.html").read_text()
