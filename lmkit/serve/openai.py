"""Texts in the form of OpenAI's API: whole, or as a stream of events."""

import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmkit.generation.completions import Completion
from lmkit.generation.engine import Event
from lmkit.serve.models import Served
from lmkit.serve.wire import ChatBody, CompletionBody, WritingBody
from lmkit.serve.worker import Writing
from lmkit.text.tokenizer import Tokenizer

OPENING = "<tool_call>"
FINISHED = {"stop": "stop", "length": "length", "cancelled": "length"}
TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)  # as Hermes, Qwen and SmolLM write them


@dataclass
class Reply:
    """What is said of one request, in parts or as a whole."""

    served: Served
    body: WritingBody
    prompts: list[list[int]]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    _said: dict[int, str] = field(default_factory=dict)  # of each text of a stream with tools
    _shown: dict[int, int] = field(default_factory=dict)  # how much of that was sent

    @property
    def chats(self) -> bool:
        return isinstance(self.body, ChatBody)

    @property
    def alternatives(self) -> int:
        """Returns how many likeliest tokens are asked for at each place."""
        if isinstance(self.body, ChatBody):
            return self.body.top_logprobs or 0
        return getattr(self.body, "logprobs", None) or 0

    def _frame(self, part: bool) -> dict[str, Any]:
        kind = "chat.completion" + (".chunk" if part else "") if self.chats else "text_completion"
        name = ("chatcmpl-" if self.chats else "cmpl-") + self.id
        return {"id": name, "object": kind, "created": self.created, "model": self.served.name}

    def usage(self, completions: Sequence[Completion]) -> dict[str, int]:
        read, written = sum(map(len, self.prompts)), sum(len(c.ids) for c in completions)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Returns the answer, when all texts are finished."""
        choices = [self._choice(i, c) for i, c in enumerate(completions)]
        return self._frame(False) | {"choices": choices, "usage": self.usage(completions)}

    def _choice(self, index: int, c: Completion) -> dict[str, Any]:
        finish, places = FINISHED[c.finish], range(len(c.ids))
        if not isinstance(self.body, ChatBody):
            echoed = self._prompt_text(index) if getattr(self.body, "echo", False) else ""
            choice = {"index": index, "text": echoed + c.text, "finish_reason": finish, "logprobs": None}
            return choice | {"logprobs": self._logprobs(c, places)}
        message: dict[str, Any] = {"role": "assistant", "content": c.text}
        if self.body.tools and (calls := _tool_calls(c.text)):
            message |= {"content": TOOL_CALL.sub("", c.text).strip() or None, "tool_calls": calls}
            finish = "tool_calls"
        return {"index": index, "message": message, "finish_reason": finish, "logprobs": self._logprobs(c, places)}

    def _prompt_text(self, index: int) -> str:
        return self.served.loaded.needs_tokenizer().decode(self.prompts[index // self.body.n])

    def _logprobs(self, c: Completion, places: Sequence[int]) -> dict[str, Any] | None:
        """Returns the log-probabilities of some new tokens, in the form of the path; None where nobody asked."""
        if not self._asks_logprobs():
            return None
        tokenizer, listed = self.served.loaded.needs_tokenizer(), []
        for place in places:
            likeliest = c.alternatives[place] if c.alternatives else []
            entry = _token(tokenizer, c.ids[place], c.logprobs[place])
            listed.append(entry | {"top_logprobs": [_token(tokenizer, *pair) for pair in likeliest]})
        if self.chats:
            return {"content": listed}
        return {
            "tokens": [one["token"] for one in listed], "token_logprobs": [one["logprob"] for one in listed],
            "top_logprobs": [{t["token"]: t["logprob"] for t in one["top_logprobs"]} for one in listed],
            "text_offset": [],
        }  # fmt: skip

    def _asks_logprobs(self) -> bool:
        asked = self.body.logprobs if isinstance(self.body, ChatBody | CompletionBody) else None
        return asked is not None and asked is not False

    async def parts(self, writing: Writing) -> AsyncIterator[str]:
        """Yields the events of a stream, as they are sent. Raises what went wrong in the engine."""
        index, open_texts = dict[int, int](), len(writing.requests)
        while open_texts:
            events = await writing.events.get()
            if isinstance(events, Exception):
                raise events
            for event in events:
                first = event.completion.row not in index
                if first:
                    index[event.completion.row] = _index(writing, event.completion)
                open_texts -= event.finished
                if first or event.text or event.finished or self._asks_logprobs():
                    yield _sent(self._part(index[event.completion.row], event, first))
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield _sent(self._frame(True) | {"choices": [], "usage": self.usage(writing.completions)})
        yield "data: [DONE]\n\n"

    def _part(self, index: int, event: Event, first: bool) -> dict[str, Any]:
        finish = FINISHED[event.completion.finish] if event.finished else None
        choice: dict[str, Any] = {"index": index, "finish_reason": finish}
        choice["logprobs"] = self._logprobs(event.completion, [event.place])
        if self.chats:
            delta, calls = self._piece(index, event)
            choice["delta"] = ({"role": "assistant"} if first else {}) | delta
            choice["finish_reason"] = "tool_calls" if calls else finish
        else:
            echoed = self._prompt_text(index) if first and getattr(self.body, "echo", False) else ""
            choice["text"] = echoed + event.text
        return self._frame(True) | {"choices": [choice]}

    def _piece(self, index: int, event: Event) -> tuple[dict[str, Any], bool]:
        """Returns what is new of a text, and whether it ends in calls of tools: these are sent whole, at the end, and
        what may become one is kept back."""
        if not (isinstance(self.body, ChatBody) and self.body.tools):
            return {"content": event.text}, False
        self._said[index] = said = self._said.get(index, "") + event.text
        shown, end = self._shown.get(index, 0), len(said)
        calls = _tool_calls(said) if event.finished else []
        if not event.finished:
            opened = [at for at in range(shown, len(said)) if said.startswith(OPENING[: len(said) - at], at)]
            end = opened[0] if opened else end
        self._shown[index] = end
        rest = TOOL_CALL.sub("", said[shown:]).rstrip() if calls else said[shown:end]
        numbered = [{"index": number} | call for number, call in enumerate(calls)]
        return {"content": rest} | ({"tool_calls": numbered} if calls else {}), bool(calls)


async def finished(writing: Writing) -> list[Completion]:
    """Waits for all texts. Returns them in the order of their requests. Raises what went wrong in the engine."""
    open_texts = len(writing.requests)
    while open_texts:
        events = await writing.events.get()
        if isinstance(events, Exception):
            raise events
        open_texts -= sum(event.finished for event in events)
    return writing.completions


def _index(writing: Writing, completion: Completion) -> int:
    return next(i for i, c in enumerate(writing.completions) if c is completion)


def _sent(part: dict[str, Any]) -> str:
    return f"data: {json.dumps(part, ensure_ascii=False)}\n\n"


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    text = tokenizer.decode([token], skip_special=False)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _tool_calls(text: str) -> list[dict[str, Any]]:
    """Returns the calls of tools in a text; what is no valid call stays text."""
    calls = []
    for match in TOOL_CALL.finditer(text):
        try:
            call = json.loads(match[1])
            function = {"name": str(call["name"]), "arguments": json.dumps(call.get("arguments", {}))}
        except (ValueError, KeyError, TypeError):
            continue
        calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
    return calls
