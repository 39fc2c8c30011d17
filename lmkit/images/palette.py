"""Images as texts: an image is cut into patches, and each patch becomes the word, like `c17`, of the nearest of a few
learnt patches.

With patches of one pixel, the learnt patches are a palette of colours, as in iGPT (Chen et al. 2020, 9-bit colours by
k-means)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from lmkit.base.errors import DataError, ModelError
from lmkit.base.files import write_json
from lmkit.data.tables.table import Table
from lmkit.recipe.tasks import PixelConfig

FILE = "palette.json"
MOST_PATCHES = 200_000  # patches that are drawn to learn from; more make no visible difference
AT_ONCE = 1_000_000  # distances that are computed at a time, so that they stay in the caches
MIDDLE = 128.0  # subtracted from bytes, so that float32 holds every sum of squares of a patch exactly
GREY = 128  # the value of missing patches


@dataclass(frozen=True)
class Palette:
    """The learnt patches, called colours, and how images are cut into patches.

    colours: (K, patch * patch * channels) uint8, all different, in ascending order, so of grey ones the first is the
    darkest. Images are scaled to `size` x `size` pixels."""

    colours: np.ndarray
    size: int
    patch: int
    channels: int

    @cached_property
    def words(self) -> list[str]:
        return [f"c{i}" for i in range(len(self.colours))]

    @property
    def length(self) -> int:
        """Returns the number of words of an image."""
        return (self.size // self.patch) ** 2

    def texts(self, images: Sequence[np.ndarray]) -> list[str]:
        """Returns the text of each image, its patches from left to right, then down.

        images: (H, W) or (H, W, channels) uint8. Raises DataError as `codes` does."""
        return [self.text(row) for row in self.codes(images).tolist()]

    def text(self, codes: Sequence[int]) -> str:
        return " ".join(map(self.words.__getitem__, codes))

    def codes(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the number of the nearest colour of each patch, (N, length) int.

        Raises DataError for images of different shapes, smaller than `size`, or with other channels."""
        if images:
            height, width, channels = shape_of(images)
            if min(height, width) < self.size or channels != self.channels:
                raise DataError(
                    f"images of {height}x{width} pixels and {channels} values a pixel do not fit this model\n"
                    f"  it reads: {self.size}x{self.size} or more, {self.channels} values a pixel"
                )
        out = [np.empty((0, self.length), np.int64)]
        colours = self.colours - np.float32(MIDDLE)
        half = (colours**2).sum(1) / 2
        chunk = max(1, AT_ONCE // (self.length * len(colours)))
        for begin in range(0, len(images), chunk):
            patches = _patches(_scaled(images[begin : begin + chunk], self.size), self.patch)  # (n, length, F)
            nearness = (patches - np.float32(MIDDLE)) @ colours.T  # the patch's own square would change no order
            nearness -= half
            out.append(nearness.argmax(-1))
        return np.concatenate(out)

    def image(self, codes: Sequence[int]) -> np.ndarray:
        """Returns the image of these codes, (size, size) or (size, size, channels) uint8.

        Raises DataError where there are not `length` of them."""
        if len(codes) != self.length:
            raise DataError(f"an image has {self.length} words, this text has {len(codes)}")
        return self.beginning(codes)

    def beginning(self, codes: Sequence[int]) -> np.ndarray:
        """Returns the image of these codes, with grey in the place of patches that are missing at the end."""
        patches = np.full((self.length, self.colours.shape[1]), GREY, np.uint8)
        patches[: len(codes)] = self.colours[np.asarray(codes, np.int64)]
        side = self.size // self.patch
        cut = patches.reshape(side, side, self.patch, self.patch, self.channels).transpose(0, 2, 1, 3, 4)
        return cut.reshape((self.size, self.size) if self.channels == 1 else (self.size, self.size, self.channels))

    def read(self, text: str) -> list[int]:
        """Returns the codes that a text names; other words are left out."""
        return [self._places[word] for word in text.split() if word in self._places]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def save(self, folder: Path) -> None:
        """Writes the palette into a folder.

        Colours are hexadecimal, two digits per value, so a palette of thousands of patches stays below a megabyte."""
        facts = {"size": self.size, "patch": self.patch, "channels": self.channels}
        write_json(folder / FILE, facts | {"colours": [colour.tobytes().hex() for colour in self.colours]})


def load_palette(folder: Path) -> Palette | None:
    """Returns the palette in a folder; None for a model that reads no images. Raises ModelError for a damaged one."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text())
        size, patch, channels = (int(facts[key]) for key in ("size", "patch", "channels"))
        colours = np.frombuffer(bytes.fromhex("".join(facts["colours"])), np.uint8)
        return Palette(colours.reshape(len(facts["colours"]), patch * patch * channels), size, patch, channels)
    except (ValueError, KeyError, TypeError) as e:
        raise ModelError(f"{path}: damaged: {e}") from None


def shape_of(images: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Returns height, width and channels of the images. Raises DataError where their shapes differ."""
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        listed = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes)[:5])
        raise DataError(f"images have different shapes: {listed}\n  → keep those of one shape")
    height, width, *channels = shapes.pop()
    return height, width, channels[0] if channels else 1


def fit_palette(images: Sequence[np.ndarray], config: PixelConfig, seed: int = 0) -> Palette:
    """Returns a palette learnt by k-means from the patches of the images.

    Its colours are whole numbers, so that the patch of a word is read as the same word again. Raises DataError for
    images of different shapes, and for a size that does not fit them."""
    from sklearn.cluster import MiniBatchKMeans

    height, width, channels = shape_of(images)
    size = config.size or height
    if size > min(height, width) or size % config.patch or (height != width and not config.size):
        raise DataError(
            f"data.pixels: size {size} must be at most {min(height, width)}, as the images are {height}x{width},"
            f" and a multiple of patch {config.patch}"
        )
    rng = np.random.default_rng(seed)
    each = (size // config.patch) ** 2
    chosen = rng.permutation(len(images))[: max(1, MOST_PATCHES // each)]
    patches = _patches(_scaled([images[i] for i in chosen], size), config.patch).reshape(-1, config.patch**2 * channels)
    colours, counts = np.unique(_bytes(patches), axis=0, return_counts=True)
    if len(colours) > config.colours:  # else there is nothing to learn: every patch has a word of its own
        # Means of few patches are not moved elsewhere; all of them would end up on the background, with most patches.
        means = MiniBatchKMeans(config.colours, random_state=seed, n_init=1, batch_size=4096, reassignment_ratio=0)
        fitted = means.fit(colours.astype(np.float32), sample_weight=counts)
        colours = np.unique(_bytes(fitted.cluster_centers_), axis=0)
    return Palette(colours, size, config.patch, channels)


def holds_images(table: Table) -> bool:
    return bool(table.rows) and "image" in table.rows[0]


def as_texts(table: Table, palette: Palette) -> Table:
    """Returns the table with the words of the images instead of the images."""
    texts = palette.texts([row["image"] for row in table.rows])
    rows = [{"text": text} | {k: v for k, v in row.items() if k != "image"}
            for text, row in zip(texts, table.rows, strict=True)]  # fmt: skip
    return replace(table, rows=rows)


def _scaled(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Returns the images scaled to (N, size, size, channels) float32.

    Each new pixel is the mean of the area that it covers, so the mean of an image stays the same."""
    x = np.stack(list(images)).astype(np.float32)
    x = x[..., None] if x.ndim == 3 else x
    for axis in (1, 2):
        if (old := x.shape[axis]) != size:
            edges = np.arange(size + 1)[:, None] * (old / size)  # edges of the new pixels, in units of old ones
            at = np.arange(old)
            overlap = np.minimum(edges[1:], at + 1) - np.maximum(edges[:-1], at)  # (size, old)
            shares = (overlap.clip(0) * (size / old)).astype(np.float32)
            x = np.moveaxis(np.tensordot(x, shares, axes=(axis, 1)), -1, axis)
    return x


def _patches(x: np.ndarray, patch: int) -> np.ndarray:
    """Returns the patches (N, patches, patch * patch * channels) of images x (N, size, size, channels)."""
    n, side, channels = len(x), x.shape[1] // patch, x.shape[3]
    cut = x.reshape(n, side, patch, side, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(n, side * side, patch * patch * channels)


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)
