"""The tokenizer inside a GGUF file, read and written by the rules of llama.cpp."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lmkit.base.errors import ModelError
from lmkit.base.gguf_file import GgufFile, read_gguf
from lmkit.text.pieces import BYTE as BYTE_PIECE
from lmkit.text.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER, as_library, sample_texts
from lmkit.text.special import Special
from lmkit.text.tokenizer import Tokenizer
from lmkit.text.tokenizer_classes import QWEN2_SPLIT

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.pre_tokenizers import PreTokenizer

KEY = "tokenizer.ggml."
TEMPLATE_KEY = "tokenizer.chat_template"
ROLE_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}


class Cut(NamedTuple):
    """How a byte-level BPE tokenizer cuts text into words before it merges."""

    split: str = ""  # a regular expression that finds words; "" for GPT-2's
    digits: bool = False  # whether every digit is a word of its own, before anything else is cut
    ignore_merges: bool = False  # whether a word that is in the vocabulary is one token without merging


LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# The names of llama-vocab.cpp in llama.cpp, with cuts that give the same words there and in `tokenizers`. The first
# name of a cut is the one that is written.
CUTS = {
    "qwen2": Cut(QWEN2_SPLIT), "deepseek-r1-qwen": Cut(QWEN2_SPLIT), "megrez": Cut(QWEN2_SPLIT),
    "gpt-2": Cut(), "phi-2": Cut(), "mellum": Cut(), "exaone4": Cut(),
    "llama-bpe": Cut(LLAMA3_SPLIT, ignore_merges=True), "llama3": Cut(LLAMA3_SPLIT, ignore_merges=True),
    "llama-v3": Cut(LLAMA3_SPLIT, ignore_merges=True), "falcon3": Cut(LLAMA3_SPLIT, ignore_merges=True),
    "dbrx": Cut(LLAMA3_SPLIT), "smaug-bpe": Cut(LLAMA3_SPLIT),
    "smollm": Cut(digits=True), "starcoder": Cut(digits=True), "refact": Cut(digits=True),
}  # fmt: skip
BOS_FIRST = ("llama-bpe", "llama3", "llama-v3", "falcon3")  # llama.cpp puts BOS before texts unless the file says no


# ---------------------------------------------------------------- in


def tokenizer_of_gguf(path: Path) -> Tokenizer:
    """Returns the tokenizer in a GGUF file. Raises ModelError where it is damaged, or lmkit does not have its rules."""
    file = read_gguf(path)
    kind = file.needed(f"{KEY}model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"{path}: its tokenizer is of the kind {kind!r}\n  allowed: gpt2, llama")
    try:
        backend = _byte_level(file) if kind == "gpt2" else _sentencepiece(file)
        return _with_roles(file, backend, kind)
    except ModelError:
        raise
    except Exception as e:  # tokenizers raises bare Exception for damaged vocabularies
        raise ModelError(f"{path}: its tokenizer cannot be built: {e!r}") from None


def template_of_gguf(path: Path) -> str | None:
    """Returns the chat template in a GGUF file, or None."""
    template = read_gguf(path).metadata.get(TEMPLATE_KEY)
    return template if isinstance(template, str) else None


def _pieces(file: GgufFile) -> list[tuple[str, int]]:
    """Returns the text and the type of each token, in the order of ids."""
    tokens = file.needed(f"{KEY}tokens")
    return list(zip(tokens, file.metadata.get(f"{KEY}token_type") or [NORMAL] * len(tokens), strict=True))


def _byte_level(file: GgufFile) -> "Backend":
    from tokenizers import AddedToken, Tokenizer, decoders, models

    name = file.needed(f"{KEY}pre")
    if name not in CUTS:
        raise ModelError(f"{file.path}: {KEY}pre is {name!r}\n  allowed: {', '.join(CUTS)}")
    pieces, merges = _pieces(file), file.metadata.get(f"{KEY}merges", [])
    vocabulary = {text: i for i, (text, kind) in enumerate(pieces) if kind != UNUSED}
    pairs: list[Any] = [(merge[: (at := merge.index(" ", 1))], merge[at + 1 :]) for merge in merges]
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


def _with_roles(file: GgufFile, backend: "Backend", kind: str) -> Tokenizer:
    from tokenizers.processors import TemplateProcessing

    metadata, tokens = file.metadata, file.needed(f"{KEY}tokens")
    ids = {role: metadata.get(f"{KEY}{key}_token_id") for role, key in ROLE_KEYS.items()}
    ids = ({"bos": 1, "eos": 2, "unk": 0} if kind == "llama" else {}) | {r: i for r, i in ids.items() if i is not None}
    special = Special(**{role: tokens[i] for role, i in ids.items()})
    bos_first = kind == "llama" or metadata.get(f"{KEY}pre") in BOS_FIRST
    first = special.bos if metadata.get(f"{KEY}add_bos_token", bos_first) else None
    last = special.eos if metadata.get(f"{KEY}add_eos_token", False) else None
    single, second = ([t for t in (first, text, last) if t] for text in ("$A", "$B"))
    ends = [(token, backend.token_to_id(token)) for token in dict.fromkeys((first, last)) if token]
    backend.post_processor = TemplateProcessing(single=single, pair=[*single, *second], special_tokens=ends)
    return Tokenizer(backend, special)


# ---------------------------------------------------------------- out


def tokenizer_metadata(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """Returns the keys of a GGUF file that make llama.cpp give the ids of this tokenizer.

    rows: of the model's embedding; those without a token get one that no text becomes. Raises ModelError for a
    tokenizer whose rules llama.cpp does not have."""
    definition = tokenizer.definition
    if definition["model"]["type"] != "BPE":
        raise ModelError(f"{_REFUSED} its model is {definition['model']['type']}\n  allowed: BPE")
    by_id, added = {i: text for text, i in tokenizer.vocab.items()}, {t["id"]: t for t in definition["added_tokens"]}
    if flagged := [t["content"] for t in added.values() if not t["special"] and any(t[flag] for flag in _FLAGS)]:
        raise ModelError(f"{_REFUSED} its token {flagged[0]!r} takes in the spaces beside it, or must be a whole word")
    types = [USER if i in added else NORMAL if i in by_id else UNUSED for i in range(rows)]
    types = [CONTROL if i in tokenizer.special_ids else kind for i, kind in enumerate(types)]
    ids = {f"{KEY}{key}_token_id": getattr(tokenizer, f"{r}_id", None) for r, key in ROLE_KEYS.items()}
    frame = tokenizer.backend.encode("a", add_special_tokens=True).ids
    ends = {f"{KEY}add_bos_token": frame[0] == tokenizer.bos_id, f"{KEY}add_eos_token": frame[-1] == tokenizer.eos_id}
    tokens = {f"{KEY}tokens": [by_id.get(i, f"[PAD{i}]") for i in range(rows)]}
    kind = _byte_level_keys(tokenizer) if tokenizer.is_byte_level else None
    common = tokens | {k: i for k, i in ids.items() if i is not None} | ends
    if kind is not None:
        return common | {f"{KEY}token_type": types} | kind
    return _sentencepiece_keys(tokenizer, common, types)


_REFUSED = "llama.cpp has no tokenizer like this one:"
_FLAGS = ("lstrip", "rstrip", "single_word")


def _byte_level_keys(tokenizer: Tokenizer) -> dict[str, Any]:
    model, cut = tokenizer.definition["model"], _cut_of(tokenizer.definition)
    name = next((name for name, known in CUTS.items() if known == cut), None)
    if name is None:
        how = "has a normalizer or prefix" if cut is None else f"cuts words by {cut.split!r}"
        raise ModelError(
            f"{_REFUSED} it {how}\n  allowed: {', '.join(dict.fromkeys(CUTS))}\n"
            "  → a tokenizer that this version of `lmkit tokenize` trains can be exported"
        )
    if not model["merges"]:
        raise ModelError(f"{_REFUSED} it cuts text into bytes, and llama.cpp needs merges")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {f"{KEY}model": "gpt2", f"{KEY}pre": name, f"{KEY}merges": merges}


def _cut_of(definition: dict[str, Any]) -> Cut | None:
    """Returns how a byte-level tokenizer cuts words; None where it does more than `Cut` can say."""
    split, model = definition["pre_tokenizer"], definition["model"]
    *before, last = split.get("pretokenizers", [split])
    digits = [step for step in before if step["type"] == "Digits" and step["individual_digits"]]
    splits = [s["pattern"].get("Regex", "") for s in before if s["type"] == "Split" and s["behavior"] == "Isolated"]
    whole = len(digits) + len(splits) == len(before) and len(digits) < 2 and len(splits) < 2
    plain = not last.get("add_prefix_space") and last.get("use_regex", True) != bool(splits)
    if (definition["normalizer"] or {}).get("type") not in (None, "NFC") or not (whole and plain):
        return None
    return Cut("".join(splits), bool(digits), model["ignore_merges"])


def _sentencepiece_keys(tokenizer: Tokenizer, common: dict[str, Any], types: list[int]) -> dict[str, Any]:
    """Returns all keys of a BPE tokenizer over pieces with ▁, whose merges become scores.

    What llama.cpp would make of them is compared with the tokenizer itself on a sample."""
    tokens, ranks = common[f"{KEY}tokens"], dict[str, int]()
    for rank, merge in enumerate(tokenizer.definition["model"]["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    types = [
        BYTE if kind == NORMAL and BYTE_PIECE.fullmatch(t) else kind for t, kind in zip(tokens, types, strict=True)
    ]
    if tokenizer.unk_id is not None:
        types[tokenizer.unk_id] = UNKNOWN
    keys = common | {f"{KEY}model": "llama", f"{KEY}pre": "default", f"{KEY}token_type": types}
    keys[f"{KEY}scores"] = [float(-ranks.get(text, len(ranks))) for text in tokens]
    for prefix in (True, False):
        keys[f"{KEY}add_space_prefix"] = prefix
        other = Tokenizer(_sentencepiece(GgufFile(Path("the file"), keys, {})), tokenizer.special)
        texts = [text.lstrip() for text in sample_texts(tokens)]  # a space at the start is doubled in llama.cpp alone
        if other.encode_batch(texts) == tokenizer.encode_batch(texts):
            return keys
    raise ModelError(f"{_REFUSED} its pieces with ▁ are not merged as sentencepiece merges them")
