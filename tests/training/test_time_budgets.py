"""Budgets in time, by a clock that the tests set: steps, evaluations and saves take what is said here and no more."""

import json
from itertools import count, pairwise
from pathlib import Path

import pytest

from lmkit.base.runs import read_jsonl
from lmkit.training import pretraining_run, rhythm
from lmkit.training.guard import Rollback
from tests.training.stopping import at, whenever


class Clock:
    """Seconds that pass in steps, evaluations and saves alone. step: by the number of the step; evaluation: by the
    seconds since the start."""

    def __init__(self, step=0.1, evaluation=0.1, save=0.1):
        self.now = self.began = 1000.0
        self.step, self.evaluation, self.save = step, evaluation, save
        self.spent = {"step": 0.0, "evaluation": 0.0, "save": 0.0}

    def passes(self, what: str, seconds: float) -> None:
        self.now += seconds
        self.spent[what] += seconds


@pytest.fixture
def timed(tiny, monkeypatch):
    """Train the tiny recipe by such a clock: the clock, and the rows of its metrics."""

    def run(clock: Clock, *settings: str, out: str = "run") -> list[dict]:
        numbers = count()
        monkeypatch.setattr(rhythm, "clock", lambda: clock.now)

        def step() -> None:
            number = next(numbers)
            clock.passes("step", clock.step(number) if callable(clock.step) else clock.step)

        def evaluation() -> None:
            since = clock.now - clock.began
            clock.passes("evaluation", clock.evaluation(since) if callable(clock.evaluation) else clock.evaluation)

        with monkeypatch.context() as patch:
            whenever(patch, "lmkit.step", step)
            whenever(patch, "lmkit.evaluate", evaluation)
            whenever(patch, "lmkit.save", lambda: clock.passes("save", clock.save))
            assert (
                pretraining_run.start(tiny, ("checkpoint.every=10%", "evaluate.every=10%", *settings), Path(out)) == 0
            )
        assert json.loads(Path(out, "status.json").read_text())["state"] == "done"
        return list(read_jsonl(Path(out, "metrics.jsonl")))

    return run


def decayed(rows: list[dict]) -> float:
    """The last rate as a share of the highest."""
    return rows[-1]["lr"] / max(row["lr"] for row in rows)


def test_a_time_budget_ends_in_time_with_a_full_decay(timed):
    clock = Clock()
    rows = timed(clock, "train.budget=20 s")
    assert 19 < sum(clock.spent.values()) <= 20 and decayed(rows) < 0.02 and "val_loss" in rows[-1]
    assert sum("val_loss" in row for row in rows) == 10
    assert json.loads(Path("run/latest/training/state.json").read_text())["elapsed"] <= 20


@pytest.mark.parametrize(
    "slower",
    [
        lambda n: 0.1 if n < 60 else 1.0,  # one of ten for itself
        lambda n: 0.1 if n < 110 else 1.5,
        lambda n: 8.0 if n == 70 else 0.1,  # a stall
        lambda n: 0.05 if n < 250 else 0.6,
        lambda n: 12.0 if n == 0 else 0.1,  # compiling
    ],
)
def test_the_decay_is_complete_where_the_machine_slows_down(slower, timed):
    clock = Clock(step=slower)
    rows = timed(clock, "train.budget=20 s")
    assert decayed(rows) < 0.1 and 18 < sum(clock.spent.values()) <= 25
    falls = [b["lr"] - a["lr"] for a, b in pairwise(rows)]
    assert all(fall <= 1e-12 for fall in falls[len(falls) // 2 :])


@pytest.mark.parametrize(("evaluation", "save"), [(2.0, 0.1), (0.1, 2.0), (1.0, 1.0), (6.0, 0.5)])
def test_evaluations_and_checkpoints_are_thinned_to_their_share_and_it_is_said(evaluation, save, timed, capsys):
    clock = Clock(step=0.4, evaluation=evaluation, save=save)
    timed(clock, "train.budget=60 s", "evaluate.every=2%", "checkpoint.every=2%")
    last, total = evaluation + save, sum(clock.spent.values())
    beside = clock.spent["evaluation"] + clock.spent["save"] - last
    assert beside <= (rhythm.EVALUATING + rhythm.SAVING) * 60 + evaluation + save and total <= 60
    assert clock.spent["step"] >= 60 - beside - 1.3 * last - 1
    assert "2% would take over " in capsys.readouterr().err


def test_the_last_evaluation_is_expected_before_there_was_any(timed):
    clock = Clock(evaluation=9.0)
    rows = timed(clock, "train.budget=30 s", "evaluate.every=50%", "train.micro_batch=128")
    assert sum("val_loss" in row for row in rows) <= 2 and sum(clock.spent.values()) <= 35


def test_a_warm_up_in_steps_ends_within_a_fifth_of_the_run(timed, capsys):
    rows = timed(Clock(step=0.5), "train.budget=20 s", "schedule.warmup=40 steps")
    peak = max(range(len(rows)), key=lambda n: rows[n]["lr"])
    assert len(rows) < 45 and peak <= 0.25 * len(rows) and decayed(rows) < 0.1
    assert "schedule.warmup of 40 steps is over 20% of this run" in capsys.readouterr().err
    rows = timed(Clock(), "train.budget=20 steps", "schedule.warmup=20 steps", "schedule.decay=0.5", out="steps")
    rates = [row["lr"] / rows[4]["lr"] for row in rows]
    assert rates[:5] == pytest.approx([0.05, 0.25, 0.5, 0.75, 1.0]) and rates[-1] == pytest.approx(0.1)


def test_a_run_whose_last_evaluation_was_quicker_than_expected_has_ended(timed, capsys):
    rows = timed(Clock(step=0.4, evaluation=lambda seconds: 3.0 if seconds < 50 else 0.1), "train.budget=60 s")
    state = json.loads(Path("run/latest/training/state.json").read_text())
    assert state["elapsed"] < 58 and state["finished"] == "60 s"
    assert pretraining_run.resume(Path("run")) == 0 and "nothing left to train" in capsys.readouterr().out
    assert len(list(read_jsonl(Path("run/metrics.jsonl")))) == len(rows)


def test_a_rollback_keeps_the_clock(timed, monkeypatch):
    clock = Clock(step=0.2)

    def fails() -> None:
        raise Rollback(40, [])

    at(monkeypatch, "lmkit.step.done", 40, fails)
    rows = timed(clock, "train.budget=20 s", "checkpoint.every=40%", "train.spikes=rollback")
    assert sum(clock.spent.values()) <= 20 and decayed(rows) < 0.05
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
