"""Chooses the next token. Filters do the same as transformers' logits processors of the same names, in the same order:
repetition penalty, temperature, top-k, top-p, min-p, typical. Presence and frequency penalties are those of vLLM.

Shapes: B rows, V vocab_size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmkit.base.errors import ModelError, UserError
from lmkit.generation.rules import NO_RULES, Rules


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen, and where a text ends. Raises UserError for a value outside its range."""

    max_tokens: int = 128  # new tokens; the context may end a text earlier
    temperature: float = 1.0  # 0: always the likeliest token
    top_k: int = 0  # only the k likeliest tokens; 0: all
    top_p: float = 1.0  # only the likeliest tokens that together have this probability
    min_p: float = 0.0  # only tokens with at least this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # divides positive and multiplies negative logits of tokens seen; 1: off
    typical_p: float = 1.0  # only the tokens closest to the expected surprise that together have this probability
    presence_penalty: float = 0.0  # taken from the logits of tokens that are written
    frequency_penalty: float = 0.0  # taken from the logits of tokens for each time that they are written
    logit_bias: tuple[tuple[int, float], ...] = ()  # tokens, and what is added to their logits
    top_logprobs: int = 0  # the likeliest tokens whose log-probabilities are noted for every new token
    seed: int = 0
    stop: tuple[str, ...] = ()  # strings that end a completion, and are not part of it
    rules: Rules = NO_RULES  # the model's own rules

    def __post_init__(self) -> None:
        allowed = {
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "temperature": (0 <= self.temperature < math.inf, "0 (the likeliest token) or more; 0.7 to 1 is usual"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, up to 1 (off)"),
            "min_p": (0 <= self.min_p <= 1, "0 (off) to 1"),
            "typical_p": (0 < self.typical_p <= 1, "above 0, up to 1 (off)"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "a number; 0 is off, -2 to 2 are usual"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "a number; 0 is off, -2 to 2 are usual"),
            "logit_bias": (all(i >= 0 for i, _ in self.logit_bias), "pairs of a token's id and a number"),
            "top_logprobs": (self.top_logprobs >= 0, "0 (none) or more"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0; 1 is off, 1.1 is usual"),
            "seed": (self.seed >= 0, "0 or more"),
            "stop": (all(self.stop), "texts of at least one character"),
        }
        wrong = [
            f"{k} {getattr(self, k)!r} is out of range\n  allowed: {say}" for k, (ok, say) in allowed.items() if not ok
        ]
        if wrong:
            raise UserError("\n".join(wrong))


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Returns the logits (B, V), with lower ones for the tokens in `seen`, (B, V) bool (Keskar et al. 2019, CTRL)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def adjusted(
    logits: Tensor, config: SamplingConfig, read: Sequence[list[int]], written: Sequence[list[int]],
    limits: Sequence[int],
) -> Tensor:  # fmt: skip
    """Returns the logits (B, V) with penalties, biases and rules applied, for temperature and filters.

    read: all that the stack which writes has read in each row, so not a source; written: the new tokens at the end of
    these; limits: how many new tokens there may be in each row."""
    if config.repetition_penalty != 1:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for row, text in enumerate(read):
            seen[row, text] = True
        logits = penalise(logits, seen, config.repetition_penalty)
    if config.presence_penalty or config.frequency_penalty:
        ids = [torch.tensor(new, dtype=torch.long, device=logits.device) for new in written]
        counts = torch.stack([torch.bincount(new, minlength=logits.size(1)) for new in ids])
        logits = logits - config.frequency_penalty * counts - config.presence_penalty * (counts > 0)
    if config.logit_bias:
        tokens, biases = zip(*config.logit_bias, strict=True)
        at = torch.tensor(tokens, device=logits.device)
        logits = logits.index_add(1, at, torch.tensor(biases, device=logits.device).expand(len(logits), -1))
    return config.rules.apply(logits, read, written, limits) if config.rules else logits


def warp(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Returns the logits (B, V) divided by the temperature, which is above 0, and -inf for tokens that are filtered
    out."""
    # The largest becomes 0 first, so that a tiny temperature gives -inf and never inf - inf; 1e-40 is 0 in float32.
    x = (logits - logits.amax(-1, keepdim=True)) / max(config.temperature, 1e-30)
    if config.top_k:
        x = x.masked_fill(x < x.topk(min(config.top_k, x.size(-1))).values[:, -1:], -math.inf)
    if config.top_p < 1:
        ordered, index = x.sort(dim=-1)  # smallest first
        dropped = ordered.softmax(-1).cumsum(-1) <= 1 - config.top_p
        dropped[:, -1] = False
        x = x.masked_fill(dropped.scatter(1, index, dropped), -math.inf)
    if config.min_p:
        probs = x.softmax(-1)
        x = x.masked_fill(probs < config.min_p * probs.amax(-1, keepdim=True), -math.inf)
    if config.typical_p < 1:
        x = _typical(x, config.typical_p)
    return x


def _typical(logits: Tensor, share: float) -> Tensor:
    """Returns the logits (B, V) of the tokens whose surprise is closest to the entropy, which together have at least
    this share of the probability (Meister et al. 2023, Locally Typical Sampling); -inf for the others."""
    surprise = -logits.log_softmax(-1)
    entropy = (surprise.exp().reciprocal() * surprise).nansum(-1, keepdim=True)
    index = (surprise - entropy).abs().argsort(-1)
    before = logits.gather(1, index).softmax(-1).cumsum(-1) >= share
    dropped = before.roll(1, -1)
    dropped[:, 0] = False
    return logits.masked_fill(dropped.scatter(1, index, dropped), -math.inf)


def choose_tokens(logits: Tensor, config: SamplingConfig, rngs: Sequence[np.random.Generator]) -> Tensor:
    """Returns the next token of each row, (B,) int64 on the CPU, from penalised logits (B, V).

    Each row draws from its own generator in `rngs`. The method is the Gumbel-max trick: probability divided by
    exponential noise. Rounding, which differs with the batch, can then change the choice only where the two best tokens
    are almost equal; with a running sum over the vocabulary it could do so at the border of any token. Numbers are
    float64, since float32 noise is 0 once in 10^7 draws, and a token of probability 0 would be chosen."""
    if config.temperature == 0:
        return logits.argmax(-1).cpu()
    probs = warp(logits, config).cpu().double().softmax(-1)
    noise = np.stack([rng.standard_exponential(probs.size(1)) for rng in rngs])
    return (probs / torch.from_numpy(noise)).argmax(-1)


def check_logits(numbers: Tensor) -> None:
    """Raises ModelError where one of a model's numbers is NaN."""
    if bool(numbers.isnan().any()):
        raise ModelError("the model's logits are not finite\n  → its weights are damaged, or its training diverged")
