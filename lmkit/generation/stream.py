"""Turns tokens into text while they are written, and gives out text as soon as no later token can change it."""

from lmkit.text.tokenizer import Tokenizer

TAIL = 8  # prompt tokens decoded with the first new ones: some decoders drop the space before a first word
HALF = "\ufffd"  # the character that decoders write for bytes that are no character, or not yet


class TextStream:
    """The text that follows `prompt`, token by token, without half characters and without parts of a stop string.

    Bytes that no later token can complete to a character are left out. `text` is all text given out so far; `stopped`
    is True once a stop string has appeared."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stop: tuple[str, ...] = ()):
        self.tokenizer, self.stop = tokenizer, stop
        self.tail, self.fresh = prompt[-TAIL:], list[int]()  # ids whose text is known, and the ids after them
        self.text, self.held, self.stopped = "", "", False

    def push(self, token: int) -> str:
        """Returns the text that became certain with `token`: often "", sometimes several characters."""
        self.fresh.append(token)
        piece = self._decoded()
        if not piece or piece.endswith(HALF):
            return ""
        self.tail, self.fresh = self.fresh, []
        return self._release(piece)

    def finish(self) -> str:
        """Returns the text that was held back, when no more tokens come. Half a character at the end is left out."""
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
        places = [at for s in self.stop if (at := self.held.find(s)) >= 0]
        if places:
            out, self.held, self.stopped = self.held[: min(places)], "", True
        else:
            end = len(self.held) - self._begun()
            out, self.held = self.held[:end], self.held[end:]
        self.text += out
        return out

    def _begun(self) -> int:
        """Returns how many characters at the end of `held` may be the beginning of a stop string."""
        sizes = (n for s in self.stop for n in range(1, len(s)) if self.held.endswith(s[:n]))
        return max(sizes, default=0)
