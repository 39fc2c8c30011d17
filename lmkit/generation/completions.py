"""What is written for a request, how it begins, and how long it may become."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from lmkit.base.errors import UserError
from lmkit.generation.sampling import SamplingConfig
from lmkit.model.transformer import Transformer


@dataclass
class Completion:
    """One continuation of one prompt, or one text written from a source; it is filled in while it is written."""

    row: int  # its number among all completions
    sample: int  # its number among those of the same prompt
    prompt: list[int]  # a decoder's prompt, with BOS; an encoder-decoder's source, with control tokens
    limit: int  # the largest number of new tokens
    ids: list[int] = field(default_factory=list)  # new tokens, with the end token if there is one
    logprobs: list[float] = field(default_factory=list)  # nats, as the model predicts, before temperature and filters
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)  # the likeliest tokens, if asked for
    finish: str = ""  # stop: end token or stop string; length: max_tokens or context; cancelled; "": not finished
    text: str = ""  # text of the new tokens, up to a stop string; only with a tokenizer
    restored: str = ""  # the source with written spans in the place of its sentinels, if any; only with a tokenizer


@dataclass(frozen=True)
class Opening:
    """How the decoder of an encoder-decoder begins. The names in transformers' configuration are in brackets."""

    start: int  # the token that is read before anything is written (decoder_start_token_id)
    forced: int | None = None  # the first token that is written, whatever the model predicts (forced_bos_token_id)
    never: tuple[int, ...] = ()  # tokens that are never written (bad_words_ids of one token each)


def settled(config: SamplingConfig, opening: Opening | None, never: Iterable[int] = ()) -> SamplingConfig:
    """Returns `config` with the rules of an opening among its rules. never: more tokens that are never written."""
    forced = None if opening is None else opening.forced
    never = (*config.rules.never, *never, *(opening.never if opening else ()))
    return replace(config, rules=replace(config.rules, never=never, forced_first=forced))


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
