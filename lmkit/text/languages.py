"""How translators of many languages mark the language of a text: NLLB and mBART-50 by a token before it, mBART by one
behind it, Marian by >>xx<< before the source, which names the language to write."""

import re
from dataclasses import dataclass

from lmkit.base.errors import UserError, did_you_mean
from lmkit.text.tokenizer import Tokenizer

CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")  # eng_Latn, en_XX
Languages = tuple[str | None, str | None]  # of a source, and of the text to write
BEFORE, BEHIND, IN_SOURCE = ("NllbTokenizer", "MBart50Tokenizer"), ("MBartTokenizer",), ("MarianTokenizer",)


@dataclass(frozen=True)
class PairFrame:
    """The control tokens around the texts of a pair; `start` and `forced` are as in `Opening`."""

    before_source: list[int]
    after_source: list[int]
    before_target: list[int]
    after_target: list[int]
    start: int | None = None  # None: what the model's config.json says
    forced: int | None = None


def language_codes(tokenizer: Tokenizer) -> list[str]:
    """Returns the names of the languages that the tokenizer has tokens for; [] for those without."""
    name = str(tokenizer.settings.get("tokenizer_class", "")).removesuffix("Fast")
    if name in IN_SOURCE:
        return sorted(piece[2:-2] for piece in tokenizer.vocab if piece.startswith(">>") and piece.endswith("<<"))
    if name not in BEFORE + BEHIND:
        return []
    return sorted(piece for piece, i in tokenizer.vocab.items() if i in tokenizer.special_ids and CODE.fullmatch(piece))


def plain_frame(tokenizer: Tokenizer) -> PairFrame:
    """Returns the frame of pairs without languages, which is that of documents."""
    return PairFrame(*tokenizer.document_frame, *tokenizer.document_frame)


def language_frame(tokenizer: Tokenizer, source_lang: str | None, target_lang: str | None) -> PairFrame:
    """Returns the frame of texts in these languages; None leaves the source to its default, the folder's `src_lang`.

    Raises UserError for a tokenizer without languages, and for a language that it does not have."""
    codes = language_codes(tokenizer)
    source_lang = source_lang or tokenizer.settings.get("src_lang")
    if not codes:
        raise UserError("the model's tokenizer has no tokens for languages\n  → leave out source_lang and target_lang")
    name = str(tokenizer.settings["tokenizer_class"]).removesuffix("Fast")
    needed = {"target_lang": target_lang} | ({} if name in IN_SOURCE else {"source_lang": source_lang})
    for key, code in needed.items():
        if code not in codes:
            raise UserError(f"{key} {code!r} is no language of this model{did_you_mean(str(code), codes)}")
    if name in IN_SOURCE:
        code = tokenizer.vocab[f">>{target_lang}<<"]
        before, after = tokenizer.document_frame
        return PairFrame([*before, code], after, before, after)
    source, target = (tokenizer.vocab[str(code)] for code in (source_lang, target_lang))
    end = [tokenizer.eos_id]
    if name in BEHIND or tokenizer.settings.get("legacy_behaviour"):
        return PairFrame([], [*end, source], [], end, start=target)
    return PairFrame([source], end, [target], end, start=tokenizer.eos_id, forced=target)
