"""Tokens a second and peak memory of masked-LM and span-corruption training: lmkit beside transformers.

    python benchmarks/objective_speed.py masked_lm --vocabulary 32768 --length 128
    python benchmarks/objective_speed.py span_corruption --vocabulary 32128 --length 512

One model (6 layers x 384, 6 heads; T5: 6 + 6 layers), the same starting weights, the same optimizer, float32. Packed:
all contenders get the same rows and the same noise, so their losses must agree. Padded: transformers' usual batches of
one line (a sentence, or a paragraph) a row, masked by its own collator and padded to the longest, counted in real
tokens. Text: the shipped novels.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest import answer, contest, load, stepper

LAYERS, HIDDEN, HEADS, TOKENS = 6, 384, 6, 4096  # TOKENS: of a packed batch, in the encoder
CORPUS = Path(__file__).parent.parent / "recipes" / "corpus"


def lmkit_job(args: argparse.Namespace) -> Any:
    """The job that `lmkit pretrain` would run, on tokens in the user's cache."""
    from lmkit.recipe.defaults import expand_pretraining
    from lmkit.recipe.pretraining import Recipe
    from lmkit.recipe.recipe_file import build_recipe
    from lmkit.training.job import build_pretraining
    from lmkit.training.pretraining_run import settle

    family = "bert" if args.objective == "masked_lm" else "t5"
    sizes = {"hidden_size": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS, "context": args.length}
    still = {"dropout": 0, "attention_dropout": 0, "activation_dropout": 0}
    kind = {"type": "wordpiece", "lowercase": True} if family == "bert" else {"type": "unigram"}
    task = {"name": args.objective} | ({"rate": "15%"} if family == "bert" else {})
    # the corpus has no 32k pieces worth having: the table is as large as asked, the tokenizer as large as sensible
    tree = {
        "model": {"family": family, "vocab_size": args.vocabulary} | sizes | still, "task": task,
        "tokenizer": kind | {"vocab_size": min(args.vocabulary, 8192)},
        "data": {"train": [str(CORPUS / "*.txt")], "separator": "\n\f\n"},
        "optimizer": {"name": "adamw", "lr": 1e-3}, "evaluate": {"sample": None},
        "train": {"budget": "1 h", "batch": TOKENS, "micro_batch": TOKENS, "compile": args.compile},
    }  # fmt: skip
    recipe, store = settle(build_recipe(Recipe, tree, {}, expand_pretraining))
    return build_pretraining(recipe, store)


def lmkit_step(args: argparse.Namespace) -> Callable[[], float]:
    from lmkit.training.step import read_share

    job = lmkit_job(args)
    (batch,) = read_share(job, 0).batches
    job.model.train()
    (optimizer,) = job.optimizers
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    return stepper(
        job.model, optimizer, lambda: job.work.objective.loss(job.model, batch).sums["tokens"] / batch.counts["tokens"]
    )


def transformers_model(job: Any, compiled: bool) -> tuple[Any, Any, Any]:
    """transformers' own class with lmkit's starting weights, and its optimizer."""
    import tempfile

    import torch
    import transformers

    from lmkit.model.formats.huggingface import save_folder

    auto = transformers.AutoModelForMaskedLM if job.model.decoder is None else transformers.AutoModelForSeq2SeqLM
    with tempfile.TemporaryDirectory() as folder:
        save_folder(job.model, Path(folder), job.special)
        model = auto.from_pretrained(folder).train()
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    o = job.recipe.optimizer
    groups = [{"params": decayed, "weight_decay": o.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=o.betas, eps=o.eps, fused=True)
    return model, torch.compile(model) if compiled else model, optimizer


def transformers_step(args: argparse.Namespace, compiled: bool) -> Callable[[], float]:
    from lmkit.training.step import read_share

    job = lmkit_job(args)
    (batch,) = read_share(job, 0).batches
    model, run, optimizer = transformers_model(job, compiled)
    feed = {"input_ids": batch.tokens, "labels": batch.labels}
    if batch.targets is not None:
        feed |= {"decoder_input_ids": batch.targets, "use_cache": False}
    return stepper(model, optimizer, lambda: run(**feed).loss)


def padded_batch(args: argparse.Namespace, job: Any) -> dict[str, Any]:
    """Sentences (or paragraphs) in random order, one a row, as many rows as give TOKENS places: run_mlm.py's batches of
    a file of lines."""
    import random
    import re

    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(job.tokenizer_folder)
    text = "\n\n".join(path.read_text() for path in sorted(CORPUS.glob("*.txt")))
    paragraphs = [" ".join(p.split()) for p in text.replace("\f", "\n\n").split("\n\n") if p.strip()]
    lines = paragraphs if args.lines == "paragraphs" else [s for p in paragraphs for s in re.split(r"(?<=[.!?])\s+", p)]
    chosen = random.Random(0).sample(lines, TOKENS // args.length)
    rows = [tokenizer(p, truncation=True, max_length=args.length, return_special_tokens_mask=True) for p in chosen]
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    return dict(collate(rows))


def padded_step(args: argparse.Namespace) -> Callable[[], float]:
    job = lmkit_job(args)
    model, run, optimizer = transformers_model(job, False)
    feed = padded_batch(args, job)
    feed.pop("special_tokens_mask", None)
    return stepper(model, optimizer, lambda: run(**feed).loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objective", choices=["masked_lm", "span_corruption"])
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="of lmkit's blocks")
    parser.add_argument("--lines", choices=["sentences", "paragraphs"], default="sentences", help="of padded batches")
    parser.add_argument("--contenders", nargs="*", help="only these beside lmkit")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    contenders: dict[str, Callable[[], Callable[[], float]]] = {
        "lmkit": lambda: lmkit_step(args),
        "transformers": lambda: transformers_step(args, False),
        "transformers compiled": lambda: transformers_step(args, True),
    }
    if args.objective == "masked_lm":
        contenders["transformers padded"] = lambda: padded_step(args)
    if args.serve:
        answer(contenders[args.serve], args.steps)
        return
    names = [n for n in contenders if n == "lmkit" or args.contenders is None or n in args.contenders]
    options = [f"--vocabulary={args.vocabulary}", f"--length={args.length}", f"--steps={args.steps}"]
    options.append(f"--lines={args.lines}")
    command = [sys.executable, __file__, args.objective, *options, f"--compile={args.compile}", "--serve"]
    best = contest(command, names, args.rounds)
    print(f"{args.objective}, vocabulary {args.vocabulary:,}, length {args.length}; {load()}")
    print(f"{'':<24}{'real tokens/s':>14}{'lmkit is':>10}{'GB':>8}{'loss':>10}")
    real = dict.fromkeys(best, TOKENS)
    if "transformers padded" in best:
        real["transformers padded"] = int(padded_batch(args, lmkit_job(args))["attention_mask"].sum())
    speed = {name: real[name] / result.seconds for name, result in best.items()}
    for name, (_, memory, loss) in best.items():
        print(f"{name:<24}{speed[name]:>14,.0f}{speed['lmkit'] / speed[name]:>9.2f}x{memory:>8.2f}{loss:>10.4f}")


if __name__ == "__main__":
    main()
