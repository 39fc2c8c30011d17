"""What objectives share: rows become tensors, scores become a loss."""

import numpy as np
import torch
from torch import Tensor

from lmkit.base.order import rounded_up
from lmkit.model.loss import TokenScores
from lmkit.objectives.batch import Loss


def word_loss(scores: TokenScores) -> Loss:
    """Returns the loss of a task whose only term is the prediction of words."""
    return Loss({"tokens": scores.loss}, {"tokens": scores.hits}, {"tokens": scores.nats})


def padded(rows: list[np.ndarray], fill: int, multiple: int = 1) -> Tensor:
    """Returns the rows as (B, T) int64, filled up on the right to the longest row, rounded up to a `multiple`."""
    out = np.full((len(rows), rounded_up(max(map(len, rows)), multiple)), fill, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def kept(rows: list[np.ndarray], multiple: int = 1) -> Tensor | None:
    """Returns (B, T) bool, False on the padding that `padded` adds.

    It is None where there is no padding, so that the fast attention kernel can run."""
    lengths = torch.tensor([len(row) for row in rows])
    width = rounded_up(int(lengths.max()), multiple)
    return None if bool((lengths == width).all()) else torch.arange(width) < lengths[:, None]


def within(rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Returns the segment numbers of rows of one length, and positions that count from the start of each segment.

    Both are (B, T) int64."""
    segments = np.stack(rows)
    index = np.arange(segments.shape[1])[None].repeat(len(segments), 0)
    starts = np.ones_like(segments, dtype=bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return torch.from_numpy(segments), torch.from_numpy(index - np.maximum.accumulate(np.where(starts, index, 0), 1))
