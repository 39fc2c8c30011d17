"""Texts for many requests at once: a decoder goes on with their prompts, an encoder-decoder answers them. Shapes: B
rows, V vocab_size."""

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
from lmkit.generation.sampling import SamplingConfig, check_finite, choose
from lmkit.generation.stream import TextStream
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import starts
from lmkit.objectives.noise.spans import restore
from lmkit.text.tokenizer import Tokenizer

MAX_ROWS = 64  # rows at a time
MAX_TOKENS = 32_768  # prompt and new tokens of all rows at a time: bounds the cache and the first pass


@dataclass(frozen=True)
class Request:
    """One text that is asked for. What is written follows from it alone, whatever else is written at the same time."""

    prompt: list[int]  # what the model reads first: with BOS; of an encoder-decoder the source, framed
    config: SamplingConfig
    eos: frozenset[int] = frozenset()  # tokens that end the text
    sample: int = 0  # its place among the requests for one prompt: tokens are drawn by the seed and this number
    opening: Opening | None = None  # of an encoder-decoder, and of nothing else
    number: int = 1  # of the prompt, in error messages

    def shared(self) -> tuple[SamplingConfig, Opening | None]:
        """What must be equal in all rows of a batch."""
        return replace(self.config, max_tokens=1, seed=0, stop=()), self.opening


class Event(NamedTuple):
    """A text became one token longer."""

    completion: Completion  # as `submit` returned it
    token: int
    text: str  # what became certain with this token, often ""; with the last token all that was held back
    finished: bool  # no event follows for this completion


@dataclass
class _Row:
    """A request that waits, or that is a row of the batch."""

    request: Request
    completion: Completion
    rng: np.random.Generator
    stream: TextStream | None


class Engine:
    """Writes the texts of requests, in the order in which these came, as many at a time as there is room for. Callers
    submit and cancel between any two steps; which texts are written together is the engine's own affair.

    The model may be in training mode and is afterwards; torch's random state is not touched."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None = None, max_rows: int = MAX_ROWS):
        """tokenizer: with one there are texts and not ids alone, stop strings end them, and an id without a token is
        never written. max_rows: texts that are written at a time."""
        self.model, self.tokenizer, self.max_rows = model, tokenizer, max_rows
        self._unused = () if tokenizer is None else tokenizer.unused_ids(model.config.vocab_size)
        self._submitted = count()
        self._waiting, self._rows = list[_Row](), list[_Row]()
        self._batch: DecodingBatch | None = None  # of `_rows`, once the model has read their prompts

    @property
    def room(self) -> int:
        """How many more requests it has a use for now. Who has millions of prompts reads no more of them than that."""
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
        """Ends a text where it is; no event follows. One that is finished stays as it is."""
        if not completion.finish:
            completion.finish = "cancelled"
            self._waiting = [row for row in self._waiting if row.completion is not completion]
            self._let_go()

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Writes one more token of each text whose turn it is. Returns an event for each; none where all texts are
        finished.

        Raises ModelError for logits that are not finite."""
        with self.model.evaluating():
            if self._batch:
                logits = self._batch.step(torch.tensor([row.completion.ids[-1] for row in self._rows]))  # (B, V)
            elif self._waiting:
                self._batch = self._next_batch()
                logits = self._batch.prefill()
            else:
                return []
        scores = self._batch.scores(logits, [row.completion.ids for row in self._rows])
        chosen = choose(scores, self._rows[0].request.config, [row.rng for row in self._rows])  # (B,)
        logprobs = logits.log_softmax(-1).cpu().gather(1, chosen[:, None]).squeeze(1)
        check_finite(logprobs)
        new = zip(self._rows, chosen.tolist(), logprobs.tolist(), strict=True)
        events = [self._append(row, token, logprob) for row, token, logprob in new]
        self._let_go()
        return events

    def _stream(self, request: Request) -> TextStream | None:
        """An encoder-decoder's text is a new one, in which sentinels can be seen."""
        if self.tokenizer is None:
            return None
        if request.opening is None:
            return TextStream(self.tokenizer, request.prompt, request.config.stop)
        return TextStream(self.tokenizer.with_gaps, [], request.config.stop)

    def _next_batch(self) -> DecodingBatch:
        """Moves the first of the requests that wait, as many as may stand in one batch, into `_rows`. Returns their
        batch."""
        _, alike = next(groupby(islice(self._waiting, self.max_rows), key=lambda row: row.request.shared()))
        rows = list(alike)
        longest = max(len(row.request.prompt) + row.completion.limit for row in rows)
        rows = rows[: max(1, MAX_TOKENS // longest)]
        self._rows, self._waiting = rows, self._waiting[len(rows) :]
        config, opening = rows[0].request.shared()
        rules = replace(config.rules, never=(*config.rules.never, *self._unused))
        return decoding_batch(self.model, [row.completion for row in rows], replace(config, rules=rules), opening)

    def _append(self, row: _Row, token: int, logprob: float) -> Event:
        """Adds a token to a text, and ends the text where the token, a stop string or the limit says so."""
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
        """Rows that are finished leave the batch, and its caches go with the last of them."""
        live = [i for i, row in enumerate(self._rows) if not row.completion.finish]
        if self._batch and 0 < len(live) < len(self._rows):
            self._batch.keep_only(live)
        self._rows = [self._rows[i] for i in live]
        self._batch = self._batch if live else None


def _restored(tokenizer: Tokenizer, completion: Completion) -> str:
    """The source with the spans that were written in place of its sentinels; "" where it has none."""
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
    """`samples` continuations of each prompt, in order. Prompts are read as they are needed, so there may be millions.

    tokenizer, opening: as for `Engine` and `Request`. `on_text` gets new text as it is written; texts then come one by
    one. Raises what `Engine` raises."""
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
) -> Iterator[Completion]:  # fmt: skip
    """`generate` for texts; see `prompts` for what an encoder-decoder may be asked."""
    ids = ((prompt_ids if opening is None else source_ids)(tokenizer, prompt) for prompt in prompts)
    return generate(model, ids, config, eos, samples, on_text, tokenizer, opening)


def sample_text(model: Transformer, tokenizer: Tokenizer, prompt: str, max_tokens: int, seed: int) -> str:
    """How a model in training writes: `prompt` and one continuation, or an encoder-decoder's answer to it. Leaves the
    model's mode and torch's random state alone.

    Raises UserError for a prompt longer than the context."""
    config, opening = SamplingConfig(max_tokens=max_tokens, temperature=0.8, seed=seed), None
    if model.config.stacks == "encoder_decoder":
        opening = Opening(starts(model.config.family, tokenizer)[0])
    [completion] = complete(model, tokenizer, [prompt], config, end_ids(tokenizer), opening=opening)
    return completion.text if opening else prompt + completion.text
