"""Asked to stop, or killed, at any moment: what is on disk is whole, and the same command goes on exactly."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from lmkit.base.errors import INTERRUPTED, STOPPED_RESUMABLE
from lmkit.base.manifest import damage
from lmkit.base.runs import Run, read_jsonl
from lmkit.training import guard, pretraining_run, saving, step
from tests.training.stopping import at, at_call, at_file, at_pass, same

BESIDE = ["checkpoint.async=false", "checkpoint.async=true"]


def ask(name: str = "SIGTERM"):
    return lambda: os.kill(os.getpid(), getattr(signal, name))


def status(run: str = "run") -> dict:
    return json.loads(Path(run, "status.json").read_text())


# ---------------------------------------------------------------- 3, 4, 5: asked


MOMENTS = {  # -> the step after which it must have stopped
    "before the first step": (lambda p: at(p, "lmkit.train", 1, ask()), 1),
    "in the evaluation of step 4": (lambda p: at(p, "lmkit.evaluate", 1, ask()), 4),
    "after step 5, which is not due": (lambda p: at(p, "lmkit.step.done", 5, ask()), 5),
    "in the save of step 6": (lambda p: at_file(p, 3, ask()), 6),
    "in the last step": (lambda p: at_pass(p, 35, ask()), 12),
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("moment", MOMENTS)
def test_wherever_a_signal_comes_the_step_is_saved_and_none_is_lost(tiny, straight, monkeypatch, capfd, moment, beside):
    at, stops = MOMENTS[moment]
    with monkeypatch.context() as patch:
        at(patch)
        code = pretraining_run.start(tiny, (beside,), Path("run"))
    checkpoint = Path("run/latest").resolve()
    stopped = int(checkpoint.name[-8:])
    assert stopped == stops or ("save" in moment and beside.endswith("true") and stopped <= 8)  # which waits for it
    assert damage(checkpoint) is None and len([*read_jsonl(Path("run/metrics.jsonl"))]) == stopped
    if stops < 12:
        assert code == STOPPED_RESUMABLE and status()["state"] == "stopped" and status()["step"] == stopped
        assert f"stopped by SIGTERM at step {stopped}, saved" in capfd.readouterr().out
    assert pretraining_run.resume(Path("run")) == 0
    same(straight, "run")


@pytest.mark.parametrize("where", ["step", "save"])
def test_a_second_ctrl_c_stops_at_once_and_the_last_checkpoint_is_whole(tiny, straight, monkeypatch, lmkit_, where):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        if where == "step":
            at_pass(patch, 20, twice)
        else:
            at_file(patch, 3, twice)  # of step 6: the weights are written, no manifest
        shown = lmkit_("pretrain", tiny, "--out", "run")
    assert shown.code == INTERRUPTED and "a second Ctrl-C stops at once" in shown.err
    assert status()["state"] == "interrupted"
    newest = Path("run/latest").resolve()
    assert newest.name == ("step-00000006" if where == "step" else "step-00000004") and damage(newest) is None
    assert lmkit_("pretrain", "--resume", "run").code == 0
    same(straight, "run")
    assert not [*Path("run/checkpoints").glob("*.part")]


def test_ctrl_c_while_text_is_tokenized_leaves_no_run_and_the_same_command_starts_it(tiny, monkeypatch, lmkit_):
    with monkeypatch.context() as patch:
        at(patch, "lmkit.tokenize", 1, ask("SIGINT"))
        assert lmkit_("pretrain", tiny, "--out", "run").code == INTERRUPTED
    assert not Path("run").exists()
    assert lmkit_("pretrain", tiny, "train.budget=1 step", "--out", "run").code == 0


def test_a_signal_is_not_forgotten_over_a_rollback(tiny, monkeypatch):
    """It comes in the step that goes wrong: the run goes back, takes one step and stops."""
    real = step._gradient

    def gradient(job, share, scaler, asked):
        got, asked = real(job, share, scaler, asked)
        if job.batch_of(job.state.step) in (6, 7, 8):
            got["loss"] = got["loss"] * float("nan")
            os.kill(os.getpid(), signal.SIGTERM)
        return got, asked

    monkeypatch.setattr(step, "_gradient", gradient)
    monkeypatch.setattr(guard, "SKIPS_IN_A_ROW", 1)
    assert pretraining_run.start(tiny, ("train.spikes=rollback",), Path("run")) == STOPPED_RESUMABLE
    assert status()["step"] == 7 and damage(Path("run/latest")) is None


# ---------------------------------------------------------------- 1, 2: killed


def killed(monkeypatch, at, work) -> None:
    """`work` in a process of its own, which kills itself where `at` says: nothing is cleaned up."""
    pid = os.fork()
    if not pid:
        try:
            at(monkeypatch)
            work()
        finally:
            os._exit(1)  # it was to be dead by now
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


die = ask("SIGKILL")
PLACES = {
    "tokenizing": lambda p: at(p, "lmkit.tokenize", 1, die),
    "before recipe.yaml": lambda p: at(p, "lmkit.begin", 1, die),
    "the first step": lambda p: at_pass(p, 2, die),
    "a step": lambda p: at_pass(p, 32, die),
    "an evaluation": lambda p: at(p, "lmkit.evaluate", 2, die),
    "the first save": lambda p: at_file(p, 1, die),
    "a save": lambda p: at_file(p, 4, die),
    "between rename and links": lambda p: at(p, "lmkit.link", 5, die),  # latest at 3, 4, 6, 8; best at 4, 8
    "between the links": lambda p: at(p, "lmkit.link", 6, die),
    "retention": lambda p: at(p, "lmkit.retire", 5, die),
    "the last save": lambda p: at_file(p, 6, die),
    "before the end is told": lambda p: at_call(p, Run, "status", 8, die),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process with a GPU cannot be forked")
@pytest.mark.parametrize("place", PLACES)
def test_killed_anywhere_and_resumed_equals_straight(tiny, straight, monkeypatch, capfd, place):
    run = Path("run")
    killed(monkeypatch, PLACES[place], lambda: pretraining_run.start(tiny, (), run))
    for checkpoint in run.glob("checkpoints/step-*"):
        assert checkpoint.suffix == ".part" or damage(checkpoint) is None
    capfd.readouterr()
    begun = (run / "recipe.yaml").exists()
    assert (pretraining_run.resume(run) if begun else pretraining_run.start(tiny, (), run)) == 0
    said = capfd.readouterr().err
    assert (f"taken over from process {os.getpid()}" not in said) and "taken over from process" in said
    assert ("stopped before its first checkpoint; starting from step 0" in said) == (
        place in ("the first step", "the first save")
    )
    same(straight, "run")
    kept = sorted(p.name for p in (straight / "checkpoints").iterdir())
    assert sorted(p.name for p in Path("run/checkpoints").iterdir()) == kept


# ---------------------------------------------------------------- 17: saving beside training


def test_saves_slower_than_training_are_never_two_at_once_and_never_lose_the_newest(tiny, monkeypatch):
    """Each waits until three more steps are taken, or the loop waits for it."""
    import threading

    under_way, most, order, real = [0], [0], [], Run.save
    go_on = threading.Event()

    def save(self, number, *args):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        go_on.wait(0.2)
        saved = real(self, number, *args)
        order.append(number)
        under_way[0] -= 1
        return saved

    monkeypatch.setattr(Run, "save", save)
    assert pretraining_run.start(tiny, ("checkpoint.async=true", "checkpoint.every=1"), Path("run")) == 0
    assert most[0] == 1 and order == [*range(1, 13)]
    assert Path("run/latest").resolve().name == "step-00000012" and damage(Path("run/latest")) is None


def test_what_is_saved_beside_training_is_the_step_it_was_taken_at(tiny, straight, monkeypatch):
    """Training goes on while the writer waits; every checkpoint equals the one written between steps."""
    import time

    every = ("checkpoint.every=1", "checkpoint.keep=12")
    assert pretraining_run.start(tiny, every, Path("between")) == 0
    at_call_each = saving.Saver._write

    def late(self, *args):
        time.sleep(0.03)
        at_call_each(self, *args)

    monkeypatch.setattr(saving.Saver, "_write", late)
    assert pretraining_run.start(tiny, (*every, "checkpoint.async=true"), Path("beside")) == 0
    for n in range(1, 13):
        same_step = f"checkpoints/step-{n:08d}"
        for name in ("model.safetensors", "training/weights.safetensors", "training/optimizer.safetensors"):
            one, two = (Path(run, same_step, name).read_bytes() for run in ("between", "beside"))
            assert one == two, (n, name)
