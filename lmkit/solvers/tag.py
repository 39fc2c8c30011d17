"""Labels of words: names, parts of speech."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmkit.batch import Batch
from lmkit.data.tables import Table
from lmkit.errors import DataError
from lmkit.evaluation import tagging
from lmkit.evaluation.intervals import Estimate
from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.solvers.solver import in_batches
from lmkit.tasks.labelling import Layout, Tag
from lmkit.text.framing import Framed, frame_texts
from lmkit.text.tokenizer import Tokenizer


def tags_of(table: Table) -> tuple[str, ...]:
    """All tags there are; O, outside of everything, first."""
    return tuple(sorted({tag for row in table.rows for tag in row["tags"]}, key=lambda tag: (tag != "O", tag)))


@dataclass
class Tagger:
    """A word's tag is said by its first token. Words of sentences longer than the model reads, which stand behind its
    end, are not learnt; of such a sentence they are predicted the first tag, O where it is used."""

    tokenizer: Tokenizer
    layout: Layout
    labels: tuple[str, ...]
    max_length: int
    likelihood: bool = False

    def __post_init__(self) -> None:
        self.task = Tag(self.layout)
        self.places = {name: i for i, name in enumerate(self.labels)}
        self.metric = "accuracy" if tagging.scheme(self.labels) == "words" else "f1"

    def examples(self, table: Table) -> list[dict[str, Any]]:
        sentences = [" ".join(row["words"]) for row in table.rows]
        framed = frame_texts(self.tokenizer, sentences, None, self.max_length)
        out = []
        for i, (row, f, place) in enumerate(zip(table.rows, framed, table.places, strict=True)):
            firsts = first_tokens(row["words"], f)
            labels = np.full(len(f.ids), IGNORE)
            for word, tag in enumerate(row.get("tags", [])):
                if tag not in self.places:
                    known = ", ".join(self.labels[:20])
                    raise DataError(
                        f"{place}: tag `{tag}` is none of the model's\n  allowed: {known}\n"
                        "  → give some training rows this tag, or leave such rows out"
                    )
                if firsts[word] is not None:
                    labels[firsts[word]] = self.places[tag]
            out.append({"tokens": np.array(f.ids), "labels": labels, "firsts": firsts, "row": i, "cut": None in firsts})
        return out

    def outputs(
        self, model: Transformer, table: Table, examples: Sequence[dict], quick: bool = False
    ) -> list[list[str]]:
        """The tag of each word."""

        def compute(batch: Batch) -> list[np.ndarray]:
            return list(self.layout.logits(model, batch).argmax(-1).cpu().numpy())

        best = in_batches(model, self.task, examples, compute, quick)
        return [
            [self.labels[0 if at is None else row[at]] for at in e["firsts"]]
            for e, row in zip(examples, best, strict=True)
        ]

    def scores(self, table: Table, outputs: Sequence[list[str]], intervals: bool) -> dict[str, Estimate]:
        return tagging.score([row["tags"] for row in table.rows], outputs, intervals, self.labels)

    def per_row(self, table: Table, outputs: Sequence[list[str]]) -> list[float]:
        """The share of words that are right."""
        pairs = zip((row["tags"] for row in table.rows), outputs, strict=True)
        return [float(np.mean([a == b for a, b in zip(gold, said, strict=True)])) for gold, said in pairs]

    def say(self, output: list[str]) -> dict[str, Any]:
        return {"tags": output}


def first_tokens(words: list[str], framed: Framed) -> list[int | None]:
    """The place of the first token that holds a character of each word, in words joined by spaces; None for words that
    were cut off, or that the tokenizer drops."""
    owner = np.full(sum(map(len, words)) + len(words), -1)  # the word each character is of
    start = 0
    for number, word in enumerate(words):
        owner[start : start + len(word)] = number
        start += len(word) + 1
    firsts: list[int | None] = [None] * len(words)
    for place, (low, high) in enumerate(framed.offsets):
        if framed.texts[place] is None:
            continue
        for number in dict.fromkeys(owner[low:high].tolist()):
            if number >= 0 and firsts[number] is None:
                firsts[number] = place
    return firsts
