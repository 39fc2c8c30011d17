"""What `data.quality` asks for, of documents on their way from files to tokens, in this order: languages, filters,
decontaminate, redact, deduplicate. What is left out or changed is counted, rule by rule."""

import hashlib
from array import array
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Self

from lmkit.base.display import note
from lmkit.base.units import brief
from lmkit.data.inputs import Document, Problems
from lmkit.data.quality.decontamination import evaluation_ngrams, ngrams
from lmkit.data.quality.deduplication import KEYS, NUMBER_OF_KEYS, Keys
from lmkit.data.quality.filters import FILTERS
from lmkit.data.quality.languages import is_in, language_detector
from lmkit.data.quality.personal import without_personal
from lmkit.recipe.pretraining import DataConfig


class Quality:
    """Judges documents one after the other. Raises DataError for evaluation files that cannot be read or are too short,
    and UserError where a library is missing."""

    def __init__(self, config: DataConfig):
        self.config = config.quality
        self.detect = language_detector() if self.config.languages else None
        problems, self.evaluation = Problems(), set[str]()
        if patterns := self.config.evaluation_files:
            self.evaluation = evaluation_ngrams(patterns, config, problems)
        for kind, count in problems.counts.items():
            note(f"data.quality.decontaminate: {count:,} {kind}, like {problems.examples[kind][0]}")
        self.seen, self.added = Keys(), array("Q")  # of all documents that stayed; of those since `take_added`
        self.comparing = True

    @property
    def settings(self) -> dict[str, Any]:
        """What tells stores apart: all that is not a default, and what the evaluation files hold."""
        settings = self.config.model_dump(mode="json", exclude_defaults=True)
        if self.evaluation:
            settings["decontaminate"] = hashlib.sha256("\n".join(sorted(self.evaluation)).encode()).hexdigest()
        return settings

    def anew(self, comparing: bool = True) -> Self:
        """Returns a judge of the same kind that has seen no document yet. comparing: False for one that lets a document
        stay that comes again."""
        other = copy(self)
        other.seen, other.added, other.comparing = Keys(), array("Q"), comparing
        return other

    def remember(self, keys: Sequence[int]) -> None:
        """Judges documents by their keys, one after the other, so that later ones are compared with those that stay."""
        number = NUMBER_OF_KEYS[self.config.deduplicate]
        for begin in range(0, len(keys), number):
            self._is_new(keys[begin : begin + number])

    def _is_new(self, keys: Sequence[int]) -> bool:
        """Returns whether a document shares none of its keys with one that stayed; then it stays itself."""
        if any(key in self.seen for key in keys):
            return False
        for key in keys:
            self.seen.add(key)
        return True

    def take_added(self) -> bytes:
        """Returns the keys of the documents that stayed since the last call, 8 bytes for each key."""
        added, self.added = self.added, array("Q")
        return added.tobytes()

    def judge(self, document: Document, place: str, problems: Problems) -> Document | None:
        """Returns the document as it is to be stored; None where it is left out, which is counted in `problems`."""
        text, why = self._filtered(document.text, place, problems)
        if not why and self.config.redact:
            text, kinds = without_personal(text)
            for kind in kinds.elements():
                problems.add(f"places redacted: {kind}", place, lost=False)
        if not why and self.config.deduplicate != "none":
            keys = KEYS[self.config.deduplicate](text)
            if self.comparing and not self._is_new(keys):
                why = f"deduplicate: {self.config.deduplicate}"
            else:
                self.added.extend(keys)
        if why:
            problems.add(f"documents left out by {why}", f"{place} {brief(document.text[:100])}")
            return None
        return document if text == document.text else replace(document, text=text)

    def _filtered(self, text: str, place: str, problems: Problems) -> tuple[str, str]:
        """Returns the text with what filters leave of it, and what it is left out by; "" where it stays."""
        if self.detect and not is_in(text, self.config.languages, self.detect):
            return text, "languages"
        for name in self.config.filters:
            before = text
            text, rule = FILTERS[name](text)
            if rule:
                return text, f"{name}: {rule}"
            if text != before:
                problems.add(f"documents shortened by {name}", place, lost=False)
        if self.evaluation and not self.evaluation.isdisjoint(ngrams(text)):
            return text, "decontaminate"
        return text, ""
