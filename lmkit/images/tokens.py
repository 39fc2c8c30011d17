"""Learns a palette from files of images, and writes a file of their texts, one document per image.

Only one file of images is in memory at a time."""

import heapq
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmkit.architecture.families import FAMILIES
from lmkit.base.display import note
from lmkit.base.errors import DataError
from lmkit.data.tables.formats import list_sources
from lmkit.data.tables.table import read_table
from lmkit.images.palette import Palette, fit_palette, shape_of
from lmkit.recipe.tasks import PixelConfig, TableConfig
from lmkit.text.special import SPECIAL, cuts_inside
from lmkit.text.tokenizer import Tokenizer, add_post_processor

MOST_IMAGES = 20_000  # images that are drawn from all files to learn a palette from their patches
AT_ONCE = 1000  # images whose texts are in memory at a time


def learn_palette(sources: list[str], config: PixelConfig, seed: int = 0) -> Palette:
    """Returns a palette learnt from images that are drawn evenly from all files.

    Raises DataError for sources that are no images, and for images of different shapes."""
    rng = np.random.default_rng(seed)
    drawn: list[tuple[float, np.ndarray]] = []
    for images in _files(sources):
        drawn += zip(rng.random(len(images)).tolist(), images, strict=True)
        smallest = heapq.nsmallest(MOST_IMAGES, drawn, key=lambda entry: entry[0])
        drawn = [(key, image.copy()) for key, image in smallest]  # a view would keep its whole file in memory
    return fit_palette([image for _, image in drawn], config, seed)


def write_words(sources: list[str], palette: Palette, path: Path) -> int:
    """Writes JSON lines with the words of every image, in the order of the files. Returns the number of images.

    Raises DataError as `learn_palette` does."""
    count = 0
    with path.open("w", encoding="ascii") as file:
        for images in _files(sources, told=True):
            for begin in range(0, len(images), AT_ONCE):
                texts = palette.texts(images[begin : begin + AT_ONCE])
                file.writelines(f'{{"text": "{text}"}}\n' for text in texts)  # words need no escapes
            count += len(images)
    return count


def _files(sources: list[str], told: bool = False) -> Iterator[list[np.ndarray]]:
    """Yields the images of each file. told: tells the user what was left out."""
    config, shape = TableConfig(train=sources), None
    for source in list_sources(sources, "classify", config, labelled=False):
        name = source.item.name
        if source.format not in ("idx", "cifar10"):
            raise DataError(f"{name}: no file of images\n  allowed: idx files like MNIST's, CIFAR-10's .bin files")
        table = read_table([name], "classify", config, labelled=False)
        for kind, n in table.problems.counts.items() if told else ():
            note(f"left out: {n:,} {kind}, like {table.problems.examples[kind][0]}")
        images = [row["image"] for row in table.rows]
        current = shape_of(images)
        if current != (shape := shape or current):
            raise DataError(
                f"images have different shapes: {current} in {name}, {shape} before\n  → keep those of one shape"
            )
        yield images


def palette_tokenizer(words: list[str], family: str) -> Tokenizer:
    """Returns a tokenizer in which `words` have the first ids, and the control tokens of `family` the next.

    All other text is unknown. The same arguments give the same tokenizer.json."""
    from tokenizers import AddedToken, Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    special = SPECIAL[FAMILIES[family].tokens]
    special = special if special.unk else replace(special, unk="<unk>")
    # RoBERTa counts positions from the id of its padding, and its table has a row for every smaller number too.
    first = special.tokens if FAMILIES[family].tokens == "roberta" else []
    entries = dict.fromkeys([*first, *words, str(special.unk)])
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token=special.unk))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if first:  # these are in the model's vocabulary, so text that spells one must be cut
        cut = pre_tokenizers.Split(Regex(cuts_inside(first)), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, cut])
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special.tokens])
    add_post_processor(backend, special)
    return Tokenizer(backend, special)
