"""What can go wrong with recipe, data and numbers while a model trains."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lmkit.base.errors import Diverged, UserError
from lmkit.base.manifest import damage
from lmkit.data.tokens.store import TokenStore
from lmkit.model.loss import IGNORE
from lmkit.objectives.causal_lm import CausalLM
from lmkit.training import guard, job, pretraining_run, step
from tests.training.stopping import FILES, Crash, at_file, crash, events, rows, same, stopped_at

STEADY = ("model.dropout=0", "model.attention_dropout=0")  # dropout is drawn for each micro-batch
EVERY = ("checkpoint.every=1", "checkpoint.keep=12")


def moved(run: str, number: int) -> bool:
    """Whether step `number` changed weights or moments."""
    before, after = (Path(run, f"checkpoints/step-{n:08d}") for n in (number - 1, number))
    changed = {name: (before / name).read_bytes() != (after / name).read_bytes() for name in FILES}
    assert len({*changed.values()}) == 1, changed
    return changed[FILES[0]]


def spoil(monkeypatch, act, *numbers: int) -> list[int]:
    """`act` changes the loss of these global batches, from 0. Returns where the numbers of all batches will stand."""
    seen, real = list[int](), step._gradient

    def gradient(job, *args):
        got, asked = real(job, *args)
        seen.append(job.batch_of(job.state.step))
        return (got | {"loss": act(got["loss"])} if seen[-1] in numbers else got), asked

    monkeypatch.setattr(step, "_gradient", gradient)
    return seen


# ---------------------------------------------------------------- 18, 19, 20: resumed with something else


def test_a_changed_recipe_is_shown_and_refused_unless_harmless_or_accepted(tiny, straight, monkeypatch, lmkit_):
    stopped_at(monkeypatch, 7)
    resume = ("--resume", "run")
    shown = lmkit_("pretrain", tiny, "optimizer.lr=0.5", "train.budget=16 steps", *resume)
    assert shown.code == 2 and "run: the recipe changed since this run began" in shown.err
    assert "train.budget: 12 steps -> 16 steps" in shown.err and "-> 0.5" in shown.err and "--accept-c" in shown.err
    harmless = ("evaluate.sample_tokens=3", "checkpoint.keep=4", "checkpoint.async=true", "train.device=cpu")
    shown = lmkit_("pretrain", tiny, *harmless, *resume)
    assert shown.code == 0 and "checkpoint.async: False -> True" in shown.err
    same(straight, "run")
    assert "async: true" in Path("run/recipe.yaml").read_text()
    shown = lmkit_("pretrain", tiny, "train.budget=14 steps", *harmless, "--accept-changes", *resume)
    assert shown.code == 0 and "train.budget: 12 steps -> 14 steps" in shown.err and rows("run")[-1]["step"] == 14
    shown = lmkit_("pretrain", "--resume", "run")
    assert shown.code == 0 and "run is done: step 14, nothing left to train" in shown.out


def test_tokens_made_anew_by_another_tokenizer_are_refused(tiny, monkeypatch, lmkit_):
    tokenize = ("tokenize", "corpus.txt", "--separator", "\n", "--validation", "20%", "--out", "tokens")
    assert lmkit_(*tokenize, "--kind", "bytes", "--family", "gpt2").code == 0
    stopped_at(monkeypatch, 5, "data.train=tokens")
    assert lmkit_(*tokenize, "--kind", "bpe", "--vocab-size", "300", "--family", "gpt2").code == 0
    shown = lmkit_("pretrain", "--resume", "run")
    assert shown.code in (2, 4) and "run" in shown.err
    assert "the training data or its tokenizer changed since this run began" in shown.err


@pytest.mark.parametrize("change", ["micro-batch", "threads"])
def test_other_micro_batches_or_threads_on_resume_read_the_same_data(tiny, monkeypatch, lmkit_, change):
    """Losses agree to 1e-5 of themselves, the order of summation; every row is read once, in the same order."""
    little = ("evaluate.tokens=16", "evaluate.sample=null", "optimizer.name=adamw", "train.budget=4 steps")
    settings = (*STEADY, *EVERY, *little)  # more threads than cores are free can take long
    assert pretraining_run.start(tiny, settings, Path("straight")) == 0
    stopped_at(monkeypatch, 4, *settings)
    threads, micro = torch.get_num_threads(), ("train.micro_batch=16",) if change == "micro-batch" else ()
    try:
        torch.set_num_threads(2 if change == "threads" else threads)
        assert lmkit_("pretrain", tiny, *settings, *micro, "--resume", "run").code == 0
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(rows("straight"), rows("run"), strict=True):
        assert one["tokens"] == two["tokens"] and two["loss"] == pytest.approx(one["loss"], rel=1e-5)


# ---------------------------------------------------------------- 22, 23, 24: numbers


def no_gradient(model) -> torch.Tensor:
    """Zero, whose derivative is none."""
    return (model.embedding.weight * 0).sum().sqrt()


WRONG = {
    "nan": lambda loss, model: loss * float("nan"),
    "inf": lambda loss, model: loss * float("inf"),
    "gradient": lambda loss, model: loss + no_gradient(model),
}


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adafactor", "sgd"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_bad_number_in_one_micro_batch_moves_nothing_is_counted_and_its_documents_named(
    tiny, monkeypatch, wrong, optimizer
):
    real, seen, read = CausalLM.loss, [0], set()

    def loss(self, model, batch):
        result = real(self, model, batch)
        seen[0] += model.training
        if model.training and (seen[0] + 2) // 3 == 7:
            read.update(batch.documents)
            if seen[0] == 20:
                result.sums["tokens"] = WRONG[wrong](result.sums["tokens"], model)
        return result

    monkeypatch.setattr(CausalLM, "loss", loss)
    settings = (*EVERY, f"optimizer.name={optimizer}", "optimizer.lr=0.01", "train.budget=9 steps", "evaluate.every=0")
    assert pretraining_run.start(tiny, settings, Path("run")) == 0
    assert [moved("run", n) for n in (6, 7, 8)] == [True, False, True]
    assert [r["step"] for r in rows("run") if r.get("skipped") == "not finite"] == [7]
    (event,) = events("run", "skipped")
    assert event["step"] == 7 and event["documents"] == sorted(read)
    assert json.loads(Path("run/status.json").read_text())["skipped"] == 1
    last = Path("run/latest")
    assert all(t.isfinite().all() for name in FILES for t in load_file(last / name).values())


def test_three_in_a_row_end_the_run_with_the_last_good_checkpoint_and_two_do_not(tiny, monkeypatch, lmkit_):
    spoil(monkeypatch, lambda loss: loss * float("nan"), 2, 3, 5, 8, 9, 10)
    shown = lmkit_("pretrain", tiny, "--out", "run")
    assert shown.code == 6 and "not finite in 3 steps in a row, up to 11" in shown.err
    assert "kept: run/checkpoints/step-00000009" in shown.err and "optimizer.lr (now" in shown.err
    assert json.loads(Path("run/status.json").read_text())["state"] == "diverged"


def test_gradients_that_no_loss_scale_mends_end_the_run(tiny, monkeypatch, lmkit_):
    """In fp16 they are first taken for a scale too high, which falls from 65,536 and ends below 1."""
    real = CausalLM.loss

    def loss(self, model, batch):
        result = real(self, model, batch)
        result.sums["tokens"] = WRONG["gradient"](result.sums["tokens"], model)
        return result

    monkeypatch.setattr(CausalLM, "loss", loss)
    monkeypatch.setattr(job, "choose_precision", lambda *_: "fp16")  # which no recipe has on a CPU
    shown = lmkit_("pretrain", tiny, "train.budget=60 steps", "evaluate.every=0", "checkpoint.every=0", "--out", "run")
    assert shown.code == 6 and "not finite in 3 steps in a row, up to 20" in shown.err


@pytest.fixture
def quick_to_judge(monkeypatch):
    monkeypatch.setattr(guard, "ENOUGH", 4)  # steps before a spike is one


@pytest.mark.parametrize(("policy", "learns"), [("log", True), ("skip", False)])
def test_a_spike_is_counted_named_and_by_the_recipe_not_learnt_from(tiny, monkeypatch, quick_to_judge, policy, learns):
    spoil(monkeypatch, lambda loss: loss * 100, 8)
    assert pretraining_run.start(tiny, (*EVERY, f"train.spikes={policy}"), Path("run")) == 0
    assert moved("run", 9) == learns and moved("run", 10)
    row = rows("run")[8]
    assert row.get("spike") is (True if learns else None) and row.get("skipped") == (
        None if learns else "skipped spike"
    )
    (event,) = events("run", "spike" if learns else "skipped")
    assert event["step"] == 9 and event["documents"]
    assert json.loads(Path("run/latest/training/state.json").read_text())["spikes"] == 1


def test_a_rollback_passes_over_the_batch_and_is_resumed_exactly(tiny, monkeypatch, quick_to_judge):
    settings = ("train.spikes=rollback",)
    with monkeypatch.context() as patch:
        seen = spoil(patch, lambda loss: loss * 100, 9)
        assert pretraining_run.start(tiny, settings, Path("run")) == 0
        assert seen == [*range(10), 10, 11, 12]  # back to the checkpoint of step 9, and past batch 9
        (event,) = events("run", "rollback")
        assert (event["from_step"], event["to_step"], event["batches"]) == (10, 9, [9])
        at_file(patch, 6, crash)  # in the first save since
        with pytest.raises(Crash):
            pretraining_run.start(tiny, settings, Path("crashed"))
        assert pretraining_run.resume(Path("crashed")) == 0
    same("run", "crashed")
    assert [r["step"] for r in rows("run")] == [*range(1, 13)]


def test_batches_before_the_checkpoint_are_not_passed_over_twice(tiny, monkeypatch):
    """Three bad steps in a row, two of them before the newest checkpoint: no good batch is lost."""
    seen = spoil(monkeypatch, lambda loss: loss * float("nan"), 7, 8, 9)
    assert pretraining_run.start(tiny, (*EVERY, "train.spikes=rollback"), Path("run")) == 0
    assert seen == [*range(10), 10, 11, 12] and events("run", "rollback")[0]["batches"] == [9]


def test_what_stays_bad_ends_after_three_rollbacks(tiny, monkeypatch, quick_to_judge):
    seen = spoil(monkeypatch, lambda loss: loss * 100, *range(9, 99))
    with pytest.raises(Diverged, match=r"rolled back 3 times, and step 10 is bad again\n  kept: run/.*step-00000009"):
        pretraining_run.start(tiny, ("train.spikes=rollback",), Path("run"))
    assert seen[9:] == [9, 10, 11, 12]
    seen = spoil(monkeypatch, lambda loss: loss * float("nan"), 0, 1, 2)
    with pytest.raises(Diverged, match="no checkpoint yet to go back to"):
        pretraining_run.start(tiny, ("train.spikes=rollback",), Path("early"))


@pytest.mark.parametrize("empty", [(2,), (1, 2, 3)], ids=["one micro-batch", "all of a batch"])
def test_a_micro_batch_without_a_scored_token_adds_nothing(tiny, monkeypatch, empty):
    real, seen = CausalLM.collate, [0]

    def collate(self, examples, multiple=1):
        batch = real(self, examples)
        seen[0] += 1
        if seen[0] not in empty:
            return batch
        return replace(batch, counts={"tokens": 0}, labels=torch.full_like(batch.labels, IGNORE))

    monkeypatch.setattr(CausalLM, "collate", collate)
    assert pretraining_run.start(tiny, ("train.budget=4 steps", "evaluate.every=0"), Path("run")) == 0
    log = rows("run")
    assert not any("skipped" in r for r in log) and all(r["loss"] is not None for r in log)
    assert (log[0]["loss"] == 0) == (len(empty) == 3) and log[1]["loss"] > 1


# ---------------------------------------------------------------- 25, 26: too short, too little


def test_horizons_of_less_than_a_step_or_the_warm_up(tiny):
    assert pretraining_run.start(tiny, ("train.budget=1 token",), Path("one")) == 0
    assert [r["step"] for r in rows("one")] == [1]
    assert pretraining_run.start(tiny, ("schedule.warmup=100",), Path("warm")) == 0
    rates = [r["lr"] for r in rows("warm")]
    peak = rates.index(max(rates))
    assert len(rates) == 12 and peak == 3 and rates[:4] == sorted(rates[:4]) and rates[4:] == sorted(rates[4:])[::-1]
    with pytest.raises(UserError, match="nothing would be trained"):
        pretraining_run.start(tiny, ("train.budget=0 steps",), Path("none"))


def test_a_horizon_already_passed_is_done(tiny, monkeypatch, lmkit_):
    stopped_at(monkeypatch, 10)
    shown = lmkit_("pretrain", tiny, "train.budget=5 steps", "--resume", "run", "--accept-changes")
    assert shown.code == 0 and "done" in shown.out and "9 steps" in shown.out
    assert len(rows("run")) == 9 and damage(Path("run/latest")) is None


@pytest.mark.parametrize(
    ("text", "settings", "code", "says"),
    [
        ("a b c", (), 3, "leaves none: there are too few"),
        ("a b c", ("data.validation=held.txt",), 3, "train.batch='16 tokens'"),
        ("a b c", ("data.validation=held.txt", "train.batch='16 tokens'"), 0, "done"),
        ("a b c", ("data.validation=0", "train.batch='16 tokens'"), 0, "no validation"),
        ("", ("data.validation=held.txt",), 3, "no train document could be read"),
    ],
)
def test_texts_smaller_than_a_batch_a_row_or_a_share(tiny, lmkit_, text, settings, code, says):
    Path("corpus.txt").write_text(text)
    Path("held.txt").write_text("x y z")
    shown = lmkit_("pretrain", tiny, *settings, "train.micro_batch=16", "train.budget=2 steps", "--out", "run")
    assert shown.code == code and says in shown.out + shown.err, shown


# ---------------------------------------------------------------- 27, 28: nothing that learns, and many words


@pytest.mark.parametrize(
    "still", ["optimizer.lr=0", "optimizer.groups=[{match: .*, lr_scale: 0}]"], ids=["no rate", "all frozen"]
)
def test_nothing_moves_where_nothing_is_to_learn(tiny, still):
    assert pretraining_run.start(tiny, (*EVERY, "optimizer.name=adamw", still, "train.ema=null"), Path("run")) == 0
    first, last = (load_file(Path(f"run/checkpoints/step-{n:08d}/model.safetensors")) for n in (1, 12))
    assert all(torch.equal(last[name], tensor) for name, tensor in first.items())
    assert len({r["val_loss"] for r in rows("run") if "val_loss" in r}) == 1


def test_decay_of_a_tied_table_counts_once(tiny):
    """A gradient of zero: all that moves is the decay, by lr x decay."""
    settings = ("optimizer.name=adamw", "optimizer.lr=0.1", "optimizer.weight_decay=0.5", "model.tied=true")
    real = CausalLM.loss

    def loss(self, model, batch):
        result = real(self, model, batch)
        result.sums["tokens"] = result.sums["tokens"] * 0
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalLM, "loss", loss)
        more = ("train.ema=null", "schedule.name=constant", "schedule.warmup=0", "evaluate.every=0", *EVERY)
        assert pretraining_run.start(tiny, (*settings, *more, "train.budget=2 steps"), Path("run")) == 0
    one, two = (load_file(Path(f"run/checkpoints/step-0000000{n}/model.safetensors")) for n in (1, 2))
    name = "transformer.wte.weight"
    torch.testing.assert_close(two[name], one[name] * (1 - 0.1 * 0.5))


def test_vocabularies_beyond_16_bits_smaller_than_the_tokenizers_and_padded(tiny, lmkit_):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = [f"filler{i}" for i in range(66_000)]
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *fillers, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save("tokenizer.json")
    large = ("tokenizer.path=tokenizer.json", "train.budget=1 step", "optimizer.name=sgd")
    shown = lmkit_("pretrain", tiny, *large, "--out", "large")
    assert shown.code == 0, shown
    (store,) = (TokenStore(p) for p in Path("cache/tokens").iterdir())
    split = store.split("train")
    assert split.dtype == "uint32" and split.document(0).max() > 65_535
    table = load_file("large/latest/model.safetensors")["transformer.wte.weight"]
    assert len(table) == 66_304 and table.isfinite().all()  # 66,257 entries, in whole rows of 64
    shown = lmkit_("pretrain", tiny, *large, "model.vocab_size=512", "--out", "small")
    assert shown.code == 2 and "model.vocab_size 512 is smaller than the tokenizer's 66,257 entries" in shown.err
    shown = lmkit_("pretrain", tiny, "train.budget=1 step", "model.vocab_size=1024", "--out", "padded")
    assert shown.code == 0 and "rows without a token" in shown.err
