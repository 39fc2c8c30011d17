"""Cross-entropy of a vocabulary head that never holds all logits.

At a 50k vocabulary the logits of one small batch outweigh every other activation. Here the head runs on `CHUNK` rows
at a time and makes its gradients in the same pass, so a chunk of logits is all that ever exists (the idea of Liger's
and torch's fused linear cross-entropy; torch's own has no softcap and breaks compiled graphs).

`head_loss` gives one sum; `label_log_probs` gives a value for each position, each with a gradient of its own.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE = -100  # a label that carries no loss (the default of torch's cross_entropy)
CHUNK = 512


class TokenScores(NamedTuple):
    """Sums over the scored positions, which callers divide by their number. Only `loss` carries a gradient."""

    loss: Tensor  # () float32, nats, of the smoothed labels if smoothing was asked for
    hits: Tensor  # () float32, positions whose largest logit is the label
    nats: Tensor  # () float32, negative log-likelihood of the labels themselves


def score_chunk(
    logits: Tensor, labels: Tensor, softcap: float, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns losses (n,) float32, hits (n,) bool and nats (n,) of logits (n, V), and turns the logits into
    d loss / d logits. A softcap of 0 means none.

    It works in place, because on a CPU every pass over (n, V) and every allocation of that size takes time. It is as
    fast as the best compiled kernel that we found, and twice as fast as others (docs/decisions.md)."""
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
        each = smoothing / (x.size(1) - 1)  # the share that each word but the label gets
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


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Returns the type that autocast multiplies in; where it is off, the type of the hidden states."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """Returns the tensors in that type, and None where there is none."""
    return [None if t is None else t.to(dtype) for t in tensors]


def _logits(h: Tensor, w: Tensor, b: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yields which positions a chunk holds, and their logits (c, V), which stand in one buffer for all chunks."""
    buffer = h.new_empty(min(CHUNK, len(h)), len(w))
    for start in range(0, len(h), CHUNK):
        chunk = slice(start, start + CHUNK)
        logits = buffer[: len(h[chunk])]
        if b is None:
            torch.mm(h[chunk], w.t(), out=logits)
        else:
            torch.addmm(b, h[chunk], w.t(), out=logits)
        yield chunk, logits


class _Gradients:
    """Gradients of hidden states, weights and bias, computed from the gradients of the logits, a chunk at a time."""

    def __init__(self, h: Tensor, w: Tensor, b: Tensor | None):
        self.h, self.w = h, w
        self.hidden, self.weight = torch.empty_like(h), torch.zeros(w.shape, dtype=torch.float32, device=h.device)
        self.bias = None if b is None else torch.zeros(b.shape, dtype=torch.float32, device=h.device)

    def add(self, chunk: slice, d_logits: Tensor) -> None:
        """Adds what follows from d_logits (c, V), the gradients of the logits of the positions in `chunk`."""
        torch.mm(d_logits, self.w, out=self.hidden[chunk])
        if d_logits.dtype == torch.float32:
            self.weight.addmm_(d_logits.t(), self.h[chunk])
        else:
            self.weight += torch.mm(d_logits.t(), self.h[chunk])
        if self.bias is not None:
            self.bias += d_logits.sum(0, dtype=torch.float32)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, softcap: float,
        smoothing: float, backward: bool,
    ) -> Any:  # fmt: skip
        h, w, b = _cast(_compute_dtype(hidden), hidden, weight, bias)
        sums, gradients = torch.zeros(3, dtype=torch.float32, device=h.device), _Gradients(h, w, b)
        for chunk, logits in _logits(h, w, b):
            sums += torch.stack([part.sum() for part in score_chunk(logits, labels[chunk], softcap, smoothing)])
            if backward:
                gradients.add(chunk, logits)  # `score_chunk` has turned the logits into their gradient
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
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


class _LabelLogProbs(torch.autograd.Function):
    """The backward pass computes the logits a second time: the gradient of the weights depends on the gradient of each
    position's log-probability, which only the backward pass knows."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, softcap: float
    ) -> Tensor:
        ctx.dtype, ctx.softcap = _compute_dtype(hidden), softcap
        ctx.save_for_backward(hidden, weight, bias, labels)
        h, w, b = _cast(ctx.dtype, hidden, weight, bias)
        log_probs = torch.empty(len(h), dtype=torch.float32, device=h.device)
        for chunk, logits in _logits(h, w, b):
            log_probs[chunk] = -score_chunk(logits, labels[chunk], softcap)[2]
        return log_probs

    @staticmethod
    def backward(ctx: Any, d_log_probs: Tensor) -> Any:
        hidden, weight, bias, labels = ctx.saved_tensors
        h, w, b = _cast(ctx.dtype, hidden, weight, bias)
        gradients = _Gradients(h, w, b)
        for chunk, logits in _logits(h, w, b):
            score_chunk(logits, labels[chunk], ctx.softcap)  # logits are now the gradient of minus log-probabilities
            gradients.add(chunk, logits.mul_(-d_log_probs[chunk, None]))
        return gradients.hidden.to(hidden.dtype), gradients.weight.to(weight.dtype), gradients.bias, None, None


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    softcap: float | None = None,
    bias: Tensor | None = None,
    smoothing: float = 0.0,
) -> TokenScores:
    """Returns the summed cross-entropy of softcap(hidden @ weight.T + bias) against labels.

    hidden: (n, D); weight: (V, D); labels: (n,) int64, all scored; bias: (V,). smoothing: this share of the probability
    goes to the V - 1 other words in equal parts, as fairseq defines it; torch spreads it over all V words."""
    return TokenScores(
        *_HeadLoss.apply(hidden, weight, bias, labels, softcap or 0.0, smoothing, torch.is_grad_enabled())
    )


def label_log_probs(
    hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Returns the log-probability of each label under softmax(softcap(hidden @ weight.T + bias)): (n,) float32, with
    gradient.

    Shapes are those of `head_loss`. Where one sum is enough, `head_loss` is faster, since here the backward pass runs
    the head again."""
    return _LabelLogProbs.apply(hidden, weight, bias, labels, softcap or 0.0)
