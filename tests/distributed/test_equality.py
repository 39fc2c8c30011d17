"""Several processes compute what one computes: the same losses, gradient norms and weights, in the same order of the
data. Tolerances: sums over a batch are added up in another order, which moves a loss of 5 by some units of float32's
last place, 5e-7; optimizers carry that on from step to step. A row read twice or left out moves it by 1e-2."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lmkit.recipe import recipe_file
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.pretraining import Recipe
from lmkit.training import pretraining_run
from tests.distributed.conftest import run_world
from tests.distributed.ranks import do

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
WHOLE = "train.micro_batch=256"  # a step in one pass, since each pass through split matrices takes a while
ADAMW = ("optimizer.name=adamw", "optimizer.lr=3e-3")
# name -> (model, number of processes, changes to the recipe, those that one process is to be given too)
CASES: dict[str, tuple[str, int, tuple[str, ...], tuple[str, ...]]] = {
    "ddp": ("gpt2", 2, (), ()),
    "ddp, adamw, clipped": ("llama", 2, (), (*ADAMW, "train.clip=0.5")),
    "ddp of four": ("gpt2", 4, (), ()),
    "fsdp": ("gpt2", 2, (FSDP,), ()),
    "fsdp, adamw, clipped": ("llama", 2, (FSDP,), (*ADAMW, "train.clip=0.5")),
    "fsdp, averaged, recomputed, saved beside training": (
        "nanochat",
        2,
        (FSDP, "train.recompute=true", "checkpoint.async=true"),
        ("train.ema=0.9",),
    ),
    "fsdp of four": ("gpt2", 4, (FSDP,), ()),
    "fsdp of four in two copies": ("bert", 4, (FSDP, "parallel.shards=2"), ()),
    "fsdp of tied and shared tables": ("t5", 2, (FSDP,), ()),
    "fsdp of shared layers": ("albert", 2, (FSDP,), ()),
    "fsdp of pairs of texts": ("transformer", 2, (FSDP,), ()),
    "tensor of two, fsdp of two": ("llama", 4, (FSDP, "parallel.tensor=2"), ()),
    "tensor of two, two copies": ("bart", 4, ("parallel.tensor=2", WHOLE), ()),
    "tensor of four": ("gpt2", 4, ("parallel.tensor=4", WHOLE), ()),
    "tensor of two, in micro-batches": ("gpt2", 2, ("parallel.tensor=2",), ()),
    **{f"tensor, {name}": (name, 2, ("parallel.tensor=2", WHOLE), ()) for name in MODELS},
    **{
        f"fsdp, {name}": ("gpt2", 2, (FSDP,), (f"optimizer.name={name}", "optimizer.lr=1e-2"))
        for name in ("adam", "sgd", "adagrad", "adadelta", "adamw_rms")
    },
    "batch that three rows share badly": ("gpt2", 2, (FSDP,), ("train.batch=160", "train.micro_batch=32")),
}
RESHARDED = ("fsdp", "fsdp, averaged, recomputed, saved beside training", "fsdp, adagrad")


def recipe(model: str) -> str:
    path = Path(f"{model}.yaml")
    texts = 'train: corpus.txt, separator: "\\n"'
    if model in PAIRED:
        texts = "train: pairs.en, text: en, target: up"
    path.write_text(
        f"model: {MODELS[model]}\ntokenizer: {{type: bytes}}\ndata: {{{texts}, validation: 20%}}\n"
        # attention's softmax cancels the bias of its keys: their gradient is rounding alone, and eps keeps Adam from it
        "optimizer: {name: muon, lr: 0.02, embedding_lr: 0.01, head_lr: 0.01, eps: 1e-6}\nschedule: {warmup: 2}\n"
        "train: {budget: 4 steps, batch: 256, micro_batch: 64}\n"
        "evaluate: {every: 2, sample: null}\ncheckpoint: {every: 2, keep: 9}\n"
    )
    return str(path)


TUNED = {  # fine-tuning from scratch: rows of all lengths, so that processes have different numbers of micro-batches
    "classify, ddp": (),
    "classify, fsdp": (FSDP, "optimizer.name=adamw", "optimizer.lr=0.01"),
}


def classifier() -> str:
    Path("classify.yaml").write_text(
        f"task: {{name: classify, baseline: false}}\nmodel: {MODELS['bert']}\n"
        "tokenizer: {type: wordpiece, vocab_size: 300}\n"
        "data: {train: rows.jsonl}\nschedule: {warmup: 2}\nevaluate: {every: 2}\ncheckpoint: {every: 2, keep: 9}\n"
        "train: {budget: 4 steps, batch: 15 rows, micro_batch: 64}\noptimizer: {eps: 1e-6}\n"
    )
    return "classify.yaml"


def jobs(size: int) -> list[dict]:
    return [
        {"out": f"{name} on {size}", "recipe": recipe(model), "changes": [*apart, *both], "verb": "pretrain"}
        for name, (model, n, apart, both) in CASES.items()
        if n == size
    ]


def stopped_early(run: str, copy: str) -> str:
    """A copy of a run of 4 steps, as if killed after its checkpoint of step 2."""
    shutil.copytree(run, copy, symlinks=True)
    shutil.rmtree(Path(copy, "checkpoints/step-00000004"))
    return copy


@pytest.fixture(scope="session")
def two(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMKIT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        tuned = [
            {"out": name, "recipe": classifier(), "changes": changes, "verb": "finetune"}
            for name, changes in TUNED.items()
        ]
        run_world(2, [*jobs(2), *tuned])


@pytest.fixture(scope="session")
def four(folder, two):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMKIT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        again = [stopped_early(f"{name} on 2", f"{name}, then 2") for name in RESHARDED]
        run_world(2, [{"out": out, "recipe": "", "changes": [], "verb": "resume"} for out in again])
        again = [stopped_early(f"{name} on 2", f"{name}, then 4") for name in RESHARDED]
        run_world(4, [*jobs(4), *({"out": out, "recipe": "", "changes": [], "verb": "resume"} for out in again)])


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


@pytest.mark.parametrize("name", RESHARDED)
def test_shards_saved_by_two_are_taken_up_by_one_and_by_four(name, here, four):
    """As far as one process goes, from the weights, moments and averages of step 2."""
    model, _, _, both = CASES[name]
    if not Path(f"{name} alone").exists():
        assert do(f"{name} alone", recipe(model), list(both), "pretrain") == 0
    one = stopped_early(f"{name} on 2", f"{name}, then 1")
    assert any(Path(one, "checkpoints/step-00000002/training/shards").iterdir())
    assert do(one, "", [], "resume") == 0
    for run in (one, f"{name}, then 4"):
        assert_alike(run, f"{name} alone")


@pytest.mark.parametrize("name", RESHARDED)
def test_shards_saved_after_a_resume_are_those_of_a_straight_run_byte_for_byte(name, here, four):
    straight, resumed = (Path(f"{name}{how}", "checkpoints/step-00000004") for how in (" on 2", ", then 2"))
    shards = sorted(p.relative_to(straight) for p in straight.glob("training/shards/*"))
    assert len(shards) > 1
    for file in (*shards, "model.safetensors"):
        assert (straight / file).read_bytes() == (resumed / file).read_bytes(), file


def test_matrices_split_over_two_are_taken_up_whole(here, two):
    """Rows that tensor parallelism has moved stand where they belong in a checkpoint, moments too."""
    run = stopped_early("tensor, llama on 2", "tensor, then 1")
    given = recipe_file.load_recipe(Recipe, Path(recipe("llama")), (), expand_pretraining)
    assert pretraining_run.resume(Path(run), given) == 0
    assert do("llama alone", recipe("llama"), [], "pretrain") == 0
    assert_alike(run, "llama alone")


@pytest.mark.parametrize("name", TUNED)
def test_fine_tuning_is_that_of_one_process(name, here, two):
    assert do(f"{name} alone", classifier(), [c for c in TUNED[name] if c != FSDP], "finetune") == 0
    assert_alike(name, f"{name} alone")
    scores, others = (json.loads(Path(run, "scores.json").read_text())["scores"] for run in (name, f"{name} alone"))
    assert scores.keys() == others.keys()
    assert all(scores[k]["value"] == pytest.approx(others[k]["value"], rel=1e-4) for k in scores)
