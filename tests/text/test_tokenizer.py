"""Tokenizers against transformers and the sentencepiece library, which nobody here wrote."""

import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from lmkit.base.errors import ModelError, UserError
from lmkit.recipe.pretraining import TokenizerConfig
from lmkit.text.special import SPECIAL
from lmkit.text.tokenizer import Tokenizer, frame_texts
from lmkit.text.tokenizer_files import load_tokenizer
from lmkit.text.training import train_tokenizer

TEXT = "the of and model token über naïve 12 1234 don't It's x=y(); привет мир 世界 🙂 <s> [CLS] <|bos|> </s>"
HARD = [
    " two  spaces\ttab\r\nline\n\n end ", "héllo ▁ wörld 你好 🤖\u200d👧 e\u0301 \u200b\u00a0|",
    "<|bos|><s></s> [CLS] [MASK] <0x0A>",
    "שלום עולם مرحبا", "1234567 12,345.67", "\x00\x1c\x85\u2028", "",
]  # fmt: skip


def corpus(lines: int = 400) -> list[str]:
    choice = random.Random(0)
    return [" ".join(choice.choices(TEXT.split(), k=12)) + choice.choice(["\n", "", "\r\n\n"]) for _ in range(lines)]


def trained(kind: str, family: str = "nanochat", size: int = 600) -> Tokenizer:
    return train_tokenizer(iter(corpus()), TokenizerConfig(type=kind, vocab_size=size), family)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "sentencepiece", "bytes"])
def test_training_twice_gives_the_same_file_and_transformers_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    assert trained(kind).fingerprint == tokenizer.fingerprint
    tokenizer.save(tmp_path, max_length=64)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert (reference.bos_token_id, reference.pad_token_id) == (tokenizer.bos_id, tokenizer.pad_id)
    assert tokenizer.pad_id != tokenizer.eos_id and len(reference) == tokenizer.vocab_size
    assert reference.model_max_length == 64
    for text in corpus(50) + HARD:
        ids = tokenizer.encode(text)
        assert reference(text, split_special_tokens=True).input_ids == [tokenizer.bos_id, *ids]
        assert not set(ids) & (tokenizer.special_ids - {tokenizer.unk_id})
        if kind in ("bpe", "bytes"):
            assert tokenizer.lossless and tokenizer.decode(ids) == text == reference.decode(ids)
        elif kind != "wordpiece":
            assert tokenizer.decode(ids) == text.replace("▁", " ")
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("family", "single"),
    [
        ("gpt2", "<|endoftext|> X"),
        ("llama", "<s> X"),
        ("bert", "[CLS] X [SEP]"),
        ("roberta", "<s> X </s>"),
        ("t5", "X </s>"),
    ],
)
def test_every_family_frames_a_text_its_own_way(family: str, single: str, tmp_path: Path) -> None:
    trained("bpe", family).save(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    ids = reference("token").input_ids
    assert "".join(reference.convert_ids_to_tokens(ids)) == single.replace("X", "token").replace(" ", "")


def test_a_vocabulary_too_small_for_the_control_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="needs at least 360"):
        trained("bpe", "t5", 300)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("llama", [True, False], ids=["llama-like", "t5-like"])
def test_a_sentencepiece_model_is_converted_exactly(model_type: str, llama: bool, tmp_path: Path) -> None:
    model = io.BytesIO()
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False} if llama else {}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=420, model_type=model_type,
        byte_fallback=llama, hard_vocab_limit=False, minloglevel=3, **options,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = load_tokenizer(tmp_path)
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
    for text in corpus(200) + HARD:
        ids = tokenizer.encode(text)
        assert not set(ids) & {1, 2}
        if "<s>" not in text and "</s>" not in text and "<0x" not in text:
            assert ids == library.encode(text), repr(text)
            if 0 not in ids:  # the library writes ⁇ for <unk>
                assert tokenizer.decode(ids) == library.decode(ids)


def test_slow_files_of_gpt2_and_bert_are_read_as_transformers_reads_the_fast_ones(tmp_path: Path) -> None:
    for family, kind in (("gpt2", "bpe"), ("bert", "wordpiece")):
        fast, slow = tmp_path / family, tmp_path / f"{family}-slow"
        tokenizer = trained(kind, family)
        if family == "gpt2":
            from tokenizers.pre_tokenizers import ByteLevel

            tokenizer.backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.save(fast)
        slow.mkdir()
        tokenizer.backend.model.save(str(slow))
        names = json.loads((fast / "tokenizer_config.json").read_text()) | {"do_lower_case": False}
        (slow / "tokenizer_config.json").write_text(json.dumps(names))
        if family == "gpt2":  # ids above the model's own
            (slow / "added_tokens.json").write_text(
                json.dumps({"<|pad|>": tokenizer.pad_id, "<|endoftext|>": tokenizer.bos_id})
            )
        reference = AutoTokenizer.from_pretrained(fast)
        loaded = load_tokenizer(slow)
        assert (loaded.bos_id, loaded.pad_id, loaded.cls_id) == (tokenizer.bos_id, tokenizer.pad_id, tokenizer.cls_id)
        for text in corpus(100):
            assert loaded.encode(text) == reference(text, add_special_tokens=False, split_special_tokens=True).input_ids


def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    for name, content, message in [
        ("a/tokenizer.json", b"{", "not a tokenizer.json"),
        ("b/x.model", b"\x0a\x05abc", "not a sentencepiece model"),
        ("c/readme", b"", "holds no tokenizer"),
        ("d/sentencepiece.bpe.model", b"", "shift the ids"),
    ]:
        file = tmp_path / name
        file.parent.mkdir()
        file.write_bytes(content)
        with pytest.raises(ModelError, match=message):
            load_tokenizer(file.parent)
    with pytest.raises(ModelError, match="no such file"):
        load_tokenizer(tmp_path / "nowhere")


def test_truncation_and_padding_in_a_file_are_switched_off(tmp_path: Path) -> None:
    tokenizer = trained("bpe")
    tokenizer.backend.enable_truncation(4)
    tokenizer.backend.enable_padding(length=8)
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    text = "a text of more than four tokens, surely " * 10
    assert load_tokenizer(tmp_path / "tokenizer.json").encode(text) == trained("bpe").encode(text)


def test_a_unigram_file_of_another_tool_gives_no_control_token_for_text(tmp_path: Path) -> None:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -5.0) for c in "▁<>/sabc"), ("▁a", -2.0)]
    backend = Backend(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, _ in pieces[:3]])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("a </s>b</s> c")
    assert tokenizer.eos_id == 1 and not {0, 1} & set(ids)
    assert tokenizer.decode(ids) == "a </s>b</s> c"


def test_cut_in_the_middle_a_text_keeps_its_ends(tmp_path: Path) -> None:
    tokenizer = trained("wordpiece", "bert")
    tokenizer.save(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["the of and model token über naïve 12 1234 don't " * 3, "of the model"]
    long, short = (f.without_middle(32) for f in frame_texts(tokenizer, texts))
    ids = reference(texts[0]).input_ids
    assert long.ids == ids[:8] + ids[-24:] and len(ids) > 32 and long.cut  # 1 + 7 of 30, then 23 + 1
    assert long.offsets[8] == frame_texts(tokenizer, texts)[0].offsets[-24]
    assert len(long.types) == len(long.texts) == 32 and not short.cut
    assert short.ids == reference(texts[1]).input_ids


def test_half_a_surrogate_pair_is_a_user_error() -> None:
    with pytest.raises(UserError, match="surrogate"):
        trained("bpe").encode("a\ud800b")


def test_no_family_uses_its_end_as_padding() -> None:
    assert all(s.pad is not None and s.pad not in (s.eos, s.bos) for s in SPECIAL.values())
