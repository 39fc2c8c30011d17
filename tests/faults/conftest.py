"""The real command in this process: what a person would type, and what they would see."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from lmkit.cli.main import main


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
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        return Shown(int(ended.value.code or 0), out, err)

    return run
