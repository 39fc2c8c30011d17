"""Damage, edits and numbers out of hand are noticed; what is left of a run can always be listed and gone on from."""

import io
import json
import math
import os
import resource
import signal
import stat
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lmkit.base.errors import STOPPED_RESUMABLE, Diverged, ModelError
from lmkit.base.files import write_atomic
from lmkit.base.runs import Run
from lmkit.recipe.pretraining import TokenizerConfig
from lmkit.text.tokenizer import frame_texts
from lmkit.text.training import train_tokenizer
from lmkit.training import pretraining_run, run_shell
from tests.training.stopping import events, rows, same, stopped_at

# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "training/manifest.json"])
def test_no_file_for_use_can_change_unseen(name, tiny, monkeypatch, lmkit_):
    stopped_at(monkeypatch, 5)
    file = Path("run/latest", name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    shown = lmkit_("generate", "run", "the cat")
    assert shown.code == 4 and "is damaged" in shown.err and "step-" in shown.err
    if name == "training/manifest.json":
        file.unlink()  # in a run a checkpoint without one is none
        assert lmkit_("generate", "run", "the cat").code == 4


def test_weights_may_be_read_by_whom_the_umask_lets(tiny, monkeypatch):
    before = os.umask(0o027)
    try:
        stopped_at(monkeypatch, 5)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(f.stat().st_mode) for f in Path("run/latest/").resolve().rglob("*") if f.is_file()}
    assert modes == {0o640}


@pytest.mark.parametrize("setting", ["optimizer.lr=1e38", "optimizer.weight_decay=1e300"])
def test_weights_that_overflow_are_not_saved(setting, tiny):
    loud = ("schedule.warmup=0", "checkpoint.every=1", "optimizer.name=adamw", "evaluate.every=0")
    with pytest.raises(Diverged, match=r"(?s)not finite after step \d+; this step is not saved"):
        pretraining_run.start(tiny, (*loud, setting), Path("run"))
    assert not list(Path("run/checkpoints").iterdir()) or all(
        math.isfinite(float(p.abs().sum())) for c in Run(Path("run")).steps() for p in _weights(c)
    )


def _weights(checkpoint: Path):
    return load_file(checkpoint / "model.safetensors").values()


# ---------------------------------------------------------------- the files of a run


def test_a_recipe_that_was_changed_by_hand_is_shown_and_refused(tiny, straight, monkeypatch, lmkit_):
    stopped_at(monkeypatch, 7)
    file = Path("run/recipe.yaml")
    whole = file.read_text()
    file.write_text(whole.replace("seed: 0", "seed: 7"))
    shown = lmkit_("pretrain", "--resume", "run")
    assert shown.code == 2 and "train.seed: 0 -> 7" in shown.err and "--accept-changes" in shown.err
    file.write_text(whole)
    assert lmkit_("pretrain", "--resume", "run").code == 0
    same(straight, "run")


def test_a_change_that_was_accepted_is_asked_for_once(tiny, monkeypatch, lmkit_):
    stopped_at(monkeypatch, 7)
    monkeypatch.setattr(run_shell, "run_to_end", lambda *_: 1)  # as if it were killed before its next checkpoint
    args = ("pretrain", "run/recipe.yaml", "train.budget=14 steps", "--resume", "run")
    assert lmkit_(*args).code == 2
    assert lmkit_(*args, "--accept-changes").code == 1
    monkeypatch.undo()
    monkeypatch.chdir(tiny.parent)
    monkeypatch.setenv("LMKIT_CACHE", str(tiny.parent / "cache"))
    assert lmkit_("pretrain", "--resume", "run").code == 0 and rows("run")[-1]["step"] == 14
    assert [e["changes"] for e in events("run", "recipe changed")] == [["train.budget: 12 steps -> 14 steps"]]


def test_damaged_lines_of_metrics_are_counted_and_cost_no_others(tiny, straight, monkeypatch, lmkit_):
    stopped_at(monkeypatch, 7)
    file = Path("run/metrics.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], b"\0\0" + lines[1][2:], b"[1]\n", *lines[2:], b'{"step": 9']))
    shown = lmkit_("pretrain", "--resume", "run")
    assert shown.code == 0 and "metrics.jsonl: 2 damaged lines are lost, like line 2" in shown.err
    assert [row["step"] for row in rows("run")] == [1, *range(3, 13)]
    assert rows("run")[1:] == rows(str(straight))[2:]


@pytest.mark.parametrize("content", ["", "null", "[", '{"state": "run', "\0\0"])
@pytest.mark.parametrize("name", ["status.json", "recipe.yaml"])
def test_a_damaged_run_hides_no_other(name, content, tmp_path, monkeypatch, lmkit_):
    monkeypatch.chdir(tmp_path)
    for run in ("one", "a-run-with-a-name-that-is-longer-than-eighty-columns-of-a-terminal-" + "x" * 40):
        Path("runs", run).mkdir(parents=True)
        Path("runs", run, "recipe.yaml").write_text("model: {family: gpt2}")
        Path("runs", run, "status.json").write_text('{"state": "done", "step": 3}')
    Path("runs/one", name).write_text(content)
    shown = lmkit_("runs")
    assert shown.code == 0 and run in shown.out and "runs/one" in shown.out and "…" not in shown.out


# ---------------------------------------------------------------- signals, and what a person names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_after_the_last_step_is_resumable(number, tiny, straight, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(pretraining_run, "keep_average", lambda *_: os.kill(os.getpid(), number))
        assert pretraining_run.start(tiny, (), Path("run")) == STOPPED_RESUMABLE
    assert json.loads(Path("run/status.json").read_text())["state"] == "stopped"
    assert "after the last step" in capfd.readouterr().out
    assert pretraining_run.resume(Path("run")) == 0
    assert json.loads(Path("run/status.json").read_text())["state"] == "done"
    same(straight, "run")


def test_a_reader_that_leaves_while_the_end_is_told_costs_nothing(tiny, straight, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    assert pretraining_run.start(tiny, (), Path("run")) == 0
    assert json.loads(Path("run/status.json").read_text())["state"] == "done"
    same(straight, "run")


def test_a_full_disk_is_named_wherever_a_file_is_written(tmp_path):
    """As `/dev/full` is: what the system says of a write names no file."""
    target = tmp_path / "a.json"
    (tmp_path / ".a.json.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as told:
        write_atomic(target, "x" * 100_000)
    assert told.value.filename == str(target) and not target.exists() and not (tmp_path / ".a.json.part").is_symlink()


LONG = "x" * 300
TOO_LONG = [
    *(("generate", LONG, "hi"), ("pretrain", LONG), ("pretrain", "--resume", LONG), ("runs", LONG)),
    *(("pretrain", "tiny.yaml", "--out", LONG), ("tokenize", "corpus.txt", "--out", LONG), ("kb", "stats", LONG)),
    *(("kb", "build", LONG, "corpus.txt"), ("eval", LONG, "--data", "corpus.txt")),
    ("finetune", "--task", "lm", "--model", LONG, "-d", "corpus.txt"),
]


@pytest.mark.parametrize("arguments", TOO_LONG, ids=lambda a: f"{a[0]} {len(a)}")
def test_a_name_that_is_too_long_is_told(arguments, tiny, lmkit_):
    shown = lmkit_(*arguments)
    assert shown.code in (2, 3, 4, 7) and len(shown.err) < 700 and "→" in shown.err, shown


def test_small_things_that_people_type(tiny, lmkit_):
    assert lmkit_("--version").out.strip()[0].isdigit()
    Path("🙂.csv").write_text("text,label\n" + "".join(f"a {i},{i % 2}\n" for i in range(20)))
    shown = lmkit_("finetune", "--task", "classify", "--data", "🙂.csv", "--model", "nowhere 🙂")
    assert "nowhere 🙂: no such model" in shown.err
    shown = lmkit_("pretrain", tiny, "--processes", "100000")
    assert shown.code == 2 and "a batch has 8 rows" in shown.err
    shown = lmkit_("pretrain", tiny, "train.batch=16M", "--processes", "100000")
    assert shown.code == 2 and "cores" in shown.err
    shown = lmkit_("pretrain", tiny, "optimizer.betas=[2,-1]")
    assert shown.code == 2 and "optimizer.betas" in shown.err
    assert lmkit_("pretrain", tiny, "model.num_layers=1000000000").code == 2
    for idle in ("--accept-changes", "--max-restarts=2"):  # each of which means something beside another option
        shown = lmkit_("pretrain", tiny, idle)
        assert shown.code == 2 and "add --" in shown.err
    assert lmkit_("finetune", "--resume", "run", "--validation", "20%").code == 2
    Path("link").symlink_to("link")
    for verb, *more in (("predict", "-d", "🙂.csv"), ("eval", "-d", "corpus.txt"), ("generate", "a")):
        assert lmkit_(verb, "link", *more).code in (2, 4)


def test_a_long_field_takes_memory_by_what_is_read_of_it():
    tokenizer = train_tokenizer(iter(["a word of text"] * 9), TokenizerConfig(type="wordpiece", vocab_size=300), "bert")
    short, long = "a word " * 200, "a word " * 4_000_000  # 28 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one, other = frame_texts(tokenizer, [short, long], max_length=64)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert one.ids == other.ids and one.cut and other.cut and grown < 1_500_000  # kB


def test_a_model_larger_than_memory_is_told(tiny, lmkit_):
    shown = lmkit_(
        "pretrain", tiny, "model.hidden_size=1000000", "model.num_heads=1000", "model.intermediate_size=4000000"
    )
    assert shown.code == 9 and "memory is not enough" in shown.err, shown


def test_a_damaged_average_is_noticed(tiny, monkeypatch, lmkit_):
    stopped_at(monkeypatch, 5)
    run, folder = Run(Path("run")), Path("run/average")
    files = {p.name: p.read_bytes() for p in Path("run/latest/").iterdir() if p.is_file()}

    def write(part: Path) -> None:
        for name, data in files.items():
            (part / name).write_bytes(data)

    run.save_beside("average", 4, write)
    run.close()
    assert lmkit_("generate", folder, "the cat").code == 0
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    shown = lmkit_("generate", folder, "the cat")
    assert shown.code == ModelError.exit_code and "is damaged" in shown.err


def test_sizes_that_make_no_heads_are_named(lmkit_):
    shown = lmkit_("pretrain", "demo", "model.hidden_size=32", "--dry-run")
    assert shown.code == 2 and "the sizes of `model` do not go together" in shown.err and "0 problem" not in shown.err
