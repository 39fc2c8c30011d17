"""Noise of BART's pretraining: the encoder reads damaged text, and the decoder writes the clean text.

The source is Lewis et al. 2020 and fairseq's data/denoising_dataset.py. Every function takes and returns the inner
tokens of one document; the caller keeps BOS before and EOS after them. Each function returns a copy, and depends only
on its arguments and the generator's state."""

import numpy as np


def infill(
    tokens: np.ndarray,
    rate: float,
    mean_span: float,
    mask_id: int,
    rng: np.random.Generator,
    maskable: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the tokens with one mask in the place of each of some spans, whose lengths are Poisson(mean_span).

    A span of length 0 adds a mask and removes nothing. The last span is cut so that exactly round(rate * m) of the m
    maskable tokens are removed.

    tokens: (n,) without BOS and EOS; maskable: (n,) bool, None for all. Tokens that are not maskable stay; a span that
    contains one becomes two spans. Every arrangement of the spans is equally likely, and they never overlap, as in the
    paper. In fairseq they may overlap, and then share a mask, so that a rate of 0.3 removes 0.267 of the text. Raises
    ValueError for a mean span that is not positive."""
    places = np.arange(len(tokens)) if maskable is None else np.flatnonzero(maskable)
    budget = round(rate * len(places))
    if budget == 0:
        return tokens.copy()
    lengths = _span_lengths(budget, mean_span, rng)

    # The text is a sequence of slots, each either one token that stays or one span; the only choice is which are spans.
    widths = np.ones(len(places) - budget + len(lengths), np.int64)
    spans = rng.choice(len(widths), len(lengths), replace=False)
    widths[spans] = lengths
    begins = np.cumsum(widths) - widths
    is_span = np.zeros(len(widths), bool)
    is_span[spans] = True

    removed = np.repeat(is_span, widths)  # (m,) tokens of spans
    opens = np.ones(len(places), bool)
    opens[1:] = places[1:] - places[:-1] > 1  # after an unmaskable token, the rest of a span is another span
    opens[begins[is_span & (widths > 0)]] = True
    noisy, keep = tokens.copy(), np.ones(len(tokens), bool)
    noisy[places[removed & opens]] = mask_id
    keep[places[removed & ~opens]] = False
    extra = np.append(places, places[-1] + 1)[begins[is_span & (widths == 0)]]
    return np.insert(noisy[keep], np.append(0, np.cumsum(keep))[extra], mask_id)


def _span_lengths(budget: int, mean_span: float, rng: np.random.Generator) -> np.ndarray:
    """Returns (k,) Poisson lengths that add up to the budget; the last one is cut to meet it."""
    if not mean_span > 0:
        raise ValueError(f"the mean span must be positive, not {mean_span}")
    lengths = np.empty(0, np.int64)
    while lengths.sum() < budget:
        lengths = np.append(lengths, rng.poisson(mean_span, int(budget / mean_span) + 16))
    reached = np.cumsum(lengths)
    last = int(np.searchsorted(reached, budget))
    lengths[last] -= reached[last] - budget
    return lengths[: last + 1]


def permute_sentences(tokens: np.ndarray, ends: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the sentences in random order; every order is equally likely.

    tokens: (n,) without BOS and EOS; ends: (n,) bool, True where a sentence ends (`lmkit.text.pieces.sentence_ends` of
    the tokens). Several ends in a row, as "?!" or a full stop and a line break, end one sentence together; in fairseq
    the next sentence begins after the first of them. The text after the last end is a sentence too."""
    last = ends.copy()
    last[:-1] &= ~ends[1:]
    sentence = np.cumsum(last) - last  # (n,) number of the sentence of each token
    rank = rng.permutation(int(last.sum()) + 1)
    return tokens[np.argsort(rank[sentence], kind="stable")]


def rotate_document(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the text from a random token on, followed by the text before that token.

    Every token is equally likely to come first, as in the paper; in fairseq the first token stays first twice as often.
    tokens: (n,) without BOS and EOS."""
    return np.roll(tokens, -int(rng.integers(max(1, len(tokens)))))


def delete(tokens: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Returns the text without round(rate * n) random tokens, and without marks where they were.

    tokens: (n,) without BOS and EOS."""
    return np.delete(tokens, rng.choice(len(tokens), round(rate * len(tokens)), replace=False, shuffle=False))
