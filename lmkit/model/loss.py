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


class Scores(NamedTuple):
    """Sums over the scored positions; divide by their number. `loss` carries the gradient, `hits` does not."""

    loss: Tensor  # () float32, nats
    hits: Tensor  # () float32, positions whose largest logit is the label


def score_chunk(logits: Tensor, labels: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Losses (n,) float32 and hits (n,) bool of logits (n, V), which become d loss / d logits. Softcap 0: none.

    In place, because on a CPU every pass over (n, V) and every allocation of it counts: as fast as the best compiled
    kernel found, and twice as fast as others (docs/decisions.md)."""
    x = logits.float()
    if softcap:
        x.div_(softcap).tanh_()
    at_label, top = x.gather(1, labels[:, None]), x.amax(1, keepdim=True)
    if softcap:  # capped logits cannot overflow exp
        p = torch.mul(x, softcap).exp_()
        total = p.sum(1, keepdim=True)
        torch.addcmul(p, p, x.square_(), value=-1, out=x).div_(total)  # times the cap's derivative, 1 - tanh²
        losses, at_gradient = total.log() - at_label * softcap, at_label.square() - 1
    else:
        total = x.sub_(top).exp_().sum(1, keepdim=True)
        x.div_(total)
        losses, at_gradient = total.log() - (at_label - top), torch.full_like(at_label, -1.0)
    x.scatter_add_(1, labels[:, None], at_gradient)
    if logits.dtype != torch.float32:
        logits.copy_(x)
    return losses.squeeze(1), (at_label >= top).squeeze(1)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float, backward: bool) -> Any:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        h, w = hidden.to(dtype), weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=h.device)
        hits = torch.zeros_like(loss)
        d_hidden, d_weight = torch.empty_like(h), torch.zeros(weight.shape, dtype=torch.float32, device=h.device)
        buffer = h.new_empty(min(CHUNK, len(h)), len(w))
        for start in range(0, len(h), CHUNK):
            hc, yc = h[start : start + CHUNK], labels[start : start + CHUNK]
            gradient = torch.mm(hc, w.t(), out=buffer[: len(hc)])  # logits, until they are scored
            losses, right = score_chunk(gradient, yc, softcap)
            loss += losses.sum()
            hits += right.sum()
            if not backward:
                continue
            torch.mm(gradient, w, out=d_hidden[start : start + CHUNK])
            if dtype == torch.float32:
                d_weight.addmm_(gradient.t(), hc)
            else:
                d_weight += torch.mm(gradient.t(), hc)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> Any:
        d_hidden, d_weight = ctx.saved_tensors
        for_hidden, for_weight = ctx.dtypes
        d_hidden = (d_hidden * d_loss.to(d_hidden.dtype)).to(for_hidden)
        return d_hidden, d_weight.mul_(d_loss).to(for_weight), None, None, None


def head_loss(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None) -> Scores:
    """Summed cross-entropy of softcap(hidden @ weight.T) against labels.

    hidden: (..., D); weight: (V, D); labels: (...) int64, IGNORE where unscored: those positions never meet the head.
    """
    hidden, labels = hidden.reshape(-1, hidden.size(-1)), labels.reshape(-1)
    scored = labels != IGNORE
    if not bool(scored.all()):
        hidden, labels = hidden[scored], labels[scored]
    return Scores(*_HeadLoss.apply(hidden, weight, labels, softcap or 0.0, torch.is_grad_enabled()))
