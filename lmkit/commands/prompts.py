"""The prompts of a command that writes: from the command line, a file or standard input."""

import sys
from pathlib import Path
from typing import IO

from lmkit.base.errors import DataError, UserError

MOST_BYTES = 2**28


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """Returns one prompt from the command line or standard input, or a file's lines.

    Raises UserError for both, DataError for a file that holds none, that cannot be read, or is no UTF-8 text."""
    if file is not None and prompt is not None:
        raise UserError("give a prompt or --file, not both")
    where = file or "standard input"
    try:
        if file is not None:
            with file.open("rb") as stream:
                text = _text(stream, where)
            lines = text.removesuffix("\n").split("\n") if text else []  # a line ends where a reader of files sees it
            if not lines:
                raise DataError(f"{file}: holds no prompt\n  → write one a line")
            return [line.removesuffix("\r") for line in lines]
        if prompt is None or prompt == "-":
            return [_text(sys.stdin.buffer, where)]
    except UnicodeDecodeError as e:
        raise DataError(f"{where}: not UTF-8 text (byte {e.start})") from None
    except OSError as e:
        raise DataError(f"{file}: cannot be read: {e.strerror}") from None
    return [prompt]


def _text(stream: IO[bytes], where: Path | str) -> str:
    """Raises DataError for more than prompts can be, as devices give it without end."""
    content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise DataError(f"{where}: above {MOST_BYTES:,} bytes of prompts\n  → give them in parts")
    return content.decode("utf-8-sig")
