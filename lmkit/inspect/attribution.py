"""How much each token of a text adds to what a model says of it.

Shapes: T tokens, D embedding width."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmkit.base.errors import UserError
from lmkit.model.heads import Head
from lmkit.pretrained import Pretrained

Method = Literal["ig", "gradient", "occlusion"]
STEPS = 50  # of the integral


class Attributions(NamedTuple):
    """The share of each token in the logit of an output."""

    scores: list[float]
    output: int  # the number of the label, or the token that is said next
    logit: float
    baseline: float  # the same logit where every token is the baseline's

    @property
    def gap(self) -> float:
        """Returns how far the scores miss the difference of the two logits, as a share of it: 0 for an integral that is
        exact (Sundararajan et al. 2017, completeness)."""
        difference = self.logit - self.baseline
        return abs(sum(self.scores) - difference) / max(abs(difference), 1e-9)


def attribute(loaded: Pretrained, ids: list[int], output: int | None = None, method: Method = "ig") -> Attributions:
    """Returns the shares of the tokens in the logit of `output`, a label or a next token; None: the likeliest one.

    ig: integrated gradients from embeddings of the padding token (or of zeros), with Gauss and Legendre's points;
    gradient: gradient times embedding; occlusion: the change where a token is the baseline's. Raises UserError for
    models that are neither classifiers of texts nor decoders."""
    c = loaded.config
    if c.stacks == "encoder_decoder" or not (
        c.head == "sequence" or (c.causal and isinstance(loaded.model.head, Head))
    ):
        raise UserError(f"--attribute is of classifiers of texts and of decoders, and {loaded.folder} is neither")
    pad = loaded.special.get("pad_token_id")
    tokens = torch.tensor([ids], device=loaded.model.embedding.weight.device)
    with torch.no_grad(), loaded.model.evaluating():
        here = loaded.model.embedding(tokens)  # (1, T, D)
        there = torch.zeros_like(here)
        if pad is not None and pad < loaded.config.vocab_size:
            there = loaded.model.embedding(torch.full_like(tokens, pad))
        logits = _logits(loaded, tokens, here)[0]
        output = int(logits.argmax()) if output is None else output
        baseline = float(_logits(loaded, tokens, there)[0, output])
    said = lambda embedded: _logits(loaded, tokens, embedded)[:, output]
    with loaded.model.evaluating():
        if method == "occlusion":
            scores = _occluded(said, here, there)
        elif method == "gradient":
            scores = (_gradient(said, here) * here).sum(-1)[0]
        else:
            points, weights = np.polynomial.legendre.leggauss(STEPS)
            total = torch.zeros_like(here)
            for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
                total += float(weight) * _gradient(said, there + float(point) * (here - there))
            scores = (total * (here - there)).sum(-1)[0]
    return Attributions(scores.tolist(), output, float(logits[output]), baseline)


def _logits(loaded: Pretrained, tokens: Tensor, embedded: Tensor) -> Tensor:
    """Returns the logits (B, labels or words) of a text whose embeddings are `embedded` (B, T, D)."""
    rows = tokens.expand(len(embedded), -1)
    hook = loaded.model.embedding.register_forward_hook(lambda *_: embedded)
    try:
        states = loaded.model(rows)
    finally:
        hook.remove()
    every = torch.ones_like(rows, dtype=torch.bool)
    logits = loaded.apply_head(states, rows, every)
    return logits[:, -1] if logits.dim() == 3 else logits


def _gradient(said: Callable[[Tensor], Tensor], embedded: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = embedded.detach().requires_grad_()
        return torch.autograd.grad(said(leaf).sum(), leaf)[0]


@torch.no_grad()
def _occluded(said: Callable[[Tensor], Tensor], here: Tensor, there: Tensor) -> Tensor:
    whole, scores = said(here), []
    for i in range(here.size(1)):
        without = here.clone()
        without[:, i] = there[:, i]
        scores.append(whole - said(without))
    return torch.cat(scores)
