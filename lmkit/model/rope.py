"""Rotary positions (Su et al. 2021), and the ways to stretch them for longer texts. Shapes: B batch, T tokens, H heads,
E the rotated dimensions of a head."""

import math

import torch
from torch import Tensor

from lmkit.architecture.model_config import ModelConfig, RopeScaling


def frequencies(dim: int, theta: float, scaling: RopeScaling | None, long: bool = False) -> Tensor:
    """Returns the angle of each pair of `dim` dimensions per position, (dim / 2,), in radians.

    long: for texts beyond the original context, for which `longrope` has other frequencies."""
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    frequency = 1.0 / theta**exponents
    if scaling is None or scaling.type == "dynamic":
        return frequency
    if scaling.type == "linear":
        return frequency / scaling.factor
    if scaling.type == "longrope":
        return 1.0 / (torch.tensor(scaling.long_factor if long else scaling.short_factor) * theta**exponents)
    if scaling.type == "yarn":
        return _yarn(frequency, theta, scaling)
    return _llama3(frequency, scaling)


def _llama3(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Stretches long wavelengths by `factor`, leaves short ones, and interpolates those between, as in Llama 3.1."""
    wavelength = 2 * math.pi / frequency
    longest_kept = scaling.original_context / scaling.high_freq_factor
    shortest_stretched = scaling.original_context / scaling.low_freq_factor
    share_kept = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - share_kept) * frequency / scaling.factor + share_kept * frequency
    stretched = torch.where(wavelength > shortest_stretched, frequency / scaling.factor, between)
    return torch.where(wavelength < longest_kept, frequency, stretched)


def _yarn(frequency: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Stretches dimensions that turn seldom in the original context, leaves those that turn often, and interpolates
    those between (Peng et al. 2023, 3.2)."""
    pairs = len(frequency)

    def dimension(turns: float) -> float:
        return pairs * math.log(scaling.original_context / (turns * 2 * math.pi)) / math.log(theta)

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    share_stretched = ((torch.arange(pairs).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequency / scaling.factor * share_stretched + frequency * (1 - share_stretched)


def attention_factor(scaling: RopeScaling | None) -> float:
    """Returns the number by which rotated queries and keys are multiplied."""
    if scaling is None or scaling.type not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    if scaling.type == "longrope":
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))
    scale = lambda weight: 0.1 * weight * math.log(scaling.factor) + 1
    if scaling.mscale and scaling.mscale_all_dim:
        return scale(scaling.mscale) / scale(scaling.mscale_all_dim)
    return scale(1)


def rope_table(c: ModelConfig, theta: float, scaling: RopeScaling | None = None, long: bool = False) -> Tensor:
    """Returns cos and sin of every angle, (2, context, E). long: as for `frequencies`.

    Dimension i of a head is rotated together with dimension i + E/2, which is the layout of Hugging Face weights."""
    angles = torch.outer(torch.arange(c.context).float(), frequencies(c.rotary_dim, theta, scaling, long))
    angles = torch.cat((angles, angles), dim=-1)
    table = torch.stack((angles.cos(), -angles.sin() if c.rope_reversed else angles.sin()))
    return table * attention_factor(scaling)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x (B, H, T, head_dim) with its first E dimensions rotated in pairs. cos, sin: (T, E) or (B, 1, T, E)."""
    if cos.size(-1) < x.size(-1):
        turned, rest = x.tensor_split([cos.size(-1)], dim=-1)
        return torch.cat((rotate(turned, cos, sin), rest), dim=-1)
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)
