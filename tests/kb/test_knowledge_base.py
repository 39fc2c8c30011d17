"""A knowledge base gives back what was put in, whatever it is asked, and is whole or not there at all."""

import csv
import gzip
import json
import math
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import rdflib
import zstandard

from lmkit.base.errors import DataError, StorageError, UserError
from lmkit.kb.knowledge_base import KnowledgeBase, build_knowledge_base
from lmkit.kb.lookup import fold, relation_words, tokens

FACTS = "subject,relation,object\nFrance,capital,Paris\nFrance,officialLanguage,French\n"


def wrote(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def best(kb: KnowledgeBase, question: str) -> str:
    return next((c.answer for c in kb.lookup(question)), "")


def texts(kb: KnowledgeBase, query: str) -> list[str]:
    return [p.text for p in kb.search(query)]


def test_a_name_inside_a_longer_name_is_not_looked_up(tmp_path):
    rows = "subject,relation,object\nGuinea,capital,Conakry\nC,author,Ritchie\nNode,author,X\nAT,author,Y\n"
    build_knowledge_base(tmp_path / "a.sqlite", [wrote(tmp_path / "a.csv", rows)])
    facts = [{"question": "What is the capital of Guinea?", "answer": "Conakry"}]
    build_knowledge_base(tmp_path / "f.sqlite", [wrote(tmp_path / "f.jsonl", json.dumps(facts[0]))])
    build_knowledge_base(
        tmp_path / "b.sqlite", [wrote(tmp_path / "b.csv", rows + "Guinea-Bissau,capital,Bissau\nC#,author,Z\n")]
    )
    asked = ["capital of Guinea-Bissau?", "author of C#?", "author of C++", "author of Node.js", "author of AT&T",
             "capital of Guinea‑Bissau", "Guinea's capital", "capital of Guinea, please", "capital: Guinea.",
             "author of C?"]  # fmt: skip
    longer = ["capital of New Guinea", "What is the capital of Guinea Bissau?", "author of C--", "author of C--?",
              "Who is the author of C♯?"]  # fmt: skip
    alone = ["What Is the Capital Of Guinea", "Guinea: which capital?", "CAPITAL OF GUINEA", "capital of guinea new?",
             "Did Guinea move its capital", "Is the capital of Guinea, Bissau"]  # fmt: skip
    with KnowledgeBase(tmp_path / "a.sqlite") as kb:
        assert [best(kb, q) for q in asked] == [""] * 6 + ["Conakry"] * 3 + ["Ritchie"]
        assert [best(kb, q) for q in longer] == [""] * 5 and [best(kb, q) for q in alone] == ["Conakry"] * 6
    with KnowledgeBase(tmp_path / "b.sqlite") as kb:
        assert [best(kb, q) for q in asked[:2]] == ["Bissau", "Z"] and best(kb, "capital of Guinea Bissau") == "Bissau"
    with KnowledgeBase(tmp_path / "f.sqlite") as kb:
        assert best(kb, "What is the capital of Guinea-Bissau?") == ""
        assert best(kb, "What's Guinea's capital?") == "Conakry"


def test_every_kind_of_file_comes_back(tmp_path):
    squad = {"data": [{"title": "Bees", "paragraphs": [{"context": "Bees make honey.", "qas": []}]}]}
    lines = [
        {"name": "France", "alias": ["French Republic", "Hexagon"]},
        {"relation": "capital", "phrase": "main city"},
    ]
    lines += [{"question": "How do I reset my password?", "answers": ["Click on forgot.", "With a click."]}]
    lines += [{"title": "Ants", "text": "Ants carry leaves."}, {"odd": 1}, {"subject": "Rome", "p": "", "o": "x"}]
    (tmp_path / "a.csv").write_text('Head,predicate,tail\nFaust,author,"Goethe, J. W."\n')
    (tmp_path / "b.tsv").write_text('s\tp\to\nRocky\theight\t6\'2"\nInch\tsign\t" or in\n')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in lines).encode()))
    rows = [
        {"subject": "Oslo", "relation": "country", "object": ["Norway", "NO"]},
        {"subject": 7, "relation": "is", "object": 8.5},
    ]
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress("".join(json.dumps(x) + "\n" for x in rows).encode()))
    table = pyarrow.table({"start": ["Peru"], "rel": ["capital"], "end": ["Lima"], "weight": [1.0]})
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    wrote(tmp_path / "f.json", json.dumps(squad))
    wrote(tmp_path / "g.txt", "First about wasps,\non two lines.\n\n\nThen about hornets.\n")
    wrote(tmp_path / "h.json", json.dumps([{"subject": "Bern", "relation": "country", "object": "Switzerland"}]))
    wrote(tmp_path / "i.csv", FACTS)
    added = build_knowledge_base(tmp_path / "kb.sqlite", [str(tmp_path / "*.*")])
    assert added.rows == {"triples": 10, "aliases": 2, "phrases": 1, "facts": 1, "passages": 4}
    assert added.problems.counts == {"records of another kind": 1, "rows with an empty field": 1}
    with KnowledgeBase(tmp_path / "kb.sqlite") as kb:
        asked = {
            "Who is the author of Faust?": "Goethe, J. W.", "height of Rocky": "6'2\"", "sign of inch": '" or in',
            "What is the main city of the french republic?": "Paris", "hexagon, official languages?": "French",
            "how do I reset a password": "Click on forgot.", "In which country is OSLO?": "Norway, NO",
            "What is 7?": "8.5", "capital of Peru": "Lima", "country of Bern": "Switzerland", "nothing known here": "",
        }  # fmt: skip
        assert {question: best(kb, question) for question in asked} == asked
        assert texts(kb, "who makes honey?") == ["Bees make honey."] and texts(kb, "ant") == ["Ants carry leaves."]
        assert texts(kb, "wasps") == ["First about wasps, on two lines."] and texts(kb, "hornet") == [
            "Then about hornets."
        ]
        found = kb.lookup("Who is the author of Faust?")[0]
        assert (found.evidence, found.source) == ("triple (Faust, author, Goethe, J. W.)", "a.csv line 2")
        assert kb.search("hornets")[0].source == "g.txt line 5"


def test_adding_is_incremental(tmp_path):
    path, first, more = tmp_path / "kb.sqlite", wrote(tmp_path / "a.csv", FACTS), tmp_path / "more.jsonl"
    build_knowledge_base(path, [first])
    wrote(more, '{"text": "Old text on volcanoes."}\n{"subject": "Peru", "relation": "capital", "object": "Lyma"}\n')
    wrote(tmp_path / "copy.csv", FACTS)
    with KnowledgeBase(path) as kb:
        before = kb.fingerprint
        added = kb.add([first, str(more), str(tmp_path / "copy.csv")])
        assert added.known == [first, str(tmp_path / "copy.csv")] and added.rows == {"passages": 1, "triples": 1}
        middle = kb.fingerprint
        wrote(more, '{"text": "New text on glaciers."}\n{"subject": "Peru", "relation": "capital", "object": "Lima"}\n')
        assert kb.add([str(more)]).replaced == [str(more)]
        assert len({before, middle, kb.fingerprint}) == 3 and not kb.search("volcanoes")
        assert best(kb, "capital of Peru") == "Lima" and texts(kb, "glaciers") == ["New text on glaciers."]
        assert kb.stats()["rows"] == {"triples": 3, "passages": 1} and kb.stats()["subjects"] == 2
        bad = wrote(tmp_path / "bad.jsonl", '{"subject": "Peru", "relation": "capital", "object": "?"}\n{"x": 1')
        with pytest.raises(DataError, match=r"one\.csv.*cannot tell"):
            kb.add([bad, wrote(tmp_path / "one.csv", "alpha,beta\n1,2\n")])
        assert best(kb, "capital of Peru") == "Lima" and len(kb.stats()["sources"]) == 2  # nothing of it came in
        kb.db.execute("INSERT INTO passage_index(passage_index, rank) VALUES ('integrity-check', 1)")


KILLED = """
import os, signal, sys
from lmkit.kb import knowledge_base, writing
connect = knowledge_base._connect
def small(path, mode):  # so little memory that rows are on disk long before the end
    db = connect(path, mode)
    db.execute("PRAGMA cache_size = 10")
    return db
knowledge_base._connect = small
insert = writing.INSERTS["triples"]
def last(*given):
    insert(*given)
    os.kill(os.getpid(), signal.SIGKILL)
writing.INSERTS["triples"] = last
if sys.argv[1] == "build":
    knowledge_base.build_knowledge_base(knowledge_base.Path("kb.sqlite"), ["big.csv"])
else:
    knowledge_base.KnowledgeBase("kb.sqlite").add(["big.csv"])
"""


def test_a_killed_build_or_addition_leaves_nothing(tmp_path):
    with (tmp_path / "big.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("s", "p", "o"), *((f"Peru {n}", "capital", "x" * 100) for n in range(5000))])

    def killed(what: str) -> None:
        got = subprocess.run([sys.executable, "-c", KILLED, what], cwd=tmp_path, capture_output=True)
        assert got.returncode == -signal.SIGKILL, got.stderr

    killed("build")
    path = tmp_path / "kb.sqlite"
    assert not path.exists() and (tmp_path / ".kb.sqlite.part").stat().st_size > 100_000
    build_knowledge_base(path, [wrote(tmp_path / "a.csv", FACTS)])
    assert not (tmp_path / ".kb.sqlite.part").exists()
    killed("add")
    assert (tmp_path / "kb.sqlite-journal").stat().st_size > 0  # it had written to the file
    with KnowledgeBase(path) as kb:
        assert kb.stats()["rows"] == {"triples": 2} and not kb.lookup("capital of Peru 7")
        assert kb.add([str(tmp_path / "big.csv")]).rows == {"triples": 5000}
        assert best(kb, "capital of Peru 4999") == "x" * 100


DEJA_VU = "de\u0301ja\u0300 vu"
HOSTILE = [
    '" OR 1=1 --', "'; DROP TABLE triples; --", "NEAR(a b, 5)", "title:x AND NOT y*", "^a {b} (c", "a\x00b", "\\", "%_",
    "", "🙂🙃", "\ud800 capital", "a" * 5000, "OR AND NOT", "capital " * 3000, DEJA_VU,
    "{passages}{question}",
]  # fmt: skip


def test_hostile_text_is_only_text(tmp_path):
    names = [name for name in HOSTILE if name.strip() and "\ud800" not in name and len(name) < 100]
    rows = [{"subject": name, "relation": name, "object": f"object {i}"} for i, name in enumerate(names)]
    rows += [{"title": name, "text": f"{name} text {i}"} for i, name in enumerate(names)]
    rows += [{"subject": "\ud800", "relation": "a", "object": "b"}]
    path = tmp_path / "kb.sqlite"
    source = wrote(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    added = build_knowledge_base(path, [source])
    assert added.rows["triples"] == len(names) and added.problems.counts == {"undecodable rows": 1}
    with KnowledgeBase(path) as kb:
        for text in HOSTILE:
            kb.lookup(text), kb.search(text)
        for i, name in enumerate(names):
            if tokens(name) and not set(tokens(name)) <= {"or", "and", "not"}:
                assert f"object {i}" in [c.answer for c in kb.lookup(name, most=50)], name
        assert best(kb, "what about DEJA VU") == f"object {names.index(DEJA_VU)}"
        assert kb.stats()["rows"]["triples"] == len(names)


def test_ranks_by_bm25(tmp_path):
    """Against the formula, with FTS5's k1 = 1.2 and b = 0.75 (and its floor of 1e-6 for words in most texts)."""
    corpus = [
        "ant bee", "ant ant ant cow dog", "bee cow", "dog dog dog elk fox", "ant elk fox gnu hen", "cow", "gnu hen",
        "bee bee ant fox gnu hen elk dog",
    ]  # fmt: skip
    rows = "".join(json.dumps({"text": text}) + "\n" for text in corpus)
    build_knowledge_base(tmp_path / "kb.sqlite", [wrote(tmp_path / "a.jsonl", rows)])
    words = [text.split() for text in corpus]
    mean = sum(map(len, words)) / len(words)

    def bm25(query: list[str], text: list[str]) -> float:
        total = 0.0
        for q in query:
            n = sum(q in other for other in words)
            idf = max(math.log((len(words) - n + 0.5) / (n + 0.5)), 1e-6)
            f = text.count(q)
            total += idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(text) / mean))
        return total

    with KnowledgeBase(tmp_path / "kb.sqlite") as kb:
        for query in (["bee", "cow"], ["elk", "dog", "hen"], ["gnu"], ["fox", "cow", "bee"]):
            want = {" ".join(text): bm25(query, text) for text in words if set(query) & set(text)}
            found = {p.text: p.score for p in kb.search(" ".join(query), 20)}
            assert list(found) == sorted(want, key=want.__getitem__, reverse=True)
            assert found == pytest.approx(want)


def test_links_the_longest_name_and_matches_relations(tmp_path):
    assert fold("Côte d’Ivoire") == fold("COTE D'IVOIRE") and fold("C#") != fold("C++") != fold("C")
    assert (
        relation_words("http://example.org/ns#placesOfBirth") == relation_words("place_of_birth") == {"plac", "birth"}
    )
    rows = [
        ("New York", "mayor", "A"),
        ("York", "mayor", "B"),
        ("turkey", "colour", "brown"),
        ("Turkey", "colour", "red"),
    ]
    rows += [("東京", "国", "日本"), ("It", "author", "King"), ("Hub", "has part", "last"), ("Two", "mayor", "C")]
    rows += [("Hub", "contains", f"part {n}") for n in range(200)] + [("Other Two", "mayor", "D")]
    lines = [json.dumps(dict(zip(("s", "p", "o"), row, strict=True))) for row in rows]
    lines += [json.dumps({"alias": "Pair", "name": name}) for name in ("Two", "Other Two")]
    build_knowledge_base(tmp_path / "kb.sqlite", [wrote(tmp_path / "a.jsonl", "\n".join(lines))])
    with KnowledgeBase(tmp_path / "kb.sqlite") as kb:
        assert [c.answer for c in kb.lookup("Who is the mayor of New York?")] == ["A"]
        assert best(kb, "東京の国は?") == "日本" and not kb.lookup("Is it so?")
        long = kb.lookup("What does Hub contain?")[0]
        assert len(long.objects) == 50 and long.answer.endswith("part 49, …")
        assert best(kb, "which part has Hub") == "last"
        pair, one = kb.lookup("mayor of Pair"), kb.lookup("mayor of Two")
        assert {c.answer for c in pair} == {"C", "D"} and pair[0].score < one[0].score
        assert all(0 <= c.score <= 1 for c in (*pair, *one))


def test_what_is_no_knowledge_base_is_said(tmp_path):
    facts = wrote(tmp_path / "a.csv", FACTS)
    build_knowledge_base(tmp_path / "kb.sqlite", [facts])
    with pytest.raises(UserError, match="is there already"):
        build_knowledge_base(tmp_path / "kb.sqlite", [facts])
    with pytest.raises(DataError, match="no such knowledge base"):
        KnowledgeBase(tmp_path / "none.sqlite")
    with pytest.raises(DataError, match="no knowledge base"):
        KnowledgeBase(facts)
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE t(x)").connection.close()
    with pytest.raises(DataError, match="no knowledge base"):
        KnowledgeBase(tmp_path / "other.sqlite")
    with pytest.raises(DataError, match="hold no rows"):
        build_knowledge_base(tmp_path / "empty.sqlite", [wrote(tmp_path / "b.csv", "subject,relation,object\na,,c\n")])
    with pytest.raises(DataError, match=r"allowed: \.csv"):
        build_knowledge_base(tmp_path / "empty.sqlite", [wrote(tmp_path / "b.pdf", "x")])
    with pytest.raises(StorageError, match="no such folder"):
        build_knowledge_base(tmp_path / "gone" / "kb.sqlite", [facts])
    assert not (tmp_path / "empty.sqlite").exists()
    with KnowledgeBase(tmp_path / "kb.sqlite") as kb, sqlite3.connect(tmp_path / "kb.sqlite") as other:
        other.execute("BEGIN IMMEDIATE")
        kb.db.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(StorageError, match="another process"):
            kb.add([wrote(tmp_path / "c.csv", "s,p,o\nx,y,z\n")])


ASKED = {  # in scripts that write no spaces, and one whose particles follow without a space
    "日本の首都はどこですか。": "東京",
    "中国的首都是什么？": "北京",
    "ประเทศไทยมีเมืองหลวงชื่ออะไร": "กรุงเทพมหานคร",
    "한국의 수도는 어디입니까?": "서울",
    "国際連合教育科学文化機関の本部はどこにありますか": "パリ",
}


def test_names_are_found_in_scripts_without_spaces(tmp_path):
    rows = [
        ("日本", "首都", "東京"), ("中国", "首都", "北京"), ("ประเทศไทย", "เมืองหลวง", "กรุงเทพมหานคร"),
        ("한국", "수도", "서울"), ("国際連合教育科学文化機関", "本部", "パリ"),
        ("国際連合", "本部", "ニューヨーク"),
    ]  # fmt: skip
    table = "\n".join(["subject,relation,object", *map(",".join, rows)])
    build_knowledge_base(tmp_path / "a.sqlite", [wrote(tmp_path / "a.csv", table)])
    with KnowledgeBase(tmp_path / "a.sqlite") as kb:
        assert {question: best(kb, question) for question in ASKED} == ASKED


def test_passages_are_found_in_scripts_without_spaces(tmp_path):
    passages = [
        "東京は日本の首都である。",
        "京都は古い都市である。",
        "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
        "Paris is old.",
    ]
    build_knowledge_base(tmp_path / "a.sqlite", [wrote(tmp_path / "a.txt", "\n\n".join(passages))])
    with KnowledgeBase(tmp_path / "a.sqlite") as kb:
        assert texts(kb, "日本の首都")[0] == passages[0] and texts(kb, "京都")[0] == passages[1]
        assert texts(kb, "เมืองหลวง")[0] == passages[2] and texts(kb, "old Paris") == [passages[3]]
        kb.add([wrote(tmp_path / "a.txt", "大阪は日本の都市である。")])  # the old rows leave the index as they came
        assert texts(kb, "日本の首都") == ["大阪は日本の都市である。"] and texts(kb, "Paris") == []


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("July 4, 1776", "4 July 1776"), ("the 4th of July 1776", "the 1776-07-04"), ("4.7.1776", "Jul. 4th, 1776"),
        ("1,234,567 people", "1234567 people"), ("CO2 and 1'000", "CO2 and 1000"),
    ],
)  # fmt: skip
def test_dates_and_numbers_are_the_same_in_all_spellings(written, same):
    assert tokens(written) == tokens(same)
    assert tokens("in 1,234, 5,67 and 12 May") == ["in", "1234", "5", "67", "and", "12", "may"]


def test_rdf_is_read_with_the_names_of_things(tmp_path):
    turtle = """
        @prefix ex: <http://example.org/ns#> . @prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
        ex:Q1 rdfs:label "France"@en, "Frankreich"@de ; ex:capitalCity ex:Q2 ; ex:population 68000000 .
        ex:Q2 rdfs:label "Paris"@en . ex:Mount_Fuji ex:height "3776 m" .
    """
    wrote(tmp_path / "a.ttl", turtle)
    graph = rdflib.Graph().parse(tmp_path / "a.ttl", format="turtle")
    for name, kind in (("a.nt", "nt"), ("a.rdf", "xml"), ("a.jsonld", "json-ld")):
        graph.serialize(tmp_path / name, format=kind)
    for name in ("a.ttl", "a.nt", "a.rdf", "a.jsonld"):
        build_knowledge_base(tmp_path / f"{name}.sqlite", [str(tmp_path / name)])
        with KnowledgeBase(tmp_path / f"{name}.sqlite") as kb:
            assert best(kb, "What is the capital city of Frankreich?") == "Paris", name
            assert best(kb, "What is the height of Mount Fuji?") == "3776 m"
            assert best(kb, "What is the population of France?") == "68000000"
    with pytest.raises(DataError, match="rdflib cannot read it"):
        build_knowledge_base(tmp_path / "b.sqlite", [wrote(tmp_path / "b.ttl", "this is no turtle")])


def test_entities_of_wikidata_are_read_with_their_labels(tmp_path):
    """As Special:EntityData and the dumps have them: an entity a line, or a list."""
    label = lambda text: {"en": {"language": "en", "value": text}}
    item = lambda value: [{"mainsnak": {"snaktype": "value", "datavalue": {"value": value, "type": "x"}}}]
    entities = [
        {"type": "item", "id": "Q42", "labels": label("Douglas Adams"),
         "aliases": {"en": [{"language": "en", "value": "Douglas Noel Adams"}]},
         "claims": {"P19": item({"entity-type": "item", "id": "Q350"}),
                    "P569": item({"time": "+1952-03-11T00:00:00Z", "precision": 11}),
                    "P2048": item({"amount": "+1.96", "unit": "http://www.wikidata.org/entity/Q11573"}),
                    "P9": [{"mainsnak": {"snaktype": "novalue"}}]}},
        {"type": "item", "id": "Q350", "labels": label("Cambridge"), "aliases": {}, "claims": {}},
        {"type": "property", "id": "P19", "labels": label("place of birth"), "aliases": {}, "claims": {}},
        {"type": "property", "id": "P569", "labels": label("date of birth"), "aliases": {}, "claims": {}},
        {"type": "property", "id": "P2048", "labels": label("height"), "aliases": {}, "claims": {}},
        {"type": "item", "id": "Q11573", "labels": label("metre"), "aliases": {}, "claims": {}},
    ]  # fmt: skip
    for name, content in (("a.json", json.dumps(entities)), ("a.jsonl", "\n".join(map(json.dumps, entities)))):
        build_knowledge_base(tmp_path / f"{name}.sqlite", [wrote(tmp_path / name, content)])
        with KnowledgeBase(tmp_path / f"{name}.sqlite") as kb:
            assert best(kb, "What is the place of birth of Douglas Noel Adams?") == "Cambridge"
            assert best(kb, "What is the date of birth of Douglas Adams?") == "1952-03-11"
            assert best(kb, "What is the height of Douglas Adams?") == "1.96 metre"
            assert kb.counts()["triples"] == 3
