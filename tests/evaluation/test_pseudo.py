"""Pseudo-log-likelihoods are those of transformers, one mask at a time."""

import numpy as np
import pytest
import torch
import transformers as hf

import lmkit
from lmkit.base.errors import ModelError, UserError
from lmkit.evaluation.masked_lm import Sample, maskable_words, masked_row, score_sample
from lmkit.text.special import Special
from lmkit.text.tokenizer import Tokenizer
from tests.evaluation.folders import folder, tokenizer
from tests.evaluation.pseudo import pseudo_log_likelihood
from tests.generation import folders as byte_level
from tests.model.families import ours, reference

FRAMED = Special(bos="<s>", eos="</s>", pad="<pad>", mask="<mask>")
TEXTS = [
    "the unbelievable dog.",
    "yes!",
    "an old hill is over there and who flies over it? Größe! So be it, he said.",
    "",
]


def by_transformers(theirs, words_of, ids, room, cls, sep, mask):
    """One forward pass a token, with it and the rest of its word masked. words_of: which word each token is of."""
    out = []
    for begin in range(0, len(ids), room):
        window, word = ids[begin : begin + room], words_of[begin : begin + room]
        for at in range(len(window)):
            row = [cls, *window, sep]
            for j in range(at, len(window)):
                if word[j] == word[at]:
                    row[1 + j] = mask
            with torch.no_grad():
                logits = theirs(torch.tensor([row])).logits[0, 1 + at].double()
            out.append(logits.log_softmax(-1)[window[at]].item())
    return out


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_log_probs_equal_transformers_one_mask_at_a_time(family, tmp_path):
    theirs = folder(tmp_path, family)
    loaded, their_words = lmkit.load(tmp_path), hf.AutoTokenizer.from_pretrained(tmp_path)
    t, room = loaded.tokenizer, loaded.config.context - 2
    got = pseudo_log_likelihood(loaded.model, t, TEXTS)
    assert got[3] == [] and len(got[2]) > room
    for text, values in zip(TEXTS, got, strict=True):
        encoded = their_words(text, add_special_tokens=False)
        assert encoded.input_ids == t.encode(text)
        frame = (t.cls_id, t.sep_id, t.mask_id)
        want = by_transformers(theirs, encoded.word_ids(), encoded.input_ids, room, *frame)
        np.testing.assert_allclose(values, want, atol=2e-5)
    again = pseudo_log_likelihood(loaded.model, t, TEXTS, batch_tokens=1)
    np.testing.assert_allclose(np.concatenate(again), np.concatenate(got), atol=2e-5)


def test_words_of_a_byte_level_tokenizer_begin_at_spaces_and_stops():
    backend = byte_level.tokenizer().backend_tokenizer
    backend.add_special_tokens(["<mask>"])
    t = Tokenizer(backend, FRAMED)
    torch.manual_seed(0)
    config = hf.RobertaConfig(
        vocab_size=t.vocab_size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=60, pad_token_id=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    theirs = hf.RobertaForMaskedLM(config).eval()
    text = "The thick brownish? foxes."
    ids = t.encode(text)
    pieces = [t.backend.id_to_token(i) for i in ids]
    begins = [n == 0 or p[0] in "Ġ?." for n, p in enumerate(pieces)]
    assert sum(begins) == 6 < len(ids)
    want = by_transformers(theirs, np.cumsum(begins), ids, 50, 0, 1, t.mask_id)
    np.testing.assert_allclose(pseudo_log_likelihood(ours(theirs), t, [text])[0], want, atol=2e-5)


def test_a_token_is_masked_with_the_rest_of_its_word_only():
    t, model = tokenizer("bert"), ours(reference("bert"))
    v, ids = maskable_words(model, t), np.array(t.encode("the unbelievable un."))
    shown = [" ".join(t.backend.id_to_token(i) for i in masked_row(v, ids, at)) for at in range(len(ids))]
    assert shown == [
        "[CLS] [MASK] un ##believ ##able un . [SEP]",
        "[CLS] the [MASK] [MASK] [MASK] un . [SEP]",
        "[CLS] the un [MASK] [MASK] un . [SEP]",
        "[CLS] the un ##believ [MASK] un . [SEP]",
        "[CLS] the un ##believ ##able [MASK] . [SEP]",
        "[CLS] the un ##believ ##able un [MASK] [SEP]",
    ]


def test_a_sample_is_the_same_in_any_order_and_never_above_its_limit():
    rng = np.random.default_rng(0)
    offers = [(float(rng.random()), n // 3, n % 3, np.arange(rng.integers(1, 9))) for n in range(60)]
    held = []
    for order in (offers, offers[::-1], [offers[i] for i in rng.permutation(60)]):
        sample = Sample(50)
        for offer in order:
            sample.offer(*offer)
        held.append([(document, ids.tolist()) for document, ids in sample.windows])
        assert 42 < sample.tokens == sum(len(ids) for _, ids in sample.windows) <= 50
    assert held[0] == held[1] == held[2]
    smallest = sorted(offers, key=lambda offer: offer[0])[: len(held[0])]
    assert held[0] == [(d, ids.tolist()) for _, d, _, ids in sorted(smallest, key=lambda offer: offer[1:3])]
    for limit, windows in ((0, 0), (1, 1), (10_000, 60)):
        sample = Sample(limit)
        for offer in offers:
            sample.offer(*offer)
        assert len(sample.windows) == windows


def test_a_samples_perplexity_is_that_of_its_tokens():
    t, model = tokenizer("bert"), ours(reference("bert"))
    texts, sample, told = ["the unbelievable dog.", "yes!"], Sample(100), []
    for n, text in enumerate(texts):
        sample.offer(n / 2, n, 0, np.array(t.encode(text)))
    tally = score_sample(model, t, sample, told=told.append)
    values = pseudo_log_likelihood(model, t, texts)
    np.testing.assert_allclose(tally.nats, [-sum(v) for v in values], rtol=1e-6)
    assert tally.tokens == [len(v) for v in values] and told == list(range(1, sum(tally.tokens) + 1))
    assert tally.perplexity.value == pytest.approx(np.exp(-np.concatenate(values).mean()), rel=1e-6)


def test_tokenizers_without_words_or_masks_and_damaged_models_are_refused():
    model = ours(reference("bert"))
    backend = byte_level.tokenizer(259).backend_tokenizer  # the bytes alone
    backend.add_special_tokens(["<mask>"])
    with pytest.raises(UserError, match=r"where words begin(.|\n)*--pll-tokens 0"):
        maskable_words(model, Tokenizer(backend, FRAMED))
    with pytest.raises(ModelError, match="no mask"):
        maskable_words(model, tokenizer("t5"))
    model.embedding.weight.data[20] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        pseudo_log_likelihood(model, tokenizer("bert"), TEXTS[:1])
