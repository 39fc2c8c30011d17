"""Worlds of two and of four processes on this machine, each started once for all the jobs that tests want of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat.",
    "and",
    "saw",
    "one",
    "red",
    "bird!",
    "fly",
    "over",
    "an",
    "old",
    "hill.",
]


def write_texts() -> None:
    """What the recipes read, into the working directory: documents, pairs of lines, labelled rows."""
    documents = [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(5 + i % 9)) for i in range(120)]
    Path("corpus.txt").write_text("\n".join(documents))
    Path("pairs.en").write_text("\n".join(documents))
    Path("pairs.up").write_text("\n".join(d.upper() for d in documents))
    rows = [{"text": d, "label": "cat" if "cat" in d else "none"} for d in documents]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def environment(size: int, rank: int = 0, port: int = 0) -> dict[str, str]:
    return os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def run_world(size: int, jobs: list[dict]) -> None:
    """Do the jobs in `size` processes, in the working directory. Each leaves its exit code in OUT.ended."""
    Path(f"jobs-{size}.json").write_text(json.dumps(jobs))
    port = free_port()
    command = [sys.executable, "-m", "tests.distributed.ranks", f"jobs-{size}.json"]
    ranks = [
        subprocess.Popen(command, env=environment(size, r, port), stdout=log, stderr=subprocess.STDOUT)
        for r in range(size)
        for log in [open(f"log-{size}-{r}.txt", "w")]  # noqa: SIM115 - the process's from here on
    ]
    try:
        codes = [p.wait(timeout=900) for p in ranks]
    finally:
        for p in ranks:
            p.kill()
    said = "".join(Path(f"log-{size}-{r}.txt").read_text()[-3000:] for r in range(size))
    assert codes == [0] * size, said


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The working directory of all these tests."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMKIT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        write_texts()
    return folder


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.setenv("LMKIT_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    return folder
