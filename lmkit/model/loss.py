"""Cross-entropy of a vocabulary head that never holds all logits.

At a 50k vocabulary the logits of one small batch outweigh every other activation. Here the head runs on `CHUNK` rows
at a time and makes its gradients in the same pass, so a chunk of logits is all that ever exists (the idea of Liger's
and torch's fused linear cross-entropy; torch's own has no softcap and breaks compiled graphs).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE = -100  # a label that carries no loss (the default of torch's cross_entropy)
CHUNK = 512


class TokenScores(NamedTuple):
    """Sums over the scored positions; divide by their number. `loss` carries the gradient, the others do not."""

    loss: Tensor  # () float32, nats, of the smoothed labels if smoothing was asked for
    hits: Tensor  # () float32, positions whose largest logit is the label
    nats: Tensor  # () float32, negative log-likelihood of the labels themselves


def score_chunk(
    logits: Tensor, labels: Tensor, softcap: float, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (n,) float32, hits (n,) bool and nats (n,) of logits (n, V), which become d loss / d logits. Softcap 0:
    none.

    In place, because on a CPU every pass over (n, V) and every allocation of it counts: as fast as the best compiled
    kernel found, and twice as fast as others (docs/decisions.md)."""
    x = logits.float()
    if softcap:
        assert not smoothing, "no family has a softcap and smoothed labels"
        x.div_(softcap).tanh_()
    at_label, top = x.gather(1, labels[:, None]), x.amax(1, keepdim=True)
    if softcap:  # capped logits cannot overflow exp
        p = torch.mul(x, softcap).exp_()
        total = p.sum(1, keepdim=True)
        torch.addcmul(p, p, x.square_(), value=-1, out=x).div_(total)  # times the cap's derivative, 1 - tanh²
        nats = losses = total.log() - at_label * softcap
        at_gradient = at_label.square() - 1
    else:
        x.sub_(top)
        each = smoothing / (x.size(1) - 1)  # share of every other word
        spread = each * x.sum(1, keepdim=True) if smoothing else 0.0
        total = x.exp_().sum(1, keepdim=True)
        x.div_(total)
        nats = total.log() - (at_label - top)
        losses, at_gradient = nats, torch.full_like(at_label, smoothing + each - 1)
        if smoothing:
            losses = total.log() - (1 - smoothing - each) * (at_label - top) - spread
            x.sub_(each)
    x.scatter_add_(1, labels[:, None], at_gradient)
    if logits.dtype != torch.float32:
        logits.copy_(x)
    return losses.squeeze(1), (at_label >= top).squeeze(1), nats.squeeze(1)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, softcap: float,
        smoothing: float, backward: bool,
    ) -> Any:  # fmt: skip
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        h, w, b = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        sums = torch.zeros(3, dtype=torch.float32, device=h.device)
        d_hidden, d_weight = torch.empty_like(h), torch.zeros(weight.shape, dtype=torch.float32, device=h.device)
        d_bias = None if bias is None else torch.zeros(bias.shape, dtype=torch.float32, device=h.device)
        buffer = h.new_empty(min(CHUNK, len(h)), len(w))
        for start in range(0, len(h), CHUNK):
            hc, yc = h[start : start + CHUNK], labels[start : start + CHUNK]
            gradient = buffer[: len(hc)]  # logits, until they are scored
            if b is None:
                torch.mm(hc, w.t(), out=gradient)
            else:
                torch.addmm(b, hc, w.t(), out=gradient)
            sums += torch.stack([part.sum() for part in score_chunk(gradient, yc, softcap, smoothing)])
            if not backward:
                continue
            torch.mm(gradient, w, out=d_hidden[start : start + CHUNK])
            if dtype == torch.float32:
                d_weight.addmm_(gradient.t(), hc)
            else:
                d_weight += torch.mm(gradient.t(), hc)
            if d_bias is not None:
                d_bias += gradient.sum(0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = hidden.dtype, weight.dtype
        loss, hits, nats = sums.unbind()
        ctx.mark_non_differentiable(hits, nats)
        return loss.clone(), hits, nats

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> Any:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        for_hidden, for_weight = ctx.dtypes
        d_hidden = (d_hidden * d_loss.to(d_hidden.dtype)).to(for_hidden)
        d_bias = None if d_bias is None else d_bias * d_loss
        return d_hidden, d_weight.mul_(d_loss).to(for_weight), d_bias, None, None, None, None


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    softcap: float | None = None,
    bias: Tensor | None = None,
    smoothing: float = 0.0,
) -> TokenScores:
    """Summed cross-entropy of softcap(hidden @ weight.T + bias) against labels.

    hidden: (n, D); weight: (V, D); labels: (n,) int64, all scored; bias: (V,). smoothing: as fairseq defines it, this
    share goes to the V - 1 other words in equal parts (torch's spreads it over all V)."""
    return TokenScores(
        *_HeadLoss.apply(hidden, weight, bias, labels, softcap or 0.0, smoothing, torch.is_grad_enabled())
    )
