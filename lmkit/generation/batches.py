"""Rows written together, one token each at a time, with all kept that need not be computed again. Shapes: B rows,
P longest prompt, S longest source, V vocab_size."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lmkit.base.errors import UserError
from lmkit.generation.sampling import SamplingConfig, penalise
from lmkit.model.layers import Cache
from lmkit.model.transformer import Transformer
from lmkit.objectives.collating import kept, padded


@dataclass
class Completion:
    """One continuation of one prompt, or one text written from a source; filled in while it is written."""

    row: int  # its place among all completions
    sample: int  # its place among those of the same prompt
    prompt: list[int]  # what the model reads first: with BOS; of an encoder-decoder the source, framed
    limit: int  # new tokens that there may be
    ids: list[int] = field(default_factory=list)  # new tokens, with the end token if one came
    logprobs: list[float] = field(default_factory=list)  # nats, by the model itself: before temperature and filters
    finish: str = ""  # stop: an end token or stop string; length: max_tokens or the context; cancelled; "": goes on
    text: str = ""  # of the new tokens, up to a stop string; only where a tokenizer is at hand
    restored: str = ""  # the source with what was written in place of its sentinels, if it has any; likewise


@dataclass(frozen=True)
class Opening:
    """How the decoder beside an encoder begins. The names in transformers' configuration are in brackets."""

    start: int  # read before anything is written (decoder_start_token_id)
    forced: int | None = None  # the first token written, whatever the model says (forced_bos_token_id)
    never: tuple[int, ...] = ()  # tokens that are not written (bad_words_ids of one token each)


def room_after(model: Transformer, prompt: list[int], config: SamplingConfig, number: int) -> int:
    """How many tokens can be written: the context holds prompt and text, beside an encoder the text alone. T5's
    distances have no end.

    Raises UserError for a prompt that is empty or leaves no room; `number` is its name."""
    c, length = model.config, len(prompt)
    if not prompt:
        raise UserError(f"prompt {number} has no tokens")
    if c.positions == "relative":
        return config.max_tokens
    apart = c.stacks == "encoder_decoder"
    most = c.context if apart else c.context - 1
    if length > most:
        state = f"has {length:,} tokens, which {'fills' if length == c.context else 'is beyond'}"
        raise UserError(
            f"prompt {number} {state} the model's context of {c.context:,}\n"
            f"  → shorten it to {most:,} tokens or fewer, control tokens included"
        )
    return min(config.max_tokens, c.context if apart else c.context - length)


class DecodingBatch(ABC):
    """Rows that are not finished yet, and the caches of the stack that writes them."""

    caches: list[Cache]

    def __init__(self, model: Transformer, rows: list[Completion], config: SamplingConfig):
        self.model, self.rows, self.penalty, self.rules = model, rows, config.repetition_penalty, config.rules
        self.device, vocab = model.embedding.weight.device, model.config.vocab_size
        self.room = max(row.limit for row in rows)
        # tokens the penalty counts: in transformers that is all the writing stack reads, so not an encoder's source
        self.seen = None if self.penalty == 1 else torch.zeros(len(rows), vocab, dtype=torch.bool, device=self.device)

    @abstractmethod
    def prefill(self) -> Tensor:
        """Read the prompts -> logits (B, V) of the first new token."""

    @abstractmethod
    def _append(self, tokens: Tensor) -> Tensor:
        """Read one more token of each row, (B, 1) -> logits (B, V)."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, (B,) -> logits (B, V) of the next."""
        tokens = tokens.to(self.device)[:, None]
        self._mark(tokens)
        return self._append(tokens)

    def scores(self, logits: Tensor, written: list[list[int]]) -> Tensor:
        """Logits (B, V) under the rules that temperature and filters then work on.

        written: the new tokens of each row; only the model's own rules look at them."""
        scores = logits if self.seen is None else penalise(logits, self.seen, self.penalty)
        if not self.rules:
            return scores
        texts = [self._begun(row) + new for row, new in zip(self.rows, written, strict=True)]
        return self.rules.apply(scores, texts, written, [row.limit for row in self.rows])

    def _begun(self, row: Completion) -> list[int]:
        """What the stack that writes has read before the first new token."""
        return row.prompt

    def keep_only(self, live: list[int]) -> Tensor:
        """Let the other rows go; one that is named several times goes on in several -> the index (n,) of those kept."""
        index = torch.tensor(live, device=self.device)
        self.rows = [self.rows[i] for i in live]
        self.seen = None if self.seen is None else self.seen[index]
        for cache in self.caches:
            cache.keys, cache.values = (_rows(x, index, cache.length) for x in (cache.keys, cache.values))
        return index

    def reorder(self, parents: Tensor, shared: int) -> None:
        """Row i goes on from what row parents[i] has written, (B,); both have one prompt, and so `shared` first columns
        of their caches alike, which are left alone."""
        self.seen = None if self.seen is None else self.seen[parents]
        for cache in self.caches:
            for x in (cache.keys, cache.values):
                written = x[:, :, shared : cache.length]
                written.copy_(written.index_select(0, parents))

    def _mark(self, tokens: Tensor) -> None:
        """tokens: (B, n), now seen."""
        if self.seen is not None:
            self.seen.scatter_(1, tokens, True)


def _rows(x: Tensor, index: Tensor, length: int) -> Tensor:
    """Rows of a cache (B, K, S_max, E), of which `length` columns are filled: most of its room may never be touched."""
    out = x.new_empty(len(index), *x.shape[1:])
    out[:, :, :length] = x[:, :, :length].index_select(0, index)
    return out


class Continuations(DecodingBatch):
    """A decoder's rows, padded on the left so that the last token of all stands in one column."""

    def __init__(self, model: Transformer, rows: list[Completion], config: SamplingConfig):
        super().__init__(model, rows, config)
        width = max(len(row.prompt) for row in rows)
        padded = [[0] * (width - len(row.prompt)) + row.prompt for row in rows]
        self.tokens = torch.tensor(padded, device=self.device)  # (B, P)
        self.pads = torch.tensor([width - len(row.prompt) for row in rows], device=self.device)  # (B,)
        self.keep = torch.arange(width + self.room, device=self.device) >= self.pads[:, None]  # (B, P + room)
        self.ragged = bool(self.pads.any())
        self.caches = model.new_caches(len(rows), width + self.room)
        # a padded place counts as the row's last token, which has been seen
        self._mark(torch.where(self.keep[:, :width], self.tokens, self.tokens[:, -1:]))

    def prefill(self) -> Tensor:
        if not self.ragged:  # without masks the fast causal kernel runs
            return self._append(self.tokens)
        width = self.tokens.size(1)
        positions = (torch.arange(width, device=self.device) - self.pads[:, None]).clamp(min=0)  # (B, P)
        # Padding is a segment of its own: it sees itself, where a row that sees nothing would become NaN.
        segments = self.keep[:, :width].long()
        states = self.model(self.tokens, segments=segments, positions=positions, caches=self.caches)
        return self.model.head(states[:, -1])

    def _append(self, tokens: Tensor) -> Tensor:
        if not self.ragged:
            return self.model.head(self.model(tokens, caches=self.caches)[:, -1])
        column = self.caches[0].length
        keep, positions = self.keep[:, : column + 1], (column - self.pads)[:, None]
        return self.model.head(self.model(tokens, keep=keep, positions=positions, caches=self.caches)[:, -1])

    def keep_only(self, live: list[int]) -> Tensor:
        index = super().keep_only(live)
        self.pads, self.keep = self.pads[index], self.keep[index]
        return index


class Answers(DecodingBatch):
    """An encoder-decoder's rows. The encoder reads each source once, however many samples it has in the batch, and what
    the decoder looks up of it is projected once; the decoder's rows all begin in one column."""

    def __init__(self, model: Transformer, rows: list[Completion], config: SamplingConfig, opening: Opening):
        super().__init__(model, rows, config)
        self.opening = opening
        sources = list(dict.fromkeys(tuple(row.prompt) for row in rows))
        read = [np.array(source) for source in sources]
        keep = None if (mask := kept(read)) is None else mask.to(self.device)  # (n, S)
        states = model.encode(padded(read, 0).to(self.device), keep)
        index = torch.tensor([sources.index(tuple(row.prompt)) for row in rows], device=self.device)  # (B,)
        self.memory = [(k.index_select(0, index), v.index_select(0, index)) for k, v in model.read(states)]
        self.keep = None if keep is None else keep[index]
        self.caches = model.new_caches(len(rows), self.room)

    def prefill(self) -> Tensor:
        return self.step(torch.full((len(self.rows),), self.opening.start))

    def _append(self, tokens: Tensor) -> Tensor:
        return self.model.head(self.model.decode(tokens, self.memory, self.keep, self.caches)[:, -1])

    def _begun(self, row: Completion) -> list[int]:
        return [self.opening.start]

    def scores(self, logits: Tensor, written: list[list[int]]) -> Tensor:
        scores = super().scores(logits, written)
        if self.opening.never:
            scores = scores.index_fill(1, torch.tensor(self.opening.never, device=self.device), -math.inf)
        if self.opening.forced is not None and self.caches[0].length == 1:  # the start has been read, nothing written
            scores = torch.full_like(scores, -math.inf)
            scores[:, self.opening.forced] = 0
        return scores

    def keep_only(self, live: list[int]) -> Tensor:
        index = super().keep_only(live)
        self.memory = [(k.index_select(0, index), v.index_select(0, index)) for k, v in self.memory]
        self.keep = None if self.keep is None else self.keep[index]
        return index


def decoding_batch(
    model: Transformer, rows: list[Completion], config: SamplingConfig, opening: Opening | None
) -> DecodingBatch:
    """Rows of a decoder, or with an `opening` those of an encoder-decoder."""
    assert (opening is not None) == (model.config.stacks == "encoder_decoder"), "an encoder-decoder has an `opening`"
    return Continuations(model, rows, config) if opening is None else Answers(model, rows, config, opening)
