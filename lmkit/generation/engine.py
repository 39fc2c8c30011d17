"""Writes the texts of many requests at once: a decoder continues their prompts, an encoder-decoder answers them.

Shapes: B rows, V vocab_size."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmkit.base.order import rng_for
from lmkit.generation.completions import Completion, Opening, room_after, settled
from lmkit.generation.grammar import Grammar, Matcher
from lmkit.generation.prompts import end_ids, prompt_ids, source_ids
from lmkit.generation.sampling import SamplingConfig, adjusted, check_logits, choose_tokens
from lmkit.generation.slots import AnswerSlots, Slots, slots_of
from lmkit.generation.speculation import GUESSES, Drafter
from lmkit.generation.stream import TextStream
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import starts
from lmkit.objectives.noise.spans import restore
from lmkit.text.languages import PairFrame
from lmkit.text.tokenizer import Tokenizer

MAX_ROWS = 64  # rows that are written at a time
MAX_TOKENS = 32_768  # tokens that the rows of the caches have room for together: limits the memory
CHUNK = 512  # tokens of a prompt that are read between two tokens of the other texts
READ_TOKENS = 4096  # tokens of several short prompts, padding included, that are read at a time
SHARED = 16  # first tokens that two prompts must have in common so that one copies them from the other


@dataclass(frozen=True)
class Request:
    """One text that is asked for. The text depends on the request alone, not on others written at the same time."""

    prompt: list[int]  # a decoder's prompt, with BOS; an encoder-decoder's source, with control tokens
    config: SamplingConfig
    eos: frozenset[int] = frozenset()  # tokens that end the text
    sample: int = 0  # its place among the requests for one prompt; randomness follows from the seed and this number
    opening: Opening | None = None  # how the text begins in an encoder-decoder; None for a decoder
    grammar: Grammar | None = None  # what the text has to match
    number: int = 1  # the number of the prompt in error messages


class Event(NamedTuple):
    """A text became one token longer."""

    completion: Completion  # the object that `submit` returned
    token: int
    place: int  # the number of the token among the new ones, from 0
    text: str  # text that became certain with this token, often ""; the last token gives out all that was held back
    finished: bool  # whether this is the last event for this completion


@dataclass
class _Row:
    """A request that waits, or that has a slot."""

    request: Request
    config: SamplingConfig  # how its tokens are chosen; one object for all rows that can choose together
    completion: Completion
    rng: np.random.Generator
    stream: TextStream | None
    drafter: Drafter | None
    matcher: Matcher | None

    @property
    def begun(self) -> list[int]:
        """Returns what the stack that writes reads before the first new token."""
        return self.request.prompt if self.request.opening is None else [self.request.opening.start]

    @property
    def room(self) -> int:
        """Returns the largest number of tokens that the stack which writes has to hold."""
        return len(self.begun) + self.completion.limit


class Engine:
    """Writes the texts of requests, as many at a time as there is room for. They come and go between any two tokens.

    Long prompts are read a part at a time, beside the texts that are being written; what a prompt has in common with
    one that is in the caches is copied. The model keeps its mode, training or not, and torch's random state does not
    change."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer | None = None, max_rows: int = MAX_ROWS,
        drafter: Callable[[], Drafter] | None = None, keep: int = 0,
    ):  # fmt: skip
        """tokenizer: with one, completions have text besides ids, stop strings end them, and ids without a token are
        never written. max_rows: the largest number of texts that are written at a time. drafter: makes what guesses
        the next tokens of a text; the texts are the same without it. keep: the number of finished texts that stay
        in the caches, so that a conversation is not read again for its next turn."""
        self.model, self.tokenizer, self.max_rows, self._drafter = model, tokenizer, max_rows, drafter
        self._unused = () if tokenizer is None else tokenizer.unused_ids(model.config.vocab_size)
        self._chunk = model.config.context if model.config.long_from else CHUNK  # longrope reads a prompt as a whole
        self._submitted = count()
        self._past, self._past_texts, self._keep = slots_of(model), deque[tuple[int, list[int]]](), keep
        # The row of each slot: first those that are being written, then those whose prompts are not read to the end.
        self._waiting, self._rows, self._slots = deque[_Row](), list[_Row](), slots_of(model)

    @property
    def room(self) -> int:
        """Returns how many more requests the engine can use now.

        Callers with millions of prompts read only so many of them."""
        return max(0, self.max_rows - len(self._rows) - len(self._waiting))

    def submit(self, request: Request) -> Completion:
        """Asks for a text. Returns its handle, which `step` fills in.

        Raises UserError for a prompt that is empty or leaves no room in the context."""
        limit = room_after(self.model, request.prompt, request.config, request.number)
        completion = Completion(next(self._submitted), request.sample, request.prompt, limit)
        rng = rng_for(request.config.seed, 0, request.sample)
        config = replace(settled(request.config, request.opening, self._unused), max_tokens=1, seed=0, stop=())
        others = (row.config for row in (*self._rows, *self._waiting))
        config = next((other for other in others if other == config), config)
        drafter = self._drafter() if self._drafter else None
        matcher = request.grammar.matcher() if request.grammar else None
        self._waiting.append(_Row(request, config, completion, rng, self._stream(request), drafter, matcher))
        return completion

    def cancel(self, completion: Completion) -> None:
        """Ends a text where it is, without a further event. A text that is finished stays as it is."""
        if not completion.finish:
            completion.finish = "cancelled"
            self._waiting = deque(row for row in self._waiting if row.completion is not completion)
            self._let_go()

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Writes one more token of each text whose prompt is read, and reads more of the other prompts. Returns an
        event for each token.

        Without events no text is left, or a long prompt is being read: see `busy`. Raises ModelError for logits that
        are not finite."""
        with self.model.evaluating():
            self._admit()
            writing = self._writing
            events = self._write(self._rows[:writing]) if writing else []
            if parts := self._next_parts(writing):
                states = self._slots.read(writing, parts)
                if self._slots.lengths[writing] == len(self._rows[writing].begun):
                    last = torch.tensor([len(part) - 1 for part in parts], device=states.device)
                    logits = self.model.head(states[torch.arange(len(parts)), last])  # (B, V)
                    events += self._choose(self._rows[writing : writing + len(parts)], logits)
        self._let_go()
        return events

    def _write(self, rows: list[_Row]) -> list[Event]:
        """Reads the last token of each of the first rows, and what is guessed to follow. Returns the events of the next
        tokens: one for each row, and one for each right guess."""
        guesses = [self._guessed(row) for row in rows]
        before = self._slots.lengths[: len(rows)]
        states = self._slots.read(
            0, [[row.completion.ids[-1], *guess] for row, guess in zip(rows, guesses, strict=True)]
        )
        logits = self.model.head(states)  # (B, T, V)
        events, alike = list[Event](), list(range(len(rows)))
        for place in range(logits.size(1)):
            events += self._choose([rows[i] for i in alike], logits[alike, place])
            for i in alike:
                self._slots.lengths[i] = before[i] + 1 + place
            right = lambda i, place=place: guesses[i][place : place + 1] == rows[i].completion.ids[-1:]
            alike = [i for i in alike if right(i) and not rows[i].completion.finish]
            if not alike:
                break
        return events

    def _guessed(self, row: _Row) -> list[int]:
        most = min(GUESSES, row.completion.limit - len(row.completion.ids) - 1)
        return row.drafter.propose([*row.begun, *row.completion.ids], most) if row.drafter and most > 0 else []

    @property
    def busy(self) -> bool:
        """Returns whether any text is not finished."""
        return bool(self._rows or self._waiting)

    @property
    def _writing(self) -> int:
        """Returns the number of rows whose prompts are read."""
        return sum(bool(row.completion.ids) for row in self._rows)

    def _stream(self, request: Request) -> TextStream | None:
        """Returns the stream that turns the request's tokens into text.

        The text of an encoder-decoder does not continue the prompt, and shows sentinels."""
        if self.tokenizer is None:
            return None
        if request.opening is None:
            return TextStream(self.tokenizer, request.prompt, request.config.stop)
        return TextStream(self.tokenizer.with_gaps, [], request.config.stop)

    def _admit(self) -> None:
        """Gives slots to the first waiting requests, as many as there is room for."""
        new, later, widest = list[_Row](), list[_Row](), max((row.room for row in self._rows), default=0)
        while self._waiting and len(self._rows) + len(new) < self.max_rows:
            row, taken = self._waiting[0], len(self._rows) + len(new)
            wider = max(widest, row.room, len(row.request.prompt))
            if taken and (taken + 1) * wider > MAX_TOKENS:
                break
            self._waiting.popleft()
            held, unread = self._held(row)[0], (*self._rows[self._writing :], *new)
            if any(_common(row.begun[:-1], other.begun) > held for other in unread):
                later.append(row)  # it waits until that prompt is read, and then copies what they have in common
            else:
                new, widest = [*new, row], wider
        self._waiting.extendleft(reversed(later))
        if not new:
            return
        new.sort(key=lambda row: len(row.begun))  # so that prompts read together hold little padding
        self._slots.add(len(new), widest)
        if isinstance(self._slots, AnswerSlots):
            self._slots.read_sources([row.request.prompt for row in new])
        for row in new:
            length, slots, slot = self._held(row)
            self._rows.append(row)
            if length:
                self._slots.share(slots, slot, len(self._rows) - 1, length)

    @property
    def _shares(self) -> bool:
        """Returns whether texts with a common beginning have the same keys there: not with longrope, where keys depend
        on the length of the whole text, and not in answers, where they depend on the source."""
        return not self.model.config.long_from and not isinstance(self._slots, AnswerSlots)

    def _held(self, new: _Row) -> tuple[int, Slots, int]:
        """Returns how many first tokens of a new prompt are in the caches, and the slots and the row that have most.

        The last token is always read, since what follows is predicted from there."""
        prompt, held = new.begun[:-1], (0, self._slots, 0)
        if not self._shares:
            return held
        texts = [
            (self._slots, slot, [*row.begun, *row.completion.ids][:length])
            for slot, (row, length) in enumerate(zip(self._rows, self._slots.lengths, strict=False))
        ]
        texts += [(self._past, slot, text) for slot, text in self._past_texts]
        for slots, slot, text in texts:
            if (length := _common(prompt, text)) > held[0]:
                held = length, slots, slot
        return held

    def _retire(self, slot: int) -> None:
        """Keeps the tokens of a finished text in the place of those that were kept longest ago."""
        row, length = self._rows[slot], self._slots.lengths[slot]
        if not self._keep or not self._shares or length < SHARED:
            return
        if len(self._past_texts) < self._keep:
            place = len(self._past_texts)
            self._past.add(1, length)
        else:
            place = self._past_texts.popleft()[0]
            self._past.add(0, length)
        self._past.share(self._slots, slot, place, length)
        self._past_texts.append((place, [*row.begun, *row.completion.ids][:length]))

    def _next_parts(self, first: int) -> list[list[int]]:
        """Returns what is read next of the rows from number `first` on: all that is left of several short prompts, or
        a part of a long one."""
        parts, widest = list[list[int]](), 0
        for row, length in zip(self._rows[first:], self._slots.lengths[first:], strict=True):
            left = row.begun[length:]
            widest = max(widest, len(left))
            if parts and (len(left) > self._chunk or widest * (len(parts) + 1) > READ_TOKENS):
                break
            parts.append(left[: self._chunk])
            if len(left) > self._chunk:
                break
        return parts

    def _choose(self, rows: list[_Row], logits: Tensor) -> list[Event]:
        """Appends a token to each of the rows, chosen from logits (B, V). Returns their events."""
        logprobs = logits.float().log_softmax(-1)
        events = list[Event]()
        for config in {id(row.config): row.config for row in rows}.values():
            at = [i for i, row in enumerate(rows) if row.config is config]
            alike = [rows[i] for i in at]
            written = [row.completion.ids for row in alike]
            read = [[*row.begun, *row.completion.ids] for row in alike]
            limits = [row.completion.limit for row in alike]
            scores = adjusted(logits[at], config, read, written, limits)
            for i, row in enumerate(alike):
                if row.matcher:
                    scores[i] = scores[i].masked_fill(~row.matcher.allowed().to(scores.device), -math.inf)
            chosen = choose_tokens(scores, config, [row.rng for row in alike])  # (B,)
            chances = logprobs[at].cpu().gather(1, chosen[:, None]).squeeze(1)
            check_logits(chances)
            if config.top_logprobs:
                best = logprobs[at].topk(min(config.top_logprobs, logprobs.size(1)))
                for row, values, tokens in zip(alike, best.values.tolist(), best.indices.tolist(), strict=True):
                    row.completion.alternatives.append(list(zip(tokens, values, strict=True)))
            triples = zip(alike, chosen.tolist(), chances.tolist(), strict=True)
            events += [self._append(row, token, logprob) for row, token, logprob in triples]
        return events

    def _append(self, row: _Row, token: int, logprob: float) -> Event:
        """Adds a token to a text, and ends the text if the token, a stop string or the limit ends it."""
        completion, stream, piece = row.completion, row.stream, ""
        completion.ids.append(token)
        completion.logprobs.append(logprob)
        stopped = token in row.request.eos
        complete = row.matcher.push(token) if row.matcher else False
        if stream and not stopped:
            piece = stream.push(token)
            stopped = stream.stopped
        stopped = stopped or complete
        if stopped or len(completion.ids) == completion.limit:
            completion.finish = "stop" if stopped else "length"
            piece += stream.finish() if stream else ""
        if self.tokenizer and row.request.opening and completion.finish:
            completion.restored = _restored(self.tokenizer, completion)
        completion.text += piece
        return Event(completion, token, len(completion.ids) - 1, piece, bool(completion.finish))

    def _let_go(self) -> None:
        """Takes the slots of finished rows away. Rows that are being written fill the gaps, and the caches go when no
        row is left."""
        live = [i for i, row in enumerate(self._rows) if not row.completion.finish]
        for slot, row in enumerate(self._rows):
            if row.completion.finish:
                self._retire(slot)
        if not live:
            self._rows, self._slots = [], slots_of(self.model) if self._rows else self._slots
        elif len(live) < len(self._rows):
            writing = sum(bool(self._rows[i].completion.ids) for i in live)
            later = [i for i in live[:writing] if i >= writing]
            order = [place if place in live else later.pop() for place in range(writing)] + live[writing:]
            self._rows = [self._rows[i] for i in order]
            self._slots.take(order)


def _common(a: list[int], b: list[int]) -> int:
    """Returns how many first tokens two texts have in common; 0 for fewer than are worth copying."""
    if a[:SHARED] != b[:SHARED]:
        return 0
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return length if length >= SHARED else 0


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
    opening: Opening | None = None, grammar: Grammar | None = None, drafter: Callable[[], Drafter] | None = None,
    engine: "Engine | None" = None,
) -> Iterator[Completion]:  # fmt: skip
    """Yields `samples` completions of each prompt, in order. It reads prompts as it needs them, so there may be
    millions.

    tokenizer, drafter, opening, grammar: as for `Engine` and `Request`. on_text: is called with new text while it is
    written; texts are then written one after the other. engine: one that was made before, and may
    know what the prompts begin with. Raises what `Engine` raises."""
    engine = engine or Engine(model, tokenizer, 1 if on_text else MAX_ROWS, drafter)
    requests = (
        Request(prompt, config, eos, sample, opening, grammar, number)
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
    frame: PairFrame | None = None, control_tokens: bool = False, grammar: Grammar | None = None,
    drafter: Callable[[], Drafter] | None = None,
) -> Iterator[Completion]:  # fmt: skip
    """Does what `generate` does, for prompts that are texts; `prompts.py` says what they may contain.

    frame: the control tokens around an encoder-decoder's sources; None: those of documents. control_tokens: as for
    `prompt_ids`."""
    if opening is None:
        ids = (prompt_ids(tokenizer, prompt, control_tokens) for prompt in prompts)
    else:
        ids = (source_ids(tokenizer, prompt, frame) for prompt in prompts)
    return generate(model, ids, config, eos, samples, on_text, tokenizer, opening, grammar, drafter)


def sample_text(model: Transformer, tokenizer: Tokenizer, prompt: str, max_tokens: int, seed: int) -> str:
    """Returns a sample of what a model in training writes: `prompt` with one continuation, or an encoder-decoder's
    answer to it.

    The model's mode and torch's random state do not change. Raises UserError for a prompt longer than the context."""
    config, opening = SamplingConfig(max_tokens=max_tokens, temperature=0.8, seed=seed), None
    if model.config.stacks == "encoder_decoder":
        opening = Opening(starts(model.config.family, tokenizer)[0])
    [completion] = complete(model, tokenizer, [prompt], config, end_ids(tokenizer), opening=opening)
    return completion.text if opening else prompt + completion.text
