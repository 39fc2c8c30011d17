"""Tokens in, text out, as soon as it is certain."""

from lmkit.text.tokenizer import Tokenizer

TAIL = 8  # prompt tokens decoded with the first new ones: some decoders drop the space before a first word
HALF = "\ufffd"  # what decoders put for bytes that are no character (yet)


class TextStream:
    """The text that follows `prompt`, token by token: never half a character, never a part of a stop string. Bytes that
    no other token can make a character of are left out.

    `text` is all text released so far; `stopped` is True once a stop string has appeared."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stop: tuple[str, ...] = ()):
        self.tokenizer, self.stop = tokenizer, stop
        self.tail, self.fresh = prompt[-TAIL:], list[int]()  # ids whose text is known, ids after them
        self.text, self.held, self.stopped = "", "", False

    def push(self, token: int) -> str:
        """The text that became certain with `token`; often "", sometimes several characters."""
        self.fresh.append(token)
        piece = self._decoded()
        if not piece or piece.endswith(HALF):
            return ""
        self.tail, self.fresh = self.fresh, []
        return self._release(piece)

    def finish(self) -> str:
        """What was held back, when no more tokens come. Half a character at the end is left out."""
        piece = self._decoded().rstrip(HALF)
        self.fresh = []
        out = "" if self.stopped else self._release(piece)
        self.text, rest, self.held = self.text + self.held, self.held, ""
        return out + rest

    def _decoded(self) -> str:
        known = self.tokenizer.decode(self.tail)
        return self.tokenizer.decode(self.tail + self.fresh)[len(known) :]

    def _release(self, piece: str) -> str:
        self.held += piece.replace(HALF, "")
        found = [at for s in self.stop if (at := self.held.find(s)) >= 0]
        if found:
            out, self.held, self.stopped = self.held[: min(found)], "", True
        else:
            end = len(self.held) - self._begun()
            out, self.held = self.held[:end], self.held[end:]
        self.text += out
        return out

    def _begun(self) -> int:
        """Characters at the end of `held` that may turn out to begin a stop string."""
        sizes = (n for s in self.stop for n in range(1, len(s)) if self.held.endswith(s[:n]))
        return max(sizes, default=0)
