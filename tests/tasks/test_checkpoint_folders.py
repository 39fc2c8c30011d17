"""A checkpoint's folder is the whole model: copied, it answers as its run does; its head is taken over by name."""

import json
import random
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from typer.testing import CliRunner

import lmkit
from lmkit.base.errors import ModelError
from lmkit.base.manifest import damage
from lmkit.commands.main import app
from tests.tasks.test_toys import SMALL, TRAIN, run, sentence

BERT = f"model={{family: bert, {SMALL}}}"


def command(*arguments: str) -> str:
    got = CliRunner().invoke(app, [*arguments])
    assert got.exit_code == 0, (got.output, got.exception)
    return got.stdout


def rows(path: Path, **columns) -> Path:
    """A file of 60 rows; columns: what makes the value of a cell of its number."""
    table = [{name: make(i) for name, make in columns.items()} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def classify(folder: Path) -> tuple[Path, tuple[str, ...]]:
    rng = random.Random(0)
    path = rows(folder / "rows.jsonl", body=lambda i: sentence(rng, f"w{i}"), topics=lambda i: "a;b" if i % 2 else "b")
    return path, ("task.name=classify", BERT, "data.text=body", "data.label=topics", "data.separator=';'",
                  "data.max_length=7", "task.cut=middle")  # fmt: skip


def answers(folder: Path) -> tuple[Path, tuple[str, ...]]:
    rng, path = random.Random(0), folder / "rows.json"
    texts = [sentence(rng, *["word"] * 20, "red") for _ in range(60)]
    found = [[] if i % 3 else [{"text": "red", "answer_start": text.index("red")}] for i, text in enumerate(texts)]
    qas = [{"id": f"q{i}", "question": "which colour", "answers": found[i]} for i in range(60)]
    data = [{"title": f"t{i}", "paragraphs": [{"context": text, "qas": [qas[i]]}]} for i, text in enumerate(texts)]
    path.write_text(json.dumps({"version": "2.0", "data": data}))
    return path, ("task.name=qa", BERT, "data.max_length=20", "task.max_answer=3", "task.overlap=3")


def translate(folder: Path) -> tuple[Path, tuple[str, ...]]:
    path = rows(folder / "rows.jsonl", source=lambda i: f"the film {i}", target=lambda i: f"{i} film")
    return path, ("task.name=translate", f"model={{family: bart, {SMALL}}}", "task.prompt='say: {source}'",
                  "task.beam=3", "task.max_new_tokens=6", "task.tokenize=char")  # fmt: skip


@pytest.mark.parametrize("made", [classify, answers, translate])
def test_a_copied_folder_answers_as_its_run(made, tmp_path):
    data, recipe = made(tmp_path)
    run(tmp_path / "run", *recipe, f"data.train={data}", *TRAIN, "train.budget=3 steps", "train.batch=16 rows")
    there, copy = str(tmp_path / "run"), str(tmp_path / "copy")
    said, scores = command("predict", there, "-d", str(data)), command("eval", there, "-d", str(data), "--json")
    shutil.copytree(tmp_path / "run/best", copy)  # through the link, as `cp -rL` does
    assert damage(Path(copy)) is None and "lmkit.json" in Path(copy, "training/manifest.json").read_text()
    shutil.move(there, tmp_path / "gone")
    assert command("predict", copy, "-d", str(data)) == said
    told = json.loads(scores.replace(there, copy))
    assert told.pop("trained_on")[0]["file"] == str(data)  # which the run alone knows
    assert json.loads(command("eval", copy, "-d", str(data), "--json")) == told

    if made is translate:
        stated = json.loads(command("eval", copy, "-d", str(data), "--json", "--beam", "3"))["stated"][copy]
        assert any("beam of 3" in line for line in stated)

    lmkit.load(copy).save(tmp_path / "saved")  # and so does what is saved of it
    assert command("predict", str(tmp_path / "saved"), "-d", str(data)) == said
    for unfit in ("[1]", "{", '{"task": {"name": "x"}}'):
        Path(copy, "lmkit.json").write_text(unfit)
        got = CliRunner().invoke(app, ["predict", copy, "-d", str(data)])
        assert isinstance(got.exception, ModelError) and "lmkit.json" in str(got.exception), got.exception


@pytest.mark.parametrize("family", ["bart", "t5", "gpt2"])
def test_transformers_writes_from_a_checkpoint_what_predict_writes(family, tmp_path):
    """How a text is searched for stands in generation_config.json: nobody has to tell `generate` anything."""
    data = rows(tmp_path / "rows.jsonl", source=lambda i: f"the film {i}", target=lambda i: f"{i} film {i} the")
    told = run(
        tmp_path / "run", "task.name=translate", f"model={{family: {family}, {SMALL}}}", f"data.train={data}", *TRAIN,
        f"data.validation={data}", "train.batch=16 rows", "task.prompt='say: {source} '", "task.beam=3",
        "task.max_new_tokens=3",  # which cuts texts
        "task.length_penalty={alpha: 0.3}",
    )  # fmt: skip
    scores = json.loads(command("eval", str(tmp_path / "run"), "-d", str(data), "--json"))
    assert scores["models"][str(tmp_path / "run")]["chrf"]["value"] == told["scores"]["chrf"]["value"]
    said = [
        json.loads(line)["text"] for line in command("predict", str(tmp_path / "run"), "-d", str(data)).splitlines()
    ]
    best = tmp_path / "run/best"
    kind = transformers.AutoModelForCausalLM if family == "gpt2" else transformers.AutoModelForSeq2SeqLM
    theirs, words = kind.from_pretrained(best), transformers.AutoTokenizer.from_pretrained(best)
    lines = [json.loads(line) for line in command("predict", str(tmp_path / "run"), "-d", str(data)).splitlines()]
    for i in range(0, 60, 7):
        source, target = (words(text)["input_ids"] for text in (f"say: the film {i} ", lines[i]["gold"]))
        target = (
            [*target[1:], words.eos_token_id] if family == "gpt2" else target
        )  # its tokenizer writes BOS before texts
        read = torch.tensor([source + target if family == "gpt2" else source])
        labels = torch.tensor([[-100] * len(source) + target if family == "gpt2" else target])
        with torch.no_grad():
            assert lines[i]["loss"] == pytest.approx(theirs(input_ids=read, labels=labels).loss.item(), abs=1e-4)
        ids = words(f"say: the film {i} ", return_tensors="pt")
        written = theirs.generate(**ids)[0, ids["input_ids"].shape[1] if family == "gpt2" else 0 :]
        assert words.decode(written, skip_special_tokens=True).strip() == said[i]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A folder that knows a toy, made by transformers of a run: its labels stand in another order than lmkit's."""
    folder, rng = tmp_path_factory.mktemp("start"), random.Random(0)
    words = {"pos": "superb", "neg": "dull"}
    named = [rng.choice(list(words)) for _ in range(60)]
    rows(folder / "rows.jsonl", text=lambda i: sentence(rng, words[named[i]]), label=lambda i: named[i])
    base = ("task.name=classify", f"data.train={folder / 'rows.jsonl'}", *TRAIN, "train.batch=16 rows")
    assert run(folder / "run", BERT, *base)["scores"]["accuracy"]["value"] == 1
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "run/best")
    assert theirs.config.id2label == {0: "neg", 1: "pos"}
    for p in theirs.classifier.parameters():
        p.data = p.data.flip(0)
    theirs.config.id2label, theirs.config.label2id = {0: "pos", 1: "neg"}, {"pos": 0, "neg": 1}
    theirs.save_pretrained(folder / "other")
    transformers.AutoTokenizer.from_pretrained(folder / "run/best").save_pretrained(folder / "other")
    return folder


STILL = ("task.name=classify", "train.budget=1 step", "optimizer.lr=1e-12", "task.baseline=false")


@pytest.mark.parametrize("more", [(), ("lora={rank: 2, merge: false}",)], ids=["whole", "adapter"])
def test_a_head_is_taken_over_by_the_names_of_its_labels(start, more, tmp_path):
    found = run(tmp_path / "run", f"model={start / 'other'}", f"data.train={start / 'rows.jsonl'}", *STILL, *more)
    assert found["scores"]["accuracy"]["value"] == 1
    again = run(tmp_path / "again", f"model={tmp_path / 'run'}", f"data.train={start / 'rows.jsonl'}", *STILL)
    assert again["scores"]["accuracy"]["value"] == 1
    said = command("predict", str(tmp_path / "run"), "-d", str(start / "rows.jsonl"))
    labels = [json.loads(line)["label"] for line in (start / "rows.jsonl").read_text().splitlines()]
    assert [json.loads(line)["label"] for line in said.splitlines()] == labels


def test_an_adapter_that_peft_alone_knows_predicts_by_its_task(start, tmp_path):
    """Without files of lmkit's own: the task is that of adapter_config.json, not of the base's head."""
    base = transformers.BertForMaskedLM(transformers.AutoConfig.from_pretrained(start / "other"))
    base.save_pretrained(tmp_path / "base")
    transformers.AutoTokenizer.from_pretrained(start / "other").save_pretrained(tmp_path / "base")
    labelled = transformers.BertForTokenClassification.from_pretrained(tmp_path / "base", num_labels=3)
    wrapped = peft.get_peft_model(labelled, peft.LoraConfig(task_type="TOKEN_CLS", r=2, target_modules=["query"]))
    wrapped.save_pretrained(tmp_path / "adapter")
    (tmp_path / "words.conll").write_text("the\nfilm\n\n")
    said = json.loads(command("predict", str(tmp_path / "adapter"), "-d", str(tmp_path / "words.conll")))
    assert len(said["tags"]) == 2 and set(said["tags"]) <= {"LABEL_0", "LABEL_1", "LABEL_2"}


@pytest.mark.parametrize("labels", [("Pos", "neg"), ("LABEL_0", "LABEL_1"), ("pos", "neg", "third")])
def test_other_labels_are_a_new_head_and_that_is_said(start, labels, tmp_path, capsys):
    lines = [json.loads(line) for line in (start / "rows.jsonl").read_text().splitlines()]
    data = rows(tmp_path / "rows.jsonl", text=lambda i: lines[i]["text"], label=lambda i: labels[i % len(labels)])
    run(tmp_path / "run", f"model={start / 'other'}", f"data.train={data}", *STILL)
    said = capsys.readouterr().err
    assert "a new head: the labels" in said and "those of the start (pos, neg)" in said
    assert "head.output.weight" in said
    was, now = (lmkit.load(folder).model.head.output.weight for folder in (start / "other", tmp_path / "run"))
    assert was.shape != now.shape or not torch.allclose(was, now, atol=1e-4)
