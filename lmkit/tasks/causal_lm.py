"""Predict the next token (GPT, Radford et al. 2018)."""

from dataclasses import dataclass

import numpy as np
import torch

from lmkit.batch import Batch, Loss
from lmkit.model.loss import IGNORE, head_loss
from lmkit.model.transformer import Transformer


@dataclass(frozen=True)
class CausalLM:
    """Three pure functions: `prepare` makes every random choice about one example (here none), `collate` pads and
    counts, `loss` scores."""

    document_masking: bool = False  # packed documents do not see each other

    def prepare(self, example: dict, rng: np.random.Generator) -> dict:
        return example

    def collate(self, examples: list[dict]) -> Batch:
        """examples: rows of `lmkit.data.packing.PackedRows`, all of one length."""
        tokens, labels = (torch.from_numpy(np.stack([e[k] for e in examples])) for k in ("tokens", "labels"))
        counts = {"tokens": int((labels != IGNORE).sum())}
        documents = tuple(int(d) for e in examples for d in e["documents"])
        if not self.document_masking:
            return Batch(counts, tokens, labels, documents=documents)
        segments = np.stack([e["segments"] for e in examples])  # (B, T)
        return Batch(counts, tokens, labels, torch.from_numpy(segments), torch.from_numpy(within(segments)), documents)

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        hidden = model(batch.tokens, segments=batch.segments, positions=batch.positions)
        scores = head_loss(hidden, model.head.weight, batch.labels, model.head.softcap)
        return Loss({"tokens": scores.loss}, {"accuracy": scores.hits})


def within(segments: np.ndarray) -> np.ndarray:
    """Positions counted from the start of each segment: (B, T) segment numbers -> (B, T) int64."""
    index = np.arange(segments.shape[1])[None].repeat(len(segments), 0)
    starts = np.ones_like(segments, dtype=bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
