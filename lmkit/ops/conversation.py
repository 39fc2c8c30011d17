"""The assistant's answer, or a conversation on a terminal."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from lmkit.base.display import note, write
from lmkit.base.errors import UserError
from lmkit.base.runs import ADAPTER_CONFIG, model_folder
from lmkit.evaluation.scoring import check_embedded
from lmkit.generation.batches import Completion
from lmkit.generation.engine import generate
from lmkit.generation.sampling import SamplingConfig
from lmkit.pretrained import Pretrained, load, say_not_followed
from lmkit.text.chat import Chat, find_template
from lmkit.text.tokenizer import read_object

Conversation = list[dict[str, str]]


def converse(
    model: str,
    said: Sequence[str] | None,
    system: str | None,
    config: SamplingConfig,
    samples: int,
    as_json: bool,
    stream: bool,
    allow_pickle: bool,
) -> None:
    """Answers each of the messages `said` in a conversation of its own; None: talks with the person at the terminal.

    Prints the answers with `---` between them, or with `as_json` a line an answer, with `messages`, `finish` and the
    answer's `ids`. system: the first message. stream: prints while the model writes. Raises UserError for a model that
    cannot chat."""
    loaded = load(model, allow_pickle)
    speaker = Speaker(model, loaded, replace(config, rules=loaded.rules), as_json, stream)
    say_not_followed(loaded)
    start = [] if system is None else [_message("system", system)]
    if said is not None:
        speaker.answer([[*start, _message("user", text.removesuffix("\n"))] for text in said], samples)
    elif samples > 1:
        raise UserError("--samples: a conversation goes on from one answer\n  → name a prompt, or leave it out")
    else:
        _converse(speaker, start)


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
        loaded.check_use("generate")
        if loaded.config.stacks != "decoder":
            raise UserError(f"{name} is a {loaded.config.spec.cls}\n  → chatting needs a decoder")
        self.loaded, self.config, self.as_json, self.stream = loaded, config, as_json, stream and not as_json
        tokenizer, folders = loaded.needs_tokenizer(), [loaded.folder]
        if base := read_object(loaded.folder / ADAPTER_CONFIG).get("base_model_name_or_path"):
            folders.append(model_folder(base))
        template = find_template(folders, "auto", tokenizer)
        if missing := template.missing(tokenizer):
            raise UserError(
                f"{name} has no chat template, and its tokenizer no {' and no '.join(missing)}\n"
                f"  → `lmkit finetune --task chat --model {name} --data CONVERSATIONS` teaches it to chat"
            )
        self.chat = Chat(tokenizer, template)
        check_embedded(loaded.model, self.chat.ends)
        self.eos = loaded.eos | frozenset(self.chat.ends)

    def answer(self, conversations: list[Conversation], samples: int = 1) -> list[Conversation]:
        """Writes what the assistant says next. Returns the conversations with it. Raises UserError."""
        fitting = [self._fitting(messages) for messages in conversations]
        out, shown = [], -1

        def show(row: Completion, piece: str) -> None:
            nonlocal shown
            if row.row != shown:
                write("---\n" if row.row else "")
                shown = row.row
            write(piece)

        prompts, on_text = [ids for _, ids in fitting], show if self.stream else None
        for row in generate(self.loaded.model, prompts, self.config, self.eos, samples, on_text, self.chat.tokenizer):
            before = fitting[row.row // samples][0]
            messages = [*before, {"role": "assistant", "content": row.text}]
            out.append(messages)
            if self.as_json:
                line = {"messages": messages, "sample": row.sample, "finish": row.finish, "ids": row.ids}
                print(json.dumps(line, ensure_ascii=False), flush=True)
            else:
                show(row, "\n" if row.row == shown else f"{row.text}\n")
            if row.finish == "length":
                limit = "--max-tokens" if len(row.ids) == self.config.max_tokens else "the model's context"
                note(f"the answer was cut: {len(row.ids):,} tokens is all that {limit} allows")
        return out

    def _fitting(self, messages: Conversation) -> tuple[Conversation, list[int]]:
        """Returns the conversation, without its oldest turns where it leaves no room for an answer, and the token ids
        that the model reads."""
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
