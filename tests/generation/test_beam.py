"""Beam search writes what transformers writes, whatever else is in the batch."""

import math

import pytest
import torch

from lmkit.base.errors import ModelError, UserError
from lmkit.generation import beam as beams
from lmkit.generation.beam import beam_search
from lmkit.generation.completions import Opening
from lmkit.generation.engine import generate
from lmkit.generation.rules import not_followed, rules_of
from lmkit.generation.sampling import SamplingConfig
from lmkit.recipe.tasks import LengthPenalty
from tests.generation.test_seq2seq import reference as listening
from tests.model.families import SEQ2SEQ, ours, reference

PROMPTS = [torch.randint(3, 99, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (9, 1, 4, 20, 5, 4)]


def reference_that_ends(name):
    """Weights large enough that what is written next depends on what was. A text that is too long is cut off, no end is
    forced; end tokens are chosen by each test."""
    theirs = listening(name) if name in SEQ2SEQ else reference(name)
    theirs.get_input_embeddings().weight.data *= 1 if name.startswith("t5") else 8
    for key, x in [*theirs.named_parameters(), *theirs.named_buffers()]:
        x.data *= 0.1 if key.endswith("bias") else 1  # what is the same for every text
    if name == "m2m_100":  # which counts no padding that it has written itself
        theirs.get_input_embeddings().weight.data[theirs.config.pad_token_id] = 0
    theirs.generation_config.forced_eos_token_id = theirs.generation_config.eos_token_id = None
    return theirs


def opening_of(theirs):
    c = theirs.config
    return Opening(c.decoder_start_token_id) if c.is_encoder_decoder else None


def search(theirs, beam=4, eos=(7,), prompts=PROMPTS, never=(), forced=None, model=None, **options):
    c = theirs.config
    opening = Opening(c.decoder_start_token_id, forced, never) if c.is_encoder_decoder else None
    penalty = LengthPenalty(kind=options.pop("kind", "average"), alpha=options.pop("alpha", 1.0))
    early = options.pop("early_stopping", False)
    config = SamplingConfig(**{"max_tokens": 12} | options)
    return beam_search(model or ours(theirs), prompts, config, beam, penalty, frozenset(eos), opening, early)


def by_transformers(theirs, beam, alpha, **options):
    """[(ids up to the end token, score)] of one padded batch; without a cache, whose size for T5 is its encoder's."""
    seq2seq, width = theirs.config.is_encoder_decoder, max(map(len, PROMPTS))
    pad = lambda row: row + [0] * (width - len(row)) if seq2seq else [0] * (width - len(row)) + row
    ids, keep = [pad(p) for p in PROMPTS], [pad([1] * len(p)) for p in PROMPTS]
    out = theirs.generate(
        torch.tensor(ids), attention_mask=torch.tensor(keep), do_sample=False, num_beams=beam, length_penalty=alpha,
        return_dict_in_generate=True, output_scores=True, pad_token_id=0, use_cache=False,
        **{"max_new_tokens": 12, "early_stopping": False} | options,
    )  # fmt: skip
    texts = [row[1 if seq2seq else width :].tolist() for row in out.sequences]
    ends = theirs.generation_config.eos_token_id or []
    ends = [ends] if isinstance(ends, int) else ends
    cut = [next((i + 1 for i, t in enumerate(row) if t in ends), len(row)) for row in texts]
    return [(row[:n], s) for row, n, s in zip(texts, cut, out.sequences_scores.tolist(), strict=True)]


@pytest.mark.parametrize("name", [*SEQ2SEQ, "gpt2", "qwen3_window"])
def test_ragged_texts_and_scores_equal_transformers(name):
    theirs = reference_that_ends(name)
    model, eos, lengths = ours(theirs), None, set()
    for beam, alpha, repetition in ((3, 1.0, 1.5), (5, 0.6, 1.5), (2, 2.0, 1.5), (4, 0.0, 1.0), (4, 1.0, 1.0)):
        theirs.generation_config.eos_token_id = eos
        want = by_transformers(theirs, beam, alpha, repetition_penalty=repetition)
        found = search(theirs, beam, eos or (), model=model, alpha=alpha, repetition_penalty=repetition)
        assert [r.ids for r in found] == [ids for ids, _ in want]
        for row, (ids, score) in zip(found, want, strict=True):
            assert repetition != 1 or sum(row.logprobs) / len(ids) ** alpha == pytest.approx(score, abs=1e-4)
            assert row.finish == ("stop" if eos and ids[-1] in eos else "length")
        lengths |= {len(row.ids) for row in found}
        eos = eos or sorted({row.ids[i] for row, i in zip(found, (3, 5, 7, 9), strict=False)})
    assert len(lengths) > 2, lengths  # some end early, and leave the others in the batch


@pytest.mark.parametrize("name", ["marian", "t5", "gpt2"])
def test_a_beam_of_one_is_greedy_search(name):
    theirs = reference_that_ends(name)
    c, eos = theirs.config, frozenset(range(3, 99, 6))
    opening = Opening(c.decoder_start_token_id, 5, (11,)) if c.is_encoder_decoder else None
    greedy = generate(ours(theirs), PROMPTS, SamplingConfig(max_tokens=12, temperature=0), eos, opening=opening)
    for row, want in zip(search(theirs, 1, eos, forced=5, never=(11,)), greedy, strict=True):
        assert (row.row, row.prompt, row.ids, row.finish) == (want.row, want.prompt, want.ids, want.finish)
        assert row.logprobs == pytest.approx(want.logprobs, abs=1e-4)


def test_forced_and_forbidden_tokens_and_repetition_are_those_of_transformers():
    theirs = reference_that_ends("mbart")
    free = search(theirs)
    never = sorted({t for row in free for t in row.ids} - {7})[:3]
    theirs.generation_config.eos_token_id = 7
    options = {"forced_bos_token_id": 5, "bad_words_ids": [[t] for t in never], "repetition_penalty": 1.2}
    want = [ids for ids, _ in by_transformers(theirs, 4, 1.0, **options)]
    found = [row.ids for row in search(theirs, never=tuple(never), forced=5, repetition_penalty=1.2)]
    assert found == want and found != [row.ids for row in free]
    assert all(ids[0] == 5 for ids in found) and not {t for ids in found for t in ids} & set(never)


RULES = {
    "no_repeat_ngram_size": 2, "min_length": 9, "suppress_tokens": [12, 13], "begin_suppress_tokens": [14],
    "bad_words_ids": [[15], [16, 17]], "forced_eos_token_id": 7,
}  # fmt: skip


@pytest.mark.parametrize("name", ["mbart", "gpt2"])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("on", [*({k: v} for k, v in RULES.items()), RULES], ids=lambda on: "+".join(on))
def test_the_rules_of_a_generation_config_are_those_of_transformers(name, early_stopping, on):
    theirs = reference_that_ends(name)
    theirs.generation_config.eos_token_id = 7
    rules = rules_of(on, frozenset({7}), theirs.config.vocab_size, (), "here")
    want = [ids for ids, _ in by_transformers(theirs, 3, 1.0, early_stopping=early_stopping, **on)]
    assert [row.ids for row in search(theirs, 3, rules=rules, early_stopping=early_stopping)] == want
    sampled = generate(
        ours(theirs), PROMPTS, SamplingConfig(max_tokens=12, rules=rules), frozenset({7}), 1, opening=opening_of(theirs)
    )
    texts = [row.ids for row in sampled]
    if "suppress_tokens" in on:
        assert not {i for ids in texts for i in ids} & {12, 13}
    assert not not_followed(on) and not_followed({"num_beams": 4, "top_k": 50}) == ["num_beams=4"]


def plain_search(model, prompt, beam, eos, most, worth):
    """The definition, one prompt at a time, all read again for each token."""
    going, ended = [(0.0, [])], []
    for length in range(1, most + 1):
        candidates = []
        for total, ids in going:
            with torch.no_grad():
                logprobs = model.head(model(torch.tensor([prompt + ids]))[0, -1]).log_softmax(-1)
            candidates += [(total + p, [*ids, token]) for token, p in enumerate(logprobs.tolist())]
        candidates.sort(reverse=True)
        stops = lambda ids: ids[-1] in eos or len(ids) == most
        ended += [(worth(total, length), ids) for total, ids in candidates[:beam] if stops(ids)]
        ended = sorted(ended, reverse=True)[:beam]
        going = [(total, ids) for total, ids in candidates if not stops(ids)][:beam]
        if not going or (len(ended) == beam and worth(going[0][0], length) <= ended[-1][0]):
            break
    return ended[0][1]


def test_gnmt_penalty_is_the_definition():
    model, eos = ours(reference_that_ends("gpt2")), set(range(3, 99, 6))
    for alpha in (0.0, 0.6, 3.0):
        worth = lambda total, length, alpha=alpha: total / ((5 + length) / 6) ** alpha
        want = [plain_search(model, p, 3, eos, 8, worth) for p in PROMPTS]
        rows = beam_search(
            model, PROMPTS, SamplingConfig(max_tokens=8), 3, LengthPenalty(kind="gnmt", alpha=alpha), eos
        )
        assert [row.ids for row in rows] == want


@pytest.mark.parametrize("name", ["bart", "qwen3_window"])
def test_a_prompt_alone_or_in_any_batch(name, monkeypatch):
    theirs = reference_that_ends(name)
    model, eos = ours(theirs), range(3, 99, 6)
    together = search(theirs, eos=eos, model=model.train())
    assert model.training and [row.row for row in together] == list(range(len(PROMPTS)))
    alone = [search(theirs, eos=eos, model=model, prompts=[p])[0].ids for p in PROMPTS]
    monkeypatch.setattr(beams, "MAX_TOKENS", 300)
    few = search(theirs, eos=eos, model=model)
    assert [row.ids for row in together] == alone == [row.ids for row in few]


def test_the_context_ends_texts_and_bad_prompts_are_named():
    theirs = reference_that_ends("gpt2")
    room = theirs.config.n_positions
    long, short = search(theirs, eos=(), prompts=[[5] * (room - 3), [6]])
    assert (len(long.ids), long.finish) == (3, "length") and len(short.ids) == 12
    [tiny] = search(theirs, beam=200, prompts=[[5]], max_tokens=2)  # wider than the vocabulary
    assert tiny.ids and math.isfinite(sum(tiny.logprobs))
    with pytest.raises(UserError, match="prompt 2 has no tokens"):
        search(theirs, prompts=[[5], []])
    model = ours(theirs)
    model.embedding.weight.data[:] = math.nan
    with pytest.raises(ModelError, match="not finite"):
        search(theirs, model=model)
