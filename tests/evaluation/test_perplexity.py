"""Scores are those of transformers on the same windows, and intervals cover what they claim."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import lmkit
from lmkit.base.errors import DataError, UserError
from lmkit.commands.main import app
from lmkit.evaluation.intervals import bootstrap_ratio
from lmkit.evaluation.perplexity import evaluate_perplexity, windows
from lmkit.ops import text_scores as command
from tests.generation.folders import TEXT, llama_folder

TEXTS = [TEXT * 4, "a", "日本語", TEXT[:30], TEXT * 2]
CONTEXT = 24


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    theirs = llama_folder(folder, context=CONTEXT)
    return lmkit.load(folder), theirs


def nats_by_transformers(theirs, ids, stride):
    """Every token after the first once, with as much before it as the windows hold."""
    total, scored, begin = 0.0, 1, 0
    while scored < len(ids):
        inputs = torch.tensor([ids[begin : begin + CONTEXT]])
        end = min(begin + CONTEXT + 1, len(ids))
        with torch.no_grad():
            logits = theirs(inputs).logits[0]
        new = torch.tensor(ids[scored:end])
        total += F.cross_entropy(logits[scored - begin - 1 : end - begin - 1], new, reduction="sum").item()
        begin, scored = begin + stride, end
    return total


@pytest.mark.parametrize("stride", [CONTEXT, 7, 1])
@pytest.mark.parametrize("batch_tokens", [16_384, 60])
def test_loss_equals_transformers_on_the_same_windows(pair, stride, batch_tokens):
    ours, theirs = pair
    scores = evaluate_perplexity(ours.model, ours.tokenizer, TEXTS, stride, batch_tokens)
    documents = [[0, *ours.tokenizer.encode(t), 1] for t in TEXTS]
    want = [nats_by_transformers(theirs, ids, stride) for ids in documents]
    tokens = sum(len(ids) - 1 for ids in documents)
    assert abs(scores.loss.value - sum(want) / tokens) < 1e-5
    np.testing.assert_allclose(scores.nats, want, rtol=1e-5)
    assert sum(scores.tokens) == tokens and scores.bytes == [len(t.encode()) for t in TEXTS]
    assert scores.perplexity.value == pytest.approx(math.exp(scores.loss.value))
    assert scores.bits_per_byte.value == pytest.approx(sum(want) / math.log(2) / sum(scores.bytes), rel=1e-5)
    for value, low, high in (scores.loss, scores.perplexity, scores.bits_per_byte):
        assert low < value < high


def test_slices_and_worst_documents_are_those_of_transformers(pair, tmp_path):
    ours, theirs = pair
    kinds = ["long", "short", None, "short", "long"]
    rows = [{"text": text, "meta": {"kind": kind}} for text, kind in zip(TEXTS, kinds, strict=True)]
    rows.insert(1, {"text": "", "meta": {"kind": "long"}})  # is left out, so that numbers and lines differ
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    want = [nats_by_transformers(theirs, [0, *ours.tokenizer.encode(t), 1], CONTEXT) for t in TEXTS]
    bits = [n / math.log(2) / len(t.encode()) for n, t in zip(want, TEXTS, strict=True)]
    arguments = ["eval", str(ours.folder), "--data", str(tmp_path / "rows.jsonl"), "--by", "meta.kind", "--worst", "3"]
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    order = sorted(range(5), key=lambda i: -bits[i])[:3]
    assert [row["place"].rpartition(":")[2] for row in told["worst"]] == [str(i + 1 + (i > 0)) for i in order]
    assert [row["bits_per_byte"] for row in told["worst"]] == pytest.approx([bits[i] for i in order], rel=1e-5)
    assert all(
        TEXTS[i][:80] == row["text"] and repr(row["text"]) in shown for i, row in zip(order, told["worst"], strict=True)
    )
    for kind, numbers in {"long": [0, 4], "short": [1, 3]}.items():
        part = told["by"]["meta.kind"][kind]
        size = sum(len(TEXTS[i].encode()) for i in numbers)
        tokens = sum(len(ours.tokenizer.encode(TEXTS[i])) + 1 for i in numbers)
        nats = sum(want[i] for i in numbers)
        assert part["documents"] == 2 and part["loss"]["value"] == pytest.approx(nats / tokens, rel=1e-5)
        assert part["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
        assert (
            part["perplexity"]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-5) and f"{kind} (2)" in shown
        )
    (tmp_path / "plain.txt").write_text("over the fox")
    for file, message in (("plain.txt", "text without columns"), ("rows.jsonl", "--by colour: it stands in no row")):
        with pytest.raises(UserError, match=message):
            arguments[3:] = [str(tmp_path / file), "--by", "colour"]
            CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_one_window_equals_transformers_own_loss(pair):
    ours, theirs = pair
    ids = torch.tensor([[0, *ours.tokenizer.encode("The quick brown fox"), 1]])
    assert ids.size(1) <= CONTEXT
    with torch.no_grad():
        want = theirs(ids, labels=ids).loss.item()
    assert abs(evaluate_perplexity(ours.model, ours.tokenizer, ["The quick brown fox"]).loss.value - want) < 1e-5


@pytest.mark.parametrize("length", [0, 1, 2, 24, 25, 26, 60])
@pytest.mark.parametrize("stride", [1, 5, 24])
def test_windows_score_every_token_but_the_first_once(length, stride):
    ids, scored = list(range(length)), []
    for i, w in enumerate(windows(0, ids, 24, stride)):
        assert len(w.tokens) <= 25 and (i == 0 or len(w.tokens) - 1 - w.first <= stride)
        scored += w.tokens[1 + w.first :]
    assert scored == ids[1:]


def test_one_document_has_no_interval_and_none_is_an_error(pair):
    ours, _ = pair
    assert evaluate_perplexity(ours.model, ours.tokenizer, ["abc"]).loss[1:] == (None, None)
    with pytest.raises(DataError, match="no text"):
        evaluate_perplexity(ours.model, ours.tokenizer, [])
    for stride in (0, CONTEXT + 1):
        with pytest.raises(UserError, match=f"stride {stride} .*\n.*1 to {CONTEXT}"):
            evaluate_perplexity(ours.model, ours.tokenizer, TEXTS, stride)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        tokens = rng.integers(5, 50, size=60)
        nats = tokens * rng.normal(3.0, 0.5, size=60)
        low, high = bootstrap_ratio(nats, tokens, resamples=300)
        hits += low <= 3.0 <= high
    assert 0.90 <= hits / 200 <= 0.99
    assert bootstrap_ratio([1.0], [2.0]) is None
    assert bootstrap_ratio([1, 2, 3], [1, 1, 1]) == bootstrap_ratio([1, 2, 3], [1, 1, 1])


def test_the_command_reads_files_and_says_what_it_skipped(pair, tmp_path, capsys):
    ours, _ = pair
    data = tmp_path / "texts.jsonl"
    rows = [json.dumps({"body": t}) for t in [*TEXTS, ""]]
    data.write_text("\n".join([*rows, "{broken"]) + "\n")
    want = evaluate_perplexity(ours.model, ours.tokenizer, TEXTS, 12)
    command.evaluate_texts(str(ours.folder), [str(data)], 12, as_json=True, text="body")
    out = capsys.readouterr()
    got = json.loads(out.out)
    assert list(got) == [
        "model", "data", "documents", "tokens", "bytes", "unknown_tokens", "dropped_bytes",
        "context", "stride", "skipped", "loss",
        "perplexity", "bits_per_byte",
    ]  # fmt: skip
    assert (got["documents"], got["stride"], got["context"]) == (5, 12, CONTEXT)
    assert got["loss"] == want.loss._asdict() and got["bits_per_byte"] == want.bits_per_byte._asdict()
    assert sum(got["skipped"].values()) == 2 and "texts.jsonl:7" in out.err
    command.evaluate_texts(str(ours.folder), [str(data)], None, as_json=False, text="body")
    table = capsys.readouterr().out
    assert "bits per byte" in table and f"stride {CONTEXT}" in table and f"{want.loss.value:.1f}" in table
    data.write_text("\n")
    with pytest.raises(DataError, match=r"texts\.jsonl: there is no text"):
        command.evaluate_texts(str(ours.folder), [str(data)], None, as_json=True)
