"""Labelled rows, pairs, questions and conversations in any state, through `lmkit finetune`: what cannot be learnt from
is counted and named with its line, or ends with exit code 3 before any training."""

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmkit.data.tables.table import read_table
from lmkit.evaluation import baseline, classification
from lmkit.recipe import recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning
from lmkit.recipe.tasks import TableConfig
from lmkit.training import finetuning_run as finetuning
from tests.generation.folders import encoder_folder, llama_folder, seq2seq_folder

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
RANDOM = random.Random(0)
TEXTS = [" ".join(RANDOM.choices(WORDS, k=6)) + f" {i}" for i in range(400)]
CONTEXT = "the quick brown fox jumps over the lazy dog ."


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    encoder_folder(home / "bert", "bert")
    llama_folder(home / "llama")
    seq2seq_folder(home / "bart", "bart")
    return {"classify": home / "bert", "qa": home / "bert", "tag": home / "bert", "chat": home / "llama",
            "translate": home / "bart"}  # fmt: skip


@pytest.fixture
def finetune(models, tmp_path, monkeypatch, lmkit_):
    monkeypatch.chdir(tmp_path)

    def run(task: str, name: str, content: str | bytes, *more: str):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        quick = ["train.budget=1 steps"]
        quick += {"chat": [], "classify": ["train.batch=8", "task.baseline=false"]}.get(task, ["train.batch=8"])
        shown = lmkit_(
            "finetune", "--task", task, "--model", models[task], "--data", name, "--out", "run", *quick, *more
        )
        return shown._replace(err=shown.err.replace(f"{tmp_path}/", ""))

    return run


def lines(rows: list[Any]) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def labelled(labels: list[Any]) -> str:
    return lines([{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=False)])


def table(rows: list[str]) -> str:
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(TEXTS, rows, strict=False))


def questions(*answers: list[dict]) -> str:
    asked = [
        {"id": f"q{k}", "question": f"who {k} ?", "answers": a, "is_impossible": not a} for k, a in enumerate(answers)
    ]
    return json.dumps(
        {"data": [{"title": f"t{i}", "paragraphs": [{"context": f"{CONTEXT} {i}", "qas": asked}]} for i in range(20)]}
    )


def at(text: str, start: Any) -> dict:
    return {"text": text, "answer_start": start}


def said(*turns: tuple[str, str]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


GOOD_CHATS = [said(("user", f"hi {i}"), ("assistant", f"yo {i}")) for i in range(20)]
AB = ["a", "b"] * 20

# ---------------------------------------------------------------- nothing is learnt


REFUSED: dict[str, tuple[str, str, str | bytes, list[str]]] = {
    "one class": ("classify", "a.jsonl", labelled(["a"] * 40), ["all 36 rows have the label `a`", "data.label=COLUMN"]),
    "no label": ("classify", "a.jsonl", labelled([None] * 5), ["no row is left", "5 rows without a label: a.jsonl:1"]),
    "lists and names": ("classify", "a.jsonl", labelled([["a"], "b"] * 20),
                        [': the label "b" is no list, unlike 20 others', "give every row a list"]),
    "no header": ("classify", "a.csv", "".join(f"{t},{i % 2}\n" for i, t in enumerate(TEXTS[:20])),
                  ["a.csv: the first row is no header", "put a row with the names of the columns"]),
    "other columns": ("classify", "a.csv", "id,remark,grade\n1,x,2\n",
                      ["a.csv: cannot tell which columns to use (columns: id, remark, grade)", "data.text=COLUMN"]),
    "two labels": ("classify", "a.csv", "text,stars,topic\nx,1,2\n", ["cannot tell which columns", "stars, topic"]),
    "a column twice": ("classify", "a.csv", "text,label,label\nx,1,2\n", ["2 columns are called `label`", "rename"]),
    "a million columns": ("classify", "a.csv", ",".join(f"c{i}" for i in range(1_000_000)),
                          ["cannot tell which columns", "and 999,970 more"]),
    "only a header": ("classify", "a.csv", "text,label\n", ["no row is left"]),
    "empty": ("classify", "a.csv", "", ["no row is left"]),
    "one row": ("classify", "a.jsonl", labelled(["a"]), ["all 1 read the same", "data.validation"]),
    "all alike": ("classify", "a.jsonl", lines([{"text": "x", "label": x} for x in AB]),
                  ["cannot hold out rows: all 40 read the same"]),
    "Latin-1 alone": ("classify", "a.csv", "text,label\ncafé,a\n".encode("latin-1"),
                      ["1 undecodable texts: a.csv:2 (can be read as cp1252, ", "→ data.encoding=cp1252, "]),
    "binary": ("classify", "a.csv", b"text,label\n\0\0", ["1 binary files: a.csv"]),
    "cut JSON": ("classify", "a.json", '[{"text": "a", ', ["a.json: ", "is the file complete?"]),
    "deep JSON": ("classify", "a.json", "[" * 100_000, ["a.json: nested too deeply"]),
    "no list": ("classify", "a.json", "[1]", ["a.json: cannot read this JSON", "allowed: an object, a list"]),
    "cut Parquet": ("classify", "a.parquet", b"PAR1....", ["1 unreadable files: a.parquet"]),
    "other kind": ("classify", "a.docx", b"PK", ["`.docx` is no kind of file that classify reads", "allowed: .csv"]),
    "archive": ("classify", "a.zip", b"PK", ["`.zip` is no kind of file"]),
    "words and tags": ("tag", "a.jsonl", lines([{"words": ["a", "b"], "tags": ["O"]}]),
                       ["no row is left", "1 rows with another number of tags than of words: a.jsonl:1"]),
    "a word without a tag": ("tag", "a.conll", "the O\nfox\n\n",
                             ["1 sentences with a line of another number of columns: a.conll:1 (line 2)"]),
    "one tag": ("tag", "a.conll", "the O\nfox O\n\n" * 20, ["all"]),
    "answers that are nowhere": ("qa", "a.json", questions([{"text": "cat", "answer_start": 3}]),
                                 ["no row is left", "20 questions none of whose answers is in the context: a.json:q0"]),
    "broken questions": ("qa", "a.json",
                         '{"data": [{"paragraphs": [{"context": 5, "qas": [{}]}]}, {"paragraphs": 7}]}',
                         ["no row is left", "2 broken records: a.json (article 1, paragraph 1: "]),
    "questions": ("classify", "a.json", questions([]), ["a.json holds questions and answers (SQuAD)", "task.name=qa"]),
    "no role": ("chat", "a.jsonl", lines([{"messages": [{"content": "a"}]}]),
                ["no row is left", "1 conversations with the role `None` (allowed: system, user,", "a.jsonl:1"]),
    "nobody answers": ("chat", "a.jsonl", lines([said(("user", "hi"))] * 5),
                       ["no row is left", "5 conversations without answer: a.jsonl:1"]),
    "no sources": ("translate", "a.csv", "x,y\na,b\n", ["cannot tell which columns", "data.text=COLUMN"]),
    "empty sides": ("translate", "a.csv", "source,target\na,\n,b\n", ["no row is left", "2 empty texts: a.csv:2"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_teach_nothing_are_refused_with_their_line(name, finetune, tmp_path):
    task, file, content, says = REFUSED[name]
    shown = finetune(task, file, content)
    assert shown.code == 3 and all(part in shown.err for part in says), shown.err
    assert not list(tmp_path.glob("run/checkpoints/*")) and len(shown.err) < 3000


def test_parallel_files_of_different_length_are_refused_with_both(finetune, tmp_path):
    (tmp_path / "a.de").write_text("eins\n")
    shown = finetune("translate", "a.en", "one\ntwo\n", "data.text=en", "data.target=de")
    assert shown.code == 3 and "2 lines in a.en" in shown.err and "1 lines in a.de" in shown.err
    (tmp_path / "a.de").unlink()
    shown = finetune("translate", "a.en", "one\ntwo\n", "data.text=en", "data.target=de")
    assert shown.code == 3 and "a.en: the file with its target texts is missing" in shown.err


# ---------------------------------------------------------------- what can be learnt is, and the rest is counted


TAKEN: dict[str, tuple[str, str, str | bytes, list[str]]] = {
    "spaces": ("classify", "a.csv", table([" a", "a ", "b"] * 20), ["2 classes:", "a         36", "b         18"]),
    "case": ("classify", "a.csv", table(["A", "a", "b"] * 20), ["3 classes:"]),
    "mixed": ("classify", "a.jsonl", labelled([1, "1", True, "x", None] * 16),
              ["3 classes:", "1         ", "true ", "left out: 16 rows without a label, like a.jsonl:5"]),
    "unknown role": ("chat", "a.jsonl", lines([*GOOD_CHATS, said(("user", "a"), ("narrator", "b"))]),
                     ["left out: 1 conversations with the role `narrator` (allowed: system, user, assistant, tool",
                      "like a.jsonl:21"]),
    "numbers and names": ("classify", "a.jsonl", labelled([1, 2.5, "b"] * 20),
                          ["3 classes:", "  1   ", "  2.5 ", "  b "]),
    "numbers": ("classify", "a.jsonl", labelled([i / 7 for i in range(60)]), ["labels are numbers from 0 to "]),
    "no numbers": ("classify", "a.jsonl", labelled(AB) + '{"text": "x", "label": NaN}\n{"text": "x", "label": {}}\n',
                   ["left out: 2 rows without a label, like a.jsonl:41"]),
    "uneven": ("classify", "a.csv", table(["usual"] * 399 + ["rare"]), ["classes are uneven", "rare ", "0.3%"]),
    "markup": ("classify", "a.jsonl", labelled(["[/b]", "[red]x"] * 20), ["[/b] ", "[red]x "]),
    "controls": ("classify", "a.jsonl", labelled(["\x1b[31mred\x07", "b\nc"] * 20), ["   [31mred ", "b c  "]),
    "endless names": ("classify", "a.jsonl", labelled(["x" * 50_000, "b"] * 20), ["x" * 39 + "… "]),
    "doubles": ("classify", "a.jsonl", labelled(AB) * 2 + lines([{"text": TEXTS[0], "label": "b"}]),
                ["training rows repeat an earlier one", "1 texts have different labels in different training rows"]),
    "broken lines": ("classify", "a.jsonl", labelled(AB) + '{"text": "a",}\n{"text": 1, "text": 2, "label": 1}\n[1]\n',
                     ["left out: 3 broken records, like a.jsonl:41 (Expecting property name"]),
    "broken cells": ("classify", "a.csv", table(AB) + 'x\n1,2,3\n"x"y,a\n',
                     ["left out: 3 broken records, like a.csv:42 (1 fields under a header of 2)"]),
    "no text": ("classify", "a.jsonl", labelled(AB) + lines([{"text": " ", "label": 1}, {"text": 5, "label": 1}, {}]),
                ["left out: 2 empty texts, like a.jsonl:41", "left out: 1 texts that are no text, like a.jsonl:42"]),
    "half characters": ("classify", "a.jsonl", labelled(AB) + '{"text": "\\ud83d", "label": "a"}\n',
                        ["left out: 1 undecodable texts, like a.jsonl:41"]),
    "Latin-1": ("classify", "a.csv", table(AB).encode() + "café,a\n".encode("latin-1"),
                ["left out: 1 undecodable texts, like a.csv:42 (can be read as ", "cp1252"]),
    "CRLF and a mark": ("classify", "a.csv", ("\ufeff" + table(AB)).replace("\n", "\r\n"), ["40 rows", "2 classes:"]),
    "UTF-16": ("classify", "a.csv", table(AB).encode("utf-16"), ["40 rows", "2 classes:"]),
    "semicolons": ("classify", "a.csv", table(AB).replace(",", ";"), ["40 rows", "2 classes:"]),
    "answers": ("qa", "a.json", questions([at("brown fox", 11)], [at("cat", 3)], [at("fox", 16), at("cat", 0)], []),
                ["left out: 40 answers that are not in their context, like a.json:q1",
                 "left out: 20 questions none of whose answers is in the context, like a.json:q1",
                 "of the questions have no answer"]),
    "offsets": ("qa", "a.json", questions([at("fox", -5)], [at("fox", 10**30)], [at("fox", "x")], [{"text": "dog"}]),
                ["80 rows"]),
    "no answers": ("qa", "a.json", questions([]), ["of the questions have no answer"]),
    "chats": ("chat", "a.jsonl",
              lines([*GOOD_CHATS, said(("user", ""), ("assistant", "d")), said(("user", "c"), ("assistant", " ")),
                     {"messages": []}, {"messages": "hi"}, {"messages": [["user", "a"]]}, said(("user", "only"))]),
              ["left out: 2 empty texts, like a.jsonl:21", "left out: 2 conversations without answer, like a.jsonl:23",
               "left out: 2 conversations that are no lists of messages of text, like a.jsonl:24"]),
    "two systems": ("chat", "a.jsonl",
                    lines([said(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d"))] * 20),
                    ["20 rows", "<|im_start|>system\\na<|im_end|>\\n<|im_start|>system\\nb<|im_end|>"]),
    "the user last": ("chat", "a.jsonl",
                      lines([said(("user", "c"), ("assistant", "d"), ("user", "e")), *GOOD_CHATS]), ["21 rows"]),
    "a chat that spells tokens": ("chat", "a.jsonl",
                                  lines([*GOOD_CHATS, said(("user", "<|im_end|>"), ("assistant", "</s>"))]),
                                  ["21 rows"]),
    "pairs": ("translate", "a.csv", "source,target\n" + "".join(f"{t},{t}\n" for t in TEXTS[:20]) + f"a,{'b' * 50}\n",
              ["pairs have the same text on both sides", "pairs have one side over 9 times as long"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_left_out_or_odd_is_counted_before_training(name, finetune, tmp_path):
    task, file, content, says = TAKEN[name]
    more = ["data.validation=0"] if name in ("pairs", "doubles", "two systems") else []
    shown = finetune(task, file, content, *more)
    assert shown.code == 0, shown.err
    assert all(part in shown.err + shown.out for part in says), shown.err
    assert "\x1b" not in shown.err + shown.out and (tmp_path / "run" / "latest").exists()


def test_a_label_that_only_held_out_rows_have_is_left_out_and_counted(finetune, tmp_path):
    (tmp_path / "v.jsonl").write_text(labelled(["a", "b", "new"]))
    shown = finetune("classify", "a.jsonl", labelled(AB), "data.validation=v.jsonl")
    assert shown.code == 0
    assert "left out: 1 held-out rows whose label no training row has, like v.jsonl:3: `new`" in shown.err
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "v.jsonl").write_text(labelled(["new", "other"]))
    shown = finetune("classify", "a.jsonl", labelled(AB), "data.validation=v.jsonl")
    assert shown.code == 3
    assert "no row is left: 2 held-out rows whose label no training row has, like v.jsonl:1: `new`" in shown.err


def test_rows_on_both_sides_are_counted(finetune, tmp_path):
    (tmp_path / "v.jsonl").write_text(labelled(AB[:4]))
    shown = finetune("classify", "a.jsonl", labelled(AB), "data.validation=v.jsonl")
    assert shown.code == 0 and "4 (100.0%) held-out rows stand in the training rows too: their scores" in shown.err


def test_ten_thousand_classes_take_bounded_time(finetune, monkeypatch):
    """A thousand here under smaller limits: areas and TF-IDF, which take rows times classes, are left out."""
    monkeypatch.setattr(classification, "MOST_CELLS", 200_000)
    monkeypatch.setattr(baseline, "MOST_CELLS", 200_000)
    rows = "text,label\n" + "".join(f"the fox {i},class {i // 2}\n" for i in range(2000))
    shown = finetune("classify", "a.csv", rows, "task.baseline=true")
    assert shown.code == 0 and "1,000 classes:" in shown.err and "980 more, and the smallest:" in shown.err
    assert "no TF-IDF to compare with: 1,000 rows of 1,000 classes" in shown.err
    assert "accuracy" in shown.out and "auroc" not in shown.out and "TF-IDF" not in shown.out


def test_areas_have_intervals_up_to_a_size(monkeypatch):
    p = np.full((50, 4), 0.25)
    assert classification.single(np.arange(50) % 4, p)["auroc"].low is not None
    monkeypatch.setattr(classification, "RESAMPLED", 100)
    assert classification.single(np.arange(50) % 4, p)["auroc"] == (0.5, None, None)


@pytest.mark.parametrize("start", [10, 11, 9, 0, -1, 10**30, "10", None, "x", 1.5])
def test_an_answer_is_found_where_it_is_nearest_to_its_offset(start, tmp_path):
    (tmp_path / "a.json").write_text(questions([{"text": "brown", "answer_start": start}]))
    found = read_table([str(tmp_path / "a.json")], "qa", TableConfig(train="")).rows[0]["answers"]
    assert found == [{"text": "brown", "start": CONTEXT.index("brown")}]


# ---------------------------------------------------------------- predictions and conversations row by row


ROWS = {
    "a.csv": ("classify", b'text,label\nfine,a\n\xff,b\n,a\nshort\n"two\nlines",zzz\n',
              ["", "undecodable", "empty", "broken records (1 fields", ""], [2, 3, 4, 5, 6]),
    "a.jsonl": ("classify", b'{"text": "a"}\n{"text": "\xff"}\n{b\n{"text": 5}\n{}\n{"text": "z"}\n',
                ["", "undecodable", "broken records (Expecting", "no text", "empty", ""], [1, 2, 3, 4, 5, 6]),
    "a.txt": ("classify", b"one\n\n\xfftwo\nthree", ["", "empty", "undecodable", ""], [1, 2, 3, 4]),
    "b.txt": ("tag", b"the O\nquick O\nfox B-X\n\ndog O\n", ["", ""], [1, 5]),  # a word a line,
    "c.txt": ("tag", b"the quick fox\ndog\n", ["", ""], [1, 2]),  # and a sentence a line
    "a.conll": ("tag", b"the\n#fox\n#\n\nNew York\nis\n\nM\xff\n\ndog\n",
                ["", "another number of columns", "undecodable", ""], [1, 5, 8, 10]),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory) -> dict[str, Path]:
    """Of one step."""
    home = tmp_path_factory.mktemp("runs")
    contents = {
        "classify": labelled(AB), "qa": questions([at("brown fox", 11)]), "several": labelled([["a"], ["a", "b"]] * 20),
        "tag": "the O\n# O\nfox B-X\n\ndog B-X\njumps O\n\n" * 9 + "dog O\nlazy O\n",
    }  # fmt: skip
    for name, content in contents.items():
        task = "classify" if name == "several" else name
        file = home / (f"{name}.conll" if task == "tag" else f"{name}.json" if task == "qa" else f"{name}.jsonl")
        file.write_text(content)
        keys = [f"task.name={task}", f"model={models[task]}", f"data.train={file}", "train.batch=2",
                "train.budget=1 steps", "data.validation=0"]  # fmt: skip
        assert (
            finetuning.start(recipe_file.load_recipe(FinetuneRecipe, None, keys, expand_finetuning), name, home / name)
            == 0
        )
    return {name: home / name for name in contents}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_its_prediction_or_its_error_in_order(name, runs, lmkit_, tmp_path, monkeypatch):
    task, content, errors, places = ROWS[name]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    shown = lmkit_("predict", runs[task], "--data", name)
    predicted = [json.loads(line) for line in shown.out.splitlines()]
    assert shown.code == 0 and [line["place"] for line in predicted] == [f"{name}:{n}" for n in places]
    for line, error in zip(predicted, errors, strict=True):
        assert error in line.get("error", "") and bool(error) == ("error" in line)
        assert error or line.keys() & {"label", "tags"}
    assert f"reads {name}" in shown.err
    if task == "tag":
        assert len(predicted[0]["tags"]) == 3  # words that begin with # are words


def test_a_question_that_leaves_no_room_is_left_out_alone_and_far_answers_are_counted(finetune, runs, lmkit_, tmp_path):
    asked = json.loads(questions([at("brown fox", 11)], [at(CONTEXT, 0)]))
    asked["data"][3]["paragraphs"][0]["qas"][0]["question"] = "who " * 200
    shown = finetune("qa", "a.json", json.dumps(asked), "task.max_answer=8", "data.validation=0")
    assert shown.code == 0 and "left out: 1 of 40 questions, like a.json:q0: too long a question" in shown.err
    assert "20 of 40 questions have no answer of at most task.max_answer=8 tokens" in shown.err
    shown = lmkit_("predict", runs["qa"], "--data", "a.json")
    predicted = [json.loads(line) for line in shown.out.splitlines()]
    assert ["error" in line for line in predicted] == [i == 6 for i in range(40)]
    assert "leaves no room" in predicted[6]["error"]


def test_columns_of_training_are_read_again_or_missed(finetune, lmkit_, tmp_path):
    pairs = "a,b,y\n" + "".join(f"fox {i},dog {i},{'xy'[i % 2]}\n" for i in range(30))
    shown = finetune("classify", "p.csv", pairs, "data.text=a", "data.pair=b", "data.label=y", "data.validation=0")
    assert shown.code == 0 and "text from `a`, pair from `b`, label from `y`" in shown.err
    (tmp_path / "other.csv").write_text("a,text,sentence2,label\nfox,dog,dog,x\n")
    for command in ("predict", "eval"):
        shown = lmkit_(command, "run", "--data", "other.csv")
        assert shown.code == 3 and "no column `b`" in shown.err and "with --pair NAME" in shown.err
    shown = lmkit_("eval", "run/latest", "--data", "other.csv", "--pair", "sentence2", "--label", "label", "--json")
    assert "text from `a`, pair from `sentence2`, label from `label`" in shown.err and shown.code == 0
    shutil.rmtree(tmp_path / "run")
    assert finetune("classify", "t.csv", pairs.replace("a,b,y", "text,other,label"), "data.validation=0").code == 0
    (tmp_path / "other.csv").write_text("text,hypothesis\nfox,dog\n")  # a pair is read only where it was learnt
    assert "text from `text`; 1 rows" in lmkit_("predict", "run", "--data", "other.csv").err


def test_two_models_of_several_labels_are_compared_and_a_wrong_option_is_refused(finetune, runs, lmkit_, tmp_path):
    (tmp_path / "new.csv").write_text('text,label\nfox,"[\'a\']"\ndog,[]\nlazy,"[""b"", ""a""]"\ncat,"[\'c\']"\n')
    shutil.copytree(runs["several"], tmp_path / "again", symlinks=True)
    shown = lmkit_("eval", runs["several"], "again", "--data", "new.csv", "--json")
    told = json.loads(shown.out)
    assert told["comparison"]["p"] == 1.0 and told["rows"] == 3 and len(told["models"]) == 2
    assert "left out: 1 rows whose label the model does not have, like new.csv:5: `c`" in shown.err
    predicted = lmkit_("predict", "again", "--data", "new.csv")
    for line in map(json.loads, predicted.out.splitlines()):
        assert line["labels"] == [name for name, p in line["scores"].items() if p >= 0.5]
    several = labelled([["a"], ["b"]] * 20)
    for option in ("task.class_weights=true", "task.label_smoothing=0.1", "task.metric=pearson", "task.metric=mcc"):
        shown = finetune("classify", "s.jsonl", several, option)
        assert shown.code == 2 and option.partition("=")[0] in shown.err and not (tmp_path / "run").exists()
    assert finetune("classify", "s.jsonl", labelled(AB), "task.metric=micro_f1").code == 2


CHAT_KINDS = [
    {"system": "Be kind.", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"system": "Be.", "conversations": [{"from": "system", "value": "Own."}, {"from": "human", "value": "a"},
                                        {"from": "gpt", "value": "b", "weight": 1}]},
    {"conversations": [{"from": "human", "value": "add"}, {"from": "function_call", "value": '{"name": "f"}'},
                       {"from": "observation", "value": "2"}, {"from": "gpt", "value": "two"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0.5}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f(1)"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": None}]},
    {"tools": "x", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
]  # fmt: skip


def test_conversations_of_other_tools_are_read_whole_or_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(CHAT_KINDS))
    table = read_table([str(tmp_path / "a.jsonl")], "chat", TableConfig(train=""))
    first, second, third = (row["messages"] for row in table.rows)
    assert first[0] == {"role": "system", "content": "Be kind."} and second[0]["content"] == "Own."
    assert [m["role"] for m in third] == ["user", "assistant", "tool", "assistant"]
    assert third[1]["tool_calls"] == [{"type": "function", "function": {"arguments": {}, "name": "f"}}]
    counted = [(n, table.problems.examples[kind][0][-1]) for kind, n in table.problems.counts.items()]
    assert counted == [(1, line) for line in "24567"]
    alpaca = {"instruction": "c", "output": "d", "system": "S", "history": [["a", "b"]]}
    (tmp_path / "b.jsonl").write_text(lines([alpaca, alpaca | {"history": ["a"]}, alpaca | {"history": None}]))
    table = read_table([str(tmp_path / "b.jsonl")], "chat", TableConfig(train=""))
    assert ["".join(m["content"] for m in row["messages"]) for row in table.rows] == ["Sabcd", "Scd"]
    assert table.problems.counts == {"conversations whose history is no list of pairs of texts": 1}


def test_a_conversation_that_its_template_refuses_is_left_out_and_counted(finetune, tmp_path):
    refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system!') }}{% endif %}"
    (tmp_path / "t.jinja").write_text(refusing + "{{ m.content + eos_token }}{% endfor %}")
    chats = [*GOOD_CHATS, said(("system", "s"), ("user", "hi"), ("assistant", "yo"))]
    chats += [{"messages": [*GOOD_CHATS[0]["messages"][:1], {"role": "assistant", "content": "no", "weight": 0}]}]
    chats += [{"messages": [*GOOD_CHATS[1]["messages"], {"role": "user", "content": "x", "mood": "sad"}]}]
    shown = finetune("chat", "a.jsonl", lines(chats), "task.template=t.jinja", "data.validation=0")
    assert shown.code == 0, shown.err
    assert "left out: 1 of 23 conversations (4.3%) are refused: chat template" in shown.err
    assert "No system!" in shown.err and "1 of 23 conversations (4.3%) have no answer but such of weight 0" in shown.err
    assert "1 of 23 conversations have `mood`, which the chat template does not write" in shown.err
    shutil.rmtree(tmp_path / "run")
    shown = finetune("chat", "a.jsonl", lines(chats[20:21] * 20), "task.template=t.jinja", "data.validation=0")
    assert shown.code == 3 and "No system!" in shown.err and "→ task.template=chatml" in shown.err


@pytest.mark.parametrize("task", ["classify", "chat", "bart"])  # an encoder, a decoder, both
def test_a_run_that_went_on_with_pretraining_is_scored(task, models, lmkit_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("\n".join(TEXTS))
    shown = lmkit_("finetune", "--task", "lm", "--model", models.get(task, models["translate"]), "--data", "a.txt",
                   "--out", "run", "train.budget=1 steps", "train.batch=2", "data.separator=\n")  # fmt: skip
    assert shown.code == 0, shown.err
    shown = lmkit_("eval", "run", "--data", "a.txt", "--json")
    assert shown.code == 0 and json.loads(shown.out)["perplexity"]["value"] > 1, shown.err
    scores = lambda out: {key: value for key, value in json.loads(out).items() if key != "settings"}
    named = lmkit_("eval", "run", "--data", "a.txt", "--json", "--separator", "\n")
    assert scores(named.out) == scores(shown.out)
    uncut = lmkit_("eval", "run", "--data", "a.txt", "--json", "--separator", "\f")
    assert scores(uncut.out) != scores(shown.out) and "1 files in which the separator does not stand" in uncut.err


def test_columns_in_another_encoding_are_told(finetune):
    shown = finetune("classify", "b.csv", "文本,标签\n很好,好\n".encode("gbk"))
    assert shown.code == 3 and "b.csv: the names of its columns are not UTF-8 (they can be read as gbk" in shown.err


@pytest.mark.parametrize("write", [str, json.dumps, lambda words: str(tuple(words))], ids=["python", "json", "tuple"])
def test_words_and_tags_in_lists_that_cells_spell(write, tmp_path):
    rows = [(["the", "Paris", "it's"], ["O", "B-LOC", "O"]), (["old", "a, b"], ["O", "O"])]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("tokens", "ner_tags"), *((write(a), write(b)) for a, b in rows)])
    table = read_table([str(tmp_path / "t.csv")], "tag", TableConfig(train="t.csv"))
    assert [(row["words"], row["tags"]) for row in table.rows] == rows


def test_lists_of_words_as_numpy_writes_them_are_read_and_mixtures_are_counted(tmp_path):
    words = [["it's", 'a "b"'], ["c\\", "d"], ["e"]]
    lines = [f'"{str(np.array(row)).replace(chr(34), chr(34) * 2)}","{np.array(["O"] * len(row))}"\n' for row in words]
    (tmp_path / "t.csv").write_text("tokens,ner_tags\n" + "".join(lines) + "\"['a' 'b', 'c']\",O O O\n")
    table = read_table([str(tmp_path / "t.csv")], "tag", TableConfig(train="t.csv"))
    assert [row["words"] for row in table.rows] == words and [*table.problems.counts.values()] == [1]


@pytest.mark.parametrize("broken", [{"context": "x"}, None, {"context": "x", "qas": 3}, {"qas": [{"question": "y"}]}])
def test_a_broken_paragraph_costs_no_other(broken, tmp_path):
    whole = [{"context": f"the word {i}", "qas": [{"id": f"q{i}", "question": "which", "answers": [
        {"text": "word", "answer_start": 4}]}]} for i in range(4)]  # fmt: skip
    articles = [{"title": "a", "paragraphs": [whole[0], broken, *whole[1:]]}]
    (tmp_path / "s.json").write_text(json.dumps({"data": articles}))
    table = read_table([str(tmp_path / "s.json")], "qa", TableConfig(train="s.json"))
    assert [row["id"] for row in table.rows] == ["q0", "q1", "q2", "q3"]
    assert [*table.problems.counts.values()] == [1] and "paragraph 2" in str(table.problems.examples)
