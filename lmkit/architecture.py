"""The architecture as data: what every family is made of. No torch here, so a recipe is checked before it is paid for.

A family is a point in these axes; `lmkit.model` reads nothing else. An axis is added together with a parity test
against transformers.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lmkit import units

Count = Annotated[int, BeforeValidator(units.count)]
Family = Literal["gpt2", "llama", "mistral", "qwen3", "nanochat"]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"]


class RopeScaling(BaseModel):
    """Stretching of rotary positions beyond the trained length: `linear` (Chen et al. 2023) or `llama3` (Llama 3.1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["linear", "llama3"] = Field(description="How rotary frequencies are stretched.")
    factor: float = Field(gt=0, description="How many times longer positions may get.")
    low_freq_factor: float = Field(
        1.0, description="llama3: wavelengths above original length / this are stretched fully."
    )
    high_freq_factor: float = Field(4.0, description="llama3: wavelengths below original length / this are left alone.")
    original_context: Count = Field(8192, description="llama3: context the frequencies were trained for.")

    @model_validator(mode="after")
    def _check(self) -> "RopeScaling":
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} must exceed low_freq_factor {self.low_freq_factor}"
            )
        return self


class ModelConfig(BaseModel):
    """One Transformer. `hidden_size` is the width of the residual stream; sizes are in units of one number."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)

    family: Family = Field(description="Name under which transformers loads the checkpoint.")
    vocab_size: Count = Field(0, ge=0, description="Rows of the embedding; 0: the tokenizer's size, rounded up to 64.")
    hidden_size: Count = Field(ge=1, description="Width of the residual stream.")
    num_layers: Count = Field(ge=1, description="Blocks.")
    num_heads: Count = Field(ge=1, description="Query heads.")
    num_kv_heads: Count = Field(
        ge=1, description="Key and value heads; fewer than num_heads is grouped-query attention."
    )
    head_dim: Count = Field(ge=1, description="Width of one head.")
    intermediate_size: Count = Field(ge=1, description="Width inside the feed-forward layer.")
    context: Count = Field(ge=2, description="Longest sequence in tokens.")

    positions: Literal["learned", "rope"] = Field("rope", description="How a token knows its place.")
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary wavelengths.")
    rope_scaling: RopeScaling | None = Field(None, description="Stretch rotary positions for longer contexts.")
    rope_reversed: bool = Field(False, description="Rotate clockwise, as nanochat does.")

    norm: Literal["layer", "rms"] = Field("rms", description="LayerNorm or RMSNorm, before each sub-layer.")
    norm_gain: bool = Field(True, description="A learned scale in every norm; nanochat has none.")
    norm_eps: float = Field(1e-6, gt=0, description="Added to the variance in norms.")
    embedding_norm: bool = Field(False, description="A norm right after the token embedding.")
    qk_norm: Literal["none", "before_rope", "after_rope"] = Field(
        "none", description="RMS-normalise queries and keys per head."
    )

    activation: Activation = Field("silu", description="Non-linearity of the feed-forward layer.")
    gated: bool = Field(False, description="Feed-forward is activation(gate(x)) * up(x), as in SwiGLU.")
    qkv_bias: bool = Field(False, description="Bias on query, key and value projections.")
    output_bias: bool = Field(False, description="Bias on the attention output projection.")
    mlp_bias: bool = Field(False, description="Bias in the feed-forward layer.")

    sliding_window: Count | None = Field(None, ge=1, description="Tokens a windowed layer sees, itself included.")
    window_layers: tuple[int, ...] = Field(
        (), description="Layers (from 0) that use the window; empty: all, if it is set."
    )

    tied: bool = Field(False, description="The output head shares the embedding's weights.")
    logit_softcap: float | None = Field(None, gt=0, le=50, description="Squash logits to ± this by tanh; None: off.")

    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on embeddings and sub-layer outputs while training.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on attention weights while training.")

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even for rotary positions")
        if outside := [i for i in self.window_layers if not 0 <= i < self.num_layers]:
            raise ValueError(
                f"window_layers {outside} lie outside the {self.num_layers} layers 0..{self.num_layers - 1}"
            )
        for key, families in EXPORTABLE.items():
            value = getattr(self, key)
            if value != ModelConfig.model_fields[key].default and self.family not in families:
                have = ", ".join(families)
                raise ValueError(f"{key} {value!r} does not exist in transformers' {self.family}; only in {have}")
        return self

    def window(self, layer: int) -> int | None:
        """How many tokens (itself included) layer number `layer` sees; None: all."""
        if self.sliding_window is None or (self.window_layers and layer not in self.window_layers):
            return None
        return self.sliding_window


# A checkpoint must load in transformers as it is: axes that only some of its classes can express.
EXPORTABLE: dict[str, tuple[str, ...]] = {
    "sliding_window": ("mistral", "qwen3"),
    "window_layers": ("qwen3",),
    "rope_scaling": ("llama", "mistral", "qwen3", "nanochat"),
    "rope_reversed": ("nanochat",),
    "embedding_norm": ("nanochat",),
    "logit_softcap": ("nanochat",),
    "mlp_bias": ("gpt2", "llama"),
    "output_bias": ("gpt2", "llama", "qwen3"),
}
