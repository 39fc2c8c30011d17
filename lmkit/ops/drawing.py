"""The beginnings of images, continued by a model of their words, as a PNG."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.base import units
from lmkit.base.errors import DataError, ModelError, StorageError, UserError
from lmkit.data.tables.table import read_table
from lmkit.generation.engine import generate
from lmkit.generation.prompts import prompt_ids
from lmkit.generation.rules import Rules
from lmkit.generation.sampling import SamplingConfig
from lmkit.images.palette import Palette, load_palette
from lmkit.pretrained import Pretrained, load
from lmkit.recipe.tasks import TableConfig

DRAWN = 3  # continuations of each; the likeliest one is always the same
SIDE = 112  # pixels of a small image on the picture, about
GAP = 4  # white, between images


def draw_images(
    model: str, sources: list[str], keep: str, n: int, config: SamplingConfig, out: Path, as_json: bool,
    allow_pickle: bool,
) -> None:  # fmt: skip
    """Draws `n` images by `config.seed`, keeps the first `keep` of their words, and writes a row for each: what the
    model reads, what was kept, and `DRAWN` continuations. Prints where, or a JSON line for each image.

    Raises UserError for a share that leaves nothing to draw, and for a model that does not write; ModelError for one
    that knows no images."""
    share = _share(keep)
    image_module()  # before anything takes time
    loaded = load(model, allow_pickle)
    palette = load_palette(loaded.folder)
    if palette is None:
        raise ModelError(f"{model}: knows no images\n  → pretrain it on images: `lmkit tokenize IMAGES --pixels ...`")
    if not loaded.config.causal or loaded.config.stacks != "decoder":
        raise UserError(f"{model}: a {loaded.config.family} fills masks\n  → drawing needs a causal model, like gpt2")
    loaded.check_use("generate")
    table = read_table(sources, "classify", TableConfig(train=sources), labelled=False)
    if "image" not in table.rows[0]:
        raise DataError(f"{', '.join(sources)}: holds no images")
    chosen = sorted(np.random.default_rng(config.seed).permutation(len(table.rows))[:n].tolist())
    codes = palette.codes([table.rows[i]["image"] for i in chosen]).tolist()
    kept = int(share * palette.length)
    drawn = continuations(loaded, palette, [row[:kept] for row in codes], config)
    _save(_picture(palette, codes, kept, drawn), out)
    if not as_json:
        print(out)
    for i, row, new in zip(chosen, codes, drawn, strict=True) if as_json else ():
        facts = {"place": table.places[i], "words": palette.text(row), "kept": kept, "file": str(out)}
        print(json.dumps(facts | {"drawn": [palette.text(codes) for codes in new]}), flush=True)


def continuations(
    loaded: Pretrained, palette: Palette, beginnings: list[list[int]], config: SamplingConfig
) -> list[list[list[int]]]:
    """Returns some whole images for each beginning, all in codes. Nothing but words of the palette is drawn, and
    exactly as many as are missing. Raises UserError where the context is too short for an image."""
    tokenizer, length = loaded.needs_tokenizer(), palette.length
    if loaded.config.context <= length:
        raise UserError(f"the model's context of {loaded.config.context} holds no image of {length} words")
    places = {tokenizer.token_id(word): code for code, word in enumerate(palette.words)}
    ids = [i for i in places if i is not None]
    if len(ids) < len(palette.words):
        raise ModelError(f"{loaded.folder}: its palette has words that its tokenizer lacks")
    samples = DRAWN if config.temperature else 1
    prompts = [prompt_ids(tokenizer, palette.text(codes)) for codes in beginnings]
    # A control token, or a row of the table without a token, would leave a hole in a picture.
    others = Rules(never=tuple(set(range(loaded.config.vocab_size)) - set(ids)))
    settings = replace(config, max_tokens=length - len(beginnings[0]), rules=others)
    rows = generate(loaded.model, prompts, settings, samples=samples)
    whole = [beginnings[row.row // samples] + [places[i] for i in row.ids] for row in rows]
    return [whole[i : i + samples] for i in range(0, len(whole), samples)]


def image_module() -> Any:
    """Returns Pillow's module `Image`. Raises UserError where Pillow is missing."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("drawing needs pillow: pip install 'lmkit[images]'") from None
    return Image


def _share(text: str) -> float:
    try:
        share = units.fraction(text)
    except ValueError as e:
        raise UserError(f"--keep {e}") from None
    if share == 1:
        raise UserError("--keep 100% leaves nothing to draw\n  allowed: a share below that, 0% to draw from nothing")
    return share


def _picture(palette: Palette, codes: list[list[int]], kept: int, drawn: list[list[list[int]]]) -> np.ndarray:
    """Returns a picture (height, width[, 3]) uint8: a row of images for each of `codes`, on white."""
    if palette.channels not in (1, 3):
        raise DataError(f"a PNG has 1 or 3 values a pixel, these images have {palette.channels}")
    times = max(1, SIDE // palette.size)
    rows = []
    for row, new in zip(codes, drawn, strict=True):
        images = [palette.image(row), palette.beginning(row[:kept]), *map(palette.image, new)]
        large = [image.repeat(times, 0).repeat(times, 1) for image in images]
        rows.append(np.concatenate([_framed(image, (0, GAP)) for image in large], axis=1)[:, :-GAP])
    return np.concatenate([_framed(row, (GAP, 0)) for row in rows])[:-GAP]


def _framed(image: np.ndarray, more: tuple[int, int]) -> np.ndarray:
    """Returns the image with white below it and to its right."""
    sides = [(0, more[0]), (0, more[1]), (0, 0)][: image.ndim]
    return np.pad(image, sides, constant_values=255)


def _save(picture: np.ndarray, out: Path) -> None:
    try:
        image_module().fromarray(picture).save(out, format="PNG")
    except OSError as e:
        raise StorageError(f"{out}: cannot be written: {e.strerror or e}") from None
