"""Errors a user can cause, each with its exit code. The command line prints them without a traceback; anything else
is a bug and keeps its traceback.

Exit codes: 0 done, 1 bug, 2 usage or recipe, 3 data, 4 model or checkpoint, 5 run directory in use, 6 diverged,
7 storage, 8 a process died or hung, 9 out of memory, 75 stopped with a checkpoint (run again with --resume),
130 interrupted without saving.
"""

import sys
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from typing import ClassVar


class UserError(Exception):
    """An error that says what is wrong and where, what is allowed, and what to do next. Users see the text as it is."""

    exit_code: ClassVar[int] = 2


class DataError(UserError):
    exit_code = 3


class ModelError(UserError):
    """A model folder or checkpoint that is damaged, incompatible or missing."""

    exit_code = 4


class RunInUse(UserError):
    exit_code = 5


class Diverged(UserError):
    exit_code = 6


class StorageError(UserError):
    exit_code = 7


class ProcessFailed(UserError):
    """One of several processes died or hung."""

    exit_code = 8


class OutOfMemory(UserError):
    exit_code = 9


# Characters that could control a terminal, as by moving its cursor. Text out of models and files must not do that.
CONTROL = {c: None for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"}
STOPPED_RESUMABLE = 75  # EX_TEMPFAIL: the run is saved, and goes on with --resume
INTERRUPTED = 130


def say(text: str) -> None:
    """Writes a line to standard error. It goes on silently where nobody reads standard error any more."""
    with suppress(OSError):
        print(text.translate(CONTROL), file=sys.stderr, flush=True)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Returns the choice that `name` probably means, or None. `warmup` also finds `schedule.warmup`."""
    choices = list(choices)
    by_last_part = {c.rpartition(".")[2]: c for c in reversed(choices)}
    near = get_close_matches(name, choices, n=1) or get_close_matches(name.rpartition(".")[2], by_last_part, n=1)
    return by_last_part.get(near[0], near[0]) if near else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns more lines for an error about an unknown `name`: the nearest choice, and all choices if they are few."""
    choices = sorted(choices)
    near = nearest(name, choices)
    listed = f"\n  allowed: {', '.join(choices)}"
    return (f"\n  → did you mean `{near}`?" if near else "") + (listed if len(choices) <= 40 else "")
