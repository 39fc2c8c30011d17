"""The remembered units give the ids that `tokenizers` gives, whatever the text."""

import random

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lmkit.recipe.pretraining import TokenizerConfig
from lmkit.text.special import Special
from lmkit.text.tokenizer import Tokenizer
from lmkit.text.training import train_tokenizer
from lmkit.text.words import SAME_CUTS, WordEncoder

# Every kind of character that a split treats differently, and those on which Python and `tokenizers` disagree.
ALPHABET = [
    *"ab'.!?s12 \n\t\r", "  ", "\n\n", "\x1c", "\x1f", "\x0b", "\x0c", "\x85", "\xa0", "\u3000", "\u2028", "\u200b",
    "\u180e", "é", "e\u0301", " \u0301", "日本", "🙂", "'ll", "<s>", "<|bos|>", "<tool>", "\0", "ß", "²", "٣", "\ufeff",
]  # fmt: skip


def texts(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(ALPHABET, k=rng.randint(0, 30))) for _ in range(n)]


def trained(kind: str) -> Tokenizer:
    return train_tokenizer(iter(texts(0, 500)), TokenizerConfig(type=kind, vocab_size=400), "nanochat")


def backend(split: object, model: object | None = None) -> Backend:
    made = Backend(model or models.BPE())
    made.pre_tokenizer = split
    made.train_from_iterator(texts(0, 500), trainers.BpeTrainer(vocab_size=500, show_progress=False,
                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    made.add_special_tokens(["<|end|>"])
    return made


def framed(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    start, end = tokenizer.document_frame
    return [start + ids + end for ids in tokenizer.encode_batch(texts)]


def encoded(encode: WordEncoder, texts: list[str]) -> list[list[int]]:
    ids, lengths = encode(texts)
    return [part.tolist() for part in np.split(np.frombuffer(ids, encode.dtype), np.cumsum(lengths)[:-1])]


def gpt2() -> Tokenizer:
    return Tokenizer(backend(pre_tokenizers.ByteLevel(add_prefix_space=False)), Special(eos="<|end|>"))


def llama3(pattern: str, normalizer: object = None) -> Tokenizer:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = backend(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), plain]))
    made.normalizer = normalizer
    made.add_tokens([AddedToken("<tool>", special=False)])
    return Tokenizer(made, Special(eos="<|end|>"))


MAKERS = {
    **{kind: (lambda kind=kind: trained(kind)) for kind in ("bpe", "bytes", "wordpiece")},
    "gpt2": gpt2,
    **{f"split {i}": (lambda p=p: llama3(p)) for i, p in enumerate(sorted(SAME_CUTS))},
    "qwen": lambda: llama3(sorted(SAME_CUTS)[-1], normalizers.NFC()),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
def test_units_change_no_id(kind: str) -> None:
    tokenizer = MAKERS[kind]()
    encode = WordEncoder(tokenizer)
    assert encode.cuts is not None
    for seed in range(1, 11):
        batch = texts(seed, 300)
        for text, mine, theirs in zip(batch, encoded(encode, batch), framed(tokenizer, batch), strict=True):
            assert mine == theirs, repr(text)


def test_a_tokenizer_whose_cuts_are_unknown_is_asked_directly() -> None:
    tokenizer = trained("sentencepiece")
    encode = WordEncoder(tokenizer)
    assert encode.cuts is None
    batch = ["one two", "", "three"]
    assert encoded(encode, batch) == framed(tokenizer, batch)


def test_what_is_remembered_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmkit.text.words.CACHE_BYTES", 2_000)
    tokenizer = trained("bpe")
    encode = WordEncoder(tokenizer)
    for seed in range(3):
        batch = texts(seed, 50)
        assert encoded(encode, batch) == framed(tokenizer, batch)
        assert encode.size <= 2_000
