"""The real command in this process: what a person would type, and what they would see. And a run that nothing happened
to, for others to be compared with."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from lmkit.commands.main import main
from lmkit.training.signals import ASKING
from tests.training.conftest import tiny, write_tiny  # noqa: F401 - a fixture


class Shown(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def lmkit_(monkeypatch, capfd) -> Callable[..., Shown]:
    """`lmkit_("generate", folder, "a")`. Anything but an error meant for people is raised."""

    def run(*args: object) -> Shown:
        monkeypatch.setattr(sys, "argv", ["lmkit", *map(str, args)])
        capfd.readouterr()
        handlers = {s: signal.getsignal(s) for s in ASKING}
        with pytest.raises(SystemExit) as ended:
            main()
        for s, handler in handlers.items():
            signal.signal(s, handler)
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        return Shown(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def straight(tmp_path_factory) -> Path:
    """A finished run by the recipe of `tiny`."""
    from lmkit.training import pretraining_run

    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMKIT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert pretraining_run.start(write_tiny(folder), (), Path("run")) == 0
    return folder / "run"
