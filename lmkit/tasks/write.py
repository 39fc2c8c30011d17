"""Texts written from others, by an encoder-decoder or after a prompt by a decoder: translations, summaries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.errors import UserError
from lmkit.data.tables.table import Table
from lmkit.data.tokens.packing import UNSCORED
from lmkit.evaluation import writing
from lmkit.evaluation.intervals import Estimate
from lmkit.generation.batches import Opening
from lmkit.generation.beam import beam_search
from lmkit.generation.prompts import end_ids
from lmkit.generation.rules import NO_RULES, Rules
from lmkit.generation.sampling import SamplingConfig
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Task
from lmkit.objectives.causal_lm import PromptedLM
from lmkit.objectives.seq2seq import Seq2Seq, parallel
from lmkit.recipe.tasks import SummarizeConfig, TranslateConfig
from lmkit.text.tokenizer import Tokenizer

SOURCE = "{source}"
# Keys of generation_config.json for which the task has settings of its own, and the vocabulary.
CHOSEN = ("do_sample", "num_beams", "max_new_tokens", "max_length", "length_penalty", "suppress_tokens")


@dataclass
class Writer:
    tokenizer: Tokenizer
    model: ModelConfig
    config: TranslateConfig | SummarizeConfig
    max_length: int  # tokens of a source, and of a target; of both together where they stand in one row
    opening: Opening | None  # of an encoder-decoder
    eos: frozenset[int] = frozenset()
    likelihood: bool = True
    rules: Rules = NO_RULES  # of the model's generation_config.json
    early_stopping: bool = False

    def __post_init__(self) -> None:
        c, pad = self.config, self.tokenizer.pad_id or 0
        self.metric = "bleu" if isinstance(c, TranslateConfig) else "rougeL"
        self.eos = self.eos or end_ids(self.tokenizer)
        self.prompt = c.prompt or (SOURCE if self.opening else SOURCE + "\n")
        if SOURCE not in self.prompt:
            raise UserError(f"task.prompt {self.prompt!r} has no {SOURCE} in it: every text would be written alike")
        self.task: Task = (
            Seq2Seq(parallel, self.opening.start, pad, c.label_smoothing)
            if self.opening
            else PromptedLM(pad, c.label_smoothing)
        )

    def examples(self, table: Table) -> list[dict[str, Any]]:
        sources = self._sources(table)
        targets = self.tokenizer.encode_batch([row.get("target") or "" for row in table.rows])
        before, after = self.tokenizer.document_frame
        end = after or sorted(self.eos)[:1]  # where the end of a text is the BOS of the next
        make = self._pair if self.opening else self._row
        return [
            {"row": i, "documents": [i], **make(source, target, before, end)}
            for i, (source, target) in enumerate(zip(sources, targets, strict=True))
        ]

    def _sources(self, table: Table) -> list[list[int]]:
        return self.tokenizer.encode_batch([self.prompt.replace(SOURCE, row["source"]) for row in table.rows])

    def _pair(self, source: list[int], target: list[int], before: list[int], end: list[int]) -> dict[str, Any]:
        room = self.max_length - len(before) - len(end)
        cut = len(source) > room or len(target) > room
        framed = (np.array([*before, *ids[:room], *end]) for ids in (source, target))
        return dict(zip(("source", "target"), framed, strict=True)) | {"cut": cut}

    def _row(self, source: list[int], target: list[int], before: list[int], end: list[int]) -> dict[str, Any]:
        """One row; what is too long loses the beginning of its prompt, and of its target what half a row has no room
        for."""
        room = self.max_length - len(before) - len(end)
        keep = target[: max(room // 2, room - len(source))]
        read = source[max(0, len(source) - (room - len(keep))) :]
        tokens = np.array([*before, *read, *keep, *end])
        labels = np.full(len(tokens), UNSCORED)
        labels[len(before) + len(read) - 1 : -1] = tokens[len(before) + len(read) :]
        return {"tokens": tokens, "labels": labels, "cut": len(read) < len(source) or len(keep) < len(target)}

    def outputs(self, model: Transformer, table: Table, examples: Sequence[dict], quick: bool = False) -> list[str]:
        """quick: greedy, as an evaluation in training does."""
        c, (before, after), most = self.config, self.tokenizer.document_frame, self.most_tokens
        room = self.max_length - (0 if self.opening else most)
        frame = after if self.opening else []
        if room <= len(before) + len(frame):
            raise UserError(f"a row of {self.max_length} tokens has no room for a prompt\n  → a larger data.max_length")
        kept = room - len(before) - len(frame)
        sources = [ids[:kept] if self.opening else ids[-kept:] for ids in self._sources(table)]
        prompts = [[*before, *ids, *frame] for ids in sources]
        config = SamplingConfig(max_tokens=most, temperature=0, rules=self.rules)
        beam = 1 if quick else c.beam
        written = beam_search(
            model, prompts, config, beam, c.length_penalty, self.eos, self.opening, self.early_stopping
        )
        return [self.tokenizer.decode(row.ids).strip() for row in written]

    def scores(self, table: Table, outputs: Sequence[str], intervals: bool) -> dict[str, Estimate]:
        references = [row["target"] for row in table.rows]
        if isinstance(self.config, SummarizeConfig):
            return writing.rouge(outputs, references, intervals)
        return writing.score(outputs, references, self.config.tokenize, intervals)[0]

    @property
    def most_tokens(self) -> int:
        """Of a text that is written: as many as there are positions, beside a prompt in the same row half of it."""
        most = self.config.max_new_tokens
        if not self.opening:
            return min(most, self.max_length // 2)
        return most if self.model.positions == "relative" else min(most, self.model.context)

    def generation_config(self) -> dict[str, Any]:
        """How texts are written, in the words of transformers, whose `generate` then writes the same. It has no name
        for another length penalty than `average`."""
        c = self.config
        settings: dict[str, Any] = {"do_sample": False, "num_beams": c.beam, "max_new_tokens": self.most_tokens}
        settings |= {"forced_eos_token_id": None}  # which BART's config.json has, and training does not know
        return settings | ({"length_penalty": c.length_penalty.alpha} if c.length_penalty.kind == "average" else {})

    def stated(self) -> list[str]:
        """What the scores depend on: sacrebleu's signatures, and how the texts were searched for."""
        c, penalty = self.config, self.config.length_penalty
        signatures = {} if isinstance(c, SummarizeConfig) else writing.score(["a"], ["a"], c.tokenize, False)[1]
        search = (
            "greedy" if c.beam == 1 else f"beam of {c.beam}, length penalty {penalty.kind}, alpha {penalty.alpha:g}"
        )
        return [*(f"{name}  {signature}" for name, signature in signatures.items()), f"written by {search}"]

    def per_row(self, table: Table, outputs: Sequence[str]) -> list[float]:
        """Sentence chrF, or ROUGE-L."""
        pairs = zip(outputs, (row["target"] for row in table.rows), strict=True)
        if isinstance(self.config, SummarizeConfig):
            return [writing.rouge([a], [b], False)["rougeL"].value for a, b in pairs]
        return [writing.sentence_chrf(a, b) / 100 for a, b in pairs]

    def say(self, output: str) -> dict[str, Any]:
        return {"text": output}
