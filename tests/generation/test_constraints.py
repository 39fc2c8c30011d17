"""Constraints hold by construction; filters and penalties are those of transformers and of the published formulas."""

import json
import re

import numpy as np
import pytest
import torch
from jsonschema import validate
from transformers import LogitsProcessorList, TypicalLogitsWarper

from lmkit.base.errors import UserError
from lmkit.generation.engine import complete
from lmkit.generation.grammar import Grammar, matching, of_schema, one_of
from lmkit.generation.sampling import SamplingConfig, adjusted, warp
from lmkit.generation.speculation import PromptLookup
from lmkit.pretrained import load
from tests.generation.folders import llama_folder

SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "kind"],
    "properties": {
        "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog", "naïve"]},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    llama_folder(folder, context=200, eos=1)
    return load(folder)


def written(loaded, definition, drafter=None):
    grammar = Grammar(definition, loaded.tokenizer, loaded.eos, loaded.config.vocab_size)
    config = SamplingConfig(max_tokens=180, temperature=1.0, seed=1)
    prompts, more = ["The fox", "over over"], {"grammar": grammar, "drafter": drafter}
    return list(complete(loaded.model, loaded.tokenizer, prompts, config, loaded.eos, 3, **more))


@pytest.mark.parametrize("drafter", [None, PromptLookup])
def test_every_text_keeps_its_constraint(loaded, drafter):
    rows = written(loaded, of_schema(SCHEMA), drafter)
    assert {row.finish for row in rows} == {"stop"} and len({row.text for row in rows}) > 3
    for row in rows:
        validate(json.loads(row.text), SCHEMA)
    assert {row.text for row in written(loaded, one_of(["yes", "no", "50% (or so)"]), drafter)} <= {
        "yes",
        "no",
        "50% (or so)",
    }
    regex = r"[A-Z][a-z]{2,5} \d{1,3}"
    assert all(re.fullmatch(regex, row.text) for row in written(loaded, matching(regex), drafter))


def test_a_definition_that_is_none_is_refused(loaded):
    for definition in (lambda: matching("a("), lambda: of_schema('{"type": "nothing"}')):
        with pytest.raises(UserError, match="cannot be followed"):
            written(loaded, definition())
    for broken in ("[1]", "{", "[" * 100_000):
        with pytest.raises(UserError, match="JSON schema cannot be read"):
            of_schema(broken)
    with pytest.raises(UserError, match="at least one text"):
        one_of(["a", ""])


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9, 0.999])
def test_typical_sampling_is_that_of_transformers(share):
    logits = torch.randn(7, 60, generator=torch.Generator().manual_seed(3)) * 3
    theirs = LogitsProcessorList([TypicalLogitsWarper(share)])(None, logits.log_softmax(-1))
    assert torch.equal(warp(logits, SamplingConfig(typical_p=share)).isinf(), theirs.isinf())


def test_penalties_and_biases_follow_their_formulas():
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    config = SamplingConfig(presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((3, 2.0), (8, -100.0)))
    written = [[1, 1, 4], []]
    counts = np.array([np.bincount(new, minlength=9) for new in written])
    want = logits.numpy() - 0.25 * counts - 0.5 * (counts > 0)
    want[:, 3] += 2
    want[:, 8] -= 100
    got = adjusted(logits, config, [[0, *new] for new in written], written, [9, 9])
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6)


def test_the_likeliest_tokens_are_listed_beside_each_new_one(loaded):
    model, tokenizer = loaded.model, loaded.tokenizer
    config = SamplingConfig(max_tokens=4, top_logprobs=3, temperature=0)
    [row] = complete(model, tokenizer, ["The fox"], config, frozenset())
    for place, listed in enumerate(row.alternatives):
        ids = torch.tensor([row.prompt + row.ids[:place]])
        want = model.head(model(ids))[0, -1].log_softmax(-1).topk(3)
        assert [token for token, _ in listed] == want.indices.tolist()
        torch.testing.assert_close(torch.tensor([value for _, value in listed]), want.values, rtol=0, atol=2e-5)
    assert [listed[0] for listed in row.alternatives] == [
        (token, pytest.approx(value)) for token, value in zip(row.ids, row.logprobs, strict=True)
    ]
