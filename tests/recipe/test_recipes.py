"""The built-in recipes: all resolve, the sizes are the published ones, the small ones train."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from lmkit.architecture.families import FAMILIES
from lmkit.architecture.model_config import ModelConfig
from lmkit.architecture.sizes import PRESETS
from lmkit.commands.recipes import sized
from lmkit.model.formats.config_json import config_to_hf
from lmkit.model.transformer import Transformer
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import build_recipe, builtin_recipes, load_recipe
from lmkit.training import pretraining_run

PROMISED = ("transformer", "bert", "roberta", "albert", "electra", "modernbert", "t5", "bart", "gpt2", "llama")


def test_every_promised_family_has_a_small_and_a_published_recipe():
    loaded = {
        name: load_recipe(Recipe, path, (), expand_pretraining) for name, path in builtin_recipes("pretrain").items()
    }
    for family in PROMISED:
        sizes = {name: r.model.hidden_size for name, r in loaded.items() if r.model.family == family}
        assert any(name.endswith("-tiny") for name in sizes), family
        assert max(sizes.values()) >= 256, family


@pytest.mark.parametrize("name", [n for n in builtin_recipes("pretrain") if n.endswith("-tiny")])
def test_small_recipes_train(name, tmp_path, monkeypatch):
    """Two steps on a small corpus; the checkpoint is a folder that transformers loads."""
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = ["she", "was", "a", "very", "good", "young", "woman", "and", "he", "had", "been", "much", "too", "proud"]
    texts = [" ".join(words[(i * k) % len(words)] for k in range(12 + i % 5)) + f" {i}. So it was." for i in range(260)]
    Path("corpus.en").write_text("\n".join(texts))
    Path("corpus.de").write_text("\n".join(t[::-1] for t in texts))
    Path("corpus.txt").write_text("\n".join(texts))
    recipe = load_recipe(Recipe, builtin_recipes("pretrain")[name], (), expand_pretraining)
    pairs = recipe.data.target is not None
    data = f"data.train={'corpus.en' if pairs else 'corpus.txt'}"
    split = ["data.validation=10%"] if pairs else ["data.validation=10%", r'data.separator="\n"']
    changes = (
        data,
        *split,
        "tokenizer.vocab_size=420",
        "train.budget=2 steps",
        "train.batch=1536",
        "evaluate.tokens=512",
    )
    assert pretraining_run.start(builtin_recipes("pretrain")[name], changes, Path("run")) == 0
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2 and last["val_loss"] < 12
    cls = getattr(hf, FAMILIES[recipe.model.family].heads[recipe.model.head].cls)
    _, report = cls.from_pretrained("run/best", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


CLASSES = [  # transformers' own defaults are these published sizes
    ("bert-base", hf.BertForMaskedLM, hf.BertConfig()),
    ("gpt2", hf.GPT2LMHeadModel, hf.GPT2Config()),
    ("modernbert-base", hf.ModernBertForMaskedLM, hf.ModernBertConfig()),
    ("t5-small", hf.T5ForConditionalGeneration, hf.T5Config()),
    ("bart-large", hf.BartForConditionalGeneration, hf.BartConfig()),
    ("albert-xxlarge-v2", hf.AlbertForMaskedLM, hf.AlbertConfig()),
    ("electra-small-generator", hf.ElectraForMaskedLM, hf.ElectraConfig()),
]
PUBLISHED = {  # as the model cards and papers count them, heads with tied weights once
    "bert-base": 109_514_298, "roberta-base": 124_697_433, "modernbert-base": 149_655_232, "t5-small": 60_506_624,
    "t5-v1_1-small": 76_961_152, "gpt2": 124_439_808, "bart-base": 139_420_416, "llama-2-7b": 6_738_415_616,
    "tinyllama-1.1b": 1_100_048_384, "smollm2-135m": 134_515_008, "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096, "qwen3-0.6b": 596_049_920, "mbart-large-cc25": 610_851_840,
    "gemma-2b": 2_506_172_416, "gemma-2-2b": 2_614_341_888, "gemma-3-270m": 268_098_176, "gemma-3-1b": 999_885_952,
    "phi-3-mini": 3_821_079_552, "smollm3-3b": 3_075_098_624, "pythia-70m": 70_426_624, "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016, "pythia-1.4b": 1_414_647_808,
}  # fmt: skip


def config(name: str) -> ModelConfig:
    return ModelConfig(**build_recipe(Recipe, sized(name), {}, expand_pretraining).model.model_dump())


def count(name: str) -> int:
    with torch.device("meta"):
        return sum(Transformer(config(name)).num_parameters().values())


@pytest.mark.parametrize(("name", "cls", "settings"), CLASSES, ids=[c[0] for c in CLASSES])
def test_sizes_are_those_of_transformers_classes(name, cls, settings):
    with torch.device("meta"):
        assert count(name) == cls(settings).num_parameters()


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_counts_the_same_parameters(name):
    """For every size, through the config.json that a checkpoint of it would have."""
    c = config(name)
    settings = config_to_hf(c, {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1})
    with torch.device("meta"):
        theirs = getattr(hf, c.spec.cls)(hf.AutoConfig.for_model(settings.pop("model_type"), **settings))
    fixed = sum(
        p.numel() for k, p in theirs.named_parameters() if "embed_positions" in k and c.positions == "sinusoidal"
    )
    untied = (
        c.vocab_size * c.hidden_size if c.family in ("t5", "mt5") and not c.tied else 0
    )  # its class counts one table
    assert count(name) == theirs.num_parameters() - fixed + untied
    assert count(name) == PUBLISHED.get(name, count(name))
