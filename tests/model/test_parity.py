"""Every decoder family computes what transformers computes, and every detail of it is needed."""

import pytest
import torch

from lmkit.architecture import ModelConfig
from lmkit.model.huggingface import config_from_hf, config_to_hf, from_hf, load_folder, save_folder, to_hf
from lmkit.model.transformer import Transformer
from tests.model.families import CASES, ragged, reference

TOLERANCE = 2e-5
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def ours(theirs, **changes) -> Transformer:
    config = config_from_hf(theirs.config.to_dict())
    model = Transformer(ModelConfig(**{**config.model_dump(), **changes}))
    from_hf(model, dict(theirs.state_dict()), "test")
    return model.eval()


@torch.no_grad()
def gap(model: Transformer, theirs) -> float:
    """Largest difference in logits over real positions."""
    ids, keep = ragged()
    want = theirs(ids, attention_mask=keep).logits
    got = model.head(model(ids, keep=keep.bool()))
    return (got - want)[keep.bool()].abs().max().item()


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name):
    theirs = reference(name)
    assert gap(ours(theirs), theirs) <= TOLERANCE


MUTATIONS = [
    ("gpt2", {"activation": "gelu"}),
    ("gpt2", {"norm_eps": 1e-4}),
    ("llama", {"rope_theta": 9000.0}),
    ("llama", {"norm_eps": 1e-4}),
    ("llama", {"activation": "gelu"}),
    ("llama3", {"rope_scaling": None}),
    ("llama_linear", {"rope_scaling": None}),
    ("mistral", {"sliding_window": 6}),
    ("mistral", {"sliding_window": 8}),
    ("qwen3_window", {"window_layers": (2,)}),
    ("qwen3", {"qk_norm": "after_rope"}),
    ("nanochat", {"rope_reversed": False}),
    ("nanochat", {"qk_norm": "before_rope", "norm_eps": 1e-2}),
    ("nanochat", {"embedding_norm": False}),
    ("nanochat", {"logit_softcap": 14.0}),
    ("nanochat", {"activation": "relu"}),
]


@pytest.mark.parametrize(("name", "change"), MUTATIONS, ids=[f"{n}-{next(iter(c))}" for n, c in MUTATIONS])
def test_a_wrong_detail_is_seen(name, change):
    theirs = reference(name)
    assert gap(ours(theirs, **change), theirs) > TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_round_trip_is_byte_equal(name):
    theirs = reference(name)
    want = {
        k: v for k, v in theirs.state_dict().items() if k != "lm_head.weight" or not theirs.config.tie_word_embeddings
    }
    got = dict(to_hf(ours(theirs)))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)
    config = config_from_hf(theirs.config.to_dict())
    assert config_from_hf(config_to_hf(config, NO_IDS)) == config


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_what_we_save(name, tmp_path):
    import transformers

    theirs = reference(name)
    model = ours(theirs)
    save_folder(model, tmp_path, NO_IDS)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(back) is type(theirs)
    assert gap(model, back) <= TOLERANCE
    assert gap(load_folder(tmp_path), theirs) <= TOLERANCE
    assert sum(model.num_parameters().values()) == back.num_parameters()


@pytest.mark.parametrize("name", CASES)
def test_packed_documents_equal_separate_ones(name):
    """Segments and restarting positions: a row of two documents gives each what it gets alone."""
    model, (ids, _) = ours(reference(name)), ragged()
    segments, positions = torch.zeros_like(ids), torch.arange(23).repeat(3, 1)
    segments[:, 9:], positions[:, 9:] = 1, torch.arange(14)
    with torch.no_grad():
        packed = model(ids, segments=segments, positions=positions)
        torch.testing.assert_close(packed[:, :9], model(ids[:, :9]), rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(packed[:, 9:], model(ids[:, 9:]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_cached_steps_equal_one_pass(name):
    model, (ids, _) = ours(reference(name)), ragged()
    with torch.no_grad():
        caches = model.new_caches(3, 23)
        parts = [model(ids[:, :6], caches=caches), model(ids[:, 6:9], caches=caches)]
        parts += [model(ids[:, i : i + 1], caches=caches) for i in range(9, 23)]
        torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=0, atol=TOLERANCE)
