"""Trackers get what metrics.jsonl gets, go on after a crash, and never stop a run."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmkit.base.errors import UserError
from lmkit.training import pretraining_run, trackers
from tests.training.stopping import rows, same, stopped_at


def test_tensorboard_reads_a_resumed_run_as_one(tiny, monkeypatch):
    assert pretraining_run.start(tiny, (), Path("straight")) == 0
    stopped_at(monkeypatch, 8, "tracker=tensorboard")
    assert pretraining_run.resume(Path("run")) == 0
    events = EventAccumulator("run/tensorboard", size_guidance={"scalars": 0}).Reload()
    names = {name for row in rows("run") for name, value in row.items() if isinstance(value, int | float)}
    assert set(events.Tags()["scalars"]) == names - {"step"}
    for name in names - {"step"}:
        want = [(row["step"], row[name]) for row in rows("run") if name in row]
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(s, pytest.approx(v, rel=1e-6)) for s, v in want]
    assert len(events.Tensors("sample/text_summary")) == 3 and events.Tensors("recipe/text_summary")
    same("straight", "run")


def test_a_tracker_that_fails_or_hangs_stops_nothing(tiny, monkeypatch, capsys):
    def refuse(**_):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(
        init=refuse, api=SimpleNamespace(api_key="x"), Settings=dict, __spec__=SimpleNamespace()))  # fmt: skip
    assert pretraining_run.start(tiny, ("tracker=wandb",), Path("failed")) == 0
    told = capsys.readouterr().err
    assert told.count("wandb") == 1 and "no route to host" in told
    hang = lambda *_: __import__("threading").Event().wait()
    monkeypatch.setitem(trackers.WRITERS, "tensorboard", hang)
    monkeypatch.setattr(trackers, "ENDING_SECONDS", 0.2)
    assert pretraining_run.start(tiny, ("tracker=tensorboard",), Path("hung")) == 0
    assert "does not answer" in capsys.readouterr().err
    same("failed", "hung")


def test_a_missing_package_is_told_before_anything_begins(tiny, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "lmkit\[mlflow\]"'):
        pretraining_run.start(tiny, ("tracker={name: mlflow, project: mine}",), Path("run"))
    assert not Path("run").exists()
