"""Noise of denoising sequence-to-sequence pretraining: the encoder reads damaged text, the decoder writes it clean.

BART (Lewis et al. 2020; fairseq data/denoising_dataset.py). Every function takes and returns the inner tokens of one
document: its frame, BOS before and EOS behind, stays in place and is the caller's. Each makes a copy, and is a pure
function of its arguments and the generator's state."""

import numpy as np


def infill(
    tokens: np.ndarray,
    rate: float,
    mean_span: float,
    mask_id: int,
    rng: np.random.Generator,
    maskable: np.ndarray | None = None,
) -> np.ndarray:
    """Spans of Poisson(mean_span) lengths give way to one mask each, whatever their length; one of no length is a mask
    too many. The last span is cut so that exactly round(rate * m) of the m maskable tokens are gone.

    tokens: (n,) without the frame; maskable: (n,) bool, None for all. Tokens that are not maskable stay: a span that
    reaches over one is two spans. Every arrangement of the spans is equally likely, but they never overlap, as in the
    paper; fairseq's do, and then share a mask: 0.3 removes 0.267 of the text. Raises ValueError for a mean span that is
    not positive."""
    places = np.arange(len(tokens)) if maskable is None else np.flatnonzero(maskable)
    budget = round(rate * len(places))
    if budget == 0:
        return tokens.copy()
    lengths = _span_lengths(budget, mean_span, rng)

    # slots in a row, each a kept token or a span: which are the spans is the only choice
    widths = np.ones(len(places) - budget + len(lengths), np.int64)
    spans = rng.choice(len(widths), len(lengths), replace=False)
    widths[spans] = lengths
    begins = np.cumsum(widths) - widths
    is_span = np.zeros(len(widths), bool)
    is_span[spans] = True

    gone = np.repeat(is_span, widths)  # (m,)
    opens = np.ones(len(places), bool)
    opens[1:] = places[1:] - places[:-1] > 1  # a span goes on behind an unmaskable token as another one
    opens[begins[is_span & (widths > 0)]] = True
    noisy, keep = tokens.copy(), np.ones(len(tokens), bool)
    noisy[places[gone & opens]] = mask_id
    keep[places[gone & ~opens]] = False
    extra = np.append(places, places[-1] + 1)[begins[is_span & (widths == 0)]]
    return np.insert(noisy[keep], np.append(0, np.cumsum(keep))[extra], mask_id)


def _span_lengths(budget: int, mean_span: float, rng: np.random.Generator) -> np.ndarray:
    """(k,) Poisson lengths up to the one that reaches the budget, which is cut to meet it."""
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
    """The sentences in random order, every order equally likely.

    tokens: (n,) without the frame; ends: (n,) bool, where a sentence ends (`lmkit.text.pieces.sentence_ends` of the
    tokens). Ends in a row, "?!" or a stop and its line break, end one sentence together; fairseq would begin the next
    one after the first of them. What follows the last end is a sentence too."""
    last = ends.copy()
    last[:-1] &= ~ends[1:]
    sentence = np.cumsum(last) - last  # (n,) number of the sentence of each token
    rank = rng.permutation(int(last.sum()) + 1)
    return tokens[np.argsort(rank[sentence], kind="stable")]


def rotate(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The text from a random token on, then what stood before it. Any token is as likely to come first as any other,
    as in the paper; fairseq keeps the first in place twice as often. tokens: (n,) without the frame."""
    return np.roll(tokens, -int(rng.integers(max(1, len(tokens)))))


def delete(tokens: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """The text without round(rate * n) random tokens, and nothing to show where they were. tokens: (n,) without the
    frame."""
    return np.delete(tokens, rng.choice(len(tokens), round(rate * len(tokens)), replace=False, shuffle=False))
