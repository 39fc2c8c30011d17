"""Guesses of the next tokens, which a model then checks all at once: it writes the same text, in fewer passes
(Leviathan et al. 2023)."""

from collections.abc import Sequence
from typing import Protocol

import torch

from lmkit.generation.slots import Slots
from lmkit.model.transformer import Transformer

LONGEST = 3  # tokens at the end of a text that are looked for
GUESSES = 5  # tokens that are guessed at a time


class Drafter(Protocol):
    """Guesses how one text goes on."""

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        """Returns up to `most` tokens that may come after `text`, which is the prompt and all that is written."""
        ...


class PromptLookup:
    """Guesses that what came after the last tokens where these stood before comes again (Saxena 2023, prompt lookup).

    This pays where texts repeat their prompts: summaries, answers from a passage, corrections, code."""

    def propose(self, text: Sequence[int], most: int) -> list[int]:
        for size in range(min(LONGEST, len(text) - 1), 0, -1):
            end = list(text[-size:])
            for start in range(len(text) - size - 1, -1, -1):
                if text[start] == end[0] and list(text[start : start + size]) == end:
                    return list(text[start + size : start + size + most])
        return []


class DraftModel:
    """Guesses what a smaller model with the same tokens writes."""

    def __init__(self, model: Transformer):
        self.model, self._read = model, list[int]()
        self._slots = Slots(model)
        self._slots.add(1, model.config.context)

    @torch.no_grad()
    def propose(self, text: Sequence[int], most: int) -> list[int]:
        # What stands in the caches beyond the common beginning was guessed wrong, and is written over.
        pairs = zip(self._read, text[:-1], strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self._read), len(text) - 1))
        self._slots.lengths[0], unread, proposed = same, list(text[same:]), list[int]()
        most = min(most, self.model.config.context - len(text))
        while len(proposed) < most:
            states = self._slots.read(0, [unread])
            unread = [int(self.model.head(states[0, -1]).argmax())]
            proposed += unread
        self._read = [*text, *proposed[:-1]]
        return proposed
