"""What all evaluations share: rows in batches of like length, labels scored one by one, sums for each document."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from lmkit.base.errors import ModelError
from lmkit.base.order import by_length
from lmkit.evaluation.intervals import Estimate, exponential, ratio
from lmkit.model.loss import CHUNK, IGNORE, score_chunk
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Objective

BATCH_TOKENS = 16_384  # in one forward pass; changes speed and memory only
BATCHES = 16  # held back to be sorted by length, so that little is padding


@torch.no_grad()
def label_scores(model: Transformer, states: Tensor, labels: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each row its labels in order: nats (n,) float64, and hits (n,) bool, where the label is the likeliest word.

    states: (B, T, D); labels: (B, T), IGNORE where unscored. Logits exist for CHUNK labels at a time."""
    scored = labels != IGNORE
    h, y = states[scored], labels[scored]  # (N, D), (N,)
    parts = [score_chunk(model.head(h[i : i + CHUNK]), y[i : i + CHUNK], 0.0) for i in range(0, len(y), CHUNK)]
    nats, hits = (torch.cat([p[k] for p in parts]).cpu().numpy() for k in (2, 1))
    ends = scored.sum(1).cumsum(0)[:-1].cpu().numpy()
    return list(zip(np.split(nats.astype(np.float64), ends), np.split(hits, ends), strict=True))


@dataclass
class Tally:
    """Sums for each document, or pair of texts; the properties are over all of them."""

    nats: list[float] = field(default_factory=list)  # negative log-likelihood
    tokens: list[int] = field(default_factory=list)  # predicted
    hits: list[int] = field(default_factory=list)  # predicted right
    spans: list[int] = field(default_factory=list)  # of noise
    whole: list[int] = field(default_factory=list)  # of these, predicted right from end to end
    skipped: Counter[str] = field(default_factory=Counter)  # what was left out, and how often
    unspelt: int = 0  # bytes that the tokenizer dropped, so that no token stands for them
    unknown: int = 0  # tokens that stand for text the tokenizer cannot spell

    def open(self) -> int:
        """The number of a new document."""
        for sums in (self.nats, self.tokens, self.hits, self.spans, self.whole):
            sums.append(0)
        return len(self.nats) - 1

    def add(self, document: int, nats: np.ndarray, hits: np.ndarray, spans: np.ndarray | None = None) -> None:
        """nats, hits: (n,), as `label_scores` gives them; spans: (n,) the span each label is of, from 0; -1: none."""
        self.nats[document] += float(nats.sum())
        self.tokens[document] += len(nats)
        self.hits[document] += int(hits.sum())
        if spans is not None and (spans >= 0).any():
            inside = spans >= 0
            missed = np.unique(spans[inside & ~hits])
            self.spans[document] += int(spans.max()) + 1
            self.whole[document] += int(spans.max()) + 1 - len(missed)

    @property
    def documents(self) -> int:
        """Those of which something was predicted."""
        return sum(1 for n in self.tokens if n)

    @property
    def loss(self) -> Estimate:
        """Nats a token."""
        return ratio(self.nats, self.tokens)

    @property
    def perplexity(self) -> Estimate:
        return exponential(self.loss)

    @property
    def accuracy(self) -> Estimate:
        return ratio(self.hits, self.tokens)

    @property
    def span_accuracy(self) -> Estimate | None:
        """Share of the spans of noise of which every token was right; None where there is no noise."""
        return ratio(self.whole, self.spans) if any(self.spans) else None


@torch.no_grad()
def score_rows(model: Transformer, objective: Objective, rows: Iterable[dict], tally: Tally, batch_tokens: int) -> None:
    """Adds up what the task's labels cost. rows: prepared examples, each of one document, read as they are needed;
    where they have `spans`, that says which span of noise each label is of."""
    device, rows = model.embedding.weight.device, iter(rows)
    held = BATCHES * max(1, batch_tokens // model.config.context)
    while some := list(islice(rows, held)):
        for group in by_length(some, objective.length, batch_tokens):
            batch = objective.collate(group).to(device)
            states = model(batch.tokens, batch.keep, targets=batch.targets)
            for row, (nats, hits) in zip(group, label_scores(model, states, batch.labels), strict=True):
                tally.add(row["documents"][0], nats, hits, row.get("spans"))


def check_finite(nats: Sequence[float]) -> None:
    """Raises ModelError."""
    if not math.isfinite(sum(nats)):
        raise ModelError("the loss is not finite\n  → the model's weights are damaged, or its training diverged")


def check_embedded(model: Transformer, ids: Iterable[int]) -> None:
    """Raises ModelError for control tokens that the model has no embeddings for."""
    if (largest := max(ids)) >= model.config.vocab_size:
        raise ModelError(
            f"the tokenizer has a control token of id {largest}, the model {model.config.vocab_size} embeddings\n"
            "  → they do not belong together: copy the tokenizer the model was trained with"
        )
