"""Padding has no part in what labels cost."""

import numpy as np
import pytest
import torch

from lmkit.architecture.model_config import ModelConfig
from lmkit.model.initial import init_weights
from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.objectives.causal_lm import PromptedLM
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import build_recipe
from lmkit.tasks.labelling import Classify, InputLayout, Span, Tag

LENGTHS = (5, 9, 16)


def label(head: str, length: int) -> dict:
    scored = np.where(np.arange(length) % 3, IGNORE, np.arange(length) % 2)
    return {"sequence": {"label": length % 2}, "span": {"span": (1, length - 1)}}.get(head, {"labels": scored})


@pytest.mark.parametrize(("family", "head"), [
    ("bert", "sequence"), ("bart", "sequence"), ("gpt2", "sequence"), ("bert", "token"), ("bert", "span"),
    ("gpt2", "lm"),
])  # fmt: skip
def test_rows_padded_to_a_multiple_cost_the_same(family, head):
    torch.manual_seed(0)
    sizes = {"family": family, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "context": 32, "vocab_size": 64}
    whole = build_recipe(
        Recipe, {"model": sizes, "data": {"train": "rows.txt"}}, {}, expand_pretraining
    ).model.model_dump()
    labels = () if head == "lm" else ("a", "b")
    config = ModelConfig(**whole | {"head": head, "labels": labels, "vocab_size": 64})
    model = Transformer(config).eval()
    init_weights(model)
    layout = InputLayout(0, typed=family == "bert", causal=family == "gpt2", start=2 if family == "bart" else None)
    tasks = {"sequence": Classify(layout, "single"), "token": Tag(layout), "span": Span(layout), "lm": PromptedLM(0)}
    task = tasks[head]
    rows = [
        {"tokens": np.arange(n) + 3, "types": np.arange(n) % 2, "row": n, "documents": (n,)} | label(head, n)
        for n in LENGTHS
    ]
    exact, wide, alone = task.collate(rows[:2]), task.collate(rows[:2], 16), task.collate(rows[2:], 16)
    assert exact.tokens.shape == (2, 9) and wide.tokens.shape == (2, 16)
    assert alone.tokens.shape == (1, 16) and alone.keep is None
    assert exact.counts == wide.counts and exact.num_tokens == wide.num_tokens
    with torch.no_grad():
        a, b = task.loss(model, exact), task.loss(model, wide)
    for sums in ("sums", "hits", "nats"):
        torch.testing.assert_close(getattr(a, sums), getattr(b, sums))
