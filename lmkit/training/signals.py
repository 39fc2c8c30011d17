"""Asked to stop: finish the step, save, leave. A second Ctrl-C: stop at once. After the last step: leave at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from lmkit.base.display import note

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Asked(BaseException):
    """A signal, by its name."""


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Where there is nothing to save: raises Asked in the middle of what is going on."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Asked(signal.Signals(number).name)

    before = {s: signal.signal(s, leave) for s in ASKING}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class StopFlag:
    """Context manager; `asked` names the signal once one came."""

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
        if self.asked is None:  # a launcher passes on what its processes got from the terminal themselves
            self.asked = signal.Signals(number).name
            note(f"{self.asked}: finishing this step, then saving; a second Ctrl-C stops at once without saving")
