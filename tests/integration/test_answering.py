"""Answers say where they are from, and are looked up where that is right often enough: from files to the last line."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import transformers as hf

from lmkit.data.inputs import Problems
from lmkit.data.tables.table import Table
from lmkit.evaluation.answers import threshold_for_precision
from lmkit.kb.knowledge_base import KnowledgeBase, Passage, build_knowledge_base
from lmkit.kb.lookup import Matcher
from lmkit.pretrained import load
from lmkit.recipe.tasks import AnswerConfig
from lmkit.tasks.answer import Answered, Answering, Levels, PromptReader, graded, rank_of, reader_for
from lmkit.tasks.answer_fitting import fit, fit_matcher
from tests.command import lmkit
from tests.generation.folders import encoder_folder, llama_folder

RELATIONS = {
    "capital": ["Which city is the seat of {}?", "Where does the king of {} live?", "Which city rules {}?"],
    "officialLanguage": ["What do they speak in {}?", "Which tongue is spoken in {}?", "What is spoken in {}?"],
}
ABSENT = ["Who wrote the song of {}?", "How old is {}?"]


def name(n: int) -> str:
    return "".join("bdfgklmnprst"[n // 12**i % 12] + "aeiou"[(n + i) % 5] for i in range(3)).title()


def countries() -> list[tuple[str, str, str]]:
    return [(f"{name(n)}land", r, f"{name(n + 700)}{r[0]}") for n in range(80) for r in RELATIONS]


def questions() -> list[dict]:
    rng = random.Random(0)
    rows = [{"question": rng.choice(RELATIONS[r]).format(s), "answers": [o]} for s, r, o in countries()]
    rows += [
        {"question": rng.choice(ABSENT).format(s), "answers": ["nobody knows"]} for s, r, _ in countries() if r > "d"
    ]
    rng.shuffle(rows)
    return rows


def table(rows: list[dict]) -> Table:
    return Table(rows, [f"q:{i}" for i in range(len(rows))], {}, "", Problems())


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Triples, passages and labelled questions, and a model that marks spans, one that writes."""
    folder = tmp_path_factory.mktemp("answering")
    (folder / "facts.csv").write_text("s,p,o\n" + "".join(",".join(t) + "\n" for t in countries()))
    (folder / "texts.jsonl").write_text(json.dumps({"title": "Foxes", "text": "The quick brown fox jumps over dogs."}))
    rows = questions()
    for part, some in (("dev", rows[:160]), ("test", rows[160:])):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    build_knowledge_base(folder / "kb.sqlite", [str(folder / "facts.csv"), str(folder / "texts.jsonl")])
    encoder_folder(folder / "spans", "bert", hf.BertForQuestionAnswering)
    encoder_folder(folder / "mlm", "bert")
    llama_folder(folder / "writer", context=64, eos=1)
    return folder


def test_what_is_looked_up_is_right_as_often_as_asked(work):
    """On questions that the fit has not seen; and the threshold is the smallest that holds on those it has."""
    rows = questions()
    with KnowledgeBase(work / "kb.sqlite") as kb:
        task = fit(kb, table(rows[:120]), AnswerConfig(name="answer", precision=0.95), None, None)
        others = table(rows[120:])
        outputs = task.outputs(None, others)
        found = [(row, a) for row, a in zip(others.rows, outputs, strict=True) if a.source == "kb"]
        assert len(found) >= len(others.rows) / 3 and all(graded(row["answers"], a)[0] == 1 for row, a in found)
        scores = task.scores(others, outputs, intervals=True)
        assert scores["accuracy_at_coverage"].value == 1 and scores["coverage"].value == len(found) / len(others.rows)
        assert not any(a.answer for a in outputs if a.source != "kb")
        absent = [a for row, a in zip(others.rows, outputs, strict=True) if row["answers"] == ["nobody knows"]]
        assert all(a.source == "model" and a.evidence.startswith("nothing found") for a in absent)

        cases = []
        for row in rows[:120]:
            options = kb.options(row["question"])
            cases.append(
                (
                    row["question"].lower().rstrip("?").split(),
                    options,
                    [o.objects == tuple(row["answers"]) for o in options],
                )
            )
        _, scored, right = fit_matcher(cases)
        level, kept = task.levels.lookup, np.array(scored) >= task.levels.lookup
        assert np.mean(np.array(right)[kept]) >= 0.95 and level == threshold_for_precision(scored, right, 0.95)
        again = Answering(kb, Matcher(**json.loads(json.dumps(task.matcher.as_json()))), task.levels, 5, None)
        assert again.outputs(None, others) == outputs


class Reads:
    """Reads `fox` with a score of .7, and writes `guess`."""

    def read(self, model, questions, passages):
        return [Answered("fox" if p else "", "passage", "“text”", 0.7 if p else 0.0) for p in passages]

    def write(self, model, questions):
        return [Answered("guess", "model", "", 0.1) for _ in questions]


def test_each_rung_says_what_it_is(work):
    capital, jumps = f"What is the capital of {name(3)}land?", "Which quick animal jumps?"
    golds = {capital: f"{name(703)}c", jumps: "brown fox", "Who?": "me"}
    asked = table([{"question": question, "answers": [gold]} for question, gold in golds.items()])
    with KnowledgeBase(work / "kb.sqlite") as kb:
        said = lambda levels: [
            (a.answer, a.source, a.rank) for a in Answering(kb, Matcher(), levels, 5, Reads()).outputs(object(), asked)
        ]
        capital = f"{name(703)}c"
        assert said(Levels(0.5, 0.7)) == [(capital, "kb", None), ("fox", "passage", 1), ("guess", "model", None)]
        assert said(Levels(None, 0.7)) == [("guess", "model", None), ("fox", "passage", 1), ("guess", "model", None)]
        assert said(Levels(0.5, 0.71))[1:] == [("guess", "model", 1), ("guess", "model", None)]
        found = Answering(kb, Matcher(), Levels(0.5, None), 5, Reads()).outputs(object(), asked)
        assert found[0].evidence == f"triple ({name(3)}land, capital, {capital}) from facts.csv line 8"
        assert found[1].evidence == "nothing found above lookup 0.50, reading never; nearest passage: 'fox' 0.70"


def test_lists_and_ranks_are_graded_as_said():
    answered = Answered("French, German", "kb", "", 1.0, ("French", "German"))
    assert graded(["German", "french"], answered) == (1, 1) and graded(["French"], answered)[0] == 0
    assert graded(["French, German"], answered) == (1, 1)
    passages = [Passage("", "Parisian life", "", 1.0), Passage("Paris", "a city", "", 1.0)]
    assert rank_of(["Paris"], passages) == 2 and rank_of(["", "Rome"], passages) is None


def test_spans_are_read_in_the_passage_that_is_surest(work):
    loaded = load(work / "spans")
    reader = reader_for(loaded, AnswerConfig(name="answer"))
    texts = ["the quick brown fox jumps", "a lazy dog.", "over the dog (quick)!"]
    passages = [Passage("", text, f"line {i}", 1.0) for i, text in enumerate(texts)]
    got, none = reader.read(loaded.model, ["the fox", "the dog"], [passages, []])
    alone = [reader.read(loaded.model, ["the fox"], [[p]])[0] for p in passages]
    first = max(range(3), key=lambda i: alone[i].score)
    assert (got.answer, got.evidence) == (alone[first].answer, f"“{texts[first]}” from line {first}")
    assert got.score == pytest.approx(alone[first].score, abs=1e-5) and len({round(a.score, 4) for a in alone}) == 3
    assert (none.answer, none.score) == ("", 0) and not reader.write(loaded.model, ["the fox"])[0].answer


def test_prompts_hold_as_much_as_there_is_room_for(work):
    loaded = load(work / "writer")
    reader = PromptReader(loaded, AnswerConfig(name="answer", max_new_tokens=8, prompt="{passages}|{question}|"))
    passages = [Passage("", c * 30, "a", 1.0) for c in "xyz"]
    assert reader._prompt("{passages}?", passages) == "x" * 30 + "|{passages}?|"
    cut = reader._prompt("a?", [Passage("", "x" * 500, "a", 1.0)])
    assert 20 < cut.count("x") < 56 and cut.endswith("|a?|")
    read, none = reader.read(loaded.model, ["a?", "b?"], [passages, []])
    assert read.source == "passage" and read.evidence.endswith("and 2 more") and 0 < read.score < 1
    assert (none.answer, none.score) == ("", 0)


def test_the_commands(work, monkeypatch):
    monkeypatch.chdir(work)
    lmkit("kb build kb2.sqlite facts.csv")
    assert "is in already" in lmkit("kb add kb2.sqlite facts.csv texts.jsonl").stderr
    found = json.loads(lmkit(f"kb search kb2.sqlite 'capital of {name(0)}land and the fox' -k 1 --json").stdout)
    assert found["candidates"][0]["answer"] == f"{name(700)}c" and found["passages"][0]["title"] == "Foxes"
    assert json.loads(lmkit("kb stats kb2.sqlite --json").stdout)["rows"] == {"triples": 160, "passages": 1}

    fitted = lmkit("finetune --task answer --model spans task.kb=kb2.sqlite --data dev.jsonl --out run")
    assert "80 questions to fit to, 80 held out" in fitted.stderr and "accuracy at coverage" in fitted.stdout
    assert json.loads((work / "run/scores.json").read_text())["scores"]["accuracy_at_coverage"]["value"] == 1

    asked = f"Which city rules {name(5)}land?"
    plain = lmkit(f"generate run '{asked}'").stdout
    source = f"looked up · triple ({name(5)}land, capital, {name(705)}c) from facts.csv line 12 · score "
    assert plain.startswith(f"{name(705)}c\n  {source}")
    line = json.loads(lmkit(f"generate run '{asked}' --json").stdout)
    assert line == line | {"question": asked, "answer": f"{name(705)}c", "source": "kb"} and 0 < line["score"] <= 1
    assert lmkit("generate run 'Who is it?'").stdout.startswith("I do not know.\n  no answer · nothing found")
    assert "--temperature" in lmkit("generate run 'Who?' -t 1", code=2).stderr

    scores = json.loads(lmkit("eval run --data test.jsonl --json").stdout)["models"]["run"]
    assert scores["accuracy_at_coverage"]["value"] == 1 and scores["coverage"]["low"] < scores["coverage"]["high"]
    lmkit("predict run --data test.jsonl --out said.jsonl")
    lines = (work / "said.jsonl").read_text().splitlines()
    assert len(lines) == 80
    assert {"place", "answer", "gold", "source", "evidence", "score"} == json.loads(lines[0]).keys()

    (work / "new.csv").write_text("s,p,o\nZubrowka,capital,Lutz\n")
    lmkit("kb add kb2.sqlite new.csv")
    changed = lmkit("generate run 'Which city rules Zubrowka?'")
    assert "is not as it was" in changed.stderr and changed.stdout.startswith("Lutz\n")
    written = lmkit("answer writer 'Who is it?' --kb kb.sqlite --max-tokens 4 --json")
    assert "not fitted" in written.stderr and json.loads(written.stdout)["source"] == "model"
    assert "neither marks" in lmkit("generate mlm 'Who?' --kb kb.sqlite", code=4).stderr
