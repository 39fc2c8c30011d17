"""Completions of many prompts at once: a decoder goes on with them, an encoder-decoder answers them. Shapes: B rows,
V vocab_size."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from lmkit.base.errors import ModelError, UserError
from lmkit.base.order import rng_for
from lmkit.generation.batches import Answers, Completion, Continuations, DecodingBatch, Opening, most_tokens
from lmkit.generation.prompts import end_ids, prompt_ids, source_ids
from lmkit.generation.sampling import SamplingConfig, choose
from lmkit.generation.stream import TextStream
from lmkit.model.transformer import Transformer
from lmkit.objectives.build import starts
from lmkit.objectives.noise.spans import restore
from lmkit.text.tokenizer import Tokenizer

MAX_ROWS = 64  # rows at a time
MAX_TOKENS = 32_768  # prompt and new tokens of all rows at a time: bounds the cache and the first pass


def generate(
    model: Transformer,
    prompts: Iterable[list[int]],
    config: SamplingConfig,
    eos: frozenset[int] = frozenset(),
    samples: int = 1,
    on_token: Callable[[Completion], bool] | None = None,
    max_rows: int = MAX_ROWS,
    opening: Opening | None = None,
) -> Iterator[Completion]:
    """`samples` continuations of each prompt, in order. Prompts are read as they are needed, so there may be millions.

    A continuation follows from the prompt, the seed and its `sample` number, whatever else is in its batch. `on_token`
    is called after each new token other than an end token; True ends that row. The model may be in training mode and
    is afterwards; torch's random state is not touched.

    opening: of an encoder-decoder, and of nothing else; its prompts are what the encoder reads.

    Raises UserError for a prompt that is empty or leaves no room in the context, ModelError for logits that are not
    finite."""
    numbered = enumerate((prompt, sample) for prompt in prompts for sample in range(samples))
    rows = (Completion(i, sample, prompt) for i, (prompt, sample) in numbered)
    waiting = list[Completion]()
    while waiting := waiting + list(islice(rows, max_rows - len(waiting))):
        for row in waiting:
            check_prompt(model, row, 1 + row.row // samples)
        length = max(len(row.prompt) + most_tokens(model, row.prompt, config) for row in waiting)
        size = max(1, MAX_TOKENS // length)
        group, waiting = waiting[:size], waiting[size:]
        with model.evaluating():
            _write(model, group, config, eos, on_token, opening)
        yield from group


def check_prompt(model: Transformer, row: Completion, number: int) -> None:
    c, length = model.config, len(row.prompt)
    if not row.prompt:
        raise UserError(f"prompt {number} has no tokens")
    most = c.context if c.stacks == "encoder_decoder" else c.context - 1
    if length > most and c.positions != "relative":  # whose distances have no end
        found = f"has {length:,} tokens, which {'fills' if length == c.context else 'is beyond'}"
        raise UserError(
            f"prompt {number} {found} the model's context of {c.context:,}\n"
            f"  → shorten it to {most:,} tokens or fewer, control tokens included"
        )


@torch.no_grad()
def _write(
    model: Transformer, rows: list[Completion], config: SamplingConfig, eos: frozenset[int],
    on_token: Callable[[Completion], bool] | None, opening: Opening | None,
) -> None:  # fmt: skip
    """Fill in `rows`; each leaves the batch as soon as it is finished."""
    assert (opening is not None) == (model.config.stacks == "encoder_decoder"), "an encoder-decoder has an `opening`"
    batch: DecodingBatch = (
        Continuations(model, rows, config) if opening is None else Answers(model, rows, config, opening)
    )
    rngs = {row.row: rng_for(config.seed, 0, row.sample) for row in rows}
    logits = batch.prefill()
    while True:
        chosen = choose(
            batch.scores(logits, [row.ids for row in batch.rows]), config, [rngs[row.row] for row in batch.rows]
        )  # (B,)
        logprobs = logits.log_softmax(-1).cpu().gather(1, chosen[:, None]).squeeze(1)
        if logprobs.isnan().any():
            raise ModelError("the model's logits are not finite\n  → its weights are damaged, or its training diverged")
        for row, token, logprob in zip(batch.rows, chosen.tolist(), logprobs.tolist(), strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
            if token in eos or (on_token and on_token(row)):
                row.finish = "stop"
            elif len(row.ids) == most_tokens(model, row.prompt, config):
                row.finish = "length"
        live = [i for i, row in enumerate(batch.rows) if not row.finish]
        if not live:
            return
        if len(live) < len(batch.rows):
            batch.keep_only(live)
        logits = batch.step(chosen[live])


# ---------------------------------------------------------------- text


def complete(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Iterable[str],
    config: SamplingConfig,
    eos: frozenset[int],
    samples: int = 1,
    on_text: Callable[[Completion, str], None] | None = None,
    opening: Opening | None = None,
) -> Iterator[Completion]:
    """`generate` for texts, with stop strings; an id without a token is never written. `on_text` gets new text as it is
    written; rows then come one by one.

    An encoder-decoder's text is a new one, in which sentinels can be seen; see `prompts` for what it may be asked."""
    streams: dict[int, TextStream] = {}

    def stream(row: Completion) -> TextStream:
        if row.row not in streams:
            new = opening is not None
            words, before = (tokenizer.with_gaps, []) if new else (tokenizer, row.prompt)
            streams[row.row] = TextStream(words, before, config.stop)
        return streams[row.row]

    def show(row: Completion, piece: str) -> None:
        if on_text and piece:
            on_text(row, piece)

    def on_token(row: Completion) -> bool:
        show(row, stream(row).push(row.ids[-1]))
        return stream(row).stopped

    unused = tokenizer.unused_ids(model.config.vocab_size)
    config = replace(config, rules=replace(config.rules, never=(*config.rules.never, *unused)))
    ids = ((prompt_ids if opening is None else source_ids)(tokenizer, prompt) for prompt in prompts)
    for row in generate(model, ids, config, eos, samples, on_token, 1 if on_text else MAX_ROWS, opening):
        show(row, stream(row).finish())
        row.text = streams.pop(row.row).text
        if opening is not None:
            row.restored = _restored(tokenizer, row)
        yield row


def _restored(tokenizer: Tokenizer, row: Completion) -> str:
    """The source with the spans that were written in place of its sentinels; "" where it has none."""
    sentinels = np.array(tokenizer.sentinels)
    if not set(tokenizer.sentinels) & set(row.prompt):
        return ""
    end = -1 if tokenizer.eos_id is None else tokenizer.eos_id
    return tokenizer.decode(restore(np.array(row.prompt), np.array(row.ids), sentinels, end).tolist())


def sample_text(model: Transformer, tokenizer: Tokenizer, prompt: str, max_tokens: int, seed: int) -> str:
    """`prompt` and one continuation: how a model in training writes. Leaves its mode and torch's random state alone."""
    config = SamplingConfig(max_tokens=max_tokens, temperature=0.8, seed=seed)
    return prompt + "".join(row.text for row in complete(model, tokenizer, [prompt], config, end_ids(tokenizer)))


def sample_seq2seq(model: Transformer, tokenizer: Tokenizer, text: str, max_tokens: int, seed: int) -> str:
    """What an encoder-decoder in training writes for `text`. Leaves its mode and torch's random state alone.

    Raises UserError for a text longer than the context."""
    config = SamplingConfig(max_tokens=max_tokens, temperature=0.8, seed=seed)
    opening = Opening(starts(model.config.family, tokenizer)[0])
    return "".join(row.text for row in complete(model, tokenizer, [text], config, end_ids(tokenizer), opening=opening))
