"""From the values of one record to one row of a task; what makes a record unfit is raised as `Unfit` and counted."""

import hashlib
import json
import math
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np

from lmkit.data.inputs import Problems
from lmkit.data.readers import not_unicode
from lmkit.errors import DataError

EMPTY, NO_TEXT, UNDECODABLE = "empty texts", "texts that are no text", "undecodable texts"
NO_LABEL, NO_ANSWER, NO_ASSISTANT = (
    "rows without a label",
    "questions without an answer",
    "conversations without answer",
)
NOT_FOUND = "answers that are not in their context"
ALL_LOST = "questions none of whose answers is in the context"
BROKEN_MESSAGES = "conversations that are no lists of messages of text"
SHAREGPT = {"human": "user", "gpt": "assistant"}  # the names that conversations with `from` and `value` have
SPEAKERS = ("system", "user", "assistant", "tool")

Values = dict[str, Any]  # by role
Row = dict[str, Any]
_as_written = json.JSONEncoder(ensure_ascii=False)


class Unfit(Exception):
    """A record that cannot become a row: what it is counted as."""


def make_row(task: str, values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    """One row of `task`. Without `labelled`, what is to be predicted may be missing.

    Raises Unfit for a record to be left out, and DataError for one that shows the whole file to be wrong."""
    row = MAKERS[task](values, where, labelled, problems)
    if not_unicode(_as_written.encode({key: v for key, v in row.items() if key != "image"})) is not None:
        raise Unfit(UNDECODABLE)
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
    """Lists and objects are kept as JSON in the cells of CSV files."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _classify(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    row: Row = {"image": values["image"]} if "image" in values else {"text": _text(values.get("text"))}
    if "pair" in values:
        row["pair"] = _text(values["pair"])
    label = _label(values.get("label"))
    if label is None and labelled:
        raise Unfit(NO_LABEL)
    return row if label is None else row | {"label": label}


def _label(value: Any) -> str | int | float | list[str] | None:
    """Text without blanks around it, a number, or a list of texts, empty when no class holds; None for no label."""
    if isinstance(value, (list, tuple)):
        labels = [_label(v) for v in value]
        broken = any(label is None or isinstance(label, list) for label in labels)
        return None if broken else [str(label) for label in labels]
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, dict) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, (int, float)) else str(value).strip() or None


def settle_labels(rows: list[Row]) -> None:
    """Whole numbers are the names of classes, and become text, unless some number of a table of numbers is broken: then
    all are numbers. (What writes 3.0 as `3` is common; a class called 3.5 is not.)"""
    labels = [row["label"] for row in rows if "label" in row]
    broken = any(isinstance(v, float) for v in labels) and all(isinstance(v, (int, float)) for v in labels)
    for row in rows:
        if isinstance(label := row.get("label"), int):
            row["label"] = float(label) if broken else str(label)


def _tag(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    words = _words(values.get("words"), EMPTY)
    tags = None if values.get("tags") is None else _words(values["tags"], NO_LABEL)
    if tags is None:
        if labelled:
            raise Unfit(NO_LABEL)
        return {"words": words}
    if len(words) != len(tags):
        raise DataError(f"{where}: {len(words)} words and {len(tags)} tags\n  → give each word one tag")
    return {"words": words, "tags": tags}


def _words(value: Any, empty: str) -> list[str]:
    """Words, or tags, of a list; or between the blanks of a text."""
    value = _parsed(value)
    found = value.split() if isinstance(value, str) else value
    if not isinstance(found, list) or any(isinstance(word, (list, dict, float)) for word in found):
        raise Unfit(NO_TEXT)
    words = ["" if word is None else str(word).strip() for word in found]
    if not words or "" in words:
        raise Unfit(empty)
    return words


def _answers(value: Any) -> list[tuple[str, Any]]:
    """(text, where it starts as far as the file says) of {"text": [...], "answer_start": [...]}, of a list of such or
    of texts, or of one text."""
    value = _parsed(value)
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start", value.get("start"))
        texts = texts if isinstance(texts, list) else [texts]
        starts = starts if isinstance(starts, list) else [starts]
        value = [{"text": text, "start": start} for text, start in zip_longest(texts, starts)]
    found = []
    for answer in value if isinstance(value, list) else [value]:
        start = answer.get("answer_start", answer.get("start")) if isinstance(answer, dict) else None
        text = answer.get("text") if isinstance(answer, dict) else answer
        if text is not None and str(text).strip():
            found.append((str(text), start))
    return found


def _qa(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
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
    given = _answers(values["answers"])
    if len(given) == 1 and given[0][1] is None:
        given = [(given[0][0], values.get("start"))]
    answers = []
    for text, start in given:
        place = _locate(text, context, start)
        if place is None:
            problems.add(NOT_FOUND, where)
        else:
            answers.append({"text": text, "start": place})
    if given and not answers:
        raise Unfit(ALL_LOST)  # it would be taken for one without an answer
    return row | {"answers": answers}


def _locate(text: str, context: str, start: Any) -> int | None:
    """Where the text is in its context: at `start`, else at the place nearest to that, else nowhere."""
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


def _answer(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    row: Row = {"question": _text(values.get("question"))}
    answers = list(dict.fromkeys(text for text, _ in _answers(values.get("answers"))))
    if not answers and labelled:
        raise Unfit(NO_ANSWER)
    return row | {"answers": answers} if answers else row


def _writing(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    row = {"source": _text(values.get("source"))}
    return row | {"target": _text(values["target"])} if labelled or values.get("target") else row


def _chat(values: Values, where: str, labelled: bool, problems: Problems) -> Row:
    if "messages" in values:
        messages = _messages(_parsed(values["messages"]), where)
    else:
        prompt = "\n\n".join(filter(None, (_text(values.get("prompt")), _optional(values.get("input")))))
        system = _optional(values.get("system"))
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        if labelled or values.get("response"):
            messages.append({"role": "assistant", "content": _text(values.get("response"))})
    if any(message["role"] in ("user", "assistant") and not message["content"].strip() for message in messages):
        raise Unfit(EMPTY)
    if not messages or (labelled and not any(message["role"] == "assistant" for message in messages)):
        raise Unfit(NO_ASSISTANT)
    return {"messages": messages}


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise Unfit(BROKEN_MESSAGES)
    messages = []
    for message in value:
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        role = SHAREGPT.get(role, role) if isinstance(role, str) else role
        if role not in SPEAKERS:
            raise DataError(
                f"{where}: no role is called `{role}`\n  allowed: {', '.join(SPEAKERS)} "
                "(human and gpt are read as user and assistant)\n  → rename it, or leave out such conversations"
            )
        if not isinstance(content, str):
            raise Unfit(BROKEN_MESSAGES)
        messages.append({"role": role, "content": content})
    return messages


MAKERS: dict[str, Callable[[Values, str, bool, Problems], Row]] = {
    "classify": _classify, "tag": _tag, "qa": _qa, "translate": _writing, "summarize": _writing, "chat": _chat,
    "answer": _answer,
}  # fmt: skip


def as_json(value: Any) -> Any:
    """What stands for an image where rows are hashed."""
    if isinstance(value, np.ndarray):
        return [list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    raise TypeError(f"{type(value).__name__} in a row of a table")
