"""What an entry of the table of families says."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HeadSpec:
    """A head as one transformers class has it. Task heads are [dense, activation, norm,] output over pooled states."""

    cls: str
    modules: dict[str, str]  # below `head.` ("" is the head itself) -> theirs
    pool: str = "each"  # states it reads: each | first | mean | last (of the row) | end (the row's last EOS)
    activation: str = "tanh"
    bias: bool = True  # of `dense`
    output_bias: bool = True
    prefix: str | None = None  # of the body's tensors, where it differs from the family's
    encoder_only: bool = False  # T5's tagger leaves the decoder out


@dataclass(frozen=True)
class Family:
    """`axes`: what a recipe starts from. A recipe may change those that `keys` or `coded` let config.json express."""

    axes: dict[str, Any]
    keys: dict[str, str]  # axis -> key of config.json with the same value
    names: dict[str, str]
    heads: dict[str, HeadSpec]
    coded: tuple[str, ...] = ()  # axes that `model.config_json` translates by code
    copies: dict[str, str] = field(default_factory=dict)  # tied duplicates some files carry -> the original
    fixed: dict[str, Any] = field(default_factory=dict)  # keys of config.json that must have this value, if present
    model_type: str = ""  # "": the family's own name
    prefix: str = "model."  # of the body's tensors; missing when the bare body was saved
    tokens: str = "bert"  # row of `text.special.SPECIAL`
    start: str = "pad"  # what a decoder beside an encoder starts from: pad | eos
    adam: tuple[float, float, float] = (0.9, 0.95, 1e-8)  # betas and eps as published
    bodies: dict[str, str] = field(default_factory=dict)  # classes of which only the body is read -> their own tensors
    stored_positions: bool = False  # transformers wants sinusoidal tables in the file

    @property
    def changeable(self) -> set[str]:
        return {*self.keys, *self.coded}


def at(ours: str, theirs: str, pairs: dict[str, str]) -> dict[str, str]:
    return {f"{ours}{a}": " ".join(f"{theirs}{x}" for x in b.split()) for a, b in pairs.items()}


SIZES = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "intermediate_size": "intermediate_size", "context": "max_position_embeddings",
}  # fmt: skip
QKV = "self_attn.q_proj self_attn.k_proj self_attn.v_proj"
BIAS = ("qkv_bias", "output_bias")
