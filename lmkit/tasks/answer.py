"""Answers from a knowledge base: looked up where that is sure enough, else read in its passages, else the model's own
words. Which of these an answer is, is always said."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

from lmkit.base.display import note
from lmkit.base.errors import ModelError, UserError
from lmkit.data.inputs import Problems
from lmkit.data.tables.table import Table
from lmkit.evaluation import answers
from lmkit.evaluation.intervals import Estimate, means
from lmkit.generation.engine import complete
from lmkit.generation.prompts import prompt_ids, source_ids
from lmkit.generation.sampling import SamplingConfig
from lmkit.kb.knowledge_base import KnowledgeBase, Passage, shown
from lmkit.kb.lookup import Matcher
from lmkit.model.transformer import Transformer
from lmkit.pretrained import Pretrained
from lmkit.recipe.task_settings import TaskSettings
from lmkit.recipe.tasks import AnswerConfig, QAConfig
from lmkit.tasks.qa import SpanFinder
from lmkit.tasks.task import Reading, Task

RANKED = (1, 5, 20)  # of recall@k
SNIPPET = 200  # characters of a passage that are shown
READ_AT_ONCE = 256  # questions
NOT_FITTED = 0.5


@dataclass(frozen=True)
class Answered:
    answer: str  # "" where the model has none
    source: Literal["kb", "passage", "model"]
    evidence: str
    score: float  # in [0, 1]: how likely it is to be right, by what looked it up, read or wrote it
    objects: tuple[str, ...] = ()  # of a list that was looked up
    rank: int | None = None  # of the first passage that holds a right answer; only for labelled questions


class Levels(NamedTuple):
    """What the score of each rung must reach; None: no score is enough."""

    lookup: float | None
    reading: float | None


def sure(answered: Answered | None, level: float | None) -> bool:
    return answered is not None and bool(answered.answer) and level is not None and answered.score >= level


def graded(golds: Sequence[str], answered: Answered) -> tuple[float, float]:
    """Returns (exact match, F1). A list is also right when each of its entries is an accepted answer."""
    exact, f1 = answers.best_of(golds, answered.answer)
    if answered.objects and all(answers.best_of(golds, o)[0] for o in answered.objects):
        return 1.0, 1.0
    return exact, f1


def rank_of(golds: Sequence[str], passages: Sequence[Passage]) -> int | None:
    """Returns the place, from 1, of the first passage with one of the answers in it, as whole words."""
    wanted = [f" {gold} " for gold in map(answers.normalise, golds) if gold]
    for rank, passage in enumerate(passages, 1):
        text = f" {answers.normalise(f'{passage.title} {passage.text}')} "
        if any(gold in text for gold in wanted):
            return rank
    return None


class Reader(Protocol):
    def read(self, model: Transformer, questions: Sequence[str], passages: Sequence[list[Passage]]) -> list[Answered]:
        """Returns an answer for each question, out of its passages: "" where there are none."""
        ...

    def write(self, model: Transformer, questions: Sequence[str]) -> list[Answered]:
        """Returns what the model says without passages; "" where it cannot write."""
        ...


@dataclass
class SpanReader:
    """Marks answers in passages. Scores: the odds of the best span against none, as a probability."""

    finder: SpanFinder

    def read(self, model: Transformer, questions: Sequence[str], passages: Sequence[list[Passage]]) -> list[Answered]:
        best = [Answered("", "passage", "no passage", 0.0)] * len(questions)
        for first in range(0, len(questions), READ_AT_ONCE):
            some = range(first, min(first + READ_AT_ONCE, len(questions)))
            pairs = [(i, passage) for i in some for passage in passages[i]]
            rows = [
                {"id": i + 1, "question": questions[i], "context": "\n".join(filter(None, (p.title, p.text)))}
                for i, p in pairs
            ]  # fmt: skip
            table = Table(rows, [questions[i] for i, _ in pairs], {}, "", Problems())
            found = self.finder.outputs(model, table, self.finder.examples(table)) if rows else []
            for (i, passage), span in zip(pairs, found, strict=True):
                score = 1 / (1 + math.exp(-min(max(span.score - span.null_score, -50.0), 50.0)))
                if score > best[i].score:
                    best[i] = Answered(span.text.strip(), "passage", quoted(passage), score)
        return best

    def write(self, model: Transformer, questions: Sequence[str]) -> list[Answered]:
        return [Answered("", "model", "", 0.0)] * len(questions)


@dataclass
class PromptReader:
    """Writes answers. Scores: the mean probability of their tokens (geometric)."""

    loaded: Pretrained
    config: AnswerConfig

    def __post_init__(self) -> None:
        if "{question}" not in self.config.prompt:
            raise UserError(f"task.prompt {self.config.prompt!r} has no {{question}} in it")

    def read(self, model: Transformer, questions: Sequence[str], passages: Sequence[list[Passage]]) -> list[Answered]:
        written = iter(self._written(model, [(q, p) for q, p in zip(questions, passages, strict=True) if p]))
        none = Answered("", "passage", "no passage", 0.0)
        return [
            replace(next(written), source="passage", evidence=quoted(p[0], len(p))) if p else none for p in passages
        ]

    def write(self, model: Transformer, questions: Sequence[str]) -> list[Answered]:
        return self._written(model, [(q, []) for q in questions])

    def _written(self, model: Transformer, asked: Sequence[tuple[str, list[Passage]]]) -> list[Answered]:
        loaded, tokenizer = self.loaded, self.loaded.needs_tokenizer()
        config = SamplingConfig(max_tokens=self.config.max_new_tokens, temperature=0, stop=("\n",))
        prompts = [self._prompt(question, passages) for question, passages in asked]
        rows = complete(model, tokenizer, prompts, config, loaded.eos, opening=loaded.opening)
        return [
            Answered(row.text.strip(), "model", "", math.exp(sum(row.logprobs) / max(len(row.logprobs), 1)))
            for row in rows
        ]

    def _prompt(self, question: str, passages: Sequence[Passage]) -> str:
        """Returns a prompt with as many passages as there is room for, the best first; of the last one as much as
        fits."""
        loaded, tokenizer = self.loaded, self.loaded.needs_tokenizer()
        ids = prompt_ids if loaded.opening is None else source_ids
        room = loaded.config.context - (self.config.max_new_tokens if loaded.opening is None else 0)
        texts = ["\n".join(filter(None, (p.title, p.text))) for p in passages]
        while True:
            values = {"{passages}": "\n\n".join(texts), "{question}": question.strip()}
            parts = re.split(r"(\{passages\}|\{question\})", self.config.prompt)
            prompt = "".join(values.get(part, part) for part in parts).strip()
            over = len(ids(tokenizer, prompt)) / max(room, 1)
            if over <= 1 or not texts:
                return prompt
            *texts, last = texts
            if not texts and len(last) > 40:
                texts = [last[: int(len(last) * 0.9 / over)]]


def reader_for(loaded: Pretrained, config: AnswerConfig, max_length: int = 0) -> Reader:
    """Returns the reader for a model. Raises ModelError for one that neither marks spans nor writes."""
    c = loaded.config
    if c.head == "span":
        return SpanReader(SpanFinder.of_folder(QAConfig(name="qa", no_answer=False), loaded, None))
    if c.head == "lm" and c.stacks != "encoder":
        return PromptReader(loaded, config)
    raise ModelError(
        f"{loaded.folder} is a {c.spec.cls}, which neither marks answers in texts nor writes them\n"
        "  → a model that writes, or one fine-tuned with --task qa"
    )


def quoted(passage: Passage, of: int = 1) -> str:
    """Returns the passage that an answer was read in, the first of several."""
    text = shown(f"{passage.title}: {passage.text}" if passage.title else passage.text)
    text = text if len(text) <= SNIPPET else text[:SNIPPET].rstrip() + "…"
    return f"“{text}” from {passage.source}" + (f" and {of - 1} more" if of > 1 else "")


class Answering(Task):
    """The ladder, as a task. Without a reader only what can be looked up is answered."""

    metric, labels = "f1", ()

    @classmethod
    def for_training(cls, config: AnswerConfig, train: Table, reading: Reading) -> Self:
        raise ModelError("answers are looked up, read and written: there is no loss to train with")

    @classmethod
    def of_folder(cls, config: AnswerConfig, loaded: Pretrained, settings: TaskSettings | None) -> Self:
        return cls.opened(config, loaded, settings.fitted if settings else {})

    @classmethod
    def opened(
        cls, config: AnswerConfig, loaded: Pretrained, fitted: dict[str, Any], kb: str | Path | None = None
    ) -> Self:
        """Returns the task of a model that was fitted to questions, or of any model beside a knowledge base. kb:
        replaces the one of the fit. It tells the user where the knowledge base is not as it was then, and where nothing
        was fitted. Raises DataError where there is no knowledge base."""
        reader = reader_for(loaded, config)
        if "levels" not in fitted:
            note(
                f"thresholds of {NOT_FITTED}, which were not fitted: how often answers are right is unknown\n"
                "  → lmkit finetune --task answer fits them to questions with answers"
            )
            opened = KnowledgeBase(kb or config.kb)
            return cls(opened, Matcher(), Levels(NOT_FITTED, NOT_FITTED), config.passages, reader)
        opened = KnowledgeBase(kb or fitted["kb"])
        if opened.fingerprint != fitted["fingerprint"]:
            note(
                f"{opened.path} is not as it was when {loaded.folder} was fitted: its thresholds may be too low, or too"
                " high"
            )
        return cls(opened, Matcher(**fitted["matcher"]), Levels(**fitted["levels"]), config.passages, reader)

    def __init__(self, kb: KnowledgeBase, matcher: Matcher, levels: Levels, passages: int, reader: Reader | None):
        self.kb, self.matcher, self.levels, self.passages, self.reader = kb, matcher, levels, passages, reader

    def examples(self, table: Table) -> list[dict[str, Any]]:
        return [{"row": i, "cut": False} for i in range(len(table.rows))]

    def look_up(self, question: str) -> Answered | None:
        """Returns the best of what the knowledge base says, however unsure."""
        for best in self.kb.lookup(question, self.matcher, 1):
            return Answered(best.answer, "kb", f"{best.evidence} from {best.source}", best.score, best.objects)
        return None

    def outputs(
        self, model: Transformer | None, table: Table, examples: Sequence[dict] = (), quick: bool = False
    ) -> list[Answered]:
        """Returns an answer for each row. model: the reader's; None without one."""
        questions = [row["question"] for row in table.rows]
        looked = [self.look_up(question) for question in questions]
        labelled = any(row.get("answers") for row in table.rows)
        k = max(self.passages, *RANKED) if labelled else self.passages
        need = [labelled or not sure(found, self.levels.lookup) for found in looked]
        passages = [self.kb.search(q, k) if wanted else [] for q, wanted in zip(questions, need, strict=True)]
        ranks = [rank_of(row.get("answers") or (), p) for row, p in zip(table.rows, passages, strict=True)]
        unsure = [i for i, found in enumerate(looked) if not sure(found, self.levels.lookup)]
        others = self._by_model(model, [questions[i] for i in unsure], [passages[i][: self.passages] for i in unsure])
        chosen: list[Answered | None] = list(looked)
        for i, (read, written) in zip(unsure, others, strict=True):
            chosen[i] = self.choose(looked[i], read, written)
        return [replace(a, rank=rank) for a, rank in zip(chosen, ranks, strict=True) if a is not None]

    def _by_model(
        self, model: Transformer | None, questions: list[str], passages: list[list[Passage]]
    ) -> list[tuple[Answered, Answered]]:
        """Returns what the model reads, and where that is not sure what it writes."""
        if self.reader is None or model is None:
            return [(Answered("", "passage", "", 0.0), Answered("", "model", "", 0.0))] * len(questions)
        read = self.reader.read(model, questions, passages)
        open_ = [q for q, found in zip(questions, read, strict=True) if not sure(found, self.levels.reading)]
        written = iter(self.reader.write(model, open_))
        return [(r, r if sure(r, self.levels.reading) else next(written)) for r in read]

    def choose(self, looked: Answered | None, read: Answered, written: Answered) -> Answered:
        """Returns the answer of the highest rung that is sure enough; else that of the lowest, whose evidence names
        what the others said."""
        if looked is not None and sure(looked, self.levels.lookup):
            return looked
        if sure(read, self.levels.reading):
            return read
        levels = [f"{name} {'never' if x is None else f'{x:.2f}'}" for name, x in self.levels._asdict().items()]
        guesses = [f"{g.source}: {g.answer!r} {g.score:.2f}" for g in (looked, read) if g is not None and g.answer]
        evidence = f"nothing found above {', '.join(levels)}" + (f"; nearest {', '.join(guesses)}" if guesses else "")
        return replace(written, source="model", evidence=evidence)

    def scores(self, table: Table, outputs: Sequence[Answered], intervals: bool) -> dict[str, Estimate]:
        """Returns scores, among them coverage, the share of questions that were looked up, and accuracy, their exact
        match."""
        both = [graded(row["answers"], a) for row, a in zip(table.rows, outputs, strict=True)]
        exact = [e for e, _ in both]
        by_source = {source: [float(a.source == source) for a in outputs] for source in ("kb", "passage")}
        columns = {
            "exact_match": exact,
            "f1": [f for _, f in both],
            "coverage": by_source["kb"],
            "read": by_source["passage"],
        }
        scores = means(columns, intervals)
        for source, name in (("kb", "accuracy_at_coverage"), ("passage", "accuracy_of_read")):
            if any(by_source[source]):
                scores |= means({name: [e for e, f in zip(exact, by_source[source], strict=True) if f]}, intervals)
        if self.kb.counts()["passages"]:
            scores |= answers.recall_at_k([a.rank for a in outputs], RANKED, intervals)
        return scores

    def per_row(self, table: Table, outputs: Sequence[Answered]) -> list[float]:
        """Returns the F1 of each row."""
        return [graded(row["answers"], a)[1] for row, a in zip(table.rows, outputs, strict=True)]

    def say(self, output: Answered) -> dict[str, Any]:
        return {
            "answer": output.answer, "source": output.source, "evidence": output.evidence,
            "score": round(output.score, 4),
        }  # fmt: skip
