"""Kills, stops, damage, full disks: what the promises of docs/reliability.md rest on, measured.

    python benchmarks/faults.py [kills stops signals damage stores numbers disk budgets saving] [--kills 200] [--seed 0]

Runs are tiny (two layers of width 16, dropout on) and each start of one is a process of its own, forked from this one,
which has loaded torch and computed nothing; a few are real `lmkit` commands. All that is compared is compared byte for
byte with the run that nothing happened to. `make faults` does all parts, in about 20 minutes on one core.
"""

import argparse
import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import torch
from fault_kinds import budgets, stores
from fault_runs import (
    PHASES,
    STEPS,
    TASKS,
    WEIGHTS,
    at,
    damaged,
    differs,
    ended,
    forked,
    newest_step,
    prepare,
    same_bytes,
    train,
    watched,
    whole_run,
)  # fmt: skip
from safetensors.torch import load_file

from lmkit.base.errors import STOPPED_RESUMABLE
from lmkit.base.manifest import MANIFEST, damage
from lmkit.base.runs import Run, read_jsonl
from lmkit.objectives.causal_lm import CausalLM
from lmkit.recipe.recipe_file import find_recipe
from lmkit.training import pretraining_run, step
from lmkit.training.saving import Saver


def say(what: str, figure: str) -> None:
    """A row of the table that comes out."""
    print(f"| {what} | {figure} |", flush=True)


# ---------------------------------------------------------------- kill -9


def kill_at(pid: int, phase: mmap.mmap, aim: str | None, wait: float) -> str | None:
    """Kill after `wait` seconds, counted from when it does `aim` if that is given. Returns what it did; None where it
    had ended by itself."""
    byte = 1 if aim in ("saving", "linking") else 0
    while aim is not None and phase[byte] != PHASES.index(aim):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return None
        time.sleep(0.0001)
    until = time.monotonic() + wait
    while (left := until - time.monotonic()) > 0:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return None
        time.sleep(min(left, 0.0005))
    doing = PHASES[phase[1] or phase[0]]
    os.kill(pid, signal.SIGKILL)
    return doing


def kills(folder: Path, number: int, rng: random.Random) -> None:
    """In a row: a run is started, killed, resumed, killed again, until it is done; then the next one. Aimed at moments
    that are short, or not at all."""
    phases: Counter[str] = Counter()
    corrupt = lost = runs = unequal = halves = 0
    combinations = [(task, mode) for task in TASKS for mode in ("false", "true")]
    for i, (task, mode) in enumerate(combinations):
        straight, settings = folder / f"straight-{task}-{mode}", (f"checkpoint.async={mode}",)
        began = time.monotonic()
        assert whole_run(straight, task, settings) == 0
        usual, done, n = time.monotonic() - began, 0, 0
        out = folder / f"killed-{task}-{mode}-0"
        wanted = (number + len(combinations) - 1 - i) // len(combinations)
        while done < wanted:
            phase = mmap.mmap(-1, 2)

            def work(out: Path = out, task: str = task, settings: Any = settings, phase: Any = phase) -> int:
                watched(phase)
                return train(out, task, settings)

            newest = newest_step(out)
            pid = forked(work, out.with_name(out.name + ".log"))
            aim = rng.choice((None, None, None, "tokenizing", "evaluation", "saving", "saving", "linking"))
            within = {None: 0.8 * usual, "linking": 0.0002}.get(aim, 0.01)
            doing = kill_at(pid, phase, aim, rng.uniform(0, within))
            code = ended(pid)
            resumed = [e["step"] for e in read_jsonl(out / "events.jsonl") if e["event"] == "resume"]
            if phase[0] >= PHASES.index("step") and newest is not None and resumed:
                lost += newest - resumed[-1]
            if code == -signal.SIGKILL:
                done += 1
                phases[str(doing)] += 1
                for checkpoint in (out / "checkpoints").glob("step-*"):
                    halves += checkpoint.suffix in (".part", ".old")
                    corrupt += not checkpoint.suffix and damage(checkpoint) is not None
                continue
            assert code == 0, (code, out.with_name(out.name + ".log").read_text()[-2000:])
            runs, unequal = runs + 1, unequal + bool(differs(straight, out))
            n += 1
            out = folder / f"killed-{task}-{mode}-{n}"
        if out.exists():
            assert whole_run(out, task, settings) == 0
            runs, unequal = runs + 1, unequal + bool(differs(straight, out))
    total = sum(phases.values())
    say("kill -9 survived, {causal, masked, span corruption} x {saving, saving beside training}", f"{total}/{total}")
    say("of them while " + ", ".join(f"{k} {v}" for k, v in sorted(phases.items())), "")
    say(
        "checkpoints under their name that are not whole (half-written ones beside them: removed)",
        f"{corrupt} ({halves})",
    )
    say("steps lost beyond the newest checkpoint", str(lost))
    say("runs whose weights, moments, metrics.jsonl or links differ from the uninterrupted run", f"{unequal}/{runs}")


def real_kills(folder: Path, number: int, rng: random.Random) -> None:
    """The installed command, its imports included, killed from outside."""
    straight, out, settings = (
        folder / "straight-causal_lm-false",
        folder / "killed-command",
        ("checkpoint.async=false",),
    )
    if not straight.exists():
        assert whole_run(straight, "causal_lm", settings) == 0
    os.environ["LMKIT_CACHE"] = str(folder / "command-cache")
    for i in range(number + 1):
        resume = (out / "recipe.yaml").exists()
        args = ["--resume", str(out)] if resume else ["causal_lm.yaml", *settings, "--out", str(out)]
        command = [sys.executable, "-m", "lmkit", "pretrain", *args]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        log, rows = out / "metrics.jsonl", rng.randrange((i + 1) * 6)
        while i < number and process.poll() is None and not (log.exists() and log.read_text().count("\n") > rows):
            time.sleep(0.002)
        if i < number:
            process.kill()
        process.wait()
    assert process.returncode == 0
    say(f"the same of {number} kills of `lmkit pretrain` itself: files that differ", str(len(differs(straight, out))))


# ---------------------------------------------------------------- stops


def stops(folder: Path) -> None:
    """A stop after every step of 40, each resumed from the one before."""
    count, apart = 0, 0
    for task in TASKS:
        context = int(TASKS[task].rpartition(" ")[2])
        for parts in (1, 4):
            keep = (f"train.micro_batch={8 * context // parts}", "checkpoint.every=1", f"checkpoint.keep={STEPS}")
            straight, out = folder / f"steps-{task}-{parts}", folder / f"stopped-{task}-{parts}"
            assert whole_run(straight, task, keep) == 0
            ask = lambda: at(step, "train_step", lambda n: os.kill(os.getpid(), signal.SIGTERM))
            for k in range(1, STEPS + 1):
                code = whole_run(out, task, keep, before=ask)
                assert code == (STOPPED_RESUMABLE if k < STEPS else 0), (task, parts, k, code)
                count += 1
                names = [f"checkpoints/step-{k:08d}/{name}" for name in WEIGHTS]
                apart += any(not same_bytes(straight / n, out / n) for n in names)
            apart += bool(differs(straight, out))
    say("stops, one after each of 40 steps x {causal, masked, span corruption} x {1, 4 micro-batches}", str(count))
    say("checkpoints whose weights or moments differ from the uninterrupted run's", str(apart))


def signals(folder: Path, rng: random.Random, cycles: int = 20) -> None:
    straight = folder / "straight-signal"
    assert whole_run(straight, "causal_lm", ("checkpoint.async=false",)) == 0
    stopped, lost, out, n, unequal = 0, 0, folder / "signal-0", 0, 0
    longest = 0.0
    while stopped < cycles:
        phase = mmap.mmap(-1, 2)

        def work(out: Path = out, phase: Any = phase) -> int:
            watched(phase)
            return train(out, "causal_lm", ("checkpoint.async=false",))

        pid = forked(work, out.with_name(out.name + ".log"))
        while phase[0] < PHASES.index("step"):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)))
        began = time.monotonic()
        code = ended(pid)
        if code == STOPPED_RESUMABLE:
            stopped, longest = stopped + 1, max(longest, time.monotonic() - began)
            trained = sum(1 for _ in read_jsonl(out / "metrics.jsonl"))
            lost += trained - (newest_step(out) or 0)
        else:
            assert code == 0, (out, code)
            unequal, n = unequal + bool(differs(straight, out)), n + 1
            out = folder / f"signal-{n}"
    assert whole_run(out, "causal_lm", ("checkpoint.async=false",)) == 0
    unequal += bool(differs(straight, out))
    say("SIGTERM, SIGINT, SIGUSR1, SIGHUP -> saved, exit 75 -> resumed: cycles", f"{stopped}")
    say("steps lost; runs that differ; longest from signal to exit", f"{lost}; {unequal}/{n + 1}; {longest:.2f} s")


# ---------------------------------------------------------------- damage


def damages(folder: Path, rng: random.Random) -> None:
    path = folder / "damage"
    assert whole_run(path, "causal_lm", ("model.hidden_size=64",)) == 0
    run = Run(path)
    *_, before, newest = run.steps()
    files = [newest / name for name in json.loads((newest / MANIFEST).read_text())["files"]] + [newest / MANIFEST]
    for how, wanted in (("bit flips", 200), ("truncations", 100), ("zeroed pages", 50)):
        found = tried = 0
        while tried < wanted:
            # half of them anywhere in the checkpoint, half in a file that is as likely as any other
            sizes = [f.stat().st_size for f in files] if tried % 2 else None
            (file,) = rng.choices(files, sizes)
            with damaged(file, how, rng) as changed:
                if not changed:
                    continue
                tried += 1
                chosen = run.newest_whole(lambda _: None)
                found += chosen == before
                if (aside := newest.with_suffix(".damaged")).exists():
                    aside.rename(newest)
        say(f"{how} in a checkpoint: noticed, and the one before taken", f"{found}/{wanted}")
    run.close()


# ---------------------------------------------------------------- numbers, disks


def numbers(folder: Path, rng: random.Random) -> None:
    """A loss that is NaN in one micro-batch of step k: neither weights nor moments move, and all that is saved is
    finite."""
    moved = finite = 0
    tried = sorted(rng.sample(range(2, STEPS), 10))
    for k in tried:
        out = folder / f"nan-{k}"

        def spoil(k: int = k) -> None:
            real, seen = CausalLM.loss, [0]

            def loss(self: Any, model: Any, batch: Any) -> Any:
                result = real(self, model, batch)
                seen[0] += model.training
                if model.training and (seen[0] + 3) // 4 == k and seen[0] % 4 == 2:
                    result.sums["tokens"] = result.sums["tokens"] * float("nan")
                return result

            CausalLM.loss = loss  # type: ignore[method-assign]

        keep = ("checkpoint.every=1", f"checkpoint.keep={STEPS}", "train.micro_batch=32")
        assert whole_run(out, "causal_lm", keep, before=spoil) == 0
        rows = {r["step"]: r for r in read_jsonl(out / "metrics.jsonl")}
        assert [s for s, r in rows.items() if "skipped" in r] == [k]
        a, b = (out / f"checkpoints/step-{s:08d}" for s in (k - 1, k))
        moved += any(not same_bytes(a / name, b / name) for name in WEIGHTS)
        last = [load_file(out / "latest" / name) for name in WEIGHTS]
        finite += all(bool(torch.isfinite(t).all()) for tensors in last for t in tensors.values())
    say(f"NaN in one micro-batch of step k, {len(tried)} values of k: weights or moments that moved", f"{moved}")
    say("runs that ended with finite weights and moments", f"{finite}/{len(tried)}")


def disk(folder: Path) -> None:
    """A file system of 1.5 MB that fills up and is freed again."""
    place, straight = folder / "small", folder / "straight-disk"
    settings = ("checkpoint.keep=2", "checkpoint.async=false")
    assert whole_run(straight, "causal_lm", settings) == 0
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(place)], capture_output=True
    ).returncode:
        say("a full disk: not tried, for it takes the right to mount a file system", "-")
        return

    def fill(left: int) -> None:
        (place / "ballast").unlink(missing_ok=True)
        room = os.statvfs(place)
        with contextlib.suppress(OSError), (place / "ballast").open("wb") as f:
            f.write(bytes(max(0, room.f_bavail * room.f_frsize - left)))

    def between(left: int, until: int) -> None:
        """Full from step 12; two checkpoints are due up to step 19."""
        at(
            step,
            "train_step",
            lambda n: fill(left) if n == 12 else (place / "ballast").unlink() if n == until else None,
        )

    try:
        out = place / "run"
        os.symlink(folder / "disk-cache", place / "run-cache")  # tokens lie elsewhere
        (folder / "disk-cache").mkdir()
        code = ended(forked(lambda: (between(60_000, 19), train(out, "causal_lm", settings))[1], folder / "disk.log"))
        missed = sum(e["event"] == "not saved" for e in read_jsonl(out / "events.jsonl"))
        whole = all(damage(c) is None for c in (out / "checkpoints").iterdir())
        apart = len(differs(straight, out))
        say(
            "a disk full while two checkpoints are due: exit code; saves missed; files that differ at the end",
            f"{code}; {missed}; {apart}",
        )
        say("checkpoints whole", "all" if whole else "NOT ALL")
        shutil.rmtree(out)
        (place / "ballast").unlink(missing_ok=True)
        code = ended(forked(lambda: (between(0, 99), train(out, "causal_lm", settings))[1], folder / "disk.log"))
        (place / "ballast").unlink(missing_ok=True)
        again = ended(forked(lambda: train(out, "causal_lm", settings), folder / "disk.log"))
        say(
            "no byte left at all: exit code; resumed with room again; files that differ",
            f"{code}; {again}; {len(differs(straight, out))}",
        )
    finally:
        subprocess.run(["umount", str(place)], check=True)


# ---------------------------------------------------------------- what saving costs


def timed(name: str, function: Callable[..., Any], log: IO[str]) -> Callable[..., Any]:
    """Notes the time and the CPU time of this thread that every call takes."""

    def wrapped(*args: Any) -> Any:
        began, cpu = time.monotonic(), time.thread_time()
        result = function(*args)
        print(name, time.monotonic() - began, time.thread_time() - cpu, file=log)
        return result

    return wrapped


def saving(folder: Path, pairs: int, every: int) -> None:
    """The demo's model trains; of every two intervals of `every` steps one begins with a save, in turns the first and
    the second. Beside the ratios of neighbours, which scatter on a machine that does other things too: what one save
    takes of the thread that trains (with checkpoint.async a copy), and of the one that writes."""
    os.environ["LMKIT_CACHE"] = str(folder / "demo-cache")
    for kind in ("true", "false"):
        marks = folder / f"marks-{kind}"

        def work(kind: str = kind, marks: Path = marks) -> int:
            log, costs = marks.open("w", buffering=1), marks.with_suffix(".costs").open("w", buffering=1)
            real, write = timed("save", Saver.save, costs), timed("write", Saver._write, costs)

            def save(saver: Saver, best: bool, last: bool) -> None:
                saver.finish(last=False)  # no save reaches into the next interval
                print(time.monotonic(), time.process_time(), time.thread_time(), file=log)
                if saver.job.state.step // every % 4 in (0, 1) or last:  # of intervals 1 2 | 3 4 | 5 6: 1, 4, 5, ...
                    real(saver, best, last)

            Saver.save, Saver._write = save, write  # type: ignore[method-assign]
            steps = every * (2 * pairs + 2)  # the last interval holds the end of the run
            more = (f"train.budget={steps} steps", "evaluate.every=0", f"checkpoint.every={every}")
            changes = (*more, f"checkpoint.async={kind}")
            return pretraining_run.start(find_recipe("demo", "pretrain"), changes, folder / kind)

        assert ended(forked(work, folder / "saving.log")) == 0, (folder / "saving.log").read_text()[-2000:]
        times = [[float(n) for n in line.split()] for line in marks.read_text().splitlines()]
        took = [[b - a for a, b in zip(*two, strict=True)] for two in pairwise(times)]
        ratios = []
        for i in range(pairs):
            first, second = took[2 * i : 2 * i + 2]
            with_save, without = (first, second) if i % 2 == 0 else (second, first)
            ratios.append([a / b - 1 for a, b in zip(with_save, without, strict=True)])
        a_step = statistics.median(t[0] for t in took) / every
        label = f"checkpoint.async={kind}, a save every {every} steps = {every * a_step:.1f} s of the demo's model"
        for which, clock in enumerate(("time", "CPU time of all threads", "CPU time of the thread that trains")):
            column = sorted(r[which] for r in ratios)
            spread = ", ".join(f"{r:+.1%}" for r in column)
            say(f"{label}: {clock} added, median of {pairs} ({spread})", f"{statistics.median(column):+.1%}")
        costs = [line.split() for line in marks.with_suffix(".costs").read_text().splitlines()][
            :-2
        ]  # the last is waited for
        for part in ("save", "write"):
            spent = [statistics.median(float(c[i]) for c in costs if c[0] == part) * 1000 for i in (1, 2)]
            what = {"save": "a save holds up the thread that trains", "write": "the writing of one takes"}[part]
            cpu = statistics.median(t[2] for t in took) * 1000
            say(f"checkpoint.async={kind}: {what}: time; CPU time; of the CPU time of {every} steps",
                f"{spent[0]:.0f} ms; {spent[1]:.0f} ms; {spent[1] / cpu:.2%}")  # fmt: skip
    say("load of the machine, on its cores", f"{os.getloadavg()[0]:.1f}, on {os.cpu_count()}")


PARTS = ("kills", "stops", "signals", "damage", "stores", "numbers", "disk", "budgets", "saving")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="part", help="default: all")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=5, help="of the comparison of saving")
    parser.add_argument("--every", type=int, default=10, help="steps between saves, there")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    rng, began = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.chdir(folder)
        prepare(folder)
        parts: dict[str, Callable[[], None]] = {
            "kills": lambda: (kills(folder, args.kills, rng), real_kills(folder, 4, rng))[1],
            "stops": lambda: stops(folder),
            "signals": lambda: signals(folder, rng),
            "damage": lambda: damages(folder, rng),
            "stores": lambda: stores(folder, rng, say),
            "numbers": lambda: numbers(folder, rng),
            "budgets": lambda: budgets(folder, say),
            "disk": lambda: disk(folder),
            "saving": lambda: saving(folder, args.pairs, args.every),
        }
        print(f"python benchmarks/faults.py {' '.join(sys.argv[1:])}\n\n| what | measured |\n|---|---|")
        for part in args.parts:
            parts[part]()
    print(f"\n{time.monotonic() - began:.0f} s, torch {torch.__version__}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
