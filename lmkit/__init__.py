"""lmkit: pretrain, fine-tune, evaluate and sample Transformer language models.

>>> import lmkit
>>> run = lmkit.pretrain("demo", train={"budget": "1 min"})   # as `lmkit pretrain demo train.budget='1 min'`
>>> model = lmkit.load(run.path)                              # a run, or any Hugging Face folder of a supported family
>>> model.generate(["It was a"])                              # texts
>>> model.logits(input_ids)                                   # (batch, length, vocabulary) float32
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmkit.api import evaluate, finetune, load, pretrain, tokenize

__version__ = "0.1.0"
__all__ = ["evaluate", "finetune", "load", "pretrain", "tokenize", "__version__"]


def __getattr__(name: str) -> Any:
    """Finds the functions of `lmkit.api` when they are asked for, so that `import lmkit` does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module `lmkit` has no attribute `{name}`")
    from lmkit import api

    return getattr(api, name)
