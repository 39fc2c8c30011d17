"""The models that are served: what each can do, and who does it."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmkit.base.errors import UserError
from lmkit.generation.completions import room_after
from lmkit.generation.engine import Engine, Request
from lmkit.generation.grammar import Grammar
from lmkit.generation.prompts import prompt_ids, source_ids
from lmkit.generation.weights import prepare
from lmkit.model.heads import Head
from lmkit.pretrained import check_ids, load, say_untaught
from lmkit.serve.wire import ChatBody, CompletionBody, WritingBody
from lmkit.serve.worker import Worker
from lmkit.tasks.records import answers
from lmkit.tasks.table import task_of, trained_task
from lmkit.text.chat import Chat
from lmkit.text.languages import language_frame

ROWS = ("classify", "tag", "qa")  # tasks that label rows
WRITERS = ("translate", "summarize")


class Served:
    """A model under its name."""

    def __init__(self, name: str, folder: str):
        """Raises what `load` raises."""
        self.name, self.loaded = name, load(folder, merge=False)
        self.section, self.task = task_of(folder), None
        if self.section is not None and self.section.name in (*ROWS, *WRITERS):
            self.task = trained_task(folder, self.loaded, self.section)
        self._lock = threading.Lock()  # of what runs the model outside the engine
        self.worker: Worker | None = None

    def start(self, max_rows: int, quant: str | None, packed: dict[int, Any]) -> None:
        """Makes a model that writes ready for it; the arguments are those of `Engine` and `prepare`."""
        if self.writes:
            tokenizer = self.loaded.needs_tokenizer()
            prepare(self.loaded.model, quant, max_rows, packed)
            self.worker = Worker(Engine(self.loaded.model, tokenizer, max_rows, keep=max_rows))

    @property
    def writes(self) -> bool:
        return self.loaded.config.stacks != "encoder" and isinstance(self.loaded.model.head, Head)

    @cached_property
    def chat(self) -> Chat | None:
        """Its chat template; None for a model that cannot chat."""
        try:
            chat = self.loaded.chat(self.name)
        except UserError:
            return None
        say_untaught(self.name, chat)
        return chat

    @property
    def abilities(self) -> list[str]:
        """Returns the last parts of the paths that it answers."""
        name = self.section.name if self.section and self.task else ""
        able = {
            "completions": self.writes, "chat/completions": self.chat is not None, "embeddings": True,
            "classify": name == "classify", "tag": name == "tag", "qa": name == "qa", "translate": name in WRITERS,
        }  # fmt: skip
        return [path for path, yes in able.items() if yes]

    # ---- texts

    def prompts(self, body: WritingBody) -> list[list[int]]:
        """Returns the token ids of the prompts in a body. Raises UserError."""
        if isinstance(body, ChatBody):
            assert self.chat is not None, "a path that the model does not answer"
            messages = body.conversation()
            if body.tools and "tools" in self.chat.ignored(messages, body.tools):
                raise UserError("tools: the model's chat template does not use them")
            return [self.chat.prompt(messages, body.tools)]
        assert isinstance(body, CompletionBody)
        tokenizer, read = self.loaded.needs_tokenizer(), []
        frame = None
        if body.source_lang or body.target_lang:
            frame = language_frame(tokenizer, body.source_lang, body.target_lang)
        for prompt in as_list(body.prompt):
            if isinstance(prompt, list):
                check_ids(prompt, self.loaded.config.vocab_size, "prompt")
                read.append(prompt)
            elif self.loaded.opening is None:
                read.append(prompt_ids(tokenizer, prompt))
            else:
                read.append(source_ids(tokenizer, prompt, frame))
        return read

    def requests(self, body: WritingBody, prompts: Sequence[list[int]], most: int, alternatives: int) -> list[Request]:
        """Returns a request for each text. most: tokens of a text at most. Raises UserError for what does not fit."""
        config = body.sampling(self.loaded.rules, most, alternatives)
        check_ids([token for token, _ in config.logit_bias], self.loaded.config.vocab_size, "logit_bias")
        eos, opening = self.loaded.eos, self.loaded.opening
        if isinstance(body, ChatBody) and self.chat is not None:
            eos |= frozenset(self.chat.ends)
        elif isinstance(body, CompletionBody) and opening and (body.source_lang or body.target_lang):
            frame = language_frame(self.loaded.needs_tokenizer(), body.source_lang, body.target_lang)
            opening = replace(opening, start=opening.start if frame.start is None else frame.start, forced=frame.forced)
        definition, grammar = body.constraint(), None
        if definition is not None:
            grammar = Grammar(definition, self.loaded.needs_tokenizer(), eos, self.loaded.config.vocab_size)
        for number, prompt in enumerate(prompts, 1):
            room_after(self.loaded.model, prompt, config, number)
        return [
            Request(prompt, config, eos, sample, opening, grammar, number)
            for number, prompt in enumerate(prompts, 1)
            for sample in range(body.n)
        ]

    # ---- rows and vectors

    def answers(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Returns what the task says of each row; `error` for a row that cannot be read.

        Rows are read as `lmkit predict` reads them from a file. Raises UserError where none can be."""
        assert self.task is not None and self.section is not None, "a path that the model does not answer"
        with self._lock:
            return answers(self.loaded, self.section, self.task, rows)

    def vectors(self, prompts: Sequence[str | list[int]]) -> tuple[list[list[float]], int]:
        """Returns a vector for each text, as `Pretrained.embed` does, and the number of tokens read. Raises
        UserError."""
        read = [self.loaded.read_whole(prompt) for prompt in prompts]
        out = list[list[float]]()
        for ids in read:
            with self._lock:  # one at a time, so that requests take turns
                out += self.loaded.embed([ids]).tolist()
        return out, sum(map(len, read))


def as_list(texts: Any) -> list[Any]:
    """Returns one text or several, as text or as ids, as a list of texts."""
    return texts if isinstance(texts, list) and texts and isinstance(texts[0], str | list) else [texts]


def serve_all(models: Sequence[str], max_rows: int, quant: str | None) -> dict[str, Served]:
    """Returns the models by name: that of `NAME=FOLDER`, or of the folder itself. Raises UserError for a name twice."""
    served, weights = dict[str, Served](), list[torch.Tensor]()
    for given in models:
        name, folder = given.split("=", 1) if "=" in given and not Path(given).exists() else (Path(given).name, given)
        if name in served:
            raise UserError(f"two models are called {name}\n  → name one: other={folder}")
        served[name] = Served(name, folder)
        share_weights(served[name].loaded.model, weights)
    packed = dict[int, Any]()
    for one in served.values():
        one.start(max_rows, quant, packed)
    return served


def share_weights(model: nn.Module, weights: list[torch.Tensor]) -> None:
    """Holds every tensor of a model that equals one of `weights` only once, and adds the others to these: adapters of
    one base then need its memory once."""
    for parameter in model.parameters():
        same = (other for other in weights if other.shape == parameter.shape and torch.equal(other, parameter))
        if (held := next(same, None)) is None:
            weights.append(parameter.data)
        else:
            parameter.data = held
