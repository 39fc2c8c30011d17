"""Work without a measure says that it goes on, and ends without a trace if it was short."""

import time

import pytest

from lmkit.base import display


def test_long_work_says_that_it_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(display, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(display, "PLAIN_INTERVAL", 0.05)
    with display.waiting("training the baselines"):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1 and all("training the baselines: " in line and line.endswith(" s") for line in lines)
    with display.waiting("scoring"):
        pass
    with pytest.raises(ZeroDivisionError), display.waiting("dividing"):
        1 / 0  # noqa: B018
    assert capsys.readouterr().err == ""
