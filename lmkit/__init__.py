"""lmkit: pretrain, fine-tune, evaluate and sample Transformer language models.

>>> import lmkit
>>> model = lmkit.load("runs/demo")                      # a run, or any Hugging Face folder of a supported family
>>> model.logits(input_ids)                              # (batch, length, vocabulary) float32
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmkit.pretrained import Pretrained

__version__ = "0.1.0"
__all__ = ["load", "__version__"]


def load(path: str, **options: Any) -> "Pretrained":
    """The model and tokenizer of a run or a Hugging Face folder. See `lmkit.pretrained.load`."""
    from lmkit.pretrained import load  # here, so that `import lmkit` does not wait for torch

    return load(path, **options)
