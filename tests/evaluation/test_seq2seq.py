"""Teacher-forced scores are those of transformers on the same sources and targets."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import lmkit
from lmkit.base.errors import DataError, UserError
from lmkit.base.order import rng_for
from lmkit.evaluation.seq2seq import evaluate_noise, evaluate_pairs
from lmkit.objectives.build import denoising
from lmkit.objectives.noise.spans import cut_spans, noise_mask, raw_length
from lmkit.ops import text_scores as command
from lmkit.recipe.objectives import Denoiser, DenoisingConfig, SpanCorruptionConfig
from tests.evaluation.folders import SENTINELS, folder, tokenizer

TEXTS = ["a b aa aaaa. " * 12, "yes!", "an old hill is over there. who flies over it? a a a", "qwertyuiop asdfghjkl"]
CONTEXT = 30


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Family -> (ours, theirs), made when asked for. They like to say `a` and `##a`, so that something is right."""
    made = {}

    def model(family):
        if family not in made:
            path = tmp_path_factory.mktemp(family)
            theirs, often = folder(path, family), [tokenizer(family).token_id(piece) for piece in ("a", "##a")]
            if family == "t5":
                theirs.config.n_positions = CONTEXT
                theirs.shared.weight.data[often] *= 6
            else:
                theirs.final_logits_bias[0, often] += 8
            theirs.save_pretrained(path)
            made[family] = lmkit.load(path), theirs
        return made[family]

    return model


def by_transformers(theirs, source, target):
    """Summed loss of the target, and which of its tokens are right."""
    labels = torch.tensor([list(target)])
    with torch.no_grad():
        out = theirs(input_ids=torch.tensor([list(source)]), labels=labels)
    return out.loss.item() * labels.numel(), (out.logits.argmax(-1) == labels)[0].tolist()


def compare(scores, want):
    """want: (document, nats, hits) of every row."""
    nats, hits, tokens = ([0.0] * len(scores.nats) for _ in range(3))
    for document, loss, right in want:
        nats[document] += loss
        hits[document] += sum(right)
        tokens[document] += len(right)
    np.testing.assert_allclose(scores.nats, nats, rtol=1e-5)
    assert scores.hits == hits and scores.tokens == tokens and sum(hits)
    assert scores.loss.value == pytest.approx(sum(nats) / sum(tokens), rel=1e-5)
    assert scores.perplexity.value == pytest.approx(math.exp(scores.loss.value))
    assert scores.accuracy.value == pytest.approx(sum(hits) / sum(tokens))
    assert scores.loss.low < scores.loss.value < scores.loss.high


def cut(t, room):
    """(document, window, ids)."""
    for document, text in enumerate(TEXTS):
        ids = t.encode(text)
        for window, begin in enumerate(range(0, len(ids), room)):
            yield document, window, np.array(ids[begin : begin + room])


@pytest.mark.parametrize("batch_tokens", [16_384, 60])
def test_span_corruption_equals_transformers_and_spans_are_right_as_a_whole(models, batch_tokens):
    ours, theirs = models("t5")
    t, want, right, spans = ours.tokenizer, [], 0, 0
    sentinels = np.array([t.token_id(s) for s in SENTINELS])
    config = SpanCorruptionConfig(name="span_corruption", denoisers=(Denoiser(density=0.3, mean_span=1.5),))
    for document, window, ids in cut(t, raw_length(CONTEXT, 0.3, 1.5)[0]):
        noise = noise_mask(len(ids), 0.3, 1.5, rng_for(0, document, window))
        source, target = cut_spans(ids, noise, sentinels, t.eos_id)
        nats, hits = by_transformers(theirs, source, target)
        want.append((document, nats, hits))
        marks = [*np.flatnonzero(np.isin(target, sentinels)), len(target) - 1]
        spans += len(marks) - 1
        right += sum(all(hits[a + 1 : b]) for a, b in pairwise(marks))
    scores = evaluate_noise(ours.model, t, TEXTS, config, 0, batch_tokens=batch_tokens)
    compare(scores, want)
    assert (sum(scores.spans), sum(scores.whole)) == (spans, right) and 0 < right < spans
    assert scores.span_accuracy.value == right / spans
    assert scores.nats != evaluate_noise(ours.model, t, TEXTS, config, 0, seed=1).nats


@pytest.mark.parametrize("permute", [0.0, 1.0])
def test_denoising_equals_transformers_and_spans_are_what_the_source_lacks(models, permute):
    ours, theirs = models("bart")
    t, want = ours.tokenizer, []
    config = DenoisingConfig(name="denoising", permute=permute, rotate=permute)
    make = denoising(config, t)
    for document, window, ids in cut(t, ours.config.context - 2):
        target = np.array([t.cls_id, *ids, t.sep_id])
        source, _ = make({"tokens": target}, rng_for(0, document, window))
        want.append((document, *by_transformers(theirs, source, target)))
    scores = evaluate_noise(ours.model, t, TEXTS, config, t.eos_id)
    compare(scores, want)
    # no letter stands twice in the last text: what the source lacks is noise
    (document, _, hits), lacking = want[-1], ~np.isin(target, source)
    runs = "".join(" ?x"[int(gone) + int(gone and hit)] for gone, hit in zip(lacking, hits, strict=True)).split()
    assert scores.spans[document] == len(runs) > 0
    assert scores.whole[document] == sum("?" not in run for run in runs)
    assert 0 < sum(scores.whole) < sum(scores.spans)


def test_pairs_equal_transformers_and_those_too_long_are_counted(models):
    ours, theirs = models("transformer")
    t, pairs = ours.tokenizer, [("the dog", "aa dog."), ("yes! " * 30, "a"), ("an old hill", "a aaaa"), ("o", "Ä")]
    scores = evaluate_pairs(ours.model, t, pairs, ours.decoder_start, batch_tokens=20)
    rows = [[[*t.encode(side), t.eos_id] for side in pair] for pair in pairs if len(pair[0]) < 99]
    compare(scores, [(n, *by_transformers(theirs, *row)) for n, row in enumerate(rows)])
    assert scores.skipped == {"pairs with a side longer than 48 tokens": 1} and scores.unknown == 1
    assert scores.source_tokens == sum(len(source) for source, _ in rows) and scores.span_accuracy is None
    with pytest.raises(DataError, match="no pair of texts fits"):
        evaluate_pairs(ours.model, t, pairs[1:2], ours.decoder_start)


def test_a_part_too_short_for_noise_is_counted(models):
    ours, _ = models("t5")
    config = SpanCorruptionConfig(name="span_corruption")
    scores = evaluate_noise(ours.model, ours.tokenizer, ["a", *TEXTS], config, 0)
    assert scores.skipped == {"parts of a single token, too short for noise": 1} and scores.documents == len(TEXTS)
    with pytest.raises(DataError, match="no text"):
        evaluate_noise(ours.model, ours.tokenizer, ["a"], config, 0)


def test_the_command_takes_the_familys_noise_or_that_of_the_run(models, tmp_path, capsys):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS))
    (tmp_path / "latest").symlink_to(models("t5")[0].folder)
    (tmp_path / "recipe.yaml").write_text(
        "model: {family: t5, hidden_size: 32, num_layers: 2, num_heads: 4, context: 30}\n"
        "data: {train: texts.txt}\ntask: {name: span_corruption, denoisers: [{density: 50%, mean_span: 5}]}\n"
    )
    t5 = {"name": "span_corruption"}
    denoiser = {"density": 0.15, "mean_span": 3.0, "prefix": False, "mode": None}
    bart = {"name": "denoising", "rate": 0.3, "mean_span": 3.0, "permute": 1.0, "rotate": 0.0, "delete": 0.0}
    for path, noise in (
        (models("t5")[0].folder, t5 | {"denoisers": [denoiser], "from": "defaults"}),
        (tmp_path, t5 | {"denoisers": [denoiser | {"density": 0.5, "mean_span": 5.0}], "from": "recipe"}),
        (models("bart")[0].folder, bart | {"from": "defaults"}),
    ):
        command.evaluate_texts(str(path), [str(data)], None, as_json=True, separator="\n")
        got = json.loads(capsys.readouterr().out)
        assert list(got) == [
            "model", "data", "documents", "source_tokens", "target_tokens", "unknown_tokens", "dropped_bytes",
        "context", "noise",
            "spans", "skipped", "loss", "perplexity", "accuracy", "span_accuracy",
        ]  # fmt: skip
        assert got["noise"] == noise and got["documents"] == 4
    command.evaluate_texts(str(tmp_path), [str(data)], None, as_json=False, separator="\n")
    table = " ".join(capsys.readouterr().out.split())
    assert "span_corruption (recipe): denoisers density 0.5, mean_span 5.0" in table and "span accuracy" in table


def test_the_command_scores_pairs_and_asks_for_them(models, tmp_path, capsys):
    for ending, lines in (("en", ["the dog", "an old hill", "", "no"]), ("de", ["a dog.", "a hill", "b", "a a"])):
        (tmp_path / f"pairs.{ending}").write_text("\n".join(lines) + "\n")
    ours, _ = models("transformer")
    source, reading = [str(tmp_path / "pairs.en")], {"text": "en", "target": "de"}
    command.evaluate_texts(str(ours.folder), source, None, as_json=True, **reading)
    got = json.loads(capsys.readouterr().out)
    assert list(got) == [
        "model", "data", "pairs", "source_tokens", "target_tokens", "unknown_tokens", "dropped_bytes",
        "context", "skipped", "loss",
        "perplexity", "accuracy",
    ]  # fmt: skip
    pairs = [("the dog", "a dog."), ("an old hill", "a hill"), ("no", "a a")]
    want = evaluate_pairs(ours.model, ours.tokenizer, pairs, ours.decoder_start)
    assert got["loss"] == want.loss._asdict() and got["skipped"] == {"pairs with an empty side": 1}
    command.evaluate_texts(str(ours.folder), source, None, as_json=False, **reading)
    assert "over pairs" in " ".join(capsys.readouterr().out.split())
    data = tmp_path / "texts.txt"
    data.write_text("a b")
    for family in ("transformer", "mbart"):
        with pytest.raises(UserError, match="pass --target"):
            command.evaluate_texts(str(models(family)[0].folder), [str(data)], None, as_json=True)
    with pytest.raises(UserError, match="--pll-tokens is for encoders"):
        command.evaluate_texts(str(ours.folder), source, None, as_json=True, pll_tokens=3, **reading)
    with pytest.raises(UserError, match="leave one of them out"):
        command.evaluate_texts(str(ours.folder), source, None, as_json=True, separator="x", **reading)
