"""Converts a sentencepiece .model (Unigram or BPE) into a tokenizers object that gives the same ids."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmkit.base.errors import ModelError
from lmkit.text.special import cuts_inside
from lmkit.text.tokenizer_classes import SPACE, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # piece types of sentencepiece_model.proto
SAMPLE = [
    "Hello world, tokenization!",
    " leading, trailing \n and  double   spaces\t",
    "naïve façade: 3.14159 + ½ ﬁne １２",
    "Привет, мир. 你好,世界。こんにちは עברית",
    "🤖\u200d👧 e\u0301 \u200b \u00a0|",
    "def f(x):\n    return x ** 2  # ok\r\n",
    "aaaa AAAA 0000 ....",
]


@dataclass
class Spec:
    """The part of a sentencepiece model on which ids depend."""

    pieces: list[tuple[str, float, int]]  # text, score, type
    model_type: int = 1  # 1 unigram, 2 bpe, 3 word, 4 char
    byte_fallback: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read_model(model: bytes, name: str) -> Spec:
    """Returns the part of a model on which ids depend.

    model: the content of a .model file; name: its name in errors. Raises ModelError for a damaged one."""
    import sentencepiece

    try:
        sentencepiece.SentencePieceProcessor(model_proto=model)
        return _read(model)
    except Exception as error:  # the library raises RuntimeError, and damaged bytes may raise other errors
        raise ModelError(f"{name} is not a sentencepiece model: {error}") from error


def as_library(model: bytes, name: str) -> "Backend":
    """Returns a tokenizer that gives the ids of the sentencepiece library.

    Raises ModelError for a damaged model, and where the two disagree on a sample."""
    import sentencepiece

    spec = read_model(model, name)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    if spec.model_type not in (1, 2) or not spec.escape_whitespaces:
        raise ModelError(f"{name}: only sentencepiece models of type unigram and bpe can be read")
    backend = _build(spec)
    backend.encode_special_tokens = True
    texts = sample_texts([text for text, _, kind in spec.pieces if kind == NORMAL])
    texts += [unicodedata.normalize("NFD", text) for text in texts]  # some systems write names of files in this form
    texts += [f"a {text} b{text}  {text}" for text, _, kind in spec.pieces if kind == USER][:100]
    for text in texts:
        ours, theirs = backend.encode(text, add_special_tokens=False).ids, library.encode(text)
        if ours != theirs:
            raise ModelError(
                f"{name} cannot be converted exactly: on {text[:60]!r} sentencepiece gives {theirs[:12]}, "
                f"the conversion {ours[:12]}\n"
                "  → convert it to a tokenizer.json with the software it came from"
            )
    return backend


def sample_texts(pieces: list[str]) -> list[str]:
    """Returns texts to compare two tokenizers on: some of any kind, and some made of these pieces."""
    step = max(40, len(pieces) // 200)
    return SAMPLE + ["".join(pieces[i : i + 40]).replace(SPACE, " ") for i in range(0, len(pieces), step)]


def vocabulary_of(spec: Spec, kind: str, settings: Mapping[str, Any], sentinels: int) -> Vocabulary:
    """Returns what a tokenizer class reads from a model file.

    kind: Unigram or BPE, as the class expects it. sentinels: how many sentinels of T5 follow the pieces, the last one
    first. Raises ModelError for a model of the other kind."""
    if spec.model_type != (1 if kind == "Unigram" else 2):
        raise ModelError(f"its sentencepiece model is no {kind} model, as its tokenizer_class reads")
    if kind == "BPE":
        ids = {text: i for i, (text, _, _) in enumerate(spec.pieces)}
        whole = [text for text, _, kind in spec.pieces if kind == USER]
        return Vocabulary(ids, merges=_merges(spec, (NORMAL, USER)), whole=whole, settings=settings)
    scored = [(text, float(f"{score:.9g}")) for text, score, _ in spec.pieces]
    scored += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(sentinels))]
    return Vocabulary(scored=scored, charsmap=spec.charsmap, settings=settings)


def _build(spec: Spec) -> "Backend":
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    unk_id = next(i for i, (_, _, kind) in enumerate(spec.pieces) if kind == UNKNOWN)
    if spec.model_type == 1:
        # Nine digits identify a float32; tokenizers changes the last bit of longer numbers when it reads them.
        scored = [(text, float(f"{score:.9g}")) for text, score, _ in spec.pieces]
        backend = Tokenizer(models.Unigram(scored, unk_id=unk_id, byte_fallback=spec.byte_fallback))
    else:
        vocabulary = {text: i for i, (text, _, _) in enumerate(spec.pieces)}
        unk = spec.pieces[unk_id][0]
        backend = Tokenizer(
            models.BPE(
                vocabulary, _merges(spec, (NORMAL,)), unk_token=unk, fuse_unk=True, byte_fallback=spec.byte_fallback
            )
        )
    steps: list[normalizers.Normalizer] = []
    if spec.charsmap:  # tokenizers looks up single characters, the library also decomposed ones
        steps = [normalizers.NFC(), normalizers.Precompiled(spec.charsmap)]
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(SPACE)] if spec.add_dummy_prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in _split_patterns(spec)]
    if splits:
        backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(undo + ([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []))
    control = [text for text, _, kind in spec.pieces if kind in (UNKNOWN, CONTROL)]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    user = [text for text, _, kind in spec.pieces if kind == USER]
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in user])
    return backend


def _split_patterns(spec: Spec) -> Iterator[str]:
    """Yields cuts that change no ids of ordinary text: at spaces, for speed, and inside the names of control pieces, so
    that text cannot become them."""
    if not any(re.search(f"[^{SPACE}]{SPACE}", text) for text, _, kind in spec.pieces if kind == NORMAL):
        yield f"{SPACE}*[^{SPACE}]+|{SPACE}+"
    if spec.model_type == 1:  # Unigram looks up every entry, so a text that spells "<s>" or "<0x0A>" would become it
        hidden = [text for text, _, kind in spec.pieces if kind in (UNKNOWN, CONTROL, UNUSED)]
        yield "|".join([r"<(?=0x[0-9A-F]{2}>)", cuts_inside(hidden)])


def _merges(spec: Spec, kinds: tuple[int, ...]) -> list[tuple[str, str]]:
    """Returns every way to make a piece of two others, in the order of sentencepiece: the highest score first.

    kinds: the types of pieces that are used. transformers also merges pieces that users defined, which the library
    only finds as a whole."""
    usable = {text: (-score, i) for i, (text, score, kind) in enumerate(spec.pieces) if kind in kinds}
    merges = []
    for text, rank in usable.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in usable and right in usable:
                merges.append((rank, usable[left][1], usable[right][1], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def _read(model: bytes) -> Spec:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made when imported

    proto = ModelProto.FromString(model)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    return Spec(
        [(piece.piece, piece.score, piece.type) for piece in proto.pieces], trainer.model_type, trainer.byte_fallback,
        normalizer.precompiled_charsmap, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces,
        normalizer.escape_whitespaces,
    )  # fmt: skip
