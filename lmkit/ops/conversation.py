"""The assistant's answer, or a conversation on a terminal."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lmkit.base.display import note, write
from lmkit.base.errors import UserError
from lmkit.evaluation.scoring import check_embedded
from lmkit.generation.completions import Completion, room_after
from lmkit.generation.engine import MAX_ROWS, Engine, generate
from lmkit.generation.sampling import SamplingConfig
from lmkit.generation.weights import prepare
from lmkit.pretrained import Pretrained, load, say_not_followed, say_untaught
from lmkit.recipe.task_settings import settings_of
from lmkit.recipe.tasks import ChatConfig
from lmkit.tasks.evaluate import read_labelled
from lmkit.text.chat import fold_system

Conversation = list[dict[str, Any]]


def converse(
    model: str,
    said: Sequence[str] | None,
    system: str | None,
    config: SamplingConfig,
    samples: int,
    as_json: bool,
    stream: bool,
    allow_pickle: bool,
    quant: str | None = None,
) -> None:
    """Answers each of the messages `said` in a conversation of its own; None: talks with the person at the terminal.

    Prints the answers with `---` between them, or with `as_json` a line an answer, with `messages`, `finish` and the
    answer's `ids`. system: the first message. stream: prints while the model writes. quant: as for `prepare`. Raises
    UserError for a model that cannot chat."""
    loaded = load(model, allow_pickle)
    speaker = Speaker(model, loaded, replace(config, rules=loaded.rules), as_json, stream)
    prepare(loaded.model, quant, 1 if stream or said is None else len(said) * samples)
    say_not_followed(loaded)
    start = [] if system is None else [_message("system", system)]
    if said is not None:
        speaker.answer([[*start, _message("user", text.removesuffix("\n"))] for text in said], samples)
    elif samples > 1:
        raise UserError("--samples: a conversation goes on from one answer\n  → name a prompt, or leave it out")
    else:
        _converse(speaker, start)


def answer_file(
    model: str, sources: list[str], config: SamplingConfig, samples: int, allow_pickle: bool, quant: str | None = None
) -> None:
    """Prints a JSON line for each conversation in files, with the assistant's answer to its last turn.

    What the assistant itself says there last is left out, and stands beside the answer as `gold`. Raises UserError for
    a model that cannot chat, DataError for files without conversations."""
    loaded = load(model, allow_pickle)
    speaker = Speaker(model, loaded, replace(config, rules=loaded.rules), True, False)
    prepare(loaded.model, quant, MAX_ROWS)
    say_not_followed(loaded)
    table = read_labelled(sources, ChatConfig(), {}, False, loaded.folder)
    for start in range(0, len(table.rows), MAX_ROWS):
        lines, fitting = dict[int, dict[str, Any]](), list[tuple[int, Conversation, list[int]]]()
        for i in range(start, min(start + MAX_ROWS, len(table.rows))):
            messages, lines[i] = table.rows[i]["messages"], {"place": table.places[i]}
            if messages[-1]["role"] == "assistant":
                lines[i]["gold"], messages = messages[-1]["content"], messages[:-1]
            try:
                read, ids = speaker.fitting(messages)
                room_after(loaded.model, ids, config, i + 1)
                fitting.append((i, read, ids))
            except UserError as e:  # one that is too long, or that the template refuses, leaves the others alone
                lines[i]["error"] = str(e)
        rows = speaker.written([ids for _, _, ids in fitting], samples)
        answers = [(fitting[row.row // samples], row) for row in rows]
        written = [(i, lines[i] | _as_line(messages, row)) for (i, messages, _), row in answers]
        written += [(i, line) for i, line in lines.items() if "error" in line]
        for _, line in sorted(written, key=lambda pair: pair[0]):
            print(json.dumps(line, ensure_ascii=False), flush=True)


def _as_line(messages: Conversation, row: Completion) -> dict[str, Any]:
    """Returns a conversation with its answer as it is printed for machines."""
    answered = [*messages, {"role": "assistant", "content": row.text}]
    return {"messages": answered, "sample": row.sample, "finish": row.finish, "ids": row.ids}


def _message(role: str, content: str) -> dict[str, str]:
    """Returns a message. Raises UserError for bytes of the command line that are no text."""
    if any("\ud800" <= c <= "\udfff" for c in content):
        raise UserError(f"not UTF-8 text: {content[:40]!r}")
    return {"role": role, "content": content}


def _converse(speaker: "Speaker", start: Conversation) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - arrow keys and history
    note("an empty line or Ctrl-D ends the conversation, /reset starts a new one")
    messages = list(start)
    while True:
        try:
            line = input("> " if sys.stdout.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        if line.strip() == "/reset":
            messages = list(start)
            continue
        try:
            messages = speaker.answer([[*messages, _message("user", line)]])[0]
        except UserError as e:  # a message that is too long, or that the template refuses, is no reason to end
            note(str(e))


class Speaker:
    """A model that chats, and where its answers go."""

    def __init__(self, name: str, loaded: Pretrained, config: SamplingConfig, as_json: bool, stream: bool):
        self.loaded, self.config, self.as_json, self.stream = loaded, config, as_json, stream and not as_json
        self.chat = loaded.chat(name)
        say_untaught(name, self.chat)
        settings = settings_of(loaded.folder)
        self.fold_system = settings is not None and getattr(settings.task, "fold_system", False)
        check_embedded(loaded.model, self.chat.ends)
        self.eos = loaded.eos | frozenset(self.chat.ends)
        # A conversation's next turn begins with what the engine has read and written.
        self.engine = Engine(loaded.model, self.chat.tokenizer, 1, keep=1) if self.stream else None

    def written(
        self, prompts: Sequence[list[int]], samples: int, on_text: Callable[[Completion, str], None] | None = None
    ) -> Iterator[Completion]:
        """Yields what the assistant says after each prompt, in order, and says what was cut."""
        texts = generate(
            self.loaded.model, prompts, self.config, self.eos, samples, on_text, self.chat.tokenizer, engine=self.engine
        )
        for row in texts:
            yield row
            if row.finish == "length":
                limit = "--max-tokens" if len(row.ids) == self.config.max_tokens else "the model's context"
                note(f"the answer was cut: {len(row.ids):,} tokens is all that {limit} allows")

    def answer(self, conversations: list[Conversation], samples: int = 1) -> list[Conversation]:
        """Writes what the assistant says next. Returns the conversations with it. Raises UserError."""
        fitting = [self.fitting(messages) for messages in conversations]
        out, shown = [], -1

        def show(row: Completion, piece: str) -> None:
            nonlocal shown
            if row.row != shown:
                write("---\n" if shown >= 0 else "")
                shown = row.row
            write(piece)

        rows = self.written([ids for _, ids in fitting], samples, show if self.stream else None)
        for number, row in enumerate(rows):
            line = _as_line(fitting[number // samples][0], row)
            out.append(line["messages"])
            if self.as_json:
                print(json.dumps(line, ensure_ascii=False), flush=True)
            else:
                show(row, "\n" if row.row == shown else f"{row.text}\n")
        return out

    def fitting(self, messages: Conversation) -> tuple[Conversation, list[int]]:
        """Returns the conversation, without its oldest turns where it leaves no room for an answer, and the token ids
        that the model reads."""
        messages = fold_system(messages) if self.fold_system else messages
        context, dropped = self.loaded.config.context, 0
        room = context - min(self.config.max_tokens, context // 2)
        while len(ids := self.chat.prompt(messages)) > room:
            first, *later = [i for i, message in enumerate(messages) if message["role"] == "user"]
            if not later:
                break
            messages, dropped = messages[:first] + messages[later[0] :], dropped + 1
        if dropped:
            note(f"the conversation fills the context of {context:,} tokens: its oldest {dropped} turns are forgotten")
        check_embedded(self.loaded.model, ids)
        return messages, ids
