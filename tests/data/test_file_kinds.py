"""Files as other tools write them: pretraining's documents, tables and knowledge bases read them alike."""

import html
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import openpyxl
import pandas
import pytest

from lmkit.base.errors import DataError, UserError
from lmkit.data.documents import read_documents
from lmkit.data.encodings import settle_encodings
from lmkit.data.inputs import Problems, list_inputs
from lmkit.data.tables.table import Table, read_table
from lmkit.kb.sources import knowledge_files, read_rows
from lmkit.recipe.pretraining import DataConfig
from lmkit.recipe.recipe_file import build_recipe
from lmkit.recipe.tasks import TableConfig

Rows = list[dict[str, Any]]
ROWS = [
    {"title": f"Ort {i}", "text": f"“Übung” {i}, naïve\nzweite Zeile {i}", "label": ("gut", "schlecht")[i % 2]}
    for i in range(700)
]


def excel(rows: Rows, path: Path) -> None:
    pandas.DataFrame(rows).to_excel(path, index=False, engine="openpyxl")


def saved(rows: Rows, path: Path) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(path)


KINDS: dict[str, Callable[[Rows, Path], Any]] = {
    "a.xlsx": excel,
    "a.feather": lambda rows, path: pandas.DataFrame(rows).to_feather(path),
    "a.arrow": lambda rows, path: pandas.DataFrame(rows).to_feather(path, compression="zstd"),
    "saved": saved,
    "list.json": lambda rows, path: pandas.DataFrame(rows).to_json(path, orient="records"),
    "columns.json": lambda rows, path: pandas.DataFrame(rows).to_json(path),
    "data.json": lambda rows, path: path.write_text(json.dumps({"version": 2, "tags": [1], "data": rows})),
    "alone.json": lambda rows, path: path.write_text(json.dumps({"train": rows})),
    "lines.json": lambda rows, path: pandas.DataFrame(rows).to_json(path, orient="records", lines=True),
}


def documents(path: Path | str, problems: Problems | None = None, **config: Any) -> list[str]:
    settings = build_recipe(DataConfig, {"train": str(path)} | config, {})
    problems = Problems() if problems is None else problems
    inputs = settle_encodings(list_inputs([str(path)], config=settings))
    return [document.text for item in inputs for document in read_documents(item, settings, problems)]


def table(path: Path | str, task: str = "classify", **config: Any) -> Table:
    settings = build_recipe(TableConfig, {"train": str(path)} | config, {})
    return read_table([str(path)], task, settings)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_documents_rows_and_knowledge(tmp_path: Path, name: str) -> None:
    KINDS[name](ROWS, tmp_path / name)
    assert documents(tmp_path / name) == [row["text"] for row in ROWS]
    assert table(tmp_path / name).rows == [{"text": row["text"], "label": row["label"]} for row in ROWS]
    passages = [row.values for item in knowledge_files([str(tmp_path / name)]) for row in read_rows(item, Problems())]
    assert passages == [(row["title"], row["text"]) for row in ROWS]


def test_splits_that_datasets_saved_are_not_mixed(tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_list(ROWS[:3]) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"holds splits: test, train\n.*name one of them: .*/saved/train"):
        documents(tmp_path / "saved")
    assert len(documents(tmp_path / "saved/train")) == 3


def test_a_folder_of_json_files_is_a_record_a_file(tmp_path: Path) -> None:
    for i, row in enumerate(ROWS[:20]):
        (tmp_path / f"{i:02}.json").write_text(json.dumps(row | {"notes": [{"by": "me"}]}))
    (tmp_path / "state.json").write_text("{}")  # as `datasets` writes it beside data
    assert documents(tmp_path) == [row["text"] for row in ROWS[:20]]
    assert [row["label"] for row in table(tmp_path).rows] == [row["label"] for row in ROWS[:20]]
    (tmp_path / "package.json").write_text('{"name": "x"}')
    problems = Problems()
    assert len(documents(tmp_path, problems)) == 20
    assert problems.examples == {"records without text": [f"{tmp_path}/package.json:1 (no key `text`)"]}
    talk = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
    folder = tmp_path / "talks"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(talk))
    assert table(folder, "chat").rows == [talk]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_keys_inside_keys_are_named_with_a_dot(tmp_path: Path, name: str) -> None:
    rows = [{"fields": {"body": {"en": f"text {i}"}}, "meta": {"stars": str(i % 3)}, "a.b": "x"} for i in range(30)]
    frame = pandas.DataFrame(rows)
    write = {"a.jsonl": lambda path: frame.to_json(path, orient="records", lines=True), "a.parquet": frame.to_parquet,
             "a.arrow": frame.to_feather}  # fmt: skip
    write[name](tmp_path / name)
    assert documents(tmp_path / name, text="fields.body.en") == [f"text {i}" for i in range(30)]
    assert documents(tmp_path / name, text="a.b") == ["x"] * 30
    found = table(tmp_path / name, text="fields.body.en", label="meta.stars")
    assert found.rows[5] == {"text": "text 5", "label": "2"} and found.columns["label"] == "meta.stars"
    grouped = table(tmp_path / name, text="fields.body.en", label="meta.stars", group="meta.stars")
    assert [grouped.beside[place]["meta.stars"] for place in grouped.places] == [str(i % 3) for i in range(30)]
    with pytest.raises(DataError, match=r"no column `fields\.boy`"):
        table(tmp_path / name, text="fields.boy", label="meta.stars")


def test_excel_reads_as_its_first_sheet_saved_as_csv_and_counts_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = openpyxl.Workbook()
    book.active.append([None])
    rows = [["text", "label", None], ["one", 1], [2.5, "x"], [None, None], ["", 3], ["long", "y", "z"]]
    for row in rows:
        book.active.append(row)
    book.create_sheet("empty")
    book.create_sheet("more").append(["text"])
    book.save(tmp_path / "a.xlsx")
    problems = Problems()
    assert documents(tmp_path / "a.xlsx", problems) == ["one", "2.5"]
    assert problems.examples == {
        "sheets behind the first": [f"{tmp_path}/a.xlsx (more)"], "empty documents": [f"{tmp_path}/a.xlsx:6"],
        "broken records": [f"{tmp_path}/a.xlsx:7 (a field beyond the header of 2)"],
    }  # fmt: skip
    pandas.read_excel(tmp_path / "a.xlsx", header=1).iloc[:3, :2].to_csv(tmp_path / "a.csv", index=False)
    assert documents(tmp_path / "a.csv") == ["one", "2.5"]
    (tmp_path / "b.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"1 unreadable files: .*b.xlsx"):
        table(tmp_path / "b.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)  # as where it is not installed
    with pytest.raises(UserError, match=r'pip install "lmkit\[excel\]"'):
        table(tmp_path / "a.xlsx")


def test_named_endings_are_text_and_pages_lose_their_tags(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = (
        "<html><head><title>A &amp; B</title><style>p {}</style></head><body><h1>Big  <b>news</b></h1>\n"
        f"<p>One\nline<br>two<script>if (1 < 2) alert()</script><!-- no --></p>{html.escape('<tag>')}</body></html>"
    )
    for name, text in {"a.py": "x = 1\n", "b.md": "# Title\n", "c.html": page, "d.rs": "fn"}.items():
        (tmp_path / name).write_text(text)
    found = documents(tmp_path, text_files=[".py", "md", "*.html"])
    assert found == ["x = 1\n", "# Title\n", "A & B\nBig news\nOne line\ntwo\n<tag>"]
    assert "1 files of other kinds left alone (1 .rs)" in capsys.readouterr().err
    assert [row["text"] for row in table(tmp_path, "lm", text_files=["py", "md", "html"]).rows] == found
    for name, text in {"good/a.md": "fine", "bad/b.html": "<p>poor</p>"}.items():
        (tmp_path / "folders" / name).parent.mkdir(parents=True)
        (tmp_path / "folders" / name).write_text(text)
    assert table(tmp_path / "folders", text_files=["md", "html"]).rows == [
        {"text": "poor", "label": "bad"}, {"text": "fine", "label": "good"}
    ]  # fmt: skip


TEXTS = {
    "cp1252": "Le garçon a été très déçu par la qualité du café, “c’est dommage”.",
    "gbk": "这部电影非常好看，我很喜欢。演员的表演也很出色。",
    "big5": "這部電影非常好看，我很喜歡。演員的表演也很出色。",
    "shift_jis": "この映画はとても面白かったです。また見たいと思います。",
    "euc-kr": "이 영화는 정말 재미있었습니다. 다시 보고 싶어요.",
    "cp1251": "Этот фильм был очень интересным, я хочу посмотреть его ещё раз.",
    "utf-16": "Ça va bien",
    "utf-8": "Ça va bien: 好 ж",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_encodings_are_read_by_name_and_by_their_bytes(
    tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture
) -> None:
    text = TEXTS[encoding]
    frame = pandas.DataFrame({"text": [f"{text} {i}" for i in range(30)], "label": [text[0], text[-1]] * 15})
    frame.to_csv(tmp_path / "a.csv", index=False, encoding=encoding)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True, force_ascii=False)
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_text("utf-8").encode(encoding))
    (tmp_path / "a.txt").write_text(text, encoding=encoding)
    words = [word for word in text.split() if word.strip()]
    (tmp_path / "a.conll").write_text("".join(f"{word} O\n" for word in words), encoding=encoding)
    for named in (encoding, "auto"):
        for name in ("a.csv", "a.jsonl"):
            rows = table(tmp_path / name, encoding=named).rows
            assert [row["text"] for row in rows] == frame["text"].tolist()
            assert [row["label"] for row in rows] == frame["label"].tolist()
        assert table(tmp_path / "a.txt", "lm", encoding=named).rows == [{"text": text}]
        assert table(tmp_path / "a.conll", "tag", encoding=named).rows[0]["words"] == words
    assert f"files read by their bytes as {encoding}: 1" in capsys.readouterr().err
    if encoding not in ("utf-8", "utf-16"):
        with pytest.raises(DataError, match=rf"→ data.encoding={encoding}, "):
            table(tmp_path / "a.csv")


def test_what_is_no_text_in_the_encoding_is_counted_and_no_codec_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\n好,a\n".encode("gbk") + b"\xff\xff,b\n")
    found = table(tmp_path / "a.csv", encoding="gbk")
    assert found.rows == [{"text": "好", "label": "a"}] and found.problems.counts == {"undecodable texts": 1}
    for name in ("utf-9", "rot13", "base64"):
        with pytest.raises(UserError, match="is no encoding that Python knows"):
            table(tmp_path / "a.csv", encoding=name)
    mostly = io.BytesIO()
    mostly.write("".join(f"Grüße {i}\n" for i in range(100)).encode() + b"\xe9\n")
    (tmp_path / "a.txt").write_bytes(mostly.getvalue())
    problems = Problems()
    assert documents(tmp_path / "a.txt", problems, encoding="auto", separator="\n")[0] == "Grüße 0"
    assert problems.counts == {"undecodable documents (not UTF-8)": 1}
