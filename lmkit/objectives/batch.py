"""The types between data, objective and training loop: examples, batches and losses."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class ExampleSource(Protocol):
    """Gives examples by their number. It has no state, and no order of its own."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


@dataclass(frozen=True)
class Batch:
    """Model inputs and labels: B rows of T tokens. Fields that an objective does not use are None."""

    counts: dict[str, int]  # how many things each loss term sums over, known on the CPU: {"tokens": 1900}
    tokens: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64, with the decoder's T where there are two stacks; IGNORE: not scored; or one per row
    num_tokens: int  # tokens as `train.batch` counts them
    keep: Tensor | None = None  # (B, T) bool, False on padding; None: there is no padding
    segments: Tensor | None = None  # (B, T) int64: tokens see only their own segment
    positions: Tensor | None = None  # (B, T) int64; None: 0..T-1
    types: Tensor | None = None  # (B, T) int64: which text of a pair a token belongs to
    targets: Tensor | None = None  # (B, T') int64: tokens that the decoder of an encoder-decoder reads
    at: Tensor | None = None  # (B,) int64: the last real token of each row
    pair_labels: Tensor | None = None  # (B,) int64: the label of each pair of texts
    documents: tuple[int, ...] = ()  # the documents that the rows were made of, for reports about a bad batch

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch with all tensors on `device`."""
        moved: dict[str, Any] = {
            f.name: t.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(t := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Loss:
    """The loss as sums, never as means.

    The loop divides each sum by its count over the whole global batch, so neither micro-batches, padding nor the number
    of processes change the gradient. Keys are those of Batch.counts; all tensors have the shape ()."""

    sums: dict[str, Tensor]  # the terms that are minimised, with graph
    hits: dict[str, Tensor]  # numbers of right predictions, without graph; empty where nothing is right or wrong
    nats: dict[str, Tensor]  # negative log-likelihood, without graph; other than the sums if labels are smoothed


class Objective(Protocol):
    """What is learnt, as pure functions."""

    # Whether examples of the next step may be prepared before this step has changed the weights. They may not where the
    # model itself writes the texts that it learns from.
    read_ahead: ClassVar[bool] = True

    def prepare(self, example: dict, rng: Any) -> dict:
        """Makes every random choice about one example."""
        ...

    def length(self, example: dict) -> int:
        """Returns the length, in tokens, of the row that a prepared example becomes."""
        ...

    def collate(self, examples: list[dict], multiple: int = 1) -> Batch:
        """Returns a batch of the prepared examples: rows are padded to a `multiple` of tokens, and what the loss sums
        over is counted."""
        ...

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Returns the loss of the model on a batch."""
        ...
