"""The architecture as data: the axes every family is made of. No torch here, so a recipe is checked before it is paid
for.

A family (`lmkit.architecture.families`) is a point in these axes; `lmkit.model` reads nothing else. An axis is added
together with a parity test against transformers.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lmkit.architecture.families import FAMILIES, Family, HeadSpec
from lmkit.base import units
from lmkit.base.errors import did_you_mean


def quantity(read: Callable[[Any], Any], example: str, *allowed: str) -> BeforeValidator:
    """Returns what reads a number that may be text with one of the `allowed` units, as its JSON schema tells too."""
    text = Annotated[str, Field(pattern=units.pattern(*allowed), examples=[example])]
    return BeforeValidator(read, json_schema_input_type=float | text if "%" in allowed else int | text)


Count = Annotated[int, quantity(units.count, "2k")]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"]


def _family(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"{name!r} is no family{did_you_mean(name, FAMILIES)}")
    return name


FamilyName = Annotated[str, AfterValidator(_family)]


class RopeScaling(BaseModel):
    """Stretching of rotary positions beyond the trained length.

    The kinds are `linear` (Chen et al. 2023), `dynamic`, `yarn` (Peng et al. 2023), `llama3` (Llama 3.1) and `longrope`
    (Ding et al. 2024). A model with `dynamic` is the same as one without, up to its context."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["linear", "dynamic", "yarn", "llama3", "longrope"] = Field(
        description="How rotary frequencies are stretched."
    )
    factor: float = Field(gt=0, description="How many times longer positions may get.")
    low_freq_factor: float = Field(
        1.0, description="llama3: wavelengths above original length / this are stretched fully."
    )
    high_freq_factor: float = Field(4.0, description="llama3: wavelengths below original length / this are left alone.")
    original_context: Count = Field(
        8192, description="llama3, yarn, longrope: context the frequencies were trained for."
    )
    beta_fast: float = Field(32.0, gt=0, description="yarn: dimensions with more turns than this are left alone.")
    beta_slow: float = Field(1.0, gt=0, description="yarn: dimensions with fewer turns than this are stretched fully.")
    truncate: bool = Field(True, description="yarn: round the borders between these dimensions.")
    mscale: float | None = Field(None, gt=0, description="yarn: enlarges rotated vectors; None: as the paper does.")
    mscale_all_dim: float | None = Field(None, gt=0, description="yarn: reduces them; None: as the paper does.")
    attention_factor: float | None = Field(
        None, gt=0, description="yarn, longrope: what rotated vectors are multiplied by; None: by the factor."
    )
    short_factor: tuple[float, ...] = Field((), description="longrope: divides each frequency of texts up to it.")
    long_factor: tuple[float, ...] = Field((), description="longrope: divides each frequency of longer texts.")

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

    family: FamilyName = Field(description="Whose architecture; transformers loads the checkpoint as that.")
    stacks: Literal["decoder", "encoder", "encoder_decoder"] = Field("decoder", description="What it is made of.")
    vocab_size: Count = Field(
        0, ge=0, le=10**8, description="Rows of the embedding; 0: the tokenizer's size, rounded up to 64."
    )
    hidden_size: Count = Field(ge=1, description="Width of the residual stream.")
    num_layers: Count = Field(ge=1, le=10_000, description="Blocks; beside a decoder, those of the encoder.")
    num_heads: Count = Field(ge=1, description="Query heads.")
    num_kv_heads: Count = Field(
        ge=1, description="Key and value heads; fewer than num_heads is grouped-query attention."
    )
    head_dim: Count = Field(ge=1, description="Width of one head.")
    intermediate_size: Count = Field(ge=1, description="Width inside the feed-forward layer.")
    context: Count = Field(ge=2, description="Longest sequence in tokens.")
    num_decoder_layers: Count = Field(0, ge=0, le=10_000, description="Blocks of a decoder beside an encoder.")
    decoder_num_heads: Count = Field(0, ge=0, description="Query heads of that decoder; 0: num_heads.")
    decoder_intermediate_size: Count = Field(0, ge=0, description="Its feed-forward width; 0: intermediate_size.")

    embedding_size: Count = Field(0, ge=0, description="Width of the embeddings, projected; 0: hidden_size.")
    scaled_embedding: bool = Field(False, description="Token embeddings times the root of hidden_size.")
    type_vocab_size: Count = Field(0, ge=0, description="Embeddings that tell the two texts of a pair apart.")
    embedding_norm: bool = Field(False, description="A norm right after the embeddings.")

    positions: Literal["learned", "rope", "sinusoidal", "relative"] = Field(
        "rope", description="How a token knows its place."
    )
    position_offset: Count = Field(0, ge=0, description="Row of the position table for the first token.")
    closed_sinusoids: bool = Field(False, description="The longest sinusoid is 10,000 times the shortest exactly.")
    position_padding_id: int | None = Field(None, ge=0, description="Token that learned positions do not count.")
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary wavelengths.")
    rope_theta_local: float | None = Field(None, gt=0, description="That of windowed layers; None: the same.")
    rope_scaling: RopeScaling | None = Field(None, description="Stretch rotary positions for longer contexts.")
    partial_rotary_factor: float = Field(1.0, gt=0, le=1, description="Share of a head that rotary positions rotate.")
    nope_layers: tuple[int, ...] = Field((), description="Layers (from 0) without rotary positions; SmolLM3 has some.")
    rope_reversed: bool = Field(False, description="Rotate clockwise, as nanochat does.")
    relative_buckets: Count = Field(32, ge=4, description="Distances T5's relative positions tell apart.")
    relative_distance: Count = Field(128, ge=2, description="Distance from which they are all one.")

    norm: Literal["layer", "rms"] = Field("rms", description="LayerNorm or RMSNorm.")
    norm_position: Literal["pre", "post", "both"] = Field(
        "pre", description="Before a sub-layer, after its residual sum, or before it and before the sum."
    )
    parallel_residual: bool = Field(False, description="Attention and feed-forward layer read the same states.")
    norm_gain: bool = Field(True, description="A learned scale in every norm; nanochat has none.")
    norm_plus_one: bool = Field(False, description="Norms scale by 1 + their weight, as in Gemma.")
    norm_bias: bool = Field(True, description="A learned shift in every LayerNorm.")
    norm_eps: float = Field(1e-6, gt=0, description="Added to the variance in norms.")
    first_norm: bool = Field(True, description="A norm before the first attention; ModernBERT has none.")
    final_norm: bool = Field(True, description="A norm after the last block.")
    qk_norm: Literal["none", "before_rope", "after_rope"] = Field(
        "none", description="RMS-normalise queries and keys per head."
    )

    scaled_attention: bool = Field(True, description="Scores over the root of head_dim; T5 has none.")
    query_pre_attn_scalar: Count | None = Field(
        None, ge=1, description="Scores over the root of this; None: of head_dim."
    )
    attention_softcap: float | None = Field(None, gt=0, description="Squash scores to ± this by tanh; None: off.")
    activation: Activation = Field("silu", description="Non-linearity of the feed-forward layer.")
    gated: bool = Field(False, description="Feed-forward is activation(gate(x)) * up(x), as in SwiGLU.")
    qkv_bias: bool = Field(False, description="Bias on query, key and value projections.")
    output_bias: bool = Field(False, description="Bias on the attention output projection.")
    mlp_bias: bool = Field(False, description="Bias in the feed-forward layer.")
    layer_groups: Count = Field(0, ge=0, description="Blocks with weights of their own, shared by layers; 0: all.")
    group_layers: Count = Field(1, ge=1, description="Blocks in such a group.")

    sliding_window: Count | None = Field(
        None, ge=1, description="Tokens a windowed layer sees, itself included; in an encoder half on each side."
    )
    window_layers: tuple[int, ...] = Field(
        (), description="Layers (from 0) that use the window; empty: all, if it is set."
    )

    head: Literal["lm", "pairs", "sequence", "token", "span", "none"] = Field(
        "lm", description="What the states are for: words, words and pairs of texts, labels of texts, of tokens, spans."
    )
    labels: tuple[str, ...] = Field((), description="Names of what a head for labels tells apart.")
    pooling: Literal["cls", "mean"] = Field("cls", description="ModernBERT: what stands for a whole text.")
    tied: bool = Field(False, description="The output head shares the embedding's weights.")
    head_bias: Literal["none", "learned", "fixed"] = Field("none", description="Bias of each word; fixed: a constant.")
    scaled_head: bool = Field(False, description="States over the root of hidden_size before the head.")
    logit_softcap: float | None = Field(None, gt=0, le=50, description="Squash logits to ± this by tanh; None: off.")

    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on embeddings and sub-layer outputs while training.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on attention weights while training.")
    activation_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the feed-forward layer.")
    head_dropout: float | None = Field(None, ge=0, lt=1, description="Dropout before a task's head; None: `dropout`.")

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.positions == "rope" and self.rotary_dim % 2:
            raise ValueError(f"head_dim {self.rotary_dim} must be even for rotary positions")
        for key, layers in (("window_layers", self.window_layers), ("nope_layers", self.nope_layers)):
            if outside := [i for i in layers if not 0 <= i < self.num_layers]:
                raise ValueError(f"{key} {outside} lie outside the {self.num_layers} layers 0..{self.num_layers - 1}")
        scaling, pairs = self.rope_scaling, self.rotary_dim // 2
        if scaling and self.long_from and {len(scaling.short_factor), len(scaling.long_factor)} != {pairs}:
            raise ValueError(f"rope_scaling: longrope needs {pairs} numbers in short_factor and in long_factor")
        if self.layer_groups and self.num_layers % self.layer_groups:
            raise ValueError(f"num_layers {self.num_layers} is not a multiple of layer_groups {self.layer_groups}")
        if (self.stacks == "encoder_decoder") != bool(self.num_decoder_layers):
            raise ValueError(f"num_decoder_layers {self.num_decoder_layers} does not fit stacks `{self.stacks}`")
        self._check_family()
        return self

    def _check_family(self) -> None:
        """A checkpoint must load in transformers as it is: only what the family's config.json can say may differ."""
        family = self.table
        if self.head not in family.heads:
            raise ValueError(f"head `{self.head}` does not exist in {self.family}; it has {', '.join(family.heads)}")
        if "scaled_head" in family.coded and self.tied != self.scaled_head:
            raise ValueError(f"scaled_head {self.scaled_head} does not fit tied {self.tied}: in T5 they go together")
        if "gated" in family.coded and self.gated and self.activation == "gelu":
            raise ValueError("activation 'gelu' in a gated layer: transformers' T5 takes it for gelu_tanh; write that")
        if {"qkv_bias", "output_bias"} <= family.changeable and self.qkv_bias != self.output_bias:
            raise ValueError(f"qkv_bias {self.qkv_bias} and output_bias differ: {self.family} has one key for both")
        same = {  # where config.json has no key of its own, it follows from others
            "num_kv_heads": self.num_heads, "head_dim": self.hidden_size // self.num_heads, "decoder_num_heads": 0,
        }  # fmt: skip
        fields = type(self).model_fields
        for key in ModelConfig.model_fields.keys() - family.changeable - ALWAYS:
            wanted = family.axes.get(key, same.get(key, fields[key].default))
            if (value := getattr(self, key)) != wanted and not (key == "stacks" and self.spec.encoder_only):
                have = [name for name, f in FAMILIES.items() if key in f.changeable]
                where = f"; it can be chosen in {', '.join(have)}" if have else ""
                raise ValueError(f"{key} {value!r} does not exist in transformers' {self.family}{where}")

    @property
    def table(self) -> Family:
        return FAMILIES[self.family]

    @property
    def spec(self) -> HeadSpec:
        """The head. For `pairs`, a head for words and one for pairs, it is that of the pairs."""
        return self.table.heads[self.head]

    @property
    def decoder(self) -> "ModelConfig":
        """The axes of the decoder stack, which has sizes of its own beside an encoder."""
        if self.stacks != "encoder_decoder":
            return self
        heads = self.decoder_num_heads or self.num_heads
        sizes: dict[str, Any] = {
            "num_layers": self.num_decoder_layers,
            "num_heads": heads,
            "num_kv_heads": heads,
            "intermediate_size": self.decoder_intermediate_size or self.intermediate_size,
            "head_dim": self.head_dim if self.positions == "relative" else self.hidden_size // heads,
        }
        return self.model_copy(update=sizes)

    @property
    def rotary_dim(self) -> int:
        """The first dimensions of a head, which rotary positions rotate."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def long_from(self) -> int | None:
        """The position from which on a text is long, and turns by other frequencies (`longrope`); None: none is."""
        scaling = self.rope_scaling
        return scaling.original_context if scaling and scaling.type == "longrope" else None

    @property
    def causal(self) -> bool:
        """True where one stack writes texts from left to right."""
        return self.stacks == "decoder"

    def window(self, layer: int) -> int | None:
        """Returns how many tokens, itself included, layer number `layer` sees; None where it sees all."""
        if self.sliding_window is None or (self.window_layers and layer not in self.window_layers):
            return None
        return self.sliding_window

    def block_matrices(self, cross: bool = False) -> int:
        """Returns the weights of one block that meet every token. cross: it also reads another stack."""
        return block_matrices(
            self.hidden_size,
            self.head_dim,
            self.num_heads,
            self.num_kv_heads,
            self.intermediate_size,
            self.gated,
            cross,
        )


def block_matrices(
    hidden_size: int, head_dim: int, num_heads: int, num_kv_heads: int, intermediate_size: int, gated: bool, cross: bool
) -> int:
    """Returns the weights of a block's attention and feed-forward matrices."""
    attention = hidden_size * head_dim * (2 * num_heads + 2 * num_kv_heads)
    reading = hidden_size * head_dim * 4 * num_heads if cross else 0
    return attention + reading + hidden_size * intermediate_size * (3 if gated else 2)


# Axes that config.json can always say, or that are none of its business
ALWAYS = {
    "family", "vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "context", "head", "labels",
    "head_dropout", "dropout",
}  # fmt: skip
