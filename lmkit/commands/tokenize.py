"""`lmkit tokenize`: raw text, or images as texts -> tokenizer and token files."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmkit.architecture.families import FAMILIES
from lmkit.base.errors import UserError, did_you_mean
from lmkit.data.tokens.card import card_lines
from lmkit.data.tokens.store import TokenStore
from lmkit.data.tokens.tokenize import tokenize
from lmkit.recipe import recipe_file
from lmkit.recipe.pretraining import DataConfig, TokenizerConfig
from lmkit.recipe.tasks import PixelConfig

OF_TEXTS = {"target": "--target", "separator": "--separator"}  # settings without a meaning for images


def run(data: dict[str, Any], tokenizer: dict[str, Any], family: str, out: Path, pixels: str | None = None) -> None:
    """pixels: the inputs are images, and how these become words: `size=14 patch=1 colours=16`."""
    if family not in FAMILIES:
        raise UserError(f"--family {family}: unknown{did_you_mean(family, FAMILIES)}")
    settings = recipe_file.build(DataConfig, data, {}, where="lmkit tokenize")
    kind = recipe_file.build(TokenizerConfig, tokenizer, {}, where="lmkit tokenize")
    if pixels is None:
        store = tokenize(settings, kind, family, out)
    else:
        idle = [option for key, option in OF_TEXTS.items() if data.get(key) is not None]
        if idle := idle + (["--tokenizer"] if kind.path else []):
            raise UserError(f"{', '.join(idle)}: of texts, and --pixels makes words of images\n  → leave it out")
        store = _images(settings, pixel_config(pixels), family, out)
    print("\n".join(card_lines(store)))
    print(f"  next   lmkit pretrain RECIPE data.train={out}")


def pixel_config(text: str) -> PixelConfig:
    """`size=14 patch=1 colours=16`, any of these. Raises UserError."""
    settings: dict[str, Any] = {}
    for item in text.replace(",", " ").split():
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--pixels: `{item}` is not key=value\n  → for example --pixels 'size=14 colours=16'")
        settings[key] = value
    return recipe_file.build(PixelConfig, settings, {}, where="--pixels")


def _images(settings: DataConfig, pixels: PixelConfig, family: str, out: Path) -> TokenStore:
    """Their texts are files beside `out` for as long as it takes. Raises DataError."""
    from lmkit.images.tokenizer import palette_tokenizer
    from lmkit.images.tokens import learn_palette, write_texts

    named = {"train": settings.train} | ({} if isinstance(settings.validation, float) else
                                         {"validation": settings.validation})  # fmt: skip
    sources = {split: [names] if isinstance(names, str) else names for split, names in named.items()}
    palette = learn_palette(sources["train"], pixels)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{out.name}.images-", dir=out.parent) as folder:
        home, texts = Path(folder) / "tokenizer", {split: f"{folder}/{split}.jsonl" for split in sources}
        palette_tokenizer(palette.words, family).save(home)
        palette.save(home)
        count = sum(write_texts(sources[split], palette, Path(texts[split])) for split in sources)
        changed = settings.model_copy(update={**texts, "text": "text"})
        store = tokenize(changed, TokenizerConfig(path=str(home)), family, out)
    print(f"{count:,} images of {palette.length} words, out of {len(palette.colours)}: {palette.size} pixels a side,"
          f" in patches of {palette.patch}")  # fmt: skip
    return store
