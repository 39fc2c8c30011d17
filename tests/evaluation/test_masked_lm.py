"""Masked-LM scores are those of transformers on the same rows, and the rows are the same every time."""

import json
import math

import numpy as np
import pytest
import torch

import lmkit
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.base.order import rng_for
from lmkit.evaluation.masked_lm import evaluate_masked_lm
from lmkit.model.loss import IGNORE
from lmkit.objectives.noise.masking import choose_masked, corrupt_tokens
from lmkit.ops import text_scores as command
from lmkit.recipe.objectives import MaskedLMConfig
from lmkit.text.pieces import ordinary_ids
from tests.evaluation.folders import folder
from tests.evaluation.pseudo import pseudo_log_likelihood

TEXTS = ["the unbelievable dog. " * 9, "yes!", "an old hill is over there. Größe.", "a"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    theirs = folder(path, "bert")
    return lmkit.load(path), theirs


def rows(t, room, rate=0.15, seed=0):
    """(document, what the model sees, labels) as BERT masks: 15% of a row, 80% masks, 10% random, 10% kept."""
    ordinary = ordinary_ids(t)
    for document, text in enumerate(TEXTS):
        ids = t.encode(text)
        for window, begin in enumerate(range(0, len(ids), room)):
            row = np.array([t.cls_id, *ids[begin : begin + room], t.sep_id])
            rng = rng_for(seed, document, window)
            rng.random()  # the key by which windows are drawn for the pseudo-perplexity
            places = choose_masked(np.isin(row, ordinary), max(1, round(rate * len(row))), rng)
            labels = np.full(len(row), IGNORE)
            labels[places] = row[places]
            yield (
                document,
                torch.tensor(corrupt_tokens(row, places, rng, t.mask_id, ordinary))[None],
                torch.tensor(labels)[None],
            )


@pytest.mark.parametrize("batch_tokens", [16_384, 60])
def test_scores_equal_transformers_on_the_same_rows(pair, batch_tokens):
    ours, theirs = pair
    scores = evaluate_masked_lm(ours.model, ours.tokenizer, TEXTS, batch_tokens=batch_tokens)
    nats, tokens, hits = ([0] * len(TEXTS) for _ in range(3))
    for document, seen, labels in rows(ours.tokenizer, ours.config.context - 2):
        with torch.no_grad():
            out = theirs(input_ids=seen, labels=labels)
        n = int((labels != IGNORE).sum())
        nats[document] += out.loss.item() * n
        tokens[document] += n
        hits[document] += int((out.logits.argmax(-1) == labels).sum())
    np.testing.assert_allclose(scores.nats, nats, rtol=1e-5)
    assert scores.tokens == tokens and scores.hits == hits and scores.windows == 5
    assert scores.loss.value == pytest.approx(sum(nats) / sum(tokens), rel=1e-5)
    assert scores.perplexity.value == pytest.approx(math.exp(scores.loss.value))
    assert scores.accuracy.value == pytest.approx(sum(hits) / sum(tokens))
    assert scores.text_tokens == sum(len(ours.tokenizer.encode(t)) for t in TEXTS) and scores.unknown == 1
    assert scores.loss.low < scores.loss.value < scores.loss.high


def test_the_noise_is_the_same_every_time_and_follows_its_settings(pair):
    ours, _ = pair
    score = lambda *more, **options: evaluate_masked_lm(ours.model, ours.tokenizer, TEXTS, *more, **options)
    assert score().nats == score().nats != score(seed=1).nats
    half = MaskedLMConfig(name="masked_lm", eval_rate=0.5, rate=0.9)
    assert sum(score(half).tokens) > 2.5 * sum(score().tokens)
    whole = MaskedLMConfig(name="masked_lm", whole_word=True)
    assert score(whole).nats != score().nats
    long_word = evaluate_masked_lm(
        ours.model, ours.tokenizer, ["unbelievable", "the dog"], whole
    )  # a third of a token to mask
    assert long_word.tokens == [0, 1] and long_word.skipped == {"windows in which nothing could be masked": 1}


def test_texts_without_a_token_to_mask_are_counted(pair):
    ours, _ = pair
    scores = evaluate_masked_lm(ours.model, ours.tokenizer, ["Ä Ö", *TEXTS], pll_tokens=100)
    assert scores.skipped == {"documents without a token to mask": 1} and scores.unknown == 3
    assert scores.documents == len(TEXTS) and 0 < scores.sample.tokens <= 100
    with pytest.raises(DataError, match="no text"):
        evaluate_masked_lm(ours.model, ours.tokenizer, ["Ä Ö"])
    weights = ours.model.embedding.weight.data.clone()
    ours.model.embedding.weight.data[7] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        evaluate_masked_lm(ours.model, ours.tokenizer, TEXTS)
    ours.model.embedding.weight.data = weights


def test_the_command_prints_every_key(pair, tmp_path, capsys):
    ours, _ = pair
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": t}) + "\n" for t in [*TEXTS, "", "Ä"]))
    command.evaluate_texts(str(ours.folder), [str(data)], None, as_json=True)
    out = capsys.readouterr()
    got, want = json.loads(out.out), evaluate_masked_lm(ours.model, ours.tokenizer, TEXTS)
    assert list(got) == [
        "model", "data", "documents", "tokens", "masked_tokens", "unknown_tokens", "dropped_bytes",
        "context", "windows", "noise", "pseudo_tokens", "pseudo_log_likelihood", "pseudo_windows",
        "pseudo_documents", "skipped", "loss", "perplexity", "accuracy", "pseudo_perplexity",
    ]  # fmt: skip
    assert got["loss"] == want.loss._asdict() and got["masked_tokens"] == sum(want.tokens)
    assert got["skipped"] == {"empty documents": 1, "documents without a token to mask": 1}
    assert "left out: 1 documents without a token to mask" in out.err and "2 unknown tokens" in out.err
    assert got["noise"] == {
        "name": "masked_lm", "rate": 0.15, "most": None, "split": [0.8, 0.1, 0.1], "whole_word": False, "max_ngram": 1,
        "from": "defaults",
    }  # fmt: skip
    values = np.concatenate(pseudo_log_likelihood(ours.model, ours.tokenizer, TEXTS))
    assert got["pseudo_tokens"] == len(values) == got["tokens"]
    assert got["pseudo_log_likelihood"] == pytest.approx(sum(values), rel=1e-6)
    assert got["pseudo_perplexity"]["value"] == pytest.approx(math.exp(-sum(values) / len(values)), rel=1e-5)


def test_the_table_says_what_was_masked_and_how_much_the_pseudo_perplexity_covers(pair, tmp_path, capsys):
    ours, _ = pair
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS))
    for limit, words in ((50, "random"), (None, "over all"), (0, "")):
        command.evaluate_texts(str(ours.folder), [str(data)], None, as_json=False, separator="\n", pll_tokens=limit)
        table = " ".join(capsys.readouterr().out.split())
        assert "masked_lm (defaults): rate 0.15, split 0.8/0.1/0.1" in table and "over documents" in table
        assert words in table and ("pseudo" in table) == (limit != 0)


def test_a_run_is_scored_with_its_own_noise_and_its_checkpoint_with_the_defaults(pair, tmp_path, capsys):
    ours, _ = pair
    (tmp_path / "latest").symlink_to(ours.folder)
    (tmp_path / "recipe.yaml").write_text(
        "model: {family: bert, hidden_size: 32, num_layers: 3, num_heads: 4, context: 48}\n"
        "data: {train: texts.txt}\ntask: {name: masked_lm, eval_rate: 50%, whole_word: true}\n"
    )
    data = tmp_path / "texts.txt"
    data.write_text(TEXTS[0])
    for path, source, rate in ((tmp_path, "recipe", 0.5), (tmp_path / "latest", "defaults", 0.15)):
        command.evaluate_texts(str(path), [str(data)], None, as_json=True, pll_tokens=0)
        noise = json.loads(capsys.readouterr().out)["noise"]
        assert (noise["from"], noise["rate"], noise["whole_word"]) == (source, rate, source == "recipe")


def test_options_for_other_kinds_and_heads_without_words_are_refused(pair, tmp_path):
    ours, _ = pair
    data = tmp_path / "texts.tsv"
    data.write_text("text\tsummary\na\tb\n")
    for option in ({"stride": 3}, {"target": "summary"}):
        with pytest.raises(UserError, match=rf"--{next(iter(option))} is for .*\(bert\) is not"):
            command.evaluate_texts(str(ours.folder), [str(data)], **{"stride": None, "as_json": True} | option)
    for head, what in (("sequence", r"labels of texts \(LABEL_0, "), ("none", "no head")):
        folder(tmp_path / head, "bert", head)
        with pytest.raises(UserError, match=rf"\(bert\) has .*{what}"):
            command.evaluate_texts(str(tmp_path / head), [str(data)], None, as_json=True)
