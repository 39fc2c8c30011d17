"""What a data source hands to an objective, and an objective to the loop."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class ExampleSource(Protocol):
    """Examples by number, stateless and without an order of their own."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


@dataclass(frozen=True)
class Batch:
    """Model inputs and what to score. B rows of T tokens; None where an objective has no use for a field."""

    counts: dict[str, int]  # how many things each loss term sums over, known on the CPU: {"tokens": 1900}
    tokens: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64, of the decoder's length where there is one; IGNORE where unscored; or of whole rows
    num_tokens: int  # as `train.batch` counts them
    keep: Tensor | None = None  # (B, T) bool, False on padding; None: there is none
    segments: Tensor | None = None  # (B, T) int64: tokens see only their own segment
    positions: Tensor | None = None  # (B, T) int64; None: 0..T-1
    types: Tensor | None = None  # (B, T) int64: which text of a pair
    targets: Tensor | None = None  # (B, T') int64, what a decoder beside an encoder reads
    at: Tensor | None = None  # (B,) int64: the last real token of each row
    pair_labels: Tensor | None = None  # (B,) int64
    documents: tuple[int, ...] = ()  # what the rows were made of, for reports about a bad batch

    def to(self, device: torch.device) -> "Batch":
        moved: dict[str, Any] = {
            f.name: t.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(t := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Loss:
    """Sums, never means: the loop divides each by its count over the whole global batch, so neither micro-batches,
    padding nor the number of processes change the gradient. Keys are those of Batch.counts; all are ()."""

    sums: dict[str, Tensor]  # what is minimised, with graph
    hits: dict[str, Tensor]  # right predictions, no graph; none where there is no right or wrong
    nats: dict[str, Tensor]  # negative log-likelihood, no graph: differs from the sums where labels are smoothed


class Objective(Protocol):
    """What is learnt, as pure functions."""

    # Whether examples may be prepared before the step before them has moved the weights. Texts that the model writes
    # while it learns may not.
    read_ahead: ClassVar[bool] = True

    def prepare(self, example: dict, rng: Any) -> dict:
        """Makes every random choice about one example."""
        ...

    def length(self, example: dict) -> int:
        """Of the row a prepared example becomes."""
        ...

    def collate(self, examples: list[dict], multiple: int = 1) -> Batch:
        """Pads, rows of lengths of their own to a `multiple` of tokens, and counts."""
        ...

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Scores."""
        ...
