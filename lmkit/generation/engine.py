"""Writes the texts of many requests at once: a decoder continues their prompts, an encoder-decoder answers them.

Shapes: B rows, V vocab_size."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, groupby, islice
from typing import NamedTuple

import numpy as np
import torch

from lmkit.base.order import rng_for
from lmkit.generation.batches import Completion, DecodingBatch, Opening, decoding_batch, room_after
from lmkit.generation.prompts import end_ids, prompt_ids, source_ids
from lmkit.generation.sampling import SamplingConfig, check_logits, choose_tokens
from lmkit.generation.stream import TextStream
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import starts
from lmkit.objectives.noise.spans import restore
from lmkit.text.languages import PairFrame
from lmkit.text.tokenizer import Tokenizer

MAX_ROWS = 64  # rows that are written at a time
MAX_TOKENS = 32_768  # prompt and new tokens of all these rows: limits the cache and the first pass


@dataclass(frozen=True)
class Request:
    """One text that is asked for. The text depends on the request alone, not on others written at the same time."""

    prompt: list[int]  # a decoder's prompt, with BOS; an encoder-decoder's source, with control tokens
    config: SamplingConfig
    eos: frozenset[int] = frozenset()  # tokens that end the text
    sample: int = 0  # its place among the requests for one prompt; randomness follows from the seed and this number
    opening: Opening | None = None  # how the text begins in an encoder-decoder; None for a decoder
    number: int = 1  # the number of the prompt in error messages

    def shared(self) -> tuple[SamplingConfig, Opening | None]:
        """Returns the settings that must be equal in all rows of a batch."""
        return replace(self.config, max_tokens=1, seed=0, stop=()), self.opening


class Event(NamedTuple):
    """A text became one token longer."""

    completion: Completion  # the object that `submit` returned
    token: int
    text: str  # text that became certain with this token, often ""; the last token gives out all that was held back
    finished: bool  # whether this is the last event for this completion


@dataclass
class _Row:
    """A request that waits, or that is already a row of the batch."""

    request: Request
    completion: Completion
    rng: np.random.Generator
    stream: TextStream | None


class Engine:
    """Writes the texts of requests, in the order in which these came, as many at a time as there is room for.

    Callers may submit and cancel between any two steps; the engine decides which texts are written together. The model
    keeps its mode, training or not, and torch's random state does not change."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None = None, max_rows: int = MAX_ROWS):
        """tokenizer: with one, completions have text besides ids, stop strings end them, and ids without a token are
        never written. max_rows: the largest number of texts that are written at a time."""
        self.model, self.tokenizer, self.max_rows = model, tokenizer, max_rows
        self._unused = () if tokenizer is None else tokenizer.unused_ids(model.config.vocab_size)
        self._submitted = count()
        self._waiting, self._rows = list[_Row](), list[_Row]()
        self._batch: DecodingBatch | None = None  # the batch of `_rows`, from the time their prompts are read

    @property
    def room(self) -> int:
        """Returns how many more requests the engine can use now.

        Callers with millions of prompts read only so many of them."""
        return 0 if self._rows else max(0, self.max_rows - len(self._waiting))

    def submit(self, request: Request) -> Completion:
        """Asks for a text. Returns its handle, which `step` fills in.

        Raises UserError for a prompt that is empty or leaves no room in the context."""
        limit = room_after(self.model, request.prompt, request.config, request.number)
        completion = Completion(next(self._submitted), request.sample, request.prompt, limit)
        rng = rng_for(request.config.seed, 0, request.sample)
        self._waiting.append(_Row(request, completion, rng, self._stream(request)))
        return completion

    def cancel(self, completion: Completion) -> None:
        """Ends a text where it is, without a further event. A text that is finished stays as it is."""
        if not completion.finish:
            completion.finish = "cancelled"
            self._waiting = [row for row in self._waiting if row.completion is not completion]
            self._let_go()

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Writes one more token of each text in the batch, or of the next batch. Returns an event for each of them.

        There are no events where all texts are finished. Raises ModelError for logits that are not finite."""
        with self.model.evaluating():
            if self._batch:
                logits = self._batch.step(torch.tensor([row.completion.ids[-1] for row in self._rows]))  # (B, V)
            elif self._waiting:
                self._batch = self._next_batch()
                logits = self._batch.prefill()
            else:
                return []
        scores = self._batch.scores(logits, [row.completion.ids for row in self._rows])
        chosen = choose_tokens(scores, self._rows[0].request.config, [row.rng for row in self._rows])  # (B,)
        logprobs = logits.log_softmax(-1).cpu().gather(1, chosen[:, None]).squeeze(1)
        check_logits(logprobs)
        new = zip(self._rows, chosen.tolist(), logprobs.tolist(), strict=True)
        events = [self._append(row, token, logprob) for row, token, logprob in new]
        self._let_go()
        return events

    def _stream(self, request: Request) -> TextStream | None:
        """Returns the stream that turns the request's tokens into text.

        The text of an encoder-decoder does not continue the prompt, and shows sentinels."""
        if self.tokenizer is None:
            return None
        if request.opening is None:
            return TextStream(self.tokenizer, request.prompt, request.config.stop)
        return TextStream(self.tokenizer.with_gaps, [], request.config.stop)

    def _next_batch(self) -> DecodingBatch:
        """Moves the first waiting requests into `_rows`, as many as can be in one batch. Returns their batch."""
        _, alike = next(groupby(islice(self._waiting, self.max_rows), key=lambda row: row.request.shared()))
        rows = list(alike)
        longest = max(len(row.request.prompt) + row.completion.limit for row in rows)
        rows = rows[: max(1, MAX_TOKENS // longest)]
        self._rows, self._waiting = rows, self._waiting[len(rows) :]
        config, opening = rows[0].request.shared()
        rules = replace(config.rules, never=(*config.rules.never, *self._unused))
        return decoding_batch(self.model, [row.completion for row in rows], replace(config, rules=rules), opening)

    def _append(self, row: _Row, token: int, logprob: float) -> Event:
        """Adds a token to a text, and ends the text if the token, a stop string or the limit ends it."""
        completion, stream, piece = row.completion, row.stream, ""
        completion.ids.append(token)
        completion.logprobs.append(logprob)
        stopped = token in row.request.eos
        if stream and not stopped:
            piece = stream.push(token)
            stopped = stream.stopped
        if stopped or len(completion.ids) == completion.limit:
            completion.finish = "stop" if stopped else "length"
            piece += stream.finish() if stream else ""
        if self.tokenizer and row.request.opening and completion.finish:
            completion.restored = _restored(self.tokenizer, completion)
        completion.text += piece
        return Event(completion, token, piece, bool(completion.finish))

    def _let_go(self) -> None:
        """Removes finished rows from the batch, and the batch with its caches when no row is left."""
        live = [i for i, row in enumerate(self._rows) if not row.completion.finish]
        if self._batch and 0 < len(live) < len(self._rows):
            self._batch.keep_only(live)
        self._rows = [self._rows[i] for i in live]
        self._batch = self._batch if live else None


def _restored(tokenizer: Tokenizer, completion: Completion) -> str:
    """Returns the source with the written spans in the place of its sentinels; "" where the source has none."""
    if not set(tokenizer.sentinels) & set(completion.prompt):
        return ""
    sentinels, end = np.array(tokenizer.sentinels), -1 if tokenizer.eos_id is None else tokenizer.eos_id
    return tokenizer.decode(restore(np.array(completion.prompt), np.array(completion.ids), sentinels, end).tolist())


# ---------------------------------------------------------------- many prompts, one configuration


def generate(
    model: Transformer, prompts: Iterable[list[int]], config: SamplingConfig, eos: frozenset[int] = frozenset(),
    samples: int = 1, on_text: Callable[[Completion, str], None] | None = None, tokenizer: Tokenizer | None = None,
    opening: Opening | None = None,
) -> Iterator[Completion]:  # fmt: skip
    """Yields `samples` completions of each prompt, in order. It reads prompts as it needs them, so there may be
    millions.

    tokenizer, opening: as for `Engine` and `Request`. on_text: is called with new text while it is written; texts are
    then written one after the other. Raises what `Engine` raises."""
    engine = Engine(model, tokenizer, 1 if on_text else MAX_ROWS)
    requests = (
        Request(prompt, config, eos, sample, opening, number)
        for number, prompt in enumerate(prompts, 1)
        for sample in range(samples)
    )
    in_order = deque[Completion]()
    while True:
        in_order.extend(map(engine.submit, islice(requests, engine.room)))
        if not in_order:
            return
        for event in engine.step():
            if on_text and event.text:
                on_text(event.completion, event.text)
        while in_order and in_order[0].finish:
            yield in_order.popleft()


def complete(
    model: Transformer, tokenizer: Tokenizer, prompts: Iterable[str], config: SamplingConfig, eos: frozenset[int],
    samples: int = 1, on_text: Callable[[Completion, str], None] | None = None, opening: Opening | None = None,
    frame: PairFrame | None = None, control_tokens: bool = False,
) -> Iterator[Completion]:  # fmt: skip
    """Does what `generate` does, for prompts that are texts; `prompts.py` says what they may contain.

    frame: the control tokens around an encoder-decoder's sources; None: those of documents. control_tokens: as for
    `prompt_ids`."""
    if opening is None:
        ids = (prompt_ids(tokenizer, prompt, control_tokens) for prompt in prompts)
    else:
        ids = (source_ids(tokenizer, prompt, frame) for prompt in prompts)
    return generate(model, ids, config, eos, samples, on_text, tokenizer, opening)


def sample_text(model: Transformer, tokenizer: Tokenizer, prompt: str, max_tokens: int, seed: int) -> str:
    """Returns a sample of what a model in training writes: `prompt` with one continuation, or an encoder-decoder's
    answer to it.

    The model's mode and torch's random state do not change. Raises UserError for a prompt longer than the context."""
    config, opening = SamplingConfig(max_tokens=max_tokens, temperature=0.8, seed=seed), None
    if model.config.stacks == "encoder_decoder":
        opening = Opening(starts(model.config.family, tokenizer)[0])
    [completion] = complete(model, tokenizer, [prompt], config, end_ids(tokenizer), opening=opening)
    return completion.text if opening else prompt + completion.text
