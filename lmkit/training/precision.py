"""Device, number format and compilation, chosen by the hardware unless the recipe says otherwise."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lmkit.base.errors import UserError
from lmkit.recipe.pretraining import TrainConfig

COMPILE_REPAYS_AFTER = 600.0  # seconds of training on a CPU; starting the compiler costs about a minute there
BF16_REPAYS_FROM = 384  # hidden_size: there 1.7 times as fast, where a CPU can; at 128 it gained nothing sure


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
    """What a run keeps of how torch sees this machine."""
    return {
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


def choose_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16. Weights and moments are float32 in every case."""
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
    """Whether this is a CPU whose matrix products are faster in bf16 than in fp32."""
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16"))


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def keeping_casts(precision: str, device: torch.device) -> AbstractContextManager:
    """Around several passes with the same weights: autocast casts each of them once, not once a pass."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, enabled=False)


def choose_compile(
    train: TrainConfig, device: torch.device, expected_seconds: float, causal: bool, ragged: bool = False
) -> bool:
    """Whether blocks are compiled. Rows of any length (`ragged`) would be compiled for again and again. On a CPU it
    makes encoders slower: torch's LayerNorm, GELU and attention over whole rows are as fast as what is generated
    (docs/decisions.md).

    Raises UserError when compilation is demanded and no C++ compiler is there."""
    has_compiler = device.type != "cpu" or any(shutil.which(c) for c in ("g++", "clang++", "c++"))
    if train.compile == "on" and not has_compiler:
        raise UserError("train.compile is on, but there is no C++ compiler\n  → install g++, or train.compile=off")
    if train.compile != "auto":
        return train.compile == "on"
    repays = causal and expected_seconds > COMPILE_REPAYS_AFTER
    return (not ragged and device.type == "cuda") or (has_compiler and device.type == "cpu" and repays)
