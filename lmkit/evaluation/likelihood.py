"""Scores how likely a model finds continuations of contexts: what multiple-choice and cloze benchmarks ask.

A decoder reads the context before the continuation. Of an encoder-decoder the encoder reads it, and the decoder begins
anew. An encoder gives the pseudo-log-likelihood of the continuation (`masked_lm`), with the context before it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmkit.base.errors import UserError
from lmkit.base.order import by_length
from lmkit.evaluation.masked_lm import maskable_words, token_log_probs
from lmkit.evaluation.scoring import BATCH_TOKENS, Tally, check_losses, labels_at, score_rows
from lmkit.generation.slots import Slots
from lmkit.model.transformer import Transformer
from lmkit.objectives.collating import padded
from lmkit.objectives.seq2seq import Seq2Seq, parallel
from lmkit.text.tokenizer import Tokenizer

SHARED = 16  # tokens that a context must have so that reading it once is worth it


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
    """A context that several questions share, as those of the choices of a task do, is read once."""
    sharing, scores = dict[tuple[int, ...], list[int]](), dict[int, Likelihood]()
    for number, question in enumerate(questions):
        sharing.setdefault(tuple(question.context), []).append(number)
    widths = {c: len(c) + max(len(questions[n].continuation) for n in numbers) for c, numbers in sharing.items()}
    fits = lambda c: len(sharing[c]) > 1 and len(c) > SHARED and widths[c] <= model.config.context + 1
    # The keys of longrope depend on the length of the whole text, so they cannot be shared.
    shared = [c for c in sharing if fits(c)] if not model.config.long_from else []
    for group in by_length(shared, lambda c: len(sharing[c]) * widths[c], batch_tokens):
        numbers = [n for c in group for n in sharing[c]]
        slots = Slots(model)
        slots.add(len(group), max(widths[c] for c in group))
        slots.read(0, [list(c[:-1]) for c in group])
        slots.take([row for row, c in enumerate(group) for _ in sharing[c]])
        rests = [[questions[n].context[-1], *questions[n].continuation[:-1]] for n in numbers]
        scores |= zip(
            numbers, _at_ends(model, slots.read(0, rests), rests, [questions[n] for n in numbers]), strict=True
        )
    reads = {
        n: [*questions[n].context, *questions[n].continuation][-(model.config.context + 1) : -1]
        for c in sharing.keys() - set(shared) for n in sharing[c]
    }  # fmt: skip
    device = model.embedding.weight.device
    for numbers in by_length(reads, lambda n: len(reads[n]), batch_tokens):
        rows = [reads[n] for n in numbers]
        # Padding is on the right, where a causal model does not look, so no mask is needed and the fast kernel can run.
        states = model(padded([np.array(row) for row in rows], 0).to(device))
        scores |= zip(numbers, _at_ends(model, states, rows, [questions[n] for n in numbers]), strict=True)
    return [scores[number] for number in range(len(questions))]


def _at_ends(
    model: Transformer, states: Tensor, rows: Sequence[list[int]], questions: Sequence[Question]
) -> list[Likelihood]:
    """Returns the likelihoods of continuations that states (B, T, D) predict at the ends of the rows."""
    sizes = [len(question.continuation) for question in questions]
    at = [(i, len(row) - size + j) for i, (row, size) in enumerate(zip(rows, sizes, strict=True)) for j in range(size)]
    labels = torch.tensor([token for question in questions for token in question.continuation], device=states.device)
    nats, hits = labels_at(model, states[tuple(torch.tensor(at, device=states.device).T)], labels)
    ends = np.cumsum(sizes)[:-1]
    parts = zip(np.split(nats, ends), np.split(hits, ends), strict=True)
    return [Likelihood(-float(a.sum()), bool(b.all())) for a, b in parts]


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
