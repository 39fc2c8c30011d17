"""Tokens a second and peak memory of one training loop at a 50k vocabulary: lmkit beside nanoGPT and transformers.

    python benchmarks/pretrain_speed.py --nanogpt PATH/TO/nanoGPT [--rounds 5] [--steps 4]

The same GPT-2 (6 layers x 384, 6 heads, 50304 tokens), 16 x 256 tokens a step, float32, AdamW, gradient norm clipped.
Each contender is a process of its own; they take turns, and each keeps its fastest round. Nobody else's code is here:
nanoGPT's is imported from the checkout you name, as its train.py uses it.
"""

import argparse
import sys
from collections.abc import Callable

from contest import answer, contest, load, stepper

LAYERS, HIDDEN, HEADS, VOCABULARY, ROWS, CONTEXT = 6, 384, 6, 50304, 16, 256


def lmkit_step() -> Callable[[], float]:
    from lmkit.model.initial import init_weights
    from lmkit.model.transformer import Transformer
    from lmkit.objectives.batch import Batch
    from lmkit.objectives.causal_lm import CausalLM
    from lmkit.recipe.defaults import expand_pretraining
    from lmkit.recipe.pretraining import Recipe
    from lmkit.training.optimizers.build import build_optimizers

    sizes = {
        "hidden_size": HIDDEN,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "vocab_size": VOCABULARY,
        "context": CONTEXT,
    }
    tree = {"model": {"family": "gpt2"} | sizes, "data": {"train": "-"}, "optimizer": {"name": "adamw", "lr": 1e-3}}
    recipe = Recipe.model_validate(expand_pretraining(tree | {"train": {"batch": ROWS * CONTEXT}}))
    model = Transformer(recipe.model)
    init_weights(model)
    for block in model.decoder.blocks:
        block.compile()
    task, (optimizer,) = CausalLM(), build_optimizers(model, recipe.optimizer)
    tokens, labels = batch()

    one = Batch({"tokens": labels.numel()}, tokens, labels, labels.numel())
    return stepper(model, optimizer, lambda: task.loss(model, one).sums["tokens"] / labels.numel())


def nanogpt_step(folder: str, compiled: bool) -> Callable[[], float]:
    import torch

    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    config = GPTConfig(CONTEXT, VOCABULARY, LAYERS, HEADS, HIDDEN, dropout=0.0, bias=True)
    model = GPT(config)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    run = torch.compile(model) if compiled else model
    tokens, labels = batch()

    return stepper(model, optimizer, lambda: run(tokens, labels)[1])


def transformers_step() -> Callable[[], float]:
    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    run = torch.compile(model)
    tokens, _ = batch()

    return stepper(model, optimizer, lambda: run(input_ids=tokens, labels=tokens, use_cache=False).loss)


def batch():
    import torch

    ids = torch.randint(0, VOCABULARY, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    contenders = {
        "lmkit": lmkit_step,
        "nanoGPT": lambda: nanogpt_step(args.nanogpt, compiled=False),
        "nanoGPT compiled": lambda: nanogpt_step(args.nanogpt, compiled=True),
        "transformers compiled": transformers_step,
    }
    if args.serve:
        answer(contenders[args.serve], args.steps)
        return
    command = [sys.executable, __file__, "--nanogpt", args.nanogpt, "--steps", str(args.steps), "--serve"]
    best = contest(command, list(contenders), args.rounds)
    print(load())
    print(f"{'':<24}{'tokens/s':>10}{'lmkit is':>10}{'GB':>8}{'loss':>10}")
    for name, (seconds, memory, loss) in best.items():
        ratio = seconds / best["lmkit"].seconds
        print(f"{name:<24}{ROWS * CONTEXT / seconds:>10,.0f}{ratio:>9.2f}x{memory:>8.2f}{loss:>10.4f}")


if __name__ == "__main__":
    main()
