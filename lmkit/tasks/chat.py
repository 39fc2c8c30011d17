"""Conversations: a decoder learns what the assistant says in them, and where it stops."""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.display import note
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.base.files import write_atomic, write_json
from lmkit.data.tables.table import Table
from lmkit.data.tokens.packing import UNSCORED, pack_rows
from lmkit.evaluation.intervals import Estimate, exponential, ratio
from lmkit.evaluation.scoring import label_scores
from lmkit.generation.engine import generate
from lmkit.generation.rules import GENERATION_CONFIG
from lmkit.generation.sampling import SamplingConfig
from lmkit.model.resize import resize_vocabulary
from lmkit.model.transformer import Transformer
from lmkit.objectives.batch import Batch, Objective
from lmkit.objectives.causal_lm import CausalLM
from lmkit.pretrained import Pretrained
from lmkit.recipe.task_settings import TaskSettings
from lmkit.recipe.tasks import ChatConfig
from lmkit.tasks.task import Reading, Task, in_batches
from lmkit.text.chat import TEMPLATE_FILE, Chat, EncodedChat, Spelled, find_template, fold_system, with_tokens
from lmkit.text.tokenizer import Tokenizer, read_object

MOST_TOKENS = 1024  # a conversation is cut to, unless `data.max_length` says otherwise


ANSWERS, ANSWER_TOKENS = 5, 128  # held-out prompts that are answered after training, and how long an answer may be


class Reply(NamedTuple):
    """The loss of a conversation's learnt tokens."""

    nats: float
    hits: int  # tokens that are the likeliest
    tokens: int


@dataclass
class ChatLearner(Task):
    """Conversations side by side in rows, none of which sees another. Their score is the loss, on held-out ones."""

    packed, higher, labels_rows, metric, labels = True, False, False, "loss", ()

    chat: Chat
    max_length: int
    fold_system: bool = False
    objective: Objective = field(default_factory=lambda: CausalLM(document_masking=True))
    said: set[str] = field(default_factory=set)  # notes, each said once

    @classmethod
    def settle_tokenizer(
        cls, config: ChatConfig, model: ModelConfig, home: Path | None, tokenizer: Tokenizer, folder: Path
    ) -> Tokenizer:
        """Settles how conversations are written: the template, in `folder`, goes into every checkpoint, and with it the
        ids that end a text. The tokenizer returned is another one if it had to get control tokens that the template
        needs.

        Raises UserError, and ModelError for a model that is no decoder."""
        if model.stacks != "decoder":
            what = "an encoder, which writes no text" if model.stacks == "encoder" else "an encoder with a decoder"
            raise ModelError(f"{model.family} is {what}\n  → chat needs a decoder alone, like gpt2, llama or nanochat")
        template = find_template([home] if home else [], config.template, tokenizer)
        message = f"chat     template {template.name}"
        if added := template.missing(tokenizer):
            tokenizer = with_tokens(tokenizer, added)
            message += (
                f" · control tokens added: {', '.join(f'{token} ({tokenizer.token_id(token)})' for token in added)}"
            )
        chat = Chat(tokenizer, template)
        note(f"{message} · a turn ends with {', '.join(tokenizer.decode([i], skip_special=False) for i in chat.ends)}")
        ends = [*chat.ends, *([] if tokenizer.eos_id is None else [tokenizer.eos_id])]
        ids = {f"{role}_token_id": i for role in ("bos", "pad") if (i := getattr(tokenizer, f"{role}_id")) is not None}
        known = read_object(home / GENERATION_CONFIG) if home else {}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / TEMPLATE_FILE, template.source)
        write_json(folder / GENERATION_CONFIG, ids | known | {"eos_token_id": list(dict.fromkeys(ends))})
        return tokenizer

    @classmethod
    def with_rows(cls, model: Transformer, before: Tokenizer, tokenizer: Tokenizer) -> Transformer:
        """Returns the model with rows for the new tokens, which start with the mean of all embeddings."""
        rows, needed = model.config.vocab_size, tokenizer.vocab_size
        size = rows if needed <= rows else math.ceil(needed / 64) * 64
        if size > rows:
            note(f"chat     the vocabulary of the model grows from {rows:,} to {size:,} rows, for {needed:,} tokens")
        return resize_vocabulary(model, size, min(rows, before.vocab_size), needed)

    @classmethod
    def for_training(cls, config: ChatConfig, train: Table, reading: Reading) -> Self:
        """Makes the task with the template that `settle_tokenizer` has put beside the tokenizer."""
        template = find_template([reading.folder] if reading.folder else [], "auto", reading.tokenizer)
        return cls(Chat(reading.tokenizer, template), reading.length(MOST_TOKENS), config.fold_system)

    @classmethod
    def of_folder(cls, config: ChatConfig, loaded: Pretrained, settings: TaskSettings | None) -> Self:
        reading = Reading.of(loaded, settings)
        template = find_template([loaded.folder], "auto", reading.tokenizer)
        return cls(Chat(reading.tokenizer, template), reading.length(MOST_TOKENS), config.fold_system)

    def examples(self, table: Table) -> list[dict[str, Any]]:
        """Returns packed rows. `documents` are rows of the table, `lengths` what each would have if it were not cut;
        what comes after the assistant's last words teaches nothing, and is left out."""
        pieces, rows, lengths = list[tuple[np.ndarray, np.ndarray]](), list[int](), list[int]()
        lost, ignored, cut, refused = Counter[str](), Counter[str](), 0, ""
        for i, (row, place) in enumerate(zip(table.rows, table.places, strict=True)):
            found, unread, reason = list[EncodedChat](), list[str](), ""
            try:
                found, unread, reason = self._encoded(row)
            except Spelled:
                reason = "spell control tokens that the tokenizer cannot keep as text"
            except UserError as e:
                reason = f"are refused: {str(e).partition(chr(10))[0]}"
                refused = refused or f"\n  {place}: {e}"
            ignored.update(unread)
            fitting = [(piece, n) for encoded in found if (n := _end(encoded)) and (piece := self._piece(encoded))]
            if fitting:
                cut += any(_end(encoded) > self.max_length for encoded in found)
            else:
                lost[reason or f"have none of the assistant's words in their first {self.max_length:,} tokens"] += 1
            pieces += [piece for piece, _ in fitting]
            lengths += [n for _, n in fitting]
            rows += [i] * len(fitting)
        self._tell(lost, ignored, cut, len(table.rows))
        if table.rows and not pieces:
            advice = "a larger data.max_length, a task.template that writes all of it, or other data"
            if any(message.get("tool_calls") for row in table.rows for message in row["messages"]):
                advice = "a task.template that writes calls of tools, or other data"
            elif refused:
                advice = "task.template=chatml, or other data"
            raise DataError(f"no conversation is left of {len(table.rows):,}{refused}\n  → {advice}")
        length = min(self.max_length, sum(len(tokens) for tokens, _ in pieces))
        packed = pack_rows(pieces, length, self.chat.tokenizer.pad_id or 0) if pieces else []
        for example in packed:
            example["lengths"] = [lengths[n] for n in example["documents"]]
            example["cut"] = max(example["lengths"]) > self.max_length
            example["documents"] = [rows[n] for n in example["documents"]]
            example["row"] = example["documents"][0]
        return packed

    def _encoded(self, row: dict[str, Any]) -> tuple[list[EncodedChat], list[str], str]:
        """Returns an encoded conversation, the keys that its template does not write, and why nothing of it can be
        learnt, if so."""
        messages, tools = row["messages"], row.get("tools")
        messages = fold_system(messages) if self.fold_system else messages
        found, unread = self.chat.encode(messages, tools), self.chat.ignored(messages, tools)
        if "tool_calls" in unread and any(m.get("tool_calls") and not m["content"] for m in messages):
            return [], unread, "call tools, which the chat template does not write"
        return found, unread, "" if any(map(_end, found)) else "have no answer but such of weight 0"

    def _piece(self, encoded: EncodedChat) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns tokens and labels (n,) of a conversation; None if nothing would be learnt.

        One that is too long ends with the last of the assistant's turns that fits whole, if any does."""
        ends = [i + 1 for i, learnt in enumerate(encoded.learnt) if learnt and not any(encoded.learnt[i + 1 : i + 2])]
        n = max((end for end in ends if end <= self.max_length), default=self.max_length)
        ids, labels = np.array(encoded.ids[:n], np.int64), np.full(n, UNSCORED, np.int64)
        labels[:-1] = np.where(encoded.learnt[1:n], ids[1:], UNSCORED)
        return (ids, labels) if (labels != UNSCORED).any() else None

    def _tell(self, lost: Counter[str], ignored: Counter[str], cut: int, rows: int) -> None:
        lines = [f"left out: {n:,} of {rows:,} conversations ({n / rows:.1%}) {why}" for why, n in lost.items()]
        lines += [f"{n:,} of {rows:,} conversations have `{key}`, which the chat template does not write"
                  for key, n in ignored.items()]  # fmt: skip
        if cut:
            lines.append(
                f"cut: {cut:,} of {rows:,} conversations ({cut / rows:.1%}) lose the turns that end behind their first"
                f" {self.max_length:,} tokens"
            )
        for line in lines:
            if line not in self.said:
                note(f"chat     {line}")
        self.said.update(lines)

    def outputs(self, model: Transformer, table: Table, examples: Sequence[dict], quick: bool = False) -> list[Reply]:
        """Returns the loss of each conversation; zeros for those left out."""

        def compute(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
            states = model(batch.tokens, None, batch.segments, batch.positions)
            return label_scores(model, states, batch.labels)

        sums = np.zeros((len(table.rows), 3))
        token_scores = in_batches(model, self.objective, examples, compute, quick)
        for example, (nats, hits) in zip(examples, token_scores, strict=True):
            rows = np.array(example["documents"])[example["segments"][example["labels"] != UNSCORED]]
            np.add.at(sums, rows, np.stack([nats, hits, np.ones(len(nats))], 1))
        return [Reply(float(nats), int(hits), int(n)) for nats, hits, n in sums]

    def scores(self, table: Table, outputs: Sequence[Reply], intervals: bool) -> dict[str, Estimate]:
        nats, hits, tokens = ([o[k] for o in outputs] for k in range(3))
        if not any(tokens):
            return {}
        loss, accuracy = ratio(nats, tokens), ratio(hits, tokens)
        found = {"loss": loss, "perplexity": exponential(loss), "accuracy": accuracy}
        return found if intervals else {k: Estimate(e.value, None, None) for k, e in found.items()}

    def per_row(self, table: Table, outputs: Sequence[Reply]) -> list[float]:
        """Returns the probability of a token, as the geometric mean of each conversation."""
        return [math.exp(-o.nats / max(o.tokens, 1)) for o in outputs]

    def answered(self, model: Transformer, table: Table) -> list[dict[str, str]]:
        """Returns the likeliest answers to the last turns of the first conversations whose prompts leave room."""
        prompts, shown = list[list[int]](), list[dict[str, str]]()
        room = model.config.context - min(ANSWER_TOKENS, model.config.context // 2)
        for row, place in zip(table.rows, table.places, strict=True):
            messages = fold_system(row["messages"]) if self.fold_system else row["messages"]
            last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
            if not last or len(shown) == ANSWERS:
                continue
            with suppress(UserError):  # which a template has against a conversation, and is counted elsewhere
                ids = self.chat.prompt(messages[:last], row.get("tools"))
                if len(ids) <= room:
                    prompts.append(ids)
                    texts = (str(messages[i].get("content") or "") for i in (last - 1, last))
                    shown.append(dict(zip(("prompt", "gold"), texts, strict=True), place=place))
        tokenizer = self.chat.tokenizer
        ends = frozenset(self.chat.ends) | ({tokenizer.eos_id} - {None})
        config = SamplingConfig(max_tokens=ANSWER_TOKENS, temperature=0)
        rows = generate(model, prompts, config, ends, tokenizer=tokenizer)
        return [row | {"answer": written.text.strip()} for row, written in zip(shown, rows, strict=True)]

    def say(self, output: Reply) -> dict[str, Any]:
        return {"loss": output.nats / max(output.tokens, 1), "tokens": output.tokens}


def _end(encoded: EncodedChat) -> int:
    """Returns the number of tokens up to the last that is learnt."""
    return max((i + 1 for i, learnt in enumerate(encoded.learnt) if learnt), default=0)
