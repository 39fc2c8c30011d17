"""Every format of the same data gives the same rows, and whatever is left out is counted with its place."""

import csv
import gzip
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lmkit.base.errors import DataError, UserError
from lmkit.data.tables.table import Table, read_table
from lmkit.recipe.tasks import TableConfig

Rows = list[dict[str, Any]]
REVIEWS = [
    {"text": 'a "fine" film, with\ttabs\nand lines', "label": "pos"}, {"text": "schlecht: 日本語 🙂", "label": "neg"},
    {"text": '"It drags."', "label": "neg"}, {"text": "…", "label": "so-so"},
]  # fmt: skip
PLAIN = [
    {"text": '"Dull', "label": "0"},
    {"text": 'he said "no" twice', "label": "1"},
    {"text": 'a 5" tape', "label": "1"},
]
PAIRS = [{"source": 'Say "hi".', "target": "Sag „hi“."}, {"source": "a\tb \\ c", "target": "ä\tö \\ ü"}]
TAGGED = [{"words": ["EU", "rejects", "#1"], "tags": ["B-ORG", "O", "O"]}, {"words": ["Bonn"], "tags": ["B-LOC"]}]
CONTEXT = "Ann met Bob. Bob met Ann in Bonn."
ASKED = [
    {"id": "a", "title": "T", "context": CONTEXT, "question": "Who?", "answers": [{"text": "Bob", "start": 13}]},
    {"id": "b", "title": "T", "context": CONTEXT, "question": "Why?", "answers": []},
]
SAID = [("Hi", "Hello."), ("Add 1 to\n\n2", "3")]
CHATS = [{"messages": [{"role": "user", "content": u}, {"role": "assistant", "content": a}]} for u, a in SAID]


def read(path: Path | str | list[str], task: str = "classify", labelled: bool = True, **config: str) -> Table:
    sources = path if isinstance(path, list) else [str(path)]
    return read_table(sources, task, TableConfig(train="", **config), labelled)  # type: ignore[arg-type]


def as_csv(rows: Rows, delimiter: str = ",", **options: Any) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, **options)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: Rows) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def lines(rows: Rows, key: str) -> bytes:
    return "".join(row[key] + "\n" for row in rows).encode()


KINDS: dict[str, Callable[[Rows], bytes]] = {
    "a.csv": as_csv, "b.csv": lambda rows: as_csv(rows, ";"), "a.tsv": lambda rows: as_csv(rows, "\t"),
    "a.jsonl": as_jsonl, "a.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "b.json": lambda rows: json.dumps({"version": 1, "data": rows}).encode(), "c.json": as_jsonl,
    "a.parquet": as_parquet, "a.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "a.json.zst": lambda rows: zstandard.compress(as_jsonl(rows)), "a.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(
        KINDS[name]([{"id": str(i), "Body": r["text"], "stars": r["label"]} for i, r in enumerate(REVIEWS)])
    )
    table = read(tmp_path / name)
    assert table.rows == REVIEWS and not table.problems.counts
    assert table.columns == {"text": "Body", "label": "stars"} and table.places[0].startswith(f"{tmp_path / name}:")
    assert table.fingerprint == "1b167edca62026af67829e389e2b7fdb6ad44b101c9ce1b1567dfa615e931ae2"


def test_tab_separated_files_without_quoting_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("label\tsentence\n" + "".join(f"{r['label']}\t{r['text']}\n" for r in PLAIN))
    assert read(tmp_path / "a.tsv").rows == PLAIN


def test_datasets_of_the_hub_give_classes_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = datasets.ClassLabel(names=["neg", "pos", "so-so"])
    data = datasets.Dataset.from_list(REVIEWS).cast_column("label", names)
    data = datasets.concatenate_datasets([data, data.from_dict({"text": ["?"], "label": [-1]}, features=data.features)])
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: data)
    data.to_parquet(str(tmp_path / "a.parquet"))
    for source in ("hub:org/name:sub:test", str(tmp_path / "a.parquet")):
        table = read(source)
        assert table.rows == REVIEWS and table.problems.counts == {"rows without a label": 1}
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-ORG", "B-LOC"]))
    features = datasets.Features(tokens=datasets.Sequence(datasets.Value("string")), ner_tags=tags)
    listed = {"tokens": [row["words"] for row in TAGGED], "ner_tags": [[1, 0, 0], [2]]}
    datasets.Dataset.from_dict(listed, features=features).to_parquet(str(tmp_path / "b.parquet"))
    assert read(tmp_path / "b.parquet", "tag").rows == TAGGED


def test_folders_are_labels_and_splits_are_not(tmp_path: Path) -> None:
    for number, row in enumerate(REVIEWS):
        path = tmp_path / "train" / row["label"] / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row["text"])
    (tmp_path / "train" / "unsup").mkdir()
    (tmp_path / "train" / "unsup" / "0.txt").write_text("x")
    (tmp_path / "train" / "urls.txt").write_text("x")
    table = read(tmp_path / "train")
    assert sorted(map(str, table.rows)) == sorted(map(str, REVIEWS)) and table.format == "folder"
    assert table.problems.counts == {"files without a label (in `unsup`)": 1}
    with pytest.raises(DataError, match=r"holds splits.*\n  → name one of them: .*train"):
        read(tmp_path)


def test_labels_are_classes_lists_or_numbers(tmp_path: Path) -> None:
    def labels(*values: Any) -> list[Any]:
        (tmp_path / "a.jsonl").write_bytes(as_jsonl([{"text": "x", "label": value} for value in values]))
        return [row["label"] for row in read(tmp_path / "a.jsonl").rows]

    assert labels(0, 1, 10) == ["0", "1", "10"]
    assert labels(3, 3.5) == ["3", "3.5"] and labels(True, " a ") == ["true", "a"]
    assert labels(["a", 2], [], None, "") == [["a", "2"], [], []]


def test_records_that_cannot_be_used_are_counted_and_an_empty_table_says_why(tmp_path: Path) -> None:
    bad = [b'{"text": " ", "label": 1}', b"{", b'{"text": 5, "label": 1}', b'{"text": "x"}',
           b'{"text": "\xff", "label": 1}', b'{"text": "x", "label": "\\ud800"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([b'{"text": "x", "label": 1}', *bad]))
    table = read(tmp_path / "a.jsonl")
    places = {
        kind: [p.rpartition("a.jsonl:")[2].split()[0] for p in at] for kind, at in table.problems.examples.items()
    }
    assert table.rows == [{"text": "x", "label": "1"}] and places == {
        "empty texts": ["2"], "broken records": ["3"], "texts that are no text": ["4"], "rows without a label": ["5"],
        "undecodable texts": ["6", "7"],
    }  # fmt: skip
    assert read(tmp_path / "a.jsonl", labelled=False).rows[1] == {"text": "x"}
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(bad))
    with pytest.raises(DataError, match=r"no row is left\n(.*\n)*  2 undecodable texts: .*a.jsonl:5"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(DataError, match="hold no records"):
        read(tmp_path / "a.csv")


def test_columns_are_never_guessed(tmp_path: Path) -> None:
    def fails(content: str, task: str = "classify", **config: str) -> str:
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(UserError) as error:
            read(tmp_path / "a.csv", task, **config)
        return str(error.value).replace(str(tmp_path) + "/", "")

    assert fails("id,message_body,stars\n1,x,2\n") == (
        "a.csv: cannot tell which columns to use (columns: id, message_body, stars)\n"
        "  classify needs a text and a label\n  → data.text=COLUMN data.label=COLUMN"
    )
    assert "cannot tell" in fails("sentence,review,label\nx,y,1\n")
    assert "cannot tell" in fails("text,stars,topic\nx,1,2\n")
    assert "did you mean `stars`?" in fails("text,stars\nx,1\n", label="star")
    assert "2 columns are called `label`" in fails("text,label,label\nx,1,2\n")
    assert "first row is no header: 1 | a fine film\n" in fails("1,a fine film\n0,bad\n")
    assert "first row is no header" in fails("1,a fine film\n0,bad\n", text="text")
    assert "data.pair is set, and summarize reads no" in fails("document,summary\nx,y\n", "summarize", pair="x")
    assert "data.text=COLUMN (messages), or data.text=COLUMN data.target=COLUMN" in fails("a,b\nx,y\n", "chat")
    assert "qa needs a context, a question and answers" in fails("a,b\nx,y\n", "qa")
    (tmp_path / "a.csv").write_text("Review,label,class,premise\nx,1,2,3\n")
    assert read(tmp_path / "a.csv", text="premise").rows == [{"text": "3", "label": "1"}]
    (tmp_path / "a.csv").write_text("premise,hypothesis,label\nx,y,1\nx,,1\n")
    table = read(tmp_path / "a.csv")
    assert table.rows == [{"text": "x", "pair": "y", "label": "1"}] and table.problems.counts == {"empty texts": 1}


def test_files_a_task_does_not_read_are_refused(tmp_path: Path) -> None:
    for name, task in {"a.po": "classify", "a.txt": "classify", "a.md": "chat"}.items():
        (tmp_path / name).write_text("x")
        with pytest.raises(DataError, match=rf"is no kind of file that {task} reads\n  allowed: .csv"):
            read(tmp_path / name, task)
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(DataError, match="allowed: an object, a list of objects"):
        read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[{"a": 1}, ')
    with pytest.raises(DataError, match="is the file complete"):
        read(tmp_path / "a.json")


PO = r"""# German
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

#, fuzzy
msgid "left"
msgstr "links"
#: a.c:1
msgctxt "verb"
msgid "Say \"hi\"."
msgstr ""
"Sag "
"„hi“."

msgid "open"
msgstr ""
msgid "a\tb \\ c"
msgid_plural "many"
msgstr[0] "ä\tö \\ ü"
msgstr[1] "viele"

#~ msgid "old"
#~ msgstr "alt"
"""


def test_pairs_are_the_same_from_columns_lines_and_catalogues(tmp_path: Path) -> None:
    named = [{"en": row["source"], "de": row["target"]} for row in PAIRS]
    nested = [{"id": 1, "translation": row} for row in named]
    for name, kind in KINDS.items():
        (tmp_path / name).write_bytes(kind(PAIRS))
        assert read(tmp_path / name, "translate").rows == PAIRS
        (tmp_path / name).write_bytes(kind(named if "csv" in name or "tsv" in name else nested))
        table = read(tmp_path / name, "translate", text="en", target="de")
        assert table.rows == PAIRS and table.columns == {"source": "en", "target": "de"}
    for packing in ("", ".gz"):
        for language in ("en", "de"):
            content = lines(named, language)
            (tmp_path / f"t.{language}{packing}").write_bytes(gzip.compress(content) if packing else content)
        assert read(tmp_path / f"t.en{packing}", "translate", text="en", target="de").rows == PAIRS
    assert read(tmp_path / "t.en", "translate", labelled=False, text="en").rows == [{"source": r["en"]} for r in named]
    (tmp_path / "a.po").write_text(PO)
    table = read(tmp_path / "a.po", "translate")
    assert table.rows == PAIRS and table.places == [f"{tmp_path / 'a.po'}:{n}" for n in (9, 17)]
    assert table.problems.counts == {"fuzzy messages": 1, "messages without a translation": 1, "obsolete messages": 1}
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([{"article": "x", "highlights": "y", "id": 1}]))
    assert read(tmp_path / "a.jsonl", "summarize").rows == [{"source": "x", "target": "y"}]


def test_words_and_tags(tmp_path: Path) -> None:
    conll = "-DOCSTART- -X- O\n\n# a comment\nEU NNP B-ORG\nrejects VBZ O\n#1 CD O\n \n\nBonn NNP B-LOC"
    (tmp_path / "a.conll").write_text(conll)
    (tmp_path / "b.txt").write_text(conll.replace(" ", "\t").replace("#\ta\tcomment", "# id\ta"))
    (tmp_path / "c.jsonl").write_bytes(as_jsonl([{"tokens": r["words"], "ner_tags": r["tags"]} for r in TAGGED]))
    (tmp_path / "d.csv").write_bytes(as_csv([{k: " ".join(v) for k, v in row.items()} for row in TAGGED]))
    for name in ("a.conll", "b.txt", "c.jsonl", "d.csv"):
        assert read(tmp_path / name, "tag").rows == TAGGED
    assert read(tmp_path / "a.conll", "tag").problems.counts == {"lines of comments": 1}
    (tmp_path / "b.txt").write_text("EU\tB-ORG\nrejects O\n\nNew York\tB-LOC\nis\tO\n")  # one line between spaces
    assert [row["words"] for row in read(tmp_path / "b.txt", "tag").rows] == [["EU", "rejects"], ["New York", "is"]]


def test_a_sentence_with_a_broken_line_is_left_out_and_counted(tmp_path: Path) -> None:
    broken = ("it", "it O O", "\tO", "it\t", "New York")
    for separator in (" ", "\t"):
        good = f"EU{separator}B-ORG\nleft{separator}O\n\n"
        for line in broken[: 2 if separator == " " else None]:
            (tmp_path / "a.conll").write_text(f"{good}the{separator}O\n{line}\nend{separator}O\n\n{good}")
            table = read(tmp_path / "a.conll", "tag")
            assert table.rows == [{"words": ["EU", "left"], "tags": ["B-ORG", "O"]}] * 2
            assert table.problems.examples["sentences with a line of another number of columns"] == [
                f"{tmp_path / 'a.conll'}:4 (line 5)"
            ]
    rows = [{"words": ["a", "b"], "tags": ["O", "O"]}, {"words": ["a", "b"], "tags": ["O"]}]
    for name, content in (
        ("c.jsonl", as_jsonl(rows)),
        ("d.csv", as_csv([{k: str(v) for k, v in r.items()} for r in rows])),
    ):
        (tmp_path / name).write_bytes(content)
        table = read(tmp_path / name, "tag")
        assert table.rows == rows[:1]
        assert table.problems.counts == {"rows with another number of tags than of words": 1}
        assert read(tmp_path / name, "tag", labelled=False).rows[1] == {"words": ["a", "b"]}


def test_null_answers_are_not_known_and_empty_ones_are_none(tmp_path: Path) -> None:
    rows = [{"context": "a b", "question": "q", "answers": answers} for answers in (None, [], "", {"text": []}, "b")]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows))
    table = read(tmp_path / "a.jsonl", "qa")
    assert [len(row["answers"]) for row in table.rows] == [0, 0, 0, 1] and sum(table.problems.counts.values()) == 1
    assert len(read(tmp_path / "a.jsonl", "qa", labelled=False).rows) == 5


def test_questions_are_the_same_from_squad_and_from_columns(tmp_path: Path) -> None:
    def squad(row: dict[str, Any]) -> dict[str, Any]:
        answers = [{"text": a["text"], "answer_start": a["start"]} for a in row["answers"]]
        return {"id": row["id"], "question": row["question"], "answers": answers, "is_impossible": not answers}

    def hub(row: dict[str, Any]) -> dict[str, Any]:
        given = {"text": [a["text"] for a in row["answers"]], "answer_start": [a["start"] for a in row["answers"]]}
        return row | {"answers": given}

    article = {"title": "T", "paragraphs": [{"context": CONTEXT, "qas": [squad(row) for row in ASKED]}]}
    flat = [{k: v for k, v in r.items() if k != "answers"} | {"answer": "", "answer_start": ""} for r in ASKED]
    flat[0] |= {"answer": "Bob", "answer_start": "11"}  # a little off: the nearest counts
    contents = {
        "a.json": json.dumps({"version": "v2.0", "data": [article]}).encode(),
        "b.jsonl": as_jsonl([hub(row) for row in ASKED]),
        "c.parquet": as_parquet([hub(row) for row in ASKED]),
        "d.csv": as_csv(flat),
        "e.csv": as_csv([row | {"answers": json.dumps(hub(row)["answers"])} for row in ASKED]),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        table = read(tmp_path / name, "qa")
        assert table.rows == ASKED and not table.problems.counts
        known = read(tmp_path / name, "answer")
        assert known.rows == [{"question": "Who?", "answers": ["Bob"]}]
        assert known.problems.counts == {"questions without an answer": 1}
    odd = [
        {"text": ["Bob", "Ann"], "answer_start": [13]}, [{"text": "Bob", "start": 12.0}, "Ann"],
        {"text": "Bob", "start": 11},
    ]  # fmt: skip
    (tmp_path / "b.jsonl").write_bytes(as_jsonl([ASKED[0] | {"answers": answers} for answers in odd]))
    found = [[a["start"] for a in row["answers"]] for row in read(tmp_path / "b.jsonl", "qa").rows]
    assert found == [[13, 0], [13, 0], [13]]
    lost = hub(ASKED[0]) | {"answers": {"text": ["Bob", "Cy"], "answer_start": [8, 0]}}
    none = lost | {"answers": {"text": ["Cy"], "answer_start": [0]}}
    (tmp_path / "b.jsonl").write_bytes(as_jsonl([lost, none]))
    table = read(tmp_path / "b.jsonl", "qa")
    assert [row["answers"] for row in table.rows] == [[{"text": "Bob", "start": 8}]]
    assert list(table.problems.counts.values()) == [2, 1]
    with pytest.raises(DataError, match=r"task.name=qa"):
        read(tmp_path / "a.json", "chat")


def test_conversations_are_the_same_in_all_layouts(tmp_path: Path) -> None:
    shared = [{"conversations": [{"from": "human", "value": u}, {"from": "gpt", "value": a}]} for u, a in SAID]
    alpaca = [
        {"instruction": "Hi", "input": "", "output": "Hello."},
        {"instruction": "Add 1 to", "input": "2", "output": "3"},
    ]
    asked = [{"prompt": u, "completion": a} for u, a in SAID]
    for rows in (CHATS, shared, alpaca, asked):
        for name, kind in KINDS.items():
            cells = rows if "csv" not in name and "tsv" not in name else [
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows
            ]  # fmt: skip
            (tmp_path / name).write_bytes(kind(cells))
            assert read(tmp_path / name, "chat").rows == CHATS
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([*CHATS, {"messages": CHATS[0]["messages"][:1]}, {"messages": [1]}]))
    table = read(tmp_path / "a.jsonl", "chat")
    assert table.rows == CHATS
    assert list(table.problems.counts) == [
        "conversations without answer",
        "conversations that are no lists of messages of text",
    ]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([{"messages": [{"role": "bot", "content": "x"}]}]))
    with pytest.raises(
        DataError, match=r"1 conversations with the role `bot` \(allowed: system, user, assistant, tool.*a.jsonl:1"
    ):
        read(tmp_path / "a.jsonl", "chat")


def test_conversations_as_other_tools_write_them(tmp_path: Path) -> None:
    """Content in parts, roles of OpenAI and Gemini, turns that axolotl leaves out, and TRL's prompts of messages."""
    part = lambda *texts: [{"type": "text", "text": text} for text in texts]
    rows = [
        {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": part("Hi", "!")},
                      {"role": "model", "content": part("Hello.")}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False},
                      {"role": "function", "content": "3"}, {"role": "assistant", "content": "c", "train": True}]},
        {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]},
                      {"role": "assistant", "content": "?"}]},
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([rows[0], rows[1], rows[3]]))
    table = read(tmp_path / "a.jsonl", "chat")
    first, second = (row["messages"] for row in table.rows)
    assert [(m["role"], m["content"]) for m in first] == [
        ("system", "Be brief."), ("user", "Hi!"), ("assistant", "Hello."),
    ]  # fmt: skip
    assert [(m["role"], m.get("weight")) for m in second] == [
        ("user", None), ("assistant", 0), ("tool", None), ("assistant", None),
    ]  # fmt: skip
    assert all("train" not in m for m in second)
    assert table.problems.counts == {"conversations with parts that are no text": 1}
    (tmp_path / "b.jsonl").write_bytes(as_jsonl([rows[2]]))
    (row,) = read(tmp_path / "b.jsonl", "chat").rows
    assert [(m["content"], m.get("weight")) for m in row["messages"]] == [("a", 0), ("b", 0), ("c", 0), ("d", None)]


def test_documents_are_read_like_those_of_pretraining(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    (tmp_path / "b.jsonl").write_bytes(as_jsonl([{"body": "three"}]))
    table = read([str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")], "lm", text="body")
    assert [row["text"] for row in table.rows] == ["one\ntwo", "three"] and table.format == "txt, jsonl"


@pytest.mark.parametrize("mark", "-.")
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_images_of_mnist(tmp_path: Path, mark: str, pack: Callable[[bytes], bytes]) -> None:
    pixels = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    end = ".gz" if pack is gzip.compress else ""
    for part, values in {"train": pixels, "t10k": pixels[:2]}.items():
        images = struct.pack(">IIII", 0x803, *values.shape) + values.tobytes()
        (tmp_path / f"{part}-images{mark}idx3-ubyte{end}").write_bytes(pack(images))
        labels = struct.pack(">II", 0x801, len(values)) + bytes([7, 0, 7][: len(values)])
        (tmp_path / f"{part}-labels{mark}idx1-ubyte{end}").write_bytes(pack(labels))
    table = read(tmp_path)
    assert (np.stack([row["image"] for row in table.rows]) == pixels).all() and table.format == "idx"
    assert [row["label"] for row in table.rows] == ["7", "0", "7"] and table.fingerprint != read(
        tmp_path / f"t10k-images{mark}idx3-ubyte{end}"
    ).fingerprint
    for path in tmp_path.glob("train*"):
        path.unlink()
    with pytest.raises(DataError, match=r"no training images.*\n  → to read those, name the file: .*t10k-images"):
        read(tmp_path)
    whole = tmp_path / f"t10k-images{mark}idx3-ubyte{end}"
    whole.write_bytes(pack(images[:-1]))
    with pytest.raises(DataError, match="not an idx file of bytes, or damaged"):
        read(whole)
    (tmp_path / f"t10k-labels{mark}idx1-ubyte{end}").unlink()
    whole.write_bytes(pack(images))
    assert [list(row) for row in read(whole, labelled=False).rows] == [["image"], ["image"]]
    with pytest.raises(DataError, match="file of its labels is missing"):
        read(whole)


def test_images_of_cifar_10(tmp_path: Path) -> None:
    images = np.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).astype(np.uint8)
    rows = b"".join(bytes([n]) + image.transpose(2, 0, 1).tobytes() for n, image in enumerate(images))
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(rows)
    table = read(tmp_path)
    assert len(table.rows) == 4 and (table.rows[1]["image"] == images[1]).all()
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\n\n")
    assert [row["label"] for row in read(tmp_path / "test_batch.bin").rows] == ["airplane", "automobile"]
    (tmp_path / "test_batch.bin").write_bytes(rows[:-1])
    with pytest.raises(DataError, match="not whole images"):
        read(tmp_path / "test_batch.bin")
