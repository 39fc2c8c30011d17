"""BART's noise."""

from collections import Counter
from itertools import groupby
from math import exp, factorial

import numpy as np
import pytest

from lmkit.base.order import rng_for
from lmkit.objectives.noise.infilling import delete, infill, permute_sentences, rotate_document

MASK = 4


def text(n: int) -> np.ndarray:
    """Tokens that tell where they stood."""
    return np.arange(100, 100 + n)


def gaps(noisy: np.ndarray, n: int) -> list[tuple[int, int]]:
    """(masks, tokens gone) between each two kept tokens of `text(n)`, the ends of the text included."""
    found, masks, last = [], 0, 99
    for token in [*noisy.tolist(), 100 + n]:
        if token == MASK:
            masks += 1
        else:
            found.append((masks, token - last - 1))
            masks, last = 0, token
    return found


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("mean_span", [0.5, 3.0, 10.0])
def test_exactly_the_share_is_gone_the_rest_keeps_its_order_and_no_gap_is_without_a_mask(
    rate: float, mean_span: float
) -> None:
    for seed in range(30):
        noisy = infill(text(512), rate, mean_span, MASK, np.random.default_rng(seed))
        kept = noisy[noisy != MASK]
        assert len(kept) == 512 - round(rate * 512) and (np.diff(kept) > 0).all()
        assert all(masks > 0 for masks, gone in gaps(noisy, 512) if gone)


def test_span_lengths_are_poisson() -> None:
    """At a rate so low that two spans almost never touch, a gap is a span: also those of no length."""
    rng, lengths = np.random.default_rng(0), Counter()
    for _ in range(60):
        found = gaps(infill(text(20_000), 0.01, 3.0, MASK, rng), 20_000)
        lengths += Counter(gone for masks, gone in found if masks == 1)
    spans = sum(lengths.values())
    assert abs(sum(k * n for k, n in lengths.items()) / spans - 3) < 4 * (3 / spans) ** 0.5 + 0.05
    for k in range(8):
        p = exp(-3) * 3**k / factorial(k)
        # the last span of each text is cut and a few touch: under 0.01
        assert abs(lengths[k] / spans - p) < 0.01 + 4 * (p / spans) ** 0.5


def test_each_span_is_one_mask() -> None:
    """The masks of a text are its spans: budget / mean of them, those of no length among them."""
    masks = [int((infill(text(512), 0.3, 3.0, MASK, np.random.default_rng(s)) == MASK).sum()) for s in range(300)]
    # renewal theory: (budget + half the spread of the last one) / mean; Poisson: (154 + 0.5) / 3
    assert abs(np.mean(masks) - 154.5 / 3) < 4 * np.std(masks) / 300**0.5 + 0.5
    longest = infill(text(512), 0.3, 1e4, MASK, np.random.default_rng(0))
    assert gaps(longest, 512).count((1, 154)) == 1 and (longest == MASK).sum() == 1


def test_every_place_is_as_likely_to_go_as_any_other() -> None:
    """Except near the ends, where fewer spans reach a token."""
    rng = np.random.default_rng(0)
    gone = np.array([~np.isin(text(60), infill(text(60), 0.3, 3.0, MASK, rng)) for _ in range(2000)])
    assert np.ptp(gone[:, 6:-6].mean(0)) < 9 * (0.3 * 0.7 / 2000) ** 0.5


def test_the_cut_last_span_is_anywhere() -> None:
    """The spans at the two ends of a text are as long as each other."""
    rng = np.random.default_rng(0)
    found = [gaps(infill(text(200), 0.5, 10.0, MASK, rng), 200) for _ in range(1500)]
    first, last = (np.array([gone for g in found if (gone := g[end][1])]) for end in (0, -1))
    deviation = (first.var() / len(first) + last.var() / len(last)) ** 0.5
    assert len(first) > 100 < len(last) and abs(first.mean() - last.mean()) < 4 * deviation


def test_spans_of_no_length_are_as_likely_between_any_two_tokens() -> None:
    rng, masks = np.random.default_rng(0), np.zeros(71)
    for _ in range(300):
        masks += [m for m, _ in gaps(infill(text(100), 0.3, 0.1, MASK, rng), 100)]
    # 300 spans in a text on average: a geometric number of them in each gap
    mean = masks.mean() / 300
    assert 3.9 < mean < 4.6 and abs(masks / 300 - mean).max() < 4.5 * ((mean + mean**2) / 300) ** 0.5


def test_special_tokens_are_never_removed_and_no_mask_stands_for_text_on_both_sides_of_one() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        maskable = rng.random(300) > 0.1
        noisy = infill(text(300), 0.5, 5.0, MASK, rng, maskable)
        assert np.isin(text(300)[~maskable], noisy).all()
        assert (noisy != MASK).sum() == 300 - round(0.5 * maskable.sum())
        assert all(masks > 0 for masks, gone in gaps(noisy, 300) if gone)


def test_a_text_of_special_tokens_or_none_stays() -> None:
    rng = np.random.default_rng(0)
    assert infill(text(5), 0.9, 3.0, MASK, rng, np.zeros(5, bool)).tolist() == text(5).tolist()
    assert infill(text(0), 0.9, 3.0, MASK, rng).tolist() == []
    assert infill(text(5), 0.0, 3.0, MASK, rng).tolist() == text(5).tolist()
    assert set(infill(text(5), 1.0, 3.0, MASK, rng).tolist()) == {MASK}


def test_a_mean_span_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        infill(text(10), 0.3, 0.0, MASK, np.random.default_rng(0))


def test_sentences_are_permuted_whole_and_every_order_is_as_likely() -> None:
    tokens = text(9)
    ends = np.isin(np.arange(9), [1, 4, 5])  # two ends in a row end one sentence; the rest is the third
    sentences = [(100, 101), (102, 103, 104, 105), (106, 107, 108)]
    rng, orders = np.random.default_rng(0), Counter()
    for _ in range(3000):
        mixed = permute_sentences(tokens, ends, rng).tolist()
        order = tuple(sorted(sentences, key=lambda s: mixed.index(s[0])))
        assert mixed == [t for s in order for t in s]
        orders[order] += 1
    assert len(orders) == 6 and all(abs(n - 500) < 4.5 * (500 * 5 / 6) ** 0.5 for n in orders.values())


def test_a_text_that_ends_with_an_end_has_no_empty_sentence_and_one_sentence_stays() -> None:
    last = np.isin(np.arange(6), [2, 5])
    mixed = {tuple(permute_sentences(text(6), last, np.random.default_rng(s)).tolist()) for s in range(20)}
    assert mixed == {(100, 101, 102, 103, 104, 105), (103, 104, 105, 100, 101, 102)}
    for ends in (np.zeros(6, bool), np.ones(6, bool)):
        assert permute_sentences(text(6), ends, np.random.default_rng(1)).tolist() == text(6).tolist()
    assert permute_sentences(text(0), np.zeros(0, bool), np.random.default_rng(0)).tolist() == []


def test_rotation_keeps_the_cycle_and_any_token_comes_first() -> None:
    rng = np.random.default_rng(0)
    turned = [rotate_document(text(5), rng).tolist() for _ in range(2000)]
    cycle = text(5).tolist() * 2
    assert all(t == cycle[t[0] - 100 : t[0] - 95] for t in turned)
    firsts = Counter(t[0] for t in turned)
    assert len(firsts) == 5 and all(abs(n - 400) < 4.5 * (400 * 0.8) ** 0.5 for n in firsts.values())
    assert rotate_document(text(0), rng).tolist() == []


def test_deletion_takes_exactly_the_share_and_keeps_the_order() -> None:
    rng = np.random.default_rng(0)
    for n, rate in [(512, 0.15), (10, 0.3), (7, 0.0), (0, 0.3), (4, 1.0)]:
        kept = delete(text(n), rate, rng)
        assert len(kept) == n - round(rate * n) and (np.diff(kept) > 0).all() and np.isin(kept, text(n)).all()
    times = Counter(t for _ in range(2000) for t in delete(text(10), 0.3, rng).tolist())
    assert all(abs(times[t] - 1400) < 4.5 * (2000 * 0.21) ** 0.5 for t in range(100, 110))


def test_the_same_generator_gives_the_same_noise_and_the_text_itself_is_not_touched() -> None:
    tokens, ends = text(200), np.arange(200) % 9 == 0

    def noise(index: int) -> list[bytes]:
        rng = rng_for(0, 1, index)
        infilled = infill(tokens, 0.3, 3.0, MASK, rng, np.arange(200) % 50 != 0)
        others = permute_sentences(tokens, ends, rng), rotate_document(tokens, rng), delete(tokens, 0.15, rng)
        return [a.tobytes() for a in (infilled, *others)]

    assert noise(3) == noise(3) and all(a != b for a, b in zip(noise(3), noise(4), strict=True))
    assert (tokens == text(200)).all() and [len(list(g)) for hit, g in groupby(ends) if hit] == [1] * 23
