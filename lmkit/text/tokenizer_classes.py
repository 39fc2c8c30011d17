"""The rules of transformers' tokenizer classes: how they normalise, cut and decode a text, and which control tokens
they put around it.

transformers builds a tokenizer by the class that a folder names, even if there is a tokenizer.json: of that file the
class only reads the vocabulary, the merges and the added tokens, and everything else follows from its own rules and
settings. The rules here are those of transformers 5. Settings that a class does not read here are not read there
either."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

SPACE = "▁"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer class reads from the files of a tokenizer."""

    ids: Mapping[str, int] = field(default_factory=dict)  # the id of every piece
    scored: list[tuple[str, float]] = field(
        default_factory=list
    )  # for Unigram, instead of `ids`: pieces with their scores, in the order of their ids
    merges: list[tuple[str, str]] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)  # pieces that sentencepiece finds in text before anything else
    charsmap: bytes = b""  # sentencepiece's table of normalisations
    settings: Mapping[str, Any] = field(default_factory=dict)  # the content of tokenizer_config.json

    def setting(self, key: str, default: Any) -> Any:
        value = self.settings.get(key)
        return default if value is None else value


@dataclass(frozen=True)
class TokenizerClass:
    """One of transformers' tokenizer classes."""

    model: str  # the kind of model it reads: WordPiece, BPE or Unigram
    build: Callable[[Vocabulary, Mapping[str, str]], "Backend"]  # makes a backend of vocabulary and tokens of roles
    roles: Mapping[str, str]  # role -> token, where the files name none
    # Makes the backend put control tokens around texts. None: those of the file, or else those for which the settings
    # add_bos_token and add_eos_token ask.
    frame: Callable[["Backend", Vocabulary, Mapping[str, str]], None] | None = None
    framed: tuple[str, ...] = ()  # the roles whose tokens `frame` uses


def _wordpiece(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.WordPiece(dict(vocabulary.ids), unk_token=roles["unk"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=vocabulary.setting("tokenize_chinese_chars", True),
        strip_accents=vocabulary.settings.get("strip_accents"),  # None: the same as do_lower_case
        lowercase=vocabulary.setting("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _byte_level(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
    from tokenizers import decoders, pre_tokenizers

    backend = _bpe(vocabulary)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=vocabulary.setting("add_prefix_space", False))
    backend.decoder = decoders.ByteLevel()
    return backend


def _neox(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
    from tokenizers import normalizers

    backend = _byte_level(vocabulary, roles)
    backend.normalizer = normalizers.NFC()
    return backend


def _qwen2(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    backend = _bpe(vocabulary)
    backend.normalizer = normalizers.NFC()
    prefix = vocabulary.setting("add_prefix_space", False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"), byte_level]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _bpe(vocabulary: Vocabulary, **options: Any) -> "Backend":
    from tokenizers import AddedToken, Tokenizer, models

    backend = Tokenizer(models.BPE(dict(vocabulary.ids), vocabulary.merges, **options))
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in vocabulary.whole])
    return backend


def _llama(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
    from tokenizers import decoders, pre_tokenizers

    backend = _bpe(vocabulary, fuse_unk=True, byte_fallback=True)
    prefix = vocabulary.setting("add_prefix_space", True)
    scheme = ("always" if vocabulary.setting("legacy", False) else "first") if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(undo + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    return backend


def _gemma(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
    from tokenizers import decoders, normalizers, pre_tokenizers

    backend = _bpe(vocabulary, unk_token=roles["unk"], fuse_unk=True, byte_fallback=True)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _nllb(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
    backend = _spaced(_bpe(vocabulary, unk_token=roles["unk"], fuse_unk=True), vocabulary)
    if not vocabulary.charsmap:
        backend.normalizer = None
    return backend


def _mbart50(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
    from tokenizers import Tokenizer, models

    return _spaced(Tokenizer(models.Unigram(vocabulary.scored, unk_id=3)), vocabulary)


def _pegasus(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
    from tokenizers import Tokenizer, models

    unk_id = [piece for piece, _ in vocabulary.scored].index(roles["unk"])
    return _spaced(Tokenizer(models.Unigram(vocabulary.scored, unk_id=unk_id)), vocabulary, newlines=True)


def _spaced(backend: "Backend", vocabulary: Vocabulary, newlines: bool = False) -> "Backend":
    """Makes runs of spaces one space, and ▁ begin every word. newlines: without a table, line ends are spaces too."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    steps: list[normalizers.Normalizer] = [normalizers.Replace(Regex(r"\n"), " ")] if newlines else []
    if vocabulary.charsmap:
        steps = [normalizers.Precompiled(vocabulary.charsmap)]
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(r" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=True)
    backend.decoder = decoders.Metaspace(SPACE, prepend_scheme="always", split=True)
    return backend


def _unigram(
    unk_id: int, always_prefixed: bool = False, normalised: bool = True
) -> Callable[[Vocabulary, Mapping[str, str]], "Backend"]:
    """Returns the `build` of T5 and similar classes, in which white space ends a word and every word begins with ▁."""

    def build(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

        backend = Tokenizer(models.Unigram(vocabulary.scored, unk_id=unk_id, byte_fallback=False))
        if vocabulary.charsmap and normalised:
            backend.normalizer = normalizers.Precompiled(vocabulary.charsmap)
        prefix = always_prefixed or vocabulary.setting("add_prefix_space", True)
        scheme = "always" if prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme)]
        )
        backend.decoder = decoders.Metaspace(SPACE, prepend_scheme=scheme)
        return backend

    return build


def _albert(vocabulary: Vocabulary, roles: Mapping[str, str]) -> "Backend":
    from tokenizers import normalizers

    backend = _unigram(1)(vocabulary, roles)
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not vocabulary.setting("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if vocabulary.setting("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    if vocabulary.charsmap:
        steps.append(normalizers.Precompiled(vocabulary.charsmap))
    backend.normalizer = normalizers.Sequence(steps)
    return backend


def _template(
    single: str, pair: str, used: tuple[str, ...]
) -> Callable[["Backend", Vocabulary, Mapping[str, str]], None]:
    """Returns a `frame` for templates that are written with roles, as `{cls} $A {sep}`. used: these roles."""

    def frame(backend: "Backend", vocabulary: Vocabulary, roles: Mapping[str, str]) -> None:
        from tokenizers.processors import TemplateProcessing

        tokens = [roles[role] for role in used]
        backend.post_processor = TemplateProcessing(
            single=single.format(**roles), pair=pair.format(**roles),
            special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(tokens)],
        )  # fmt: skip

    return frame


def _roberta_frame(backend: "Backend", vocabulary: Vocabulary, roles: Mapping[str, str]) -> None:
    from tokenizers.processors import RobertaProcessing

    last, first = ((roles[role], backend.token_to_id(roles[role]) or 0) for role in ("sep", "cls"))
    trim, prefix = vocabulary.setting("trim_offsets", True), vocabulary.setting("add_prefix_space", False)
    backend.post_processor = RobertaProcessing(last, first, trim, prefix)


def _mbart_frame(backend: "Backend", vocabulary: Vocabulary, roles: Mapping[str, str]) -> None:
    from tokenizers.processors import TemplateProcessing

    last = [roles["eos"], vocabulary.setting("src_lang", "en_XX")]
    tokens = [(token, backend.token_to_id(token)) for token in last]
    backend.post_processor = TemplateProcessing(single=["$A", *last], pair=["$A", "$B", *last], special_tokens=tokens)


def _source_first_frame(default: str) -> Callable[["Backend", Vocabulary, Mapping[str, str]], None]:
    """Returns a `frame` that begins with the language of the text; NLLB's older files ask for it at the end."""

    def frame(backend: "Backend", vocabulary: Vocabulary, roles: Mapping[str, str]) -> None:
        from tokenizers.processors import TemplateProcessing

        language, eos = vocabulary.setting("src_lang", default), roles["eos"]
        behind = vocabulary.setting("legacy_behaviour", False)
        first, last = ([], [eos, language]) if behind else ([language], [eos])
        tokens = [(token, backend.token_to_id(token)) for token in (language, eos)]
        backend.post_processor = TemplateProcessing(
            single=[*first, "$A", *last], pair=[*first, "$A", "$B", *last], special_tokens=tokens
        )

    return frame


def _neox_frame(backend: "Backend", vocabulary: Vocabulary, roles: Mapping[str, str]) -> None:
    from tokenizers.processors import TemplateProcessing

    asked = [role for role in ("bos", "eos") if vocabulary.setting(f"add_{role}_token", False)]
    around = lambda side, n: [
        *([f"{roles['bos']}:{n}"] if "bos" in asked else []), f"${side}:{n}",
        *([f"{roles['eos']}:{n}"] if "eos" in asked else []),
    ]  # fmt: skip
    tokens = [(token, backend.token_to_id(token)) for token in dict.fromkeys(roles[role] for role in asked)]
    single = around("A", 0)
    backend.post_processor = TemplateProcessing(single=single, pair=single + around("B", 1), special_tokens=tokens)


_BERT_FRAME = _template("{cls}:0 $A:0 {sep}:0", "{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1", ("cls", "sep"))
_XLM_FRAME = _template("{bos} $A {eos}", "{bos} $A {eos} {eos} $B {eos}", ("bos", "eos"))
_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA = {
    "bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>",
}  # fmt: skip
_LLAMA = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}

CLASSES: dict[str, TokenizerClass] = {
    "BertTokenizer": TokenizerClass("WordPiece", _wordpiece, _BERT, _BERT_FRAME, ("cls", "sep")),
    "GPT2Tokenizer": TokenizerClass("BPE", _byte_level, dict.fromkeys(("unk", "bos", "eos"), "<|endoftext|>")),
    "RobertaTokenizer": TokenizerClass("BPE", _byte_level, _ROBERTA, _roberta_frame, ("cls", "sep")),
    "Qwen2Tokenizer": TokenizerClass("BPE", _qwen2, dict.fromkeys(("eos", "pad"), "<|endoftext|>")),
    "LlamaTokenizer": TokenizerClass("BPE", _llama, _LLAMA),
    "GemmaTokenizer": TokenizerClass(
        "BPE", _gemma, {"unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "mask": "<mask>"}
    ),
    "AlbertTokenizer": TokenizerClass(
        "Unigram", _albert, _BERT | {"bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "pad": "<pad>"}, _BERT_FRAME,
        ("cls", "sep"),
    ),
    "T5Tokenizer": TokenizerClass(
        "Unigram", _unigram(2, always_prefixed=True), {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
        _template("$A {eos}", "$A {eos} $B {eos}", ("eos",)), ("eos",),
    ),
    "MBartTokenizer": TokenizerClass(
        "Unigram", _unigram(3, always_prefixed=True, normalised=False), _ROBERTA, _mbart_frame, ("eos",)
    ),
    "MBart50Tokenizer": TokenizerClass("Unigram", _mbart50, _ROBERTA, _source_first_frame("en_XX"), ("eos",)),
    "NllbTokenizer": TokenizerClass("BPE", _nllb, _ROBERTA, _source_first_frame("eng_Latn"), ("eos",)),
    "PegasusTokenizer": TokenizerClass(
        "Unigram", _pegasus, {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"},
        _template("$A {eos}", "$A $B {eos}", ("eos",)), ("eos",),
    ),
    "XLMRobertaTokenizer": TokenizerClass("Unigram", _unigram(3), _ROBERTA, _XLM_FRAME, ("bos", "eos")),
    "CamembertTokenizer": TokenizerClass("Unigram", _unigram(3), _ROBERTA, _XLM_FRAME, ("bos", "eos")),
    "GPTNeoXTokenizer": TokenizerClass(
        "BPE", _neox, dict.fromkeys(("unk", "bos", "eos"), "<|endoftext|>") | {"pad": "<|padding|>"}, _neox_frame
    ),
}  # fmt: skip
