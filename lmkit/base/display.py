"""Shows progress while work goes on: a live bar on a terminal, elsewhere one plain line with the time per interval.

Everything here writes to standard error; results (tables, texts, JSON) go to standard output.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from threading import Event, Thread
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from lmkit.base.errors import CONTROL, say
from lmkit.base.units import show_seconds

HUSHED = int(os.environ.get("RANK", "0")) > 0  # of several processes, only the first one writes
UNKNOWN = None if os.environ.get("TERM") else False  # False: a terminal without TERM gets plain lines
console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=HUSHED, force_terminal=UNKNOWN)
BARS = "▁▂▃▄▅▆▇█"
MarkedText = tuple[str, bool]  # a part of a text, and whether it is marked
SILENT_SECONDS = 5.0  # after which work that shows nothing says that it goes on
PLAIN_INTERVAL = float(os.environ.get("LMKIT_LOG_SECONDS", "10"))


def note(text: str) -> None:
    """Writes a permanent line: something inferred, skipped or counted that the user should know."""
    if console.is_terminal:
        console.print(text.translate(CONTROL), markup=False)
    elif not HUSHED:
        say(text)


def note_marked(title: str, pieces: Sequence[MarkedText]) -> None:
    """Writes a line in which parts are marked: in colour on a terminal that has colours, else with »«."""
    if console.is_terminal and not console.no_color:
        console.print(Text.assemble(title, *((text.translate(CONTROL), "bold green" * on) for text, on in pieces)))
    else:
        note(title + "".join(f"»{text}«" if on else text for text, on in pieces))


def write(text: str) -> None:
    """Writes a part of a result to standard output at once; on a terminal without control characters."""
    sys.stdout.write(text.translate(CONTROL) if sys.stdout.isatty() else text)
    sys.stdout.flush()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows that work without a measure still goes on in a `with` block, from its sixth second on.

    Elsewhere than on a terminal it writes a line then, and after each interval of plain lines."""
    began = time.monotonic()

    def watch(done: Event) -> None:
        spinner = console.status(what) if console.is_terminal else None
        if not done.wait(SILENT_SECONDS):
            if spinner:
                spinner.start()
            while not spinner and not HUSHED:
                say(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {what}: {time.monotonic() - began:.0f} s")
                if done.wait(PLAIN_INTERVAL):
                    break
            done.wait()
            if spinner:
                spinner.stop()

    with beside(watch):
        yield


@contextmanager
def beside(watch: Callable[[Event], None]) -> Iterator[None]:
    """Runs `watch` in a thread for the time of a `with` block. It is given the event that the block has ended, upon
    which it must return."""
    done = Event()
    thread = Thread(target=watch, args=[done], daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """Returns at most so many bars, the means of equal parts of the values, from the least to the greatest."""
    edges = [round(i * len(values) / min(width, len(values))) for i in range(min(width, len(values)) + 1)] or [0]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means, default=0), max(means, default=0) - min(means, default=0)
    return "".join(BARS[round((len(BARS) - 1) * (mean - low) / span) if span else 0] for mean in means)


class Meter:
    """Shows the progress of one long piece of work, counted in `total` units of any kind (bytes, steps, seconds).

    `update(done, text)` may be called often: a terminal is redrawn at most ten times a second, and other outputs get a
    line every PLAIN_INTERVAL seconds. The ETA assumes that the speed stays the same."""

    def __init__(self, title: str, total: float):
        self.title, self.total, self.start = title, max(total, 1e-9), time.monotonic()
        self.first: float | None = None  # work already done when this meter began, as after a resume
        self.last_line = self.start
        self.bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(),
            TextColumn("{task.fields[text]}"), TextColumn("eta {task.fields[eta]}"),
            console=console, transient=True, refresh_per_second=10,
        )  # fmt: skip
        self.task = self.bar.add_task(title, total=self.total, text="", eta="-")

    def __enter__(self) -> Self:
        if console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if console.is_terminal:
            self.bar.stop()

    def update(self, done: float, text: str = "") -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = done
        rate = (done - self.first) / max(now - self.start, 1e-9)
        eta = show_seconds((self.total - done) / rate) if rate > 0 else "-"
        if console.is_terminal:
            self.bar.update(self.task, completed=done, text=text, eta=eta)
        elif now - self.last_line >= PLAIN_INTERVAL and not HUSHED:
            self.last_line = now
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
            say(f"{stamp} {self.title} {done / self.total:.0%} {text} eta {eta}")

    def line(self, text: str) -> None:
        """Writes a permanent line above the bar."""
        if console.is_terminal:
            console.print(text.translate(CONTROL), markup=False)
        elif not HUSHED:
            say(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}")
