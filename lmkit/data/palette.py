"""Images as texts: a picture is cut into patches, each of which is the nearest of a few learnt ones, a word `c17`.

With patches of one pixel that is a palette of colours, as in iGPT (Chen et al. 2020, 9-bit colours by k-means)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmkit.data.tables import Table
from lmkit.downstream import PixelConfig
from lmkit.errors import DataError, ModelError
from lmkit.files import write_json

FILE = "palette.json"
MOST_PATCHES = 200_000  # drawn to learn from: more change nothing visible


@dataclass(frozen=True)
class Palette:
    """`colours`: (K, patch * patch * channels) float32, 0 to 255. Images are scaled to `size` x `size`."""

    colours: np.ndarray
    size: int
    patch: int
    channels: int

    @property
    def words(self) -> list[str]:
        return [f"c{i}" for i in range(len(self.colours))]

    @property
    def length(self) -> int:
        """Words of an image."""
        return (self.size // self.patch) ** 2

    def texts(self, images: Sequence[np.ndarray]) -> list[str]:
        """Patches from left to right, then down. images: (H, W) or (H, W, channels) uint8."""
        words = self.words
        return [" ".join(words[i] for i in row) for row in self.codes(images)]

    def codes(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(N, length) int: the nearest colour of each patch."""
        out, square = [], (self.colours**2).sum(1)
        for begin in range(0, len(images), 256):
            patches = _patches(_scaled(images[begin : begin + 256], self.size), self.patch)  # (n, length, F)
            distance = square - 2 * patches @ self.colours.T  # the patch's own square is the same for all
            out.append(distance.argmin(-1))
        return np.concatenate(out)

    def image(self, codes: Sequence[int]) -> np.ndarray:
        """(size, size) or (size, size, channels) uint8. Raises DataError where there are not `length` of them."""
        if len(codes) != self.length:
            raise DataError(f"an image has {self.length} words, this text has {len(codes)}")
        side = self.size // self.patch
        patches = self.colours[np.asarray(codes)].reshape(side, side, self.patch, self.patch, self.channels)
        whole = patches.transpose(0, 2, 1, 3, 4).reshape(self.size, self.size, self.channels)
        return whole.round().astype(np.uint8).squeeze(-1) if self.channels == 1 else whole.round().astype(np.uint8)

    def read(self, text: str) -> list[int]:
        """The codes that a text names; other words are passed over."""
        return [int(word[1:]) for word in text.split() if word[:1] == "c" and word[1:].isdigit()]

    def save(self, folder: Path) -> None:
        facts = {"size": self.size, "patch": self.patch, "channels": self.channels}
        write_json(folder / FILE, facts | {"colours": self.colours.round(2).tolist()})


def load_palette(folder: Path) -> Palette | None:
    """None for a model that reads no images. Raises ModelError for a damaged one."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text())
        return Palette(np.array(facts["colours"], np.float32), facts["size"], facts["patch"], facts["channels"])
    except (ValueError, KeyError, TypeError) as e:
        raise ModelError(f"{path}: damaged: {e}") from None


def fit_palette(images: Sequence[np.ndarray], config: PixelConfig, seed: int = 0) -> Palette:
    """k-means over the patches of the images. Raises DataError for images of different kinds or too few patches."""
    from sklearn.cluster import MiniBatchKMeans

    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise DataError(f"images have different shapes: {', '.join(map(str, sorted(shapes)[:5]))}")
    shape = shapes.pop()
    size = config.size or shape[0]
    if size > shape[0] or size % config.patch:
        raise DataError(
            f"data.pixels: size {size} must be at most {shape[0]}, the images', and a multiple of patch {config.patch}"
        )
    rng = np.random.default_rng(seed)
    channels = shape[2] if len(shape) == 3 else 1
    each = (size // config.patch) ** 2
    some = rng.permutation(len(images))[: max(1, MOST_PATCHES // each)]
    patches = _patches(_scaled([images[i] for i in some], size), config.patch).reshape(-1, config.patch**2 * channels)
    different = np.unique(patches, axis=0)
    if len(different) <= config.colours:  # nothing to learn: every patch is itself
        return Palette(different.astype(np.float32), size, config.patch, channels)
    found = MiniBatchKMeans(config.colours, random_state=seed, n_init=1, batch_size=4096).fit(patches)
    return Palette(found.cluster_centers_.clip(0, 255).astype(np.float32), size, config.patch, channels)


def holds_images(table: Table) -> bool:
    return bool(table.rows) and "image" in table.rows[0]


def as_texts(table: Table, palette: Palette) -> Table:
    """Rows with the words of their images in place of these."""
    texts = palette.texts([row["image"] for row in table.rows])
    rows = [{"text": text} | {k: v for k, v in row.items() if k != "image"}
            for text, row in zip(texts, table.rows, strict=True)]  # fmt: skip
    return replace(table, rows=rows)


def _scaled(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    """(N, size, size, channels) float32: the mean of the pixels that fall into each new one."""
    x = np.stack(list(images)).astype(np.float32)
    x = x[..., None] if x.ndim == 3 else x
    if x.shape[1:3] == (size, size):
        return x
    for axis in (1, 2):
        edges = (np.arange(size) * x.shape[axis] // size).tolist()
        counts = np.diff([*edges, x.shape[axis]]).reshape([-1 if a == axis else 1 for a in range(4)])
        x = (np.add.reduceat(x, edges, axis) / counts).astype(np.float32)
    return x


def _patches(x: np.ndarray, patch: int) -> np.ndarray:
    """(N, size, size, channels) -> (N, patches, patch * patch * channels)."""
    n, side, channels = len(x), x.shape[1] // patch, x.shape[3]
    cut = x.reshape(n, side, patch, side, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(n, side * side, patch * patch * channels)
