"""Constraints on what is written: one of some choices, a regular expression, or JSON of a schema. Tokens that would
break them are never chosen, so that a text that ends keeps them."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmkit.base.errors import UserError
from lmkit.text.tokenizer import Tokenizer

EXTRA = 'constraints need llguidance\n  → pip install "lmkit[constraints]"'


class Grammar:
    """What texts have to match, for the tokens of one tokenizer."""

    def __init__(self, definition: str, tokenizer: Tokenizer, eos: Collection[int], vocab_size: int):
        """definition: of llguidance; eos: the tokens that end a text; vocab_size: the number of logits.

        Raises UserError for a definition that is not one, or where a model has no end token."""
        try:
            from llguidance import LLMatcher, LLTokenizer
        except ImportError:
            raise UserError(EXTRA) from None
        if not eos:
            raise UserError("constraints need an end token, and this model has none\n  → name one: --stop-ids")
        self.definition, self.vocab_size = definition, vocab_size
        self._tokens = LLTokenizer(tokenizer.backend.to_str(), n_vocab=vocab_size, eos_token=sorted(eos))
        if error := LLMatcher.validate_grammar(definition, self._tokens):
            raise UserError(f"the constraint cannot be followed: {error.splitlines()[0]}")

    def matcher(self) -> "Matcher":
        """Returns the state of a text that is still empty."""
        return Matcher(self)


class Matcher:
    """Follows one text through a grammar, token by token."""

    def __init__(self, grammar: Grammar):
        from llguidance import LLMatcher

        self._matcher = LLMatcher(grammar._tokens, grammar.definition)
        self._size = grammar.vocab_size

    def allowed(self) -> Tensor:
        """Returns which tokens may come next, (V,) bool. Raises UserError where the grammar became too complex."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise UserError(f"the constraint cannot be followed: {self._matcher.get_error().splitlines()[0]}")
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._size].astype(bool))

    def push(self, token: int) -> bool:
        """Reads the next token. Returns whether the text is complete, and nothing may follow."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


def one_of(choices: Sequence[str]) -> str:
    """Returns the definition of a text that is one of `choices`. Raises UserError for none, or an empty one."""
    if not choices or not all(choices):
        raise UserError("--choices: names at least one text, and none is empty\n  → for example --choices yes,no")
    return matching("|".join(map(re.escape, choices)))


def matching(regex: str) -> str:
    """Returns the definition of a text that matches `regex` as a whole. Raises UserError."""
    return str(_matchers().grammar_from_regex(regex))


def of_schema(schema: Mapping[str, Any] | str) -> str:
    """Returns the definition of JSON that a JSON schema allows. Raises UserError for what is no JSON object."""
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(parsed, Mapping):
            raise ValueError(f"a schema is an object, and this is {type(parsed).__name__}")
        return str(_matchers().grammar_from_json_schema(json.dumps(parsed)))
    except (ValueError, RecursionError) as e:
        raise UserError(f"the JSON schema cannot be read: {e}") from None


def _matchers() -> Any:
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise UserError(EXTRA) from None
    return LLMatcher
