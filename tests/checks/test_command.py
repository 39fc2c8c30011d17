"""What the command says of mistakes, and what it writes into a card."""

import json

import pytest
import transformers as hf
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.commands import main  # noqa: F401 - it adds the commands
from lmkit.commands.app import app
from tests.generation.folders import llama_folder


def _run(*args):
    ran = CliRunner().invoke(app, ["check", *map(str, args)])
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran.stdout


def test_the_texts_a_model_writes_are_checked_and_a_card_keeps_the_last_result(tmp_path):
    model = llama_folder(tmp_path / "m", eos=1)
    words = hf.AutoTokenizer.from_pretrained(tmp_path / "m")
    card = tmp_path / "m" / "README.md"
    card.write_text("# A model\n\n## Limits\n\n- It is small.\n\n## Use\n\n    lmkit generate FOLDER\n")
    (tmp_path / "words.txt").write_text("Fox\nthe\n\n%\n")
    got = json.loads(_run(tmp_path / "m", "--toxic", tmp_path / "words.txt", "--card", "--json", "--samples", 20))
    assert got["counts"]["samples"] == 20 and got["counts"]["words in all"] > 0
    assert got["counts"]["words in all"] == sum(got["counts"].get(word, 0) for word in ("fox", "the", "%"))
    _run(tmp_path / "m", "--toxic", tmp_path / "words.txt", "--card", "--samples", 7)
    text = card.read_text()
    assert text.count("lmkit check --toxic") == 1 and "Of 7 samples" in text
    assert text.index("- It is small.") < text.index("Of 7 samples") < text.index("## Use")
    assert text.endswith("    lmkit generate FOLDER\n") and len(words) == model.config.vocab_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to check is named"),
        (["--memorised", "tokens"], "--memorised is for a model"),
        (["--pairs", "pairs.csv"], "--pairs is for a model"),
        (["--against", "short.txt"], "no text of --against has 13 words"),
        (["--personal", "--card"], "--card is for a model"),
        (["--toxic", "empty.txt"], "holds no word"),
        (["--personal", "--text", "body"], "no key `body`"),
    ],
)
def test_mistakes_are_told(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.jsonl").write_text('{"text": "Some words."}\n')
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match=message):
        _run("corpus.jsonl", *options)


def test_mistakes_in_what_a_model_is_checked_with_are_told(tmp_path):
    llama_folder(tmp_path / "m")
    (tmp_path / "a.txt").write_text("no table")
    (tmp_path / "b.csv").write_text("sent_more,bias_type\nx,y\n")
    for options, message in (
        (["--pairs", tmp_path / "a.txt"], "text without columns"),
        (["--pairs", tmp_path / "b.csv"], "b.csv:2: no column `sent_less`"),
        (["--memorised", tmp_path], "is no token store"),
        (["--against", tmp_path / "a.txt"], "--against is for a corpus"),
    ):
        with pytest.raises(UserError, match=message):
            _run(tmp_path / "m", *options)
