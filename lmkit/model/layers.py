"""The parts of a Transformer block. Shapes: B batch, T query tokens, S key tokens, D hidden_size, H heads,
K key/value heads, E head_dim."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.architecture import ModelConfig, RopeScaling
from lmkit.model.kernels import rms_norm, squared_relu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": squared_relu,
    "silu": F.silu,
}


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 (Zhang & Sennrich 2019), with or without a learned gain."""

    def __init__(self, size: int, eps: float, gain: bool):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        y = rms_norm(x.float(), self.eps).to(x.dtype)
        return y if self.weight is None else y * self.weight


def make_norm(c: ModelConfig, size: int) -> nn.Module:
    return nn.LayerNorm(size, c.norm_eps) if c.norm == "layer" else RMSNorm(size, c.norm_eps, c.norm_gain)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """(E/2,) radians per position. `llama3` scaling as in Llama 3.1: long wavelengths are stretched by `factor`, short
    ones kept, the band between interpolated."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if scaling is None:
        return frequency
    if scaling.type == "linear":
        return frequency / scaling.factor
    wavelength = 2 * math.pi / frequency
    longest_kept = scaling.original_context / scaling.high_freq_factor
    shortest_stretched = scaling.original_context / scaling.low_freq_factor
    share_kept = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - share_kept) * frequency / scaling.factor + share_kept * frequency
    stretched = torch.where(wavelength > shortest_stretched, frequency / scaling.factor, between)
    return torch.where(wavelength < longest_kept, frequency, stretched)


def rope_table(c: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, each (context, E): the two halves of a head rotate together, the layout of Hugging Face weights."""
    angles = torch.outer(torch.arange(c.context).float(), rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), -angles.sin() if c.rope_reversed else angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (B, H, T, E); cos, sin: (T, E) or (B, 1, T, E)."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


class Cache:
    """Keys and values that one attention layer has seen, written in place: decoding never reallocates."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values  # (B, K, S_max, E)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + k.size(2)
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Attention(nn.Module):
    """Causal self-attention, key/value heads grouped. One projection holds the rows [queries; keys; values]."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = c.num_heads, c.num_kv_heads, c.head_dim
        self.widths = [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]
        self.dropout, self.qk_norm = c.attention_dropout, c.qk_norm
        self.qkv = nn.Linear(c.hidden_size, sum(self.widths), bias=c.qkv_bias)
        self.output = nn.Linear(self.widths[0], c.hidden_size, bias=c.output_bias)
        if c.qk_norm != "none":
            self.q_norm = RMSNorm(c.head_dim, c.norm_eps, c.norm_gain)
            self.k_norm = RMSNorm(c.head_dim, c.norm_eps, c.norm_gain)

    def forward(
        self, x: Tensor, mask: Tensor | None, rope: tuple[Tensor, Tensor] | None, cache: Cache | None = None
    ) -> Tensor:
        """x: (B, T, D). mask: bool, True where a query may look, broadcastable to (B, H, T, S); None: plain causal."""
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        q = q.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, E)
        k = k.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)  # (B, K, T, E)
        v = v.unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        if self.qk_norm == "before_rope":
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if self.qk_norm == "after_rope":
            q, k = self.q_norm(q), self.k_norm(k)
        if cache is not None:
            k, v = cache.append(k, v)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and q.size(2) > 1,
            dropout_p=self.dropout if self.training else 0.0, enable_gqa=self.num_heads != self.num_kv_heads,
        )  # fmt: skip
        return self.output(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Gated variants hold the rows [gate; up] in one projection."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.gated, self.activation = c.gated, ACTIVATIONS[c.activation]
        self.up = nn.Linear(c.hidden_size, c.intermediate_size * (2 if c.gated else 1), bias=c.mlp_bias)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if not self.gated:
            return self.down(self.activation(h))
        gate, up = h.chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


class Block(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.attention_norm, self.attention = make_norm(c, c.hidden_size), Attention(c)
        self.mlp_norm, self.mlp = make_norm(c, c.hidden_size), FeedForward(c)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, rope: tuple[Tensor, Tensor] | None, cache: Cache | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, rope, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
