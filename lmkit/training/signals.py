"""Handles signals that ask a run to stop: it finishes the step, saves, and ends.

A second Ctrl-C stops it at once. After the last step, every signal stops it at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from lmkit.base.display import note

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Asked(BaseException):
    """A signal asked the process to stop. Its argument is the name of the signal."""


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Lets every signal raise Asked at once, for the time of a `with` block in which there is nothing to save."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Asked(signal.Signals(number).name)

    before = {s: signal.signal(s, leave) for s in ASKING}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class StopFlag:
    """A context manager that notes signals: `asked` is the name of the first one that came, or None."""

    def __init__(self) -> None:
        self.asked: str | None = None

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._handle) for s in ASKING}
        return self

    def __exit__(self, *_: object) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked == "SIGINT" == signal.Signals(number).name:
            raise KeyboardInterrupt
        if self.asked is None:  # the same signal may come twice: from the terminal, and from a launcher
            self.asked = signal.Signals(number).name
            note(f"{self.asked}: finishing this step, then saving; a second Ctrl-C stops at once without saving")
