"""Chooses device, number format and compilation by the hardware, unless the recipe says otherwise."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lmkit.base.errors import UserError
from lmkit.recipe.pretraining import TrainConfig

COMPILE_REPAYS_AFTER = 600.0  # seconds of training on a CPU, where starting the compiler takes about a minute
# The hidden_size from which bf16 is suggested on a CPU that has instructions for it. At this size it is 1.7 times as
# fast as fp32; at 128 there was no clear gain.
BF16_REPAYS_FROM = 384


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device is cuda, but torch sees no CUDA device\n  → train.device=auto, or install a CUDA build"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("train.device is mps, but torch sees no Apple GPU\n  → train.device=auto")
    return torch.device(name)


def torch_environment() -> dict[str, Any]:
    """Returns what a run records of this machine as torch sees it: threads, GPUs and the version of CUDA."""
    return {
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


def choose_precision(name: str, device: torch.device) -> str:
    """Returns fp32, bf16 or fp16. Weights and moments are float32 in every case.

    Raises UserError for fp16 on a CPU."""
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise UserError(
                "train.precision fp16 needs a GPU\n  → train.precision=fp32, or bf16 on a CPU with AMX or AVX512-BF16"
            )
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def multiplies_bf16(device: torch.device) -> bool:
    """Says whether the device is a CPU whose matrix products are faster in bf16 than in fp32."""
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def keeping_casts(precision: str, device: torch.device) -> AbstractContextManager:
    """Returns a context for several passes with the same weights, in which autocast casts each weight only once."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, enabled=False)


def choose_compile(
    train: TrainConfig, device: torch.device, expected_seconds: float, causal: bool, ragged: bool = False
) -> bool:
    """Says whether blocks are compiled.

    Rows of any length (`ragged`) would need a compilation for each length. On a CPU compilation makes encoders slower:
    torch's own LayerNorm, GELU and attention over whole rows are as fast as generated code (docs/decisions.md).
    causal: the rows are those of a causal model. Raises UserError where the recipe demands compilation and there is no
    C++ compiler."""
    has_compiler = device.type != "cpu" or any(shutil.which(c) for c in ("g++", "clang++", "c++"))
    if train.compile == "on" and not has_compiler:
        raise UserError("train.compile is on, but there is no C++ compiler\n  → install g++, or train.compile=off")
    if train.compile != "auto":
        return train.compile == "on"
    repays = causal and expected_seconds > COMPILE_REPAYS_AFTER
    return (not ragged and device.type == "cuda") or (has_compiler and device.type == "cpu" and repays)
