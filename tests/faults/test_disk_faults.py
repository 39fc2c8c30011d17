"""Disks that fill up, directories that vanish, checkpoints that rot: said, survived, and gone on from exactly."""

import json
import os
import resource
import shutil
import signal
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import lmkit
from lmkit.base.errors import STOPPED_RESUMABLE, ModelError, RunInUse, StorageError
from lmkit.base.manifest import MANIFEST, damage
from lmkit.base.runs import Run, read_jsonl, reading
from lmkit.training import pretraining_run
from tests.training.stopping import LAST, at, at_call, at_file, at_pass, events, same, stopped_at

# `tiny` writes a checkpoint after steps 3, 4, 6, 8, 9 and 12; 4, 8 and 12 are the best so far
BESIDE = ["checkpoint.async=false", "checkpoint.async=true"]


@contextmanager
def no_file_above(size: int):
    """What a full disk does: the system refuses to write, to Python and to the Rust of safetensors alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_at(monkeypatch, *steps: int) -> None:
    """The disk is full while these steps are saved: no weights (20 kB) fit, while lines of text do."""
    real = Run.save

    def save(self, step, *args):
        with no_file_above(8_000 if step in steps else resource.RLIM_INFINITY):
            return real(self, step, *args)

    monkeypatch.setattr(Run, "save", save)


# ---------------------------------------------------------------- 6, 7, 8: full, or not to be written to


@pytest.mark.parametrize("beside", BESIDE)
def test_a_full_disk_keeps_the_previous_checkpoint_and_training_goes_on(tiny, straight, monkeypatch, capfd, beside):
    full_at(monkeypatch, 6, 8)
    links = []
    at_call(monkeypatch, Run, "event", 3, lambda: links.append(Path("run/latest").resolve().name))  # step 8 is told
    assert pretraining_run.start(tiny, (beside,), Path("run")) == 0
    assert "File too large" in (err := capfd.readouterr().err) and "the previous checkpoint stays" in err
    assert [e["reason"].partition(":")[0][-1] for e in events("run", "not saved")] == ["6", "8"]
    assert links == ["step-00000004"] and not list(Path("run/checkpoints").glob("*.part"))
    same(straight, "run")


def test_too_little_room_for_the_checkpoints_is_said_before_the_first_step(tiny, monkeypatch, lmkit_):
    weights = sum(f.stat().st_size for f in _checkpoint(monkeypatch).rglob("*.safetensors"))
    keep = 2
    for free, is_said in ((0.8 * (keep + 2) * weights, True), (1.2 * (keep + 2) * weights, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=int(free)))
        shown = lmkit_("pretrain", tiny, f"checkpoint.keep={keep}", "--out", f"run{is_said}")
        assert shown.code == 0 and ("4 checkpoints may lie there at once" in shown.err) is is_said, shown.err


def _checkpoint(monkeypatch) -> Path:
    stopped_at(monkeypatch, 5)
    return Path("run/latest").resolve()


def test_the_best_is_one_that_was_saved(tiny, straight, monkeypatch):
    """Step 12 scores best. If it cannot be saved, nothing says it is there."""
    with monkeypatch.context() as patch:
        full_at(patch, 12)
        with pytest.raises(StorageError, match="step-00000012: the checkpoint could not be written: File too large"):
            pretraining_run.start(tiny, (), Path("run"))
    assert Path("run/best").resolve().name == "step-00000008" and damage(Path("run/best")) is None
    assert pretraining_run.resume(Path("run")) == 0
    same(straight, "run")


@pytest.mark.parametrize("beside", BESIDE)
def test_three_saves_in_a_row_that_fail_end_the_run_resumably(tiny, straight, monkeypatch, beside):
    with monkeypatch.context() as patch:
        full_at(patch, 6, 8, 9)
        with pytest.raises(StorageError, match="step-00000009"):
            pretraining_run.start(tiny, (beside,), Path("run"))
    assert pretraining_run.resume(Path("run")) == 0
    same(straight, "run")


def test_the_last_checkpoint_is_tried_though_the_one_before_failed(tiny, straight, monkeypatch):
    """Written beside training, that is known only when the last one is due."""
    full_at(monkeypatch, 9)
    assert pretraining_run.start(tiny, ("checkpoint.async=true",), Path("run")) == 0
    same(straight, "run")


def test_asked_to_stop_in_a_save_that_fails_it_saves_the_next_step(tiny, straight, monkeypatch):
    full_at(monkeypatch, 6)
    at(monkeypatch, "lmkit.save", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert pretraining_run.start(tiny, ("checkpoint.async=false",), Path("run")) == STOPPED_RESUMABLE
    assert Path("run/latest").resolve().name == "step-00000007"
    assert pretraining_run.resume(Path("run")) == 0
    same(straight, "run")


def test_a_disk_full_of_metrics_ends_in_one_message_and_is_resumed_exactly(tiny, straight, monkeypatch, lmkit_):
    logs, real = {}, Run.open_log

    def opened(run, name):
        logs[name] = real(run, name)
        return logs[name]

    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(Run, "open_log", opened)
        at_pass(patch, 20, lambda: os.dup2(full.fileno(), logs["metrics.jsonl"].fileno()))
        shown = lmkit_("pretrain", tiny, "--out", "run")
    assert shown.code == 7 and "run: No space left on device, at step 7" in shown.err
    assert "--resume run" in shown.err and json.loads(Path("run/status.json").read_text())["state"] == "failed"
    assert lmkit_("pretrain", "--resume", "run").code == 0
    same(straight, "run")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_disk_full_of_tokens_ends_in_one_message_and_the_same_command_goes_on(tiny, lmkit_, kind):
    args = ("pretrain", tiny, f"tokenizer.type={kind}", "tokenizer.vocab_size=300", "train.budget=1 step")
    with no_file_above(4_000):  # the tokenizer's file, written by Rust, is larger
        shown = lmkit_(*args, "--out", "run")
    assert shown.code == 7 and "File too large" in shown.err and "make room" in shown.err, shown
    assert not Path("run").exists()
    assert lmkit_(*args, "--out", "run").code == 0


@pytest.mark.parametrize("place", ["/proc/run", "file/run", "file"])
def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(tiny, lmkit_, place):
    Path("file").write_text("mine")
    shown = lmkit_("pretrain", tiny, "--out", place)
    assert shown.code == 7 and f"{place}: cannot write a run here" in shown.err
    assert not Path("cache").exists() and Path("file").read_text() == "mine"


# ---------------------------------------------------------------- 9: gone


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("when", ["step", "save"])
def test_a_run_whose_directory_is_deleted_stops_and_makes_no_half_of_one(tiny, monkeypatch, when, beside):
    gone = lambda: Path("run").rename("moved")
    with monkeypatch.context() as patch:
        if when == "step":
            at_pass(patch, 14, gone)
        else:
            at_file(patch, 3, gone)  # in the third checkpoint, half written
        with pytest.raises(StorageError, match="run: deleted or replaced while the run went on"):
            pretraining_run.start(tiny, (beside,), Path("run"))
    assert not Path("run").exists()


def test_a_directory_put_in_its_place_is_not_written_to_and_the_run_goes_on_when_it_is_back(
    tiny, straight, monkeypatch
):
    def swap() -> None:
        Path("run").rename("moved")
        Path("run").mkdir()
        Path("run/lock").write_text("another's")

    with monkeypatch.context() as patch:
        at_pass(patch, 14, swap)
        with pytest.raises(StorageError, match="deleted or replaced"):
            pretraining_run.start(tiny, (), Path("run"))
    assert [p.name for p in Path("run").iterdir()] == ["lock"] and Path("run/lock").read_text() == "another's"
    shutil.rmtree("run")
    Path("moved").rename("run")
    assert pretraining_run.resume(Path("run")) == 0
    same(straight, "run")


# ---------------------------------------------------------------- 10, 16: damage and retention


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


DAMAGE = {
    "truncated": lambda f: os.truncate(f, f.stat().st_size // 2),
    "emptied": lambda f: os.truncate(f, 0),
    "flipped": flip,
    "zeroed": lambda f: f.write_bytes(bytes(f.stat().st_size)),
    "missing": lambda f: f.unlink(),
    "a directory": lambda f: (f.unlink(), f.mkdir()),
}


def test_every_kind_of_damage_to_every_file_is_noticed(straight, tmp_path):
    names = [*json.loads((straight / LAST / MANIFEST).read_text())["files"], MANIFEST]
    assert {"model.safetensors", "config.json", "training/optimizer.safetensors", "training/state.json"} < {*names}
    for kind, spoil in DAMAGE.items():
        for name in names:
            shutil.copytree(straight / LAST, tmp_path / "copy")
            spoil(tmp_path / "copy" / name)
            assert damage(tmp_path / "copy") is not None, (kind, name)
            shutil.rmtree(tmp_path / "copy")
    for manifest in ("[]", "{}", '{"files": 5, "sha256": 0}', '{"files": {"a": 1}, "sha256": ""}', "\x00"):
        shutil.copytree(straight / LAST, tmp_path / "copy")
        (tmp_path / "copy" / MANIFEST).write_text(manifest)
        assert "manifest" in str(damage(tmp_path / "copy")), manifest
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize("spoilt", [("step-00000009",), ("step-00000009", "step-00000008")], ids=len)
def test_the_newest_whole_checkpoint_is_used_and_the_others_are_named_and_put_aside(
    tiny, straight, monkeypatch, lmkit_, spoilt
):
    stopped_at(monkeypatch, 11)
    for name in spoilt:
        flip(Path("run/checkpoints", name, "training/optimizer.safetensors"))
    shown = lmkit_("pretrain", "--resume", "run")
    assert shown.code == 0
    for name in spoilt:
        assert f"{name} is damaged (training/optimizer.safetensors does not match its checksum)" in shown.err
        assert Path("run/checkpoints", name + ".damaged").is_dir()
    assert f"resuming run at step {8 if len(spoilt) == 1 else 6}" in shown.err
    assert [e["checkpoint"] for e in events("run", "damaged")] == list(spoilt)
    same(straight, "run")


def test_none_left_is_an_error_however_often_and_never_a_fresh_start(tiny, monkeypatch, lmkit_):
    stopped_at(monkeypatch, 7)
    for checkpoint in Path("run/checkpoints").iterdir():
        (checkpoint / "model.safetensors").unlink()
    for _ in range(2):
        shown = lmkit_("pretrain", "--resume", "run")
        assert shown.code == 4 and "no whole checkpoint to resume from" in shown.err
    for checkpoint in Path("run/checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    assert lmkit_("pretrain", "--resume", "run").code == 4


def test_a_best_checkpoint_that_is_damaged_is_refused_by_its_users_and_chosen_anew_by_a_resume(
    tiny, monkeypatch, lmkit_
):
    stopped_at(monkeypatch, 11)
    assert Path("run/best").resolve().name == "step-00000008"
    flip(Path("run/best/training/optimizer.safetensors"))
    lmkit.load("run")  # which is nothing to those who only use the model
    flip(Path("run/best/model.safetensors"))
    with pytest.raises(ModelError, match=r"run/best is damaged: model\.safetensors .*\n.*step-00000009"):
        lmkit.load("run")
    shown = lmkit_("pretrain", "--resume", "run")
    assert shown.code == 0 and "step-00000008, the best so far, is damaged" in shown.err
    best = json.loads(Path("run/status.json").read_text())["best"]
    assert best["step"] == 12 and Path("run/best").resolve().name == "step-00000012"
    lmkit.load("run")


def test_retention_deletes_only_what_it_owns_and_never_the_best(tiny, monkeypatch):
    still = ("optimizer.name=adamw", "optimizer.lr=0")  # nothing is better than the first
    stopped_at(monkeypatch, 2, "checkpoint.every=1", "checkpoint.keep=2", *still)
    foreign = ["step-00000001-copy", "step-1", "notes", "step-00000002.bak", "mine.part", "step-00000003.txt"]
    swept = ["step-00000004.old", "step-00000005.part"]  # of a run that was killed
    for name in (*foreign, *swept):
        Path("run/checkpoints", name).mkdir()
        Path("run/checkpoints", name, "file").write_text("")
    assert pretraining_run.resume(Path("run")) == 0
    kept = {p.name for p in Path("run/checkpoints").iterdir()}
    assert kept == {*foreign, *(f"step-{n:08d}" for n in (4, 11, 12))}
    assert Path("run/best").resolve().name == "step-00000004"


def test_a_checkpoint_is_not_deleted_while_somebody_reads_it(tiny, monkeypatch):
    stopped_at(monkeypatch, 5, "checkpoint.keep=1", "evaluate.every=0")
    with reading(Path("run/latest")):
        assert pretraining_run.resume(Path("run")) == 0
        assert {p.name for p in Path("run/checkpoints").iterdir()} == {"step-00000003", "step-00000012"}
    assert lmkit.load("run").folder == Path("run/best")


# ---------------------------------------------------------------- 11, 12: two of them, and clocks


def test_a_second_process_is_told_who_has_the_run_and_takes_it_over_once_that_is_killed(
    tiny, straight, monkeypatch, lmkit_
):
    stopped_at(monkeypatch, 11)
    assert Path("run/lock").read_text() == ""  # closed by its owner, crash or not
    read, write = os.pipe()
    owner = os.fork()
    if not owner:
        held = Run(Path("run"))
        os.write(write, b"x")
        time.sleep(60)
        held.close()
        os._exit(0)
    os.read(read, 1)
    said = f"process {owner} on {socket.gethostname()}"
    state = lambda: json.loads(lmkit_("runs", "list", ".", "--json").out)["state"]
    Path("run/status.json").write_text('{"state": "running"}')
    try:
        assert state() == "running"
        with pytest.raises(RunInUse, match=said):
            Run(Path("run"))
        shown = lmkit_("pretrain", "--resume", "run")
        assert shown.code == 5 and f"run: in use by {said}" in shown.err
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    assert state() == "killed"
    shown = lmkit_("pretrain", "--resume", "run")
    assert shown.code == 0 and f"taken over from {said}" in shown.err
    assert events("run", "resume")[0]["killed"] == said
    same(straight, "run")


def test_a_clock_that_jumps_loses_no_checkpoint_and_no_time(tiny, straight, monkeypatch):
    """Back by years and forth again at every look; the ages of files say nothing about their order."""
    now, looks = time.time(), [0]

    def jumping() -> float:
        looks[0] += 1
        return now + (-1) ** looks[0] * 1e8

    local, real = time.localtime, Run.save
    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "strftime", lambda form, t=None, to=time.strftime: to(form, t or local(jumping())))

    def save(self, step, *args):
        saved = real(self, step, *args)
        os.utime(saved, (now - step * 1e6,) * 2)  # newer ones look older
        return saved

    monkeypatch.setattr(Run, "save", save)
    stopped_at(monkeypatch, 11)
    assert pretraining_run.resume(Path("run")) == 0
    same(straight, "run")
    assert looks[0] > 10 and json.loads(Path("run", LAST, "training/state.json").read_text())["elapsed"] > 0
    assert all(row["seconds"] >= 0 for row in read_jsonl(Path("run/timing.jsonl")))
    assert pretraining_run.start(tiny, ("train.budget=1 s", "schedule.warmup=5%"), Path("timed")) == 0
    assert 0 < json.loads(Path("timed/latest/training/state.json").read_text())["elapsed"] < 60  # years, by that clock
