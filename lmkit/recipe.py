"""What a recipe may say: every key, its type, default and meaning, in one place. No torch here."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lmkit import units

Count = Annotated[int, BeforeValidator(units.count)]
Tokens = Annotated[int, BeforeValidator(lambda v: units.count(v, "token"))]
Share = Annotated[float, BeforeValidator(units.fraction)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are checked, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


class TokenizerConfig(Section):
    type: Literal["bpe", "wordpiece", "unigram", "sentencepiece", "bytes"] = Field(
        "bpe", description="Kind to train: byte-level BPE, WordPiece, Unigram with byte fallback, sentencepiece, raw bytes."
    )
    vocab_size: Count = Field(
        4096, ge=260, description="Entries, special tokens included. Small models on a CPU want 2k-8k: the head dominates."
    )
    path: str | None = Field(
        None, description="Take this tokenizer instead: a tokenizer.json, Hugging Face folder, sentencepiece .model or run."
    )
    lowercase: bool = Field(False, description="WordPiece only: lower-case and strip accents, as uncased BERT does.")
    sample: Annotated[int, BeforeValidator(units.count)] = Field(
        100_000_000, ge=1, description="Bytes of text to train the tokenizer on, drawn evenly from all inputs."
    )


class DataConfig(Section):
    train: str | list[str] = Field(description="Files, folders, globs, a folder made by `lmkit tokenize`, or hub:NAME.")
    validation: Share | str | list[str] = Field(
        0.05, description="Share of the documents held out, chosen by document hash; or files of their own."
    )
    separator: str | None = Field(
        None, description="Text that ends a document inside .txt files, like '<|endoftext|>'. None: a file is a document."
    )
    text: str = Field("text", description="Column or key that holds the text in .jsonl, .csv and .parquet.")
