"""All that only a GPU can show, in one command and one table: whether lmkit computes the same there, and how fast.

    python benchmarks/gpu_check.py [--out FILE.json]     # under 9 minutes on one H100 or H200; needs no network
    python benchmarks/gpu_check.py --toy                 # the same checks, tiny, on whatever device there is

Every row says what was checked, what came out, and `ok`, `FAILED` or `skipped: why`. A check that raises is a FAILED
row; the others go on. The exit code is 1 where a row FAILED. Runs of lmkit are its own command in processes of their
own, and their losses, seconds and memory are read from what they leave. Checks that time nothing share the GPU; those
that do come after them, one at a time.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from gpu_runs import ROOT, SIZES, TOY, Machine, NoTime, Ran, median_step
from rich.console import Console
from rich.table import Table

from lmkit.plan.cost import model_flops
from lmkit.plan.memory import activation_bytes

FP32, BF16 = 1e-5, 4.0  # parity: of the largest logit; times what bf16 changes in transformers itself
SAME_BF16, SAME_FP32 = 1e-2, 1e-5  # how far apart losses of runs that compute the same may be, of their size
PLANNED = (0.5, 1.25)  # measured memory, as a share of what `lmkit plan` says


@dataclass(frozen=True)
class Row:
    check: str
    result: str
    verdict: str = "ok"
    figures: dict[str, float] = field(default_factory=dict)


Check = Callable[[Machine], Iterator[Row]]


def largest_gap(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two curves of losses, as a share of the second."""
    return max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))


def tolerance(m: Machine) -> float:
    """For losses of the same training: precision is auto, so bf16 on a GPU."""
    return SAME_BF16 if m.gpu else SAME_FP32


def judged(good: bool) -> str:
    return "ok" if good else "FAILED"


# ---------------------------------------------------------------- checks that time nothing


def parity(m: Machine) -> Iterator[Row]:
    """Logits of every family beside transformers. In bf16 two right results differ by their rounding, which depends on
    the weights: the measure is how far bf16 moves transformers' own logits from its float32 ones."""
    for name, gaps in m.part("parity").items():
        if isinstance(gaps, str):
            yield Row(f"parity {name}", gaps, "FAILED")
            continue
        limit = BF16 * gaps["rounding"]
        good = gaps["fp32"] <= FP32 and gaps["bf16"] <= limit
        result = f"fp32 {gaps['fp32']:.1e} (at most {FP32:.0e}), bf16 {gaps['bf16']:.1e} (at most {limit:.1e})"
        yield Row(f"parity {name}", f"{result} of the largest logit", judged(good), gaps)


def resume(m: Machine) -> Iterator[Row]:
    """With dropout, whose random numbers the GPU draws."""
    for compiled in ("off", "on") if m.gpu else ("off",):
        changes = ("model.dropout=0.1", f"train.compile={compiled}")
        recipe = str(m.recipes[m.size("small")])
        got = m.call("-m", "lmkit", "doctor", "--resume", recipe, *changes, "--steps", "4", "--json")
        check = f"exact resume, compile {compiled}"
        if not got.stdout.strip():  # one of the runs could not be made
            yield Row(check, f"code {got.returncode}: {' '.join(got.stderr.split())[-400:]}", "FAILED")
            continue
        proof = json.loads(got.stdout.splitlines()[-1])
        unequal = [f"{c['what']}: {c['detail']}" for c in proof["compared"] if not c["equal"]]
        result = f"killed in step {proof['killed_in']}, {len(proof['compared'])} kinds of files equal byte for byte"
        if unequal:
            why = "resuming changes the run" if proof["deterministic"] else "two straight runs differ as well"
            result = f"{why}: {'; '.join(unequal)[:300]}"
        yield Row(check, result, judged(proof["exact"] and got.returncode == 0))


def half_precision(m: Machine) -> Iterator[Row]:
    """A step whose gradient overflows under the loss scale is skipped, and the scale halved."""
    if not m.gpu:
        yield Row("fp16 with a loss scaler", "", "skipped: fp16 needs a GPU")
        return
    ran = m.pretrain(m.size("small"), "train.precision=fp16", "train.compile=off")
    losses, few = ran.losses, max(1, len(ran.losses) // 5)
    skipped = sum(row.get("skipped") == "loss scale" for row in ran.rows("metrics.jsonl"))
    first, last = fmean(losses[:few]), fmean(losses[-few:])
    result = f"loss {first:.3f} -> {last:.3f} in {len(losses)} steps, {skipped} skipped for the scale"
    yield Row("fp16 with a loss scaler", result, judged(last < first), {"skipped": skipped})


def one_process(m: Machine) -> Iterator[Row]:
    """What of the code for several processes one GPU can run, by its losses beside a plain run's."""
    size, changes = m.size("small"), ["train.compile=off", "parallel.data=fsdp"]
    for check, mesh, covered in (
        ("fsdp, one process of torchrun", False, "covers torchrun's variables; lmkit shards nothing for one process"),
        ("fsdp and tensor, mesh of one", True, "covers their code, optimizer and checkpoint; no communication"),
    ):
        out = m.scratch / f"torchrun-{mesh}"
        code = m.part("train_as_torchrun_does", str(m.recipes[size]), str(out), changes, mesh)
        yield beside_plain(check, Ran(out, code, ""), m.pretrain(size, changes[0]), tolerance(m), covered)


def two_processes(m: Machine) -> Iterator[Row]:
    """NCCL takes one process a GPU, so two of them communicate by gloo on the CPU; on one GPU lmkit is to end with a
    message and not to hang."""
    changes = ("train.compile=off", "train.device=cpu")
    layouts = [("parallel.data=fsdp",), ("parallel.tensor=2",)]
    for layout in [sum(layouts, ())] if m.toy else layouts:
        two = m.pretrain(TOY, *changes, *layout, processes=2)
        plain = m.pretrain(TOY, *(changes if m.gpu else changes[:1]))  # on a CPU there is such a run already
        check = " and ".join(key.removeprefix("parallel.") for key in layout) + ", two processes"
        yield beside_plain(check, two, plain, SAME_FP32, "covers communication by gloo, nothing of a GPU")
    if m.gpu:
        two = m.pretrain(m.size("small"), changes[0], "parallel.data=fsdp", processes=2)
        if torch.cuda.device_count() > 1:
            plain = m.pretrain(m.size("small"), changes[0])
            yield beside_plain("fsdp, two GPUs", two, plain, tolerance(m), "covers NCCL between two GPUs")
            return
        result = f"ended with code {two.code}: {' '.join(two.messages.split())[-200:]}"
        yield Row("fsdp, two processes on one GPU", result, "skipped: NCCL takes one process a GPU")


def beside_plain(check: str, ran: Ran, plain: Ran, limit: float, covered: str) -> Row:
    gap = largest_gap(ran.losses, plain.losses)
    result = f"{ran.place}: losses of {len(ran.losses)} steps within {gap:.0e} of a plain run's (at most {limit:.0e})"
    return Row(check, f"{result}; {covered}", judged(gap <= limit), {"gap": gap})


# ---------------------------------------------------------------- checks that need the GPU for themselves


def out_of_memory(m: Machine) -> Iterator[Row]:
    """A micro-batch that needs twice the free memory, by the formula of `lmkit plan` for its activations alone."""
    if not m.gpu:
        yield Row("out of memory", "", "skipped: a CPU's memory is not tried")
        return
    size = SIZES["124M"]
    free, _ = torch.cuda.mem_get_info()
    each = activation_bytes(m.planned(size).model, 2)
    batch = size.context * math.ceil(2 * free / each / size.context)
    changes = (f"train.batch={batch}", f"train.micro_batch={batch}", "train.budget=2 steps", "train.compile=off")
    ran = m.pretrain(size, *changes)
    told = [line for line in ran.messages.splitlines() if line.startswith("out of memory at step")]
    good = ran.code == 0 and bool(told) and len(ran.losses) == 2  # steps, both finite
    said = " / ".join(told) or " ".join(ran.messages.split())[-300:]
    yield Row("out of memory", f"code {ran.code}; asked for {batch:,} tokens at once; {said}", judged(good))


def compiled(m: Machine) -> Iterator[Row]:
    """The same short run both ways, by the median of its steps."""
    if not m.gpu:
        yield Row("compile on and off", "", "skipped: on a CPU the compiler takes longer than all of this")
        return
    on, off = (m.timed_run("124M", compiled=way) for way in (True, False))
    gap = largest_gap(on.losses, off.losses)
    took = [ran.step_seconds() for ran in (on, off)]
    ratio = took[1] / took[0]
    result = f"losses within {gap:.1e} (at most {tolerance(m):.0e}); a step {took[0]:.4f} s on, {took[1]:.4f} s off"
    figures = {"gap": gap, "ratio": ratio}
    yield Row("compile on and off", f"{result}: {ratio:.2f}x as fast", judged(gap <= tolerance(m)), figures)


def generation(m: Machine) -> Iterator[Row]:
    """Greedy, float32 (which is how lmkit writes), with the weights of a training run. Where two tokens' logits are all
    but equal, rounding may choose either; a row may differ from such a place on."""
    folder = m.timed_run("124M", compiled=m.gpu).folder / "latest"
    prompt, new = (16, 8) if m.toy else (32, 128)
    for got in m.part("write_beside_transformers", str(folder), [1, 32], prompt, new):
        ratio = got["theirs"] / got["ours"]
        speed = [got["batch"] * new / got[who] for who in ("ours", "theirs")]
        result = f"lmkit {speed[0]:,.0f} tokens/s, transformers {speed[1]:,.0f}: {ratio:.2f}x; the same tokens in"
        result += f" {got['equal']} of {got['batch']} rows, {got['near_ties']} differ from a near tie on"
        good = got["equal"] + got["near_ties"] == got["batch"]
        figures = {"ratio": ratio, "tokens_per_second": speed[0], "equal": got["equal"]}
        yield Row(f"generation, batch {got['batch']}", result, judged(good), figures)


def speed(m: Machine) -> Iterator[Row]:
    """The median step of a run of lmkit, reading its text included, beside that of a plain loop of transformers."""
    hardware = m.hardware()
    for name in ("124M",) if m.toy else ("124M", "350M"):
        size, tokens = m.size(name), m.size(name).rows * m.size(name).context
        seconds = m.timed_run(name, compiled=m.gpu).step_seconds()
        beside = median_step(m.part("train_transformers", size._asdict(), m.gpu))
        flops = tokens * model_flops(m.planned(size).model, size.context)
        mfu = {who: flops / took / hardware.peak if hardware else 0.0 for who, took in
               (("lmkit", seconds), ("transformers", beside))}  # fmt: skip
        shown = {who: f" (MFU {share:.1%})" if hardware else "" for who, share in mfu.items()}
        how = "bf16, both compiled" if m.gpu else "float32, neither compiled"
        result = f"lmkit {tokens / seconds:,.0f} tokens/s{shown['lmkit']}, transformers {tokens / beside:,.0f}"
        result += f"{shown['transformers']}: {beside / seconds:.2f}x; {size.rows} x {size.context} tokens a step, {how}"
        figures = {"ratio": beside / seconds, "tokens_per_second": tokens / seconds, "mfu": mfu["lmkit"]}
        yield Row(f"training speed, {'toy' if m.toy else name}", result, "ok", figures)


def memory(m: Machine) -> Iterator[Row]:
    """What torch allocated at most in the timed runs; CUDA's context and the gaps between blocks come on top."""
    if not m.gpu:
        yield Row("memory beside the plan", "", "skipped: torch does not count a CPU's memory")
        return
    for name in ("124M",) if m.toy else ("124M", "350M"):
        estimate, ran = m.plan(m.size(name)), m.timed_run(name, compiled=True)
        ratio = ran.peak / estimate.memory.total
        result = f"{ran.peak / 1e9:.2f} GB, lmkit plan says {estimate.memory.total / 1e9:.2f}: {ratio:.2f} of it"
        result += f" (at least {PLANNED[0]}, at most {PLANNED[1]}); micro-batch {estimate.micro_batch:,} tokens"
        good = m.toy or PLANNED[0] <= ratio <= PLANNED[1]  # the plan is not made for toys
        yield Row(f"memory beside the plan, {name}", result, judged(good), {"ratio": ratio})


TOGETHER = ((parity, half_precision), (resume,), (one_process, two_processes))  # those in brackets share runs
ALONE = (out_of_memory, compiled, generation, speed, memory)


def rows_of(checks: tuple[Check, ...], m: Machine) -> list[Row]:
    """All rows of these checks, one after the other; whatever a check raises is a row of it."""
    rows: list[Row] = []
    for check in checks:
        began, name = time.monotonic(), check.__name__.replace("_", " ")
        try:
            rows.extend(check(m))
        except NoTime:
            rows.append(Row(name, "", "skipped: no time was left (--minutes)"))
        except Exception as e:
            rows.append(Row(name, f"{type(e).__name__}: {' '.join(str(e).split())[-600:]}", "FAILED"))
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def show(rows: list[Row], title: str) -> None:
    """One table; why a row was skipped stands beside what came out."""
    table = Table("check", "verdict", "result", box=None, pad_edge=False, title=title, title_justify="left")
    for row in rows:
        verdict, _, why = row.verdict.partition(": ")
        table.add_row(row.check, verdict, "; ".join(filter(None, (row.result, why))))
    Console(highlight=False, markup=False, width=max(170, Console().width)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    args = parser.parse_args()
    if not (args.toy or torch.cuda.is_available()):
        parser.error("torch sees no GPU here; --toy tries all that a CPU can")
    with tempfile.TemporaryDirectory(prefix="lmkit-gpu-check-") as scratch:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ |= {"LMKIT_CACHE": f"{scratch}/cache", "PYTHONPATH": ":".join(paths), "HF_HUB_OFFLINE": "1"}
        m = Machine(args.toy, Path(scratch), 60 * args.minutes)
        if m.gpu:
            with ThreadPoolExecutor(len(TOGETHER)) as pool:
                found = list(pool.map(lambda checks: rows_of(checks, m), TOGETHER))
        else:
            found = [rows_of(checks, m) for checks in TOGETHER]
        found.append(rows_of(ALONE, m))
    rows = [row for part in found for row in part]
    device = torch.cuda.get_device_name() if m.gpu else "cpu"
    show(rows, f"{device}, torch {torch.__version__}")
    if args.out:
        told = {"device": device, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
        args.out.write_text(json.dumps(told, indent=1))
    sys.exit(int(any(row.verdict == "FAILED" for row in rows)))


if __name__ == "__main__":
    main()
