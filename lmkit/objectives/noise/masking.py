"""Noise of masked language modelling: which tokens of a row to predict, and what the model sees in their place.

It follows BERT (Devlin et al. 2019; google-research/bert create_pretraining_data.py), with the n-grams of ALBERT (Lan
et al. 2020; google-research/albert create_pretraining_data.py). Every function depends only on its arguments and the
generator's state."""

import numpy as np


def num_masked(length: int, rate: float, most: int | None = None) -> int:
    """Returns how many of `length` tokens to predict: round(rate * length), but at least one.

    It is at most `most` (BERT's max_predictions_per_seq) and `length`. BERT counts [CLS] and [SEP] in `length`."""
    count = max(1, round(rate * length))
    return min(count, length if most is None else most, length)


def choose_masked(
    maskable: np.ndarray,
    count: int,
    rng: np.random.Generator,
    starts: np.ndarray | None = None,
    max_ngram: int = 1,
) -> np.ndarray:
    """Returns the positions to predict: (k,) int64, ascending, all of them maskable.

    maskable: (n,) bool. starts: (n,) bool, True where a word begins; None makes every token a word. With single tokens
    k = count, or the number of maskable tokens where that is smaller. Words are taken whole, in random order, and a
    word that would exceed `count` is left out, so k <= count. A word ends at an unmaskable position.

    With max_ngram N > 1, a word is taken together with the n - 1 words after it, with p(n) ∝ 1/n over those n in 1..N
    whose words all stand before the next unmaskable position. An n-gram that would exceed `count` is shortened, and one
    that overlaps an earlier one is left out, so there are fewer long n-grams when `count` is close to the length."""
    places = np.flatnonzero(maskable)
    if starts is None and max_ngram == 1:
        return np.sort(rng.choice(places, min(count, len(places)), replace=False, shuffle=False))
    begins = np.ones(len(places), bool) if starts is None else starts[places]
    after_gap = np.ones(len(places), bool)
    after_gap[1:] = places[1:] - places[:-1] > 1
    words = np.flatnonzero(begins | after_gap)  # (W,) for each word, the index into `places` of its first token
    bounds = np.append(words, len(places))
    sizes = _ngram_sizes(np.cumsum(after_gap)[words], max_ngram, rng) if max_ngram > 1 else [1] * len(words)

    edge, taken, budget = bounds.tolist(), bytearray(len(words)), count  # lists are faster than arrays one by one
    for word in rng.permutation(len(words)).tolist():
        if budget == 0:
            break
        n = sizes[word]
        while n and edge[word + n] - edge[word] > budget:
            n -= 1
        if n and 1 not in taken[word : word + n]:
            taken[word : word + n] = b"\1" * n
            budget -= edge[word + n] - edge[word]
    return places[np.repeat(np.array(taken, bool), bounds[1:] - words)]


def _ngram_sizes(run: np.ndarray, max_ngram: int, rng: np.random.Generator) -> list[int]:
    """Returns for each of W words how many words to take together from it on.

    run: (W,) ascending, the number of the run of words, without unmaskable positions, that each word is in."""
    room = np.searchsorted(run, run, side="right") - np.arange(len(run))
    weight = np.cumsum(1 / np.arange(1, max_ngram + 1))
    # Drawing below the total weight of the sizes that fit is drawing from p(n) renormalised over these sizes.
    draw = rng.random(len(run)) * weight[np.minimum(room, max_ngram) - 1]
    return (np.searchsorted(weight, draw, side="right") + 1).tolist()


def corrupt_tokens(
    tokens: np.ndarray,
    positions: np.ndarray,
    rng: np.random.Generator,
    mask_id: int,
    ordinary: np.ndarray,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> np.ndarray:
    """Returns what the model sees: a copy of `tokens` (n,) with changes at `positions` (k,).

    Each of these independently becomes `mask_id`, becomes a random one of the `ordinary` (m,) ids, or stays as it was,
    with the three probabilities of `split`. Raises ValueError where `split` does not add up to 1."""
    if abs(sum(split) - 1) > 1e-6:
        raise ValueError(f"split {split} adds up to {sum(split)}, not to 1")
    corrupted = tokens.copy()
    kind = rng.random(len(positions))
    masked, replaced = kind < split[0], (kind >= split[0]) & (kind < split[0] + split[1])
    corrupted[positions[masked]] = mask_id
    corrupted[positions[replaced]] = ordinary[rng.integers(len(ordinary), size=np.count_nonzero(replaced))]
    return corrupted
