"""The `lmkit` command: one call of a command, and the exit code of what went wrong in it."""

import os
import sys
import time

from lmkit.cli.app import app
from lmkit.errors import INTERRUPTED, UserError

# isort: off
from lmkit.cli import train, use, kb, runs, look  # noqa: F401 - they add their commands to `app`, in the order of --help
# isort: on


def main() -> None:
    rank = int(os.environ.get("RANK", "0"))  # torchrun's: what all processes would say the first one says
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    try:
        app()
    except UserError as e:
        if rank:  # most often the first one's mistake too, which ends all before this is said again
            time.sleep(2)
        print(f"lmkit: {e}" if not rank else f"lmkit, process {rank}: {e}", file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    except KeyboardInterrupt:
        print("\nlmkit: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
