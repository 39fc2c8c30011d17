"""Predict masked tokens (BERT, Devlin et al. 2019), alone or with a question about two texts (ALBERT)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lmkit.data.tokens.rows import SentenceChunks
from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch, Loss, Objective
from lmkit.objectives.collating import kept, padded, within, word_loss
from lmkit.objectives.noise.masking import choose_masked, corrupt_tokens, num_masked
from lmkit.recipe.objectives import MaskedLMConfig


@dataclass(frozen=True)
class MaskableVocabulary:
    """What masking needs to know of a tokenizer."""

    mask: int
    cls: int
    sep: int
    pad: int
    ordinary: np.ndarray  # (n,) ids that stand for text
    maskable: np.ndarray  # (V,) bool: tokens that may be masked
    starts: np.ndarray | None  # (V,) bool: tokens that begin a word; None: every token is a word of its own


@dataclass(frozen=True)
class MaskedLM(Objective):
    """Learns from rows of `lmkit.data.tokens.rows.StreamRows`, or with `pairs` from chunks of `SentenceChunks`."""

    config: MaskedLMConfig
    vocabulary: MaskableVocabulary
    rate: float
    chunks: SentenceChunks | None = None  # the chunks that the second text of a pair is drawn from
    longest: int = 0  # tokens of a pair, control tokens included
    document_masking: bool = False

    def prepare(self, example: dict, rng: np.random.Generator) -> dict:
        """Returns the example with the tokens that the model sees and the labels of those that were masked.

        Every random choice is drawn from `rng`."""
        row = self._pair(example, rng) if self.chunks is not None else dict(example)
        tokens, v, c = row["tokens"], self.vocabulary, self.config
        starts = None if v.starts is None else v.starts[tokens]
        count = num_masked(len(tokens), self.rate, c.most)
        positions = choose_masked(v.maskable[tokens], count, rng, starts, c.max_ngram)
        labels = np.full(len(tokens), IGNORE, np.int64)
        labels[positions] = tokens[positions]
        return row | {"labels": labels, "tokens": corrupt_tokens(tokens, positions, rng, v.mask, v.ordinary, c.split)}

    def _pair(self, example: dict, rng: np.random.Generator) -> dict:
        """Returns the row [CLS] A [SEP] B [SEP] out of a chunk that is cut between two sentences.

        With next_sentence, B is from another document half of the time (label 1, as in BERT). With sentence_order, A
        and B are swapped half of the time (label 1, as in ALBERT)."""
        assert self.chunks is not None
        tokens, room, v = example["tokens"], self.longest - 3, self.vocabulary
        if rng.random() < self.config.short_pairs:
            room = int(rng.integers(2, room + 1))
        cut = int(rng.choice(example["starts"]))
        a, b = tokens[:cut], tokens[cut:]
        changed = bool(rng.random() < 0.5)
        if self.config.pairs == "next_sentence" and changed:
            b = self.chunks.random_other(example["documents"][0], rng)
        a, b = _fit(a, b, room, rng)
        if self.config.pairs == "sentence_order" and changed:
            a, b = b, a
        row = np.concatenate([[v.cls], a, [v.sep], b, [v.sep]])
        types = np.repeat([0, 1], [len(a) + 2, len(b) + 1])
        return {"tokens": row, "types": types, "label": int(changed), "documents": example["documents"]}

    def length(self, example: dict) -> int:
        return len(example["tokens"])

    def collate(self, examples: list[dict], multiple: int = 1) -> Batch:
        rows, labels = [e["tokens"] for e in examples], [e["labels"] for e in examples]
        counts = {"tokens": sum(int((row != IGNORE).sum()) for row in labels)}
        more: dict[str, torch.Tensor] = {}
        if self.document_masking:
            multiple = 1  # all rows are full, so none needs padding
            more["segments"], more["positions"] = within([e["segments"] for e in examples])
        if self.chunks is not None:
            counts["pairs"] = len(examples)
            more["types"] = padded([e["types"] for e in examples], 0, multiple)
            more["pair_labels"] = torch.tensor([e["label"] for e in examples])
        return Batch(
            counts, padded(rows, self.vocabulary.pad, multiple), padded(labels, IGNORE, multiple),
            sum(map(len, rows)), kept(rows, multiple),
            documents=tuple(int(d) for e in examples for d in e["documents"]), **more,
        )  # fmt: skip

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        states = model(batch.tokens, batch.keep, batch.segments, batch.positions, batch.types)
        loss = word_loss(model.word_loss(states, batch.labels))
        if batch.pair_labels is None:
            return loss
        assert model.pairs is not None, "the recipe's check gives pairs a head"
        logits = model.pairs(states).float()
        pairs = F.cross_entropy(logits, batch.pair_labels, reduction="sum")
        hits = (logits.argmax(-1) == batch.pair_labels).sum()
        return Loss(loss.sums | {"pairs": pairs}, loss.hits | {"pairs": hits}, loss.nats | {"pairs": pairs.detach()})


def _fit(a: np.ndarray, b: np.ndarray, room: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns both texts cut to `room` tokens together; neither becomes empty.

    The longer text is cut first, at random ends, as truncate_seq_pair of google-research/bert does it; that function
    removes one token at a time, this one all at once."""
    over = len(a) + len(b) - room
    if over <= 0:
        return a, b
    half = room // 2
    first = len(a) if len(a) <= half else room - len(b) if len(b) <= half else room - half  # an odd token stays with A
    lengths = [first, room - first]
    front = [int(rng.integers(len(t) - n + 1)) if len(t) > n else 0 for t, n in zip((a, b), lengths, strict=True)]
    return a[front[0] : front[0] + lengths[0]], b[front[1] : front[1] + lengths[1]]
