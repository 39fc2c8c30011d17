"""Scores how likely a model finds continuations of contexts: what multiple-choice and cloze benchmarks ask.

A decoder reads the context before the continuation. Of an encoder-decoder the encoder reads it, and the decoder begins
anew. An encoder gives the pseudo-log-likelihood of the continuation (`masked_lm`), with the context before it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lmkit.base.errors import UserError
from lmkit.base.order import by_length
from lmkit.evaluation.masked_lm import maskable_words, token_log_probs
from lmkit.evaluation.scoring import BATCH_TOKENS, Tally, check_losses, labels_at, score_rows
from lmkit.model.transformer import Transformer
from lmkit.objectives.collating import padded
from lmkit.objectives.seq2seq import Seq2Seq, parallel
from lmkit.text.tokenizer import Tokenizer


class Question(NamedTuple):
    context: list[int]  # of a decoder at least one token
    continuation: list[int]  # at least one token


class Likelihood(NamedTuple):
    log_prob: float  # nats, the sum over the continuation
    greedy: bool  # whether each of its tokens is the likeliest


def likelihoods(
    model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], start: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Likelihood]:  # fmt: skip
    """Returns the likelihood of each continuation, in order. Contexts that are too long lose their beginning.

    start: the token that the decoder of an encoder-decoder starts from. Raises UserError for a continuation longer than
    the model's context, ModelError for losses that are not finite."""
    c = model.config
    room = c.context - 2 if c.stacks == "encoder" else c.context
    longest = max((len(q.continuation) for q in questions), default=0)
    if longest > room and c.positions != "relative":
        raise UserError(
            f"a continuation has {longest:,} tokens, and the model reads {room:,}\n  → take a model of longer context"
        )
    with model.evaluating():
        if c.stacks == "encoder":
            scores = _masked(model, tokenizer, questions, batch_tokens)
        elif c.stacks == "decoder":
            scores = _continued(model, questions, batch_tokens)
        else:
            assert start is not None
            scores = _written(model, questions, start, batch_tokens)
    check_losses([s.log_prob for s in scores])
    return scores


@torch.no_grad()
def _continued(model: Transformer, questions: Sequence[Question], batch_tokens: int) -> list[Likelihood]:
    """Questions that differ in their last token alone, as those of single letters do, share one row."""
    device, sharing = model.embedding.weight.device, dict[tuple[int, ...], list[int]]()
    for number, (context, continuation) in enumerate(questions):
        read = [*context, *continuation][-(model.config.context + 1) : -1]
        sharing.setdefault(tuple(read), []).append(number)
    scores = dict[int, Likelihood]()
    for group in by_length(sharing, len, batch_tokens):
        # Padding is on the right, where a causal model does not look, so no mask is needed and the fast kernel can run.
        states = model(padded([np.array(read) for read in group], 0).to(device))
        numbers = [(row, number) for row, read in enumerate(group) for number in sharing[read]]
        sizes = [len(questions[number].continuation) for _, number in numbers]
        rows = [row for (row, _), size in zip(numbers, sizes, strict=True) for _ in range(size)]
        places = [
            len(group[row]) - size + i for (row, _), size in zip(numbers, sizes, strict=True) for i in range(size)
        ]
        labels = [token for _, number in numbers for token in questions[number].continuation]
        nats, hits = labels_at(model, states[rows, places], torch.tensor(labels, device=device))
        ends = np.cumsum(sizes)[:-1]
        parts = zip(numbers, np.split(nats, ends), np.split(hits, ends), strict=True)
        scores |= {number: Likelihood(-float(a.sum()), bool(b.all())) for (_, number), a, b in parts}
    return [scores[number] for number in range(len(questions))]


def _written(model: Transformer, questions: Sequence[Question], start: int, batch_tokens: int) -> list[Likelihood]:
    tally, most = Tally(), None if model.config.positions == "relative" else model.config.context
    rows = (
        {"source": np.array(q.context[-most:] if most else q.context), "target": np.array(q.continuation),
         "documents": [tally.open()]} for q in questions
    )  # fmt: skip
    score_rows(model, Seq2Seq(parallel, start, pad=0), rows, tally, batch_tokens)
    sums = zip(tally.nats, tally.hits, tally.tokens, strict=True)
    return [Likelihood(-nats, hits == tokens) for nats, hits, tokens in sums]


def _masked(
    model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], batch_tokens: int
) -> list[Likelihood]:
    room = model.config.context - 2
    windows = [np.array([*q.context, *q.continuation][-room:], np.int64) for q in questions]
    firsts = [len(window) - len(q.continuation) for window, q in zip(windows, questions, strict=True)]
    sums, greedy = [0.0] * len(questions), [True] * len(questions)
    for number, _, value, hit in token_log_probs(
        model, maskable_words(model, tokenizer), windows, batch_tokens, firsts
    ):
        sums[number] += value
        greedy[number] &= hit
    return [Likelihood(*pair) for pair in zip(sums, greedy, strict=True)]
