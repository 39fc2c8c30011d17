"""Span corruption: a sentinel takes the place of each span of noise, and the decoder writes these spans.

It follows T5 (Raffel et al. 2020; text-to-text-transfer-transformer t5/data/preprocessors.py). UL2's denoisers (Tay et
al. 2022) use the same functions: R and X are `noise_mask` at other densities and mean spans; S and prefix language
modelling are `prefix`, whose one span is the end of the text. Every function depends only on its arguments and the
generator's state."""

import numpy as np

from lmkit.base.errors import UserError


def corrupted_lengths(raw: int, density: float, mean_span: float) -> tuple[int, int]:
    """Returns the lengths of the inputs and of the targets, in tokens with EOS, that `cut_spans` makes of `raw` tokens.

    The noise is that of `noise_mask`, and `raw` is at least 2. Raises ValueError for a density outside (0, 1) or a mean
    span that is not positive."""
    noise, spans = _counts(raw, density, mean_span)
    return raw - noise + spans + 1, noise + spans + 1


def raw_length(inputs: int, density: float, mean_span: float) -> tuple[int, int]:
    """Returns the largest number of raw tokens whose inputs have at most `inputs` tokens, and the length of their
    targets; rows of that many raw tokens need no padding. raw_length(512, 0.15, 3) is (568, 114).

    T5's random_spans_helper differs in two cases: at density 0.5 it takes one token less where the targets would be
    longer than the inputs, and where the mean span is longer than all of the noise it forgets the one span, and takes
    one or two tokens too many. Raises UserError for fewer inputs than one token, one sentinel and EOS, and ValueError
    as `corrupted_lengths` does."""
    if inputs < 3:
        raise UserError(f"span corruption needs inputs of at least 3 tokens (a token, a sentinel, EOS), not {inputs}")
    raw = 2
    while corrupted_lengths(raw + 1, density, mean_span)[0] <= inputs:
        raw += 1
    return raw, corrupted_lengths(raw, density, mean_span)[1]


def noise_mask(length: int, density: float, mean_span: float, rng: np.random.Generator) -> np.ndarray:
    """Returns a random mask, (length,) bool, True on noise. Where there are fewer than two tokens, there is no noise.

    Spans of text and of noise alternate, text first and noise last, and every such mask is equally likely (T5's
    random_spans_noise_mask). There are round(length * density) tokens of noise, and that number / mean_span, rounded,
    spans of noise; each is at least 1. Raises ValueError for a density outside (0, 1) or a mean span that is not
    positive."""
    if length < 2:
        return np.zeros(length, bool)
    noise, spans = _counts(length, density, mean_span)
    lengths = np.empty(2 * spans, np.int64)
    lengths[::2] = _composition(length - noise, spans, rng)
    lengths[1::2] = _composition(noise, spans, rng)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def prefix(length: int, rng: np.random.Generator, share: float = 0.25) -> np.ndarray:
    """Returns a random mask, (length,) bool, True on one span of noise, which is the end of the text.

    This is UL2's S-denoiser, or prefix language modelling. UL2 gives the mean length of the span, length * share, but
    no distribution. Here the length is uniform around that mean, as widely as both parts keep at least one token; at
    share 0.5 this is T5's prefix-LM, where every cut is equally likely. Where there are fewer than two tokens, there is
    no noise. Raises ValueError for a share outside (0, 1)."""
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, not {share}")
    if length < 2:
        return np.zeros(length, bool)
    sum_of_ends = min(max(round(2 * share * length), 2), 2 * length - 2)  # length of shortest plus longest span
    shortest, longest = max(1, sum_of_ends - (length - 1)), min(length - 1, sum_of_ends - 1)
    return np.arange(length) >= length - rng.integers(shortest, longest, endpoint=True)


def cut_spans(
    tokens: np.ndarray, noise: np.ndarray, sentinels: np.ndarray, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs and targets. The inputs are the text with a sentinel in the place of each span of noise, then EOS;
    the targets are each span after its sentinel, then EOS.

    tokens: (n,), without the EOS that is added here; noise: (n,) bool; sentinels: in order of use, <extra_id_0> first.
    Raises UserError where there are more spans than sentinels."""
    starts = noise.copy()
    starts[1:] &= ~noise[:-1]
    spans = np.count_nonzero(starts)
    if spans > len(sentinels):
        raise UserError(
            f"{len(tokens)} tokens have {spans} noise spans, but the tokenizer has "
            f"{len(sentinels)} sentinels\n"
            "  → shorten the inputs, lower the noise density or raise the mean span length; "
            "or use a tokenizer with more sentinels"
        )
    used, marked = sentinels[:spans], tokens.copy()
    marked[starts] = used
    inputs = marked[starts | ~noise]
    targets = np.insert(tokens[noise], np.flatnonzero(starts[noise]), used)
    return np.append(inputs, eos_id), np.append(targets, eos_id)


def restore(inputs: np.ndarray, targets: np.ndarray, sentinels: np.ndarray, eos_id: int) -> np.ndarray:
    """Returns the text from which `cut_spans` made `inputs` and `targets`: every sentinel is replaced by what follows
    it in `targets`. Both are unpadded; a last EOS is dropped where there is one.

    A model may have written `targets`: a sentinel that they lack stands for nothing, and one that they repeat stands
    for its last span."""
    text, answer = (ids[:-1] if len(ids) and ids[-1] == eos_id else ids for ids in (inputs, targets))
    _, *answers = np.split(answer, np.flatnonzero(np.isin(answer, sentinels)))
    span_of = {int(span[0]): span[1:] for span in answers}
    head, *tail = np.split(text, np.flatnonzero(np.isin(text, sentinels)))
    nothing = text[:0]
    return np.concatenate([head, *(p for t in tail for p in (span_of.get(int(t[0]), nothing), t[1:]))])


def _counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Returns the number of tokens and of spans of noise. Each span needs a token of noise, and a token of text before
    it."""
    if not 0 < density < 1 or not mean_span > 0:
        raise ValueError(f"density must be between 0 and 1, the mean span positive; not {density} and {mean_span}")
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), noise, length - noise)


def _composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Returns (parts,) random positive integers that add up to `total`; every such sequence is equally likely."""
    edges = np.zeros(parts + 1, np.int64)
    edges[1:-1] = np.sort(rng.choice(total - 1, parts - 1, replace=False, shuffle=False)) + 1
    edges[-1] = total
    return edges[1:] - edges[:-1]
