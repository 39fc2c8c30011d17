"""Scores how well a model predicts text: loss, perplexity and bits per byte, with intervals over documents.

Loss and perplexity compare only models with the same tokenizer. Bits per byte compares any models, as long as there are
no unknown tokens, which are easy to predict and stand for bytes that the model never read.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from lmkit.base.errors import DataError, UserError
from lmkit.base.order import by_length
from lmkit.evaluation.intervals import Estimate, ratio
from lmkit.evaluation.scoring import BATCH_TOKENS, BATCHES, Tally, check_losses, label_scores
from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.text.tokenizer import Tokenizer


class Window(NamedTuple):
    document: int
    tokens: list[int]  # the tokens that the model reads, and one more to predict
    first: int  # the first prediction that is scored; those before it are only context


@dataclass
class Scores(Tally):
    """Scores of predicted text. `tokens` counts all tokens except the first of each document."""

    context: int = 0
    stride: int = 0
    bytes: list[int] = field(default_factory=list)  # bytes of each document in UTF-8
    numbers: list[int] = field(default_factory=list)  # of each document among the texts; those without tokens are none

    def part(self, documents: Sequence[int]) -> "Scores":
        """Returns the scores of some of the documents."""
        pick = lambda column: [column[i] for i in documents]
        return replace(self, nats=pick(self.nats), tokens=pick(self.tokens), bytes=pick(self.bytes))

    @property
    def bits_per_byte(self) -> Estimate | None:
        """Returns bits per byte; None where the tokenizer dropped text, whose bytes the model never predicted."""
        if self.unspelt:
            return None
        return ratio([nats / math.log(2) for nats in self.nats], self.bytes)


def windows(document: int, ids: list[int], context: int, stride: int) -> Iterator[Window]:
    """Yields windows in which every token except the first is scored exactly once.

    A window reads `context` tokens and predicts the token after each. The next window begins `stride` tokens later, and
    only its last `stride` predictions, which are new, are scored."""
    begin, done = 0, 0  # `done` predictions are scored
    while done < len(ids) - 1:
        end = min(begin + context, len(ids) - 1)
        yield Window(document, ids[begin : end + 1], done - begin)
        begin, done = begin + stride, end


@torch.no_grad()
def window_scores(model: Transformer, group: list[Window]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns for each window what `label_scores` returns for its scored tokens."""
    device, longest = model.embedding.weight.device, max(len(w.tokens) for w in group) - 1
    padding = [longest + 1 - len(w.tokens) for w in group]
    tokens = torch.tensor(
        [w.tokens + [0] * n for w, n in zip(group, padding, strict=True)], device=device
    )  # (B, T + 1)
    labels = tokens[:, 1:].clone()
    for row, w in enumerate(group):
        labels[row, : w.first], labels[row, len(w.tokens) - 1 :] = IGNORE, IGNORE
    # Padding is on the right, where a causal model does not look, so no mask is needed and the fast kernel can run.
    return label_scores(model, model(tokens[:, :-1]), labels)


def evaluate_perplexity(
    model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Scores:  # fmt: skip
    """Scores documents as training saw them: between BOS and EOS, which is predicted too (unless it is also BOS).

    model: in eval mode. stride: tokens between the starts of windows, from 1 to the context, which is the default and
    the fastest. A smaller stride gives every token more context, so scores with different strides cannot be compared.
    Texts are read as they are needed.

    Raises UserError for a stride out of range, DataError where there is no text, and ModelError for losses that are not
    finite."""
    context = model.config.context
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(f"stride {stride} is out of range\n  allowed: 1 to {context}, the model's context")
    scores, waiting = Scores(context=context, stride=stride), list[Window]()
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    start, end = [] if bos is None else [bos], [] if eos in (None, bos) else [eos]
    rows = max(1, batch_tokens // context)
    for number, text in enumerate(texts):
        ids = [*start, *tokenizer.encode(text), *end]
        if len(ids) < 2:
            continue
        waiting += windows(scores.open(), ids, context, stride)
        scores.bytes.append(len(text.encode()))
        scores.numbers.append(number)
        scores.unknown += tokenizer.count_unknown(ids)
        scores.unspelt += tokenizer.count_unspelt([text])
        if len(waiting) >= BATCHES * rows:
            _score(model, waiting, batch_tokens, scores)
            waiting.clear()
    _score(model, waiting, batch_tokens, scores)
    if not scores.nats:
        raise DataError("there is no text to score")
    check_losses(scores.nats)
    return scores


def _score(model: Transformer, waiting: list[Window], batch_tokens: int, scores: Scores) -> None:
    for group in by_length(waiting, lambda w: len(w.tokens), batch_tokens):
        for window, (nats, hits) in zip(group, window_scores(model, group), strict=True):
            scores.add(window.document, nats, hits)
