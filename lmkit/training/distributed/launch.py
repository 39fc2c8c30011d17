"""`--processes N`: starts this command N times on this machine with torch's elastic launcher, which watches it."""

import ctypes
import logging
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from lmkit.base.environment import usable_cores
from lmkit.base.errors import STOPPED_RESUMABLE, ProcessFailed, UserError
from lmkit.base.runs import LINK, fresh_path, going_on, read_status

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
LAUNCHED = "LMKIT_LAUNCHED"  # set in the processes that `start_processes` starts: its process number
MOST_A_CORE = 8  # processes per core; more would only wait for each other, and each holds a model
GIVEN_THREADS = os.environ.get("OMP_NUM_THREADS")  # set by a person, or by the launcher of this process
# How often GNU's OpenMP checks again before a waiting thread sleeps, instead of 300,000 times. With busy processes
# around it, the thread would only take time from the thread it waits for (measured: docs/benchmarks-history.md).
SPINS = 6000
GRACE = 600  # seconds that a process has to finish a step and save, once it is asked to stop


def die_with_parent() -> None:
    """Makes this process receive a request to stop when its parent dies. It works on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def die_with_launcher() -> None:
    """Makes this process, which `start_processes` has started, receive a request to stop when the process of
    `start_processes` dies.

    It works on Linux. Raises ProcessFailed where that process has died already."""
    die_with_parent()
    if os.getppid() != int(os.environ[LAUNCHED]):  # a process whose parent dies gets another parent
        raise ProcessFailed("the process that started this one has ended")


def share_cores(processes: int) -> None:
    """Sets, before torch starts, how many threads each process has, and that waiting threads use little time.

    The cores that the container allows are divided by the number of processes. Settings that the environment already
    has stay as they are."""
    if GIVEN_THREADS is None and (processes > 1 or usable_cores() < (os.cpu_count() or 1)):
        os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // processes))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def here(processes: int | None) -> bool:
    """Says whether this process is to start the others. Raises UserError where torchrun has started it already."""
    if processes is not None and "RANK" in os.environ:
        raise UserError("--processes starts processes, and torchrun has started them\n  → leave out one of the two")
    return processes is not None and processes > 1


def check(processes: int | None, max_restarts: int, rows: float | None) -> None:
    """Raises UserError for more processes than can work, and for restarts without processes to watch.

    It is called before anything is started. rows: the rows of a batch, where they are known."""
    if processes is None:
        if max_restarts and "RANK" not in os.environ:
            raise UserError("--max-restarts starts the processes of --processes again\n  → add --processes 2, or more")
        return
    most = MOST_A_CORE * usable_cores()
    if rows is not None and processes > rows:
        raise UserError(f"--processes {processes}: a batch has {rows:.0f} rows\n  → fewer, or a larger train.batch")
    if processes > most:
        raise UserError(f"--processes {processes}: this machine has {usable_cores()} cores\n  → at most {most}")


def command(
    verb: str, processes: int | None, max_restarts: int, out: Path | None, resume: Path | None, name: str | None
) -> int:
    """Runs the command line of this process in `processes` processes, with one run directory. Returns the exit code."""
    assert processes is not None
    path = resume or fresh_path(out, name or "run", verb)
    arguments = [*_without(sys.argv[1:], "--processes", "--max-restarts")]
    named = [] if out or resume else ["--out", str(path)]
    return start_processes([*arguments, *named], processes, max_restarts, path, verb, link=bool(named))


def _without(arguments: list[str], *options: str) -> list[str]:
    """Returns the command line without these options and their values."""
    others, skip = list[str](), False
    for argument in arguments:
        if not skip and not argument.startswith(tuple(f"{o}=" for o in options)) and argument not in options:
            others.append(argument)
        skip = argument in options
    return others


def start_processes(arguments: list[str], processes: int, max_restarts: int, path: Path, verb: str, link: bool) -> int:
    """Runs `lmkit` with these arguments, which name the run directory `path`, in each process. Returns the exit code.

    A process that fails ends the others, and with `max_restarts` all start again from the last checkpoint. Raises
    ProcessFailed, which names the process, where that does not help."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # failures are told below, once
    share_cores(processes)
    os.environ |= {LINK: "1"} if link else {}
    # torch 2.11 does not have this setting, and always waits 30 s.
    patience: dict[str, Any] = {"shutdown_timeout": GRACE} if hasattr(LaunchConfig, "shutdown_timeout") else {}
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=max_restarts, monitor_interval=0.2, signals_to_handle=SIGNALS,
        **patience,
    )  # fmt: skip
    os.environ[LAUNCHED] = str(os.getpid())
    before = _status(path)
    try:
        elastic_launch(launch, sys.executable)("-m", "lmkit", *arguments)
    except SignalException as e:
        if _status(path) == before or _status(path).get("state") not in ("stopped", "done"):
            raise ProcessFailed(f"stopped by {e.sigval.name} before a checkpoint could be written") from None
    except ChildFailedError as e:
        rank, failure = e.get_first_failure()
        if failure.exitcode > 0:  # the process itself has said why
            return failure.exitcode
        more = f", also after {max_restarts} restarts" if max_restarts else ""
        raise ProcessFailed(
            f"process {rank} (pid {failure.pid}) was killed by {failure.signal_name()}{more}; the others were stopped\n"
            f"  → {going_on(path, verb)} --processes {processes}"
        ) from None
    return STOPPED_RESUMABLE if _status(path).get("state") == "stopped" else 0


def exit_code(code: int) -> int:
    """Returns the exit code of a process of `start_processes`: 0 where it stopped because it was asked to.

    Otherwise the launcher would take the stop for a failure, and start the process again."""
    return 0 if code == STOPPED_RESUMABLE and LAUNCHED in os.environ else code


def restarted(out: Path | None) -> Path | None:
    """Returns the run to go on with, in a process that was started again; None at the first start."""
    is_restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return out if is_restart and out is not None and (out / "recipe.yaml").exists() else None


def _status(path: Path) -> dict:
    """Returns the content of status.json of the run, or of the newest run where there are several seeds."""
    files = [file for file in (path / "status.json", *path.glob("seed-*/status.json")) if file.exists()]
    return read_status(max(files, key=lambda f: f.stat().st_mtime_ns).parent) if files else {}
