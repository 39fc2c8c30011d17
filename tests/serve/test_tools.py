"""Calls of tools in a stream are those of the whole answer, wherever the text is cut into tokens."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from lmkit.generation.completions import Completion
from lmkit.generation.engine import Event
from lmkit.serve.openai import Reply
from lmkit.serve.wire import ChatBody

CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Bath"}}\n</tool_call>'
TEXTS = [
    f"Let me look. {CALL}",
    f"{CALL}\n{CALL.replace('Bath', 'Lyme')}",
    "a < b, and <tool is no call",
    f"{CALL} {CALL[:20]}",
    "<tool_call>{not json}</tool_call>",
    "plain",
]


async def streamed(reply, text, size):
    events = asyncio.Queue()
    completion = Completion(0, 0, [1, 2], 99)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    for place, piece in enumerate(pieces):
        completion.ids.append(place)
        done = place == len(pieces) - 1
        await events.put([Event(completion, place, place, piece, done)])
    completion.text, completion.finish = text, "stop"
    writing = SimpleNamespace(requests=[0], events=events, completions=[completion])
    lines = [line async for line in reply.parts(writing)]
    return [ChatCompletionChunk.model_validate(json.loads(line[6:])) for line in lines[:-1]], completion


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 3, 7, 200])
def test_a_stream_says_what_the_whole_says(text, size):
    tools = [{"type": "function", "function": {"name": "weather"}}]
    body = ChatBody(model="m", messages=[{"role": "user", "content": "?"}], tools=tools, stream=True)
    reply = Reply(SimpleNamespace(loaded=SimpleNamespace(), name="m"), body, [[1, 2]])
    chunks, completion = asyncio.run(streamed(reply, text, size))
    whole = ChatCompletion.model_validate(reply.whole([completion])).choices[0]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert said.strip() == (whole.message.content or "").strip()
    assert [c.function.model_dump() for c in calls] == [c.function.model_dump() for c in whole.message.tool_calls or []]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    assert CALL not in said
