"""The parts of a Transformer block. Shapes: B batch, T query tokens, S key tokens, D hidden_size, H heads,
K key/value heads, E head_dim."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmkit.architecture.model_config import ModelConfig
from lmkit.model.kernels import cpu_attention, dropout, rms_norm, squared_relu
from lmkit.model.rope import rotate

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": squared_relu,
    "silu": F.silu,
}


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 (Zhang & Sennrich 2019), with or without a learned gain.

    plus_one: the gain is 1 + weight, and counted in float32, as in Gemma."""

    def __init__(self, size: int, eps: float, gain: bool, plus_one: bool = False):
        super().__init__()
        self.eps, self.plus_one = eps, plus_one
        self.weight = nn.Parameter(torch.ones(size)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        y = rms_norm(x.float(), self.eps)
        if self.plus_one and self.weight is not None:
            return (y * (1 + self.weight.float())).to(x.dtype)
        y = y.to(x.dtype)
        return y if self.weight is None else y * self.weight


def make_norm(c: ModelConfig, size: int) -> nn.Module:
    if c.norm == "layer":
        return nn.LayerNorm(size, c.norm_eps, bias=c.norm_bias)
    return RMSNorm(size, c.norm_eps, c.norm_gain, c.norm_plus_one)


def sinusoids(length: int, size: int, closed: bool = False) -> Tensor:
    """Returns the sinusoidal positions (length, size): first the sines, then the cosines.

    The wavelengths are 2π * 10000^(2i/size) (Vaswani et al. 2017, 3.5); closed: the last one is 2π * 10000, as in
    tensor2tensor and M2M-100. The order is Marian's; the paper interleaves
    sines and cosines, which makes no difference to a model that is trained with either order."""
    pairs = torch.arange(0, size, 2).double() / (size - 2 if closed else size)
    angles = torch.arange(length).double()[:, None] / 10_000**pairs
    return torch.cat((angles.sin(), angles.cos()), dim=1)[:, :size].float()


def relative_bucket(distance: Tensor, causal: bool, buckets: int, longest: int) -> Tensor:
    """Returns the number of the bucket of each distance (key - query) (Raffel et al. 2020, 2.1).

    Short distances have a bucket each, which takes half of the buckets; longer ones share buckets by their logarithm,
    and all from `longest` on share the last one. An encoder gives half of the buckets to each direction; a decoder sees
    no keys ahead."""
    if causal:
        ahead, distance = torch.zeros_like(distance), -distance.clamp(max=0)
    else:
        buckets //= 2
        ahead, distance = (distance > 0).long() * buckets, distance.abs()
    exact = buckets // 2
    far = torch.log(distance.float() / exact) / math.log(longest / exact) * (buckets - exact)
    return ahead + torch.where(distance < exact, distance, (exact + far.long()).clamp(max=buckets - 1))


class Cache:
    """Keys and values that one attention layer has seen. They are written in place, so decoding allocates nothing.

    Rows may hold different numbers of tokens: `columns` then says where the next ones go, and a query sees the columns
    up to its own position."""

    def __init__(self, keys: Tensor, values: Tensor, length: int = 0, columns: Tensor | None = None):
        self.keys, self.values = keys, values  # (B, K, S_max, E)
        self.length = length  # columns that are filled; with `columns`, counted as if the next tokens were in
        self.columns = columns  # (B, T); None: behind all that is there

    @property
    def past(self) -> int:
        """Returns how many columns are filled before the next tokens come."""
        return self.length if self.columns is None else self.length - self.columns.size(1)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.columns is None:
            start, self.length = self.length, self.length + k.size(2)
            self.keys[:, :, start : self.length] = k
            self.values[:, :, start : self.length] = v
        else:
            places = self.columns[:, None, :, None].expand_as(k)
            self.keys.scatter_(2, places, k)
            self.values.scatter_(2, places, v)
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Returns x (B, T, heads * E) as (B, heads, T, E)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Dropout(nn.Module):
    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate) if self.training and self.rate else x


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, rate: float, scale: float | None,
    softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """Returns the attention of queries q (B, H, T, E) to keys and values k, v (B, K, S, E): (B, H, T, E).

    mask: as in `Attention.forward`; rate: the rate of dropout on the attention weights; softcap: scores are squashed to
    ± this by tanh, which torch's attention cannot do."""
    grouped = q.size(1) != k.size(1)
    if softcap is not None:
        return _softcapped(q, k, v, mask, causal, rate, q.size(-1) ** -0.5 if scale is None else scale, softcap)
    learns = mask is not None and mask.requires_grad
    tracing = torch.compiler.is_compiling() and not learns
    if q.device.type == "cpu" and (rate or learns) and not grouped and not tracing:
        if causal:
            mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool).tril_()[None, None]
        return cpu_attention(q, k, v, mask, rate, q.size(-1) ** -0.5 if scale is None else scale)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=rate, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, rate: float, scale: float, softcap: float
) -> Tensor:
    k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    scores = softcap * torch.tanh(q @ k.mT * (scale / softcap))  # (B, H, T, S)
    if causal:
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril_()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # finite, for rows that see nothing
    weights = scores.float().softmax(-1).to(v.dtype)
    return (dropout(weights, rate) if rate else weights) @ v


class Attention(nn.Module):
    """Self-attention with grouped key/value heads. One projection holds the rows [queries; keys; values]."""

    def __init__(self, c: ModelConfig, causal: bool):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.causal = c.num_heads, c.num_kv_heads, causal
        self.widths = [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]
        self.dropout, self.qk_norm, self.softcap = c.attention_dropout, c.qk_norm, c.attention_softcap
        self.scale = None if c.scaled_attention else 1.0
        if c.query_pre_attn_scalar is not None:
            self.scale = c.query_pre_attn_scalar**-0.5
        self.qkv = nn.Linear(c.hidden_size, sum(self.widths), bias=c.qkv_bias)
        self.output = nn.Linear(self.widths[0], c.hidden_size, bias=c.output_bias)
        if c.qk_norm != "none":
            self.q_norm = RMSNorm(c.head_dim, c.norm_eps, c.norm_gain, c.norm_plus_one)
            self.k_norm = RMSNorm(c.head_dim, c.norm_eps, c.norm_gain, c.norm_plus_one)
        self.own_heads = slice(None)

    def keep_heads(self, share: int, of: int) -> None:
        """Keeps only the heads of this process under tensor parallelism: share number `share` of `of` equal ones.

        The caller has already cut the projections to that share."""
        self.num_heads, self.num_kv_heads = self.num_heads // of, self.num_kv_heads // of
        self.widths = [width // of for width in self.widths]
        self.own_heads = slice(share * self.num_heads, (share + 1) * self.num_heads)

    def forward(self, x: Tensor, mask: Tensor | None, rope: Tensor | None, cache: Cache | None = None) -> Tensor:
        """Returns (B, T, D) for x (B, T, D).

        mask: broadcastable to (B, H, T, S), either bool, True where a query may look, or scores to add. None means
        that a decoder's query sees itself and all before it, and an encoder's query sees everything.
        rope: cos and sin, (2, T, E) or (2, B, 1, T, E)."""
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        q, k, v = split_heads(q, self.num_heads), split_heads(k, self.num_kv_heads), split_heads(v, self.num_kv_heads)
        if self.qk_norm == "before_rope":
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope[0], rope[1]), rotate(k, rope[0], rope[1])
        if self.qk_norm == "after_rope":
            q, k = self.q_norm(q), self.k_norm(k)
        if cache is not None:
            k, v = cache.append(k, v)
        if mask is not None and mask.size(1) > 1:
            mask = mask[:, self.own_heads]
        causal = bool(self.causal and mask is None and q.size(2) > 1)  # `bool`: a traced size is not a number
        y = attend(q, k, v, mask, causal, self.dropout if self.training else 0.0, self.scale, self.softcap)
        return self.output(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """The attention of a decoder to the states of an encoder. One projection holds the rows [keys; values]."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        width = c.num_heads * c.head_dim
        self.num_heads, self.dropout, self.scale = c.num_heads, c.attention_dropout, None if c.scaled_attention else 1.0
        self.query = nn.Linear(c.hidden_size, width, bias=c.qkv_bias)
        self.key_value = nn.Linear(c.hidden_size, 2 * width, bias=c.qkv_bias)
        self.output = nn.Linear(width, c.hidden_size, bias=c.output_bias)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values of the encoder's states (B, S, D), each (B, H, S, E).

        They are the same for every token that the decoder writes, so callers may compute them once."""
        k, v = self.key_value(memory).chunk(2, dim=-1)
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Returns (B, T, D) for x (B, T, D).

        memory: what `project` returns; mask: (B, 1, 1, S) bool, True on real tokens of the source, None where all are
        real."""
        q, dropped = split_heads(self.query(x), self.num_heads), self.dropout if self.training else 0.0
        y = attend(q, *memory, mask, False, dropped, self.scale)
        return self.output(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The feed-forward layer, plain or gated. Gated variants hold the rows [gate; up] in one projection."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.gated, self.activation = c.gated, ACTIVATIONS[c.activation]
        self.up = nn.Linear(c.hidden_size, c.intermediate_size * (2 if c.gated else 1), bias=c.mlp_bias)
        self.dropout = Dropout(c.activation_dropout)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if not self.gated:
            h = self.activation(h)
        else:
            gate, up = h.chunk(2, dim=-1)
            h = self.activation(gate) * up
        return self.down(self.dropout(h) if self.training else h)


class Block(nn.Module):
    """One layer: attention, attention to an encoder where there is one, and feed-forward.

    Each part f computes x + f(norm(x)) where the norm comes first, norm(x + f(x)) where it comes last, and
    x + post_norm(f(norm(x))) where there are both. With a parallel residual, attention and the feed-forward layer read
    the same x, and both are added to it."""

    def __init__(self, c: ModelConfig, causal: bool, cross: bool, first: bool):
        super().__init__()
        self.pre, self.parallel = c.norm_position != "post", c.parallel_residual
        self.attention_norm = nn.Identity() if first and not c.first_norm else make_norm(c, c.hidden_size)
        self.attention = Attention(c, causal)
        if cross:
            self.cross_norm, self.cross = make_norm(c, c.hidden_size), CrossAttention(c)
        self.mlp_norm, self.mlp = make_norm(c, c.hidden_size), FeedForward(c)
        both = c.norm_position == "both"
        self.attention_post_norm = make_norm(c, c.hidden_size) if both else nn.Identity()
        self.mlp_post_norm = make_norm(c, c.hidden_size) if both else nn.Identity()
        self.dropout = Dropout(c.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rope: Tensor | None,
        cache: Cache | None = None,
        memory: Tensor | tuple[Tensor, Tensor] | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Returns (B, T, D) for x (B, T, D). memory: the encoder's states (B, S, D), or their keys and values for this
        block; the other arguments are those of `Attention.forward`."""
        if self.parallel:
            attention = self.dropout(self.attention(self.attention_norm(x), mask, rope, cache))
            return x + attention + self.dropout(self.mlp(self.mlp_norm(x)))
        x = self._add(x, self.attention_norm, lambda y: self.attention_post_norm(self.attention(y, mask, rope, cache)))
        if memory is not None:
            pair = self.cross.project(memory) if isinstance(memory, Tensor) else memory
            x = self._add(x, self.cross_norm, lambda y: self.cross(y, pair, memory_mask))
        return self._add(x, self.mlp_norm, lambda y: self.mlp_post_norm(self.mlp(y)))

    def _add(self, x: Tensor, norm: nn.Module, f: Callable[[Tensor], Tensor]) -> Tensor:
        y = f(norm(x) if self.pre else x)
        y = x + (self.dropout(y) if self.training else y)  # a call of a module takes 3 µs, a layer's share of a token
        return y if self.pre else norm(y)
