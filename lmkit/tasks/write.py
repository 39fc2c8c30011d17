"""Texts written from others, by an encoder-decoder or after a prompt by a decoder: translations, summaries."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.display import note
from lmkit.base.errors import ModelError, UserError
from lmkit.data.tables.table import Table
from lmkit.data.tokens.packing import UNSCORED
from lmkit.evaluation import paired, writing
from lmkit.evaluation.intervals import Estimate
from lmkit.generation.beam import beam_search
from lmkit.generation.completions import Opening
from lmkit.generation.prompts import end_ids
from lmkit.generation.rules import GENERATION_CONFIG, NO_RULES, Rules
from lmkit.generation.sampling import SamplingConfig
from lmkit.model.loss import IGNORE
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch, Objective
from lmkit.objectives.causal_lm import PromptedLM
from lmkit.objectives.seq2seq import Seq2Seq, parallel
from lmkit.pretrained import Pretrained, say_not_followed
from lmkit.recipe.task_settings import TaskSettings
from lmkit.recipe.tasks import SummarizeConfig, TranslateConfig
from lmkit.tasks.task import MOST_TOKENS, Reading, Task, row_losses
from lmkit.text.languages import language_codes, language_frame, plain_frame
from lmkit.text.tokenizer import Tokenizer

WriterConfig = TranslateConfig | SummarizeConfig
SOURCE = "{source}"


@dataclass
class Writer(Task):
    likelihood, labels = True, ()
    # the task has settings of its own for these, and the vocabulary for the last
    writing_keys = ("do_sample", "num_beams", "max_new_tokens", "max_length", "length_penalty", "suppress_tokens")

    tokenizer: Tokenizer
    model: ModelConfig
    config: WriterConfig
    max_length: int  # tokens of a source, and of a target; of both together where they stand in one row
    opening: Opening | None  # of an encoder-decoder
    eos: frozenset[int] = frozenset()
    rules: Rules = NO_RULES  # of the model's generation_config.json
    early_stopping: bool = False

    @classmethod
    def settle_tokenizer(
        cls, config: WriterConfig, model: ModelConfig, home: Path | None, tokenizer: Tokenizer, folder: Path
    ) -> Tokenizer:
        """Notes the languages in the tokenizer's settings, so that AutoTokenizer frames sources as training did."""
        named = {"src_lang": _language(config, "source"), "tgt_lang": _language(config, "target")}
        tokenizer.settings |= {key: code for key, code in named.items() if code}
        if not any(named.values()) and config.name == "translate" and (codes := language_codes(tokenizer)):
            note(
                f"the tokenizer has tokens for {len(codes)} languages ({', '.join(codes[:3])} ...), and none is used"
                "\n  → task.source_lang=... task.target_lang=..."
            )
        return tokenizer

    @classmethod
    def for_training(cls, config: WriterConfig, train: Table, reading: Reading) -> Self:
        c, start = reading.model, reading.decoder_start
        if c.stacks == "encoder":
            raise ModelError(f"{c.family} is an encoder, which writes no text\n  → {config.name} needs a decoder")
        opening = None if start is None else Opening(start)
        rules = Rules(never=reading.tokenizer.unused_ids(c.vocab_size))
        return cls(reading.tokenizer, c, config, reading.length(MOST_TOKENS), opening, rules=rules)

    @classmethod
    def of_folder(cls, config: WriterConfig, loaded: Pretrained, settings: TaskSettings | None) -> Self:
        reading = Reading.of(loaded, settings)
        config = _as_configured(config, loaded) if settings is None else config
        early = loaded.writing_settings.get("early_stopping") is True
        return cls(
            reading.tokenizer, loaded.config, config, reading.length(MOST_TOKENS), loaded.opening, loaded.eos,
            rules=loaded.rules, early_stopping=early,
        )  # fmt: skip

    def __post_init__(self) -> None:
        c, pad = self.config, self.tokenizer.pad_id or 0
        self.eos = self.eos or end_ids(self.tokenizer)
        self.prompt = c.prompt or (SOURCE if self.opening else SOURCE + "\n")
        if SOURCE not in self.prompt:
            raise UserError(f"task.prompt {self.prompt!r} has no {SOURCE} in it: every text would be written alike")
        self.frame = plain_frame(self.tokenizer)
        languages = _language(c, "source"), _language(c, "target")
        if any(languages):
            self.frame = language_frame(self.tokenizer, *languages)
            if self.opening:
                start = self.opening.start if self.frame.start is None else self.frame.start
                self.opening = replace(self.opening, start=start, forced=self.frame.forced)
        self.objective: Objective = (
            Seq2Seq(parallel, self.opening.start, pad, c.label_smoothing)
            if self.opening
            else PromptedLM(pad, c.label_smoothing)
        )

    def examples(self, table: Table) -> list[dict[str, Any]]:
        sources = self._sources(table)
        targets = self.tokenizer.for_targets.encode_batch([row.get("target") or "" for row in table.rows])
        make = self._pair if self.opening else self._row
        return [
            {"row": i, "documents": [i], **make(source, target)}
            for i, (source, target) in enumerate(zip(sources, targets, strict=True))
        ]

    def _sources(self, table: Table) -> list[list[int]]:
        return self.tokenizer.encode_batch([self.prompt.replace(SOURCE, row["source"]) for row in table.rows])

    def _pair(self, source: list[int], target: list[int]) -> dict[str, Any]:
        f, pair, cut = self.frame, dict[str, Any](), False
        for side, ids, before, after in (
            ("source", source, f.before_source, f.after_source), ("target", target, f.before_target, f.after_target)
        ):  # fmt: skip
            room = self.max_length - len(before) - len(after)
            pair[side] = np.array([*before, *ids[:room], *after])
            cut |= len(ids) > room
        return pair | {"cut": cut}

    def _row(self, source: list[int], target: list[int]) -> dict[str, Any]:
        """Returns one row; what is too long loses the beginning of its prompt, and of its target what half a row has no
        room for."""
        before, after = self.tokenizer.document_frame
        end = after or sorted(self.eos)[:1]  # where the end of a text is the BOS of the next
        room = self.max_length - len(before) - len(end)
        keep = target[: max(room // 2, room - len(source))]
        read = source[max(0, len(source) - (room - len(keep))) :]
        tokens = np.array([*before, *read, *keep, *end])
        labels = np.full(len(tokens), UNSCORED)
        labels[len(before) + len(read) - 1 : -1] = tokens[len(before) + len(read) :]
        return {"tokens": tokens, "labels": labels, "cut": len(read) < len(source) or len(keep) < len(target)}

    def outputs(self, model: Transformer, table: Table, examples: Sequence[dict], quick: bool = False) -> list[str]:
        """Returns a text for each row. quick: greedy, as an evaluation in training does."""
        c, before, most = self.config, self.frame.before_source, self.most_tokens
        room = self.max_length - (0 if self.opening else most)
        frame = self.frame.after_source if self.opening else []
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

    def losses(self, model: Transformer, table: Table, outputs: Sequence[str]) -> list[float | None]:
        """Returns the mean over the tokens of each target that are learnt, without label smoothing."""

        def nats(batch: Batch) -> tuple[Tensor, Tensor]:
            states = model(batch.tokens, batch.keep, targets=batch.targets)
            return -model.word_log_probs(states, batch.labels).sum(1), (batch.labels != IGNORE).sum(1)

        return row_losses(self, model, table, nats)

    @property
    def most_tokens(self) -> int:
        """Returns how many tokens a text may have: as many as there are positions, or half of a row that also holds the
        prompt."""
        most = self.config.max_new_tokens
        if not self.opening:
            return min(most, self.max_length // 2)
        return most if self.model.positions == "relative" else min(most, self.model.context)

    def generation_config(self) -> dict[str, Any]:
        """Returns how texts are written, in the words of transformers, whose `generate` then writes the same. It has no
        name for another length penalty than `average`."""
        c = self.config
        settings: dict[str, Any] = {"do_sample": False, "num_beams": c.beam, "max_new_tokens": self.most_tokens}
        settings |= {"forced_eos_token_id": None}  # which BART's config.json has, and training does not know
        if self.opening and self.frame.start is not None:
            settings |= {"decoder_start_token_id": self.opening.start, "forced_bos_token_id": self.opening.forced}
        return settings | ({"length_penalty": c.length_penalty.alpha} if c.length_penalty.kind == "average" else {})

    def stated(self) -> list[str]:
        """Returns how the texts were searched for."""
        c, penalty = self.config, self.config.length_penalty
        search = (
            "greedy" if c.beam == 1 else f"beam of {c.beam}, length penalty {penalty.kind}, alpha {penalty.alpha:g}"
        )
        return [f"written by {search}"]

    def say(self, output: str) -> dict[str, Any]:
        return {"text": output}

    def texts_written(self, table: Table, outputs: Sequence[str]) -> list[tuple[str, list[str]]]:
        return list(zip(outputs, _references(table), strict=True))

    def baselines(self, train: Table, held_out: Table) -> dict[str, dict[str, Estimate]]:
        """Returns the scores of each source as it is, and of the commonest training target for all rows, without
        intervals."""
        commonest = Counter(row["target"] for row in train.rows).most_common(1)[0][0]
        guesses = {
            "copied source": [row["source"] for row in held_out.rows],
            "commonest": [commonest] * len(held_out.rows),
        }
        return {name: self.scores(held_out, texts, False) for name, texts in guesses.items()}


class Translator(Writer):
    metric, top = "bleu", 100.0
    config: TranslateConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self.signatures = dict[str, str]()

    def scores(self, table: Table, outputs: Sequence[str], intervals: bool) -> dict[str, Estimate]:
        references = _references(table)
        if self.config.tokenize == "auto":
            tokenize = writing.tokenizer_for([texts[0] for texts in references])
            self.config = self.config.model_copy(update={"tokenize": tokenize})
            note(f"bleu     by the script of the targets tokenised as {tokenize} (task.tokenize)")
        scores, signatures = writing.score_texts(outputs, references, self.config.tokenize, intervals)
        self.signatures |= signatures
        return scores

    def stated(self) -> list[str]:
        """Returns sacrebleu's signatures as well."""
        return [*(f"{name}  {signature}" for name, signature in self.signatures.items()), *super().stated()]

    def per_row(self, table: Table, outputs: Sequence[str]) -> list[float]:
        """Returns the chrF of each sentence."""
        return [writing.sentence_chrf(a, b) / 100 for a, b in zip(outputs, _references(table), strict=True)]

    def compare(self, other: Self, table: Table, ours: Sequence[str], theirs: Sequence[str]) -> paired.Comparison:
        """Compares by the BLEU of the corpus."""
        return paired.paired_bleu(ours, theirs, _references(table), self.config.tokenize)


class Summarizer(Writer):
    metric = "rougeL"

    def scores(self, table: Table, outputs: Sequence[str], intervals: bool) -> dict[str, Estimate]:
        return writing.rouge(outputs, _references(table), intervals)

    def per_row(self, table: Table, outputs: Sequence[str]) -> list[float]:
        """Returns the ROUGE-L of each row."""
        pairs = zip(outputs, _references(table), strict=True)
        return [writing.rouge([a], [b], False)["rougeL"].value for a, b in pairs]


def _language(config: WriterConfig, side: str) -> str | None:
    """Returns the language of a side of the pairs; only translations have one."""
    return getattr(config, f"{side}_lang", None)


def _references(table: Table) -> list[list[str]]:
    return [row.get("references", [row["target"]]) for row in table.rows]


def _as_configured(task: WriterConfig, loaded: Pretrained) -> WriterConfig:
    """Returns the section with how generation_config.json of a folder that is no run says that texts are written; what
    that leaves open stays."""
    settings = loaded.writing_settings
    longest = settings.get("max_new_tokens")
    if longest is None and loaded.opening and isinstance(settings.get("max_length"), int):
        longest = settings["max_length"] - 1  # it counts the token that the decoder starts from
    beam = settings.get("num_beams")
    changes: dict[str, Any] = {"beam": 1 if beam is None else beam, "max_new_tokens": longest}
    if longest is None:
        note(f"{loaded.folder} names no longest text (max_new_tokens): up to {task.max_new_tokens} tokens are written")
    if settings.get("length_penalty") is not None:
        changes["length_penalty"] = {"kind": "average", "alpha": settings["length_penalty"]}
    followed = ["num_beams", "max_new_tokens", "length_penalty", *(["max_length"] if loaded.opening else [])]
    if isinstance(settings.get("early_stopping"), bool):
        followed.append("early_stopping")
    say_not_followed(loaded, followed)
    try:
        return type(task)(**task.model_dump() | {key: value for key, value in changes.items() if value is not None})
    except ValidationError as e:
        wrong = "; ".join(f"{error['loc'][0]}: {error['input']!r}: {error['msg']}" for error in e.errors())
        raise ModelError(f"{loaded.folder}/{GENERATION_CONFIG}: {wrong}") from None
