"""Stop a run anywhere and go on: the files end up the same, byte for byte."""

import json
import os
import signal
from pathlib import Path

import pytest

from lmkit.base.errors import STOPPED_RESUMABLE, Diverged, ModelError, RunInUse, UserError
from lmkit.base.runs import Run
from lmkit.objectives.causal_lm import CausalLM
from lmkit.training import pretraining_run
from tests.training.stopping import Crash, at_pass, crash, same


@pytest.mark.parametrize("forward", [2, 10, 14, 30, 36], ids=lambda n: f"step{(n - 1) // 3 + 1}-micro{(n - 1) % 3 + 1}")
def test_crashed_and_resumed_equals_straight(tiny, monkeypatch, forward):
    assert pretraining_run.start(tiny, (), Path("straight")) == 0
    with monkeypatch.context() as patch:
        at_pass(patch, forward, crash)
        with pytest.raises(Crash):
            pretraining_run.start(tiny, (), Path("crashed"))
    assert pretraining_run.resume(Path("crashed")) == 0
    same(Path("straight"), Path("crashed"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGHUP"])
def test_a_signal_finishes_the_step_and_saves(tiny, monkeypatch, capsys, name):
    assert pretraining_run.start(tiny, (), Path("straight")) == 0
    with monkeypatch.context() as patch:
        at_pass(patch, 14, lambda: os.kill(os.getpid(), getattr(signal, name)))
        assert pretraining_run.start(tiny, (), Path("stopped")) == STOPPED_RESUMABLE
    assert "step 5, saved" in (out := capsys.readouterr().out) and "--resume stopped" in out
    assert json.loads(Path("stopped/status.json").read_text())["state"] == "stopped"
    assert pretraining_run.resume(Path("stopped")) == 0
    same(Path("straight"), Path("stopped"))


def test_a_damaged_checkpoint_is_passed_over(tiny, monkeypatch, capsys):
    assert pretraining_run.start(tiny, (), Path("straight")) == 0
    with monkeypatch.context() as patch:
        at_pass(patch, 31, crash)
        with pytest.raises(Crash):
            pretraining_run.start(tiny, (), Path("run"))
    weights = Path("run/checkpoints/step-00000009/training/optimizer.safetensors")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    Path("run/checkpoints/step-00000011.part").mkdir()
    assert pretraining_run.resume(Path("run")) == 0
    assert "step-00000009 is damaged" in capsys.readouterr().err
    same(Path("straight"), Path("run"))


def test_no_whole_checkpoint_is_an_error_and_never_a_fresh_start(tiny):
    assert pretraining_run.start(tiny, (), Path("run")) == 0
    for checkpoint in Path("run/checkpoints").iterdir():
        (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no whole checkpoint"):
        pretraining_run.resume(Path("run"))


def test_micro_batches_do_not_change_the_run(tiny):
    """One, three and eight micro-batches: the same losses up to the order of summation. Dropout off: it is per pass."""
    logs = []
    for size in (128, 48, 16):
        out = Path(f"micro{size}")
        settings = ("model.dropout=0", "model.attention_dropout=0", f"train.micro_batch={size}")
        assert pretraining_run.start(tiny, settings, out) == 0
        logs.append([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
    for rows in zip(*logs, strict=True):
        assert [r["loss"] for r in rows] == pytest.approx([rows[0]["loss"]] * 3, rel=1e-5)
        assert [r["grad_norm"] for r in rows] == pytest.approx([rows[0]["grad_norm"]] * 3, rel=1e-4)


def test_loss_that_is_not_finite_skips_the_step_and_names_the_documents(tiny, monkeypatch):
    real, seen = CausalLM.loss, [0]

    def loss(self, model, batch):
        result = real(self, model, batch)
        if model.training:
            seen[0] += 1
            if seen[0] == 5:
                result.sums["tokens"] = result.sums["tokens"] * float("nan")
        return result

    monkeypatch.setattr(CausalLM, "loss", loss)
    assert pretraining_run.start(tiny, (), Path("run")) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "skipped" in r] == [2]
    events = [json.loads(line) for line in Path("run/events.jsonl").read_text().splitlines()]
    (skipped,) = [e for e in events if e["event"] == "skipped"]
    assert skipped["step"] == 2 and len(skipped["documents"]) > 0
    assert json.loads(Path("run/status.json").read_text())["skipped"] == 1


def test_three_in_a_row_stop_the_run_with_the_last_good_checkpoint(tiny, monkeypatch):
    real = CausalLM.loss

    def loss(self, model, batch):
        result = real(self, model, batch)
        gradient = model.embedding.weight.grad  # of the passes before this one
        if model.training and (gradient is None or not gradient.any()):
            loss.steps += 1
        if loss.steps > 7:
            result.sums["tokens"] = result.sums["tokens"] * float("inf")
        return result

    loss.steps = 0
    monkeypatch.setattr(CausalLM, "loss", loss)
    with pytest.raises(Diverged, match="kept: run/checkpoints/step-00000009"):
        pretraining_run.start(tiny, (), Path("run"))


def test_two_processes_cannot_share_a_run(tiny):
    assert pretraining_run.start(tiny, (), Path("run")) == 0
    held = Run(Path("run"))
    with pytest.raises(RunInUse, match=f"process {os.getpid()}"):
        pretraining_run.resume(Path("run"))
    held.close()
    with pytest.raises(UserError, match="holds a run already"):
        pretraining_run.start(tiny, (), Path("run"))


def test_other_data_on_resume_is_refused(tiny, monkeypatch):
    with monkeypatch.context() as patch:
        at_pass(patch, 20, crash)
        with pytest.raises(Crash):
            pretraining_run.start(tiny, (), Path("run"))
    with open("corpus.txt", "a") as f:
        f.write("\none more line")
    with pytest.raises(ModelError, match="changed since this run began"):
        pretraining_run.resume(Path("run"))


def test_a_run_of_a_newer_format_is_not_touched(tiny):
    assert pretraining_run.start(tiny, (), Path("run")) == 0
    facts = json.loads(Path("run/environment.json").read_text())
    assert facts["run_format"] == 1
    facts |= {"run_format": 2, "versions": facts["versions"] | {"lmkit": "9.9"}}
    Path("run/environment.json").write_text(json.dumps(facts))
    before = Path("run/metrics.jsonl").read_bytes()
    with pytest.raises(ModelError, match=r"written by lmkit 9\.9, in format 2"):
        pretraining_run.resume(Path("run"))
    assert Path("run/metrics.jsonl").read_bytes() == before


def test_a_pruned_run_is_not_trained_again(tiny):
    from typer.testing import CliRunner

    from lmkit.commands.main import app

    assert pretraining_run.start(tiny, (), Path("run")) == 0
    assert CliRunner().invoke(app, ["runs", "prune", "run", "--yes"]).exit_code == 0
    before = Path("run/metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="`lmkit runs prune` has deleted"):
        pretraining_run.resume(Path("run"))
    assert Path("run/metrics.jsonl").read_bytes() == before and Path("run/best/model.safetensors").is_file()
