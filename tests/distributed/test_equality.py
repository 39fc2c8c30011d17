"""Several processes compute what one computes: the same losses, gradient norms and weights, in the same order of the
data. Tolerances: sums over a batch are added up in another order, which moves a loss of 5 by some units of float32's
last place, 5e-7; optimizers carry that on from step to step. A row read twice or left out moves it by more than 1e-2."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lmkit import config
from lmkit.commands import pretrain
from lmkit.presets import expand
from lmkit.recipe import Recipe
from tests.distributed.conftest import run_world
from tests.distributed.ranks import do

pytestmark = pytest.mark.xdist_group("processes")

SIZES = "hidden_size: 32, num_layers: 2, num_heads: 4, context: 32"
DRY = f"{SIZES}, dropout: 0, attention_dropout: 0"  # dropout follows from the share of the data that a process reads
MODELS = {
    "gpt2": f"{{family: gpt2, {DRY}}}",
    "llama": f"{{family: llama, {SIZES}, num_kv_heads: 4}}",
    "qwen3": f"{{family: qwen3, {SIZES}, num_kv_heads: 4}}",
    "nanochat": "{family: nanochat, depth: 2, hidden_size: 32, num_heads: 4, context: 32}",
    "bert": f"{{family: bert, {DRY}}}",
    "roberta": f"{{family: roberta, {DRY}}}",
    "albert": f"{{family: albert, {DRY}, embedding_size: 8}}",
    "electra": f"{{family: electra, {DRY}, embedding_size: 8}}",
    "modernbert": f"{{family: modernbert, {DRY}, sliding_window: 8}}",
    "t5": f"{{family: t5, {DRY}}}",
    "bart": f"{{family: bart, {DRY}}}",
    "transformer": f"{{family: transformer, {DRY.replace('context: 32', 'context: 96')}}}",
}
PAIRED = ("transformer",)
FSDP = "parallel.data=fsdp"
ADAMW = ("optimizer.name=adamw", "optimizer.lr=3e-3")
# name -> (model, number of processes, changes to the recipe, those that one process is to be given too)
CASES: dict[str, tuple[str, int, tuple[str, ...], tuple[str, ...]]] = {
    "ddp": ("gpt2", 2, (), ()),
    "ddp, adamw, clipped": ("llama", 2, (), (*ADAMW, "train.clip=0.5")),
    "ddp of four": ("gpt2", 4, (), ()),
    "fsdp": ("gpt2", 2, (FSDP,), ()),
    "fsdp, adamw, clipped": ("llama", 2, (FSDP,), (*ADAMW, "train.clip=0.5")),
    "fsdp, averaged, recomputed": ("nanochat", 2, (FSDP, "train.recompute=true"), ("train.ema=0.9",)),
    "fsdp of four": ("gpt2", 4, (FSDP,), ()),
    "fsdp of four in two copies": ("bert", 4, (FSDP, "parallel.shards=2"), ()),
    "fsdp of tied and shared tables": ("t5", 2, (FSDP,), ()),
    "fsdp of shared layers": ("albert", 2, (FSDP,), ()),
    "fsdp of pairs of texts": ("transformer", 2, (FSDP,), ()),
    "tensor of two, fsdp of two": ("llama", 4, (FSDP, "parallel.tensor=2"), ()),
    "tensor of two, two copies": ("bart", 4, ("parallel.tensor=2",), ()),
    "tensor of four": ("gpt2", 4, ("parallel.tensor=4",), ()),
    **{f"tensor, {name}": (name, 2, ("parallel.tensor=2",), ()) for name in MODELS},
    **{
        f"fsdp, {name}": ("gpt2", 2, (FSDP,), (f"optimizer.name={name}", "optimizer.lr=1e-2"))
        for name in ("adam", "sgd", "adagrad", "adadelta", "adamw_rms")
    },
    "batch that three rows share badly": ("gpt2", 2, (FSDP,), ("train.batch=160", "train.micro_batch=32")),
}


def recipe(model: str) -> str:
    path = Path(f"{model}.yaml")
    texts = 'train: corpus.txt, separator: "\\n"'
    if model in PAIRED:
        texts = "train: pairs.en, text: en, target: up"
    path.write_text(
        f"model: {MODELS[model]}\ntokenizer: {{type: bytes}}\ndata: {{{texts}, validation: 20%}}\n"
        # attention's softmax cancels the bias of its keys: their gradient is rounding alone, and eps keeps Adam from it
        "optimizer: {name: muon, lr: 0.02, embedding_lr: 0.01, head_lr: 0.01, eps: 1e-6}\nschedule: {warmup: 2}\n"
        "train: {budget: 6 steps, batch: 256, micro_batch: 64}\n"
        "evaluate: {every: 3, sample: null}\ncheckpoint: {every: 3, keep: 9}\n"
    )
    return str(path)


def jobs(size: int) -> list[dict]:
    return [
        {"out": f"{name} on {size}", "recipe": recipe(model), "changes": [*apart, *both], "verb": "pretrain"}
        for name, (model, n, apart, both) in CASES.items()
        if n == size
    ]


@pytest.fixture(scope="session")
def two(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMKIT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        run_world(2, jobs(2))


@pytest.fixture(scope="session")
def four(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMKIT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        run_world(4, jobs(4))


def rows(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def assert_alike(a: str, b: str) -> None:
    one, other = rows(a), rows(b)
    assert [r["step"] for r in one] == [r["step"] for r in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["tokens"] == theirs["tokens"] and mine["lr"] == theirs["lr"]
        for key in mine:
            assert mine[key] == pytest.approx(theirs[key], rel=2e-4 if key == "grad_norm" else 2e-5), (mine, key)
    last = "latest/model.safetensors"
    weights, others = load_file(Path(a, last)), load_file(Path(b, last))
    assert weights.keys() == others.keys()
    for name, w in weights.items():
        assert (w - others[name]).abs().max() < 2e-4, name


@pytest.mark.parametrize("name", CASES)
def test_losses_norms_and_weights_are_those_of_one_process(name, here, request):
    model, size, _, both = CASES[name]
    request.getfixturevalue({2: "two", 4: "four"}[size])
    together, alone = f"{name} on {size}", f"{name} alone"
    assert Path(f"{together}.ended").read_text() == "0"
    assert do(alone, recipe(model), list(both), "pretrain") == 0
    assert_alike(together, alone)
