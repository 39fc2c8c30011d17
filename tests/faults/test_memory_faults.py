"""Memory that ends in a step, an evaluation, a save or an optimizer: less at once, and the same result."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmkit.objectives.causal_lm import CausalLM
from lmkit.training import checkpoints, guard, pretraining_run, step
from lmkit.training.optimizers.muon import Muon
from tests.training.stopping import FILES, LAST, Crash, at, at_call, at_pass, crash, events, rows, same

STEADY = ("model.dropout=0", "model.attention_dropout=0")  # dropout is drawn for each micro-batch


@pytest.fixture
def memory(monkeypatch):
    """`memory(tokens)`: micro-batches above that do not fit any more, from step `since` on."""
    real, now, failed = CausalLM.loss, [0], []

    def limit(tokens: int, since: int = 1, training: bool = True) -> list[int]:
        def loss(self, model, batch):
            if model.training == training and batch.tokens.numel() > tokens and now[0] >= since:
                failed.append(now[0])
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return real(self, model, batch)

        def seed(job, real=step._seed):
            now[0] = job.state.step + 1
            real(job)

        monkeypatch.setattr(CausalLM, "loss", loss)
        monkeypatch.setattr(step, "_seed", seed)
        return failed

    return limit


def test_out_of_memory_halves_the_micro_batch_and_equals_the_run_that_had_it_so_from_the_start(tiny, memory, capfd):
    assert pretraining_run.start(tiny, ("train.micro_batch=32",), Path("small")) == 0
    failed = memory(32)
    assert pretraining_run.start(tiny, ("train.micro_batch=128",), Path("run")) == 0
    assert failed == [1, 1]  # 128, 64
    assert "out of memory at step 1: micro-batches of 32 tokens from now on" in capfd.readouterr().err
    same("small", "run")


def test_out_of_memory_later_retries_that_step_once_and_is_resumed_exactly(tiny, memory, monkeypatch):
    """The run without it differs by the order of summation: losses agree to 1e-5 of themselves."""
    settings = (*STEADY, "train.micro_batch=64")
    assert pretraining_run.start(tiny, settings, Path("without")) == 0
    failed = memory(32, since=7)
    assert pretraining_run.start(tiny, settings, Path("with")) == 0
    assert failed == [7]  # what was read ahead for step 8 was cut again
    assert json.loads(Path("with/latest/training/state.json").read_text())["micro_batch"] == [64, 32]
    for one, two in zip(rows("without"), rows("with"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    weights = [load_file(Path(run, LAST, FILES[1])) for run in ("without", "with")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)  # rates are 3e-4 and more
    with monkeypatch.context() as patch:  # killed after the last save before it, and after the first one since
        for run, call in (("early", 13), ("late", 29)):
            at_pass(patch, call, crash)
            with pytest.raises(Crash):
                pretraining_run.start(tiny, settings, Path(run))
    for run in ("early", "late"):
        assert pretraining_run.resume(Path(run)) == 0
        same("with", run)


def test_a_rollback_does_not_forget_that_memory_was_not_enough(tiny, memory, monkeypatch):
    failed, real, judged = memory(32, since=11), guard.judge, []

    def judge(*given):
        judged.append(given)
        return "rolled back" if len(judged) == 11 else real(*given)

    monkeypatch.setattr(guard, "judge", judge)
    assert pretraining_run.start(tiny, (*STEADY, "train.micro_batch=64", "train.spikes=rollback"), Path("run")) == 0
    assert failed == [11] and events("run", "rollback")[0]["to_step"] == 9  # whose checkpoint knows nothing of it
    assert json.loads(Path("run/latest/training/state.json").read_text())["micro_batch"] == [64, 32]


def test_out_of_memory_in_an_evaluation_halves_the_micro_batch_too(tiny, memory, capfd):
    failed = memory(16, training=False)
    assert pretraining_run.start(tiny, ("train.micro_batch=32", "evaluate.sample=null"), Path("run")) == 0
    assert failed == [4] and "out of memory in the evaluation of step 4: micro" in capfd.readouterr().err
    assert [r["step"] for r in rows("run") if "val_loss" in r] == [4, 8, 12]


def test_a_micro_batch_halved_in_an_evaluation_holds_from_the_next_step_on_as_it_does_after_a_resume(
    tiny, memory, monkeypatch
):
    """The evaluation of step 4 halves it, when step 5 had been read ahead; its checkpoint is that of the best model."""
    settings = ("train.micro_batch=32", "evaluate.sample=null")
    memory(16, training=False)
    assert pretraining_run.start(tiny, settings, Path("straight")) == 0
    with monkeypatch.context() as patch:
        at(patch, "lmkit.step", 5, crash)
        with pytest.raises(Crash):
            pretraining_run.start(tiny, settings, Path("run"))
    assert pretraining_run.resume(Path("run")) == 0
    same("straight", "run")


@pytest.mark.parametrize("beside", ["checkpoint.async=false", "checkpoint.async=true"])
def test_out_of_memory_in_a_save_leaves_it_out_and_the_weights_as_they_were(tiny, straight, monkeypatch, beside):
    """It comes while the average of the weights stands in their place."""

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    at_call(monkeypatch, checkpoints, "model_piece", 3, full)
    assert pretraining_run.start(tiny, (beside,), Path("run")) == 0
    (event,) = events("run", "not saved")
    assert "memory is not enough to save step 6" in event["reason"]
    same(straight, "run")


def test_one_row_that_does_not_fit_is_one_message_that_says_what_to_change(tiny, memory, lmkit_):
    memory(0)
    shown = lmkit_("pretrain", tiny, "--out", "run")
    assert shown.code == 9 and "memory is not enough for step 1, of rows of 16 tokens: CUDA out of memory" in shown.err
    for change in ("a smaller model.context", "train.recompute=true", "train.precision=bf16", "a smaller model"):
        assert change in shown.err


def test_memory_that_ends_inside_an_optimizer_is_never_retried_over_weights_that_moved(
    tiny, straight, monkeypatch, lmkit_
):
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        at_call(patch, Muon, "step", 5, full)
        shown = lmkit_("pretrain", tiny, "--out", "run")
    assert shown.code == 9 and "memory is not enough for the optimizer at step 5" in shown.err
    assert lmkit_("pretrain", "--resume", "run").code == 0
    same(straight, "run")
