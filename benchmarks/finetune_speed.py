"""Fine-tuning a classifier beside transformers' Trainer: the same model, rows, batch size, optimizer and schedule.

    python benchmarks/finetune_speed.py --model FOLDER --data train.tsv.gz --test dev.tsv.gz --rows 1600 --rounds 2

Contenders take turns, each in a process of its own that trains one epoch from the same weights and then counts how many
test rows it has right. Trainer pads every batch to its longest row (DataCollatorWithPadding), as its examples do; with
`group_by_length` it draws batches of rows of like length, which changes what a batch holds. Seconds are of training
alone, and each contender keeps its fastest round.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contest import load

CONTENDERS = ("lmkit", "Trainer", "Trainer, group_by_length")


def lmkit_run(args: argparse.Namespace, scratch: str) -> dict[str, Any]:
    from lmkit.base.runs import Run
    from lmkit.recipe import recipe_file
    from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning
    from lmkit.training import loop
    from lmkit.training.finetune import build_finetuning
    from lmkit.training.finetuning_run import tables
    from lmkit.training.signals import StopFlag

    changes = (
        "task.name=classify", f"model={args.model}", f"data.train={args.data}", f"data.validation={args.test}",
        f"data.limit={args.rows}", "train.budget=1 epoch", "train.batch=32 rows", f"optimizer.lr={args.lr}",
        f"train.precision={args.precision}", "evaluate.every=0", "checkpoint.every=0",
        f"data.max_length={args.length}", "evaluate.rows=1",
    )  # fmt: skip
    recipe = recipe_file.load_recipe(FinetuneRecipe, None, changes, expand_finetuning)
    train, test = tables(recipe)
    f = build_finetuning(recipe, train, test, Path(scratch) / "run")
    score, f.job.score = f.job.score, lambda: {f.job.metric: 0.0}
    run = Run(Path(scratch) / "run")
    began = time.perf_counter()
    with StopFlag() as stop:
        loop.train(f.job, run, stop)
    seconds = time.perf_counter() - began
    del score
    outputs = f.task.outputs(f.job.model, test, f.task.examples(test))
    return {"seconds": seconds, "accuracy": f.task.scores(test, outputs, False)["accuracy"].value}


def trainer_run(args: argparse.Namespace, scratch: str, group: bool) -> dict[str, Any]:
    import numpy as np
    import transformers
    from datasets import Dataset

    from lmkit.recipe import recipe_file
    from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning
    from lmkit.training.finetuning_run import tables

    changes = ("task.name=classify", f"model={args.model}", f"data.train={args.data}",
               f"data.validation={args.test}", f"data.limit={args.rows}")  # fmt: skip
    train, test = tables(recipe_file.load_recipe(FinetuneRecipe, None, changes, expand_finetuning))
    names = sorted({row["label"] for row in train.rows})
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names))

    def encoded(table: Any) -> Dataset:
        rows = tokenizer([row["text"] for row in table.rows], truncation=True, max_length=args.length)
        return Dataset.from_dict(dict(rows) | {"label": [names.index(row["label"]) for row in table.rows]})

    settings = transformers.TrainingArguments(
        output_dir=scratch, num_train_epochs=1, per_device_train_batch_size=32, per_device_eval_batch_size=32,
        learning_rate=args.lr, warmup_steps=0.06, weight_decay=0.01, lr_scheduler_type="linear", report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=0,
        bf16=args.precision == "bf16",
        train_sampling_strategy="group_by_length" if group else "random",
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, settings, train_dataset=encoded(train), processing_class=tokenizer,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    guess = trainer.predict(encoded(test)).predictions.argmax(-1)
    return {"seconds": seconds, "accuracy": float(np.mean(guess == [names.index(r["label"]) for r in test.rows]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--lr", type=float, default=6e-5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contender", choices=CONTENDERS)
    args = parser.parse_args()
    if args.contender:
        with tempfile.TemporaryDirectory() as scratch:
            got = (lmkit_run(args, scratch) if args.contender == "lmkit"
                   else trainer_run(args, scratch, "group" in args.contender))  # fmt: skip
        print(json.dumps(got))
        return
    print(f"{args.rows:,} rows of {args.data}, at most {args.length} tokens; {args.precision}; {load()}")
    best: dict[str, dict[str, Any]] = {}
    for _ in range(args.rounds):
        for name in CONTENDERS:
            command = [sys.executable, *sys.argv, "--contender", name]
            said = subprocess.run(command, capture_output=True, text=True)
            assert said.returncode == 0, said.stderr
            got = json.loads(said.stdout.strip().splitlines()[-1])
            if name not in best or got["seconds"] < best[name]["seconds"]:
                best[name] = got
    for name, got in best.items():
        ratio = got["seconds"] / best["lmkit"]["seconds"]
        print(
            f"{name:26} {args.rows / got['seconds']:6.1f} rows/s  accuracy {got['accuracy']:.4f}  lmkit is {ratio:.2f}x"
        )


if __name__ == "__main__":
    main()
