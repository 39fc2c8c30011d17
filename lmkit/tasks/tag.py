"""Labels of words: names, parts of speech."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from lmkit.base.display import note
from lmkit.base.units import brief
from lmkit.data.tables.labels import with_prefixes
from lmkit.data.tables.table import Table
from lmkit.evaluation import tagging
from lmkit.evaluation.classification import ClassScore
from lmkit.evaluation.intervals import Estimate
from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch
from lmkit.pretrained import Pretrained
from lmkit.recipe.task_settings import TaskSettings
from lmkit.recipe.tasks import TagConfig
from lmkit.tasks.labelling import InputLayout, Tag
from lmkit.tasks.task import MOST_TOKENS, Reading, Task, in_batches, row_losses
from lmkit.text.tokenizer import Framed, Tokenizer, frame_texts


def tags_of(table: Table) -> tuple[str, ...]:
    """Returns all tags that there are, with O, outside of everything, first."""
    return tuple(sorted({tag for row in table.rows for tag in row["tags"]}, key=lambda tag: (tag != "O", tag)))


@dataclass
class Tagger(Task):
    """A word's tag is said by its first token. Words of sentences longer than the model reads, which stand behind its
    end, are not learnt; of such a sentence they are predicted O, where it is not used the first tag."""

    head, head_is_for = "token", "labels of words"

    tokenizer: Tokenizer
    layout: InputLayout
    labels: tuple[str, ...]
    max_length: int

    @classmethod
    def for_training(cls, config: TagConfig, train: Table, reading: Reading) -> Self:
        return cls(reading.tokenizer, reading.layout, tags_of(train), reading.length(MOST_TOKENS))

    @classmethod
    def of_folder(cls, config: TagConfig, loaded: Pretrained, settings: TaskSettings | None) -> Self:
        reading = Reading.of(loaded, settings)
        return cls(reading.tokenizer, reading.layout, with_prefixes(loaded.config.labels), reading.length(MOST_TOKENS))

    @classmethod
    def label_names(cls, config: TagConfig, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the tags as `settle_tags` writes those of data."""
        return with_prefixes(labels)

    def __post_init__(self) -> None:
        self.objective = Tag(self.layout)
        self.places = {name: i for i, name in enumerate(self.labels)}
        self.written = tagging.scheme(self.labels)
        self.metric = "accuracy" if self.written == "words" else "f1"

    def examples(self, table: Table) -> list[dict[str, Any]]:
        sentences = [" ".join(row["words"]) for row in table.rows]
        framed = frame_texts(self.tokenizer, sentences, None, self.max_length)
        out, unknown = [], list[str]()
        for i, (row, f, place) in enumerate(zip(table.rows, framed, table.places, strict=True)):
            firsts = first_tokens(row["words"], f)
            labels = np.full(len(f.ids), IGNORE)
            for word, tag in enumerate(row.get("tags", [])):
                number = self._number(tag)
                if number is None:
                    unknown.append(f"{place}: `{brief(tag)}`")
                elif firsts[word] is not None:
                    labels[firsts[word]] = number
            out.append({"tokens": np.array(f.ids), "labels": labels, "firsts": firsts, "row": i, "cut": None in firsts})
        if unknown:
            lacking = f"{len(unknown):,} words have a tag that the model lacks, like {unknown[0]}"
            note(f"{lacking}: they count as wrong, and have no loss")
        return out

    def _number(self, tag: str) -> int | None:
        """Returns the number of a tag; None for one that is unknown. A model whose tags are I- alone has no B- to begin
        with."""
        return self.places.get(tag, self.places.get(f"I{tag[1:]}") if self.written == "iob1" else None)

    def outputs(
        self, model: Transformer, table: Table, examples: Sequence[dict], quick: bool = False
    ) -> list[list[str]]:
        """Returns the tag of each word."""

        def compute(batch: Batch) -> list[np.ndarray]:
            return list(self.layout.logits(model, batch).argmax(-1).cpu().numpy())

        best = in_batches(model, self.objective, examples, compute, quick)
        unread = self.places.get("O", 0)  # the tag of words that were cut off
        return [
            [self.labels[unread if at is None else row[at]] for at in e["firsts"]]
            for e, row in zip(examples, best, strict=True)
        ]

    def scores(self, table: Table, outputs: Sequence[list[str]], intervals: bool) -> dict[str, Estimate]:
        return tagging.score_tags(self._gold(table), outputs, intervals, self.labels)

    def class_scores(self, table: Table, outputs: Sequence[list[str]]) -> dict[str, ClassScore]:
        return tagging.score_types(self._gold(table), outputs, self.labels)

    def _gold(self, table: Table) -> list[list[str]]:
        """Returns the tags of the rows, in the model's spelling where it has one."""
        numbered = [[(tag, self._number(tag)) for tag in row["tags"]] for row in table.rows]
        return [[tag if i is None else self.labels[i] for tag, i in row] for row in numbered]

    def never_predicted(self, table: Table, outputs: Sequence[list[str]]) -> dict[str, int]:
        predicted = {tag for row in outputs for tag in row}
        gold = (set(row) - predicted for row in self._gold(table))
        return dict(Counter(tag for tags in gold for tag in tags).most_common())

    def per_row(self, table: Table, outputs: Sequence[list[str]]) -> list[float]:
        """Returns the share of words that are right, for each row."""
        pairs = zip(self._gold(table), outputs, strict=True)
        return [float(np.mean([a == b for a, b in zip(gold, said, strict=True)])) for gold, said in pairs]

    def losses(self, model: Transformer, table: Table, outputs: Sequence[list[str]]) -> list[float | None]:
        """Returns the mean over the words of each row whose tag the model has."""

        def nats(batch: Batch) -> tuple[Tensor, Tensor]:
            logits = self.layout.logits(model, batch).transpose(1, 2)  # (B, L, T)
            each = F.cross_entropy(logits, batch.labels, ignore_index=IGNORE, reduction="none")
            return each.sum(1), (batch.labels != IGNORE).sum(1)

        return row_losses(self, model, table, nats)

    def say(self, output: list[str]) -> dict[str, Any]:
        return {"tags": output}

    def say_of(self, row: dict[str, Any], output: list[str]) -> dict[str, Any]:
        """Returns the tags; and the entities, by their characters, where the words were cut out of a text."""
        if "text" not in row or self.written == "words":
            return self.say(output)
        text, places, end = row["text"], list[tuple[int, int]](), 0
        for word in row["words"]:
            start = text.index(word, end)
            places.append((start, end := start + len(word)))
        tagged = sorted(tagging.entities_in(output, self.written), key=lambda entity: entity[1])
        spans = [(places[first][0], places[last - 1][1], kind) for kind, first, last in tagged]
        entities = [{"start": a, "end": b, "label": kind, "text": text[a:b]} for a, b, kind in spans]
        return self.say(output) | {"entities": entities}


def first_tokens(words: list[str], framed: Framed) -> list[int | None]:
    """Returns the place of the first token that holds a character of each word, in words joined by spaces; None for
    words that were cut off, or that the tokenizer drops."""
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
