"""Operations that are faster here than in torch on a CPU.

torch computes their derivatives in many passes over memory; here they take half as many or fewer. torch.compile makes
the same fused kernels of RMS norm and squared ReLU as it does without this module.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.size(-1)).add_(eps).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(grads[0], y).div_(y.size(-1)).unsqueeze(-1)
        return torch.addcmul(grads[0], y, along, value=-1).mul_(scale), None


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.clamp_min(0)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (positive,) = ctx.saved_tensors
        return (grads[0] * positive).mul_(2)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        bits = _random_bits(x.shape)
        ctx.save_for_backward(bits)
        ctx.rate = rate
        return _kept(bits, rate, x.dtype).mul_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (bits,) = ctx.saved_tensors
        return _kept(bits, ctx.rate, grads[0].dtype).mul_(grads[0]), None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rate: float, factor: float, rows: int
    ) -> Tensor:
        out = q.new_empty(q.size(0), q.size(2), q.size(1), v.size(3)).transpose(1, 2)
        probs, bits = q.new_empty(*q.shape[:3], k.size(2)), []
        for i in range(0, len(q), rows):
            at = slice(i, i + rows)
            p = probs[at].flatten(0, 1)
            scores = p if p.dtype == torch.float32 else torch.empty(p.shape)  # bf16 rounds a score of 9 by up to 0.03
            asked, keys = q[at].flatten(0, 1).float(), k[at].flatten(0, 1).float().mT
            asked = asked if factor == 1 else asked * factor
            if bias is None:
                torch.bmm(asked, keys, out=scores)
            else:
                added = (bias if len(bias) == 1 else bias[at]).expand_as(probs[at]).flatten(0, 1)
                torch.baddbmm(added, asked, keys, out=scores)
            torch.softmax(scores, -1, out=scores)
            if scores is not p:
                p.copy_(scores)
            if rate:
                bits.append(_random_bits(p.shape))
                p = _kept(bits[-1], rate, p.dtype).mul_(p)
            out[at] = torch.bmm(p, v[at].flatten(0, 1)).unflatten(0, (-1, q.size(1)))
        ctx.save_for_backward(q, k, v, probs, out, *bits)
        ctx.bias = (bias.shape, bias.dtype) if bias is not None and bias.requires_grad else None
        ctx.rate, ctx.factor, ctx.rows = rate, factor, rows
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, probs, out, *bits = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        d_bias = None if ctx.bias is None else torch.zeros(ctx.bias[0])
        inner = (grads[0].float() * out).sum(-1, keepdim=True).to(q.dtype)
        for n, i in enumerate(range(0, len(q), ctx.rows)):
            at = slice(i, i + ctx.rows)
            flat = lambda x, at=at: x[at].flatten(0, 1)
            whole = lambda x: x.unflatten(0, (-1, q.size(1)))
            p, g = flat(probs), flat(grads[0])
            keep = _kept(bits[n], ctx.rate, p.dtype) if bits else None
            d = torch.bmm(g, flat(v).mT)
            d = (d if keep is None else d.mul_(keep)).sub_(flat(inner)).mul_(p)
            dv[at] = whole(torch.bmm((p if keep is None else keep.mul_(p)).mT, g))
            if d_bias is not None:
                part = d_bias if len(d_bias) == 1 else d_bias[at]
                part.add_(whole(d).sum_to_size(part.shape))
            dq[at], dk[at] = whole(torch.bmm(d, flat(k))), whole(torch.bmm(d.mT, flat(q)))
        if ctx.factor != 1:
            dq.mul_(ctx.factor), dk.mul_(ctx.factor)
        return dq, dk, dv, None if d_bias is None else d_bias.to(ctx.bias[1]), None, None, None


def _random_bits(shape: torch.Size) -> Tensor:
    """Returns random int16 numbers; torch's generator gives only their seed.

    torch's own dropout draws one number per value from a generator that is not parallel, which takes a quarter of a
    training step."""
    seed, count = int(torch.randint(2**63 - 1, ())), shape.numel()
    return torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)[:count]).view(shape)


def _kept(bits: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
    """Returns the factors of dropout: 0 for a share `rate` of the values, 1 / (1 - rate) for the others.

    `rate` is rounded to a multiple of 2^-16."""
    threshold = round(rate * 2**16)
    factors = torch.ge(bits, threshold - 2**15, out=torch.empty(bits.shape, dtype=dtype))  # bool is much slower to make
    return factors.mul_(2**16 / (2**16 - threshold))


def dropout(x: Tensor, rate: float) -> Tensor:
    """Returns x with a share `rate` of its values set to 0 and the rest divided by 1 - rate (Srivastava et al. 2014).

    The caller calls it only while training."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or round(rate * 2**16) == 2**16:
        return F.dropout(x, rate)
    return _Dropout.apply(x, rate)


IN_CACHE = 2**18  # number of scores that are computed at a time: 1 MB


@torch._disable_dynamo  # is torch.compiler.disable, except that it loads the compiler, two seconds, when it is called
def cpu_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rate: float, factor: float) -> Tensor:
    """Returns dropout(softmax(q @ k.T * factor + bias)) @ v, (B, H, T, E), on a CPU.

    It does what torch's fast attention on a CPU cannot: dropout, and a gradient for the bias. It computes a few rows at
    a time, so that their scores stay in the cache.

    q: (B, H, T, E); k, v: (B, H, S, E), all of one number format.
    bias: (1 or B, 1 or H, 1 or T, S), either bool, True where a query may look, or scores to add.
    rate: the rate of dropout."""
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape).masked_fill_(~bias, torch.finfo(torch.float32).min)
    rows = max(1, IN_CACHE // (q.size(1) * q.size(2) * k.size(2)))
    with torch.autocast("cpu", enabled=False):
        return _Attention.apply(q, k, v, bias, rate, factor, rows)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Returns x / sqrt(mean(x²) + eps) over the last dimension (Zhang & Sennrich 2019), in the number format of x."""
    return _RMSNorm.apply(x, eps)


def squared_relu(x: Tensor) -> Tensor:
    """Returns max(x, 0)² (So et al. 2021)."""
    return _SquaredReLU.apply(x)
