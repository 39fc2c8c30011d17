"""The tables of docs/scaling.md: what `lmkit plan` says, beside published runs and beside this machine.

    python benchmarks/scaling.py plan          # four sizes on 1 to 1,024 GPUs
    python benchmarks/scaling.py published     # predicted and published rates of others
    OMP_NUM_THREADS=1 python benchmarks/scaling.py here [--rounds 5]   # predicted and measured on this CPU

Prints markdown. `here` measures each model in a process of its own: matrix products and copies in turn with steps
(medians of all), and memory above that of a process that has trained a model of no size.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.units import show_count
from lmkit.plan.cost import SHAPES, estimate, fastest, forecast_meshes
from lmkit.plan.hardware import HARDWARE, cpu
from lmkit.plan.memory import Mesh, Plan, parameters
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import build_recipe

LLAMA_2 = {"family": "llama", "vocab_size": 32000, "context": 4096}
GPT2 = {"family": "gpt2", "vocab_size": 50304, "context": 1024}  # padded to 64, as llm.c does
NANOCHAT = {"family": "nanochat", "vocab_size": 65536, "context": 2048}
MODELS: dict[str, dict[str, Any]] = SHAPES | {
    "llama-2-7b": {"preset": "llama-2-7b"},
    "llama-2-13b": LLAMA_2 | {"num_layers": 40, "hidden_size": 5120, "num_heads": 40, "intermediate_size": 13824},
    "llama-2-70b": SHAPES["llama-3-70b"] | LLAMA_2,
    "gpt2-124m": GPT2 | {"num_layers": 12, "hidden_size": 768, "num_heads": 12},
    "gpt2-1.5b": GPT2 | {"num_layers": 48, "hidden_size": 1600, "num_heads": 25},
    "nanochat-d20": {"preset": "nanochat-d20"},
    "nanochat-d32": NANOCHAT | {"num_layers": 32, "hidden_size": 2048, "num_heads": 16},
}


def model(name: str) -> ModelConfig:
    return sized(MODELS[name])


def sized(keys: dict[str, Any]) -> ModelConfig:
    tree = {"model": dict(keys), "data": {"train": "-"}, "train": {"budget": "1 step", "batch": keys.get("context", 0)}}
    if not keys.get("context"):
        del tree["train"]["batch"]
    return ModelConfig(**build_recipe(Recipe, tree, {}, expand_pretraining).model.model_dump())


def line(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


# ---------------------------------------------------------------- four sizes


def plans() -> None:
    sizes = (
        ("124M", "gpt2-124m", 2**19),
        ("1.5B", "gpt2-1.5b", 2**20),
        ("8B", "llama-3-8b", 2**22),
        ("70B", "llama-3-70b", 2**22),
    )
    print(line("size", "GPUs", "layout", "micro-batch", "GB a GPU", "GB sent a step", "waiting", "tokens/s", "MFU",
               "days", "GPU-hours"))  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for size, name, batch in sizes:
        c = model(name)
        p = Plan(c, batch, 20 * parameters(c).total, "adamw")
        for gpus in (1, 8, 64, 256, 1024):
            found = forecast_meshes(p, HARDWARE["h100"], gpus)
            e = fastest(found)
            if e is None:
                least = f"{min(x.memory.total for x in found) / 1e9:,.0f}" if found else "-"
                print(line(size, f"{gpus:,}", "none fits", "", least, "", "", "", "", "", ""))
                continue
            micro = f"{e.micro_batch:,}" + (", recomputed" if e.recompute else "")
            print(line(size, f"{gpus:,}", e.mesh.name, micro, f"{e.memory.total / 1e9:,.0f}",
                       f"{e.traffic.total / 1e9:,.1f}", f"{e.exposed / e.seconds:.0%}", show_count(e.tokens_per_second),
                       f"{e.mfu:.0%}", f"{e.hours / 24:,.2f}", f"{e.gpu_hours:,.0f}"))  # fmt: skip


# ---------------------------------------------------------------- published runs


class Run(NamedTuple):
    """Somebody's run, and its rate as they say it or as their time and tokens give it."""

    name: str
    model: str
    gpu: str
    mesh: Mesh
    rows: int  # of a step
    micro: int  # rows a GPU at a time
    recompute: bool
    rate: float  # tokens/s a GPU
    optimizer: str = "adamw"


def rate(tokens: float, gpu_hours: float) -> float:
    return tokens / gpu_hours / 3600


RUNS = [  # micro-batches and layouts of the model cards' runs, which say neither, are assumed
    Run("torchtitan, Llama 2 13B (the fit)", "llama-2-13b", "a100-80", Mesh(64, 64), 128, 2, False, 2162),
    Run("torchtitan, Llama 2 70B, recomputed", "llama-2-70b", "a100-80", Mesh(64, 64), 128, 2, True, 353),
    Run("torchtitan, Llama 3 8B, partly recomputed", "llama-3-8b", "a100-80", Mesh(64, 64), 64, 1, False, 2973),
    Run("torchtitan, Llama 3 70B, recomputed", "llama-3-70b", "a100-80", Mesh(64, 64), 64, 1, True, 331),
    Run("torchtitan, Llama 3.1 8B, partly recomputed, 500 W", "llama-3-8b", "h100", Mesh(8, 8), 16, 2, False, 6667),
    Run("llm.c, GPT-2 124M", "gpt2-124m", "a100-80", Mesh(8), 512, 64, False, rate(10e9, 8 * 1.5)),
    Run("llm.c, GPT-2 1.5B", "gpt2-1.5b", "h100", Mesh(8), 1024, 16, False, rate(32_000 * 2**20, 8 * 24)),
    Run("nanochat d20, of the whole pipeline's 4 hours", "nanochat-d20", "h100", Mesh(8), 256, 32, False,
        rate(11.2e9, 8 * 4), "muon"),
    Run("nanochat d32", "nanochat-d32", "h100", Mesh(8), 256, 8, False, rate(38e9, 8 * 33), "muon"),
    Run("Llama 2 7B, model card", "llama-2-7b", "a100-80", Mesh(256, 256), 1024, 4, False, rate(2e12, 184_320)),
    Run("Llama 2 70B, model card", "llama-2-70b", "a100-80", Mesh(1024, 1024), 1024, 1, True, rate(2e12, 1_720_320)),
    Run("Llama 3.1 8B, model card", "llama-3-8b", "h100", Mesh(512, 512), 1024, 1, False, rate(15e12, 1.46e6)),
    Run("Llama 3.1 70B, model card", "llama-3-70b", "h100", Mesh(1024, 512, 2), 1024, 1, True, rate(15e12, 7.0e6)),
]  # fmt: skip


def published() -> None:
    print(line("run", "GPUs", "published tokens/s a GPU", "predicted", "predicted / published", "predicted MFU"))
    print("|---|---|---|---|---|---|")
    for r in RUNS:
        c = model(r.model)
        p = Plan(c, r.rows * c.context, 1e9, r.optimizer)
        e = estimate(p, HARDWARE[r.gpu], r.mesh, r.micro * c.context, r.recompute)
        each = e.tokens_per_second / r.mesh.gpus
        print(line(r.name, f"{r.mesh.gpus:,} {r.gpu}", f"{r.rate:,.0f}", f"{each:,.0f}", f"{each / r.rate:.2f}",
                   f"{e.mfu:.0%}"))  # fmt: skip


# ---------------------------------------------------------------- this machine


HERE: dict[str, dict[str, Any]] = {
    "nanochat 4 × 128": {
        "family": "nanochat",
        "depth": 4,
        "hidden_size": 128,
        "context": 256,
        "vocab_size": 4096,
    },
    "llama 6 × 384": {"family": "llama", "depth": 6, "hidden_size": 384, "context": 256, "vocab_size": 4096},
    "gpt2 6 × 384": {"family": "gpt2", "depth": 6, "hidden_size": 384, "context": 256, "vocab_size": 16384},
    "llama 8 × 512": {"family": "llama", "depth": 8, "hidden_size": 512, "context": 512, "vocab_size": 8192},
}  # fmt: skip
ROWS = 8  # of a step, in one pass


def measure(name: str, optimizer: str, recompute: bool, rounds: int) -> None:
    """In a process of its own: GFLOP/s of matrix products, GB/s of a copy, seconds of a step, bytes above the start."""
    import torch

    from lmkit.model.initial import init_weights
    from lmkit.model.transformer import Transformer
    from lmkit.objectives.batch import Batch
    from lmkit.objectives.causal_lm import CausalLM
    from lmkit.recipe.pretraining import OptimizerConfig
    from lmkit.training.optimizers.build import build_optimizers

    def timed(f: Any) -> float:
        began = time.perf_counter()
        f()
        return time.perf_counter() - began

    c = sized(HERE[name])
    ids = torch.randint(0, c.vocab_size, (ROWS, c.context + 1), generator=torch.Generator().manual_seed(0))
    one = Batch({"tokens": ROWS * c.context}, ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), ROWS * c.context)
    a, b = torch.randn(1024, 1024), torch.randn(2**24)
    target = torch.empty_like(b)
    task, rates = CausalLM(), {"lr": 1e-3, "embedding_lr": 1e-3, "head_lr": 1e-3}

    def stepper(c: ModelConfig, batch: Batch) -> Any:
        net = Transformer(c)
        init_weights(net)
        net.train()
        net.stacks[0].recompute = recompute
        optimizers = build_optimizers(net, OptimizerConfig(name=optimizer, **rates))

        def step() -> None:
            (task.loss(net, batch).sums["tokens"] / batch.tokens.numel()).backward()
            for o in optimizers:
                o.step()
                o.zero_grad(set_to_none=True)

        return step

    few = torch.zeros(1, 8, dtype=torch.long)
    stepper(sized(HERE[name] | {"hidden_size": 64, "depth": 1, "vocab_size": 64}), Batch({"tokens": 8}, few, few, 8))()
    with open("/proc/self/statm") as f:  # after a step so small that it loads code and little else
        before = int(f.read().split()[1]) * resource.getpagesize()
    step = stepper(c, one)
    step()
    found = [(timed(lambda: a @ a), timed(lambda: target.copy_(b)), timed(step)) for _ in range(rounds)]
    product, copy, seconds = (statistics.median(times) for times in zip(*found, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(json.dumps({"flops": 2 * 1024**3 / product, "copied": 8 * 2**24 / copy, "seconds": seconds, "peak": peak}))


def here(rounds: int) -> None:
    print(
        line(
            "model, optimizer", "GFLOP/s", "tokens/s measured", "predicted", "predicted / measured",
            "peak GB measured", "predicted", "predicted / measured",
        )
    )  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for name in HERE:
        for optimizer, again in (("adamw", False), ("muon", False), ("muon", True)):
            command = [sys.executable, __file__, "here", "--one", name, "--optimizer", optimizer]
            command += ["--rounds", str(rounds), *(["--recompute"] if again else [])]
            # memory that is freed goes back at once, so that the peak is what was in use
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
            got = json.loads(subprocess.run(command, stdout=-1, text=True, check=True, env=environment).stdout)
            c = sized(HERE[name])
            p = Plan(c, ROWS * c.context, 1e6, optimizer)
            e = estimate(p, cpu(got["flops"], 1e10, got["copied"]), Mesh(1), ROWS * c.context, again)
            speed, peak = ROWS * c.context / got["seconds"], got["peak"] / 1e9
            what = f"{name}, {optimizer}" + (", recomputed" if again else "")
            predicted = e.memory.total / 1e9
            print(
                line(
                    what, f"{got['flops'] / 1e9:.0f}", f"{speed:,.0f}", f"{e.tokens_per_second:,.0f}",
                    f"{e.tokens_per_second / speed:.2f}", f"{peak:.2f}", f"{predicted:.2f}", f"{predicted / peak:.2f}",
                ),
                flush=True,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "published", "here"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--optimizer", default="adamw", help=argparse.SUPPRESS)
    parser.add_argument("--recompute", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.one, args.optimizer, args.recompute, args.rounds)
    else:
        {"plan": plans, "published": published, "here": lambda: here(args.rounds)}[args.what]()


if __name__ == "__main__":
    main()
