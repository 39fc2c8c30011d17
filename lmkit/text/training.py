"""Trains a tokenizer from an iterator of texts. The same texts give the same tokenizer, byte for byte."""

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from lmkit.architecture.families import FAMILIES
from lmkit.base.display import note
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.recipe.pretraining import TokenizerConfig
from lmkit.text.sentencepiece import as_library
from lmkit.text.special import SPECIAL, Special
from lmkit.text.tokenizer import Tokenizer, add_post_processor, byte_alphabet
from lmkit.text.tokenizer_classes import QWEN2_SPLIT, SPACE
from lmkit.text.words import TWO_DIGITS_SPLIT

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer


SPLITS = {"qwen2": QWEN2_SPLIT, "two_digits": TWO_DIGITS_SPLIT}
LONGEST = 1000  # characters of a run without a cut, since the trainers' time grows with the square of its length
LINE = 4000  # characters of a line for sentencepiece, whose time grows with the square of what repeats in a line
RUN = re.compile(rf"(?<!\S)\S{{{LONGEST},}}|(?<!\s)\s{{{LONGEST},}}")


def train_tokenizer(texts: Iterator[str], config: TokenizerConfig, family: str) -> Tokenizer:
    """Returns a tokenizer of the kind `config.type` with the special tokens of `family`.

    bpe and bytes are byte-level; unigram and sentencepiece are sentencepiece's Unigram and BPE with byte fallback. It
    has `config.vocab_size` ids, or fewer where the texts hold fewer pieces; bytes always has 256 and the control
    tokens. Raises UserError for a vocabulary that is too small, and DataError for texts with nothing to learn from."""
    from tokenizers import AddedToken

    special = SPECIAL[FAMILIES[family].tokens]
    if config.type not in ("bpe", "bytes") and special.unk is None:
        special = replace(special, unk="<unk>")
    own = _own_tokens(config, special)
    smallest = 256 + len(special.tokens) + len(own) + 1
    if config.vocab_size < smallest and config.type != "bytes":
        raise UserError(
            f"tokenizer.vocab_size is {config.vocab_size}; {family} needs at least {smallest}: 256 bytes, "
            f"{len(special.tokens) + len(own)} control and special tokens, and something to learn"
        )
    config = config.model_copy(update={"vocab_size": config.vocab_size - len(own)})
    texts = _in_short_runs(texts)
    train = {"wordpiece": _wordpiece, "unigram": _sentencepiece, "sentencepiece": _sentencepiece}
    # RoBERTa counts positions from the id of its padding, and its table has a row for every smaller number too.
    first = special.tokens if FAMILIES[family].tokens == "roberta" else []
    if config.type == "bytes":
        backend = _byte_level(first, config.split)
    else:
        backend = (
            train[config.type](texts, config, special) if config.type != "bpe" else _bpe(texts, config, special, first)
        )
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special.tokens])
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in own])
    add_post_processor(backend, special)
    return Tokenizer(backend, special)


def _own_tokens(config: TokenizerConfig, special: Special) -> list[str]:
    """Returns the tokens in `tokenizer.special`, each once. Raises UserError for those that no text can hold."""
    own = list(dict.fromkeys(config.special))
    if wrong := [token for token in own if not token.strip() or token in special.tokens]:
        what = "is a control token of the family already" if wrong[0].strip() else "is empty"
        raise UserError(f"tokenizer.special: {wrong[0]!r} {what}\n  → leave it out")
    return own


def check_kept(tokenizer: Tokenizer, trained: str, text: str) -> None:
    """Raises ModelError for a text that decoding did not return, if the tokenizer is one that keeps every character.

    Those are byte-level ones, and sentencepiece's that were trained here, except for their own sign for a space.
    trained: the kind of a tokenizer that was trained here; "" for others."""
    if tokenizer.lossless or (trained in ("unigram", "sentencepiece") and SPACE not in text):
        raise ModelError(
            f"the tokenizer keeps every character, yet decode(encode(text)) differs from the text: {text[:60]!r}\n"
            "  → please report this; another --kind may do"
        )


def _in_short_runs(texts: Iterator[str]) -> Iterator[str]:
    """Yields the same characters, but cuts texts inside long runs without white space, or of white space only.

    Runs are cut where they are longer than LONGEST: a genome in one line, or a million empty lines."""
    for text in texts:
        done = 0
        for run in RUN.finditer(text):
            for end in (*range(run.start() + LONGEST, run.end(), LONGEST), run.end()):
                yield text[done:end]
                done = end
        if done < len(text):
            yield text[done:]


def _byte_level(first: list[str], split: str) -> "Backend":
    """Returns a byte-level tokenizer without merges: the tokens `first`, which no text can spell, then 256 bytes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*first, *byte_alphabet()])}, []))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.Split(Regex(SPLITS[split]), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _bpe(texts: Iterator[str], config: TokenizerConfig, special: Special, first: list[str]) -> "Backend":
    from tokenizers import trainers

    backend = _byte_level([], config.split)
    room = config.vocab_size - len(special.tokens) + len(first)
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=byte_alphabet(), special_tokens=first, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _wordpiece(texts: Iterator[str], config: TokenizerConfig, special: Special) -> "Backend":
    """Returns a WordPiece tokenizer.

    It learns BPE merges of words that begin with ▁, and then names pieces as WordPiece does: ▁un becomes un, able
    becomes ##able. The WordPiece trainer of tokenizers gives another vocabulary each time it runs."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    words = pre_tokenizers.BertPreTokenizer()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)]
    )
    room = config.vocab_size - len(special.tokens)
    seen: Counter[str] = Counter()
    # Some of the pieces are single characters, whose entries are chosen separately, so more are learnt than needed.
    trainer = trainers.BpeTrainer(vocab_size=3 * room, limit_alphabet=room, show_progress=False)
    learner.train_from_iterator(_counting_characters(texts, seen), trainer)
    pieces = [text for text, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1]) if text != SPACE]
    if not pieces:
        raise DataError("the tokenizer has nothing to learn from: its sample of the texts holds no words")
    counts = _normalised(learner.normalizer, seen)
    characters = _characters(learner, words, counts, room * 3 // 4)
    named = [p.removeprefix(SPACE) if p.startswith(SPACE) else f"##{p}" for p in pieces if len(p) > 1]
    entries = list(dict.fromkeys([*special.tokens, *characters, *named]))
    vocabulary = {text: i for i, text in enumerate(entries[: config.vocab_size])}
    if dropped := sorted(counts.keys() - vocabulary.keys()):
        note(
            f"{len(dropped):,} of the {len(counts):,} characters in the texts, the rarest, have no entry and become"
            f" unknown tokens, like {' '.join(dropped[:5])}\n"
            "  → a larger tokenizer.vocab_size (--vocab-size) keeps them"
        )
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=special.unk))
    backend.normalizer, backend.pre_tokenizer = learner.normalizer, words
    backend.decoder = decoders.WordPiece(cleanup=False)
    return backend


def _counting_characters(texts: Iterator[str], seen: Counter[str]) -> Iterator[str]:
    for text in texts:
        seen.update(text)
        yield text


def _characters(learner: "Backend", words: "PreTokenizer", counts: Counter[str], room: int) -> list[str]:
    """Returns entries for the most frequent characters, at most `room`: `c` for the start of words, `##c` inside them.

    A character that is always a word of its own, as Han and punctuation are, needs no second entry."""
    alone, inside = list[str](), list[str]()
    for char in sorted(counts, key=lambda c: (-counts[c], c)):
        continues = len(words.pre_tokenize_str(learner.normalizer.normalize_str(f"a{char}"))) == 1
        if len(alone) + len(inside) + 1 + continues > room:
            break
        alone.append(char)
        if continues:
            inside.append(f"##{char}")
    return sorted(alone) + sorted(inside)


def _normalised(normalizer: "Normalizer", seen: Counter[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for char, n in seen.items():
        for normalised in "".join(normalizer.normalize_str(char).split()):
            counts[normalised] += n
    return counts


def _sentencepiece(texts: Iterator[str], config: TokenizerConfig, special: Special) -> "Backend":
    """Returns sentencepiece's tokenizer, which keeps every character of a text: it has no normalisation, no prefix, and
    byte fallback."""
    import sentencepiece

    whole = (line for text in texts for line in text.splitlines() if line.strip() and "\0" not in line)
    lines = (line[i : i + LINE] for line in whole for i in range(0, len(line), LINE))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, vocab_size=config.vocab_size, hard_vocab_limit=False,
            model_type="unigram" if config.type == "unigram" else "bpe", byte_fallback=True,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            required_chars=SPACE, unk_id=0, unk_piece=special.unk, bos_id=-1, eos_id=-1, pad_id=-1,
            control_symbols=[t for t in special.tokens if t != special.unk],
            max_sentence_length=1 << 24, minloglevel=3, num_threads=1,
        )  # fmt: skip
    except RuntimeError as error:
        raise DataError(f"sentencepiece could not train on this sample of the texts: {error}") from error
    return as_library(model.getvalue(), "the trained sentencepiece model")
