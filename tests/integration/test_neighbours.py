"""How the threads of a process share a machine, told by GNU's OpenMP itself as it starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmkit.base.environment import usable_cores
from lmkit.training.distributed import launch


def openmp(**given: str) -> dict[str, str]:
    """The settings with which `lmkit doctor` runs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    env = kept | {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(Path(__file__).parents[2])} | given
    shown = subprocess.run([sys.executable, "-m", "lmkit", "doctor", "--json"], env=env, capture_output=True, text=True)
    return dict(re.findall(r"(\w+) = '(.*)'", shown.stderr))


def test_threads_wait_without_burning_the_time_of_neighbours_unless_told_otherwise():
    settings = openmp()
    assert settings["GOMP_SPINCOUNT"] == str(launch.SPINS) and settings["OMP_NUM_THREADS"] == str(usable_cores())
    assert openmp(GOMP_SPINCOUNT="7", OMP_NUM_THREADS="1")["GOMP_SPINCOUNT"] == "7"
    assert openmp(OMP_WAIT_POLICY="ACTIVE")["GOMP_SPINCOUNT"] != str(launch.SPINS)


@pytest.mark.parametrize(
    ("given", "cores", "processes", "threads"),
    [(None, 3, 1, "3"), (None, 3, 2, "1"), (None, 8, 2, "4"), (None, 1, 4, "1"), ("5", 3, 1, None), ("5", 3, 2, None)],
)
def test_threads_fit_the_container_and_the_processes(given, cores, processes, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "GIVEN_THREADS", given)
    monkeypatch.setattr(launch, "usable_cores", lambda: cores)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    launch.share_cores(1)
    launch.share_cores(processes)
    assert os.environ.get("OMP_NUM_THREADS") == threads
