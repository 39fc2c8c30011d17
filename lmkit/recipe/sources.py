"""What recipes of pretraining and of fine-tuning both say of the files they read: which, how, how often."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lmkit.recipe.objectives import Section


def _encoding(name: str) -> str:
    try:
        "".encode("utf-8" if name == "auto" else name)
    except LookupError:
        known = "for example utf-8, cp1252, gbk, shift_jis, or auto"
        raise ValueError(f"{name!r} is no encoding that Python knows; {known}") from None
    return name


def _suffixes(suffixes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{suffix.strip().removeprefix('*').removeprefix('.')}" for suffix in suffixes)


def _line_ends(separator: str) -> str:
    """Returns a separator of nothing but \\n, \\r, \\t and \\f, as shells hand it over, as the signs that it means."""
    if not re.fullmatch(r"(\\[nrtf])+", separator):
        return separator
    return separator.encode().decode("unicode_escape")


Separator = Annotated[str, Field(min_length=1), AfterValidator(_line_ends)]


class TextRules(Section):
    """Which texts are learnt from; each rule with its threshold and source in docs/data.md."""

    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...] = Field(
        (), description="ISO 639 codes, like [de, en]: texts in other languages are left out."
    )
    filters: tuple[Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"], ...] = Field(
        (), description="Published heuristics; texts that break a rule are left out."
    )
    redact: bool = Field(
        False, description="`[e-mail]` in place of the address; also telephone, IBAN, credit card, IP address."
    )


class QualityConfig(TextRules):
    """Which documents are learnt from, by rules and by what else there is."""

    decontaminate: str | tuple[str, ...] = Field(
        (), description="Evaluation files: documents that share 13 words in a row with them are left out."
    )
    deduplicate: Literal["none", "exact", "near"] = Field(
        "none", description="Leave out documents that repeat an earlier one: its text, or most of it (MinHash)."
    )

    @property
    def evaluation_files(self) -> list[str]:
        return [self.decontaminate] if isinstance(self.decontaminate, str) else list(self.decontaminate)


class RowQualityConfig(TextRules):
    """Which training rows of a table are learnt from, by what is read of them, and not by their answers."""

    deduplicate: Literal["none", "exact", "near"] = Field(
        "none", description="Leave out training rows that repeat an earlier one: its text, or most of it (MinHash)."
    )
    decontaminate: bool = Field(
        False, description="Leave out training rows that share 13 words in a row with held-out rows."
    )


class SourcesConfig(Section):
    """Where data comes from, and how its files are read."""

    train: str | list[str] = Field(description="Files, folders, globs, or hub:NAME.")
    encoding: Annotated[str, AfterValidator(_encoding)] = Field(
        "utf-8", description="Of files of text, CSV and JSON, as cp1252 or gbk; auto: what the bytes of each look like."
    )
    text_files: Annotated[tuple[str, ...], AfterValidator(_suffixes)] = Field(
        (), description="More endings of files that are text, like [.py, .md]; of .html without its tags."
    )
    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="Share of rows (pretraining: tokens) from each source of `train`, [3, 1]; each in its own epochs.",
    )

    @property
    def sources(self) -> list[str]:
        return [self.train] if isinstance(self.train, str) else self.train

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if len(self.weights) not in (0, len(self.sources)):
            raise ValueError(
                f"data.weights has {len(self.weights)} numbers, and data.train names {len(self.sources)} sources\n"
                "  → one for each, like data.train='[a.txt, b/]' data.weights='[3, 1]'"
            )
        return self
