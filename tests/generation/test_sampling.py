"""Filters mean what transformers' do, and draws follow the distribution they leave."""

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from lmkit.base.errors import UserError
from lmkit.generation.sampling import SamplingConfig, choose_tokens, penalise, warp

LOGITS = torch.randn(7, 200, generator=torch.Generator().manual_seed(0)) * 3
FILTERS = [
    ({"top_k": 5}, [theirs.TopKLogitsWarper(5)]),
    ({"top_k": 999}, [theirs.TopKLogitsWarper(999)]),
    ({"top_p": 0.6}, [theirs.TopPLogitsWarper(0.6)]),
    ({"top_p": 1e-9}, [theirs.TopPLogitsWarper(1e-9)]),
    ({"min_p": 0.1}, [theirs.MinPLogitsWarper(0.1)]),
    (
        {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "temperature": 1.7},
        [
            theirs.TemperatureLogitsWarper(1.7),
            theirs.TopKLogitsWarper(50),
            theirs.TopPLogitsWarper(0.9),
            theirs.MinPLogitsWarper(0.02),
        ],
    ),
]


@pytest.mark.parametrize(("options", "processors"), FILTERS, ids=[",".join(o) for o, _ in FILTERS])
def test_filters_equal_transformers(options, processors):
    want = LOGITS
    for process in processors:
        want = process(None, want)
    torch.testing.assert_close(warp(LOGITS, SamplingConfig(**options)).softmax(-1), want.softmax(-1))


def test_repetition_penalty_equals_transformers():
    ids = torch.randint(0, 200, (7, 30), generator=torch.Generator().manual_seed(1))
    want = theirs.RepetitionPenaltyLogitsProcessor(1.4)(ids, LOGITS.clone())
    seen = torch.zeros(7, 200, dtype=torch.bool).scatter(1, ids, True)
    torch.testing.assert_close(penalise(LOGITS, seen, 1.4), want)


def test_draws_follow_the_distribution():
    logits, rng = torch.tensor([[0.0, 1.0, 2.0, -1e9]]), np.random.default_rng(0)
    config = SamplingConfig(temperature=2.0)
    drawn = [choose_tokens(logits, config, [rng]).item() for _ in range(4000)]
    share = torch.tensor(drawn).bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(share, (logits[0] / 2).softmax(-1), rtol=0, atol=0.03)
    assert share[3] == 0


@pytest.mark.parametrize("temperature", [1e-320, 1e-9, 1e300])
def test_extreme_temperatures_stay_defined(temperature):
    chosen = choose_tokens(
        LOGITS, SamplingConfig(temperature=temperature), [np.random.default_rng(i) for i in range(7)]
    )
    if temperature < 1:
        assert torch.equal(chosen, LOGITS.argmax(-1))


WRONG = [
    {"max_tokens": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")},
    {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 2.0}, {"repetition_penalty": 0.0},
    {"seed": -1}, {"stop": ("a", "")},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=rf"^{next(iter(options))} .* is out of range\n  allowed: "):
        SamplingConfig(**options)
