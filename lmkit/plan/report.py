"""`lmkit plan`: shows what a pretraining recipe would need on one GPU or on a thousand, without running it."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lmkit.architecture.model_config import ModelConfig
from lmkit.architecture.sizes import PRESETS
from lmkit.base.environment import usable_memory
from lmkit.base.errors import UserError, did_you_mean
from lmkit.base.units import count, show_count, show_seconds, split_quantity
from lmkit.plan.cost import SHAPES, USABLE, Forecast, fastest, forecast_meshes
from lmkit.plan.hardware import HARDWARE, Hardware, cpu
from lmkit.plan.memory import Plan, parameters
from lmkit.recipe import recipe_file
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.pretraining import Recipe

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (Chinchilla), used where the budget gives no number of tokens
GB = 1e9


def print_plan(
    path: Path | None, overrides: tuple[str, ...], model: str | None, gpus: str, gpu: str, gflops: float, as_json: bool
) -> None:
    """Prints the tables, or a JSON object for each layout. Raises UserError.

    path: a recipe; model: the name of a size, used instead of a recipe; gpus: numbers of GPUs, as `1,8,64`; gflops: the
    speed of the CPU, 0 to measure it."""
    hw = hardware(gpu, gflops)
    counts = _counts(gpus or ("1" if gpu == "cpu" else "1,8,64,1024"))
    plan, horizon = planned(path, overrides, model)
    forecasts = {n: forecast_meshes(plan, hw, n) for n in counts}
    if as_json:
        for estimates in forecasts.values():
            for e in estimates:
                print(json.dumps(row(e, e is fastest(estimates))))
        return
    console = Console(highlight=False, width=max(140, Console().width))  # narrower tables would lose their columns
    console.print(_head(plan, hw, horizon), markup=False)
    console.print(table(forecasts, _MEMORY, "memory a GPU, GB"))
    console.print(table(forecasts, _SPEED, "speed"))
    console.print("\n".join(_advice(plan, n, estimates) for n, estimates in forecasts.items()), markup=False)


def hardware(name: str, gflops: float = 0) -> Hardware:
    if name == "cpu":
        flops, bandwidth = _measure()
        return cpu(gflops * 1e9 or flops, usable_memory(), bandwidth)
    if name not in HARDWARE:
        raise UserError(f"--gpu {name}: unknown{did_you_mean(name, (*HARDWARE, 'cpu'))}")
    return HARDWARE[name]


def _measure() -> tuple[float, float]:
    """Measures FLOP/s of a float32 matrix product and bytes/s of a copy (read and written); the best of a few."""

    def fastest_of(f: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            f()
            times.append(time.perf_counter() - began)
        return min(times)

    a, b = np.ones((1024, 1024), np.float32), np.ones(2**24, np.float32)
    target = np.empty_like(b)
    return 2 * 1024**3 / fastest_of(lambda: a @ a), 2 * b.nbytes / fastest_of(lambda: np.copyto(target, b))


def planned(path: Path | None, overrides: tuple[str, ...], model: str | None) -> tuple[Plan, str]:
    """Returns the training that is planned, and where its number of tokens comes from."""
    if model is None:
        recipe = recipe_file.load_recipe(Recipe, path, overrides, expand_pretraining)
    else:
        if model not in PRESETS and model not in SHAPES:
            raise UserError(f"--model {model}: unknown size{did_you_mean(model, (*PRESETS, *SHAPES))}")
        size = SHAPES.get(model, {"preset": model})
        target = {"target": "-"} if PRESETS.get(model, {}).get("family") in ("transformer", "marian") else {}
        low = {"model": dict(size), "data": {"train": "-"} | target, "train": {"budget": "1 epoch"}}
        recipe = recipe_file.load_recipe(Recipe, None, overrides, expand_pretraining, low)
    c = ModelConfig(**recipe.model.model_dump())
    if not c.vocab_size:
        c = c.model_copy(update={"vocab_size": recipe.tokenizer.vocab_size})
    train = recipe.train
    number, unit = split_quantity(train.budget)
    tokens, horizon = number * {"": train.batch, "step": train.batch, "token": 1}.get(unit, 0), "of the recipe"
    if not tokens:  # for epochs and hours, the number depends on data and machine, which are not known here
        tokens, horizon = TOKENS_PER_PARAMETER * parameters(c).total, f"{TOKENS_PER_PARAMETER} a parameter"
    return Plan(c, train.batch, tokens, recipe.optimizer.name, train.ema is not None), horizon


def _counts(text: str) -> list[int]:
    try:
        counts = [count(part) for part in text.split(",")]
    except ValueError as e:
        raise UserError(f"--gpus {text}: {e}\n  → --gpus 1,8,64") from None
    if min(counts) < 1:
        raise UserError(f"--gpus {text}: at least one is needed")
    return counts


def row(e: Forecast, chosen: bool) -> dict[str, Any]:
    """Returns an estimate for machines: bytes, seconds and tokens, as plain numbers."""
    other = "activations_without_recompute" if e.recompute else "activations_with_recompute"
    return {
        "gpus": e.mesh.gpus, "layout": e.mesh.name, "parallel": e.mesh.keys, "best": chosen, "fits": e.fits,
        "micro_batch": e.micro_batch, "recompute": e.recompute,
        "memory": asdict(e.memory) | {"total": e.memory.total, other: e.other_activations},
        "sent": asdict(e.traffic) | {"total": e.traffic.total},
        "step_seconds": e.seconds, "exposed_seconds": e.exposed, "tokens_per_second": e.tokens_per_second, "mfu": e.mfu,
        "hours": e.hours, "gpu_hours": e.gpu_hours,
    }  # fmt: skip


def _gb(n: float) -> str:
    return f"{n / GB:,.1f}" if n >= 0.05 * GB else f"{n / GB:.3f}"


TableColumns = dict[str, Callable[[Forecast], str]]
_WHICH: TableColumns = {"GPUs": lambda e: f"{e.mesh.gpus:,}", "layout": lambda e: e.mesh.name}
_MEMORY: TableColumns = _WHICH | {
    "micro-batch": lambda e: f"{e.micro_batch:,}",
    "weights": lambda e: _gb(e.memory.weights),
    "gradients": lambda e: _gb(e.memory.gradients),
    "moments": lambda e: _gb(e.memory.moments),
    "copies": lambda e: _gb(e.memory.copies),
    "activations": lambda e: _gb(e.other_activations if e.recompute else e.memory.activations),
    "recomputed": lambda e: _gb(e.memory.activations if e.recompute else e.other_activations),
    "logits": lambda e: _gb(e.memory.logits),
    "update": lambda e: _gb(e.memory.update),
    "total": lambda e: _gb(e.memory.total),
    "fits": lambda e: ("with recompute" if e.recompute else "yes") if e.fits else "no",
}
_SPEED: TableColumns = _WHICH | {
    "GB sent a step": lambda e: _gb(e.traffic.total),
    "step": lambda e: f"{e.seconds:.3g} s",
    "waiting": lambda e: f"{e.exposed / e.seconds:.0%}",
    "tokens/s": lambda e: show_count(round(e.tokens_per_second)) if e.fits else "-",
    "MFU": lambda e: f"{e.mfu:.0%}" if e.fits else "-",
    "time": lambda e: _time(e.hours) if e.fits else "-",
    "GPU-hours": lambda e: (f"{e.gpu_hours:.3g}" if e.gpu_hours < 100 else f"{e.gpu_hours:,.0f}") if e.fits else "-",
}


def _time(hours: float) -> str:
    return f"{hours / 24:,.1f} days" if hours >= 48 else show_seconds(hours * 3600)


def table(found: dict[int, list[Forecast]], columns: TableColumns, title: str) -> Table:
    shown = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name in columns:
        shown.add_column(name, justify="left" if name in ("layout", "fits") else "right", no_wrap=True)
    for estimates in found.values():
        best = fastest(estimates)
        for e in estimates:
            shown.add_row(*(f(e) for f in columns.values()), style="bold" if e is best else None)
    return shown


def _head(p: Plan, hw: Hardware, horizon: str) -> str:
    c, n = p.model, parameters(p.model)
    peak = f"{hw.peak / 1e12:,.0f} TFLOP/s" if hw.peak >= 1e12 else f"{hw.peak / 1e9:,.0f} GFLOP/s"
    return (
        f"model    {c.family} · {c.num_layers + c.num_decoder_layers} layers × {c.hidden_size} · context {c.context:,}"
        f" · {show_count(n.total)} parameters\n"
        f"train    {show_count(p.tokens)} tokens ({horizon}) · {show_count(p.batch)} a step = {p.rows:,} rows"
        f" · {p.optimizer}\n"
        f"machine  {hw.name}: {peak}, {hw.memory / GB:,.0f} GB of which {USABLE:.0%} are used, {hw.node} in a node\n"
        "Estimates by published formulas, not measurements: docs/scaling.md says how far they were off.\n"
    )


def _advice(p: Plan, gpus: int, estimates: list[Forecast]) -> str:
    """Returns the best layout as recipe keys, or what to change where there is none."""
    best = fastest(estimates)
    if best:
        keys = ", ".join(f"{k}: {v}" for k, v in best.mesh.keys.items())
        more = f", micro_batch: {best.micro_batch}" + (", recompute: true" if best.recompute else "")
        busy = (
            ""
            if gpus <= p.rows
            else f"\n  a batch of {p.rows:,} rows keeps no more than {p.rows:,} data processes busy"
        )
        return f"best on {gpus:,}: parallel: {{{keys}}}  train: {{batch: {p.batch}{more}}}{busy}"
    if not estimates:
        return f"best on {gpus:,}: none; a batch of {p.rows:,} rows gives some GPUs none\n  → a larger train.batch"
    least = min(e.memory.total for e in estimates)
    return f"best on {gpus:,}: none fits; the least needs {_gb(least)} GB a GPU\n  → more GPUs, or a smaller context"
