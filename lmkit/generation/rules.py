"""The rules of a model's generation_config.json about which tokens may be written next, and which of its settings are
not followed. The rules do the same as transformers' logits processors of the same names."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmkit.base.errors import ModelError

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Rules:
    """Rules about which tokens may be written next. The names in generation_config.json are in brackets.

    Lengths count everything that the writing stack reads: a decoder's prompt, or the start token in an
    encoder-decoder."""

    never: tuple[int, ...] = ()  # tokens that are never written (suppress_tokens; bad_words_ids of one token)
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of several tokens that are never written (bad_words_ids)
    never_first: tuple[int, ...] = ()  # tokens that the first new token may not be (begin_suppress_tokens)
    first_forced: bool = False  # the first new token is fixed, so `never_first` means the second (forced_bos_token_id)
    ends: tuple[int, ...] = ()  # end tokens, not written before a text has its minimal length (eos_token_id)
    min_length: int = 0  # minimal length of a text with its prompt or start token
    min_new_tokens: int = 0  # minimal number of new tokens
    no_repeat_ngram_size: int = 0  # every sequence of n tokens occurs at most once; 0: off
    forced_first: int | None = None  # the first new token (forced_bos_token_id)
    forced_last: int | None = None  # the last token of a text that reaches its limit (forced_eos_token_id)

    def __bool__(self) -> bool:
        return self != Rules(ends=self.ends)

    def apply(
        self, scores: Tensor, texts: Sequence[list[int]], written: Sequence[list[int]], limits: Sequence[int]
    ) -> Tensor:
        """Returns the scores (B, V) with -inf for tokens that may not come next.

        texts: what the writing stack has read in each row; written: the new tokens at the end of these; limits: how
        many new tokens there may be in each row."""
        banned = torch.zeros_like(scores, dtype=torch.bool)
        banned[:, list(self.never)] = True
        for row, (text, new) in enumerate(zip(texts, written, strict=True)):
            if len(text) < self.min_length or len(new) < self.min_new_tokens:
                banned[row, list(self.ends)] = True
            if len(new) == int(self.first_forced):
                banned[row, list(self.never_first)] = True
            banned[row, [*self._repeats(text), *self._completed(text)]] = True
        scores = scores.masked_fill(banned, -math.inf)
        empty = [row for row, new in enumerate(written) if not new]
        full = [row for row, new in enumerate(written) if len(new) + 1 == limits[row]]
        for rows, token in ((full, self.forced_last), (empty, self.forced_first)):
            if token is not None and rows:
                scores[rows] = -math.inf
                scores[rows, token] = 0
        return scores

    def _repeats(self, text: list[int]) -> Iterable[int]:
        """Returns the tokens that would repeat an n-gram of `text`."""
        n = self.no_repeat_ngram_size
        if not n or len(text) < n:
            return []
        last = text[len(text) - n + 1 :]
        return [text[i + n - 1] for i in range(len(text) - n + 1) if text[i : i + n - 1] == last]

    def _completed(self, text: list[int]) -> Iterable[int]:
        """Returns the tokens that would complete a bad word."""
        return [word[-1] for word in self.bad_words if text[len(text) - len(word) + 1 :] == list(word[:-1])]


NO_RULES = Rules()
# Settings that change nothing here: notes about the file, what is returned, and tokens that are read elsewhere.
SILENT = {
    "transformers_version", "_from_model_config", "use_cache", "output_attentions", "output_hidden_states",
    "output_scores", "output_logits", "return_dict_in_generate", "bos_token_id", "eos_token_id", "pad_token_id",
    "decoder_start_token_id", "forced_bos_token_id", "cache_implementation", "num_return_sequences",
}  # fmt: skip
FOLLOWED = {
    "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size", "min_length", "min_new_tokens",
    "forced_eos_token_id",
}  # fmt: skip
# The values with which these settings are off, as in transformers.
OFF: dict[str, Any] = {
    "num_beams": 1, "num_beam_groups": 1, "temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "diversity_penalty": 0.0, "do_sample": False, "top_k": 50,
    "early_stopping": False, "max_length": 20, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "renormalize_logits": False,
    "guidance_scale": None, "encoder_no_repeat_ngram_size": 0, "no_repeat_ngram_size": 0, "min_length": 0,
}  # fmt: skip

GENERATION_KEYS = FOLLOWED | OFF.keys()


def rules_of(
    config: Mapping[str, Any], eos: frozenset[int], vocab_size: int, unused: Iterable[int], where: str
) -> Rules:
    """Returns the rules of `config`, the content of generation_config.json in the folder `where`.

    eos: the tokens that end a text; unused: ids without a token, which are never written. Raises ModelError for a value
    of the wrong kind."""
    number = lambda key: config.get(key) or 0
    counts = {key: number(key) for key in ("no_repeat_ngram_size", "min_length", "min_new_tokens")}
    tokens = {key: config.get(key) or [] for key in ("suppress_tokens", "begin_suppress_tokens")}
    for key, value in (counts | tokens).items():
        listed = value if isinstance(value, list) else [value]
        if (key in tokens) != isinstance(value, list) or not all(type(v) is int and v >= 0 for v in listed):
            kind = "a list of tokens' ids" if key in tokens else "a whole number"
            raise ModelError(f"{where}/{GENERATION_CONFIG}: {key}: {value!r} is not {kind}")
    words = [tuple(word) for word in config.get("bad_words_ids") or [] if word and list(word) != sorted(eos)]
    ends = config.get("forced_eos_token_id")
    forced = ends if isinstance(ends, list) else [] if ends is None else [ends]
    inside = lambda ids: tuple(i for i in ids if i < vocab_size)
    return Rules(
        never=inside([*unused, *tokens["suppress_tokens"], *(w[0] for w in words if len(w) == 1 and w[0] not in eos)]),
        bad_words=tuple(w for w in words if len(w) > 1 and w[-1] < vocab_size),
        never_first=inside(tokens["begin_suppress_tokens"]),
        first_forced=config.get("forced_bos_token_id") is not None, ends=inside(sorted(eos)), **counts,
        forced_last=next(iter(inside(forced)), None),
    )  # fmt: skip


def with_settings(ids: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the generation_config.json of a new checkpoint: `ids`, which follow from its tokenizer, changed by the
    settings in `chosen`."""
    suppressed = {*(ids.get("suppress_tokens") or ()), *(chosen.get("suppress_tokens") or ())}
    merged = {k: v for k, v in ids.items() if k != "_from_model_config"} | dict(chosen)
    return merged | ({"suppress_tokens": sorted(suppressed)} if suppressed else {})


def not_followed(config: Mapping[str, Any], more: Iterable[str] = ()) -> list[str]:
    """Returns the settings of a generation_config.json that are on and that lmkit does not follow, as `key=value`.

    more: keys that the caller follows besides the rules."""
    return settings_on(config, {*FOLLOWED, *more})


def settings_on(config: Mapping[str, Any], but: Collection[str]) -> list[str]:
    """Returns the settings of a generation_config.json that change what is written, as `key=value`, without those in
    `but`."""
    on = {key: value for key, value in sorted(config.items()) if value not in (None, []) and value != OFF.get(key)}
    return [f"{key}={value}" for key, value in on.items() if key not in SILENT and key not in but]
