"""`lmkit init` writes recipes that start, for each goal, and asks only where somebody can answer."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from lmkit.base.errors import DataError, UserError
from lmkit.commands.main import app
from lmkit.recipe.either import load
from lmkit.recipe.recipe_file import parse_yaml

EARLIER = Path(__file__).parent.parent / "fixtures/earlier"


def lines(rows: list[dict]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def squad(n: int) -> str:
    answers = [{"text": "Bonn", "answer_start": 14}]
    questions = [[{"id": str(i), "question": f"Where is {i}?", "answers": answers}] for i in range(n)]
    paragraphs = [{"context": f"Anna lives in Bonn {i}.", "qas": qas} for i, qas in enumerate(questions)]
    return json.dumps({"data": [{"title": f"t{i}", "paragraphs": [p]} for i, p in enumerate(paragraphs)]})


def talk(i: int) -> list[dict]:
    return [{"role": "user", "content": f"hi there {i}"}, {"role": "assistant", "content": f"hello to you {i}"}]


TEXT = "\n\f\n".join(f"It was a fine day number {i}, and she went home again. " * 6 for i in range(60))
REVIEWS = "\n".join(f"a {'good' if i % 5 else 'bad'} film {i},{'pos' if i % 5 else 'neg'}" for i in range(60))
TAGGED = lines([{"tokens": ["In", f"Bonn{i}"], "ner_tags": ["O", "B-LOC"]} for i in range(40)])
PAIRS = "en,de\n" + "\n".join(f"house {i},Haus {i}" for i in range(50))
REPORTS = lines([{"document": f"long {i} text", "summary": f"{i}"} for i in range(50)])
CLASSES = {"data.text": "review", "data.label": "stars", "task.class_weights": True}
CASES = {  # file, its content, options, what the recipe then says
    "pretrain": ("a.txt", TEXT, (), {"data.separator": "\n\f\n", "train.budget": "10 min"}),
    "continue": ("a.txt", TEXT, ("--model", str(EARLIER / "run")), {"task.name": "lm"}),
    "classify": ("r.csv", "review,stars\n" + REVIEWS, (), CLASSES),
    "tag": ("t.jsonl", TAGGED, (), {"data.label": "ner_tags"}),
    "qa": ("q.json", squad(40), (), {"task.name": "qa"}),
    "translate": ("p.csv", PAIRS, ("--text", "en", "--target", "de"), {"data.text": "en", "data.target": "de"}),
    "summarize": ("s.jsonl", REPORTS, ("--budget", "2 epochs"), {"data.target": "summary", "train.budget": "2 epochs"}),
    "chat": ("c.jsonl", lines([{"messages": talk(i)} for i in range(40)]), (), {"data.text": "messages"}),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, content, *_ in CASES.values():
        Path(name).write_text(content)


def lmkit(*args: str):
    return CliRunner().invoke(app, args, catch_exceptions=False)


@pytest.mark.parametrize("goal", CASES)
def test_the_recipe_of_each_goal_starts(goal):
    name, _, options, wanted = CASES[goal]
    Path("recipes").mkdir()
    written = lmkit("init", goal, "--data", name, *options, "--out", "recipes/mine.yaml")
    verb, *rest = written.stdout.split("next  lmkit ")[1].split("   ")[0].split()
    text = Path("recipes/mine.yaml").read_text()
    assert text.startswith(f"# lmkit {verb} recipes/mine.yaml") and len(text.splitlines()) <= 25
    recipe = load(Path("recipes/mine.yaml"))
    for key, value in wanted.items():
        section, _, field = key.partition(".")
        assert getattr(getattr(recipe, section), field) == value, key
    assert rest == ["recipes/mine.yaml", "--dry-run"]
    assert f"`lmkit {verb}`" in lmkit("recipes", "check", "recipes/mine.yaml").stdout
    (schema,) = re.findall(r"yaml-language-server: \$schema=(.*)", text)
    jsonschema.validate(parse_yaml(text, "it"), json.loads(Path(schema).read_text()))
    assert "Nothing was started" in lmkit(verb, *rest).stdout
    with pytest.raises(UserError, match="--force"):
        lmkit("init", goal, "--data", name, *options, "--out", "recipes/mine.yaml")


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (("--data", "a.txt"), UserError, r"--goal pretrain\|"),
        (("--goal", "chat"), UserError, "--data FILE"),
        (("clasify", "--data", "r.csv"), UserError, "did you mean `classify`"),
        (("continue", "--data", "a.txt"), UserError, "→ --model"),
        (("pretrain", "--data", "a.txt", "--model", "bert-tny"), UserError, "did you mean `bert-tiny`"),
        (("pretrain", "--data", "a.txt", "--budget", "3 weeks"), UserError, "train.budget"),
        (("classify", "--data", "p.csv"), DataError, "data.label=COLUMN"),
        (("tag", "--data", "none.jsonl"), DataError, "no such file"),
    ],
)
def test_what_is_missing_or_wrong_is_told_and_nothing_is_written(args, error, message):
    with pytest.raises(error, match=message):
        lmkit("init", *args)
    assert not Path("recipe.yaml").exists()


def test_on_a_terminal_it_asks():
    mine, theirs = pty.openpty()
    os.write(mine, b"p.csv\nclassify\n\ntext=en label=de\n")
    command = [sys.executable, "-m", "lmkit", "init"]
    asked = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60)
    os.close(mine)
    os.close(theirs)
    assert asked.returncode == 0 and "cannot tell which columns" in asked.stderr, asked.stderr
    assert load(Path("recipe.yaml")).data.label == "de"
