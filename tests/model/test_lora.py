"""Adapters start as nothing, change nothing but themselves, and merge into the function they were."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmkit.base.errors import ModelError, UserError
from lmkit.model.formats.huggingface import save_folder
from lmkit.model.lora import (
    ADDED,
    LoraLinear,
    Part,
    adapter_tensors,
    adapters,
    add_lora,
    freeze,
    load_adapter_tensors,
    merge_lora,
    merged,
    trainable,
)
from lmkit.recipe.tasks import LoraConfig
from tests.model.adapting import SMALL, adapted, close, logits, merging, shake, their_logits
from tests.model.families import auto_class, decoder_inputs, inputs, ours, reference

NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def layer(parts: list[Part], dora: bool = False, dropout: float = 0.0) -> LoraLinear:
    torch.manual_seed(0)
    lora = LoraLinear(torch.nn.Linear(8, sum(p.rows for p in parts)), parts, dropout, dora)
    lora.reset(torch.Generator().manual_seed(0))
    return lora


@pytest.mark.parametrize("dora", [False, True])
def test_a_new_adapter_changes_nothing(dora):
    lora = layer([Part(4, 2, 2.0), Part(3, 2, 2.0)], dora)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(lora(x), lora.base(x), rtol=0, atol=1e-6)
    assert torch.equal(lora.merged_weight(), lora.base.weight)


@pytest.mark.parametrize("dora", [False, True])
def test_parts_without_an_adapter_stay_as_they_are(dora):
    lora = layer([Part(4, 2, 2.0), Part(3, 0, 0.0), Part(5, 1, 0.5)], dora)
    shake(dict(lora.named_parameters(prefix="x")) | {"x.base.weight": torch.zeros(1), "x.base.bias": torch.zeros(1)})
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        got, plain = lora(x), lora.base(x)
    assert close(got[..., 4:7], plain[..., 4:7], 1e-6) and not close(got[..., :4], plain[..., :4], 1e-2)
    assert torch.equal(lora.merged_weight()[4:7], lora.base.weight[4:7])
    assert [p.requires_grad for p in lora.lora_b] == [True, False, True]


def test_the_length_is_a_constant_for_doras_gradient():
    lora = layer([Part(4, 2, 2.0)], dora=True)
    shake({"a": lora.lora_a, "b": lora.lora_b[0], "magnitude": lora.magnitude[0]})
    x = torch.randn(6, 8)
    lora(x).square().sum().backward()
    got = lora.lora_b[0].grad.clone()
    factor = lora.row_factor().detach()
    b = lora.lora_b[0].detach().requires_grad_()
    y = (x @ lora.base.weight.T + 2.0 * (x @ lora.lora_a.detach().T) @ b.T) * factor + lora.base.bias
    y.square().sum().backward()
    torch.testing.assert_close(got, b.grad)


def test_dropout_reaches_only_the_adapter():
    lora = layer([Part(4, 2, 2.0)], dropout=0.5)
    x = torch.randn(3, 8)
    assert torch.equal(lora.train()(x), lora.base(x))  # B is zero
    shake({"b": lora.lora_b[0]})
    assert not torch.equal(lora(x), lora(x)) and torch.equal(lora.eval()(x), lora(x))


def test_lower_precision_keeps_the_type():
    for dora in (False, True):
        lora = layer([Part(4, 2, 2.0), Part(3, 0, 0.0)], dora)
        x = torch.randn(3, 8)
        want = lora(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = lora(x)
        assert got.dtype == torch.bfloat16 and close(got.float(), want, 0.05)


# ---------------------------------------------------------------- in a model


def test_one_seed_gives_the_same_adapters_and_targets_their_order_does_not_matter():
    models = [ours(reference("bert", "sequence")) for _ in range(3)]
    for model, seed, targets in zip(models, (5, 5, 6), (("mlp", "attention"), ("attention", "mlp"), ("mlp",)),
                                    strict=True):  # fmt: skip
        add_lora(model, LoraConfig(targets=targets), seed)
    a, b, c = ({n: t for n, t in adapter_tensors(m).items() if "lora_" in n} for m in models)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    name = "encoder.blocks.0.mlp.up.lora_a"
    assert not torch.equal(a[name], c[name]) and not a["encoder.blocks.0.mlp.up.lora_b.0"].any()
    assert 0.9 < a[name].abs().max() * 32**0.5 <= 1  # uniform to 1 / sqrt(in)


def test_every_kind_of_layer_is_adapted_by_default_and_each_target_must_match():
    model = ours(reference("bart"))
    add_lora(model, SMALL)
    kinds = {re.sub(r"\.\d+\.", ".", name) for name in adapters(model)}
    assert {k for k in kinds if k.startswith("decoder")} == {
        f"decoder.blocks.{k}" for k in ("attention.qkv", "attention.output", "cross.query", "cross.key_value",
                                        "cross.output", "mlp.up", "mlp.down")
    }  # fmt: skip
    assert adapters(model)["decoder.blocks.0.cross.key_value"].parts == [Part(32, 3, 2.0)] * 2
    with pytest.raises(UserError, match="has adapters already"):
        add_lora(model, SMALL)
    model = ours(reference("llama"))
    with pytest.raises(UserError, match=r"(?s)no name matches 'mpl'.*decoder.blocks.0.mlp.up"):
        add_lora(model, LoraConfig(targets=("attention", "mpl")))
    with pytest.raises(UserError, match="not a regular expression"):
        add_lora(model, LoraConfig(targets=("(",)))
    assert not adapters(model) and trainable(model)[0] == trainable(model)[1]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("name", "head"), [("bert", "sequence"), ("albert", "lm"), ("llama", "lm"), ("t5", "lm")])
def test_a_step_changes_the_adapters_and_the_head_for_labels_only(name, head, dora):
    model, theirs = adapted(name, head, LoraConfig(rank=3, dora=dora, dropout=0.1))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learns == {n for n in before if ADDED.search(n) or (head == "sequence" and n.startswith("head."))}
    model.train()
    feed = inputs(theirs)
    targets = decoder_inputs() if name == "t5" else None
    model.head(model(feed["input_ids"], targets=targets)).square().mean().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1000.0).step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == learns


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("name", "head"), [("bert", "sequence"), ("gpt2", "lm"), ("llama", "lm"), ("t5", "lm"),
                                            ("bart", "lm"), ("modernbert", "sequence"), ("albert", "lm")])  # fmt: skip
def test_merged_is_the_same_function_and_comes_back_bit_for_bit(name, head, dora, tmp_path):
    model, theirs = adapted(name, head, LoraConfig(rank=3, dora=dora))
    want = logits(model, theirs)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    identity = {n: id(p) for n, p in model.named_parameters()}
    plain = ours(theirs).state_dict().keys()
    with merged(model):
        assert model.state_dict().keys() == plain
        assert close(logits(model, theirs), want, merging(want))
        save_folder(model, tmp_path, NO_IDS | {"pad_token_id": theirs.config.pad_token_id})
    assert {n: id(p) for n, p in model.named_parameters()} == identity
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(logits(model, theirs), want)
    back, report = auto_class(name, head).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert close(their_logits(back, theirs, head), want, merging(want))
    exact = logits(model.double(), theirs)
    merge_lora(model)
    assert model.state_dict().keys() == plain and close(logits(model, theirs), exact, 1e-6)
    assert all(p.requires_grad for p in model.parameters())


def test_the_adapters_come_back_when_what_is_inside_fails():
    model, _ = adapted("llama", "lm")
    with pytest.raises(ZeroDivisionError), merged(model):
        assert not adapters(model)
        1 / 0  # noqa: B018
    assert len(adapters(model)) == 12


def test_a_run_goes_on_from_its_adapter_bit_for_bit(tmp_path):
    config = LoraConfig(rank=3, dora=True)
    model, theirs = adapted("bert", "sequence", config)
    save_file(adapter_tensors(model), tmp_path / "adapter.safetensors")
    fresh = ours(theirs)
    add_lora(fresh, config, seed=9)
    load_adapter_tensors(fresh, load_file(tmp_path / "adapter.safetensors"))
    assert torch.equal(logits(fresh, theirs), logits(model, theirs))
    assert "head.output.weight" in adapter_tensors(model)
    other = ours(theirs)
    add_lora(other, LoraConfig(rank=2, dora=True))
    with pytest.raises(ModelError, match=r"lora_a: shape \(9, 32\), the model has \(6, 32\)"):
        load_adapter_tensors(other, adapter_tensors(model))
    with pytest.raises(ModelError, match=r"missing encoder\.blocks\.0\.attention\.output\.lora_a"):
        load_adapter_tensors(other, {})


# ---------------------------------------------------------------- freezing


def test_freezing_counts_what_is_left():
    model = ours(reference("bert", "sequence"))
    total = sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for p in model.head.parameters())
    assert trainable(model) == (total, total)
    assert freeze(model, ()) == (total, total)
    assert freeze(model, (r"blocks\.0\.", "embedding")) == trainable(model)
    assert not model.embedding.weight.requires_grad and model.encoder.blocks[1].mlp.up.weight.requires_grad
    assert freeze(model, ("body",)) == (head, total)


def test_a_tied_head_follows_the_embedding():
    model = ours(reference("gpt2"))
    freeze(model, ("embedding",))
    assert not model.head.weight.requires_grad
    with pytest.raises(UserError, match="no name matches 'head'"):
        freeze(model, ("head",))
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(model, ("body",))
    assert trainable(model)[0] > 0


def test_a_pattern_without_a_match_names_what_is_like_it():
    model = ours(reference("llama"))
    with pytest.raises(UserError, match=r"did you mean `decoder.blocks.0.mlp.up.weight`"):
        freeze(model, ("embedding", "decoder.blocks.0.mlp.pu.weight"))
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(model, (".",))
    assert trainable(model)[0] == trainable(model)[1]


def test_freezing_goes_with_adapters_either_way():
    before, after = ours(reference("bert", "sequence")), ours(reference("bert", "sequence"))
    freeze(before, ("head.dense",))
    add_lora(before, SMALL)
    add_lora(after, SMALL)
    assert freeze(after, ("body", "head.dense", r"qkv\.weight")) == trainable(before)
    assert {n for n, p in after.named_parameters() if p.requires_grad and not ADDED.search(n)} == {
        "head.output.weight", "head.output.bias"
    }  # fmt: skip
