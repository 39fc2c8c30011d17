"""Beam search: writes a few hypotheses for each prompt at once, and returns the best finished one.

It writes the same as transformers' `generate(num_beams=K, do_sample=False)`.
Shapes: n prompts, K hypotheses per prompt (1 before the first token), C candidates per prompt, V vocab_size."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from lmkit.generation.completions import Completion, Opening, room_after, settled
from lmkit.generation.engine import MAX_ROWS, MAX_TOKENS, generate
from lmkit.generation.sampling import SamplingConfig, adjusted, check_logits
from lmkit.generation.slots import AnswerSlots, slots_of
from lmkit.model.transformer import Transformer
from lmkit.recipe.tasks import LengthPenalty


class Hypothesis(NamedTuple):
    """A text that is finished."""

    score: float  # its log-probability divided by the length penalty
    ids: list[int]
    logprobs: list[float]


def beam_search(
    model: Transformer,
    prompts: Iterable[list[int]],
    config: SamplingConfig,
    beam: int,
    penalty: LengthPenalty,
    eos: frozenset[int] = frozenset(),
    opening: Opening | None = None,
    early_stopping: bool = False,
) -> list[Completion]:
    """Returns the best completion of each prompt, in order; `opening` is as for `generate`.

    `config` counts only with `max_tokens`, `rules` and `repetition_penalty`; the latter changes log-probabilities, as
    in transformers' beam search. A hypothesis ends where an end token is among the K best candidates of its prompt, or
    where it reaches its limit. Its score is its log-probability divided by the length penalty; both count the end
    token. A prompt is done when K hypotheses have ended and the best one that goes on would have a lower score than
    each of them if it ended now; with `early_stopping`, as soon as K have ended. A beam of 1 is greedy search, which
    the engine writes; there the repetition penalty changes logits, as in transformers' greedy search.

    Raises what `generate` raises."""
    if beam == 1:
        return _greedy(model, list(prompts), replace(config, temperature=0), eos, opening)
    rows = [Completion(i, 0, prompt, room_after(model, prompt, config, 1 + i)) for i, prompt in enumerate(prompts)]
    waiting = sorted(rows, key=lambda row: len(row.prompt))  # so that a batch holds little padding
    while waiting:
        group = waiting[-MAX_ROWS:]
        length = max(len(row.prompt) + row.limit for row in group)
        group = group[-max(1, MAX_TOKENS // (length * beam)) :]
        waiting = waiting[: -len(group)]
        with model.evaluating():
            _search(model, group, config, min(beam, model.config.vocab_size), penalty, eos, opening, early_stopping)
    return rows


def _greedy(
    model: Transformer, prompts: list[list[int]], config: SamplingConfig, eos: frozenset[int], opening: Opening | None
) -> list[Completion]:
    """Returns the engine's completion of each prompt, in order. It gets the longest first: batches hold little
    padding."""
    longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    written = generate(model, [prompts[i] for i in longest_first], config, eos, opening=opening)
    completions = dict(zip(longest_first, written, strict=True))
    return [replace(completions[i], row=i) for i in range(len(prompts))]


@torch.no_grad()
def _search(
    model: Transformer, rows: list[Completion], config: SamplingConfig, beam: int, penalty: LengthPenalty,
    eos: frozenset[int], opening: Opening | None, early_stopping: bool,
) -> None:  # fmt: skip
    """Fills in `rows`; each leaves the batch as soon as it is finished."""
    config, slots = settled(config, opening), slots_of(model)
    begun = [row.prompt if opening is None else [opening.start] for row in rows]
    shared = min(map(len, begun))
    slots.add(len(rows), max(len(start) + row.limit for start, row in zip(begun, rows, strict=True)))
    if isinstance(slots, AnswerSlots):
        slots.read_sources([row.prompt for row in rows])
    device, ends = slots.device, torch.tensor(sorted(eos), dtype=torch.long, device=slots.device)
    limits = torch.tensor([row.limit for row in rows], device=device)  # (n,)
    ended: list[list[Hypothesis]] = [[] for _ in rows]  # for each prompt, the K best that have ended
    most = beam * max(2, 1 + len(eos))  # among so many candidates, at least K do not end
    states, lasts = slots.read(0, begun), torch.tensor([len(start) - 1 for start in begun], device=device)
    logits = model.head(states[torch.arange(len(rows), device=device), lasts])  # (n * K, V)
    sums = torch.zeros(len(rows), device=device)  # (n * K,)
    ids = torch.empty(len(rows), 0, dtype=torch.long, device=device)  # (n * K, tokens written)
    token_logprobs = torch.empty(len(rows), 0, device=device)  # their log-probabilities
    for length in count(1):
        logprobs = logits.float().log_softmax(-1)
        written = ids.tolist() if config.rules or config.repetition_penalty != 1 else []
        each = len(logprobs) // len(rows)
        read = [begun[i // each] + new for i, new in enumerate(written)]
        scores = adjusted(logprobs, config, read, written, [rows[i // each].limit for i in range(len(written))])
        totals, parents, tokens = _candidates(sums, scores, len(rows), most)  # (n, C)
        check_logits(totals)
        ids = torch.cat((ids[parents], tokens[..., None]), -1)  # (n, C, length)
        token_logprobs = torch.cat((token_logprobs[parents], logprobs[parents, tokens][..., None]), -1)
        stops = torch.isin(tokens, ends) | (limits == length)[:, None]
        worth = totals / divisor(penalty, length)
        for i, j in stops[:, :beam].nonzero().tolist():
            if worth[i, j] > -math.inf:
                ended[i].append(Hypothesis(worth[i, j].item(), ids[i, j].tolist(), token_logprobs[i, j].tolist()))
        picks = stops.long().argsort(dim=1, stable=True)[:, :beam]  # (n, K): the best that do not end
        best = worth.masked_fill(stops, -math.inf).gather(1, picks)[:, 0].tolist()
        live = []
        for i, row in enumerate(rows):
            ended[i] = sorted(ended[i], key=lambda h: -h.score)[:beam]
            full = len(ended[i]) == beam
            if not (full and early_stopping) and best[i] > (ended[i][-1].score if full else -math.inf):
                live.append(i)
            else:
                row.ids, row.logprobs = ended[i][0].ids, ended[i][0].logprobs
                row.finish = "stop" if row.ids[-1] in eos else "length"
        if not live:
            return
        sums = totals.masked_fill(stops, -math.inf)  # in a tiny vocabulary, `picks` may include some that have ended
        sums, parents, tokens = (x.gather(1, picks)[live].flatten() for x in (sums, parents, tokens))
        ids, token_logprobs = (x.take_along_dim(picks[..., None], 1)[live].flatten(0, 1) for x in (ids, token_logprobs))
        # Hypotheses of one prompt have its tokens in common.
        slots.take(parents.tolist(), 0 if len(live) < len(rows) or length == 1 else shared)
        rows, ended, begun = [rows[i] for i in live], [ended[i] for i in live], [begun[i] for i in live]
        limits = limits[live]
        logits = model.head(slots.read(0, [[token] for token in tokens.tolist()])[:, 0])


def _candidates(sums: Tensor, scores: Tensor, prompts: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the best candidates of each prompt, best first, as (n, C) each: their log-probabilities, the hypotheses
    that they continue, and their tokens.

    sums: (n * K,) log-probabilities of all hypotheses; scores: (n * K, V) log-probabilities of one more token."""
    each = min(most, scores.size(1))
    more, tokens = scores.topk(each)  # (n * K, each): no other token can be among the best
    best, flat = (sums[:, None] + more).view(prompts, -1).topk(min(most, more.numel() // prompts))
    first = torch.arange(0, len(sums), len(sums) // prompts, device=sums.device)[:, None]
    return best, first + flat // each, tokens.view(prompts, -1).gather(1, flat)


def divisor(penalty: LengthPenalty, length: int) -> float:
    """Returns the number by which the log-probability of `length` tokens is divided.

    The kind `gnmt` is that of Wu et al. 2016, equation 14."""
    return (length if penalty.kind == "average" else (5 + length) / 6) ** penalty.alpha
