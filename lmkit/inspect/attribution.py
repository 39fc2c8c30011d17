"""How much each token of a text adds to what a model says of it.

Shapes: T tokens, D embedding width."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmkit.inspect.questions import Question
from lmkit.pretrained import Pretrained

Method = Literal["ig", "gradient", "occlusion"]
STEPS = 50  # of the integral


class Attributions(NamedTuple):
    """The share of each token in the logit that is asked about."""

    scores: list[float]
    logit: float
    baseline: float  # the same logit where every token is the baseline's

    @property
    def gap(self) -> float:
        """Returns how far the scores miss the difference of the two logits, as a share of it: 0 for an integral that is
        exact (Sundararajan et al. 2017, completeness)."""
        difference = self.logit - self.baseline
        return abs(sum(self.scores) - difference) / max(abs(difference), 1e-9)


def attribute(loaded: Pretrained, question: Question, method: Method = "ig") -> Attributions:
    """Returns the shares of the tokens that a model reads, of an encoder-decoder those of its encoder.

    ig: integrated gradients from embeddings of the padding token (or of zeros), with Gauss and Legendre's points;
    gradient: gradient times embedding; occlusion: the change where a token is the baseline's."""
    pad = loaded.special.get("pad_token_id")
    tokens = torch.tensor([question.ids], device=loaded.model.embedding.weight.device)
    logit_of = lambda embedded: _logit(loaded, question, tokens, embedded)
    with torch.no_grad(), loaded.model.evaluating():
        here = loaded.model.embedding(tokens)  # (1, T, D)
        there = torch.zeros_like(here)
        if pad is not None and pad < loaded.config.vocab_size:
            there = loaded.model.embedding(torch.full_like(tokens, pad))
        logit, baseline = float(logit_of(here)), float(logit_of(there))
    with loaded.model.evaluating():
        if method == "occlusion":
            scores = _occluded(logit_of, here, there)
        elif method == "gradient":
            scores = (_gradient(logit_of, here) * here).sum(-1)[0]
        else:
            points, weights = np.polynomial.legendre.leggauss(STEPS)
            total = torch.zeros_like(here)
            for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
                total += float(weight) * _gradient(logit_of, there + float(point) * (here - there))
            scores = (total * (here - there)).sum(-1)[0]
    return Attributions(scores.tolist(), logit, baseline)


def _logit(loaded: Pretrained, question: Question, tokens: Tensor, embedded: Tensor) -> Tensor:
    """Returns the logit (1,) that is asked about, of a text whose embeddings are `embedded` (1, T, D)."""
    model, embeddings, targets = loaded.model, [embedded], None
    if question.written is not None:
        targets = torch.tensor([question.written], device=tokens.device)
    elif loaded.config.stacks == "encoder_decoder":  # the decoder reads the same text, one place further
        targets = loaded.shifted(tokens)
        embeddings.append(torch.cat((model.embedding(targets[:, :1]), embedded[:, :-1]), 1))
    types = None if question.types is None else torch.tensor([question.types], device=tokens.device)
    replacements = iter(embeddings)
    hook = model.embedding.register_forward_hook(lambda *_: next(replacements, None))
    try:
        states = model(tokens, types=types, targets=targets)
    finally:
        hook.remove()
    logits = loaded.apply_head(states, tokens, torch.ones_like(tokens, dtype=torch.bool))
    each = [logits[:, n] if place is None else logits[:, place, n] for place, n in question.logits]
    return torch.stack(each).sum(0)


def _gradient(logit_of: Callable[[Tensor], Tensor], embedded: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = embedded.detach().requires_grad_()
        return torch.autograd.grad(logit_of(leaf).sum(), leaf)[0]


@torch.no_grad()
def _occluded(logit_of: Callable[[Tensor], Tensor], here: Tensor, there: Tensor) -> Tensor:
    whole, scores = logit_of(here), []
    for i in range(here.size(1)):
        without = here.clone()
        without[:, i] = there[:, i]
        scores.append(whole - logit_of(without))
    return torch.cat(scores)
