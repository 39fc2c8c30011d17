"""A source stays with its target, from two files or two columns to the two documents of a pair in the store."""

import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lmkit.base.errors import DataError, UserError
from lmkit.data import documents, lines
from lmkit.data.documents import read_pairs
from lmkit.data.inputs import Pairing, Problems, list_inputs
from lmkit.data.tokens import units
from lmkit.data.tokens.rows import ParallelRows
from lmkit.data.tokens.store import TokenStore, card_lines
from lmkit.data.tokens.tokenize import tokenize
from lmkit.recipe.pretraining import DataConfig, TokenizerConfig
from lmkit.text.tokenizer_files import load_tokenizer

Pairs = list[tuple[str, str]]
Pack = Callable[[bytes], bytes]
BYTES = TokenizerConfig(type="bytes")
EN_DE = Pairing("en", "de")
PAIRS = [(f"house number {i} é", f"Haus Nummer {i} \u2028 ß" + "!" * (i % 7)) for i in range(120)]


def side(texts: list[str], end: str = "\n") -> bytes:
    return "".join(text + end for text in texts).encode()


def write_lines(folder: Path, pairs: Pairs, name: str = "train.{}", pack: Pack = bytes) -> str:
    folder.mkdir(exist_ok=True)
    for number, language in enumerate(("en", "de")):
        (folder / name.format(language)).write_bytes(pack(side([pair[number] for pair in pairs])))
    return str(folder / name.format("en"))


def table(delimiter: str) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([["de", "id", "en"], *((de, "x", en) for en, de in PAIRS)])
    return out.getvalue().encode()


def parquet() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"de": [p[1] for p in PAIRS], "en": [p[0] for p in PAIRS]}), out)
    return out.getvalue()


def read(path: str | Path, **config: str) -> tuple[Pairs, Problems]:
    data, problems = DataConfig(train="", **{"text": "en", "target": "de"} | config), Problems()
    items = list_inputs([str(path)], Pairing(data.text, data.target or ""))
    return [(d.text, d.target or "") for i in items for d in read_pairs(i, data, problems)], problems


def stored(store: TokenStore, split: str) -> Pairs:
    """The pairs of a split, decoded, after checking their frames."""
    tokenizer, part = load_tokenizer(store.tokenizer_path), store.split(split)
    before, after = tokenizer.document_frame
    found = []
    for row in map(ParallelRows(part, 10**6).__getitem__, range(part.num_documents // 2)):
        texts = []
        for ids in (row["source"].tolist(), row["target"].tolist()):
            assert ids[: len(before)] == before and ids[len(ids) - len(after) :] == after
            texts.append(tokenizer.decode(ids[len(before) : len(ids) - len(after)], skip_special=False))
        found.append((texts[0], texts[1]))
    return found


JSON = "".join(json.dumps({"id": 1, "de": de, "en": en}) + "\n" for en, de in PAIRS).encode()
COLUMNS = {"a.jsonl": JSON, "a.csv": table(","), "a.tsv": table("\t"), "a.parquet": parquet()}
PACK: dict[str, Pack] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("packing", PACK)
def test_two_columns_of_every_kind_of_file(tmp_path: Path, name: str, packing: str) -> None:
    (tmp_path / (name + packing)).write_bytes(PACK[packing](COLUMNS[name]))
    found, problems = read(tmp_path / (name + packing))
    assert found == PAIRS and not problems.counts
    with pytest.raises(DataError, match=r"`fr`(.|\n)*allowed: .*(.|\n)*the target text with data\.target=NAME"):
        read(tmp_path / (name + packing), target="fr")
    with pytest.raises(DataError, match=r"`fr`(.|\n)*holds the text with data\.text=NAME"):
        read(tmp_path / (name + packing), text="fr")


@pytest.mark.parametrize("name", ["train.{}", "train.{}.txt", "a.de.b.{}", "a b\n.{}"])
@pytest.mark.parametrize("packing", PACK)
def test_two_files_line_by_line(tmp_path: Path, name: str, packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK", 7)
    path = write_lines(tmp_path, PAIRS[:30], name + packing, PACK[packing])
    assert read(path) == (PAIRS[:30], Problems())
    assert read(tmp_path)[0] == PAIRS[:30]  # the targets found in the folder are no sources
    if "\n" not in name:
        assert read(tmp_path / "*")[0] == PAIRS[:30]


def test_the_sides_may_be_packed_encoded_and_ended_each_in_its_own_way(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(b"\xef\xbb\xbf" + side([p[0] for p in PAIRS], "\r\n"))
    utf16 = "\ufeff" + "\n".join(p[1] for p in PAIRS)  # and no line end at the end
    (tmp_path / "a.de.zst").write_bytes(zstandard.compress(utf16.encode("utf-16-le")))
    assert read(tmp_path / "a.en") == (PAIRS, Problems())
    (tmp_path / "corpus.txt").write_bytes(side([p[0] for p in PAIRS]))
    os.symlink("a.de.zst", tmp_path / "corpus.de.zst")
    assert read(tmp_path / "corpus.txt") == (PAIRS, Problems())
    assert len(read(tmp_path)[0]) == 2 * len(PAIRS)


def test_hub_datasets_give_pairs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: iter([{"en": en, "de": de} for en, de in PAIRS]))
    assert read("hub:org/name") == (PAIRS, Problems())


def test_a_pair_with_an_unfit_side_is_counted_with_its_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_CHARS", 50)
    monkeypatch.setattr(lines, "MAX_RECORD", 100)
    english = [b"one", b"", b"three", b"caf\xe9", b"five", b"six", b"x" * 51, b"y" * 101, b"", b"ten"]
    german = [b"eins", b"zwei", b" \t", b"vier", b"f\xfcnf", b"sechs", b"sieben", b"acht", b"", b"z" * 101]
    (tmp_path / "a.en").write_bytes(b"\n".join(english))
    (tmp_path / "a.de").write_bytes(b"\n".join(german))
    found, problems = read(tmp_path / "a.en")
    assert found == [("one", "eins"), ("six", "sechs")]
    places = {kind: [Path(place.split()[0]).name for place in where] for kind, where in problems.examples.items()}
    assert places == {
        documents.EMPTY_SIDE: ["a.en:2", "a.de:3", "a.en:9"],
        documents.UNDECODABLE_SIDE: ["a.en:4", "a.de:5"],
        documents.OVER_LONG_SIDE: ["a.en:7"],
        lines.BROKEN: ["a.en:8", "a.de:10"],
    }
    assert sum(problems.counts.values()) + len(found) == 10
    records = ['{"en": "a", "de": "b"}', '{"en": "a", "de": null}', '{"en": 1, "de": "b"}', '{"en": "a"}',
               '{"en": "", "de": "b"}', "{", '{"en": "a", "de": "\\ud800"}', '{"en": "c", "de": "d"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(records))
    found, problems = read(tmp_path / "a.jsonl")
    assert found == [("a", "b"), ("c", "d")]
    places = {kind: [Path(place.split()[0]).name for place in where] for kind, where in problems.examples.items()}
    assert places == {
        documents.NO_TEXT_SIDE: ["a.jsonl:2", "a.jsonl:3"],
        documents.NO_TEXT: ["a.jsonl:4"],
        documents.EMPTY_SIDE: ["a.jsonl:5"],
        lines.BROKEN: ["a.jsonl:6"],
        documents.UNDECODABLE_SIDE: ["a.jsonl:7"],
    }


def test_files_of_different_length_are_refused_with_both_lengths(tmp_path: Path) -> None:
    for longer in ("en", "de"):
        path = write_lines(tmp_path, PAIRS)
        with (tmp_path / f"train.{longer}").open("a") as file:
            file.write("one more\n")
        more, less = "121 lines in .*train." + longer, "120 lines in .*train." + ("de" if longer == "en" else "en")
        for expected in (more, less, "find the line that is missing"):
            with pytest.raises(DataError, match=expected):
                read(path)
        with pytest.raises(DataError, match=more):
            tokenize(DataConfig(train=path, text="en", target="de"), BYTES, "t5", tmp_path / "out")


def test_either_side_without_the_other_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = write_lines(tmp_path, PAIRS, "train.{}.gz", gzip.compress)
    (tmp_path / "train.de.gz").rename(tmp_path / "kept")
    with pytest.raises(DataError, match=r"train\.en\.gz: .*missing(.|\n)*expected: .*/train\.de\.gz \(or train\.de, "):
        read(path)
    (tmp_path / "kept").rename(tmp_path / "train.de.gz")
    with pytest.raises(DataError, match=r"missing(.|\n)*expected: .*train\.fr\.gz(.|\n)*data\.target, now `fr`"):
        read(path, target="fr")
    (tmp_path / "train.en.gz").unlink()
    for given in ("train.de.gz", "."):
        with pytest.raises(DataError, match=r"train\.de\.gz holds targets(.|\n)*expected: .*train\.en"):
            read(tmp_path / given)
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"`\.md`(.|\n)*\.en beside \.de, a sentence a line"):
        read(tmp_path / "notes.md")
    with pytest.raises(UserError, match=r"both `en`"):
        read(path, target="en")
    write_lines(tmp_path, PAIRS)
    data = DataConfig(train=str(tmp_path / "train.en"), text="en", target="de", separator="\n")
    with pytest.raises(UserError, match=r"data\.separator(.|\n)*data\.target(.|\n)*leave one"):
        tokenize(data, BYTES, "t5", tmp_path / "out")


def test_what_cannot_be_read_on_either_side_is_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path, PAIRS)
    packed = zstandard.compress(side([p[1] for p in PAIRS[:100]])) + zstandard.compress(b"x" * 999)[:8]
    (tmp_path / "train.de").unlink()
    (tmp_path / "train.de.zst").write_bytes(packed)
    found, problems = read(path)
    assert found == PAIRS[:100] and problems.counts == {lines.UNREADABLE: 1, documents.ALONE: 20}
    assert "train.de.zst (" in problems.examples[lines.UNREADABLE][0]
    assert problems.examples[documents.ALONE][0].endswith("train.en:101")
    (tmp_path / "train.de").write_bytes(b"\x7fELF\0\0")
    found, problems = read(path)
    assert not found and problems.counts == {lines.BINARY: 1, documents.ALONE: 120}


def test_a_side_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    [item] = list_inputs([write_lines(tmp_path, PAIRS)], EN_DE)
    pairs = read_pairs(item, DataConfig(train="", text="en", target="de"), Problems())
    next(pairs)
    write_lines(tmp_path, PAIRS[:50])
    with pytest.raises(DataError, match="changed while"):
        list(pairs)


@pytest.mark.parametrize("kind", ["lines", "jsonl"])
@pytest.mark.parametrize("family", ["marian", "nanochat", "bart"])
def test_pairs_stay_together_and_equal_sources_on_one_side(
    tmp_path: Path, kind: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 4_000)
    monkeypatch.setattr(units, "BATCH_BYTES", 100)
    pairs = [*PAIRS, *((en, de + " again") for en, de in PAIRS)]
    files = [write_lines(tmp_path, pairs[:80], "a.{}"), write_lines(tmp_path, pairs[80:], "b.{}.gz", gzip.compress)]
    if kind == "jsonl":
        files = [str(tmp_path / "a.jsonl")]
        Path(files[0]).write_text("".join(json.dumps({"en": en, "de": de}) + "\n" for en, de in pairs))
    data = DataConfig(train=files, text="en", target="de", validation=0.2)
    store = tokenize(data, BYTES, family, tmp_path / "out")
    store.verify()
    train, held = stored(store, "train"), stored(store, "validation")
    assert sorted(train + held) == sorted(pairs) and train == [p for p in pairs if p in set(train)]
    assert not {p[0] for p in train} & {p[0] for p in held} and 15 < len(held) < 90
    assert store.pairs and store.manifest["pairs"] is True
    card = "\n".join(card_lines(store))
    assert f"{len(train)} pairs · " in card and f"{len(held)} pairs · " in card and "nothing was left out" in card
    assert f"inputs      {1 if kind == 'jsonl' else 4} files" in card
    assert sum(s["bytes"] for n in ("train", "validation") for s in store.manifest["shards"][n]) == sum(
        len(text.encode()) for pair in pairs for text in pair
    )


def test_validation_files_of_their_own(tmp_path: Path) -> None:
    train, held = write_lines(tmp_path, PAIRS[:90]), write_lines(tmp_path, PAIRS[90:], "val.{}.gz", gzip.compress)
    data = DataConfig(train=train, validation=held, text="en", target="de")
    store = tokenize(data, BYTES, "marian", tmp_path / "out")
    assert stored(store, "train") == PAIRS[:90] and stored(store, "validation") == PAIRS[90:]
    (tmp_path / "val.de.gz").unlink()
    with pytest.raises(DataError, match=r"expected: .*val\.de\.gz"):
        tokenize(data, BYTES, "marian", tmp_path / "out")


def test_the_tokenizer_learns_from_both_sides(tmp_path: Path) -> None:
    data = DataConfig(train=write_lines(tmp_path, PAIRS), text="en", target="de", validation=0.1)
    store = tokenize(data, TokenizerConfig(vocab_size=400), "marian", tmp_path / "out")
    tokenizer = load_tokenizer(store.tokenizer_path)
    assert len(tokenizer.encode(" Nummer")) == len(tokenizer.encode(" number")) == 1


def test_a_store_is_made_anew_for_another_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"en": en, "de": de, "fr": de.upper()}) for en, de in PAIRS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    made: dict[str | None, TokenStore] = {}
    for target in ("de", "fr", None):
        data = DataConfig(train=str(tmp_path / "a.jsonl"), text="en", target=target)
        made[target] = tokenize(data, BYTES, "marian", tmp_path / "out")
        capsys.readouterr()
        assert tokenize(data, BYTES, "marian", tmp_path / "out").fingerprint == made[target].fingerprint
        assert "nothing to do" in capsys.readouterr().err
    assert len({store.fingerprint for store in made.values()}) == 3
    assert not made[None].pairs and "pairs" not in made[None].manifest
    assert "target" not in made[None].manifest["plan"]["settings"]


def test_a_store_follows_its_file_of_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataConfig(train=write_lines(tmp_path, PAIRS), text="en", target="de", validation=0.2)
    first = tokenize(data, BYTES, "marian", tmp_path / "out")
    os.utime(tmp_path / "train.de")  # touched, not changed
    capsys.readouterr()
    tokenize(data, BYTES, "marian", tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().err
    changed = [(en, de[::-1]) for en, de in PAIRS]  # of the same size
    (tmp_path / "train.de").write_bytes(side([de for _, de in changed]))
    second = tokenize(data, BYTES, "marian", tmp_path / "out")
    assert second.fingerprint != first.fingerprint
    assert sorted(stored(second, "train") + stored(second, "validation")) == sorted(changed)
