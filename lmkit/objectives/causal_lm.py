"""Causal language modelling: predict the next token (GPT, Radford et al. 2018)."""

from dataclasses import dataclass

import numpy as np
import torch

from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch, Loss, Objective
from lmkit.objectives.collating import padded, within, word_loss


@dataclass(frozen=True)
class CausalLM(Objective):
    """Learns all tokens of rows of `lmkit.data.tokens.packing.PackedRows`, without any random choice."""

    document_masking: bool = False  # packed documents do not see each other

    def prepare(self, example: dict, rng: np.random.Generator) -> dict:
        return example

    def length(self, example: dict) -> int:
        return len(example["tokens"])

    def collate(self, examples: list[dict], multiple: int = 1) -> Batch:
        tokens, labels = (torch.from_numpy(np.stack([e[k] for e in examples])) for k in ("tokens", "labels"))
        scored = int((labels != IGNORE).sum())
        segments = positions = None
        if self.document_masking:
            segments, positions = within([e["segments"] for e in examples])
        documents = tuple(int(d) for e in examples for d in e["documents"])
        return Batch(
            {"tokens": scored}, tokens, labels, scored, segments=segments, positions=positions, documents=documents
        )

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        return word_loss(model.word_loss(model(batch.tokens, None, batch.segments, batch.positions), batch.labels))


@dataclass(frozen=True)
class PromptedLM(Objective):
    """Learns some tokens of rows that differ in length.

    Examples hold `tokens` and `labels`; labels are already shifted, and IGNORE where a token is not learnt. Padding is
    on the right, where no token sees it."""

    pad: int
    smoothing: float = 0.0

    def prepare(self, example: dict, rng: np.random.Generator) -> dict:
        return example

    def length(self, example: dict) -> int:
        return len(example["tokens"])

    def collate(self, examples: list[dict], multiple: int = 1) -> Batch:
        tokens = padded([e["tokens"] for e in examples], self.pad, multiple)
        labels = padded([e["labels"] for e in examples], IGNORE, multiple)
        documents = tuple(int(d) for e in examples for d in e["documents"])
        read = sum(len(e["tokens"]) for e in examples)
        return Batch({"tokens": int((labels != IGNORE).sum())}, tokens, labels, read, documents=documents)

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        return word_loss(model.word_loss(model(batch.tokens), batch.labels, self.smoothing if model.training else 0.0))
