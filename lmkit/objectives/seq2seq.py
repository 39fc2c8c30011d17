"""Sequence-to-sequence objectives: translation, and the denoisers of T5, UL2 and BART.

The model learns to write one text from another; denoisers make both out of one text."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch, Loss, Objective
from lmkit.objectives.collating import kept, padded, word_loss
from lmkit.objectives.noise import infilling, spans
from lmkit.recipe.objectives import Denoiser, DenoisingConfig

Pair = tuple[np.ndarray, np.ndarray]  # ids of source and target, control tokens included


def parallel(example: dict, rng: np.random.Generator) -> Pair:
    """Returns the pair that a row of `lmkit.data.tokens.rows.ParallelRows` already is."""
    return example["source"], example["target"]


@dataclass(frozen=True)
class SpanCorruption:
    """Applies one of `denoisers`, chosen at random, to each row of raw text."""

    denoisers: tuple[Denoiser, ...]
    modes: tuple[int | None, ...]  # the id of each denoiser's mode token
    sentinels: np.ndarray  # ids of the sentinels, in order of use
    eos: int

    def __call__(self, example: dict, rng: np.random.Generator) -> Pair:
        n = int(rng.integers(len(self.denoisers))) if len(self.denoisers) > 1 else 0
        d, tokens = self.denoisers[n], example["tokens"]
        noise = (
            spans.prefix(len(tokens), rng, d.density)
            if d.prefix
            else spans.noise_mask(len(tokens), d.density, d.mean_span, rng)
        )
        source, target = spans.cut_spans(tokens, noise, self.sentinels, self.eos)
        mode = self.modes[n]
        return (source if mode is None else np.insert(source, 0, mode)), target


@dataclass(frozen=True)
class Denoising:
    """Applies BART's noise to rows of text. The first and last token of a row are control tokens, and stay."""

    config: DenoisingConfig
    ends: np.ndarray  # (V,) bool, tokens that end a sentence
    maskable: np.ndarray  # (V,) bool, tokens that may be masked
    mask: int

    def __call__(self, example: dict, rng: np.random.Generator) -> Pair:
        c, tokens = self.config, example["tokens"]
        inner = tokens[1:-1]
        if rng.random() < c.permute:
            inner = infilling.permute_sentences(inner, self.ends[inner], rng)
        if c.delete:
            inner = infilling.delete(inner, c.delete, rng)
        whole = inner
        while c.rate:
            inner = infilling.infill(whole, c.rate, c.mean_span, self.mask, rng, self.maskable[whole])
            if len(inner) < len(tokens) - 1:  # spans of no length add masks, rarely too many: then draw again
                break
        if rng.random() < c.rotate:
            inner = infilling.rotate_document(inner, rng)
        return np.concatenate([tokens[:1], inner, tokens[-1:]]), tokens


@dataclass(frozen=True)
class Seq2Seq(Objective):
    """The decoder reads `start` and the target without its last token, and predicts the target."""

    make: Callable[[dict, np.random.Generator], Pair]
    start: int
    pad: int
    smoothing: float = 0.0
    row_tokens: int | None = None  # how many tokens a row counts as; None: those of its source and target

    def prepare(self, example: dict, rng: np.random.Generator) -> dict:
        source, target = self.make(example, rng)
        return {"source": source, "target": target, "documents": example["documents"]}

    def length(self, example: dict) -> int:
        return max(len(example["source"]), len(example["target"]))

    def collate(self, examples: list[dict], multiple: int = 1) -> Batch:
        sources, targets = [e["source"] for e in examples], [e["target"] for e in examples]
        labels = padded(targets, IGNORE, multiple)
        # The decoder reads the labels moved by one position. Where a label is IGNORE, it reads padding, which no
        # scored position sees.
        read = torch.cat((torch.full_like(labels[:, :1], self.start), labels[:, :-1]), 1).where(
            labels != IGNORE, self.pad
        )
        return Batch(
            {"tokens": sum(map(len, targets))}, padded(sources, self.pad, multiple), labels,
            self.row_tokens * len(examples) if self.row_tokens else sum(map(len, sources + targets)),
            kept(sources, multiple), targets=read,
            documents=tuple(int(d) for e in examples for d in e["documents"]),
        )  # fmt: skip

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        states = model(batch.tokens, batch.keep, targets=batch.targets)
        return word_loss(model.word_loss(states, batch.labels, self.smoothing if model.training else 0.0))
