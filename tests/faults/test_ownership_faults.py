"""Nothing of a person's is overwritten, deleted or mixed up: files and folders that are there, are read, or are being
written by another process."""

import json
import os
from pathlib import Path

import pytest

from lmkit.base.files import replacing
from lmkit.data.tokens.store import TokenStore
from lmkit.text.tokenizer_files import load_tokenizer

QUICK = ("train.budget=1 step", "train.batch=4 rows", "tokenizer.type=bytes", "data.validation=0.3",
         "model={family: bert, hidden_size: 8, num_layers: 1, num_heads: 2, context: 32}")  # fmt: skip


@pytest.fixture
def rows(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": f"{'good' if i % 2 else 'bad'} {i}", "label": i % 2}) for i in range(40)]
    Path("rows.jsonl").write_text("\n".join(lines))
    return Path("rows.jsonl")


def classify(lmkit_, *more: object):
    return lmkit_("finetune", "--task", "classify", "--data", "rows.jsonl", "--out", "run", *QUICK, *more)


# ---------------------------------------------------------------- files


def test_a_knowledge_base_is_built_by_one_process_alone(tmp_path, monkeypatch, lmkit_):
    monkeypatch.chdir(tmp_path)
    Path("facts.csv").write_text("subject,relation,object\nFrance,capital,Paris\n")
    with pytest.raises(KeyError), replacing(Path("kb.sqlite")):
        shown = lmkit_("kb", "build", "kb.sqlite", "facts.csv")
        assert shown.code == 5 and "another process is writing it" in shown.err
        raise KeyError
    assert os.listdir() == ["facts.csv"]
    Path(".kb.sqlite.part").write_text("of a killed build")
    assert lmkit_("kb", "build", "kb.sqlite", "facts.csv").code == 0
    assert json.loads(lmkit_("kb", "stats", "kb.sqlite", "--json").out)["rows"]["triples"] == 1


def test_what_another_process_has_put_in_place_meanwhile_is_not_written_into(tmp_path):
    """Both open the part; one renames it before the other holds its lock."""
    with replacing(tmp_path / "a") as first:
        first.write_text("whole")
    with replacing(tmp_path / "a") as second:
        second.write_text("new")
        assert (tmp_path / "a").read_text() == "whole"
    assert (tmp_path / "a").read_text() == "new" and os.listdir(tmp_path) == ["a"]


def test_predictions_appear_whole_and_never_over_what_they_are_made_of(rows, lmkit_, monkeypatch):
    assert classify(lmkit_).code == 0
    before = rows.read_bytes()
    Path("link.jsonl").symlink_to(rows)
    for out in ("rows.jsonl", "./rows.jsonl", "link.jsonl"):
        shown = lmkit_("predict", "run", "--data", "rows.jsonl", "--out", out)
        assert shown.code == 2 and "it is read" in shown.err and rows.read_bytes() == before, shown
    for out, word in (
        ("no/such/place.jsonl", "No such file"),
        ("run", "Is a directory"),
        ("rows.jsonl/x", "Not a dir"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("lmkit.ops.predictions.load_all", lambda *_: pytest.fail("a model was loaded"))
            shown = lmkit_("predict", "run", "--data", "rows.jsonl", "--out", out)
        assert shown.code == 7 and word in shown.err, shown

    assert lmkit_("predict", "run", "--data", "rows.jsonl", "--out", "said.jsonl").code == 0
    said = Path("said.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("lmkit.ops.predictions.json.dumps", lambda *_, **__: 1 / 0)  # a crash in the middle of writing
        with pytest.raises(ZeroDivisionError):
            lmkit_("predict", "run", "--data", "rows.jsonl", "--out", "said.jsonl")
    assert Path("said.jsonl").read_bytes() == said and not list(Path().glob(".*.part"))
    assert lmkit_("predict", "run", "--data", "rows.jsonl", "--out", "/dev/null").code == 0
    assert not Path("/dev/null").is_file()


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize(
    "name", ["config.json", "thesis.txt", "checkpoints/step-00000001.old/thesis.txt", "tokenizer/x"]
)
@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_run_is_begun_in_no_folder_that_holds_something_else(name, verb, tiny, rows, lmkit_):
    Path("theirs", name).parent.mkdir(parents=True)
    Path("theirs", name).write_text("mine")
    given = (tiny,) if verb == "pretrain" else ("--task", "classify", "--data", rows, *QUICK)
    shown = lmkit_(verb, *given, "--out", "theirs")
    assert shown.code == 2 and f"holds {name.partition('/')[0]}, and no run" in shown.err, shown
    assert [p.read_text() for p in Path("theirs").rglob("*") if p.is_file()] == ["mine"]
    shown = lmkit_(verb, *given, "--out", "")
    assert shown.code == 2 and "the name is empty" in shown.err and not Path("recipe.yaml").exists()


def test_a_start_that_failed_leaves_nothing_to_the_next(rows, lmkit_, monkeypatch):
    """A smaller tokenizer is written, then `freeze` names no parameter; one that was killed leaves it as well."""
    trained = ("tokenizer.type=bpe", "tokenizer.vocab_size=263")
    shown = classify(lmkit_, *trained, "freeze=[zzz]")
    assert shown.code == 2 and not Path("run").exists(), shown
    with monkeypatch.context() as patch:
        patch.setattr("lmkit.base.runs.Run.close", lambda run: run._lock.close())  # as a kill leaves it
        assert classify(lmkit_, *trained, "freeze=[zzz]").code == 2
    assert Path("run/tokenizer").is_dir()
    assert classify(lmkit_, "tokenizer.type=bpe", "tokenizer.vocab_size=265").code == 0
    assert load_tokenizer("run").vocab_size == 265


# ---------------------------------------------------------------- tokens that are read


def test_tokens_are_not_made_anew_under_a_run_that_reads_them(tiny, lmkit_):
    args = ("tokenize", "corpus.txt", "--out", "tokens", "--kind", "bytes", "--validation", "20%")
    assert lmkit_(*args).code == 0
    files = {path: path.read_bytes() for path in Path("tokens").rglob("*") if path.is_file()}
    reader = TokenStore("tokens").held()
    assert lmkit_(*args).code == 0  # nothing is changed
    Path("corpus.txt").write_text(Path("corpus.txt").read_text() + "\nmore\nof it")
    shown = lmkit_(*args)
    assert shown.code == 5 and "a run reads the tokens" in shown.err and "choose another folder" in shown.err
    assert files == {path: path.read_bytes() for path in Path("tokens").rglob("*") if path.is_file()}
    del reader
    assert lmkit_(*args).code == 0


def test_a_run_on_changed_text_leaves_the_tokens_of_another_alone(tiny, lmkit_):
    run = ("pretrain", tiny, "train.budget=1 step")
    assert lmkit_(*run, "--out", "a").code == 0
    (folder,) = Path("cache/tokens").iterdir()
    files = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    reader = TokenStore(folder).held()
    Path("corpus.txt").write_text(Path("corpus.txt").read_text() + "\nmore\nof it")
    assert lmkit_(*run, "--out", "b").code == 0
    assert files == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    facts = [json.loads(Path(name, "environment.json").read_text())["data"] for name in "ab"]
    assert facts[0] == reader.fingerprint != facts[1]
