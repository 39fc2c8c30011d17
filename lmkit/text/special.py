"""Special tokens by kind of model. Padding always has a token of its own, so that a mask over it never hides an end."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Special:
    """The control tokens of some families; None where they have no such token."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    mask: str | None = None
    cls: str | None = None
    sep: str | None = None
    extra: tuple[str, ...] = ()

    @property
    def tokens(self) -> list[str]:
        """Returns every token once, in the order in which they get ids when a tokenizer is trained."""
        named = (self.pad, self.bos, self.eos, self.unk, self.cls, self.sep, self.mask, *self.extra)
        return list(dict.fromkeys(t for t in named if t is not None))


CHAT = tuple(f"<|{role}_{edge}|>" for role in ("user", "assistant", "python", "output") for edge in ("start", "end"))
SPECIAL: dict[str, Special] = {  # by the names that `Family.tokens` uses
    "gpt2": Special(bos="<|endoftext|>", eos="<|endoftext|>", pad="<|pad|>"),
    "nanochat": Special(bos="<|bos|>", eos="<|bos|>", pad="<|pad|>", extra=CHAT),
    "llama": Special(bos="<s>", eos="</s>", unk="<unk>", pad="<pad>"),
    "gemma": Special(
        bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>", mask="<mask>", extra=("<start_of_turn>", "<end_of_turn>")
    ),
    "bert": Special(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
    "roberta": Special(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", mask="<mask>", cls="<s>", sep="</s>"),
    "t5": Special(eos="</s>", unk="<unk>", pad="<pad>", extra=tuple(f"<extra_id_{i}>" for i in range(100))),
    "marian": Special(eos="</s>", unk="<unk>", pad="<pad>"),
}


def cuts_inside(tokens: Iterable[str]) -> str:
    """Returns an expression that matches the first character of each of these tokens where the rest follows.

    Splitting text there keeps a model whose vocabulary holds control tokens from finding them in text."""
    return "|".join(f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in tokens if len(t) > 1)
