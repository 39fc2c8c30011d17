"""What all evaluations share: batching rows of similar length, scoring each label, and sums for each document."""

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

BATCH_TOKENS = 16_384  # tokens in one forward pass; changes only speed and memory
BATCHES = 16  # batches whose rows are read together and sorted by length, so that there is little padding


@torch.no_grad()
def label_scores(model: Transformer, states: Tensor, labels: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns nats (n,) float64 and hits (n,) bool for the n scored labels of each row, in order.

    A hit is a label that is the likeliest word. states: (B, T, D); labels: (B, T), IGNORE where not scored. Only the
    logits of CHUNK labels exist at a time."""
    scored = labels != IGNORE
    nats, hits = labels_at(model, states[scored], labels[scored])
    ends = scored.sum(1).cumsum(0)[:-1].cpu().numpy()
    return list(zip(np.split(nats, ends), np.split(hits, ends), strict=True))


@torch.no_grad()
def labels_at(model: Transformer, states: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns nats (N,) float64 and hits (N,) bool of one label for each state (N, D)."""
    chunks = range(0, len(labels), CHUNK)
    parts = [score_chunk(model.head(states[i : i + CHUNK]), labels[i : i + CHUNK], 0.0) for i in chunks]
    nats, hits = (torch.cat([p[k] for p in parts]).cpu().numpy() for k in (2, 1))
    return nats.astype(np.float64), hits


@dataclass
class Tally:
    """Sums for each document, or pair of texts. The properties are scores over all of them."""

    nats: list[float] = field(default_factory=list)  # negative log-likelihood
    tokens: list[int] = field(default_factory=list)  # tokens that were predicted
    hits: list[int] = field(default_factory=list)  # tokens that were predicted right
    spans: list[int] = field(default_factory=list)  # spans of noise
    whole: list[int] = field(default_factory=list)  # spans of noise with every token predicted right
    skipped: Counter[str] = field(default_factory=Counter)  # what was left out, and how often
    unspelt: int = 0  # bytes that the tokenizer dropped, so that no token stands for them
    unknown: int = 0  # tokens that stand for text the tokenizer cannot spell

    def open(self) -> int:
        """Adds a new document, and returns its number."""
        for sums in (self.nats, self.tokens, self.hits, self.spans, self.whole):
            sums.append(0)
        return len(self.nats) - 1

    def add(self, document: int, nats: np.ndarray, hits: np.ndarray, spans: np.ndarray | None = None) -> None:
        """Adds the scores of labels to a document.

        nats, hits: (n,), as `label_scores` returns them; spans: (n,) the number of each label's span, from 0; -1 for
        none."""
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
        """Returns the number of documents of which something was predicted."""
        return sum(1 for n in self.tokens if n)

    @property
    def loss(self) -> Estimate:
        """Returns the loss in nats per token."""
        return ratio(self.nats, self.tokens)

    @property
    def perplexity(self) -> Estimate:
        return exponential(self.loss)

    @property
    def accuracy(self) -> Estimate:
        return ratio(self.hits, self.tokens)

    @property
    def span_accuracy(self) -> Estimate | None:
        """Returns the share of the spans of noise in which every token was right; None where there is no noise."""
        return ratio(self.whole, self.spans) if any(self.spans) else None


@torch.no_grad()
def score_rows(model: Transformer, objective: Objective, rows: Iterable[dict], tally: Tally, batch_tokens: int) -> None:
    """Scores the labels of the rows, and adds the scores to the tally.

    rows: prepared examples, each of one document, read as they are needed; their `spans`, if they have any, hold the
    number of each label's span of noise."""
    device, rows = model.embedding.weight.device, iter(rows)
    num_rows = BATCHES * max(1, batch_tokens // model.config.context)
    while chunk := list(islice(rows, num_rows)):
        for group in by_length(chunk, objective.length, batch_tokens):
            batch = objective.collate(group).to(device)
            states = model(batch.tokens, batch.keep, targets=batch.targets)
            for row, (nats, hits) in zip(group, label_scores(model, states, batch.labels), strict=True):
                tally.add(row["documents"][0], nats, hits, row.get("spans"))


def check_losses(nats: Sequence[float]) -> None:
    """Raises ModelError where the sum of the losses is not finite."""
    if not math.isfinite(sum(nats)):
        raise ModelError("the loss is not finite\n  → the model's weights are damaged, or its training diverged")


def check_embedded(model: Transformer, ids: Iterable[int]) -> None:
    """Raises ModelError for control tokens that the model has no embeddings for."""
    if (largest := max(ids)) >= model.config.vocab_size:
        raise ModelError(
            f"the tokenizer has a control token of id {largest}, the model {model.config.vocab_size} embeddings\n"
            "  → they do not belong together: copy the tokenizer the model was trained with"
        )
