"""From the values of one record to one row of a task; what makes a record unfit is raised as `Unfit` and counted."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np

from lmkit.data.encodings import encodings_of
from lmkit.data.inputs import Problems
from lmkit.data.lines import not_unicode
from lmkit.data.tables.labels import BITS, BRACKETED, NO_LABEL, NUMPY_TEXTS, without_list_syntax

EMPTY, NO_TEXT, UNDECODABLE = "empty texts", "texts that are no text", "undecodable texts"
UNEVEN = "rows with another number of tags than of words"
NO_BITS = "rows with a label that is neither 0 nor 1"
NO_ANSWER, NO_ASSISTANT = "questions without an answer", "conversations without answer"
NULL_ANSWERS = "questions whose answers are null (an empty list or text says that there is none)"
NOT_FOUND = "answers that are not in their context"
ALL_LOST = "questions none of whose answers is in the context"
BROKEN_MESSAGES = "conversations that are no lists of messages of text"
BROKEN_HISTORY = "conversations whose history is no list of pairs of texts"
BROKEN_TOOLS = "conversations whose tools are no list of objects"
BROKEN_CALLS = "conversations with a function_call that is no JSON with a name"
BROKEN_PARTS = "conversations with parts that are no text"
BROKEN_WEIGHTS = "conversations with a weight that is neither 0 nor 1"
TWO_SYSTEMS = "system columns beside conversations that begin with a system message of their own"
# the names that conversations with `from` and `value` have
SHAREGPT = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
SPEAKERS = ("system", "user", "assistant", "tool")
OTHER_NAMES = {"developer": "system", "function": "tool", "model": "assistant"}  # of OpenAI and Gemini
NOT_LEARNT = ("train", "training", "loss")  # flags of a turn, in files of axolotl and LLaMA-Factory

BLANKS = re.compile(r"[ \t\r\n]+")  # between words

Values = dict[str, Any]  # by role
Row = dict[str, Any]
Maker = Callable[[Values, str, bool, Problems], Row]
_as_written = json.JSONEncoder(ensure_ascii=False)


class Unfit(Exception):
    """A record that cannot become a row: what it is counted as, and what more there is to say of this one."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(kind)
        self.kind, self.detail = kind, detail


def make_row(make: Maker, values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    """Returns one row, as `make` makes it. Without `labelled`, what is to be predicted may be missing.

    Raises Unfit for a record to be left out, and DataError for one that shows the whole file to be wrong."""
    row = make(values, where, labelled, problems)
    written = _as_written.encode({key: v for key, v in row.items() if key != "image"})
    if not_unicode(written) is not None:
        raise Unfit(UNDECODABLE, f" (can be read as {', '.join(encodings_of(written)) or 'nothing common'})")
    return row


def _text(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, str) and value.isspace()):
        raise Unfit(EMPTY)
    if not isinstance(value, str):
        raise Unfit(NO_TEXT)
    return value


def _optional(value: Any) -> str:
    return "" if value is None or (isinstance(value, str) and not value.strip()) else _text(value)


def _parsed(value: Any) -> Any:
    """Parses lists and objects, which the cells of CSV files hold as JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def classify_row(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    row: Row = {"image": values["image"]} if "image" in values else {"text": _text(values.get("text"))}
    if "pair" in values:
        row["pair"] = _text(values["pair"])
    if not labelled:
        return row
    label = values.get("label")
    if isinstance(label, dict):
        label = _named_labels(label)
    if label is None or (isinstance(label, float) and not math.isfinite(label)):
        raise Unfit(NO_LABEL)
    return row | {"label": label.strip() if isinstance(label, str) else label}  # `settle_labels` goes on from there


def _named_labels(shares: dict[str, Any]) -> list[str] | None:
    """Returns the labels that hold, by columns of 0 and 1 or spaCy's `cats`, which has at least 0.5 where one holds;
    None where nothing says so of any. Raises Unfit for another value."""
    given = {name: value for name, value in shares.items() if value is not None}
    bits = {name: BITS.get(str(value).lower(), value) for name, value in given.items()}
    if set(bits.values()) <= {""}:
        return None
    if not all(isinstance(bit, int | float) and 0 <= bit <= 1 for bit in bits.values()):
        raise Unfit(NO_BITS)
    return [name for name, bit in bits.items() if bit >= 0.5]


def tag_row(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    row: Row = {"words": _words(values.get("words"), EMPTY)}
    if "text" in values:  # that the words were cut out of
        row["text"] = values["text"]
    tags = None if values.get("tags") is None else _words(values["tags"], NO_LABEL)
    if tags is not None and len(tags) == len(row["words"]):
        return row | {"tags": tags}
    if labelled:
        raise Unfit(NO_LABEL if tags is None else UNEVEN)
    return row


def _words(value: Any, empty: str) -> list[str]:
    """Returns the words, or tags, of a list, or those between the blanks of a text. Other spaces, as U+00A0 and U+3000,
    are parts of words."""
    value = without_list_syntax(value)
    if isinstance(value, str) and BRACKETED.fullmatch(value) and NUMPY_TEXTS.search(value):
        raise Unfit("lists that are written neither as JSON nor as Python do it")
    entries = [word for word in BLANKS.split(value) if word] if isinstance(value, str) else value
    if not isinstance(entries, list) or any(isinstance(word, (list, dict, float)) for word in entries):
        raise Unfit(NO_TEXT)
    words = ["" if word is None else str(word).strip(" \t\r\n") for word in entries]
    if not words or "" in words:
        raise Unfit(empty)
    return words


def _answers(value: Any) -> list[tuple[str, Any]]:
    """Returns (text, where it starts as far as the file says) of {"text": [...], "answer_start": [...]}, of a list of
    such or of texts, or of one text."""
    value = _parsed(value)
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start", value.get("start"))
        texts = texts if isinstance(texts, list) else [texts]
        starts = starts if isinstance(starts, list) else [starts]
        value = [{"text": text, "start": start} for text, start in zip_longest(texts, starts)]
    answers = []
    for answer in value if isinstance(value, list) else [value]:
        start = answer.get("answer_start", answer.get("start")) if isinstance(answer, dict) else None
        text = answer.get("text") if isinstance(answer, dict) else answer
        if text is not None and str(text).strip():
            answers.append((str(text), start))
    return answers


def qa_row(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    context, question = _text(values.get("context")), _text(values.get("question"))
    named = [values.get("id"), values.get("title")]
    row = {
        "id": where if named[0] in (None, "") else str(named[0]),
        "title": "" if named[1] is None else str(named[1]),
        "context": context,
        "question": question,
    }
    if "answers" not in values:
        return row
    if values["answers"] is None and labelled:
        raise Unfit(NULL_ANSWERS)
    given = _answers(values["answers"])
    if len(given) == 1 and given[0][1] is None:
        given = [(given[0][0], values.get("start"))]
    answers = []
    for text, start in given:
        place = _locate(text, context, start)
        if place is None:
            problems.add(NOT_FOUND, where, lost=False)
        else:
            answers.append({"text": text, "start": place})
    if given and not answers:
        raise Unfit(ALL_LOST)  # it would be taken for one without an answer
    return row | {"answers": answers}


def _locate(text: str, context: str, start: Any) -> int | None:
    """Returns where the text is in its context: at `start`, else at the place nearest to that, else nowhere."""
    try:
        start = int(float(start))
    except (TypeError, ValueError, OverflowError):  # none given
        start = 0
    if start >= 0 and context.startswith(text, start):
        return start
    places, place = [], context.find(text)
    while place >= 0:
        places.append(place)
        place = context.find(text, place + 1)
    return min(places, key=lambda found: abs(found - start), default=None)


def answer_row(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    row: Row = {"question": _text(values.get("question"))}
    answers = list(dict.fromkeys(text for text, _ in _answers(values.get("answers"))))
    if not answers and labelled:
        raise Unfit(NO_ANSWER)
    return row | {"answers": answers} if answers else row


def writing_row(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    row: Row = {"source": _text(values.get("source"))}
    given = values.get("target")  # a list, or columns by their names, holds several references
    texts = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else [given]
    targets = [_text(text) for text in texts if text not in (None, "")]
    if labelled or targets:
        row |= {"target": _text(next(iter(targets), None))}
    return row | ({"references": targets} if len(targets) > 1 else {})


def chat_row(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    system, tools = _optional(values.get("system")), _parsed(values.get("tools")) or []
    if "messages" in values:
        messages = _messages(_parsed(values["messages"]))
    elif isinstance(before := _parsed(values.get("prompt")), list):  # TRL's: of it nothing is learnt
        answer = _messages(_parsed(values.get("response")) or [])
        messages = [*({**message, "weight": 0} for message in _messages(before)), *answer]
    else:
        prompt = "\n\n".join(filter(None, (_text(values.get("prompt")), _optional(values.get("input")))))
        messages = [*_history(_parsed(values.get("history"))), {"role": "user", "content": prompt}]
        if labelled or values.get("response"):
            messages.append({"role": "assistant", "content": _text(values.get("response"))})
    if system and (not messages or messages[0]["role"] != "system"):
        messages.insert(0, {"role": "system", "content": system})
    elif system and messages[0]["content"] != system:
        problems.add(TWO_SYSTEMS, where, lost=False)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unfit(BROKEN_TOOLS)
    if any(m["role"] in ("user", "assistant") and not (m["content"] or "").strip() and not m.get("tool_calls")
           for m in messages):  # fmt: skip
        raise Unfit(EMPTY)
    if not messages or (labelled and not any(message["role"] == "assistant" for message in messages)):
        raise Unfit(NO_ASSISTANT)
    return {"messages": messages} | ({"tools": _plain(tools)} if tools else {})


def _history(value: Any) -> list[dict[str, Any]]:
    """Returns the earlier turns, which files like Alpaca's keep beside the last one: pairs of a prompt and its
    response, or messages."""
    if value in (None, ""):
        return []
    if not isinstance(value, list):
        raise Unfit(BROKEN_HISTORY)
    if all(isinstance(turn, dict) for turn in value):
        return _messages(value)
    turns = [text for pair in value if isinstance(pair, (list, tuple)) and len(pair) == 2 for text in pair]
    if len(turns) < 2 * len(value) or not all(isinstance(text, str) for text in turns):
        raise Unfit(BROKEN_HISTORY)
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)]


def _messages(value: Any) -> list[dict[str, Any]]:
    """Returns messages of `role`, `content` and whatever else a template may read of them, as `reasoning_content`."""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise Unfit(BROKEN_MESSAGES)
    messages = []
    for message in value:
        named = message.get("role", message.get("from"))
        role = (SHAREGPT | OTHER_NAMES).get(named, named) if isinstance(named, str) else named
        content = _joined(message.get("content", message.get("value")))
        read = ("role", "from", "content", "value", *NOT_LEARNT)
        more = {k: v for k, v in message.items() if k not in read and v is not None}
        if any(message.get(flag) is False for flag in NOT_LEARNT):
            more["weight"] = 0
        if role not in SPEAKERS:
            raise Unfit(f"conversations with the role `{role}` (allowed: {', '.join(SPEAKERS)}, {', '.join(SHAREGPT)})")
        if named == "function_call":
            content, more["tool_calls"] = "", _calls(_parsed(content))
        if not isinstance(content, str) and not (content is None and more.get("tool_calls")):
            raise Unfit(BROKEN_MESSAGES)
        if more.get("weight", 1) not in (0, 1):
            raise Unfit(BROKEN_WEIGHTS)
        messages.append({"role": role, "content": content} | _plain(more))
    return messages


def _joined(content: Any) -> Any:
    """Returns content that is a list of parts as one text. Raises Unfit for a part that is no text."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise Unfit(BROKEN_PARTS)
    return "".join(texts)


def _calls(value: Any) -> list[dict[str, Any]]:
    """Returns the calls that a turn of ShareGPT's `function_call` holds as JSON, in the form that templates read."""
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise Unfit(BROKEN_CALLS)
    return [{"type": "function", "function": {"arguments": {}} | call} for call in calls]


def _plain(value: Any) -> Any:
    """Returns what JSON can hold; for dates and the like, their text."""
    return json.loads(json.dumps(value, default=str))


def as_json(value: Any) -> Any:
    """Returns what stands for an image where rows are hashed."""
    if isinstance(value, np.ndarray):
        return [list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    raise TypeError(f"{type(value).__name__} in a row of a table")
