"""What is learnt: the `task:` section of a pretraining recipe, one schema an objective. No torch here."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lmkit.architecture.families import FAMILIES
from lmkit.architecture.model_config import Count, quantity
from lmkit.base import units

Fraction = Annotated[float, quantity(units.fraction, "5%", "%")]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are checked, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


class CausalLMConfig(Section):
    """Predict the next token (GPT, Radford et al. 2018)."""

    name: Literal["causal_lm"] = Field("causal_lm", description="Predict the next token.")


class MaskedLMConfig(Section):
    """Predict masked tokens (BERT, Devlin et al. 2019), and whether two texts belong together."""

    name: Literal["masked_lm"] = Field("masked_lm", description="Predict tokens that were masked.")
    rate: Fraction = Field(0.3, gt=0, lt=1, description="Share of a row's tokens to predict. BERT 15%, ModernBERT 30%.")
    eval_rate: Fraction = Field(0.15, gt=0, lt=1, description="That share in evaluations: 15% compares with others.")
    most: Count | None = Field(None, ge=1, description="At most this many masks a row; None: no limit.")
    split: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="Shares of these that become the mask, a random token, or stay."
    )
    whole_word: bool = Field(False, description="Mask all pieces of a word together.")
    max_ngram: Count = Field(1, ge=1, description="Mask up to this many words in a row, shorter ones more often.")
    pairs: Literal["next_sentence", "sentence_order"] | None = Field(
        None,
        description="Rows are two texts, and the model says whether B follows A (BERT) or they were swapped (ALBERT).",
    )
    short_pairs: Fraction = Field(0.1, ge=0, lt=1, description="Share of pairs cut to a random shorter length.")

    @model_validator(mode="after")
    def _check(self) -> "MaskedLMConfig":
        if min(self.split) < 0 or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split {list(self.split)} is not three shares that add up to 1")
        return self


class Denoiser(Section):
    """One way to corrupt spans. UL2's R: 15% in spans of 3 or 8; X: 50%, or spans of 32 and more; S: `prefix`."""

    density: Fraction = Field(0.15, gt=0, lt=1, description="Share of tokens that are noise; of a prefix, its mean.")
    mean_span: float = Field(3.0, ge=1, description="Mean length of a span of noise.")
    prefix: bool = Field(False, description="One span, the end of the text: a prefix language model.")
    mode: str | None = Field(None, description="A token of the tokenizer put first, to tell denoisers apart.")


class SpanCorruptionConfig(Section):
    """Write the spans that were cut out (T5, Raffel et al. 2020; UL2, Tay et al. 2022)."""

    name: Literal["span_corruption"] = Field("span_corruption", description="Write the spans that were cut out.")
    denoisers: tuple[Denoiser, ...] = Field(
        (Denoiser(density=0.15, mean_span=3.0, prefix=False, mode=None),),
        min_length=1,
        description="How, drawn anew for every row: a list of {density, mean_span, prefix, mode}.",
    )


class DenoisingConfig(Section):
    """Write a text again that was damaged (BART, Lewis et al. 2020)."""

    name: Literal["denoising"] = Field("denoising", description="Write a damaged text again.")
    rate: Fraction = Field(0.3, ge=0, lt=1, description="Share of tokens in spans that give way to one mask each.")
    mean_span: float = Field(3.0, ge=1, description="Mean of their Poisson lengths; one of no length inserts a mask.")
    permute: Fraction = Field(1.0, ge=0, le=1, description="Share of rows whose sentences are put in random order.")
    rotate: Fraction = Field(0.0, ge=0, le=1, description="Share of rows that begin at a random token.")
    delete: Fraction = Field(0.0, ge=0, lt=1, description="Share of tokens removed without a trace.")


class Seq2SeqConfig(Section):
    """Write the target of a source (Vaswani et al. 2017), from data with `data.target`."""

    name: Literal["seq2seq"] = Field("seq2seq", description="Write the target of a source text.")
    label_smoothing: Fraction = Field(
        0.1, ge=0, lt=1, description="Share of a label given to all other words (fairseq's)."
    )


ObjectiveConfig = Annotated[
    CausalLMConfig | MaskedLMConfig | SpanCorruptionConfig | DenoisingConfig | Seq2SeqConfig,
    Field(discriminator="name"),
]
OBJECTIVES = {  # what a family's architecture can learn; `default_objective` says what it does if nothing is said
    "decoder": ("causal_lm",),
    "encoder": ("masked_lm",),
    "encoder_decoder": ("seq2seq", "denoising", "span_corruption"),
}


def default_objective(family: str) -> str:
    """Returns the objective that the family was first trained for."""
    if family in ("t5", "mt5"):
        return "span_corruption"
    if family in ("bart", "mbart"):
        return "denoising"
    entry = FAMILIES.get(family)
    return OBJECTIVES[entry.axes.get("stacks", "decoder")][0] if entry else "causal_lm"
