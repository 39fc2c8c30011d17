"""Streamed text adds up to the whole, without half characters or parts of stop strings."""

import pytest
from tokenizers import Tokenizer, decoders, models

from lmkit.generation.stream import HALF, TextStream
from lmkit.text.tokenizer_files import load_tokenizer
from tests.generation.folders import TEXT, tokenizer


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words")
    tokenizer().save_pretrained(path)
    return load_tokenizer(path)


def pieces(stream, ids):
    out = []
    for token in ids:
        out.append(stream.push(token))
        if stream.stopped:
            break
    return [*out, stream.finish()]


def test_characters_of_several_tokens_come_whole(words):
    ids = words.encode(TEXT)
    stream = TextStream(words, words.encode("é"))
    out = pieces(stream, ids)
    assert "".join(out) == stream.text == TEXT
    assert HALF not in "".join(out) and 0 < out.count("") < len(out) - 20


def test_half_a_character_at_the_end_is_left_out(words):
    assert "".join(pieces(TextStream(words, []), words.encode("a日")[:-1])) == "a"


def test_control_tokens_show_nothing(words):
    ids = words.encode("ab")
    assert "".join(pieces(TextStream(words, [0]), [0, ids[0], 2, *ids[1:], 1])) == "ab"


@pytest.mark.parametrize(
    ("stop", "want"),
    [
        (("fox jumps",), "The quick brown "),
        (("jumps", "x j"), "The quick brown fo"),
        (("ß",), TEXT[: TEXT.index("ß")]),
        (("🙃. !",), TEXT),  # begun, never finished: shown in the end
    ],
)
def test_stop_strings_that_cross_tokens_are_never_shown(words, stop, want):
    stream = TextStream(words, [], stop)
    shown = ""
    for piece in pieces(stream, words.encode(TEXT)):
        shown += piece
        assert want.startswith(shown)
    assert shown == stream.text == want
    assert stream.stopped == (want != TEXT)


def test_a_prompt_is_followed_by_its_space():
    """Decoders of the sentencepiece kind drop the space before the first word: here it is not the first."""
    backend = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()

    class Words:
        def decode(self, ids):
            return backend.decode(ids)

    assert "".join(pieces(TextStream(Words(), [0]), [1, 0])) == " b a"
    assert "".join(pieces(TextStream(Words(), []), [1, 0])) == "b a"
