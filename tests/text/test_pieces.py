"""Tables over vocabularies of every kind of tokenizer."""

import random

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lmkit.base.errors import UserError
from lmkit.recipe.pretraining import TokenizerConfig
from lmkit.text.pieces import ordinary_ids, sentence_ends, word_starts
from lmkit.text.special import Special
from lmkit.text.tokenizer import Tokenizer
from lmkit.text.training import train_tokenizer

TEXT = (
    'The tokenizer, when trained, splits unbelievable words! "Is it so?" (Yes.) In 2024 it cost 1,234.50 dollars\n'
    "naïve Übermut Привет, мир. 你好世界。 e-mail: a_b@c.de … end"
)
KINDS = ["bpe", "wordpiece", "unigram", "sentencepiece"]


def trained(kind: str, family: str = "bert", size: int = 500) -> Tokenizer:
    choice = random.Random(0)
    words = TEXT.split(" ")
    texts = [TEXT, *(" ".join(choice.choices(words, k=12)) for _ in range(200))]
    return train_tokenizer(iter(texts), TokenizerConfig(type=kind, vocab_size=size, lowercase=False), family)


def like_llama() -> Tokenizer:
    """sentencepiece's spaces made by Prepend and Replace, byte fallback, and ids with a gap."""
    names = ["<unk>", "<s>", "</s>", "<0x0A>", "<0x2E>", "<0x61>", "<0xE3>", "<0xB8>", "▁", "▁the", "re", "▁.", "?", "1", "ü", "世", "\u093e"]  # fmt: skip # noqa: E501
    backend = Backend(models.BPE({n: i for i, n in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in names[:3]])
    backend.add_tokens([AddedToken("<|mine|>", normalized=False)])
    return Tokenizer(backend, Special(bos="<s>", eos="</s>", unk="<unk>"))


def like_albert() -> Tokenizer:
    """A Metaspace step inside a sequence, as transformers converts it."""
    pieces = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "▁he", "llo", "▁", "!", "▁(", "a.", ".)", "ing"]
    backend = Backend(models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in pieces[:5]])
    return Tokenizer(backend, Special(pad="<pad>", unk="<unk>", cls="[CLS]", sep="[SEP]", mask="[MASK]"))


def gapped(pieces: dict[str, int]) -> Tokenizer:
    backend = Backend(models.WordPiece(pieces, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    backend.add_special_tokens([AddedToken("[UNK]", normalized=False, special=True)])
    return Tokenizer(backend, Special(unk="[UNK]"))


def pieces_where(tokenizer: Tokenizer, table: np.ndarray) -> set[str]:
    return {piece for piece, i in tokenizer.vocab.items() if table[i]}


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_encoded_text_are_its_words(kind: str) -> None:
    """Cut where words start, a text falls into the words that a reader sees in it."""
    tokenizer = trained(kind, size=340)
    starts = word_starts(tokenizer)
    assert starts.shape == (tokenizer.vocab_size,) and starts.dtype == bool
    text = "The unbelievable words, naïve Übermut Привет: 2024, so? retrained"
    ids = np.array(tokenizer.encode(text))
    words = [tokenizer.decode(part).strip() for part in np.split(ids, np.flatnonzero(starts[ids]))]
    joined = "|".join(w.replace(" ", "") for w in words if w)
    assert joined == "The|unbelievable|words|,|naïve|Übermut|Привет|:|2024|,|so|?|retrained"
    assert len(ids) > 13  # some words are several pieces: the test has something to show


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_spaces_is_not_one_long_word(kind: str) -> None:
    tokenizer = trained(kind)
    ids = np.array(tokenizer.encode("界世好你"))  # an order that no piece has learnt
    assert word_starts(tokenizer)[ids].sum() == 4


def test_wordpiece_goes_by_its_prefix() -> None:
    tokenizer = trained("wordpiece")
    assert pieces_where(tokenizer, ~word_starts(tokenizer)) == {p for p in tokenizer.vocab if p.startswith("##")}


def test_byte_level_pieces_go_by_their_first_character() -> None:
    tokenizer = trained("bpe")
    starts = word_starts(tokenizer)
    of = {p: bool(starts[i]) for p, i in tokenizer.vocab.items()}
    assert all(of[p] for p in of if p.startswith(("Ġ", "Ċ")))
    assert all(of[p] for p in '!"(),.:;?_-') and not any(of[p] for p in "azAZ09")
    # parts of characters: a last byte never begins a word, the first one of é does not, that of 世 and of emoji does
    alphabet = {b: chr(b) if b in (*range(161, 173), *range(174, 256)) else None for b in range(128, 256)}
    assert not any(of[c] for b, c in alphabet.items() if c and b < 0xE0)
    assert all(of[c] for b, c in alphabet.items() if c and b >= 0xE0)
    assert all(of[t] for t in ("[CLS]", "[SEP]", "[MASK]", "[PAD]"))


def test_sentencepiece_spaces_and_byte_pieces() -> None:
    tokenizer = like_llama()
    assert pieces_where(tokenizer, word_starts(tokenizer)) == {
        "<unk>", "<s>", "</s>", "<0x0A>", "<0x2E>", "<0xE3>", "▁", "▁the", "▁.", "?", "世", "<|mine|>",
    }  # fmt: skip
    assert pieces_where(tokenizer, sentence_ends(tokenizer)) == {"<0x0A>", "<0x2E>", "▁.", "?"}
    tokenizer = like_albert()
    assert pieces_where(tokenizer, ~word_starts(tokenizer)) == {"llo", "a.", "ing"}
    assert pieces_where(tokenizer, sentence_ends(tokenizer)) == {"!", "a.", ".)"}


def test_a_tokenizer_without_words_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"whole_word needs .*into bytes\n.*train the tokenizer"):
        word_starts(trained("bytes"))
    clip = Backend(models.BPE({"a</w>": 0, "a": 1}, [], end_of_word_suffix="</w>"))
    clip.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="whole_word needs"):
        word_starts(Tokenizer(clip, Special()))


@pytest.mark.parametrize("kind", [*KINDS, "bytes"])
def test_sentences_of_encoded_text_end_where_a_reader_ends_them(kind: str) -> None:
    tokenizer = trained(kind)
    ends = sentence_ends(tokenizer)
    assert ends.shape == (tokenizer.vocab_size,) and ends.dtype == bool
    ids = np.array(tokenizer.encode('The tokenizer cost it! Is it so? "Yes" words: splits (when trained). In dollars'))
    sentences = [tokenizer.decode(part).strip() for part in np.split(ids, np.flatnonzero(ends[ids]) + 1)]
    expected = ["The tokenizer cost it!", "Is it so?", '"Yes" words: splits (when trained).', "In dollars"]
    assert [s.replace(" ", "") for s in sentences] == [s.replace(" ", "") for s in expected]
    assert not ends[list(tokenizer.special_ids)].any()


def test_stops_count_before_spaces_quotes_and_brackets_and_line_breaks_count_anywhere() -> None:
    backend = Backend(models.BPE({".Ã": 0}, []))  # a stop and the first byte of another character
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    ending = [".", "!", "?", "…", "。", "！", "？", 'end."', ".) ", "?!", "...", "!”", "\n", "a\nb", "\n    "]
    others = [",", ";", ".a", '"', ")", " ", "3.1", ":", "¿", "\t"]
    backend.add_tokens([AddedToken(t, normalized=False) for t in ending + others])
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<eos>", "<.>", "stop.")])
    tokenizer = Tokenizer(backend, Special(eos="<eos>"))
    assert pieces_where(tokenizer, sentence_ends(tokenizer)) == set(ending)


@pytest.mark.parametrize("kind", [*KINDS, "bytes"])
def test_ordinary_ids_are_all_but_the_control_tokens(kind: str) -> None:
    tokenizer = trained(kind, "t5", 620)
    ids = ordinary_ids(tokenizer)
    assert ids.dtype == np.int64 and (np.diff(ids) > 0).all()
    assert not set(ids.tolist()) & tokenizer.special_ids
    assert set(ids.tolist()) | tokenizer.special_ids == set(tokenizer.vocab.values())
    assert tokenizer.token_id("<extra_id_0>") not in ids and tokenizer.token_id("a") in ids


def test_ids_that_the_vocabulary_lacks_are_nothing() -> None:
    tokenizer = gapped({"[UNK]": 0, "un": 7, "##able.": 3, ".": 11})
    assert tokenizer.vocab_size == 12
    assert ordinary_ids(tokenizer).tolist() == [3, 7, 11]
    assert np.flatnonzero(word_starts(tokenizer)).tolist() == [0, 7, 11]
    assert np.flatnonzero(sentence_ends(tokenizer)).tolist() == [3, 11]
