"""The one interface of tokenizers. Every tokenizer can be saved as a tokenizer.json that gives transformers the same
ids."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmkit.base.errors import ModelError, UserError
from lmkit.base.files import write_atomic, write_json
from lmkit.text.special import Special, cuts_inside

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

ROLES = [f.name for f in fields(Special) if f.name != "extra"]

# The replacements of `clean_up_tokenization_spaces` in a decoded text, in order; like transformers, we skip BPE.
CLEANED = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'"} | {
    f" {end}": end for end in ("n't", "'m", "'s", "'ve", "'re")
}
# The inputs of a model, without and with segments. GPT-2 would take token types for words, and add their embeddings.
INPUTS = {
    False: ["input_ids", "attention_mask"],
    True: ["input_ids", "token_type_ids", "attention_mask"],
}
# Settings that `save` writes itself, or that name files which a saved folder does not have.
REWRITTEN = (
    "added_tokens_decoder",
    "chat_template",
    "auto_map",
    "name_or_path",
    "tokenizer_file",
    "vocab_file",
    "backend",
)


class Tokenizer:
    """Turns text into ids and back.

    Text that spells a control token stays ordinary text, so control tokens can only be given as ids. `with_gaps` also
    reads those that stand for gaps."""

    def __init__(self, backend: "Backend", special: Special, settings: Mapping[str, Any] | None = None):
        """settings: the tokenizer_config.json of the folder it was read from; `save` keeps what it can of it."""
        self.settings = dict(settings or {})
        backend.encode_special_tokens = True
        backend.no_truncation()  # files of sentence encoders may ask for truncation and padding
        backend.no_padding()
        self.backend, self.special = backend, special
        for role in ROLES:
            token = getattr(special, role)
            if token is not None and backend.token_to_id(token) is None:
                raise ModelError(f"tokenizer: its {role} token {token!r} is not in its own vocabulary")
        self._hide_control_tokens()

    def _hide_control_tokens(self) -> None:
        """Adds a cut inside control tokens that the model would find in text.

        A Unigram model of another tool may have `</s>` in its vocabulary, and use it when a text spells it."""
        from tokenizers import Regex, pre_tokenizers

        control = [token for token, i in self.vocab.items() if i in self.special_ids and i != self.unk_id]
        spelled = self.encode_batch([f"{token} a{token}a" for token in control])
        visible = [t for t, ids in zip(control, spelled, strict=True) if (self.special_ids - {self.unk_id}) & set(ids)]
        if visible:
            before = [self.backend.pre_tokenizer] if self.backend.pre_tokenizer else []
            cut = pre_tokenizers.Split(Regex(cuts_inside(sorted(visible))), "isolated")
            self.backend.pre_tokenizer = pre_tokenizers.Sequence([*before, cut])

    @cached_property
    def vocab(self) -> dict[str, int]:
        return self.backend.get_vocab(with_added_tokens=True)

    @cached_property
    def vocab_size(self) -> int:
        """Returns the number of rows that an embedding needs: the largest id + 1, added tokens included."""
        return max(self.vocab.values()) + 1

    def unused_ids(self, vocab_size: int) -> tuple[int, ...]:
        """Returns the ids below `vocab_size`, a model's number of embeddings, that stand for no token."""
        return tuple(sorted(set(range(vocab_size)) - set(self.vocab.values())))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        added = self.backend.get_added_tokens_decoder()
        named = (self._role(role) for role in ROLES)
        return frozenset([i for i, token in added.items() if token.special] + [i for i in named if i is not None])

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def _role(self, role: str) -> int | None:
        token = getattr(self.special, role)
        return None if token is None else self.token_id(token)

    bos_id = property(lambda self: self._role("bos"))
    eos_id = property(lambda self: self._role("eos"))
    pad_id = property(lambda self: self._role("pad"))
    unk_id = property(lambda self: self._role("unk"))
    mask_id = property(lambda self: self._role("mask"))
    cls_id = property(lambda self: self._role("cls"))
    sep_id = property(lambda self: self._role("sep"))

    @cached_property
    def sentinels(self) -> list[int]:
        """Returns the ids of <extra_id_0>, <extra_id_1>, ..., as many as there are."""
        ids: list[int] = []
        while (i := self.token_id(f"<extra_id_{len(ids)}>")) is not None:
            ids.append(i)
        return ids

    @cached_property
    def gaps(self) -> dict[str, int]:
        """Returns the control tokens that stand for a part of a text, with their ids: the mask and T5's sentinels."""
        named = {} if self.special.mask is None else {self.special.mask: self.mask_id}
        return named | {f"<extra_id_{n}>": i for n, i in enumerate(self.sentinels)}

    @cached_property
    def with_gaps(self) -> "Tokenizer":
        """Returns the same tokenizer for texts with gaps: it finds these tokens in text, and `decode` shows them.

        All other control tokens stay hidden."""
        from tokenizers import Tokenizer as Backend

        if not self.gaps:
            return self
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        added = {token["content"]: token for token in self.definition["added_tokens"]}
        added |= {token: {"id": i, "content": token} | plain for token, i in self.gaps.items()}
        changed = self.definition | {"added_tokens": sorted(added.values(), key=lambda token: token["id"])}
        return Tokenizer(
            Backend.from_str(json.dumps(changed)), replace(self.special, mask=None, extra=()), self.settings
        )

    @property
    def for_targets(self) -> "Tokenizer":
        """Returns the tokenizer of the texts that an encoder-decoder writes; only Marian's is another one."""
        return self

    @property
    def document_frame(self) -> tuple[list[int], list[int]]:
        """Returns the ids before and after a document in training data.

        Before it is BOS, where there is one; after it EOS ([SEP] in BERT's family), unless that is the same token."""
        end = self.sep_id if self.bos_id is None and self.eos_id is None else self.eos_id
        return [i for i in [self.bos_id] if i is not None], [i for i in [end] if i not in (None, self.bos_id)]

    @cached_property
    def first_ids(self) -> list[int]:
        """Returns the control tokens that the tokenizer's own rules put before a text: BOS, [CLS] or nothing."""
        encoding = self.backend.encode("a", add_special_tokens=True)
        ahead = takewhile(lambda token: token[1], zip(encoding.ids, encoding.special_tokens_mask, strict=True))
        return [token_id for token_id, _ in ahead]

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the text alone, without BOS, EOS, [CLS] or [SEP].

        Raises UserError for text that is not valid Unicode, and ModelError where the tokenizer cannot spell it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Does what `encode` does for several texts, on all cores."""
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            broken = [t for t in texts if not t.isascii() and any("\ud800" <= c <= "\udfff" for c in t)]
            if not broken:
                raise
            raise UserError(f"text holds half of a surrogate pair, which is no character: {broken[0][:40]!r}") from None
        except Exception as error:  # tokenizers raises bare Exception where a vocabulary lacks its own unknown token
            if len(texts) > 1:
                return [self.encode(text) for text in texts]
            raise ModelError(
                f"the tokenizer ({self.definition['model']['type']}, {self.vocab_size:,} entries) cannot spell "
                f"{texts[0][:40]!r}: {error}\n"
                "  → take another tokenizer, or name a token of its vocabulary as unk_token in tokenizer_config.json"
            ) from None
        return [e.ids for e in encodings]

    def encode_control(self, text: str, framed: bool = False) -> list[int]:
        """Returns the ids of a text in which names of control tokens stand for these tokens. framed: between those that
        the tokenizer's own rules put around a text."""
        return self._control_backend.encode(text, add_special_tokens=framed).ids

    @cached_property
    def _control_backend(self) -> "Backend":
        """Returns the backend that finds control tokens in text."""
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(self.backend.to_str())
        backend.encode_special_tokens = False
        return backend

    def count_unknown(self, ids: Sequence[int] | np.ndarray) -> int:
        """Returns how many of `ids` stand for text that the vocabulary cannot spell."""
        return 0 if self.unk_id is None else int(np.count_nonzero(np.asarray(ids) == self.unk_id))

    @cached_property
    def drops_text(self) -> bool:
        """Says whether the tokenizer may drop text: BPE without an unknown token drops text that has no piece."""
        model = self.definition["model"]
        if model["type"] != "BPE" or model["unk_token"] is not None:
            return False
        named = [f"<0x{byte:02X}>" for byte in range(256)] if model["byte_fallback"] else byte_alphabet()
        return not ((model["byte_fallback"] or self.is_byte_level) and self.vocab.keys() >= set(named))

    @cached_property
    def is_byte_level(self) -> bool:
        """Says whether the model spells bytes, not characters."""
        split = self.definition["pre_tokenizer"] or {}
        return any(step.get("type") == "ByteLevel" for step in split.get("pretokenizers", [split]))

    def count_unspelt(self, texts: Iterable[str]) -> int:
        """Returns how many bytes of these texts the tokenizer drops. It is slow for tokenizers that drop text."""
        if not self.drops_text:
            return 0
        model, count = self.definition["model"], 0
        before, after = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
        pieces = {token.removeprefix(before).removesuffix(after) for token in self.vocab}
        normalizer, split = self.backend.normalizer, self.backend.pre_tokenizer
        for text in texts:
            text = normalizer.normalize_str(text) if normalizer else text
            words = [word for word, _ in split.pre_tokenize_str(text)] if split else [text]
            lost = [char for word in words for char in word if char not in pieces]
            count += len(lost) if self.is_byte_level else len("".join(lost).encode())
        return count

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        text = self.backend.decode(list(ids), skip_special_tokens=skip_special)
        if self.settings.get("clean_up_tokenization_spaces") and self.definition["model"]["type"] != "BPE":
            for spaced, clean in CLEANED.items():
                text = text.replace(spaced, clean)
        return text

    @cached_property
    def definition(self) -> dict[str, Any]:
        """Returns the content of tokenizer.json."""
        return json.loads(self.backend.to_str())

    @cached_property
    def lossless(self) -> bool:
        """Says whether decode(encode(text)) == text for every text: it works on bytes and normalises nothing."""
        split = self.definition["pre_tokenizer"] or {}
        prefixed = any(step.get("add_prefix_space") for step in split.get("pretokenizers", [split]))
        return self.is_byte_level and self.definition["normalizer"] is None and not prefixed and not self.drops_text

    @cached_property
    def fingerprint(self) -> str:
        """Returns the sha256 of tokenizer.json, with sorted keys and without spaces."""
        canonical = json.dumps(self.definition, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: Path, max_length: int | None = None, segments: bool | None = None) -> None:
        """Writes tokenizer.json and the two other files that AutoTokenizer reads.

        The class and the settings of the folder it was read from are kept. max_length: the most tokens that the model
        reads. segments: whether the model distinguishes the texts of a pair, so that AutoTokenizer must return
        `token_type_ids`; None: as the tokenizer's class does."""
        folder.mkdir(parents=True, exist_ok=True)
        named = {f"{role}_token": t for role in ROLES if (t := getattr(self.special, role)) is not None}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= {k: v for k, v in self.settings.items() if k not in REWRITTEN}
        config |= named | {"added_tokens_decoder": self._added_tokens()}
        if segments is not None:
            config["model_input_names"] = INPUTS[segments]
        if max_length is not None:
            config["model_max_length"] = max_length
        write_atomic(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        write_json(folder / "special_tokens_map.json", named)
        _write_config(folder, config)

    def _added_tokens(self) -> dict[str, dict[str, Any]]:
        return {
            str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in self.definition["added_tokens"]
        }


def copy_tokenizer(home: Path, folder: Path, segments: bool) -> None:
    """Copies what `Tokenizer.save` wrote from `home` into `folder`. segments: as for `Tokenizer.save`."""
    for file in home.iterdir():
        shutil.copyfile(file, folder / file.name)
    config = read_object(folder / "tokenizer_config.json")
    _write_config(folder, config | {"model_input_names": INPUTS[segments]})


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    """Writes tokenizer_config.json with sorted keys, so that a folder that is read and saved again is the same."""
    write_json(folder / "tokenizer_config.json", dict(sorted(config.items())))


def byte_alphabet() -> list[str]:
    """Returns GPT-2's visible character for each of the 256 bytes: the byte's own character where that can be printed,
    else the next free one after 255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in printable else next(hidden)) for byte in range(256)]


def add_post_processor(backend: "Backend", special: Special) -> None:
    """Sets what AutoTokenizer puts around a text: BOS before it for decoders; [CLS] and [SEP], or EOS, for others."""
    from tokenizers.processors import TemplateProcessing

    first = special.cls or special.bos
    last = special.sep or (special.eos if special.bos is None else None)
    head, tail = ([f"{first}:0"] if first else []), ([f"{last}:0"] if last else [])
    second = ["$B:1", f"{last}:1"] if last else ["$B:1"]
    if special.cls and special.cls == special.bos:  # RoBERTa's pair: <s> A </s></s> B </s>, all of type 0
        second = [f"{last}:0", "$B:0", f"{last}:0"]
    used = list(dict.fromkeys(t for t in (first, last) if t))
    backend.post_processor = TemplateProcessing(
        single=[*head, "$A:0", *tail],
        pair=[*head, "$A:0", *tail, *second],
        special_tokens=[(t, backend.token_to_id(t)) for t in used],
    )


def add_ends(backend: "Backend", first: str | None, last: str | None) -> None:
    """Puts these tokens, where they are given, before and after every text."""
    from tokenizers.processors import TemplateProcessing

    single, second = ([f"{token}:{n}" for token in (first, f"${side}", last) if token] for n, side in enumerate("AB"))
    tokens = [(token, backend.token_to_id(token)) for token in dict.fromkeys((first, last)) if token]
    backend.post_processor = TemplateProcessing(single=single, pair=[*single, *second], special_tokens=tokens)


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; {} where there is no file. Raises ModelError for other content."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold a JSON object, holds a {type(value).__name__}")
    return value


CHUNK = 4_000_000  # characters that are encoded at a time, since an encoding takes a hundred times the memory of a text
LONGEST = 1_000_000  # characters of a text that are used: of its beginning and its end; no model reads so many


class Framed(NamedTuple):
    ids: list[int]  # control tokens included
    types: list[int]  # which text of a pair each token belongs to, as BERT counts them
    offsets: list[tuple[int, int]]  # the characters that each token stands for; (0, 0) for control tokens
    texts: list[int | None]  # the text that each token belongs to, 0 or 1; None for control tokens
    cut: bool  # whether the text was longer

    def without_middle(self, length: int) -> "Framed":
        """Returns the text cut to `length` tokens: a quarter of them from its beginning, and the rest from its end.

        Of the ways to shorten texts that Sun et al. 2019 (5.3.1) compare, this is the best on long reviews and news."""
        if len(self.ids) <= length:
            return self
        before = next((i for i, text in enumerate(self.texts) if text is not None), 0)
        control = self.texts.count(None)
        begin = before + (length - control) // 4
        end = len(self.ids) - (length - begin)
        ids, types, offsets, texts, _ = self
        return Framed(
            ids[:begin] + ids[end:], types[:begin] + types[end:], offsets[:begin] + offsets[end:],
            texts[:begin] + texts[end:], True,
        )  # fmt: skip


def frame_texts(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 0
) -> list[Framed]:
    """Returns each text, or text and its pair, with control tokens and cut to `max_length` tokens (0: not cut).

    Texts are cut as in transformers: at the end, or at the beginning where the tokenizer's `truncation_side` says so;
    of a pair, the longer text is cut first. Raises UserError for text that is not valid Unicode, and ModelError for an
    unknown `truncation_side`."""
    backend = tokenizer.backend
    if max_length:
        side = tokenizer.settings.get("truncation_side") or "right"
        if side not in ("left", "right"):
            raise ModelError(f"tokenizer_config.json: truncation_side: {side!r}\n  allowed: left, right")
        backend.enable_truncation(max_length, strategy="longest_first", direction=side)
    sides = [[_ends(text) for text in side] for side in (texts, pairs) if side is not None]
    framed = []
    try:
        for part in _chunks(list(zip(*sides, strict=True))):
            for e in backend.encode_batch(part if pairs is not None else [text for (text,) in part]):
                framed.append(Framed(e.ids, e.type_ids, e.offsets, e.sequence_ids, bool(e.overflowing)))
    except (TypeError, UnicodeEncodeError) as e:
        raise UserError(f"a text is not valid Unicode: {e}") from None
    finally:
        backend.no_truncation()
    return framed


def _ends(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST // 2] + text[-LONGEST // 2 :]


def _chunks(inputs: list[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    """Yields all inputs in order, in lists of about CHUNK characters."""
    part, size = list[tuple[str, ...]](), 0
    for texts in inputs:
        part.append(texts)
        size += sum(map(len, texts))
        if size >= CHUNK:
            yield part
            part, size = [], 0
    if part:
        yield part


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Returns the text of each token, with the space before it where the tokenizer writes one between two tokens."""
    decode = lambda *tokens: tokenizer.decode(tokens, skip_special=False)
    texts = [decode(i) for i in ids]
    for at in range(1, len(ids)):
        before, both = decode(ids[at - 1]), decode(ids[at - 1], ids[at])
        if both.startswith(before) and both != before:  # parts of a character do not
            texts[at] = both[len(before) :]
    return texts
