"""The optimizers that a recipe may name, and all that is known of each but how it is made (`training/optimizers`)."""

from dataclasses import dataclass
from typing import Literal

OptimizerName = Literal["muon", "adamw", "adamw_rms", "adam", "sgd", "adagrad", "adadelta", "adafactor"]


@dataclass(frozen=True)
class OptimizerFacts:
    """`moments` are the numbers kept for each weight of a matrix inside a block, `other_moments` for each other weight
    (Rajbhandari et al. 2019, ZeRO, 3.1, for Adam's)."""

    moments: float
    other_moments: float
    lr: float | None = None  # the usual peak learning rate, of torch or of its paper; None: from the size of the model
    shards: bool = True  # it can move a matrix of which each process holds a part
    adapters: bool = True  # it can train low-rank adapters


OPTIMIZERS: dict[OptimizerName, OptimizerFacts] = {
    "muon": OptimizerFacts(1, 2, adapters=False),  # with AdamW for what is no matrix inside a block
    "adamw": OptimizerFacts(2, 2),
    "adamw_rms": OptimizerFacts(2, 2, lr=0.02),
    "adam": OptimizerFacts(2, 2),
    "sgd": OptimizerFacts(1, 1, lr=0.1),
    "adagrad": OptimizerFacts(1, 1, lr=0.01),
    "adadelta": OptimizerFacts(2, 2, lr=1.0),
    "adafactor": OptimizerFacts(0.1, 0.1, lr=0.01, shards=False),
}
