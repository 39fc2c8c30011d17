"""Which rows of a table are learnt from: without those that break a rule, that repeat an earlier one, or that held-out
rows give away; and personal data in any of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lmkit.data.quality.decontamination import ngrams, strings
from lmkit.data.quality.deduplication import Keys, key_of, near_keys
from lmkit.data.quality.filters import FILTERS
from lmkit.data.quality.languages import is_in, language_detector
from lmkit.data.quality.personal import without_personal
from lmkit.data.tables.splitting import NAMES, same_input, taken
from lmkit.data.tables.table import Row, Table, row_bytes
from lmkit.recipe.sources import RowQualityConfig

UNREDACTED = (*NAMES, "label")  # roles of names, which are no text


def judged(train: Table, held_out: Table, task: str, config: RowQualityConfig) -> tuple[Table, list[str]]:
    """Returns the rows to learn from, and a line for each rule that left out some. Rules see what a model reads of a
    row, and not what it learns to answer. Raises UserError where a library is missing."""
    text_of = lambda row: "\n".join(strings(same_input(row, task)))
    known = {gram for row in held_out.rows for gram in ngrams(text_of(row))} if config.decontaminate else set()
    broken_rule, seen, stay = _rule_finder(config), Keys(), list[int]()
    places_out: dict[str, list[str]] = {}
    for number, (row, place) in enumerate(zip(train.rows, train.places, strict=True)):
        text, keys = text_of(row), list[int]()
        reason = broken_rule(text)
        if not reason and not known.isdisjoint(ngrams(text)):
            reason = "share 13 words in a row with held-out rows"
        if not reason and config.deduplicate == "near" and text:
            keys = near_keys(text)
        elif not reason and config.deduplicate != "none":  # of images, too, which have no text
            keys = [key_of(row_bytes(same_input(row, task)))]
        if any(key in seen for key in keys):
            reason = "repeat an earlier one"
        if reason:
            places_out.setdefault(reason, []).append(place)
            continue
        stay.append(number)
        for key in keys:
            seen.add(key)
    lines = [
        f"data.quality: {len(places):,} of {len(train.rows):,} training rows {reason} and are left out,"
        f" like {places[0]}"
        for reason, places in places_out.items()
    ]
    return taken(train, stay, train.problems) if lines else train, lines


def _rule_finder(config: RowQualityConfig) -> Callable[[str], str]:
    """Returns a function that says which rule a text breaks first; "" where it keeps all."""
    detect = language_detector() if config.languages else None

    def broken_rule(text: str) -> str:
        if detect and not is_in(text, config.languages, detect):
            return f"are not in {' or '.join(config.languages)}"
        rules = ((name, FILTERS[name](text)[1]) for name in config.filters)
        return next((f"break {name} ({rule})" for name, rule in rules if rule), "")

    return broken_rule


def redacted(table: Table) -> tuple[Table, list[str]]:
    """Returns the rows with [kind] in place of personal data, in texts to read and to write, and a line that counts
    what was replaced."""
    kinds, rows = Counter[str](), list[Row]()
    for row in table.rows:
        rows.append({role: value if role in UNREDACTED else _redacted(value, kinds)
                     for role, value in row.items()})  # fmt: skip
    counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    changed = sum(old != new for old, new in zip(table.rows, rows, strict=True)) if kinds else 0
    lines = [f"data.quality.redact: {counted} replaced, in {changed:,} of {len(rows):,} rows"] if kinds else []
    return replace(table, rows=rows), lines


def _redacted(value: Any, kinds: Counter[str]) -> Any:
    """Returns a value of a row with all texts in it redacted, and counts what they held."""
    if isinstance(value, str):
        text, counts = without_personal(value)
        kinds.update(counts)
        return text
    if isinstance(value, list | tuple):
        return type(value)(_redacted(inner, kinds) for inner in value)
    return {key: _redacted(inner, kinds) for key, inner in value.items()} if isinstance(value, dict) else value
