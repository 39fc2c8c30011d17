"""Images to words and back."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from lmkit.base.errors import DataError, ModelError
from lmkit.images.palette import FILE, MIDDLE, Palette, _patches, _scaled, fit_palette, load_palette
from lmkit.images.tokens import palette_tokenizer
from lmkit.recipe.tasks import PixelConfig
from lmkit.text.special import SPECIAL

SHAPES = [(12, 12), (12, 12, 3)]


def noise(shape: tuple[int, ...], n: int = 40, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "patch"), [(0, 1), (6, 1), (5, 1), (0, 4), (6, 2), (0, 12)])
def test_codes_of_decoded_codes_are_the_codes(shape, size, patch, tmp_path):
    palette = fit_palette(noise(shape), PixelConfig(size=size, patch=patch, colours=30))
    codes = np.random.default_rng(1).integers(0, len(palette.colours), (20, palette.length))
    images = [palette.image(row) for row in codes.tolist()]
    assert images[0].shape == ((size or 12), (size or 12), *shape[2:]) and images[0].dtype == np.uint8
    np.testing.assert_array_equal(palette.codes(images), codes)
    assert [palette.read(text) for text in palette.texts(images)] == codes.tolist()
    palette.save(tmp_path)
    again = load_palette(tmp_path)
    np.testing.assert_array_equal(again.colours, palette.colours)
    assert again.texts(noise(shape)) == palette.texts(noise(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_the_nearest_patches(shape):
    palette = fit_palette(noise(shape), PixelConfig(patch=3, colours=20))
    images = noise(shape, 5, seed=1)
    patches = _patches(np.stack(images).reshape(5, 12, 12, -1).astype(np.float64), 3)
    distance = ((patches[:, :, None] - palette.colours.astype(np.float64)) ** 2).sum(-1)
    np.testing.assert_array_equal(palette.codes(images), distance.argmin(-1))


def test_few_colours_are_kept_exactly_and_in_order():
    rng = np.random.default_rng(0)
    images = list(rng.choice(np.array([0, 255, 17], np.uint8), (9, 8, 8)))
    palette = fit_palette(images, PixelConfig(colours=4))
    assert palette.colours.tolist() == [[0], [17], [255]]
    for image, codes in zip(images, palette.codes(images).tolist(), strict=True):
        np.testing.assert_array_equal(palette.image(codes), image)


def test_rare_patches_are_learnt_beside_a_background():
    """Digits are mostly black: no two words may stand for it."""
    rng = np.random.default_rng(0)
    images = [np.where(rng.random((16, 16)) < 0.03, rng.integers(0, 256, (16, 16)), 0).astype(np.uint8)
              for _ in range(200)]  # fmt: skip
    palette = fit_palette(images, PixelConfig(colours=16))
    assert len(palette.colours) == 16
    error = [np.abs(palette.image(c).astype(int) - x).max()
             for c, x in zip(palette.codes(images).tolist(), images, strict=True)]  # fmt: skip
    assert max(error) < 30


@pytest.mark.parametrize("size", [1, 4, 5, 7, 12])
def test_scaling_keeps_the_mean_and_constant_images(size):
    images = noise((12, 12, 3), 6)
    scaled = _scaled(images, size)
    assert scaled.shape == (6, size, size, 3)
    np.testing.assert_allclose(scaled.mean((1, 2)), np.stack(images).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(_scaled([np.full((12, 12), 77, np.uint8)], size), 77, rtol=1e-6)


def test_scaling_by_whole_numbers_is_the_mean_of_blocks():
    images = noise((12, 12), 3)
    blocks = np.stack(images).reshape(3, 4, 3, 4, 3).mean((2, 4))
    np.testing.assert_allclose(_scaled(images, 4)[..., 0], blocks, rtol=1e-5)


def test_an_image_that_is_cut_off_is_grey_below():
    palette = fit_palette(noise((4, 4)), PixelConfig(colours=300))
    image = palette.beginning(list(range(8)))
    np.testing.assert_array_equal(image[:2], palette.image(range(16))[:2])
    assert (image[2:] == MIDDLE).all()
    with pytest.raises(DataError, match="16 words, this text has 8"):
        palette.image(list(range(8)))


def test_other_words_are_passed_over():
    palette = Palette(np.array([[0], [255]], np.uint8), 2, 1, 1)
    assert palette.read("c1 <unk> c2 c-1 c01 c² x c0") == [1, 0]
    assert palette.codes([]).shape == (0, 4)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="different shapes: 4x4, 5x5"):
        fit_palette([*noise((4, 4)), *noise((5, 5))], PixelConfig())
    for settings in ({"size": 5}, {"size": 4, "patch": 3}):
        with pytest.raises(DataError, match="at most 4"):
            fit_palette(noise((4, 4)), PixelConfig(**settings))
    with pytest.raises(DataError, match="the images are 4x6"):
        fit_palette(noise((4, 6)), PixelConfig())
    palette = fit_palette(noise((4, 6)), PixelConfig(size=4))  # on request they are made square
    assert palette.codes(noise((4, 6), 2)).shape == (2, 16)
    for other in (noise((3, 4)), noise((4, 4, 3)), [*noise((4, 4)), *noise((5, 5))]):
        with pytest.raises(DataError):
            palette.codes(other)


def test_a_damaged_file_is_said_and_a_large_palette_is_a_small_file(tmp_path):
    assert load_palette(tmp_path) is None
    rng = np.random.default_rng(0)
    palette = Palette(rng.integers(0, 256, (512, 48), np.uint8), 32, 4, 3)
    palette.save(tmp_path)
    assert (tmp_path / FILE).stat().st_size < 60_000
    facts = json.loads((tmp_path / FILE).read_text())
    for damage in ({"colours": [*facts["colours"][1:], "00"]}, {"colours": "xy"}, {"patch": None}, {"patch": 3}):
        (tmp_path / FILE).write_text(json.dumps(facts | damage))
        with pytest.raises(ModelError, match="damaged"):
            load_palette(tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "nanochat", "llama", "bert", "modernbert", "t5", "roberta"])
def test_words_have_the_first_ids(family, tmp_path):
    words = [f"c{i}" for i in range(12)]
    tokenizer = palette_tokenizer(words, family)
    first = len(SPECIAL["roberta"].tokens) if family == "roberta" else 0  # whose positions count from its padding
    assert tokenizer.encode(" ".join(words)) == list(range(first, first + 12))
    assert tokenizer.decode(tokenizer.encode("c3 c11 c3")) == "c3 c11 c3"
    unknown = [f"c12 x {token}" for token in tokenizer.special.tokens]  # what spells a control token is none
    assert all(set(ids) == {tokenizer.unk_id} for ids in tokenizer.encode_batch(unknown))
    assert {palette_tokenizer(words, family).fingerprint for _ in range(5)} == {tokenizer.fingerprint}
    tokenizer.save(tmp_path)
    assert Backend.from_file(str(tmp_path / "tokenizer.json")).get_vocab() == tokenizer.vocab
