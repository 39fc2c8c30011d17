"""What every kind of file gives, and that whatever is left out is counted with its place."""

import csv
import gzip
import io
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lmkit.base.errors import DataError
from lmkit.data import documents, lines
from lmkit.data.documents import read_documents
from lmkit.data.inputs import Document, Problems, list_inputs
from lmkit.data.tables.table import read_table
from lmkit.recipe.pretraining import DataConfig
from lmkit.recipe.tasks import TableConfig

TEXTS = ["one\r\ntwo\n", 'a "quoted", text\nover lines', "日本語 🙂 \u2028 e\u0301", "  spaces kept \t", "שלום\u200f"]


def read(path: Path | str, **config: str) -> tuple[list[Document], Problems]:
    problems = Problems()
    found = [d for i in list_inputs([str(path)]) for d in read_documents(i, DataConfig(train="", **config), problems)]
    return found, problems


def texts(path: Path, **config: str) -> list[str]:
    found, problems = read(path, **config)
    assert not problems.counts, problems
    return [d.text for d in found]


def jsonl() -> bytes:
    return "".join(json.dumps({"id": 1, "text": t}) + "\n" for t in TEXTS).encode()


def comma(delimiter: str = ",") -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([["id", "text"], *([str(i), t] for i, t in enumerate(TEXTS))])
    return out.getvalue().encode()


def parquet() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(TEXTS)), "text": TEXTS}), out, row_group_size=2)
    return out.getvalue()


CONTENTS = {
    "a.txt": "<end>".join(TEXTS).encode(), "a.jsonl": jsonl(), "a.csv": comma(), "b.csv": comma(";"),
    "a.tsv": comma("\t"), "a.parquet": parquet(),
}  # fmt: skip
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("packing", PACK)
def test_every_kind_gives_back_the_texts(
    tmp_path: Path, name: str, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BLOCK", 7)  # every boundary between blocks falls somewhere bad
    (tmp_path / (name + packing)).write_bytes(PACK[packing](CONTENTS[name]))
    expected = [t.strip("\r\n") for t in TEXTS] if name == "a.txt" else TEXTS  # line ends belong to the separator
    assert texts(tmp_path / (name + packing), separator="<end>") == expected


def test_a_text_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    for bom, encoding in (
        (b"", "utf-8"),
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
    ):
        (tmp_path / "a.txt").write_bytes(bom + "".join(TEXTS).encode(encoding))
        assert texts(tmp_path / "a.txt") == ["".join(TEXTS)]


def test_an_over_long_document_is_cut_at_line_ends_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_CHARS", 50)
    monkeypatch.setattr(lines, "BLOCK", 64)
    text = "".join(f"line {i} of some\n" for i in range(40)) + "x" * 170
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}))
    for name in ("a.txt", "b.jsonl"):
        found, problems = read(tmp_path / name)
        assert "".join(d.text for d in found) == text and all(len(d.text) <= 50 for d in found)
        assert [d.part for d in found] == list(range(len(found)))
        assert problems.counts == {documents.OVER_LONG: 1}
        assert all(d.text.endswith("\n") for d in found[:10])
    found, _ = read(tmp_path / "a.txt")
    assert all(d.line == 1 + text[: text.index(d.text)].count("\n") for d in found[:10])


def test_what_is_left_out_is_counted_with_file_and_line(tmp_path: Path) -> None:
    lines = [b'{"text": "good"}', b"{broken", b'{"text": 5}', b'{"other": "x"}', b'{"text": "\xff"}', b"[1]",
             b'{"text": "\\ud800"}', b'{"text": "  "}', b"", b'{"text": "last"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found, problems = read(tmp_path / "a.jsonl")
    assert [(d.text, d.line) for d in found] == [("good", 1), ("last", 10)]
    places = {
        kind: [p.rpartition("a.jsonl:")[2].split()[0] for p in where] for kind, where in problems.examples.items()
    }
    assert places == {"broken records": ["2", "6"], "records without text": ["3", "4"],
                      "undecodable documents (not UTF-8)": ["5", "7"], "empty documents": ["8"]}  # fmt: skip
    (tmp_path / "b.csv").write_text('id,text\n1,good\n2\n3,"a\nb"\n4,x,y\n5,last\n6,"open\n')
    found, problems = read(tmp_path / "b.csv")
    assert [(d.text, d.line) for d in found] == [("good", 2), ("a\nb", 4), ("last", 7)]
    assert [p.rpartition("b.csv:")[2].split()[0] for p in problems.examples["broken records"]] == ["3", "6", "8-8"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.txt.zst", "a.txt.gz", "empty.parquet"])
def test_a_damaged_file_is_counted_and_named(tmp_path: Path, name: str) -> None:
    stem, _, packing = name.rpartition(".")
    whole = parquet() if packing == "parquet" else PACK["." + packing](os.urandom(3000).hex().encode())
    (tmp_path / name).write_bytes(b"" if stem == "empty" else whole[: len(whole) // 2])
    (tmp_path / "good.txt").write_text("good")
    found, problems = read(tmp_path)
    assert found[-1].text == "good"
    assert problems.counts["unreadable files"] == 1 and name in problems.examples["unreadable files"][0]


def test_binary_and_invalid_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x7fELF\0\0\0")
    (tmp_path / "b.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "c.txt").write_bytes("ok é".encode()[:-1])
    (tmp_path / "d.txt").write_bytes(b"")
    (tmp_path / "e.txt").write_bytes(b"\n" * 1000)
    os.symlink("gone", tmp_path / "f.txt")
    os.symlink("g.txt", tmp_path / "g.txt")
    os.symlink(tmp_path, tmp_path / "loop")
    found, problems = read(tmp_path)
    assert not found
    assert problems.counts == {
        "binary files": 1,
        "undecodable documents (not UTF-8)": 2,
        "empty documents": 2,
        "unreadable files": 2,
    }


def test_a_compression_bomb_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(lines, "MAX_RECORD", 2**20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a" * 60_000_000 + b'"}\n{"text": "ok"}\n', 1))
    tracemalloc.start()
    found, problems = read(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.text for d in found] == ["ok"] and problems.counts == {"broken records": 1}
    assert peak < 20_000_000


def test_a_missing_key_or_column_is_named_with_its_nearest(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        (tmp_path / name).write_bytes(CONTENTS[name])
        with pytest.raises(DataError, match=r"`txt`\n.*did you mean `text`"):
            read(tmp_path / name, text="txt")


def test_paths_that_give_nothing_are_errors_that_say_where_they_looked(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    expected = {
        "gone.txt": "notes.md", "*.jsonl": "notes.md", "empty": "nothing", "notes.md": ".jsonl",
        "pipe.txt": "regular file", "no/such/dir/a.txt": "notes.md",
    }  # fmt: skip
    for pattern, message in expected.items():
        with pytest.raises(DataError, match=message):
            list_inputs([str(tmp_path / pattern)])
    with pytest.raises(DataError):
        list_inputs(["/dev/zero"])


def test_each_file_is_listed_once_in_a_fixed_order(tmp_path: Path) -> None:
    (tmp_path / "sub é\n").mkdir()
    names = ["b.txt", "a.jsonl.gz", "sub é\n/c.csv"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    os.symlink(tmp_path / "b.txt", tmp_path / "again.txt")
    found = list_inputs([str(tmp_path / "**/*.txt"), str(tmp_path), str(tmp_path / "b.txt")])
    assert [os.path.realpath(i.name) for i in found] == sorted(os.path.realpath(i.name) for i in found)
    assert {os.path.realpath(i.name) for i in found} == {str(tmp_path / n) for n in names} and len(found) == 3


def test_the_tail_of_a_file_is_its_own_document(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "a.txt").write_text(text)
    [item] = list_inputs([str(tmp_path / "a.txt")])
    item.tail = 0.1
    head, tail = read_documents(item, DataConfig(train=""), Problems())
    assert head.text + tail.text == text and (head.held_out, tail.held_out) == (False, True)
    assert 0.09 < len(tail.text) / len(text) <= 0.1
    assert tail.line == head.text.count("\n") + 1


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    [item] = list_inputs([str(tmp_path / "a.jsonl")])
    documents = read_documents(item, DataConfig(train=""), Problems())
    next(documents)
    with (tmp_path / "a.jsonl").open("ab") as f:
        f.write(jsonl())
    with pytest.raises(DataError, match="changed while"):
        list(documents)


def test_hub_datasets_are_streamed_and_their_failures_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or iter([{"text": t} for t in TEXTS])
    )
    assert [d.text for d in read("hub:org/name:sub:test")[0]] == TEXTS
    assert asked == [(("org/name", "sub"), {"split": "test", "streaming": True})]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: 1 / 0)
    with pytest.raises(DataError, match="hub:org/name failed at row 0"):
        read("hub:org/name")


def test_lone_quotes_of_a_tab_separated_file_are_text_for_every_reader(tmp_path: Path) -> None:
    rows = [("text", "label"), ('"quoted" from its first word', "1"), ("plain", "0"), ('"never closed', "1")]
    path = tmp_path / "a.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    assert texts(path) == [text for text, _ in rows[1:]]
    table = read_table([str(path)], "classify", TableConfig(train=str(path)))
    assert [row["text"] for row in table.rows] == [text for text, _ in rows[1:]]
    path.write_text('text\tlabel\n"a text\nover lines"\t1\n')
    assert texts(path) == ["a text\nover lines"]
