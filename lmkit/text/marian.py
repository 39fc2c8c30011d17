"""The tokenizer of Marian's folders (opus-mt).

A sentencepiece model makes pieces of sources, another one those of targets, and a vocab.json gives the ids of both. The
library itself makes the pieces, as in MarianTokenizer."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lmkit.base.errors import ModelError, UserError
from lmkit.base.files import write_atomic, write_json
from lmkit.text.special import Special
from lmkit.text.tokenizer import Tokenizer, read_object

SOURCE, TARGET, VOCABULARY = "source.spm", "target.spm", "vocab.json"
LANGUAGE = re.compile(r">>.*?<<")  # begins a source, where the model writes several languages


class MarianTokenizer(Tokenizer):
    """Makes ids of sources; `for_targets` makes those of targets. Both decode alike."""

    def __init__(self, models: tuple[bytes, bytes], ids: dict[str, int], settings: Mapping[str, Any], side: int = 0):
        """models: the content of both .spm files; ids: of vocab.json; side: 0 for sources, 1 for targets.

        Raises ModelError for a model that sentencepiece cannot read, and for ids without the control tokens."""
        from sentencepiece import SentencePieceProcessor
        from tokenizers import AddedToken, processors
        from tokenizers import Tokenizer as Backend
        from tokenizers import models as kinds

        special = Special(eos="</s>", unk="<unk>", pad="<pad>")
        if missing := [token for token in special.tokens if token not in ids]:
            raise ModelError(f"{VOCABULARY}: it has no {missing[0]}")
        try:
            self._library = SentencePieceProcessor(model_proto=models[side])
        except RuntimeError as error:
            raise ModelError(f"{(SOURCE, TARGET)[side]} is not a sentencepiece model: {error}") from None
        self._models, self._ids = models, ids
        self._pieces = {i: piece for piece, i in ids.items()}
        backend = Backend(kinds.WordLevel(ids, unk_token="<unk>"))
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in special.tokens])
        backend.post_processor = processors.TemplateProcessing("$A </s>", "$A $B </s>", [("</s>", ids["</s>"])])
        super().__init__(backend, special, {"tokenizer_class": "MarianTokenizer"} | dict(settings))

    @cached_property
    def for_targets(self) -> Tokenizer:
        return MarianTokenizer(self._models, self._ids, self.settings, side=1)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        codes = [match[0] if (match := LANGUAGE.match(text)) else "" for text in texts]
        bare = [text[len(code) :] for code, text in zip(codes, texts, strict=True)]
        try:
            pieces = self._library.encode(bare, out_type=str)
        except (UnicodeEncodeError, RuntimeError):
            raise UserError("text holds half of a surrogate pair, which is no character") from None
        rows = ([code, *row] if code else row for code, row in zip(codes, pieces, strict=True))
        return [[self._ids.get(piece, self._ids["<unk>"]) for piece in row] for row in rows]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        shown = (i for i in ids if not (skip_special and i in self.special_ids))
        return self._library.decode_pieces([self._pieces.get(i, "") for i in shown]).replace("▁", " ").strip()

    @cached_property
    def fingerprint(self) -> str:
        """Returns the sha256 of the ids and both models."""
        return hashlib.sha256("".join([super().fingerprint, *(m.hex() for m in self._models)]).encode()).hexdigest()

    def save(self, folder: Path, max_length: int | None = None, segments: bool | None = None) -> None:
        """Writes what `Tokenizer.save` does, and the three files in the place of tokenizer.json."""
        super().save(folder, max_length, segments)
        (folder / "tokenizer.json").unlink()
        for name, model in zip((SOURCE, TARGET), self._models, strict=True):
            write_atomic(folder / name, model)
        write_json(folder / VOCABULARY, self._ids)


def read_marian(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer in a folder of Marian's.

    Raises ModelError for one that is damaged, and for one with two vocabularies."""
    if settings.get("separate_vocabs"):
        raise ModelError(
            f"{folder}: sources and targets have vocabularies of their own (separate_vocabs), not supported"
        )
    ids = read_object(folder / VOCABULARY)
    if not all(type(i) is int for i in ids.values()):
        raise ModelError(f"{folder / VOCABULARY}: not an object of pieces and their ids")
    try:
        models = (folder / SOURCE).read_bytes(), (folder / TARGET).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder}: {error.strerror}: {SOURCE} and {TARGET} belong together") from None
    return MarianTokenizer(models, ids, settings)
