"""Labels of texts, of words and of spans: what heads other than the vocabulary's learn. Shapes: B rows, T tokens,
L labels."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmkit.model.heads import TaskHead
from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch, Loss, Objective
from lmkit.objectives.collating import kept, padded


@dataclass(frozen=True)
class InputLayout:
    """How framed texts become a model's inputs. Rows are padded on the right."""

    pad: int
    typed: bool = False  # the model tells the texts of a pair apart
    causal: bool = False  # a decoder alone: no token sees the padding behind it
    start: int | None = None  # what a decoder beside an encoder begins with, before the text once more

    def inputs(self, examples: list[dict], multiple: int) -> dict[str, Any]:
        """Returns the fields of `Batch` that do not depend on the labels. Examples hold `tokens`, and `types` for
        pairs."""
        rows = [e["tokens"] for e in examples]
        tokens = padded(rows, self.pad, multiple)
        typed = self.typed and "types" in examples[0]
        types = padded([e["types"] for e in examples], 0, multiple) if typed else None
        shifted = None
        if self.start is not None:
            shifted = torch.cat((torch.full_like(tokens[:, :1], self.start), tokens[:, :-1]), 1)
        lengths = [len(row) for row in rows]
        return {
            "tokens": tokens, "num_tokens": sum(lengths), "keep": kept(rows, multiple), "types": types,
            "targets": shifted, "at": torch.tensor(lengths) - 1, "documents": tuple(e["row"] for e in examples),
        }  # fmt: skip

    def logits(self, model: Transformer, batch: Batch) -> Tensor:
        """Returns logits (B, L) of texts, or (B, T, L) of tokens."""
        keep = None if self.causal else batch.keep
        states = model(batch.tokens, keep, types=batch.types, targets=batch.targets)
        head = model.head
        assert isinstance(head, TaskHead)
        return head(states, batch.at, batch.keep).float()


class _Framed(Objective):
    layout: InputLayout

    def prepare(self, example: dict, rng: np.random.Generator) -> dict:
        return example

    def length(self, example: dict) -> int:
        return len(example["tokens"])


@dataclass(frozen=True)
class Classify(_Framed):
    """Label whole texts. Examples hold `label`: the number of a class, (L,) 0 and 1 for several, or a float."""

    layout: InputLayout
    kind: Literal["single", "multi", "regression"]
    weights: tuple[float, ...] = ()  # of the classes, 1 on average over rows; (): all 1
    smoothing: float = 0.0

    def collate(self, examples: list[dict], multiple: int = 1) -> Batch:
        dtype = torch.int64 if self.kind == "single" else torch.float32
        labels = torch.tensor(np.array([e["label"] for e in examples]), dtype=dtype)
        return Batch(counts={"rows": len(examples)}, labels=labels, **self.layout.inputs(examples, multiple))

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        logits, labels = self.layout.logits(model, batch), batch.labels
        if self.kind == "regression":  # mean squared error, in units of the head
            unit = getattr(model.head, "unit", None) or 1.0
            loss = F.mse_loss(logits[:, 0] / unit, labels / unit, reduction="sum")
            return Loss({"rows": loss}, {}, {"rows": loss.detach()})
        if self.kind == "multi":
            each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)  # (B,)
            right = ((logits >= 0) == (labels > 0.5)).all(1)  # as `classification.holds`
            return Loss({"rows": each.sum()}, {"rows": right.sum().float()}, {"rows": each.detach().sum()})
        weights = torch.tensor(self.weights, device=logits.device) if self.weights and model.training else None
        loss = _cross_entropy(logits, labels, weights, self.smoothing if model.training else 0.0)
        nats = F.cross_entropy(logits.detach(), labels, reduction="sum")
        return Loss({"rows": loss}, {"rows": (logits.argmax(1) == labels).sum().float()}, {"rows": nats})


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Returns the cross-entropy, summed over rows and smoothed as fairseq does: the share goes to all other classes."""
    spread = smoothing * logits.size(1) / max(logits.size(1) - 1, 1)  # torch's share includes the label itself
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=min(spread, 1.0))
    return (each if weights is None else each * weights[labels]).sum()


@dataclass(frozen=True)
class Tag(_Framed):
    """Label words by their first tokens. Examples hold `labels`, (T,), IGNORE on all other tokens."""

    layout: InputLayout

    def collate(self, examples: list[dict], multiple: int = 1) -> Batch:
        labels = padded([e["labels"] for e in examples], IGNORE, multiple)
        counts = {"words": int((labels != IGNORE).sum())}
        return Batch(counts=counts, labels=labels, **self.layout.inputs(examples, multiple))

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        logits, labels = self.layout.logits(model, batch).flatten(0, 1), batch.labels.flatten()
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        hits = (logits.argmax(1) == labels).sum().float()  # no argmax is IGNORE
        return Loss({"words": loss}, {"words": hits}, {"words": loss.detach()})


@dataclass(frozen=True)
class Span(_Framed):
    """Find where an answer begins and ends. Examples hold `span`, the two tokens; of no answer both are 0, [CLS].

    The loss is the mean of both cross-entropies over the row's tokens (Devlin et al. 2019, 4.2); padding has no part
    in them, so a row's loss does not depend on its batch."""

    layout: InputLayout

    def collate(self, examples: list[dict], multiple: int = 1) -> Batch:
        labels = torch.tensor([e["span"] for e in examples])  # (B, 2)
        return Batch(counts={"windows": len(examples)}, labels=labels, **self.layout.inputs(examples, multiple))

    def logits(self, model: Transformer, batch: Batch) -> Tensor:
        """Returns logits (B, T, 2), -inf on padding."""
        logits = self.layout.logits(model, batch)
        return logits if batch.keep is None else logits.masked_fill(~batch.keep[..., None], float("-inf"))

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        logits = self.logits(model, batch)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum") / 2
        hits = (logits.argmax(1) == batch.labels).all(1).sum().float()
        return Loss({"windows": loss}, {"windows": hits}, {"windows": loss.detach()})
