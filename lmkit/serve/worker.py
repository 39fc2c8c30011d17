"""The thread that owns an engine: requests come from an event loop, and tokens go back to it."""

import asyncio
import queue
import threading
from collections.abc import Sequence
from typing import NamedTuple

from lmkit.base.errors import UserError
from lmkit.generation.completions import Completion
from lmkit.generation.engine import Engine, Event, Request


class Writing:
    """Some texts that one caller asked for, and what has become of them so far."""

    def __init__(self, requests: Sequence[Request]):
        self.requests = requests
        self.completions = list[Completion]()  # one for each request, from the time that the engine takes them
        self.events: asyncio.Queue[list[Event] | Exception] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def put(self, item: list[Event] | Exception) -> None:
        """Hands events to the caller, from another thread; there are at most as many as the texts have tokens."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, item)


class Load(NamedTuple):
    """How much an engine has to do."""

    writing: int  # texts that have a row
    waiting: int


class Worker:
    """Runs an engine in a thread of its own, step by step, while it has anything to do."""

    def __init__(self, engine: Engine):
        self._engine, self._commands = engine, queue.SimpleQueue[tuple[str, Writing | None]]()
        self._open = dict[int, Writing]()  # who gets the events of a completion, by its number
        self.pending = 0  # texts that are asked for and not finished; belongs to the event loop
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> Load:
        writing = min(self.pending, self._engine.max_rows)
        return Load(writing, self.pending - writing)

    def submit(self, requests: Sequence[Request]) -> Writing:
        """Asks for texts. Called in the event loop, which must call `end` when it is done with them."""
        writing = Writing(requests)
        self.pending += len(requests)
        self._commands.put(("submit", writing))
        return writing

    def end(self, writing: Writing) -> None:
        """Cancels what is not finished of some texts, so that their rows are free."""
        self.pending -= len(writing.requests)
        self._commands.put(("cancel", writing))

    def stop(self) -> None:
        """Ends the thread."""
        self._commands.put(("stop", None))
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                command, writing = self._commands.get(block=not self._engine.busy)
            except queue.Empty:
                self._step()
                continue
            if writing is None:
                return
            if command == "submit":
                self._submit(writing)
            else:
                for completion in writing.completions:
                    self._engine.cancel(completion)
                    self._open.pop(completion.row, None)

    def _submit(self, writing: Writing) -> None:
        try:
            for request in writing.requests:
                completion = self._engine.submit(request)
                writing.completions.append(completion)
                self._open[completion.row] = writing
        except UserError as e:
            writing.put(e)

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception as e:  # the texts that are being written fail, and the thread goes on
            failed = {id(writing): writing for writing in self._open.values()}
            self._open.clear()
            for writing in failed.values():
                for completion in writing.completions:
                    self._engine.cancel(completion)
                writing.put(e)
            return
        mine = dict[int, tuple[Writing, list[Event]]]()
        for event in events:
            writing = self._open[event.completion.row]
            mine.setdefault(id(writing), (writing, []))[1].append(event)
            if event.finished:
                del self._open[event.completion.row]
        for writing, part in mine.values():
            writing.put(part)
