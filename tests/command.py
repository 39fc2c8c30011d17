"""The command in the process of the tests: torch is loaded once."""

import io
import shlex
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmkit.commands import main as cli


def lmkit(command: str, code: int = 0, folder: Path = Path()) -> SimpleNamespace:
    """Runs `lmkit COMMAND` in a folder, and returns its stdout and stderr after checking its exit code."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), chdir(folder):
        patch.setattr(sys, "argv", ["lmkit", *shlex.split(command)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert (ended.value.code or 0) == code, f"{command}\n{out.getvalue()}\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())
