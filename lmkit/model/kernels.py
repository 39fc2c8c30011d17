"""Two operations whose derivatives torch composes from many passes over memory on a CPU. Each halves them.

Under torch.compile they trace through to the same fused kernels as before.
"""

from typing import Any

import torch
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


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last dimension (Zhang & Sennrich 2019), in the number format of x."""
    return _RMSNorm.apply(x, eps)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021)."""
    return _SquaredReLU.apply(x)
