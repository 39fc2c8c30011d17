"""Texts with spans of characters, as annotation tools export them: seqeval finds the same entities in the rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from lmkit.base.errors import DataError
from lmkit.data.tables.table import Table, read_table
from lmkit.recipe.tasks import TableConfig

# doccano's and Label Studio's documentation of their exports; spaCy's and Prodigy's of their training data
TEXT = "EU rejects German call, says Parisian U.N. envoy 🙂 in 東京都."
SPANS = [(0, 2, "ORG"), (11, 17, "MISC"), (29, 34, "LOC"), (38, 42, "ORG"), (54, 56, "LOC")]
OTHER = ("Nobody here.", [])


def doccano(text: str, spans: list) -> dict[str, Any]:
    return {"id": 1, "text": text, "label": [list(span) for span in spans]}


def doccano_relations(text: str, spans: list) -> dict[str, Any]:
    found = [{"id": i, "label": name, "start_offset": a, "end_offset": b} for i, (a, b, name) in enumerate(spans)]
    return {"id": 1, "text": text, "entities": found, "relations": [], "Comments": []}


def spacy(text: str, spans: list) -> dict[str, Any]:
    return {"text": text, "entities": [list(span) for span in spans]}


def prodigy(text: str, spans: list) -> dict[str, Any]:
    return {"text": text, "spans": [{"start": a, "end": b, "label": name} for a, b, name in spans], "answer": "accept"}


def utf16(text: str, place: int) -> int:  # as JavaScript counts
    return len(text[:place].encode("utf-16-le")) // 2


def values(text: str, spans: list) -> list[dict[str, Any]]:
    return [
        {"start": utf16(text, a), "end": utf16(text, b), "text": text[a:b], "labels": [name]} for a, b, name in spans
    ]


def label_studio(text: str, spans: list) -> dict[str, Any]:
    results = [{"value": value, "id": "x", "from_name": "label", "to_name": "text", "type": "labels"}
               for value in values(text, spans)]  # fmt: skip
    cancelled = {"id": 0, "was_cancelled": True, "result": results[:1]}
    return {"id": 1, "annotations": [cancelled, {"id": 1, "was_cancelled": False, "result": results}],
            "predictions": [], "data": {"text": text}, "project": 1}  # fmt: skip


def label_studio_min(text: str, spans: list) -> dict[str, Any]:
    return {"text": text, "id": 1, "label": values(text, spans), "annotator": 1, "annotation_id": 1}


FORMATS = [doccano, doccano_relations, spacy, prodigy, label_studio, label_studio_min]


def read(path: Path, labelled: bool = True, **config: Any) -> Table:
    return read_table([str(path)], "tag", TableConfig(train=str(path), **config), labelled)


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(json.dumps(records) if path.suffix == ".json" else lines)
    return path


def characters(row: dict[str, Any]) -> list[tuple[int, int, str]]:
    """Returns seqeval's entities as spans of the text, between whose words are only blanks."""
    places, end = [], 0
    for word in row["words"]:
        start = row["text"].index(word, end)
        assert not row["text"][end:start].strip()
        end = start + len(word)
        places.append((start, end))
    assert not row["text"][end:].strip()
    return [(places[first][0], places[last][1], name) for name, first, last in get_entities(row["tags"])]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("export", FORMATS)
def test_seqeval_finds_the_spans_that_the_tools_export(tmp_path: Path, export: Any, suffix: str) -> None:
    path = written(tmp_path / f"a.{suffix}", [export(TEXT, SPANS), export(*OTHER), export(TEXT, SPANS[1:])])
    table = read(path)
    assert [characters(row) for row in table.rows] == [SPANS, [], SPANS[1:]] and not table.problems.counts
    assert table.rows[0]["words"][:10] == ["EU", "rejects", "German", "call", ",", "says", "Paris", "ian", "U", "."]
    assert table.rows[1] == {"text": OTHER[0], "words": ["Nobody", "here", "."], "tags": ["O"] * 3}
    unlabelled = read(path, labelled=False, label="").rows
    assert [row["text"] for row in unlabelled] == [TEXT, OTHER[0], TEXT] and "Parisian" in unlabelled[0]["words"]
    assert not any("tags" in row for row in unlabelled)


def test_what_cannot_be_kept_of_spans_is_counted(tmp_path: Path) -> None:
    records = [
        doccano("New York City Hall", [(0, 8, "LOC"), (0, 13, "LOC"), (14, 18, "ORG"), (8, 9, "X"), (17, 99, "X")]),
        label_studio("a b", [(0, 1, "X")]),
        {"data": {"text": "never seen"}, "annotations": []},
    ]
    records[1]["annotations"] += [{"result": []}]
    records[1]["annotations"][1]["result"] += [{"type": "relation"}, {"value": {"choices": ["bad"]}}]
    records[1]["annotations"][1]["result"][0]["value"]["labels"] += ["Y"]
    path = written(tmp_path / "a.jsonl", records)
    table = read(path)
    assert [characters(row) for row in table.rows] == [[(0, 13, "LOC"), (14, 18, "ORG")], [(0, 1, "X")]]
    assert table.problems.counts == {
        "spans that overlap a longer one": 1, "spans without a word, or outside of their text": 2,
        "annotations of a text behind its first": 1, "annotations that are no spans with a label": 2,
        "labels of a span behind its first": 1, "rows without a label": 1,
    }  # fmt: skip
    assert [row["text"] for row in read(path, labelled=False, label="").rows][2] == "never seen"


def test_keys_can_be_named_and_plain_texts_split_alike(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"body": "in Rome.", "text": "x", "marks": [[3, 7, "LOC"]]}])
    row = {"text": "in Rome.", "words": ["in", "Rome", "."], "tags": ["O", "B-LOC", "O"]}
    assert read(path, text="body", label="marks").rows == [row]
    plain = written(tmp_path / "b.jsonl", [{"text": "in Rome."}])
    assert read(plain, labelled=False, words="punctuation").rows == [{k: row[k] for k in ("words", "text")}]
    assert read(plain, labelled=False).rows == [{"words": ["in", "Rome."]}]
    with pytest.raises(DataError, match="cannot tell which columns"):
        read(plain)


def test_categories_and_columns_of_zeros_and_ones_are_several_labels(tmp_path: Path) -> None:
    def classes(path: Path, kind: str = "auto", **config: Any) -> Table:
        return read_table([str(path)], "classify", TableConfig(train=str(path), **config), kind=kind)

    cats = [{"POS": 1.0, "NEG": 0.0}, {"POS": 0, "NEG": 1}, {"POS": 0.2, "NEG": 0.9}]
    path = written(tmp_path / "a.jsonl", [{"text": f"t{i}", "cats": value} for i, value in enumerate(cats)])
    assert [row["label"] for row in classes(path).rows] == [["POS"], ["NEG"], ["NEG"]]
    assert [row["label"] for row in classes(path, "single").rows] == ["POS", "NEG", "NEG"]
    (tmp_path / "b.csv").write_text("text,toxic,in sult,threat\na,1,0,1\nb,0,0,0\nc,1.0,False,true\nd,2,0,0\ne,,,\n")
    table = classes(tmp_path / "b.csv", label="toxic, in sult,threat")
    assert [row["label"] for row in table.rows] == [["toxic", "threat"], [], ["toxic", "threat"]]
    assert table.problems.counts == {"rows with a label that is neither 0 nor 1": 1, "rows without a label": 1}
    assert table.columns["label"] == "toxic,in sult,threat"
    with pytest.raises(DataError, match=r"no column `thread`\n.*did you mean `threat`"):
        classes(tmp_path / "b.csv", label="toxic,thread")
