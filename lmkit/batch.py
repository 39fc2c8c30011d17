"""What a data source hands to a task, and a task hands to the loop."""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Examples by number, stateless and without an order of their own."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


@dataclass(frozen=True)
class Batch:
    """Model inputs and what to score. B rows of T tokens; None where a task has no use for a field."""

    counts: dict[str, int]  # how many things each loss term sums over, known on the CPU: {"tokens": 1900}
    tokens: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64, IGNORE where unscored
    segments: Tensor | None = None  # (B, T) int64: tokens see only their own segment
    positions: Tensor | None = None  # (B, T) int64; None: 0..T-1
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
    padding nor the number of processes change the gradient."""

    sums: dict[str, Tensor]  # keys are those of Batch.counts; () float32 with graph
    hits: dict[str, Tensor]  # metric -> () float32, over the same counts, no graph
