"""The `lmkit` command: one call of a command, and the exit code of what went wrong in it."""

import errno
import io
import os
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn

from lmkit.base.errors import INTERRUPTED, STOPPED_RESUMABLE, OutOfMemory, ProcessFailed, StorageError, UserError, say
from lmkit.commands.app import app, in_options
from lmkit.training.distributed import launch

# isort: off
# They add their commands to `app`, in the order of --help.
from lmkit.commands import init, data, tokenize, pretrain, finetune, sweep, generate, chat, fill, draw, answer  # noqa: F401
from lmkit.commands import serve, inspect, eval, check, predict, export, push, kb, report, runs, recipes  # noqa: F401
from lmkit.commands import plan, doctor  # noqa: F401
# isort: on

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# A person named the wrong thing.
NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
NO_MEMORY = ("not enough memory", "can't allocate memory")  # how torch says so of a CPU
PATIENCE = 10.0  # seconds in which a launcher stops the other processes of one that failed


def main() -> None:
    rank = int(os.environ.get("RANK", "0"))  # torchrun's: what all processes would say the first one says
    if launch.LAUNCHED in os.environ:
        launch.die_with_launcher()
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    _open_streams()
    launch.share_cores(1)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a reader that left is known for what it is
    except UserError as e:
        if rank:  # most often the first one's mistake too, which ends all before this is said again
            time.sleep(PATIENCE)
        message = in_options(str(e), next(iter(sys.argv[1:]), ""))
        say(f"lmkit: {message}" if not rank else f"lmkit, process {rank}: {message}")
        raise SystemExit(e.exit_code) from None
    except (RuntimeError, MemoryError) as e:
        if isinstance(e, MemoryError) or any(text in str(e) for text in NO_MEMORY):
            say(f"lmkit: memory is not enough: {e}\n  → a smaller model, batch or file")
            raise SystemExit(OutOfMemory.exit_code) from None
        if not _lost_another(e):
            raise
        time.sleep(PATIENCE)  # for the one that ended to be told first
        say(f"lmkit, process {rank}: lost contact with another process of this run, which ended")
        raise SystemExit(ProcessFailed.exit_code) from None
    except KeyboardInterrupt:
        say("\nlmkit: interrupted")
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as e:
        if e.code == STOPPED_RESUMABLE:
            _ignore_signals()
        if isinstance(e.__context__, BrokenPipeError):  # what Typer makes of that
            _reader_left()
        raise
    except BrokenPipeError:
        _reader_left()
    except OSError as e:
        _system_error(e)


def _system_error(e: OSError) -> NoReturn:
    """Says what the system reports of a file, and what to do. Raises `e` itself where no person can mend it."""
    name, code = str(e.filename or "standard output"), StorageError.exit_code
    shown = f"lmkit: {name[:200]}{'…' if len(name) > 200 else ''}: {e.strerror}"
    if "No usable temporary directory" in str(e):
        shown, advice = f"lmkit: {e.strerror or e}", "set TMPDIR to a folder that can be written to"
    elif e.errno in NAMES and e.filename is not None:
        advice, code = "name another file or folder", UserError.exit_code
    elif e.errno in CLOSED and e.filename is not None:
        advice = "name another place, or change who may use this one"
    elif e.errno in FULL:
        _silence()
        advice = "make room, then run the same command again"
    else:
        raise e
    say(f"{shown}\n  → {advice}")
    raise SystemExit(code) from None


def _ignore_signals() -> None:
    """Ignores signals once all is saved, so that the exit code can say so."""
    from lmkit.training.signals import ASKING

    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)


def _reader_left() -> NoReturn:
    """Ends without an error where nobody reads the output any more, as under `| head`."""
    _silence()
    raise SystemExit(0) from None


def _silence() -> None:
    """Lets nothing more go to standard output, not even what is waiting for it."""
    with suppress(OSError):  # of a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]


def _lost_another(e: RuntimeError) -> bool:
    """Returns whether torch.distributed says with this error that a process is gone; gloo does so by its text alone."""
    return "WORLD_SIZE" in os.environ and (
        type(e).__name__.startswith("Dist") or "closed by peer" in str(e) or "reset by peer" in str(e)
    )


def _open_streams() -> None:
    """Opens standard streams that are closed, else the next file that is opened would take their place; these lead
    nowhere. Characters that an encoding lacks are spelled out, as on standard error."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: that of this stream
            os.set_inheritable(nowhere, True)
            setattr(sys, name, open(nowhere, mode))  # noqa: SIM115 - for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
