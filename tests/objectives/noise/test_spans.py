"""Span corruption. The numbers are those of the T5 authors' own tests (t5/data/preprocessors_test.py) where named."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from lmkit.base.errors import UserError
from lmkit.base.order import rng_for
from lmkit.objectives.noise.spans import corrupted_lengths, cut_spans, noise_mask, prefix, raw_length, restore

EOS = 1
SENTINELS = np.arange(32099, 31999, -1)  # T5: <extra_id_0> is the highest id
UL2 = [(0.15, 3.0), (0.15, 8.0), (0.5, 3.0), (0.5, 8.0), (0.15, 64.0), (0.5, 64.0)]


def num_spans(noise: np.ndarray) -> int:
    return int((noise & ~np.append(False, noise[:-1])).sum())


@pytest.mark.parametrize(
    ("inputs", "density", "mean_span", "expected"),
    [
        (512, 0.15, 3.0, (568, 114)),  # the published T5 setting
        (64, 0.20, 2.0, (70, 22)),  # test_random_spans_helper
        (64, 0.20, 1.0, (63, 27)),  # the same
    ],
)
def test_raw_lengths_are_the_published_ones(
    inputs: int, density: float, mean_span: float, expected: tuple[int, int]
) -> None:
    assert raw_length(inputs, density, mean_span) == expected


@pytest.mark.parametrize(("density", "mean_span"), UL2)
def test_lengths_are_what_corruption_makes_and_raw_length_is_the_longest_that_fits(
    density: float, mean_span: float
) -> None:
    for inputs in [3, 4, 5, 17, 64, 128, 200]:
        raw, targets = raw_length(inputs, density, mean_span)
        assert corrupted_lengths(raw, density, mean_span) == (inputs, targets)  # full: no padding
        assert corrupted_lengths(raw + 1, density, mean_span)[0] > inputs
        made = cut_spans(np.arange(raw), noise_mask(raw, density, mean_span, np.random.default_rng(0)), SENTINELS, EOS)
        assert tuple(map(len, made)) == (inputs, targets)


def test_inputs_too_short_for_any_span_are_refused() -> None:
    with pytest.raises(UserError, match="at least 3"):
        raw_length(2, 0.15, 3.0)


@pytest.mark.parametrize(("density", "mean_span"), [(0.0, 3.0), (1.0, 3.0), (-0.1, 3.0), (0.15, 0.0)])
def test_a_density_or_a_mean_span_without_meaning_is_refused(density: float, mean_span: float) -> None:
    for call in (corrupted_lengths, raw_length):
        with pytest.raises(ValueError, match="density"):
            call(64, density, mean_span)
    with pytest.raises(ValueError, match="density"):
        noise_mask(64, density, mean_span, np.random.default_rng(0))


@pytest.mark.parametrize(("density", "mean_span"), [*UL2, (0.25, 2.0), (0.9, 3.0), (0.15, 1.0), (0.15, 0.4)])
def test_a_mask_has_its_tokens_and_spans_exactly_begins_with_text_and_ends_with_noise(
    density: float, mean_span: float
) -> None:
    for length in [2, 3, 10, 32, 568]:
        noise_tokens = min(max(round(length * density), 1), length - 1)
        spans = min(max(round(noise_tokens / mean_span), 1), noise_tokens, length - noise_tokens)
        for seed in range(20):
            noise = noise_mask(length, density, mean_span, np.random.default_rng(seed))
            assert noise.shape == (length,) and noise.sum() == noise_tokens and num_spans(noise) == spans
            assert noise[-1] and not noise[0]


def test_a_mask_is_like_the_published_one() -> None:
    """test_random_spans_noise_mask: 32 tokens, density 0.25, mean span 2."""
    published = np.array([0] * 6 + [1] * 3 + [0] + [1] * 3 + [0] * 15 + [1, 0, 0, 1], bool)
    noise = noise_mask(32, 0.25, 2.0, np.random.default_rng(0))
    assert (noise.sum(), num_spans(noise)) == (published.sum(), num_spans(published)) == (8, 4)


def test_every_mask_is_as_likely_as_any_other() -> None:
    """Ten tokens, four of noise in two spans: 5 ways to cut the text times 3 to cut the noise."""
    rng = np.random.default_rng(0)
    times = Counter(tuple(noise_mask(10, 0.4, 2.0, rng)) for _ in range(6000))
    text, noise = (range(1, n) for n in (6, 4))
    every = {tuple([False] * t + [True] * n + [False] * (6 - t) + [True] * (4 - n)) for t in text for n in noise}
    assert set(times) == every and len(every) == 15
    assert all(abs(n - 400) < 4.5 * (400 * 14 / 15) ** 0.5 for n in times.values())


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_of_one_token_has_no_noise(length: int) -> None:
    rng = np.random.default_rng(0)
    for noise in (noise_mask(length, 0.15, 3.0, rng), prefix(length, rng)):
        assert noise.tolist() == [False] * length
        inputs, targets = cut_spans(np.arange(5, 5 + length), noise, SENTINELS, EOS)
        assert inputs.tolist() == [*range(5, 5 + length), EOS] and targets.tolist() == [EOS]


def test_corruption_by_hand() -> None:
    """noise_span_to_unique_sentinel's own example, and the T5 paper's: Thank you <X> me to your party <Y> week."""
    tokens, noise = np.arange(10, 16), np.array([True, True, False, False, True, False])
    inputs, targets = cut_spans(tokens, noise, np.array([999, 998]), EOS)
    assert inputs.tolist() == [999, 12, 13, 998, 15, EOS]
    assert targets.tolist() == [999, 10, 11, 998, 14, EOS]
    thank, you, for_, inviting, me, to, your, party, last, week = range(20, 30)
    noise = np.isin(np.arange(20, 30), [for_, inviting, last])
    inputs, targets = cut_spans(np.arange(20, 30), noise, SENTINELS, EOS)
    assert inputs.tolist() == [thank, you, 32099, me, to, your, party, 32098, week, EOS]
    assert targets.tolist() == [32099, for_, inviting, 32098, last, EOS]


@pytest.mark.parametrize("sentinels", [SENTINELS, np.arange(300, 400), np.random.default_rng(0).permutation(100) + 500])
def test_sentinels_are_used_in_the_order_given_on_both_sides(sentinels: np.ndarray) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(40_000, 50_000, 300)
        inputs, targets = cut_spans(tokens, noise_mask(300, 0.15, 3.0, rng), sentinels, EOS)
        for side in (inputs, targets):
            assert side[np.isin(side, sentinels)].tolist() == sentinels[:15].tolist()
        assert targets[0] == sentinels[0] and targets[-1] == EOS == inputs[-1]


@pytest.mark.parametrize(("density", "mean_span"), UL2)
def test_restoring_gives_the_text_back(density: float, mean_span: float) -> None:
    for seed in range(40):
        rng = rng_for(0, 0, seed)
        tokens = rng.integers(0, 31_000, int(rng.integers(2, 300)))  # EOS may be among them, even at the end
        tokens[-1] = EOS if seed % 2 else tokens[-1]
        for noise in (noise_mask(len(tokens), density, mean_span, rng), prefix(len(tokens), rng)):
            inputs, targets = cut_spans(tokens, noise, SENTINELS, EOS)
            assert restore(inputs, targets, SENTINELS, EOS).tolist() == tokens.tolist()
            assert len(inputs) + len(targets) == len(tokens) + 2 * num_spans(noise) + 2


def test_any_mask_restores() -> None:
    """Also those that begin with noise or end with text, which no function here makes."""
    tokens = np.arange(100, 107)
    for size in range(8):
        for at in combinations(range(7), size):
            made = cut_spans(tokens, np.isin(np.arange(7), at), SENTINELS, EOS)
            assert restore(*made, SENTINELS, EOS).tolist() == tokens.tolist()


def test_restoring_a_models_answer_takes_what_it_finds() -> None:
    inputs = np.array([10, 32099, 11, 32098, 12, EOS])
    answers = {
        (32099, 5, 6, 32098, 7, EOS): [10, 5, 6, 11, 7, 12],
        (32099, 5, 6): [10, 5, 6, 11, 12],  # it never came to the second, nor to EOS
        (32098, 7, 32099, 5, EOS): [10, 5, 11, 7, 12],  # another order
        (9, 9, EOS): [10, 11, 12],
        (): [10, 11, 12],
    }
    for answer, text in answers.items():
        assert restore(inputs, np.array(answer, np.int64), SENTINELS, EOS).tolist() == text


def test_more_spans_than_sentinels_is_an_error_that_says_what_to_change() -> None:
    noise = noise_mask(60, 0.5, 3.0, np.random.default_rng(0))
    assert num_spans(noise) == 10
    cut_spans(np.arange(60), noise, SENTINELS[:10], EOS)
    with pytest.raises(UserError, match=r"10 noise spans.* 9 sentinels\n.*mean span length"):
        cut_spans(np.arange(60), noise, SENTINELS[:9], EOS)


@pytest.mark.parametrize(("share", "shortest", "longest"), [(0.25, 1, 9), (0.5, 1, 19), (0.75, 11, 19)])
def test_a_prefixs_suffix_is_uniform_around_its_share(share: float, shortest: int, longest: int) -> None:
    """Twenty tokens; at 0.5 every cut, which is T5's random_prefix_noise_mask."""
    rng = np.random.default_rng(0)
    masks = [prefix(20, rng, share) for _ in range(6000)]
    assert all(num_spans(m) == 1 and m[-1] and not m[0] for m in masks)
    times = Counter(int(m.sum()) for m in masks)
    n = longest - shortest + 1
    assert sorted(times) == list(range(shortest, longest + 1)) and (shortest + longest) / 2 == share * 20
    assert all(abs(t - 6000 / n) < 4.5 * (6000 / n) ** 0.5 for t in times.values())


def test_a_prefix_leaves_both_parts_a_token_at_every_length_and_share() -> None:
    rng = np.random.default_rng(0)
    for length in range(2, 40):
        for share in (0.01, 0.25, 0.5, 0.9, 0.999):
            noise = prefix(length, rng, share)
            assert noise.shape == (length,) and 1 <= noise.sum() < length and num_spans(noise) == 1
    with pytest.raises(ValueError, match="share"):
        prefix(10, rng, 1.0)


def test_the_same_generator_gives_the_same_noise() -> None:
    for make in (lambda rng: noise_mask(568, 0.15, 3.0, rng), lambda rng: prefix(568, rng)):
        assert (make(rng_for(1, 0, 2)) == make(rng_for(1, 0, 2))).all()
        assert len({make(rng_for(1, 0, i)).tobytes() for i in range(5)}) == 5
