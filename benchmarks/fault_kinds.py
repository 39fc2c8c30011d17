"""Parts of faults.py beside the life of a checkpoint: damaged tokens, and time budgets beside busy processes."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fault_runs import damaged, whole_run

from lmkit.base.errors import UserError
from lmkit.base.runs import read_jsonl
from lmkit.data.tokens.store import TokenStore

Say = Callable[[str, str], None]


def stores(folder: Path, rng: random.Random, say: Say) -> None:
    """Damage to any file of a token store that a run reads: it says so before it learns from it."""
    assert whole_run(folder / "tokens", "causal_lm") == 0
    (store,) = (p.parent for p in (folder / "tokens-cache").rglob("manifest.json"))
    unread = ("card.txt", "plan.json")  # for people, and for making it anew
    files = [p for p in sorted(store.rglob("*")) if p.is_file() and p.stat().st_size and p.name not in unread]
    for how, wanted in (("bit flips", 100), ("truncations", 50)):
        noticed = tried = 0
        while tried < wanted:
            with damaged(rng.choice(files), how, rng) as changed:
                tried += changed
                noticed += changed and not is_whole(store)
        say(f"{how} in a token store: noticed where a run starts", f"{noticed}/{wanted}")
    assert is_whole(store)


def is_whole(store: Path) -> bool:
    try:
        TokenStore(store).verify()
    except UserError:
        return False
    return True


def budgets(folder: Path, say: Say) -> None:
    """20 seconds, alone and beside two busy processes."""
    for number in (0, 2):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
        out, began = folder / f"budget-{number}", time.monotonic()
        try:
            assert whole_run(out, "causal_lm", ("train.budget=20 s", "evaluate.every=5%", "checkpoint.every=5%")) == 0
        finally:
            for process in busy:
                process.kill()
        took, rates = time.monotonic() - began, [row["lr"] for row in read_jsonl(out / "metrics.jsonl")]
        figure = f"{took:.1f} s in all, {len(rates):,} steps, last rate {rates[-1] / max(rates):.1%} of the peak"
        say(f"a budget of 20 s beside {number} busy processes", figure)
