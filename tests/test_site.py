"""The site has no broken link, names every command, option and key, and what its tutorials show can be typed."""

import html
import json
import re
import shlex
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from typer.main import get_command
from typer.testing import CliRunner

from lmkit.commands.main import app
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import keys, recipes_folder

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs/tutorials").glob("*.md")
TUTORIALS = sorted(PAGES, key=lambda page: page.stem not in ("write", "encode"))  # these make runs for the others
SHORT = {  # in short mode: a few steps of a model that is small
    "pretrain": ["train.budget=2 steps", "train.batch=512", "model.context=64", "model.depth=1",
                 "tokenizer.vocab_size=600", "tokenizer.sample=200000", "evaluate.tokens=500",
                 "evaluate.sample_tokens=4"],
    "finetune": ["train.budget=2 steps", "data.max_length=64"],
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))  # a broken link is an error
    return folder


def test_the_site_names_every_command_option_and_key(site):
    commands = html.unescape((site / "commands/index.html").read_text())
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None) or {"": command}
        for sub, one in inner.items():
            assert f">lmkit {name} {sub}".strip() in commands.replace("\n", " ")
            for parameter in one.params:
                if parameter.name != "help" and parameter.opts[0].startswith("--"):
                    assert f"<code>{parameter.opts[0]}</code>" in commands, (name, parameter.opts)
    listed = set(re.findall(r"<code>([\w.-]+)</code>", (site / "keys/index.html").read_text()))
    assert {*keys(Recipe), *keys(FinetuneRecipe)} <= listed
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//(?!github\.com|squidfunk|www\.mkdocs)""",
                         (site / "index.html").read_text())  # fmt: skip
    assert (site / "images/report.png").stat().st_size > 10_000


def test_both_readmes_show_the_same_commands():
    english = re.findall(r"^ {4}((?:lmkit|make) .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    chinese = re.findall(r"(?:^ {4}|`)((?:lmkit|make) [^`\n]+)", (ROOT / "README.zh-CN.md").read_text(), re.MULTILINE)
    plain = lambda lines: {line.partition(" #")[0].strip() for line in lines}
    assert plain(english) - plain(chinese) == set()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small files of the names that the tutorials use, and runs that they start from."""
    folder = tmp_path_factory.mktemp("tutorials")
    (folder / "books").mkdir()
    novel = (recipes_folder() / "corpus/austen-persuasion.txt").read_text()
    for i in range(40):
        (folder / f"books/{i}.txt").write_text(novel[i * 1000 : (i + 1) * 1000])
    rows = [f"{'a fine film' if i % 2 else 'a dull film'} number {i},{'good' if i % 2 else 'bad'}" for i in range(60)]
    for name in ("reviews.csv", "test.csv"):
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "names.conll").write_text("\n".join(f"Anne\tB-PER\nwalks\tO\n{i}\tO\n" for i in range(40)))
    answer = lambda i: {"text": f"town {i}", "answer_start": len("Anne lives in ")}
    paragraphs = [{"context": f"Anne lives in town {i}.", "qas": [
        {"id": str(i), "question": "Where does Anne live?", "answers": [answer(i)], "is_impossible": False}]}
        for i in range(30)]  # fmt: skip
    articles = [{"title": str(i), "paragraphs": [p]} for i, p in enumerate(paragraphs)]
    (folder / "squad.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    (folder / "train.en").write_text("".join(f"A dog runs {i} .\n" for i in range(60)))
    (folder / "train.de").write_text("".join(f"Ein Hund rennt {i} .\n" for i in range(60)))
    talk = lambda i: {"messages": [{"role": "user", "content": f"Hello {i}"}, {"role": "assistant", "content": "Hi"}]}
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk(i)) + "\n" for i in range(40)))
    return folder


def typed(line):
    """Runs a command in short mode."""
    arguments = shlex.split(line)[1:]
    if "--resume" not in arguments:
        arguments += SHORT.get(arguments[0], [])
    if arguments[:2] == ["finetune", "multi30k-en-de"] or "model.preset=bert-tiny" in arguments:
        arguments += ["model.num_layers=1", "model.hidden_size=24", "tokenizer.vocab_size=300"]
    got = CliRunner().invoke(app, arguments)
    assert got.exit_code == 0, (line, got.output[-1500:], got.exception)
    return got.stdout


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_can_be_typed(page, data, monkeypatch):
    monkeypatch.setenv("LMKIT_CACHE", str(data / "cache"))
    monkeypatch.chdir(data)
    lines = re.findall(r"^ {4}(lmkit .*)$", page.read_text(), re.MULTILINE)
    assert len([typed(line) for line in lines]) >= 4


ELSEWHERE = ("serve", "push", "doctor", "sweep")  # they wait, ask a network, measure; their own tests run them
NEEDS_MORE = ("--tasks hellaswag", "--tasks ifeval", "--processes")  # a network, or processes


@pytest.fixture
def files(data, tmp_path, monkeypatch):
    """Files and runs of the names that the README uses."""
    monkeypatch.setenv("LMKIT_CACHE", str(data / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("books", "reviews.csv", "talks.jsonl"):
        Path(name).symlink_to(data / name)
    Path("web").symlink_to(data / "books")
    Path("mails.csv").symlink_to(data / "reviews.csv")
    head, *rows = (data / "test.csv").read_text().splitlines()
    Path("test.csv").write_text("\n".join([f"{head},source", *(f"{row},{'ab'[i % 2]}" for i, row in enumerate(rows))]))
    Path("new.csv").write_text("text\na fine film\n")
    Path("axolotl.yaml").write_text(
        "base_model: M\ndatasets: [{path: talks.jsonl, type: chat_template}]\nlearning_rate: 1e-4\n"
    )
    Path("notes").mkdir()
    for i in range(30):
        Path(f"notes/{i}.md").write_text(f"# Note {i}\n\nShe was a very good woman, number {i}.\n")
    Path("other.txt").write_text("It was a fine morning. " * 50)
    lines = [json.dumps({"text": f"It was {i}.", "source": "ab"[i % 2]}) for i in range(9)]
    Path("other.jsonl").write_text("\n".join(lines) + "\n")
    questions = [json.dumps({"query": f"{i} + 2 =", "choices": [str(i + 2), "x"], "gold": 0}) for i in range(8)]
    Path("my.jsonl").write_text("\n".join(questions) + "\n")
    typed("lmkit pretrain bert-tiny data.train=books/ --out M")
    for name in ("other", "small", "large"):
        typed(f"lmkit finetune --task classify --model M --data reviews.csv --out runs/{name}")


def test_the_readme_can_be_typed_from_its_top_to_its_end(files):
    count = 0
    for line in re.findall(r"^ {4}(lmkit .*)$", (ROOT / "README.md").read_text(), re.MULTILINE):
        command = line.partition(" #")[0]
        if command.split()[1] in ELSEWHERE or any(part in command for part in NEEDS_MORE):
            continue
        out, count = typed(command), count + 1
        if "--json" in command:
            Path("scores.json").write_text(out)
    assert count > 30
