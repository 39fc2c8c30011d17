"""How long lmkit takes to reach nanoGPT's final validation loss on the demo's corpus, tokens and machine.

    python benchmarks/time_to_loss.py --nanogpt PATH/TO/nanoGPT [--tokens 1.2M] [--shares 0.5 0.4]

nanoGPT trains a model of the demo's size (layers, width, context, vocabulary) with the settings of its own small
config, config/train_shakespeare_char.py: AdamW at 1e-3, cosine to 1e-4, 100 steps of warm-up, beta2 0.99, no dropout
(its advice for a CPU), no compilation. Only its training steps are timed. Then the demo's recipe gets a share of that
time, its last evaluation and checkpoint included. Both are scored on the same held-out rows.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lmkit.base.units import count
from lmkit.data.tokens.packing import PackedRows
from lmkit.data.tokens.store import TokenStore
from lmkit.data.tokens.tokenize import tokenize
from lmkit.recipe.defaults import expand_pretraining
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import find_recipe, load_recipe


def train_nanogpt(folder: str, recipe: Recipe, store: TokenStore, tokens: int) -> tuple[float, float, int]:
    """Seconds of training steps, validation loss, parameters."""
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    c, rows = recipe.model, recipe.train.batch // recipe.model.context
    vocabulary = math.ceil(store.manifest["tokenizer"]["vocab_size"] / 64) * 64
    torch.manual_seed(1337)
    model = GPT(GPTConfig(c.context, vocabulary, c.num_layers, c.num_heads, c.hidden_size, dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    split = store.split("train")
    data = torch.from_numpy(np.concatenate([split.document(i) for i in range(split.num_documents)]).astype(np.int64))
    steps, spent = tokens // recipe.train.batch, 0.0
    for step in range(steps):
        rate = 1e-3 * (step + 1) / 101
        if step >= 100:
            rate = 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / (steps - 100))) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        began = time.perf_counter()
        starts = torch.randint(len(data) - c.context, (rows,))
        x = torch.stack([data[i : i + c.context] for i in starts])
        y = torch.stack([data[i + 1 : i + 1 + c.context] for i in starts])
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent += time.perf_counter() - began
        if step % 50 == 0:
            print(f"nanoGPT step {step} of {steps}, loss {float(loss.detach()):.3f}, {spent:.0f} s", file=sys.stderr)
    return spent, validate(model, PackedRows(store.split("validation"), c.context, 0)), model.get_num_params()


@torch.no_grad()
def validate(model: torch.nn.Module, rows: PackedRows) -> float:
    model.eval()
    total = 0.0
    for i in range(len(rows)):
        row = rows[i]
        tokens, labels = (torch.from_numpy(row[k])[None] for k in ("tokens", "labels"))
        labels[labels == -100] = -1  # what nanoGPT passes over
        total += float(model(tokens, labels)[1]) * int((labels != -1).sum())
    return total / rows.num_scored


def train_lmkit(store: TokenStore, seconds: float, out: Path) -> dict:
    budget = [f"data.train={store.path}", f"train.budget={seconds:.1f} s", "evaluate.every=0", "checkpoint.every=0"]
    command = [sys.executable, "-m", "lmkit", "pretrain", "demo", *budget, "evaluate.tokens=1M", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "status.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", required=True)
    parser.add_argument("--tokens", default="1.2M")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.4])
    args = parser.parse_args()
    recipe = load_recipe(Recipe, find_recipe("demo"), (), expand_pretraining)
    with tempfile.TemporaryDirectory() as folder:
        store = tokenize(recipe.data, recipe.tokenizer, recipe.model.family, Path(folder) / "tokens")
        held = store.split("validation")
        bits = PackedRows(held, recipe.model.context, 0).num_scored / held.num_bytes / math.log(2)
        seconds, loss, parameters = train_nanogpt(args.nanogpt, recipe, store, count(args.tokens))
        print(f"load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
        print(f"nanoGPT  {parameters / 1e6:.2f}M parameters  {seconds:6.1f} s  loss {loss:.4f}  bpb {loss * bits:.4f}")
        for share in args.shares:
            got = train_lmkit(store, share * seconds, Path(folder) / f"run{share}")
            ours, reached = got["best"]["val_loss"], "reached" if got["best"]["val_loss"] <= loss else "not reached"
            print(
                f"lmkit    {share:.0%} of its time{share * seconds:13.1f} s  loss {ours:.4f}  bpb {ours * bits:.4f}"
                f"  {show(got)}: {reached}"
            )


def show(status: dict) -> str:
    return f"{status['tokens'] / 1e6:.2f}M tokens"


if __name__ == "__main__":
    main()
