"""How much of lmkit's speed is left beside busy processes, by how its threads wait for each other.

    python benchmarks/neighbours.py [--steps 24]

The demo's model trains for a few steps alone and beside one and two processes that are always busy, with each way of
waiting in turn. Seconds are the median of its steps, and their mean, which shows stalls.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

WAYS = {
    "as lmkit starts torch": {},
    "as torch itself waits": {"GOMP_SPINCOUNT": "300000"},
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
SHORT = ("schedule.warmup=2", "evaluate.every=0", "evaluate.tokens=2048", "evaluate.sample=null", "checkpoint.every=0")


def seconds(way: dict[str, str], steps: int, scratch: Path) -> list[float]:
    """Of each step but the first three."""
    given = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    out = Path(tempfile.mkdtemp(dir=scratch))
    command = (sys.executable, "-m", "lmkit", "pretrain", "demo", f"train.budget={steps} steps", *SHORT, "--out", out)
    subprocess.run(command, env=given | {"LMKIT_CACHE": str(scratch)} | way, check=True, capture_output=True)
    return [json.loads(line)["seconds"] for line in (out / "timing.jsonl").read_text().splitlines()][3:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        seconds({}, 4, Path(folder))  # tokens into the cache
        for number in (0, 1, 2):
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
            try:
                for name, way in WAYS.items():
                    took = seconds(way, steps, Path(folder))
                    print(f"{number} busy, {name}: median {median(took):.3f} s, mean {mean(took):.3f} s", flush=True)
            finally:
                for process in busy:
                    process.kill()


if __name__ == "__main__":
    main()
