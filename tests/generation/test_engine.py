"""Generation writes what transformers writes, whatever else is in the batch."""

import math

import pytest
import torch

from lmkit.base.errors import ModelError, UserError
from lmkit.generation import engine
from lmkit.generation.completions import Opening
from lmkit.generation.engine import MAX_ROWS, Engine, Request, generate
from lmkit.generation.sampling import SamplingConfig
from lmkit.generation.slots import Slots
from lmkit.generation.speculation import GUESSES, DraftModel, PromptLookup
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
    model = ours(theirs)
    if reach := model.config.long_from:  # a text that begins within the original context ends with it
        want = [w if len(p) > reach else w[: reach - len(p) + 1] for p, w in zip(PROMPTS, want, strict=True)]
    assert texts(model, PROMPTS, repetition_penalty=1.3, **GREEDY) == want


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
    assert len(read) <= 2 * MAX_ROWS


def outspoken(name):
    """Random weights, so large that what is written depends on what was read."""
    theirs = reference(name)
    for p in theirs.parameters():
        p.data *= 8 if p.dim() > 1 else 1
    return theirs


def requests_for(theirs):
    """Three requests for each prompt, which differ in their seed, their length, and how tokens are chosen."""
    opening = Opening(2) if theirs.config.is_encoder_decoder else None
    drawn = {"temperature": 1.2, "top_p": 0.95, "repetition_penalty": 1.3}
    configs = [SamplingConfig(max_tokens=12, seed=1, **drawn), SamplingConfig(max_tokens=7, seed=5, **drawn)]
    configs.append(SamplingConfig(max_tokens=9, **drawn | {"temperature": 0}))
    return [
        Request(prompt, config, frozenset(range(3, 99, 9)), sample, opening)
        for sample, config in enumerate(configs)
        for prompt in PROMPTS
    ]


def written_alone(model, request):
    engine = Engine(model)
    completion = engine.submit(request)
    while not completion.finish:
        assert len(engine.step()) == 1
    assert engine.step() == []
    return completion


def assert_alike(completion, alone):
    assert (completion.ids, completion.finish) == (alone.ids, alone.finish)
    # Logits are about 50 here, so that rounding alone changes the smallest of these numbers by 2e-5 of their size.
    assert completion.logprobs == pytest.approx(alone.logprobs, rel=2e-5, abs=5e-5)


@pytest.mark.parametrize("name", ["gpt2", "qwen3_window", "mbart"])
def test_a_request_is_written_alike_alone_and_among_others(name):
    theirs = outspoken(name)
    model, requests = ours(theirs), requests_for(theirs)
    engine = Engine(model)
    completions = [engine.submit(request) for request in requests]
    late = 0 if name == "mbart" else 2  # two samples of the longest prompt wait for the first, and copy what it read
    assert len(engine.step()) == len(requests) - late
    while engine.busy:
        engine.step()
    alone = [written_alone(model, request) for request in requests]
    for completion, other in zip(completions, alone, strict=True):
        assert_alike(completion, other)
    assert {c.finish for c in completions} == {"stop", "length"} and len({tuple(c.ids) for c in completions}) > 6


@pytest.mark.parametrize("name", ["gpt2", "qwen3_window", "mbart"])
def test_requests_that_come_and_go_leave_the_others_alone(name):
    theirs = outspoken(name)
    model, requests = ours(theirs), requests_for(theirs)
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(0)).tolist()
    engine, completions, unwanted, cancelled = Engine(model, max_rows=4), {}, [], []
    for turn, index in enumerate(order):
        unwanted.append(engine.submit(requests[turn]))
        completions[index] = engine.submit(requests[index])
        unwanted.append(engine.submit(requests[turn]))
        with pytest.raises(UserError, match="prompt 7 has no tokens"):
            engine.submit(Request([], SamplingConfig(), number=7))
        engine.step()
        # By turns one that is being written and one that waits.
        for completion in [c for c in unwanted if not c.finish and bool(c.ids) == bool(turn % 2)][-1:]:
            cancelled.append((completion, list(completion.ids)))
            engine.cancel(completion)
    while events := engine.step():
        assert not any(event.completion.finish == "cancelled" for event in events)
    for index, completion in completions.items():
        assert_alike(completion, written_alone(model, requests[index]))
    assert all(completion.ids == ids and completion.finish == "cancelled" for completion, ids in cancelled)
    assert {bool(ids) for _, ids in cancelled} == {False, True}
    assert {c.finish for c in unwanted} == {"stop", "length", "cancelled"}


@pytest.mark.parametrize("name", ["gpt2", "qwen3_window", "gemma3_text"])
def test_long_prompts_are_read_in_parts_and_shared_beginnings_once(name, monkeypatch):
    theirs = outspoken(name)
    model = ours(theirs)
    long = PROMPTS[3]
    prompts = [*PROMPTS, [*long[:17], 5, 6], [*long, 7, 8], long]
    want = [greedy_by_transformers(theirs, p, eos_token_id=None) for p in prompts]
    monkeypatch.setattr(engine, "CHUNK", 6)
    parts, read = [], Slots.read
    monkeypatch.setattr(Slots, "read", lambda self, first, tokens: parts.extend(tokens) or read(self, first, tokens))
    assert texts(model, prompts, **GREEDY) == want
    assert max(map(len, parts)) == 6
    unread = sum(map(len, prompts)) + 15 * len(prompts) - sum(map(len, parts))
    assert unread == 17 + 20 + 19  # the last token of a prompt is always read


def test_the_next_turn_of_a_conversation_reads_only_what_is_new(monkeypatch):
    theirs = outspoken("qwen3_window")
    model, config = ours(theirs), SamplingConfig(**GREEDY | {"max_tokens": 6})
    engine, parts, read = Engine(model, keep=2), [], Slots.read
    monkeypatch.setattr(Slots, "read", lambda self, first, tokens: parts.append(tokens) or read(self, first, tokens))
    text = PROMPTS[3]
    for turn in range(3):
        if turn == 1:
            engine.submit(Request([90] * 18, config))
        answer = engine.submit(Request(text, config))
        parts.clear()
        while engine.step():
            pass
        assert answer.ids == greedy_by_transformers(theirs, text, max_new_tokens=6, eos_token_id=None)
        assert max(len(row) for tokens in parts for row in tokens) == (20, 18, 4)[turn]
        text = [*text, *answer.ids, 7, 8, 9]


@pytest.mark.parametrize("config", [GREEDY, {"temperature": 0.9, "top_p": 0.9, "max_tokens": 16, "seed": 7}])
@pytest.mark.parametrize("name", ["gpt2", "qwen3_window", "mbart"])
def test_guesses_change_no_text_and_right_ones_save_passes(name, config):
    theirs = reference(name)
    model, repeating = ours(theirs), [[*p, *p, *p] if len(p) < 6 else p for p in PROMPTS]
    opening = Opening(2) if theirs.config.is_encoder_decoder else None
    requests = [Request(p, SamplingConfig(**config), opening=opening) for p in repeating]
    drafters = [PromptLookup] if opening else [PromptLookup, lambda: DraftModel(model)]
    alone = [written_alone(model, request) for request in requests]
    for drafter in drafters:
        engine, steps = Engine(model, drafter=drafter), 0
        completions = [engine.submit(request) for request in requests]
        while engine.step():
            steps += 1
        for completion, other in zip(completions, alone, strict=True):
            assert_alike(completion, other)
        if drafter is not PromptLookup and config is GREEDY:  # the model guesses its own tokens
            assert steps == 1 + math.ceil(15 / (1 + GUESSES))


def test_an_engine_whose_texts_are_all_cancelled_begins_with_others():
    model, config = ours(reference("gpt2")), SamplingConfig(max_tokens=5, temperature=0)
    engine = Engine(model)
    first, second = (engine.submit(Request(prompt, config)) for prompt in PROMPTS[:2])
    assert {event.completion.row for event in engine.step()} == {0, 1} and engine.room == MAX_ROWS - 2
    engine.cancel(first)
    engine.cancel(second)
    assert engine.step() == [] and engine.room == MAX_ROWS and len(first.ids) == 1
    third = engine.submit(Request(PROMPTS[2], config))
    while engine.step():
        pass
    assert third.ids == texts(model, PROMPTS[2:3], max_tokens=5, temperature=0)[0]


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
