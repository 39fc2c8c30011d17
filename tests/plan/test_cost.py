"""Scale on paper: the formulas against models that are built, bytes that are counted and figures worked out by hand."""

import json

import pytest
import torch
from typer.testing import CliRunner

from lmkit.architecture.model_config import ModelConfig
from lmkit.commands.app import app
from lmkit.commands.main import main
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch
from lmkit.objectives.causal_lm import CausalLM
from lmkit.plan.cost import (
    SHAPES,
    all_reduce_bytes,
    attention_flops,
    best_forecast,
    estimate,
    fastest,
    forecast_meshes,
    gather_bytes,
    matmul_weights,
    rate,
    traffic,
)
from lmkit.plan.hardware import HARDWARE
from lmkit.plan.memory import Mesh, Plan, activation_bytes, memory, parameters
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.pretraining import OptimizerConfig, Recipe
from lmkit.recipe.recipe_file import build_recipe
from lmkit.training.optimizers.build import build_optimizers

H100 = HARDWARE["h100"]


def sized(**keys) -> ModelConfig:
    tree = {"model": keys, "data": {"train": "-"}, "train": {"budget": "1 step", "batch": keys.get("context", 1024)}}
    if keys.get("family") in ("transformer", "marian"):
        tree["data"]["target"] = "-"
    return ModelConfig(**build_recipe(Recipe, tree, {}, expand_pretraining).model.model_dump())


def tiny(family: str, **keys) -> ModelConfig:
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "context": 32, "vocab_size": 128}
    return sized(family=family, **(sizes | keys))


BUILT = [
    tiny("gpt2"),
    tiny("qwen3", num_kv_heads=2),
    tiny("nanochat"),
    tiny("bert"),
    tiny("modernbert"),
    tiny("t5"),
    tiny("transformer"),
    tiny("albert", embedding_size=32),
    sized(**SHAPES["llama-3-8b"]),
    sized(preset="gpt2", context=1024),
    sized(preset="llama-3.2-1b", context=2048),
    sized(preset="nanochat-d20", context=2048),
]


@pytest.mark.parametrize("c", BUILT, ids=lambda c: f"{c.family}-{c.hidden_size}")
def test_parameters_are_those_of_the_model(c):
    with torch.device("meta"):
        model = Transformer(c)
    named = dict(model.named_parameters())
    counted = parameters(c)
    assert counted.total == sum(p.numel() for p in named.values())
    assert counted.matrices == sum(p.numel() for n, p in named.items() if ".blocks." in n and p.dim() == 2)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_state_is_what_one_process_holds(optimizer):
    c = tiny("llama")
    model = Transformer(c)
    torch.nn.init.normal_(model.embedding.weight)
    rates = {"lr": 1e-3, "embedding_lr": 1e-3, "head_lr": 1e-3}
    optimizers = build_optimizers(model, OptimizerConfig(name=optimizer, **rates))
    ids = torch.zeros(2, 32, dtype=torch.long)
    CausalLM().loss(model, Batch({"tokens": 64}, ids, ids, 64)).sums["tokens"].backward()
    for o in optimizers:
        o.step()
    held = memory(Plan(c, 64, 1, optimizer), Mesh(1), 64, recompute=False, number=4)
    assert held.weights == sum(p.nbytes for p in model.parameters())
    assert held.gradients == sum(p.grad.nbytes for p in model.parameters())
    states = [v for o in optimizers for s in o.state.values() for v in s.values()]
    assert held.moments == sum(v.nbytes for v in states if isinstance(v, torch.Tensor) and v.dim())


@pytest.mark.parametrize("number", [4, 2])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "nanochat"])
def test_activations_are_what_a_layer_keeps(family, recompute, number):
    """Counted as autograd saves them; what is left out is a number or two a head (scales, sums of softmax)."""
    kept = []
    for layers in (2, 3):
        c = tiny(family, num_layers=layers, num_kv_heads=4 if family in ("gpt2", "nanochat") else 2)
        model = Transformer(c).train()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.02)
        model.stacks[0].recompute = recompute
        found = {}

        def pack(t, found=found):
            found[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), tuple(t.shape), t)
            return t

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=number == 2):
            model(torch.zeros(3, 32, dtype=torch.long))
        weights = {tuple(p.shape) for p in model.parameters()}  # saved too, and their copies in bf16
        weights |= {shape[::-1] for shape in weights}
        kept.append(sum(size for size, shape, _ in found.values() if shape not in weights) / 96)
    predicted = activation_bytes(c, number, recompute=recompute) / c.num_layers
    assert predicted <= kept[1] - kept[0] <= predicted + 4 * 20


def test_flops_of_a_token_by_hand():
    c = tiny("gpt2")  # 2 x (4 x 64² + 2 x 64 x 256) weights in blocks, 128 x 64 in the head
    assert matmul_weights(c) == 2 * (4 * 64**2 + 2 * 64 * 256) + 128 * 64
    assert attention_flops(c, 32) == 12 * 2 * 64 * 32
    windowed = tiny("mistral", sliding_window=8)
    assert attention_flops(windowed, 32) == 12 * 2 * 64 * 8


def test_bytes_of_collectives_by_hand():
    assert all_reduce_bytes(800, 8) == 1400  # 2 x 7/8
    assert gather_bytes(800, 8) == 700
    assert all_reduce_bytes(800, 1) == gather_bytes(800, 1) == 0


def test_traffic_of_a_step_by_hand():
    c = tiny("llama")
    n = parameters(c).total
    p = Plan(c, 64 * 32, 1, "adamw")
    ddp = traffic(p, Mesh(8), 2, False)
    assert (ddp.gradients, ddp.shards, ddp.tensor) == (7 / 4 * 4 * n, 0, 0)
    fsdp = traffic(p, Mesh(8, 8), 2, False)  # in each of 2 passes: two gathers of bf16, one scatter of float32
    assert (fsdp.gradients, fsdp.shards) == (0, 2 * 7 / 8 * (2 * 2 * n + 4 * n))
    hybrid = traffic(p, Mesh(16, 8), 1, False)  # 2 replicas: each shard's gradient once
    assert (hybrid.gradients, hybrid.shards) == (4 * n / 8, 7 / 8 * 8 * n)
    split = traffic(p, Mesh(4, 1, 2), 1, False)  # 2 layers x 4 all-reduces of 32 rows x 32 tokens x 64 in bf16
    assert split.tensor == 2 * 4 * 32 * 32 * 64 * 2
    assert traffic(p, Mesh(4, 1, 2), 1, True).tensor == 1.5 * split.tensor


def test_a_ring_over_nodes_uses_all_network_cards_of_a_node():
    assert rate(H100, 8, 1) == 0.8 * 450e9
    assert rate(H100, 64, 1) == 0.8 * 400e9  # 8 cards of 50 GB/s
    assert rate(H100, 8, 8) == 0.8 * 50e9  # one GPU a node


@pytest.mark.parametrize("tensor", [1, 2])
def test_more_gpus_never_need_more_memory_under_fsdp(tensor):
    p = Plan(sized(**SHAPES["llama-3-8b"]), 2**22, 1e9, "muon")
    meshes = [Mesh(n, n // tensor, tensor) for n in (4, 8, 16, 64, 512)]
    totals = [memory(p, mesh, 8192, False).total for mesh in meshes]
    assert totals == sorted(totals, reverse=True)
    assert all(memory(p, x, 8192, True).total < memory(p, x, 8192, False).total for x in meshes)


def test_the_best_layout_fits_and_its_keys_are_the_recipes():
    p = Plan(sized(**SHAPES["llama-3-8b"]), 2**22, 1e9, "adamw")
    assert fastest(forecast_meshes(p, H100, 1)) is None
    found = forecast_meshes(p, H100, 64)
    best = fastest(found)
    assert best.fits and best.tokens_per_second >= 0.99 * max(e.tokens_per_second for e in found if e.fits)
    assert Mesh(8).keys == {"data": "ddp", "tensor": 1, "shards": 0}
    assert Mesh(64, 32, 2).keys == {"data": "fsdp", "tensor": 2, "shards": 0}
    assert Mesh(64, 8).keys == {"data": "fsdp", "tensor": 1, "shards": 8}


def test_a_published_rate_is_met_within_a_fifth():
    """llm.c's GPT-2 124M: 10B tokens in about 90 minutes on 8 A100."""
    c = sized(preset="gpt2", vocab_size=50304)
    e = estimate(Plan(c, 2**19, 10e9, "adamw"), HARDWARE["a100-80"], Mesh(8), 64 * 1024, False)
    assert e.hours == pytest.approx(1.5, rel=0.2)


def test_every_gpu_gets_a_row_or_the_layout_is_left_out():
    p = Plan(tiny("gpt2"), 8 * 32, 1e6, "adamw")
    assert forecast_meshes(p, H100, 1024) == []
    assert {e.mesh.data for e in forecast_meshes(p, H100, 16)} <= {1, 2, 4, 8}
    assert best_forecast(p, H100, Mesh(1)).micro_batch <= 8 * 32


def test_json_has_a_line_for_each_layout():
    got = CliRunner().invoke(app, ["plan", "--model", "llama-3-8b", "--gpus", "8,64", "--json"])
    assert got.exit_code == 0, got.output
    rows = [json.loads(line) for line in got.stdout.splitlines()]
    assert {row["gpus"] for row in rows} == {8, 64} and sum(row["best"] for row in rows) == 2
    for row in rows:
        held, passing = row["memory"], row["memory"]["activations"] + row["memory"]["logits"]
        state = sum(held[part] for part in ("weights", "gradients", "moments", "copies"))
        assert held["total"] == pytest.approx(state + max(passing, held["update"]))
        assert set(row["parallel"]) == {"data", "tensor", "shards"}


def test_a_recipe_is_planned_for_its_own_budget():
    got = CliRunner().invoke(app, ["plan", "gpt2-124m", "train.budget=100 steps", "--gpus", "8"])
    assert got.exit_code == 0, got.output
    assert "52.4M tokens (of the recipe)" in got.stdout and "best on 8: parallel: {data: " in got.stdout


@pytest.mark.parametrize(
    "arguments", [["gpt2-124m", "--gpu", "h10"], ["--model", "llama-3-8"], ["gpt2-124m", "--gpus", "0"], []]
)
def test_what_is_unknown_is_a_usage_error(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lmkit", "plan", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert ("did you mean `h100`" in said) == ("h10" in arguments)
