"""The command that checks a GPU works, on whatever device there is."""

import json
import math
import subprocess
import sys
from pathlib import Path

from tests.model.families import CASES

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "gpu_check.py"
TIMED = ("generation, batch 1", "generation, batch 32", "training speed, toy")
OTHERS = (
    "exact resume, compile off", "fp16 with a loss scaler", "fsdp, one process of torchrun",
    "fsdp and tensor, mesh of one", "out of memory", "compile on and off",
)  # fmt: skip


def test_every_check_has_a_row_and_none_fails(tmp_path):
    command = [sys.executable, str(SCRIPT), "--toy", "--out", str(tmp_path / "rows.json")]
    got = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert got.returncode == 0, got.stdout + got.stderr
    rows = {row["check"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert all(row["verdict"] == "ok" or row["verdict"].startswith("skipped: ") for row in rows.values())
    assert all(rows[f"parity {name}"]["verdict"] == "ok" for name in CASES)
    assert {*OTHERS, *TIMED} <= rows.keys()
    assert any("two processes" in name for name in rows) and any("memory beside the plan" in name for name in rows)
    for name in TIMED:
        figures = rows[name]["figures"]
        assert figures["tokens_per_second"] > 1 and 0.01 < figures["ratio"] < 100
    for row in rows.values():
        assert row["check"] in got.stdout and all(math.isfinite(value) for value in row["figures"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
