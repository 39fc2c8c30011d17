"""Generation writes what transformers writes, whatever else is in the batch."""

import pytest
import torch

from lmkit.base.errors import ModelError, UserError
from lmkit.generation import engine
from lmkit.generation.engine import generate
from lmkit.generation.sampling import SamplingConfig
from tests.model.families import DECODERS, ours, reference

PROMPTS = [torch.randint(3, 101, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (9, 1, 4, 20, 4)]
GREEDY = {"temperature": 0.0, "max_tokens": 16}


def texts(model, prompts, eos=frozenset(), samples=1, **options):
    return [row.ids for row in generate(model, prompts, SamplingConfig(**options), eos, samples)]


def greedy_by_transformers(theirs, prompt, **options):
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": 16, "pad_token_id": 0, **options}
    out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **settings)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_ragged_greedy_equals_transformers(name):
    theirs = reference(name)
    theirs.generation_config.eos_token_id = None
    want = [greedy_by_transformers(theirs, p, repetition_penalty=1.3) for p in PROMPTS]
    assert texts(ours(theirs), PROMPTS, repetition_penalty=1.3, **GREEDY) == want


def test_end_tokens_end_rows_and_leave_the_others_alone():
    theirs = reference("qwen3_window")
    free = [greedy_by_transformers(theirs, p, eos_token_id=None, repetition_penalty=1.3) for p in PROMPTS]
    eos = {free[0][2]}
    want = [greedy_by_transformers(theirs, p, eos_token_id=list(eos), repetition_penalty=1.3) for p in PROMPTS]
    rows = list(generate(ours(theirs), PROMPTS, SamplingConfig(repetition_penalty=1.3, **GREEDY), frozenset(eos)))
    assert [r.ids for r in rows] == want
    assert {r.finish for r in rows} == {"stop", "length"}
    assert all((r.finish == "stop") == (r.ids[-1] in eos) for r in rows)


@pytest.mark.parametrize("name", ["gpt2", "qwen3_window"])
def test_same_seed_same_text_alone_or_in_any_batch(name, monkeypatch):
    model, options = ours(reference(name)), {"temperature": 1.5, "top_p": 0.95, "max_tokens": 12, "seed": 3}
    together = texts(model, PROMPTS, samples=3, **options)
    alone = [ids for p in PROMPTS for ids in texts(model, [p], samples=3, **options)]
    monkeypatch.setattr(engine, "MAX_TOKENS", 70)
    assert together == alone == texts(model, PROMPTS, samples=3, **options)
    assert len({tuple(ids) for ids in together[:3]}) == 3
    assert together != texts(model, PROMPTS, samples=3, **options | {"seed": 4})


def test_logprobs_are_those_of_the_model():
    theirs = reference("llama")
    for row in generate(ours(theirs), PROMPTS, SamplingConfig(max_tokens=5, temperature=0.7, top_k=9)):
        with torch.no_grad():
            logits = theirs(torch.tensor([row.prompt + row.ids])).logits[0, len(row.prompt) - 1 : -1]
        want = logits.log_softmax(-1).gather(1, torch.tensor(row.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(row.logprobs), want, rtol=0, atol=5e-5)


def test_prompts_are_read_as_needed():
    read = []
    endless = (read.append(i) or [1 + i % 90] for i in range(10**9))
    rows = generate(ours(reference("gpt2")), endless, SamplingConfig(max_tokens=2))
    for _ in range(70):
        next(rows)
    assert len(read) <= 2 * engine.MAX_ROWS


def test_the_context_bounds_prompts_and_texts():
    model = ours(reference("gpt2"))  # context 48
    with pytest.raises(UserError, match=r"prompt 2 has 48 tokens.*context of 48(.|\n)*47 tokens"):
        texts(model, [[5], [1] * 48], max_tokens=1)
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        texts(model, [[]])
    rows = list(generate(model, [[1] * 47, [1] * 3], SamplingConfig(max_tokens=1000)))
    assert [(len(r.ids), r.finish) for r in rows] == [(1, "length"), (45, "length")]


def test_training_is_not_disturbed():
    model = ours(reference("gpt2"), dropout=0.5).train()
    before = torch.get_rng_state()
    first = texts(model, PROMPTS, max_tokens=4)
    assert model.training and torch.equal(before, torch.get_rng_state())
    assert first == texts(model.eval(), PROMPTS, max_tokens=4)


def test_broken_weights_are_named():
    model = ours(reference("llama"))
    model.head.weight.data[3] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        texts(model, PROMPTS)
