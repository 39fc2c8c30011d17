"""Every token is where it belongs: in rows, in chunks or in a count, and nothing twice."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lmkit.base.errors import DataError, UserError
from lmkit.data.tokens import rows as module
from lmkit.data.tokens.rows import ParallelRows, SentenceChunks, StreamRows
from lmkit.data.tokens.store import Split
from lmkit.data.tokens.tokenize import tokenize
from lmkit.recipe.pretraining import DataConfig, TokenizerConfig
from lmkit.text.tokenizer_files import load_tokenizer

BOS, EOS, CLS, SEP = 1, 2, 3, 4
STOP, MARK = 5, 6  # ids that end a sentence
ENDS = np.isin(np.arange(2000), (STOP, MARK))


def split_of(folder: Path, documents: list[list[int]], bos: bool = False, eos: bool = False, shards: int = 3) -> Split:
    """A split on disk with these texts inside their frames, spread over shards of which some may be empty."""
    framed = [[BOS] * bos + ids + [EOS] * eos for ids in documents]
    entries = []
    for number in range(shards):
        mine = framed[number * len(framed) // shards : (number + 1) * len(framed) // shards]
        name = f"train-{number:05d}"
        np.array([i for ids in mine for i in ids], "<u2").tofile(folder / f"{name}.tokens")
        np.array([(len(ids), 1) for ids in mine], "<i8").reshape(-1, 2).tofile(folder / f"{name}.index")
        entries.append({"name": name, "documents": len(mine), "tokens": sum(map(len, mine)), "bytes": len(mine)})
    ids = {"bos_id": BOS if bos else None, "eos_id": EOS if eos else None, "pad_id": 0}
    return Split(folder, entries, "<u2", ids, lambda: SimpleNamespace(document_frame=([BOS] * bos, [EOS] * eos)))


def random_documents(rng: np.random.Generator, most: int = 40) -> list[list[int]]:
    """Of 0 to `most` tokens; about every sixth ends a sentence."""
    sizes = rng.integers(0, rng.integers(2, most), rng.integers(1, 30))
    return [np.where(rng.random(n) < 0.15, rng.integers(5, 7, n), rng.integers(10, 2000, n)).tolist() for n in sizes]


def test_a_range_of_a_split_crosses_documents_and_files(tmp_path: Path) -> None:
    documents = [[10, 11], [], [12], [13, 14, 15]]
    split = split_of(tmp_path, documents, eos=True, shards=7)
    whole = [i for ids in documents for i in [*ids, EOS]]
    for start in range(len(whole)):
        for stop in range(start, len(whole) + 1):
            assert split.stream(start, stop).tolist() == whole[start:stop]
    assert [split.document(i).tolist() for i in range(4)] == [[*ids, EOS] for ids in documents]
    assert split.tokens(3, 1, 99).tolist() == [14, 15, EOS] and split.tokens(3, 1, 2).tolist() == [14]


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(("first", "last"), [((), ()), ((CLS,), (SEP,)), ((CLS, MARK), ())])
def test_every_stream_token_is_in_one_row_in_order(
    tmp_path: Path, bos: bool, eos: bool, first: tuple[int, ...], last: tuple[int, ...]
) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        documents = random_documents(rng)
        split = split_of(tmp_path, documents, bos, eos)
        length = int(rng.integers(len(first) + len(last) + 1, 30))
        kept_bos = [BOS] * (bos and not first)
        stream = [(i, d) for d, ids in enumerate(documents) for i in [*kept_bos, *ids, *[EOS] * eos]]
        rows = StreamRows(split, length, first, last)
        seen: list[tuple[int, int]] = []
        for row in map(rows.__getitem__, range(len(rows))):
            tokens, segments, numbers = row["tokens"], row["segments"], row["documents"]
            assert tokens.shape == segments.shape == (length,) and tokens.dtype == segments.dtype == np.int64
            assert tuple(tokens[: len(first)]) == first and tuple(tokens[length - len(last) :]) == last
            body = slice(len(first), length - len(last))
            seen += [(int(t), numbers[s]) for t, s in zip(tokens[body], segments[body], strict=True)]
            assert (segments[: len(first)] == 0).all()
            assert (segments[length - len(last) :] == len(numbers) - 1).all()
            assert np.unique(segments).tolist() == list(range(len(numbers))) and (np.diff(segments) >= 0).all()
        assert seen == stream[: len(seen)]
        assert len(stream) - len(seen) == rows.num_left_over < length - len(first) - len(last)
        assert rows.num_tokens == len(rows) * length


def test_rows_outside_and_frames_without_room_are_refused(tmp_path: Path) -> None:
    rows = StreamRows(split_of(tmp_path, [[10] * 10]), 4)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            rows[index]
    with pytest.raises(UserError, match="2 tokens hold no text beside 2 control tokens"):
        StreamRows(rows.split, 2, (CLS,), (SEP,))
    nothing = split_of(tmp_path, [], shards=0)
    assert len(StreamRows(nothing, 8)) == len(SentenceChunks(nothing, 8, ENDS)) == len(ParallelRows(nothing, 8)) == 0


def chunked(ids: list[int], length: int) -> list[list[list[int]]]:
    """Chunks of sentences, the slow and plain way."""
    sentences: list[list[int]] = [[]]
    for at, token in enumerate(ids):
        sentences[-1].append(token)
        if ENDS[token] and not (at + 1 < len(ids) and ENDS[ids[at + 1]]):
            sentences.append([])
    parts = [s[i : i + length] for s in sentences for i in range(0, len(s), length)]
    chunks: list[list[list[int]]] = []
    for part in parts:
        if chunks and sum(map(len, chunks[-1])) + len(part) <= length:
            chunks[-1].append(part)
        else:
            chunks.append([part])
    return chunks


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_chunks_are_cut_at_sentence_ends_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    for seed in range(25):
        rng = np.random.default_rng(seed)
        documents, length, bos = random_documents(rng, 60), int(rng.integers(2, 40)), bool(seed % 2)
        split = split_of(tmp_path, documents, bos, eos=True)
        source = SentenceChunks(split, length, ENDS)
        every = [(d, chunk) for d, ids in enumerate(documents) for chunk in chunked(ids, length)]
        expected = [(d, chunk) for d, chunk in every if len(chunk) > 1]
        assert len(source) == len(expected) and source.num_single == len(every) - len(expected)
        for (document, sentences), example in zip(expected, map(source.__getitem__, range(len(source))), strict=True):
            assert example["documents"] == [document] and len(example["tokens"]) <= length
            found = np.split(example["tokens"], example["starts"])
            assert [s.tolist() for s in found] == sentences
            assert example["tokens"].dtype == example["starts"].dtype == np.int64
        held = sum(len(source[i]["tokens"]) for i in range(len(source)))
        assert held + source.num_left_out + len(documents) * (1 + bos) == split.num_tokens


def test_sentences_between_documents_of_one_long_sentence(tmp_path: Path) -> None:
    documents = [[10, STOP] * 3, [11] * 25, [12] * 9 + [STOP, 13, 14, STOP]]
    source = SentenceChunks(split_of(tmp_path, documents, eos=True), 8, ENDS)
    assert [source[i]["tokens"].tolist() for i in range(len(source))] == [documents[0], [12, STOP, 13, 14, STOP]]
    assert source[0]["starts"].tolist() == [2, 4] and source[1]["starts"].tolist() == [2]
    assert (source.num_single, source.num_left_out) == (5, 25 + 8)
    with pytest.raises(IndexError):
        source[2]


def test_a_random_other_chunk_is_of_another_document(tmp_path: Path) -> None:
    documents = [[d + 10, d + 10, STOP] * (d % 4) for d in range(20)]  # each knows its own, every fourth has none
    source = SentenceChunks(split_of(tmp_path, documents, bos=True), 6, ENDS)
    rng = np.random.default_rng(0)
    for document in range(20):
        drawn = [source.random_other(document, rng) for _ in range(200)]
        owners = {int(tokens[0]) - 10 for tokens in drawn}
        assert document not in owners and len(owners) >= 13  # all that are left, but for bad luck
        assert all(t.dtype == np.int64 and t[-1] == STOP for t in drawn)
    again = [source.random_other(3, np.random.default_rng(7)).tolist() for _ in range(2)]
    assert again[0] == again[1]
    alone = SentenceChunks(split_of(tmp_path, documents[:4][-1:]), 6, ENDS)
    assert {len(alone.random_other(0, rng)) for _ in range(50)} == {6, 3}


def test_pairs_come_as_stored_and_long_ones_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    documents = [[10 + d] * int(n) for d, n in enumerate(rng.integers(1, 30, 80))]
    split = split_of(tmp_path, documents, bos=True, eos=True)
    longest = max(map(len, documents[:2])) + 2  # the first pair just fits
    rows = ParallelRows(split, longest)
    fitting = [i for i in range(40) if max(len(documents[2 * i]), len(documents[2 * i + 1])) + 2 <= longest]
    assert fitting[0] == 0 and len(rows) == len(fitting) and rows.num_too_long == 40 - len(fitting) > 0
    for number, pair in enumerate(fitting):
        row = rows[number]
        assert row["documents"] == [pair] and row["source"].dtype == row["target"].dtype == np.int64
        assert row["source"].tolist() == [BOS, *documents[2 * pair], EOS]
        assert row["target"].tolist() == [BOS, *documents[2 * pair + 1], EOS]
        assert rows.lengths[number].tolist() == [len(row["source"]), len(row["target"])]
    assert rows.num_scored == sum(len(rows[i]["target"]) for i in range(len(rows)))
    with pytest.raises(IndexError):
        rows[len(rows)]
    with pytest.raises(DataError, match=r"3 documents are no pairs(.|\n)*data\.target"):
        ParallelRows(split_of(tmp_path, documents[:3]), 20)


@pytest.mark.parametrize(
    ("family", "frame"), [("bert", (0, 1)), ("nanochat", (1, 0)), ("llama", (1, 1)), ("t5", (0, 1))]
)
def test_sentences_leave_out_the_frame_of_each_family(tmp_path: Path, family: str, frame: tuple[int, int]) -> None:
    (tmp_path / "a.txt").write_text("".join(f"One is {i}. Two! " + "-" * (i % 3) + "\n" for i in range(40)))
    data = DataConfig(train=str(tmp_path / "a.txt"), separator="\n", validation=0.2)
    store = tokenize(data, TokenizerConfig(type="bytes"), family, tmp_path / "out")
    split = store.split("train")
    assert split.frame == frame
    tokenizer = load_tokenizer(store.tokenizer_path)
    ends = np.isin(np.arange(tokenizer.vocab_size), tokenizer.encode(".!"))
    source = SentenceChunks(split, 64, ends)
    held = sum(len(source[i]["tokens"]) for i in range(len(source)))
    assert len(source) == split.num_documents and source.num_left_out == 0
    assert held == split.num_bytes == split.num_tokens - split.num_documents * sum(frame)
