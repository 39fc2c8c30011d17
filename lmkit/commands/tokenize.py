"""`lmkit tokenize`: raw text, or images as texts, becomes a tokenizer and token files."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lmkit.base.errors import UserError, did_you_mean
from lmkit.commands.app import app
from lmkit.commands.options import Encoding, Separator, Target, Text, TextFiles

if TYPE_CHECKING:
    from lmkit.data.tokens.store import TokenStore
    from lmkit.data.tokens.tokenize import UnitCounts
    from lmkit.recipe.pretraining import DataConfig
    from lmkit.recipe.tasks import PixelConfig


Filters = Annotated[
    list[str] | None,
    typer.Option("--filter", help="gopher_quality, gopher_repetition, c4 or fineweb: rules of good text. Repeatable."),
]
Deduplicate = Annotated[
    str, typer.Option("--deduplicate", help="exact: leave out documents that come again; near: alike ones too.")
]
Languages = Annotated[
    list[str] | None, typer.Option("--language", help="Documents in this one alone, as en or de. Repeatable.")
]
Redact = Annotated[bool, typer.Option("--redact", help="[e-mail] in place of the address; numbers of persons too.")]
Decontaminate = Annotated[
    list[str] | None,
    typer.Option("--decontaminate", metavar="FILES", help="Leave out what shares 13 words with these. Repeatable."),
]
Part = Annotated[
    str | None,
    typer.Option("--part", metavar="I/N", help="Make this part of the work; N such commands share a folder."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Have so many processes of datatrove do the work.")
]
Engine = Annotated[
    Literal["local", "ray"], typer.Option("--engine", help="Of --workers: local, or ray for a cluster of Ray.")
]
Special = Annotated[
    list[str] | None, typer.Option("--special", help="A text that is to be one token, like <drug>. Repeatable.")
]
Pixels = Annotated[
    str | None, typer.Option("--pixels", help="Of images, how they become words: 'size=14 patch=1 colours=16'.")
]


@app.command(epilog="Example: lmkit tokenize recipes/corpus/*.txt --out tokens --vocab-size 1000")
def tokenize(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs or hub:NAME. Also .gz and .zst.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tokens and tokenizer.")],
    kind: Annotated[str, typer.Option("--kind", help="bpe, wordpiece, unigram, sentencepiece or bytes.")] = "bpe",
    vocab_size: Annotated[str, typer.Option("--vocab-size", help="Entries of a trained tokenizer.")] = "32k",
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Take this one: a file, folder or run.")] = None,
    family: Annotated[str, typer.Option("--family", help="Special tokens of gpt2, llama, ...")] = "nanochat",
    special: Special = None,
    validation: Annotated[str, typer.Option("--validation", help="Share of documents held out.")] = "5%",
    text: Text = "text",
    target: Target = None,
    separator: Separator = None,
    encoding: Encoding = "utf-8",
    text_files: TextFiles = None,
    filters: Filters = None,
    deduplicate: Deduplicate = "none",
    language: Languages = None,
    redact: Redact = False,
    decontaminate: Decontaminate = None,
    part: Part = None,
    workers: Workers = None,
    engine: Engine = "local",
    pixels: Pixels = None,
) -> None:
    """Train a tokenizer (or take one) and write token files for pretraining."""
    from lmkit.architecture.families import FAMILIES
    from lmkit.data.tokens.store import card_lines
    from lmkit.data.tokens.tokenize import tokenize as make_store
    from lmkit.data.tokens.tokenize import tokenize_part
    from lmkit.recipe import recipe_file
    from lmkit.recipe.pretraining import DataConfig, TokenizerConfig

    if family not in FAMILIES:
        raise UserError(f"--family {family}: unknown{did_you_mean(family, FAMILIES)}")
    columns = {"text": text, "target": target, "separator": separator}
    reading = {"encoding": encoding, "text_files": text_files or []}
    lists = {"filters": filters or [], "languages": language or [], "decontaminate": decontaminate or []}
    quality = lists | {"redact": redact, "deduplicate": deduplicate}
    data = {"train": inputs, "validation": validation, "quality": quality} | columns | reading
    settings = recipe_file.build_recipe(DataConfig, data, {}, where="lmkit tokenize")
    choice = {"type": kind, "vocab_size": vocab_size, "path": tokenizer, "special": special or []}
    config = recipe_file.build_recipe(TokenizerConfig, choice, {}, where="lmkit tokenize")
    if pixels is not None:
        others = {"target": target, "separator": separator, "tokenizer": tokenizer, "part": part, "workers": workers}
        others |= settings.quality.model_dump(exclude_defaults=True)
        store = _images(settings, pixel_config(pixels), family, out, [key for key, value in others.items() if value])
    elif part is not None:
        _print_counts(part, tokenize_part(settings, config, family, out, *_part(part)))
        return
    elif workers is not None:
        from lmkit.data.tokens.engine import tokenize_with_workers

        store = tokenize_with_workers(settings, config, family, out, workers, engine)
    else:
        store = make_store(settings, config, family, out)
    print("\n".join(card_lines(store)))
    print(f"  next   lmkit pretrain RECIPE data.train={out}")


def _print_counts(part: str, counts: "UnitCounts") -> None:
    print(f"part {part}: {counts.done:,} of {counts.units:,} units of the work are done")
    if counts.uncompared:
        print(f"  --deduplicate: other parts have yet to read {counts.uncompared:,} units, to compare documents")
        print("  next   when all parts have ended, the same command again")
    else:
        print("  next   when all parts are done, the same command without --part")


def _part(text: str) -> tuple[int, int]:
    """Returns the two numbers of `I/N`. Raises UserError."""
    number, slash, parts = text.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise UserError(f"--part {text}: no part of the work\n  → I/N with I from 1 to N, like --part 1/4")
    return int(number), int(parts)


def pixel_config(text: str) -> "PixelConfig":
    """Returns the settings in a text like `size=14 patch=1 colours=16`, of which any may be left out. Raises
    UserError."""
    from lmkit.recipe import recipe_file
    from lmkit.recipe.tasks import PixelConfig

    settings: dict[str, Any] = {}
    for item in text.replace(",", " ").split():
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--pixels: `{item}` is not key=value\n  → for example --pixels 'size=14 colours=16'")
        settings[key] = value
    return recipe_file.build_recipe(PixelConfig, settings, {}, where="--pixels")


def _images(settings: "DataConfig", pixels: "PixelConfig", family: str, out: Path, of_texts: list[str]) -> "TokenStore":
    """Tokenizes images. Their texts are files beside `out` for as long as it takes. of_texts: what is asked for
    and is for texts alone. Raises DataError, and UserError for that."""
    from lmkit.data.tokens.tokenize import tokenize as make_store
    from lmkit.images.tokens import learn_palette, palette_tokenizer, write_words
    from lmkit.recipe.pretraining import TokenizerConfig

    if of_texts:
        raise UserError(f"--{', --'.join(of_texts)}: of texts, and --pixels makes words of images\n  → leave it out")
    named = {"train": settings.train} | ({} if isinstance(settings.validation, float) else
                                         {"validation": settings.validation})  # fmt: skip
    sources = {split: [names] if isinstance(names, str) else names for split, names in named.items()}
    palette = learn_palette(sources["train"], pixels)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{out.name}.images-", dir=out.parent) as folder:
        home, texts = Path(folder) / "tokenizer", {split: f"{folder}/{split}.jsonl" for split in sources}
        palette_tokenizer(palette.words, family).save(home)
        palette.save(home)
        count = sum(write_words(sources[split], palette, Path(texts[split])) for split in sources)
        changed = settings.model_copy(update={**texts, "text": "text"})
        store = make_store(changed, TokenizerConfig(path=str(home)), family, out)
    print(f"{count:,} images of {palette.length} words, out of {len(palette.colours)}: {palette.size} pixels a side,"
          f" in patches of {palette.patch}")  # fmt: skip
    return store
