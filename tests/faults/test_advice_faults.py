"""What a message says to do works, in the command that said it; and nothing moves before a run has begun."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from lmkit.data.tokens.store import TokenStore
from lmkit.training.precision import choose_compile
from tests.training.stopping import at, rows

SCRATCH = (
    "--task", "classify", "model={family: bert, hidden_size: 16, num_layers: 1, num_heads: 2, context: 32}",
    "tokenizer.type=wordpiece", "tokenizer.vocab_size=300", "train.budget=4 steps", "train.batch=4 rows",
    "task.baseline=false", "checkpoint.every=1", "checkpoint.keep=2",
)  # fmt: skip
RECIPE = {
    "model": {"family": "gpt2", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "context": 32},
    "data": {"train": "c.jsonl", "text": "body"}, "tokenizer": {"vocab_size": 300},
    "train": {"budget": "2 steps", "batch": 64},
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"body": f"document {i} has a few words", "label": "ab"[i % 2]} for i in range(40)]
    Path("c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("labels.csv").write_text("text,label\n" + "".join(f"{r['body']},{r['label']}\n" for r in rows))


def test_a_column_is_named_by_the_option_that_the_command_has(lmkit_):
    tokenize = ("tokenize", "c.jsonl", "--out", "tokens", "--vocab-size", 300)
    refused = lmkit_(*tokenize)
    option, name = re.search(r"with (--\w+) (\w+)", refused.err).groups()
    assert refused.code == 3 and (option, name) == ("--text", "NAME") and "data.text" not in refused.err
    assert lmkit_(*tokenize, option, "body").code == 0
    refused = lmkit_("finetune", *SCRATCH, "--data", "c.jsonl", "data.text=bdy")
    assert refused.code == 3 and "data.text=NAME" in refused.err  # it takes KEY=VALUE


def test_a_text_in_one_line_can_be_read_by_following_the_advice(lmkit_):
    Path("one_line.txt").write_text("a text without any end of a line " * 200)
    tokenize = ("tokenize", "one_line.txt", "--out", "tokens", "--vocab-size", 300)
    refused = lmkit_(*tokenize)
    assert refused.code == 3 and "larger share" not in refused.err
    assert lmkit_(*tokenize, *re.search(r"(--validation) (0);", refused.err).groups()).code == 0


def test_a_file_named_twice_counts_once_and_is_said(lmkit_):
    got = lmkit_("tokenize", "c.jsonl", "./c.jsonl", "*.jsonl", "--text", "body", "--out", "t", "--vocab-size", 300)
    assert got.code == 0 and "2 of the files are named more than once and count once" in got.err
    assert sum(s.num_documents for s in map(TokenStore("t").split, ("train", "validation"))) == 40
    for names in (("labels.csv", "./labels.csv"), ("labels.csv", "*.csv")):
        given = [part for name in names for part in ("--data", name)]
        got = lmkit_("finetune", *SCRATCH, *given)
        assert "1 of the files are named more than once and count once" in got.err and "; 40 rows" in got.err


def test_changes_to_a_run_that_goes_on_are_refused_with_the_way(lmkit_):
    got = lmkit_("pretrain", "--resume", "runs/a", "train.budget=9 steps", "train.seed=1")
    way = "lmkit pretrain runs/a/recipe.yaml 'train.budget=9 steps' train.seed=1 --resume runs/a --accept-changes"
    assert got.code == 2 and way in got.err


def test_a_run_of_the_other_command_is_named_with_the_command_that_goes_on(lmkit_):
    Path("r.yaml").write_text(json.dumps(RECIPE))
    assert lmkit_("pretrain", "r.yaml", "--out", "runs/a").code == 0
    refused = lmkit_("finetune", "--resume", "runs/a")
    assert refused.code == 2 and "lmkit pretrain --resume runs/a" in refused.err
    assert lmkit_("pretrain", "--resume", "runs/a").code == 0
    assert lmkit_("finetune", *SCRATCH, "--data", "labels.csv", "--out", "runs/b").code == 0
    refused = lmkit_("pretrain", "--resume", "runs/b")
    assert refused.code == 2 and "lmkit finetune --resume runs/b" in refused.err
    assert lmkit_("finetune", "--resume", "runs/b").code == 0
    twice = lmkit_("eval", "runs/b", "runs/b", "--data", "labels.csv")
    assert twice.code == 2 and "runs/b is named twice" in twice.err
    f1 = lmkit_("finetune", *SCRATCH, "--data", "labels.csv", "task.metric=f1")
    assert f1.code == 2 and "allowed: accuracy, auroc, macro_f1, mcc, micro_f1, pearson, spearman\n" in f1.err


def test_a_seed_that_was_stopped_goes_on_with_all_of_them(lmkit_, monkeypatch):
    out = "runs/of seeds"
    command = (*SCRATCH, "--data", "labels.csv", "seeds=2", "--out", out)
    with monkeypatch.context() as patch:
        at(patch, "lmkit.step", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = lmkit_("finetune", *command)
    assert stopped.code == 75 and "lmkit finetune --resume 'runs/of seeds'\n" in stopped.out, stopped
    assert lmkit_("finetune", "--resume", out).code == 0
    assert all(Path(out, f"seed-{n}", "scores.json").is_file() for n in (0, 1))
    scores = Path(out, "seed-1/scores.json")
    before = json.loads(scores.read_text())
    for damage in ("{", "[]", '{"scores": 1}', None):
        scores.write_text(damage) if damage else scores.unlink()
        told = lmkit_("finetune", "--resume", out)
        assert told.code == 0 and (damage is None or "scores.json is damaged: that seed is scored again" in told.err)
        assert json.loads(scores.read_text()) == before and "mean" in told.out
    again = lmkit_("finetune", *command)
    assert again.code == 2 and "lmkit finetune --resume 'runs/of seeds', or another" in again.err


def test_latest_names_a_run_only_once_it_has_begun_and_those_of_several_seeds(lmkit_):
    refused = lmkit_("finetune", *SCRATCH, "--data", "label.csv")
    assert refused.code == 3 and not Path("runs/latest").is_symlink()
    assert lmkit_("finetune", *SCRATCH, "--data", "labels.csv", "seeds=2").code == 0
    assert Path("runs/latest").resolve().name == "classify-labels" and Path("runs/latest/seed-1/best").exists()
    assert lmkit_("finetune", *SCRATCH, "--data", "label.csv").code == 3
    assert Path("runs/latest").resolve().name == "classify-labels"


def test_an_average_without_held_out_rows_is_left_out_and_said(lmkit_):
    got = lmkit_("finetune", *SCRATCH, "--data", "labels.csv", "data.validation=0", "checkpoint.average=2")
    assert got.code == 0 and "none is made" in got.err and not Path("runs/latest/average").exists()
    refused = lmkit_("finetune", *SCRATCH, "--data", "labels.csv", "checkpoint.average=3")
    assert refused.code == 2 and "checkpoint.keep=3" in refused.err


def test_a_damaged_store_is_noticed(lmkit_):
    lmkit_("tokenize", "c.jsonl", "--text", "body", "--out", "t", "--vocab-size", 300)
    assert lmkit_("doctor", "--tokens", "t").code == 0
    tokens = Path("t/train-00000.tokens")
    tokens.write_bytes(bytes([tokens.read_bytes()[0] ^ 1]) + tokens.read_bytes()[1:])
    assert "train-00000.tokens is not what was written" in lmkit_("doctor", "--tokens", "t").err
    assert "train-00000.tokens is not what was written" in lmkit_("pretrain", "demo", "data.train=t").err
    words = Path("t/tokenizer/tokenizer.json")
    words.write_text(words.read_text().replace("document", "documenT", 1))
    got = lmkit_("pretrain", "demo", "data.train=t", "train.budget=1 step")
    assert got.code == 3 and "tokenizer.json is not what was written" in got.err
    for name, old, new in (
        ("tokenizer/tokenizer_config.json", "AutoTokenizer", "AutoTokenizar"),
        ("manifest.json", '"dtype": "uint16"', '"dtype": "uint17"'),
        ("manifest.json", '"name"', '"nome"'),
    ):
        shutil.rmtree("t")
        lmkit_("tokenize", "c.jsonl", "--text", "body", "--out", "t", "--vocab-size", 300)
        file = Path("t", name)
        file.write_text(file.read_text().replace(old, new, 1) if old in file.read_text() else file.read_text() + " ")
        got = lmkit_("pretrain", "demo", "data.train=t", "train.budget=1 step")
        assert got.code == 3 and f"{name} " in got.err and "damaged" in got.err, got.err


def test_damaged_tokens_in_the_cache_are_made_anew(lmkit_, tmp_path, monkeypatch):
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    recipe = Path("r.yaml")
    recipe.write_text(json.dumps(RECIPE))
    assert lmkit_("pretrain", recipe, "--out", "whole").code == 0
    (store,) = Path("cache/tokens").iterdir()
    for name in ("train-00000.tokens", "tokenizer/tokenizer.json", "manifest.json", "train-00000.index"):
        file, before = store / name, (store / name).read_bytes()
        file.write_bytes(before[:-30] + bytes([before[-30] ^ 1]) + before[-29:])
        got = lmkit_("pretrain", recipe, "--out", f"after-{file.name}")
        assert got.code == 0 and "is damaged" in got.err and "it is made anew from the texts" in got.err, got.err
        assert file.read_bytes() == before
        assert [r["loss"] for r in rows(f"after-{file.name}")] == [r["loss"] for r in rows("whole")]


def test_an_unfinished_store_is_no_folder_of_texts(lmkit_):
    lmkit_("tokenize", "c.jsonl", "--text", "body", "--out", "t", "--vocab-size", 300)
    Path("t/manifest.json").unlink()  # it is written last
    Path("r.yaml").write_text(json.dumps(RECIPE | {"data": {"train": "t"}}))
    got = lmkit_("pretrain", "r.yaml", "--out", "run")
    assert got.code == 3 and "unfinished: run the same `lmkit tokenize` again" in got.err


def test_rows_of_any_length_are_not_compiled_on_a_gpu():
    import torch

    from lmkit.recipe.pretraining import TrainConfig

    train, device = TrainConfig(), torch.device("cuda")
    assert choose_compile(train, device, 1e9, causal=False) and not choose_compile(
        train, device, 1e9, False, ragged=True
    )
