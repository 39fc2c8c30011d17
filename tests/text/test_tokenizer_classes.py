"""Folders of other people's tokenizers, by class and setting, old files and new: AutoTokenizer is the judge."""

import io
import json
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from lmkit.base.errors import ModelError
from lmkit.text.tokenizer import frame_texts
from lmkit.text.tokenizer_files import load_tokenizer
from tests.text.translators import marian_folder, nllb_folder

WORDS = "the Emma was handsome clever über naïve Häuser schön 東京都 世界 don't it 's 12 3.5 x=y(); привет мир ½ ﬁne"
ODD = [
    "Emma was", " two  spaces at both ends  ", "die schön Häuser", "東京都 a世界b", "tabs\tand\r\nlines\n\n x",
    "🤖\u200d👧 e\u0301 \u00a0 \u200b", "a ``quoted'' TEXT, don't .", "took <drug> now<drug>", "<drug>", "",
    "½ ﬁne ＡＢＣ", "ǅ İ ß ΑΣ", "a\u2028b\u3000c",
]  # fmt: skip
ADDED = {"content": "<drug>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
TOKEN_CASES: list[dict[str, Any]] = [{}, {"lstrip": True}, {"rstrip": True, "single_word": True}, {"normalized": True}]


def sentences() -> Iterator[str]:
    choice = random.Random(0)
    return iter([" ".join(choice.choices(WORDS.split(), k=9)) for _ in range(300)])


def bpe_files(folder: Path, first: list[str], lacking: int = 0) -> None:
    """vocab.json and merges.txt."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: 256 - lacking]
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=first, show_progress=False)
    backend.train_from_iterator(sentences(), trainer)
    backend.model.save(str(folder))


def wordpiece_files(folder: Path, names: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")) -> None:
    """vocab.txt with whole words and characters, in both cases and with and without accents."""
    from tokenizers.normalizers import NFD, Lowercase, Sequence, StripAccents

    plain = Sequence([Lowercase(), NFD(), StripAccents()])
    words = [w for word in WORDS.split() for w in (word, word.lower(), plain.normalize_str(word))]
    characters = sorted({c for w in words for c in w})
    pieces = dict.fromkeys([*names, *words, *characters, *(f"##{c}" for c in characters)])
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")


def sentencepiece_file(path: Path, kind: str, control: list[str], **options: Any) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(), model_writer=model, vocab_size=400 if kind == "bpe" else 150, model_type=kind,
        hard_vocab_limit=False, minloglevel=3, pad_id=-1, bos_id=-1, eos_id=-1, control_symbols=control, **options,
    )  # fmt: skip
    path.write_bytes(model.getvalue())


def settings_of(folder: Path, **settings: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def assert_same_as_transformers(folder: Path, texts: list[str] = ODD) -> None:
    """Ids, frames, segments and decoded text, of the folder and of what lmkit saves of it."""
    saved = folder / "saved"
    tokenizer = load_tokenizer(folder)
    tokenizer.save(saved)
    reference = AutoTokenizer.from_pretrained(folder)
    reloaded, in_transformers = load_tokenizer(saved), AutoTokenizer.from_pretrained(saved)
    for text in texts:
        ids = reference(text, add_special_tokens=False).input_ids
        assert tokenizer.encode(text) == reloaded.encode(text) == ids, (text, reference.convert_ids_to_tokens(ids))
        assert in_transformers(text, add_special_tokens=False).input_ids == ids
        assert tokenizer.decode(ids, skip_special=False) == reference.decode(ids) == in_transformers.decode(ids), text
        pair, encoding = reference(text, "it was"), tokenizer.backend.encode(text, "it was")
        assert tokenizer.backend.encode(text).ids == reference(text).input_ids == in_transformers(text).input_ids
        assert encoding.ids == pair.input_ids and in_transformers(text, "it was") == pair
        assert encoding.type_ids == pair.get("token_type_ids", encoding.type_ids)


@pytest.mark.parametrize("json_file", [False, True], ids=["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"do_lower_case": False}, {"strip_accents": False}, {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False}, {"tokenizer_class": "ElectraTokenizerFast", "do_lower_case": True},
        {"clean_up_tokenization_spaces": True},
    ],
    ids=str,
)  # fmt: skip
def test_bert(settings: dict[str, Any], json_file: bool, tmp_path: Path) -> None:
    wordpiece_files(tmp_path)
    settings_of(tmp_path, **{"tokenizer_class": "BertTokenizer", **settings})
    if json_file:  # of other rules, which the class then replaces
        AutoTokenizer.from_pretrained(tmp_path, do_lower_case=True, strip_accents=None).backend_tokenizer.save(
            str(tmp_path / "tokenizer.json")
        )
        (tmp_path / "vocab.txt").unlink()
    assert_same_as_transformers(tmp_path)


@pytest.mark.parametrize("cls", ["GPT2Tokenizer", "RobertaTokenizerFast", "BartTokenizer", "Qwen2Tokenizer"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"add_prefix_space": True}, {"add_bos_token": True}, {"clean_up_tokenization_spaces": True}], ids=str,
)  # fmt: skip
def test_byte_level(cls: str, settings: dict[str, Any], tmp_path: Path) -> None:
    bpe_files(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>", "<mask>"])
    assert_same_as_transformers(settings_of(tmp_path, tokenizer_class=cls, **settings))


@pytest.mark.parametrize("flags", TOKEN_CASES, ids=str)
@pytest.mark.parametrize("where", ["added_tokens_decoder", "added_tokens.json", "beside tokenizer.json"])
def test_added_tokens(where: str, flags: dict[str, Any], tmp_path: Path) -> None:
    bpe_files(tmp_path, ["<|endoftext|>"])
    size = len(json.loads((tmp_path / "vocab.json").read_text()))
    token = {str(size): ADDED | {"special": False} | flags}
    if where == "added_tokens.json":
        settings_of(tmp_path, tokenizer_class="GPT2Tokenizer")
        (tmp_path / where).write_text(json.dumps({"<drug>": size}))
    elif where == "added_tokens_decoder":
        settings_of(tmp_path, tokenizer_class="GPT2Tokenizer", added_tokens_decoder=token)
    else:
        settings_of(tmp_path, tokenizer_class="GPT2Tokenizer")
        AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
        settings_of(tmp_path, tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=token)
    assert_same_as_transformers(tmp_path)
    if where != "added_tokens.json" and "single_word" not in flags:
        assert load_tokenizer(tmp_path).encode("took <drug> now").count(size) == 1


@pytest.mark.parametrize(
    ("cls", "kind", "control", "settings"),
    [
        ("AlbertTokenizer", "unigram", ["[CLS]", "[SEP]", "[MASK]"], {}),
        ("AlbertTokenizer", "unigram", ["[CLS]", "[SEP]", "[MASK]"], {"do_lower_case": False}),
        ("AlbertTokenizerFast", "unigram", ["[CLS]", "[SEP]", "[MASK]"], {"keep_accents": True}),
        ("T5Tokenizer", "unigram", ["</s>"], {}),
        ("T5Tokenizer", "unigram", ["</s>"], {"extra_ids": 5}),
        ("LlamaTokenizer", "bpe", ["<s>", "</s>"], {}),
        ("LlamaTokenizerFast", "bpe", ["<s>", "</s>"], {"add_bos_token": True, "add_eos_token": True}),
        ("LlamaTokenizer", "bpe", ["<s>", "</s>"], {"add_prefix_space": False}),
        ("LlamaTokenizer", "bpe", ["<s>", "</s>"], {"legacy": True}),
    ],
)
def test_sentencepiece(cls: str, kind: str, control: list[str], settings: dict[str, Any], tmp_path: Path) -> None:
    names = {"AlbertTokenizer": ("<pad>", 1), "T5Tokenizer": ("<pad>", 2)}
    pad, unk_id = names.get(cls.removesuffix("Fast"), ("", 0))
    first = [pad] if pad else []
    options = {"byte_fallback": True, "normalization_rule_name": "identity"} if kind == "bpe" else {}
    file = tmp_path / ("tokenizer.model" if kind == "bpe" else "spiece.model")
    ahead = [*first, *control][:unk_id]
    sentencepiece_file(file, kind, [t for t in [*first, *control] if t not in ahead] + ahead, unk_id=0, **options)
    move_unknown(file, unk_id, ahead)
    settings_of(tmp_path, tokenizer_class=cls, **settings)
    assert_same_as_transformers(tmp_path, [t for t in ODD if "<drug>" not in t])
    AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert_same_as_transformers(tmp_path, [t for t in ODD if "<drug>" not in t])


FIRST = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]


def unigram_pieces(folder: Path) -> list[tuple[str, float]]:
    """Pieces with scores, without the control tokens of the model."""
    sentencepiece_file(folder / "pieces", "unigram", [])
    model = sentencepiece.SentencePieceProcessor(str(folder / "pieces"))
    (folder / "pieces").unlink()
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(1, model.get_piece_size())]


@pytest.mark.parametrize(
    ("cls", "first", "settings"),
    [
        (transformers.XLMRobertaTokenizer, FIRST, {}),
        (transformers.CamembertTokenizer, [("<s>NOTUSED", 0.0), *FIRST[1:2], ("</s>NOTUSED", 0.0), *FIRST[3:]], {}),
        (transformers.MBartTokenizer, FIRST, {"src_lang": "de_DE"}),
        (transformers.MBart50Tokenizer, FIRST, {"src_lang": "de_DE", "tgt_lang": "en_XX"}),
        (transformers.PegasusTokenizer,
         [("<pad>", 0.0), ("</s>", 0.0), *((f"<unk_{i}>", 0.0) for i in range(2, 103)), ("<unk>", 0.0)], {}),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)  # fmt: skip
def test_unigram_classes_of_a_tokenizer_json(cls: Any, first: list, settings: dict[str, Any], tmp_path: Path) -> None:
    pieces = [*first, *unigram_pieces(tmp_path), ("<mask>", 0.0)]
    if cls is transformers.MBart50Tokenizer:  # it takes a list without languages for one of sentencepiece
        pieces[-1:] = [("de_DE", 0.0), ("en_XX", 0.0), ("<mask>", 0.0)]
    cls(vocab=pieces, **settings).save_pretrained(tmp_path)
    assert_same_as_transformers(tmp_path, [t for t in ODD if "<drug>" not in t])


@pytest.mark.parametrize("settings", [{}, {"legacy_behaviour": True}], ids=str)
def test_nllb(settings: dict[str, Any], tmp_path: Path) -> None:
    nllb_folder(tmp_path, src_lang="deu_Latn", tgt_lang="eng_Latn", **settings)
    assert_same_as_transformers(tmp_path, [t for t in ODD if "<drug>" not in t])


@pytest.mark.parametrize(
    "settings", [{}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}], ids=str
)
def test_gpt_neox(settings: dict[str, Any], tmp_path: Path) -> None:
    bpe_files(tmp_path, ["<|endoftext|>", "<|padding|>"])
    ids, merges = models.BPE.read_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    transformers.GPTNeoXTokenizer(vocab=ids, merges=merges, **settings).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    assert_same_as_transformers(tmp_path)


def test_marian(tmp_path: Path) -> None:
    """Both sides of a pair, languages to write, pieces that only the other side has, and what is saved."""
    marian_folder(tmp_path)
    tokenizer, reference = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.save(tmp_path / "saved")
    saved, in_transformers = load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in [*ODD, ">>fra<< the Emma was", ">>xyz<< was", ">> a << b", "Ж 東京都 ∀∃"]:
        ids, labels = reference(text).input_ids, reference(text_target=text).input_ids
        assert [*tokenizer.encode(text), tokenizer.eos_id] == ids == [*saved.encode(text), saved.eos_id]
        assert [*tokenizer.for_targets.encode(text), tokenizer.eos_id] == labels
        assert in_transformers(text).input_ids == ids and in_transformers(text_target=text).input_ids == labels
        assert tokenizer.decode(labels) == reference.decode(labels, skip_special_tokens=True)
    assert tokenizer.encode("aber") != tokenizer.for_targets.encode("aber")
    (tmp_path / "target.spm").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"target\.spm is not a sentencepiece model"):
        load_tokenizer(tmp_path).for_targets  # noqa: B018


def move_unknown(file: Path, unk_id: int, ahead: list[str]) -> None:
    """Control tokens before the unknown one, where the class expects them."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    model.ParseFromString(file.read_bytes())
    pieces = sorted(model.pieces, key=lambda p: ahead.index(p.piece) if p.piece in ahead else len(ahead))
    kept = [type(p).FromString(p.SerializeToString()) for p in pieces]
    del model.pieces[:]
    model.pieces.extend(kept)
    model.trainer_spec.unk_id = unk_id
    file.write_bytes(model.SerializeToString())


def test_roles_under_other_names(tmp_path: Path) -> None:
    wordpiece_files(tmp_path, ("<pad>", "<unk>", "<s>", "</s>", "<mask>"))
    names = {"unk": "<unk>", "pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    settings_of(tmp_path, tokenizer_class="BertTokenizer", **{f"{role}_token": token for role, token in names.items()})
    assert_same_as_transformers(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("Ω") == [tokenizer.unk_id] == [1]


@pytest.mark.parametrize(
    "cls", ["HerbertTokenizerFast", "BertJapaneseTokenizer", "PhobertTokenizer", "ProphetNetTokenizer"]
)
def test_a_class_with_rules_of_its_own_is_refused_by_name(cls: str, tmp_path: Path) -> None:
    bpe_files(tmp_path, ["<s>"])
    with pytest.raises(ModelError, match=f"(?s)tokenizer_class is {cls}.*PreTrainedTokenizerFast"):
        load_tokenizer(settings_of(tmp_path, tokenizer_class=cls))


def test_the_way_out_of_a_refused_class_works(tmp_path: Path) -> None:
    bpe_files(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    settings_of(tmp_path, tokenizer_class="HerbertTokenizerFast")
    AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert_same_as_transformers(settings_of(tmp_path, tokenizer_class="PreTrainedTokenizerFast"))


OF_MODELS = ["bert", "electra", "longformer", "qwen2", "opt", "mt5", "albert", "mixtral", "modernbert"]


@pytest.mark.parametrize("model_type", OF_MODELS)
def test_the_class_follows_from_the_model_where_none_is_named(model_type: str, tmp_path: Path) -> None:
    """What is saved, which may lie beside no config.json, is read the same: it names the class."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if model_type in ("bert", "electra", "modernbert"):
        wordpiece_files(tmp_path)
        settings_of(tmp_path, do_lower_case=False)
    elif model_type in ("mt5", "albert"):
        first = ["<pad>", "</s>"] if model_type == "mt5" else ["<pad>"]
        control = first if model_type == "mt5" else [*first, "[CLS]", "[SEP]", "[MASK]"]
        sentencepiece_file(
            tmp_path / "spiece.model", "unigram", [c for c in control if c != "<pad>"], pad_piece="<pad>"
        )
        move_unknown(tmp_path / "spiece.model", 2 if model_type == "mt5" else 1, first)
        settings_of(tmp_path)
    else:
        bpe_files(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"])
        settings_of(tmp_path, eos_token="</s>", unk_token="<unk>", bos_token="<s>", pad_token="<pad>")
    if model_type in ("mixtral", "modernbert"):  # whose files hold all rules, whatever class they name
        named = "BertTokenizer" if model_type == "modernbert" else "GPT2Tokenizer"
        files = ("vocab.txt", "vocab.json", "merges.txt", "config.json")
        kept = {name: (tmp_path / name).read_bytes() for name in files if (tmp_path / name).exists()}
        (tmp_path / "config.json").unlink()
        AutoTokenizer.from_pretrained(settings_of(tmp_path, tokenizer_class=named)).backend_tokenizer.save(
            str(tmp_path / "tokenizer.json")
        )
        for name in kept:
            (tmp_path / name).unlink(missing_ok=True)
        definition = json.loads((tmp_path / "tokenizer.json").read_text())
        definition["normalizer"] = {"type": "Lowercase"}  # which neither class has
        (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
        (tmp_path / "config.json").write_bytes(kept["config.json"])
    assert_same_as_transformers(tmp_path)


@pytest.mark.parametrize("model_type", ["mpnet", "xlnet", "m2m_100", "no_such_model"])
def test_a_model_whose_class_is_not_known_is_refused_where_none_is_named(model_type: str, tmp_path: Path) -> None:
    bpe_files(tmp_path, ["<s>"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelError, match=f"(?s)model_type `{model_type}`.*name it in tokenizer_config.json"):
        load_tokenizer(tmp_path)


def test_a_model_file_is_read_by_a_class_or_by_itself(tmp_path: Path) -> None:
    """transformers reads the .model of a folder without a class in a way that is neither Llama's nor the library's."""
    sentencepiece_file(tmp_path / "tokenizer.model", "bpe", [])
    library = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    assert load_tokenizer(tmp_path / "tokenizer.model").encode("Emma was") == library.encode("Emma was")
    with pytest.raises(ModelError, match=r"(?s)names no tokenizer_class.*LlamaTokenizer.*tokenizer.model itself"):
        load_tokenizer(settings_of(tmp_path, bos_token="<s>"))


@pytest.mark.parametrize("cls", ["LlamaTokenizer", "GemmaTokenizer"])
def test_pieces_that_users_defined_are_found_before_all_others(cls: str, tmp_path: Path) -> None:
    control = ["<s>", "</s>"] if cls == "LlamaTokenizer" else ["<pad>", "<eos>", "<bos>", "<mask>"]
    own = {"user_defined_symbols": ["<drug>", "▁▁", "\n\n"], "byte_fallback": True, "remove_extra_whitespaces": False}
    sentencepiece_file(tmp_path / "tokenizer.model", "bpe", control, **own)
    odd = [text for text in ODD if not set(text) & set("½ﬁＡ")]
    assert_same_as_transformers(settings_of(tmp_path, tokenizer_class=cls), [*odd, "a  b\n\nc", "x<drug>y"])


def test_a_role_that_is_none_is_none(tmp_path: Path) -> None:
    bpe_files(tmp_path, ["<|endoftext|>"])
    settings_of(tmp_path, tokenizer_class="GPT2Tokenizer", unk_token=None)
    assert load_tokenizer(tmp_path).unk_id is None is AutoTokenizer.from_pretrained(tmp_path).unk_token_id


def test_random_ids_are_refused(tmp_path: Path) -> None:
    bpe_files(tmp_path, ["<s>"])
    AutoTokenizer.from_pretrained(settings_of(tmp_path, tokenizer_class="GPT2Tokenizer")).save_pretrained(
        tmp_path / "a"
    )
    definition = json.loads((tmp_path / "a/tokenizer.json").read_text())
    definition["model"]["dropout"] = 0.1
    (tmp_path / "a/tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ModelError, match=r"dropout=0\.1"):
        load_tokenizer(tmp_path / "a")


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_cut_on_the_side_that_the_folder_says(side: str, tmp_path: Path) -> None:
    wordpiece_files(tmp_path)
    settings_of(tmp_path, tokenizer_class="BertTokenizer", truncation_side=side)
    tokenizer, reference = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    texts, pairs = ["Emma was handsome clever the", "over"], ["it was the world 12", "don't it 's over the Emma was"]
    for max_length in (6, 9):
        ours = [f.ids for f in frame_texts(tokenizer, texts, pairs, max_length)]
        assert ours == reference(texts, pairs, truncation=True, max_length=max_length).input_ids
        assert [f.ids for f in frame_texts(tokenizer, texts, None, max_length)] == (
            reference(texts, truncation=True, max_length=max_length).input_ids
        )


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_model_file_by_itself_reads_decomposed_text_as_its_library_does(kind: str, tmp_path: Path) -> None:
    model, texts = io.BytesIO(), ["한국어 텍스트 처리", "Tiếng Việt được", "Ελληνικά ά", "naïve Häuser"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 50), model_writer=model, vocab_size=90, model_type=kind, hard_vocab_limit=False,
        minloglevel=3,
    )  # fmt: skip
    (tmp_path / "ko.model").write_bytes(model.getvalue())
    library = sentencepiece.SentencePieceProcessor(str(tmp_path / "ko.model"))
    tokenizer = load_tokenizer(tmp_path / "ko.model")
    for text in texts:
        for form in ("NFC", "NFD", "NFKD"):
            written = unicodedata.normalize(form, text)
            assert tokenizer.encode(written) == library.encode(written), (form, text)


def test_a_model_file_by_itself_with_pieces_of_users_is_exact_or_refused(tmp_path: Path) -> None:
    sentencepiece_file(tmp_path / "own.model", "unigram", [], user_defined_symbols=["<drug>"])
    library = sentencepiece.SentencePieceProcessor(str(tmp_path / "own.model"))
    try:
        tokenizer = load_tokenizer(tmp_path / "own.model")
    except ModelError as error:
        assert "cannot be converted exactly" in str(error) and "<drug>" in str(error)
    else:
        for text in ("hello <drug>", "Emma<drug> was", "<drug>  <drug>"):
            assert tokenizer.encode(text) == library.encode(text)
