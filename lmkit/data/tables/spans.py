"""Texts with spans of characters, as annotation tools keep them, and the words and tags they are for a tagger."""

import re
from collections.abc import Collection
from itertools import pairwise
from typing import Any

from lmkit.data.inputs import Problems

Span = tuple[int, int, str]  # first character, the one behind the last, label
KEYS = ("entities", "spans", "label", "labels")  # of a record, under which its spans stand
OVERLAPPING, OUTSIDE = "spans that overlap a longer one", "spans without a word, or outside of their text"
MORE_ANNOTATIONS, MORE_LABELS = "annotations of a text behind its first", "labels of a span behind its first"
NO_SPANS = "annotations that are no spans with a label"
# A word is a run of other characters than blanks and punctuation, or one character that is punctuation or CJK.
ALONE = r"!-/:-@\[-^`{-~¡-©«-±´¶-¸»-¿\u2010-\u205e\u3000-\u303f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff0f"
WORDS = re.compile(rf"[^\s{ALONE}]+|[{ALONE}]")


def split_words(text: str, borders: Collection[int] = ()) -> list[tuple[int, int]]:
    """Returns (first character, the one behind the last) of each word. Words are also cut at `borders`."""
    words = list[tuple[int, int]]()
    for match in WORDS.finditer(text):
        cuts = [match.start(), *sorted(b for b in borders if match.start() < b < match.end()), match.end()]
        words += pairwise(cuts)
    return words


def has_spans(record: dict[str, Any], text: str, label: str | None) -> bool:
    """Returns whether a record is a text with spans, or a task of Label Studio. text, label: the keys to look at."""
    spans = _annotations(record, label) or [None]
    return _is_task(record, text) or (isinstance(record.get(text), str) and _span(spans[0], "") is not None)


def _is_task(record: dict[str, Any], text: str) -> bool:
    data = record.get("data")
    return isinstance(data, dict) and isinstance(data.get(text), str)


def _span(entry: Any, text: str) -> Span | None:
    """Returns a span of doccano ([start, end, label], start_offset), spaCy (start) or Label Studio (labels).

    Label Studio counts in UTF-16, where an emoji is two characters; its `text` of the span shows that."""
    quoted = entry.get("text") if isinstance(entry, dict) else None
    if isinstance(entry, dict):
        start, end = (entry.get(key, entry.get(f"{key}_offset")) for key in ("start", "end"))
        entry = [start, end, (entry.get("labels") or [entry.get("label")])[0]]
    if not (isinstance(entry, list) and len(entry) == 3 and type(entry[0]) is type(entry[1]) is int and entry[2]):
        return None
    start, end, label = entry
    if text and quoted not in (None, text[start:end]):
        wide = text.encode("utf-16-le")
        start, end = (len(wide[: 2 * place].decode("utf-16-le", "ignore")) for place in (start, end))
    return start, end, str(label)


def span_row(record: dict[str, Any], text: str, label: str | None, where: str, problems: Problems) -> dict[str, Any]:
    """Returns the text, words and IOB2 tags of a record with spans; tags are None where nobody annotated it. label: as
    for `has_spans`; "": spans are not read.

    Of spans that overlap the longest is kept; words are cut where a span begins or ends inside."""
    is_task = _is_task(record, text)
    content = record["data"][text] if is_task else record.get(text)
    if not isinstance(content, str):
        return {"words": content}
    entries = None if label == "" else _annotated(record, where, problems) if is_task else _annotations(record, label)
    spans = _without_overlaps(entries or [], content, where, problems)
    words = split_words(content, {border for span in spans for border in span[:2]})
    tags = ["O"] * len(words)
    for start, end, name in spans:
        inside = [i for i, (first, _) in enumerate(words) if start <= first < end]
        for i in inside:
            tags[i] = f"{'B' if i == inside[0] else 'I'}-{name}"
    listed = [content[start:end] for start, end in words]
    return {"text": content, "words": listed, "tags": None if entries is None else tags}


def _annotated(task: dict[str, Any], where: str, problems: Problems) -> list[Any] | None:
    """Returns what Label Studio's first annotation of a task says, without those that were cancelled."""
    annotations = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
    for _ in annotations[1:]:
        problems.add(MORE_ANNOTATIONS, where, lost=False)
    return [result.get("value") for result in annotations[0].get("result") or []] if annotations else None


def _annotations(record: dict[str, Any], label: str | None) -> list[Any] | None:
    """Returns the list of spans of a record that is no task of Label Studio; None where it has none."""
    lists = [record[key] for key in ([label] if label else KEYS) if isinstance(record.get(key), list)]
    return next(filter(None, lists), lists[0] if lists else None)


def _without_overlaps(entries: list[Any], content: str, where: str, problems: Problems) -> list[Span]:
    spans = list[Span]()
    for entry in entries:
        span = _span(entry, content)
        if isinstance(entry, dict) and len(entry.get("labels") or []) > 1:
            problems.add(MORE_LABELS, where, lost=False)
        if span is None:
            problems.add(NO_SPANS, where, lost=False)
        elif not (0 <= span[0] < span[1] <= len(content) and content[span[0] : span[1]].strip()):
            problems.add(OUTSIDE, where, lost=False)
        else:
            spans.append(span)
    longest = list[Span]()
    for span in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
        if any(span[0] < end and start < span[1] for start, end, _ in longest):
            problems.add(OVERLAPPING, where, lost=False)
        else:
            longest.append(span)
    return longest
