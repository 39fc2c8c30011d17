"""The `lmkit` command: one call of a command, and the exit code of what went wrong in it."""

import os
import sys

from lmkit.cli.app import app
from lmkit.errors import INTERRUPTED, UserError

# isort: off
from lmkit.cli import train, use, kb, look  # noqa: F401 - they add their commands to `app`, in the order of --help
# isort: on


def main() -> None:
    try:
        app()
    except UserError as e:
        print(f"lmkit: {e}", file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    except KeyboardInterrupt:
        print("\nlmkit: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
