"""Training a tokenizer from an iterator of texts. The same texts give the same tokenizer, byte for byte."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from lmkit.errors import DataError, UserError
from lmkit.families import FAMILIES
from lmkit.recipe import TokenizerConfig
from lmkit.text.sentencepiece import as_library
from lmkit.text.special import SPECIAL, Special
from lmkit.text.tokenizer import Tokenizer, add_post_processor, byte_alphabet
from lmkit.text.tokenizer_classes import SPACE
from lmkit.text.words import SPLIT

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


LONGEST = 1000  # characters of a run that is learnt from as one: the trainers' time grows with its square
LINE = 4000  # characters that sentencepiece sees together: what repeats inside costs it the square
RUN = re.compile(rf"(?<!\S)\S{{{LONGEST},}}|(?<!\s)\s{{{LONGEST},}}")


def train_tokenizer(texts: Iterator[str], config: TokenizerConfig, family: str) -> Tokenizer:
    """A tokenizer of the kind `config.type` with the special tokens of `family`.

    bpe and bytes are byte-level; unigram and sentencepiece are that library's Unigram and BPE with byte fallback.
    It has `config.vocab_size` ids, or fewer where the texts hold fewer pieces (bytes: always 256 + control tokens).
    Raises UserError for a vocabulary too small, DataError for texts that hold nothing to learn from."""
    from tokenizers import AddedToken

    special = SPECIAL[FAMILIES[family].tokens]
    if config.type not in ("bpe", "bytes") and special.unk is None:
        special = replace(special, unk="<unk>")
    smallest = 256 + len(special.tokens) + 1
    if config.vocab_size < smallest and config.type != "bytes":
        raise UserError(
            f"tokenizer.vocab_size is {config.vocab_size}; {family} needs at least {smallest}: 256 bytes, "
            f"{len(special.tokens)} control tokens and something to learn"
        )
    texts = _in_short_runs(texts)
    train = {"wordpiece": _wordpiece, "unigram": _sentencepiece, "sentencepiece": _sentencepiece}
    # RoBERTa's positions count from the id of its padding, and its table holds a row for every id below
    first = special.tokens if FAMILIES[family].tokens == "roberta" else []
    if config.type == "bytes":
        backend = _byte_level(first)
    else:
        backend = (
            train[config.type](texts, config, special) if config.type != "bpe" else _bpe(texts, config, special, first)
        )
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special.tokens])
    add_post_processor(backend, special)
    return Tokenizer(backend, special)


def _in_short_runs(texts: Iterator[str]) -> Iterator[str]:
    """The same characters, in more texts where one holds a run without white space, or of it, above LONGEST: a genome
    in one line, a million empty lines."""
    for text in texts:
        done = 0
        for run in RUN.finditer(text):
            for end in (*range(run.start() + LONGEST, run.end(), LONGEST), run.end()):
                yield text[done:end]
                done = end
        if done < len(text):
            yield text[done:]


def _byte_level(first: list[str]) -> "Backend":
    """No merges yet. `first`, which no text can spell, then the 256 bytes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*first, *byte_alphabet()])}, []))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _bpe(texts: Iterator[str], config: TokenizerConfig, special: Special, first: list[str]) -> "Backend":
    from tokenizers import trainers

    backend = _byte_level([])
    room = config.vocab_size - len(special.tokens) + len(first)
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=byte_alphabet(), special_tokens=first, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _wordpiece(texts: Iterator[str], config: TokenizerConfig, special: Special) -> "Backend":
    """BPE merges over words that begin with ▁, then named WordPiece's way: ▁un -> un, able -> ##able.

    tokenizers' own WordPiece trainer gives another vocabulary each time it runs."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    words = pre_tokenizers.BertPreTokenizer()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)]
    )
    # every character needs two entries, at a word's start and inside it
    room = config.vocab_size - len(special.tokens)
    trainer = trainers.BpeTrainer(vocab_size=room, limit_alphabet=min(1000, room // 4), show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learnt = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    pieces = [text for text, _ in learnt if text != SPACE]
    if not pieces:
        raise DataError("the tokenizer has nothing to learn from: its sample of the texts holds no words")
    characters = [c for c in pieces if len(c) == 1]
    named = [p.removeprefix(SPACE) if p.startswith(SPACE) else f"##{p}" for p in pieces]
    entries = list(dict.fromkeys([*special.tokens, *characters, *(f"##{c}" for c in characters), *named]))
    vocabulary = {text: i for i, text in enumerate(entries[: config.vocab_size])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=special.unk))
    backend.normalizer, backend.pre_tokenizer = learner.normalizer, words
    backend.decoder = decoders.WordPiece(cleanup=False)
    return backend


def _sentencepiece(texts: Iterator[str], config: TokenizerConfig, special: Special) -> "Backend":
    """Every character of the text is kept: no normalisation, no prefix, byte fallback."""
    import sentencepiece

    whole = (line for text in texts for line in text.splitlines() if line.strip() and "\0" not in line)
    lines = (line[i : i + LINE] for line in whole for i in range(0, len(line), LINE))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, vocab_size=config.vocab_size, hard_vocab_limit=False,
            model_type="unigram" if config.type == "unigram" else "bpe", byte_fallback=True,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            unk_id=0, unk_piece=special.unk, bos_id=-1, eos_id=-1, pad_id=-1,
            control_symbols=[t for t in special.tokens if t != special.unk],
            max_sentence_length=1 << 24, minloglevel=3, num_threads=1,
        )  # fmt: skip
    except RuntimeError as error:
        raise DataError(f"sentencepiece could not train on this sample of the texts: {error}") from error
    return as_library(model.getvalue(), "the trained sentencepiece model")
