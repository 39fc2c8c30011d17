"""Cross-entropy of a vocabulary head that never holds all logits.

At a 50k vocabulary the logits of one small batch outweigh every other activation. Here the head runs on `CHUNK` rows at a
time and makes its gradients in the same pass, so a chunk of logits is all that ever exists (the idea of Liger's and
torch's fused linear cross-entropy; torch's own has no softcap and breaks compiled graphs).
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


def _score_chunk(logits: Tensor, labels: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Losses (n,) float32 of logits (n, V); the logits become d loss / d logits in place of a second tensor. One fused
    kernel when compiled. softcap 0: none."""
    x = logits.float()
    if softcap:
        x = softcap * torch.tanh(x / softcap)
    top = x.amax(1, keepdim=True)
    log_sum = top + (x - top).exp().sum(1, keepdim=True).log()
    at_label = torch.arange(x.size(1), device=x.device) == labels[:, None]  # (n, V)
    losses = log_sum.squeeze(1) - torch.where(at_label, x, 0.0).sum(1)
    gradient = (x - log_sum).exp() - at_label.float()
    if softcap:
        gradient = gradient * (1 - (x / softcap).square())
    logits.copy_(gradient)
    return losses, top.squeeze(1)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float, score_chunk: Any, backward: bool
    ) -> Any:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        h, w = hidden.to(dtype), weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=h.device)
        hits = torch.zeros_like(loss)
        d_hidden, d_weight = torch.empty_like(h), torch.zeros(weight.shape, dtype=torch.float32, device=h.device)
        buffer = h.new_empty(min(CHUNK, len(h)), len(w))
        for start in range(0, len(h), CHUNK):
            hc, yc = h[start : start + CHUNK], labels[start : start + CHUNK]
            logits = torch.mm(hc, w.t(), out=buffer[: len(hc)])
            at_label = logits.gather(1, yc[:, None]).squeeze(1).float()
            if softcap:
                at_label = softcap * torch.tanh(at_label / softcap)
            losses, top = score_chunk(logits, yc, softcap)
            loss += losses.sum()
            hits += (at_label >= top).sum()
            if not backward:
                continue
            torch.mm(logits, w, out=d_hidden[start : start + CHUNK])
            if d_weight.dtype == dtype:
                d_weight.addmm_(logits.t(), hc)
            else:
                d_weight += torch.mm(logits.t(), hc)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> Any:  # type: ignore[override]
        d_hidden, d_weight = ctx.saved_tensors
        for_hidden, for_weight = ctx.dtypes
        return (d_hidden * d_loss.to(d_hidden.dtype)).to(for_hidden), d_weight.mul_(d_loss).to(for_weight), None, None, None, None


def head_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None, score_chunk: Any = _score_chunk
) -> Scores:
    """Summed cross-entropy of softcap(hidden @ weight.T) against labels.

    hidden: (..., D); weight: (V, D); labels: (...) int64, IGNORE where unscored: those positions never meet the head.
    score_chunk: `_score_chunk` or a compiled copy of it.
    """
    hidden, labels = hidden.reshape(-1, hidden.size(-1)), labels.reshape(-1)
    scored = labels != IGNORE
    if not bool(scored.all()):
        hidden, labels = hidden[scored], labels[scored]
    return Scores(*_HeadLoss.apply(hidden, weight, labels, softcap or 0.0, score_chunk, torch.is_grad_enabled()))
