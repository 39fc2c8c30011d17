"""`lmkit data` shows what training reads."""

import csv
import json
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

import lmkit
from lmkit.commands.main import app
from lmkit.training import batches, pretraining_run
from tests.training.conftest import write_tiny


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    table = [(f"{what} {number}", what) for number in range(20) for what in ("ham", "spam")]
    with Path("mails.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("body", "kind"), *table, table[0]])
    return tmp_path


def lmkit_(*arguments, code=0):
    got = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert got.exit_code == code, (got.output, got.exception)
    return str(got.exception) if code else got.stdout


def recorded(monkeypatch):
    """Returns a dict that gets the documents of every step that training reads."""
    real, seen = batches.read_share, {}

    def read(job, step):
        share = real(job, step)
        seen[step + 1] = sorted({d for batch in share.batches for d in batch.documents})
        return share

    monkeypatch.setattr(batches, "read_share", read)
    return seen


def test_the_documents_of_a_step_are_those_that_training_read(home, monkeypatch):
    seen = recorded(monkeypatch)
    assert pretraining_run.start(Path("tiny.yaml"), (), Path("run")) == 0
    store = next(Path("cache/tokens").iterdir())
    for step in (1, 7, 12):
        shown = json.loads(lmkit_("run", "run", step, "--json"))
        numbers = [int(name.removeprefix("document ")) for name in shown["from"]]
        assert sorted(numbers) == seen[step] and len(shown["rows"]) == 8
        listed = [line.strip() for line in lmkit_("run", "run", step).splitlines() if line.startswith("  ")]
        assert listed[:20] == shown["from"][:20] and (len(listed) > 20) == (len(numbers) > 20)
        stored = json.loads(lmkit_("store", store, numbers[0], "--json"))["text"]
        joined = "".join(shown["rows"])
        assert any(stored[at : at + 8] in joined for at in range(len(stored) - 8))
    told = CliRunner().invoke(app, ["eval", "run", "--data", "corpus.txt", "--json"])
    assert json.loads(told.stdout)["trained_on"][0]["file"] == "corpus.txt" and "--separator" in told.stderr
    assert "the steps 1 to 12" in lmkit_("run", "run", 13, code=1)
    assert "counted from 0" in lmkit_("store", store, 500, code=1)


def test_the_rows_of_a_step_of_fine_tuning_are_those_of_the_table(home, monkeypatch):
    seen = recorded(monkeypatch)
    sizes = {"family": "bert", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "context": 16}
    columns = {"train": "mails.csv", "text": "body", "label": "kind"}
    run = lmkit.finetune(task="classify", model=sizes, data=columns, train={"budget": "3 steps", "batch": "8 rows"},
                         tokenizer={"vocab_size": 300}, out="mails")  # fmt: skip
    shown = json.loads(lmkit_("run", run.path, 2, "--json"))
    lines = list(csv.reader(Path("mails.csv").read_text().splitlines()))
    read = [lines[int(place.rpartition(":")[2]) - 1] for place in shown["from"]]
    assert len(seen[2]) == len(read) == 8
    assert [row.replace(" ", "") for row in shown["rows"]] == [f"[CLS]{t}[SEP]→{k}".replace(" ", "") for t, k in read]
    marked = lmkit_("show", "mails.csv", "--task", "classify", "--text", "body", "--label", "kind", "--model", run.path,
                    "-n", 1)  # fmt: skip
    assert marked.strip() == "[CLS]ham 0[SEP] → »ham«"


def test_texts_are_shown_searched_and_counted(home):
    split = ("--separator", "\n")
    texts = Path("corpus.txt").read_text().split("\n")
    shown = [json.loads(line) for line in lmkit_("show", "corpus.txt", "-n", 2, "--json", *split).splitlines()]
    assert [one["text"] for one in shown] == texts[:2] and shown[1]["place"] == "corpus.txt:2"
    found = [
        json.loads(line) for line in lmkit_("search", "b.rd", "corpus.txt", "-n", 500, "--json", *split).splitlines()
    ]
    assert len(found) == sum("bird" in text for text in texts) and {f["match"] for f in found} == {"bird"}
    assert "no regular expression" in lmkit_("search", "(", "corpus.txt", code=1)
    assert "nothing in corpus.txt" in lmkit_("search", "zebra", "corpus.txt", code=1)
    facts = json.loads(lmkit_("stats", "corpus.txt", "--json", *split))
    assert facts["texts"] == 120 and facts["words"] == sum(len(t.split()) for t in texts)
    assert facts["longest"]["characters"] == max(map(len, texts)) and facts["doubled"] == 120 - len(set(texts))
    counted = lmkit_("stats", "mails.csv", "--task", "classify", "--text", "body", "--label", "kind")
    assert "ham          21" in counted and "1 (2.4%) rows repeat" in counted and "training" not in counted
    Path("mixed.txt").write_text("今天天气很好。我们去公园。 Hello there, 你好\nสวัสดี")
    assert "2 words, and 19 characters without blanks" in lmkit_("stats", "mixed.txt")
    Path("pairs.csv").write_text("source,target\nein Haus,a house\nein Haus,a home\nHund,Hund\n")
    counted = lmkit_("stats", "pairs.csv", "--task", "translate").splitlines()
    assert counted[2:] == [
        "1 (33.3%) pairs have the same text on both sides",
        "characters a source: 8 (median), 8 (95th percentile), 8 (longest); 1 repeat an earlier one",
        "characters a target: 6 (median), 6 (95th percentile), 7 (longest); 0 repeat an earlier one",
        "a target is 0.88 times as long as its source (median), 0.88 (95th percentile)",
    ]
    assert "allowed: classify" in lmkit_("show", "mails.csv", "--task", "clasify", code=1)


def test_tokens_are_those_of_transformers(home):
    lmkit.tokenize("corpus.txt", "tokens", tokenizer={"vocab_size": 300}, separator="\n")
    text = "the cat — naïve кот 東京"
    facts = json.loads(lmkit_("tokens", "tokens/tokenizer", text, "--json"))
    words = transformers.AutoTokenizer.from_pretrained("tokens/tokenizer")
    assert facts["ids"] == words(text, add_special_tokens=False)["input_ids"]
    assert sum(one["bytes"] for one in facts["scripts"].values()) == len(text.encode())
    assert set(facts["scripts"]) == {"latin", "cyrillic", "cjk"} and facts["scripts"]["cjk"]["bytes"] == 6
    assert lmkit_("tokens", "tokens/tokenizer", "the cat").splitlines()[0].replace("|", "") == "the cat"
