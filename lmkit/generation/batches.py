"""Batches of texts that are written together, one token each at a time, with caches of all that can be used again.

Shapes: B rows, P longest prompt, S longest source, V vocab_size."""

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
    """One continuation of one prompt, or one text written from a source; it is filled in while it is written."""

    row: int  # its number among all completions
    sample: int  # its number among those of the same prompt
    prompt: list[int]  # a decoder's prompt, with BOS; an encoder-decoder's source, with control tokens
    limit: int  # the largest number of new tokens
    ids: list[int] = field(default_factory=list)  # new tokens, with the end token if there is one
    logprobs: list[float] = field(default_factory=list)  # nats, as the model predicts, before temperature and filters
    finish: str = ""  # stop: end token or stop string; length: max_tokens or context; cancelled; "": not finished
    text: str = ""  # text of the new tokens, up to a stop string; only with a tokenizer
    restored: str = ""  # the source with written spans in the place of its sentinels, if any; only with a tokenizer


@dataclass(frozen=True)
class Opening:
    """How the decoder of an encoder-decoder begins. The names in transformers' configuration are in brackets."""

    start: int  # the token that is read before anything is written (decoder_start_token_id)
    forced: int | None = None  # the first token that is written, whatever the model predicts (forced_bos_token_id)
    never: tuple[int, ...] = ()  # tokens that are never written (bad_words_ids of one token each)


def room_after(model: Transformer, prompt: list[int], config: SamplingConfig, number: int) -> int:
    """Returns how many tokens can be written.

    The context of a decoder holds prompt and text, that of an encoder-decoder only the text. T5's relative positions
    have no limit. With `longrope`, a text that begins within the original context ends with it. Raises UserError for a
    prompt that is empty or leaves no room; messages call it by its `number`."""
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
    limit = min(config.max_tokens, c.context if apart else c.context - length)
    if c.long_from and length <= c.long_from:
        # beyond it all keys turn otherwise, those in the cache as well; the last token is never read
        limit = min(limit, c.long_from - length + 1)
    return limit


class DecodingBatch(ABC):
    """Rows that are not finished yet, and the caches of the stack that writes them."""

    caches: list[Cache]

    def __init__(self, model: Transformer, rows: list[Completion], config: SamplingConfig):
        self.model, self.rows, self.penalty, self.rules = model, rows, config.repetition_penalty, config.rules
        self.device, vocab = model.embedding.weight.device, model.config.vocab_size
        self.room = max(row.limit for row in rows)
        # The tokens that the penalty counts: all that the writing stack reads, as in transformers, so not the source.
        self.seen = None if self.penalty == 1 else torch.zeros(len(rows), vocab, dtype=torch.bool, device=self.device)

    @abstractmethod
    def prefill(self) -> Tensor:
        """Reads the prompts, and returns the logits (B, V) of the first new token."""

    @abstractmethod
    def _append(self, tokens: Tensor) -> Tensor:
        """Reads one more token of each row, (B, 1), and returns the logits (B, V) of the next."""

    def step(self, tokens: Tensor) -> Tensor:
        """Appends one token to each row, (B,), and returns the logits (B, V) of the next."""
        tokens = tokens.to(self.device)[:, None]
        self._mark(tokens)
        return self._append(tokens)

    def scores(self, logits: Tensor, written: list[list[int]]) -> Tensor:
        """Returns the logits (B, V) with repetition penalty and rules applied, for temperature and filters.

        written: the new tokens of each row; only the rules use them."""
        scores = logits if self.seen is None else penalise(logits, self.seen, self.penalty)
        if not self.rules:
            return scores
        texts = [self._begun(row) + new for row, new in zip(self.rows, written, strict=True)]
        return self.rules.apply(scores, texts, written, [row.limit for row in self.rows])

    def _begun(self, row: Completion) -> list[int]:
        """Returns what the stack that writes has read before the first new token."""
        return row.prompt

    def keep_only(self, live: list[int]) -> Tensor:
        """Keeps only the rows `live`, in that order; a row that is named several times is copied.

        Returns these numbers as a tensor (n,)."""
        index = torch.tensor(live, device=self.device)
        self.rows = [self.rows[i] for i in live]
        self.seen = None if self.seen is None else self.seen[index]
        for cache in self.caches:
            cache.keys, cache.values = (_rows(x, index, cache.length) for x in (cache.keys, cache.values))
        return index

    def reorder(self, parents: Tensor, shared: int) -> None:
        """Makes row i continue what row parents[i] has written; parents: (B,).

        Both have the same prompt, so the first `shared` columns of their caches are equal and are not copied."""
        self.seen = None if self.seen is None else self.seen[parents]
        for cache in self.caches:
            for x in (cache.keys, cache.values):
                written = x[:, :, shared : cache.length]
                written.copy_(written.index_select(0, parents))

    def _mark(self, tokens: Tensor) -> None:
        """Notes that the rows have seen these tokens, (B, n)."""
        if self.seen is not None:
            self.seen.scatter_(1, tokens, True)


def _rows(x: Tensor, index: Tensor, length: int) -> Tensor:
    """Returns the rows `index` of a cache x (B, K, S_max, E).

    Only the first `length` columns, which are filled, are copied, since most of the others may never be used."""
    out = x.new_empty(len(index), *x.shape[1:])
    out[:, :, :length] = x[:, :, :length].index_select(0, index)
    return out


class Continuations(DecodingBatch):
    """The rows of a decoder, padded on the left so that the last tokens of all prompts are in one column."""

    def __init__(self, model: Transformer, rows: list[Completion], config: SamplingConfig):
        super().__init__(model, rows, config)
        width = max(len(row.prompt) for row in rows)
        padded = [[0] * (width - len(row.prompt)) + row.prompt for row in rows]
        self.tokens = torch.tensor(padded, device=self.device)  # (B, P)
        self.pads = torch.tensor([width - len(row.prompt) for row in rows], device=self.device)  # (B,)
        self.keep = torch.arange(width + self.room, device=self.device) >= self.pads[:, None]  # (B, P + room)
        self.ragged = bool(self.pads.any())
        self.caches = model.new_caches(len(rows), width + self.room)
        # Padding counts as the last token of the row, which has been seen anyway.
        self._mark(torch.where(self.keep[:, :width], self.tokens, self.tokens[:, -1:]))

    def prefill(self) -> Tensor:
        if not self.ragged:  # without a mask, the fast causal kernel can run
            return self._append(self.tokens)
        width = self.tokens.size(1)
        positions = (torch.arange(width, device=self.device) - self.pads[:, None]).clamp(min=0)  # (B, P)
        # Padding is a segment of its own, so that it sees itself; a position that sees nothing would become NaN.
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
    """The rows of an encoder-decoder.

    The encoder reads each source once, even if the batch holds several samples of it, and keys and values for the
    decoder are computed once. The decoder's rows all begin in one column."""

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
        if self.opening.forced is not None and self.caches[0].length == 1:  # only the start token has been read
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
    """Returns the batch of a decoder's rows, or with an `opening` of an encoder-decoder's rows."""
    assert (opening is not None) == (model.config.stacks == "encoder_decoder"), "an encoder-decoder has an `opening`"
    return Continuations(model, rows, config) if opening is None else Answers(model, rows, config, opening)
