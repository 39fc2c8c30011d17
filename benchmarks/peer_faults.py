"""What transformers' Trainer makes of some faults of docs/reliability.md: kills, flipped bits, a loss that is NaN.

    OMP_NUM_THREADS=1 python benchmarks/peer_faults.py [--kills 40]

The same tiny GPT-2, saved after every step, is killed at a random moment and told to resume from its newest checkpoint,
again and again, as a job script would; a directory in which that fails is given up and a new one begun.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch
import transformers
from datasets import Dataset

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def train(where: Path, steps: int, resume: bool, poison: int = -1) -> list[dict]:
    """Trainer's own log. poison: the step whose loss is not a number."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=512, n_positions=64, n_embd=256, n_layer=4, n_head=4)
    model = transformers.GPT2LMHeadModel(config)
    rows = torch.randint(0, 512, (256, 64), generator=torch.Generator().manual_seed(1)).tolist()
    settings = transformers.TrainingArguments(
        output_dir=str(where), max_steps=steps, per_device_train_batch_size=2, save_steps=1, save_total_limit=3,
        logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip

    class Poisoned(transformers.Trainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            bad = self.state.global_step == poison
            return (
                (loss[0] * float("nan"), *loss[1:])
                if bad and isinstance(loss, tuple)
                else loss * (float("nan") if bad else 1.0)
            )

    trainer = Poisoned(model, settings, train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}))
    trainer.train(resume_from_checkpoint=resume)
    return trainer.state.log_history


def in_child(function, *args) -> int:
    """pid; a fork, for to import torch takes longer than the run."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        function(*args)
        os._exit(0)
    except BaseException:
        os._exit(1)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kills(n: int, rng: random.Random) -> str:
    """Kill, then see whether the newest checkpoint resumes for one step."""
    unusable = tries = 0
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch, "run")
        while tries < n:
            begun = any(where.glob("checkpoint-*"))
            pid = in_child(train, where, 10_000, begun)
            deadline = time.monotonic() + 60
            newest = lambda: max((int(p.name[11:]) for p in where.glob("checkpoint-*")), default=0)
            first = newest()
            while newest() < first + 2 and time.monotonic() < deadline:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    pid = 0
                    break
                time.sleep(0.002)
            if pid:
                time.sleep(rng.uniform(0, 0.3))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            tries += 1
            if ended(in_child(train, where, newest() + 1, True)):
                unusable += 1
                shutil.rmtree(where)
    return f"kill -9, {n} times: newest checkpoint unusable in {unusable}"


def flips(n: int, rng: random.Random) -> str:
    """Weights with one bit turned over, loaded by from_pretrained."""
    with tempfile.TemporaryDirectory() as scratch:
        assert ended(in_child(train, Path(scratch), 1, False)) == 0
        folder = next(Path(scratch).glob("checkpoint-*"))
        file = folder / "model.safetensors"
        whole = file.read_bytes()
        # copies: what is loaded may still be the file itself
        right = {k: v.clone() for k, v in transformers.GPT2LMHeadModel.from_pretrained(folder).state_dict().items()}
        silent = 0
        for _ in range(n):
            data = bytearray(whole)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
            try:
                got = transformers.GPT2LMHeadModel.from_pretrained(folder).state_dict()
            except Exception:
                continue
            silent += any(not torch.equal(v, right[k]) for k, v in got.items())
    return f"one bit flipped in model.safetensors, {n} times: wrong weights loaded without a word in {silent}"


def not_a_number() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch, "log.json")
        job = lambda: told.write_text(json.dumps(train(Path(scratch, "run"), 8, False, poison=3)))
        assert ended(in_child(job)) == 0
        losses = [row["loss"] for row in json.loads(told.read_text()) if "loss" in row]
        newest = max(Path(scratch, "run").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
        weights = transformers.GPT2LMHeadModel.from_pretrained(newest).state_dict()
        finite = all(bool(w.isfinite().all()) for w in weights.values())
    return f"loss of step 4 is NaN: logged {losses}, weights of the last checkpoint finite: {finite}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--flips", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(0)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    print(not_a_number(), flush=True)
    print(flips(args.flips, rng), flush=True)
    print(kills(args.kills, rng), flush=True)


if __name__ == "__main__":
    main()
