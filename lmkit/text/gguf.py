"""The tokenizer inside a GGUF file, read and written by the rules of llama.cpp."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lmkit.base.errors import ModelError
from lmkit.base.gguf_file import GgufFile, read_gguf
from lmkit.text.pieces import BYTE as BYTE_PIECE
from lmkit.text.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER, as_library, sample_texts
from lmkit.text.special import Special
from lmkit.text.tokenizer import Tokenizer, add_ends
from lmkit.text.tokenizer_classes import QWEN2_SPLIT

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.pre_tokenizers import PreTokenizer

KEY = "tokenizer.ggml."
TEMPLATE_KEY = "tokenizer.chat_template"
ROLE_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
NO_TOKENIZER = "llama.cpp has no tokenizer like this one:"


class Cut(NamedTuple):
    """How a byte-level BPE tokenizer cuts text into words before it merges."""

    split: str = ""  # a regular expression that finds words; "" for GPT-2's
    digits: bool = False  # whether every digit is a word of its own, before anything else is cut
    ignore_merges: bool = False  # whether a word that is in the vocabulary is one token without merging


_LLAMA3 = Cut(QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|"), ignore_merges=True)
# The names of llama-vocab.cpp in llama.cpp, with cuts that give the same words there and in `tokenizers`. The first
# name of a cut is the one that is written.
CUTS = {
    "qwen2": Cut(QWEN2_SPLIT), "deepseek-r1-qwen": Cut(QWEN2_SPLIT), "gpt-2": Cut(), "phi-2": Cut(),
    "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "falcon3": _LLAMA3,
    "dbrx": _LLAMA3._replace(ignore_merges=False), "smollm": Cut(digits=True), "starcoder": Cut(digits=True),
    "refact": Cut(digits=True),
}  # fmt: skip


# ---------------------------------------------------------------- in


def tokenizer_of_gguf(path: Path) -> Tokenizer:
    """Returns the tokenizer in a GGUF file. Raises ModelError where it is damaged, or lmkit does not have its rules."""
    return _tokenizer(read_gguf(path))


def template_of_gguf(path: Path) -> str | None:
    """Returns the chat template in a GGUF file, or None."""
    template = read_gguf(path).metadata.get(TEMPLATE_KEY)
    return template if isinstance(template, str) else None


def _tokenizer(file: GgufFile) -> Tokenizer:
    kind, metadata = file.needed(f"{KEY}model"), file.metadata
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"{file.path}: its tokenizer is of the kind {kind!r}\n  allowed: gpt2, llama")
    try:
        backend, tokens = (_byte_level if kind == "gpt2" else _sentencepiece)(file), file.needed(f"{KEY}tokens")
        usual = {"bos": 1, "eos": 2, "unk": 0} if kind == "llama" else {}
        ids = {role: metadata.get(f"{KEY}{key}_token_id", usual.get(role)) for role, key in ROLE_KEYS.items()}
        special = Special(**{role: tokens[i] for role, i in ids.items() if i is not None})
        bos_first = kind == "llama" or CUTS[metadata[f"{KEY}pre"]] is _LLAMA3  # unless the file says something else
        add_ends(
            backend,
            special.bos if metadata.get(f"{KEY}add_bos_token", bos_first) else None,
            special.eos if metadata.get(f"{KEY}add_eos_token") else None,
        )
        return Tokenizer(backend, special)
    except ModelError:
        raise
    except Exception as e:  # tokenizers raises bare Exception for damaged vocabularies
        raise ModelError(f"{file.path}: its tokenizer cannot be built: {e!r}") from None


def _pieces(file: GgufFile) -> list[tuple[str, int]]:
    """Returns the text and the type of each token, in the order of ids."""
    tokens = file.needed(f"{KEY}tokens")
    return list(zip(tokens, file.metadata.get(f"{KEY}token_type") or [NORMAL] * len(tokens), strict=True))


def _byte_level(file: GgufFile) -> "Backend":
    from tokenizers import AddedToken, Tokenizer, decoders, models

    name, pieces = file.needed(f"{KEY}pre"), _pieces(file)
    if name not in CUTS:
        raise ModelError(f"{file.path}: {KEY}pre is {name!r}\n  allowed: {', '.join(CUTS)}")
    vocabulary = {text: i for i, (text, kind) in enumerate(pieces) if kind != UNUSED}
    pairs: list[Any] = [(m[: (at := m.index(" ", 1))], m[at + 1 :]) for m in file.needed(f"{KEY}merges")]
    backend = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=CUTS[name].ignore_merges))
    backend.pre_tokenizer, backend.decoder = _pre_tokenizer(CUTS[name]), decoders.ByteLevel()
    for text, kind in pieces:
        if kind in (CONTROL, UNKNOWN):
            backend.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        elif kind == USER:
            backend.add_tokens([AddedToken(text, normalized=False, special=False)])
    return backend


def _pre_tokenizer(cut: Cut) -> "PreTokenizer":
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

    steps: list[PreTokenizer] = [Digits(individual_digits=True)] if cut.digits else []
    steps += [Split(Regex(cut.split), "isolated")] if cut.split else []
    steps.append(ByteLevel(add_prefix_space=False, use_regex=not cut.split))
    return steps[0] if len(steps) == 1 else Sequence(steps)


def _sentencepiece(file: GgufFile) -> "Backend":
    """Returns the tokenizer that gives the ids of the sentencepiece library for these pieces and scores."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made when imported

    proto, pieces = ModelProto(), _pieces(file)
    for (text, kind), score in zip(pieces, file.needed(f"{KEY}scores"), strict=True):
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, any(kind == BYTE for _, kind in pieces)
    proto.trainer_spec.unk_piece = next(text for text, kind in pieces if kind == UNKNOWN)
    normal = proto.normalizer_spec
    normal.name, normal.add_dummy_prefix = "identity", bool(file.metadata.get(f"{KEY}add_space_prefix", True))
    normal.remove_extra_whitespaces = False  # llama.cpp never removes them
    return as_library(proto.SerializeToString(), str(file.path))


# ---------------------------------------------------------------- out


def tokenizer_metadata(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """Returns the keys of a GGUF file that make llama.cpp give the ids of this tokenizer.

    rows: of the model's embedding; those without a token get one that no text becomes. Raises ModelError for a
    tokenizer whose rules llama.cpp does not have."""
    model = tokenizer.definition["model"]
    if model["type"] != "BPE" or not model["merges"]:
        how = model["type"] if model["type"] != "BPE" else "BPE without merges"
        raise ModelError(f"{NO_TOKENIZER} its model is {how}\n  allowed: BPE")
    by_id, added = {i: text for text, i in tokenizer.vocab.items()}, tokenizer.backend.get_added_tokens_decoder()
    if greedy := [t.content for t in added.values() if not t.special and (t.lstrip or t.rstrip or t.single_word)]:
        raise ModelError(f"{NO_TOKENIZER} its token {greedy[0]!r} takes in the spaces beside it, or must be a word")
    types = [USER if i in added else NORMAL if i in by_id else UNUSED for i in range(rows)]
    types = [CONTROL if i in tokenizer.special_ids else kind for i, kind in enumerate(types)]
    frame = tokenizer.backend.encode("a", add_special_tokens=True).ids
    keys: dict[str, Any] = {"tokens": [by_id.get(i, f"[PAD{i}]") for i in range(rows)], "token_type": types}
    keys |= {"add_bos_token": frame[0] == tokenizer.bos_id, "add_eos_token": frame[-1] == tokenizer.eos_id}
    ids = {f"{key}_token_id": getattr(tokenizer, f"{role}_id") for role, key in ROLE_KEYS.items()}
    keys |= {key: i for key, i in ids.items() if i is not None}
    add = _add_byte_level if tokenizer.is_byte_level else _add_sentencepiece
    return add(tokenizer, {f"{KEY}{key}": value for key, value in keys.items()})


def _add_byte_level(tokenizer: Tokenizer, keys: dict[str, Any]) -> dict[str, Any]:
    """Returns `keys` with those of a byte-level tokenizer. Its NFC is left out, as llama.cpp does for Qwen."""
    state = lambda step: step.__getstate__().replace(b'"trim_offsets":false', b'"trim_offsets":true')
    model, split = tokenizer.definition["model"], state(tokenizer.backend.pre_tokenizer)
    fitting = [n for n, c in CUTS.items() if state(_pre_tokenizer(c)) == split and c[2] == model["ignore_merges"]]
    if not fitting or (tokenizer.definition["normalizer"] or {}).get("type") not in (None, "NFC"):
        raise ModelError(
            f"{NO_TOKENIZER} it cuts words by {split.decode()}\n  allowed: {', '.join(CUTS)}\n"
            "  → `lmkit tokenize TEXT --out NEW` trains one that it has; the model must then be trained anew"
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return keys | {f"{KEY}model": "gpt2", f"{KEY}pre": fitting[0], f"{KEY}merges": merges}


def _add_sentencepiece(tokenizer: Tokenizer, keys: dict[str, Any]) -> dict[str, Any]:
    """Returns `keys` with those of BPE over pieces with ▁, whose merges become scores.

    What llama.cpp would make of them is compared with the tokenizer itself on a sample."""
    tokens, types, ranks = keys[f"{KEY}tokens"], keys[f"{KEY}token_type"], dict[str, int]()
    for rank, merge in enumerate(tokenizer.definition["model"]["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    for i, text in enumerate(tokens):
        if i == tokenizer.unk_id or (types[i] == NORMAL and BYTE_PIECE.fullmatch(text)):
            types[i] = UNKNOWN if i == tokenizer.unk_id else BYTE
    keys |= {f"{KEY}model": "llama", f"{KEY}pre": "default"}
    keys[f"{KEY}scores"] = [float(-ranks.get(text, len(ranks))) for text in tokens]
    texts = [text.lstrip() for text in sample_texts(tokens)]  # llama.cpp alone doubles a space at the start
    for prefix in (True, False):
        keys[f"{KEY}add_space_prefix"] = prefix
        if _tokenizer(GgufFile(Path("its GGUF"), keys, {})).encode_batch(texts) == tokenizer.encode_batch(texts):
            return keys
    raise ModelError(f"{NO_TOKENIZER} its pieces with ▁ are not merged as sentencepiece merges them")
