"""Words of a list; and the labels of a classifier, against transformers."""

import json

import pytest
import torch
import transformers as hf
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.checks import toxic
from lmkit.commands import main  # noqa: F401 - it adds the commands
from lmkit.commands.app import app
from tests.generation.folders import encoder_folder, llama_folder

TEXTS = [
    f"the {a} fox jumps {b} lazy dog{c}" for a in ("quick", "brown", "lazy") for b in ("over", "the") for c in ".!s"
]


def _check(*args):
    ran = CliRunner().invoke(app, ["check", *map(str, args), "--json"])
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return json.loads(ran.stdout), ran.stderr


def test_words_of_a_list_are_whole_words_in_any_case():
    result = toxic.check_words([("a", "Foxes and a FOX, fox"), ("b", "foxy")], ["fox"], "texts")
    assert (result.counts["with a word"], result.counts["words in all"]) == (1, 2)


def test_texts_with_a_label_are_those_of_transformers_and_progress_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(toxic, "ROWS", 7)  # of 18, so that the last batch is not full
    monkeypatch.setattr("lmkit.base.display.PLAIN_INTERVAL", 0)
    theirs = encoder_folder(tmp_path / "judge", "bert", hf.BertForSequenceClassification)
    words = hf.AutoTokenizer.from_pretrained(tmp_path / "judge")
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    with torch.no_grad():  # the labels of half the texts change with the bias
        gaps = [float(theirs(**words(text, return_tensors="pt")).logits[0].diff()) for text in TEXTS]
        theirs.classifier.bias[0] += sorted(gaps)[6]
    theirs.save_pretrained(tmp_path / "judge")

    def second(texts):
        with torch.no_grad():
            return [int(theirs(**words(text, return_tensors="pt")).logits.argmax()) for text in texts]

    got, said = _check(tmp_path / "corpus.jsonl", "--toxic", tmp_path / "judge")
    assert 0 < sum(second(TEXTS)) < 18 and "reading" in said
    assert got["counts"] == {"documents": 18, "with LABEL_1": sum(second(TEXTS)), "cut, as longer than it reads": 0}
    first, _ = _check(tmp_path / "corpus.jsonl", "--toxic", tmp_path / "judge", "--toxic-label", "LABEL_0")
    assert first["shares"]["with LABEL_0"]["value"] == pytest.approx(1 - got["shares"]["with LABEL_1"]["value"])
    assert first["examples"] and all(
        repr(t) not in str(first["examples"]) for t, s in zip(TEXTS, second(TEXTS), strict=True) if s
    )

    llama_folder(tmp_path / "m")
    got, said = _check(tmp_path / "m", "--toxic", tmp_path / "judge", "--samples", 5)
    assert got["counts"]["samples"] == 5 and "writing" in said

    (tmp_path / "words.txt").write_text("fox")
    for options, message in (
        ((tmp_path / "judge", "--toxic-label", "rude"), "no label of .*judge\n.*one of LABEL_0, LABEL_1"),
        ((tmp_path / "m",), "labels no texts"),
        ((tmp_path / "words.txt", "--toxic-label", "rude"), "with a classifier"),
    ):
        with pytest.raises(UserError, match=message):
            _check(tmp_path / "corpus.jsonl", "--toxic", *options)
    hf.BertForSequenceClassification(hf.BertConfig(**theirs.config.to_dict() | {"num_labels": 3})).save_pretrained(
        tmp_path / "judge"
    )
    with pytest.raises(UserError, match="which label is toxic"):
        _check(tmp_path / "corpus.jsonl", "--toxic", tmp_path / "judge")
