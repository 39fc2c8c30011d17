"""What a recipe may say: every key, its type, default and meaning, in one place. No torch here.

Keys left open that are not required (`lr`, `batch`, ...) are filled in by `defaults.expand` from the sizes.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from lmkit.architecture.model_config import ModelConfig, quantity
from lmkit.base import units
from lmkit.recipe.objectives import OBJECTIVES, CausalLMConfig, Count, Fraction, ObjectiveConfig, Section
from lmkit.recipe.optimizers import OptimizerName
from lmkit.recipe.sources import QualityConfig, Separator, SourcesConfig

Tokens = Annotated[int, quantity(lambda v: units.count(v, "token"), "2048 tokens", "token")]


def _budget(text: str) -> str:
    number, unit = units.split_quantity(text)
    if unit not in ("", "step", "token", "epoch", *units.SECONDS):
        raise ValueError(f"{text!r}: unit `{unit}` is unknown; write steps, tokens, epochs, or a time in s, min or h")
    if number <= 0:
        raise ValueError(f"{text!r}: nothing would be trained; write a budget above 0")
    return str(text)


def _warmup(text: str) -> str:
    _, unit = units.split_quantity(text)
    if unit not in ("", "step", "%"):
        raise ValueError(f"{text!r}: unit `{unit}` is unknown; write a number of steps or a share like 2%")
    return str(text)


Budget = Annotated[str, quantity(str, "3 epochs", "step", "token", "epoch", *units.SECONDS), AfterValidator(_budget)]
Warmup = Annotated[str, quantity(str, "40 steps", "step", "%"), AfterValidator(_warmup)]


class ModelSection(ModelConfig):
    preset: str | None = Field(
        None, exclude=True, description="Published sizes to start from: `lmkit recipes families`."
    )
    depth: Count | None = Field(None, ge=1, exclude=True, description="One dial: sizes follow from it; any can be set.")


class TokenizerConfig(Section):
    type: Literal["bpe", "wordpiece", "unigram", "sentencepiece", "bytes"] = Field(
        "bpe",
        description="Kind to train; unigram and sentencepiece are that library's Unigram and BPE, with byte fallback.",
    )
    vocab_size: Count = Field(
        4096,
        ge=260,
        description="Entries, special tokens included. Small models on a CPU want 2k-8k: the head dominates.",
    )
    split: Literal["qwen2", "two_digits"] = Field(
        "qwen2",
        description="Words of bpe and bytes: as Qwen2 cuts them, which llama.cpp can do; or with two digits in a word.",
    )
    special: tuple[str, ...] = Field(
        (), description="Texts that are one token each wherever they stand, like `[<drug>, <gene>]`."
    )
    path: str | None = Field(
        None,
        description="Take this tokenizer instead: a tokenizer.json, folder, sentencepiece .model, GGUF file or run.",
    )
    lowercase: bool = Field(False, description="WordPiece only: lower-case and strip accents, as uncased BERT does.")
    sample: Count = Field(
        100_000_000, ge=1, description="Bytes of text to train the tokenizer on, drawn evenly from all inputs."
    )


class DataConfig(SourcesConfig):
    train: str | list[str] = Field(description="Files, folders, globs, a folder made by `lmkit tokenize`, or hub:NAME.")
    validation: Fraction | str | list[str] = Field(
        0.05, description="Share of the documents held out, chosen by document hash; or files of their own."
    )
    separator: Separator | None = Field(
        None,
        description="Text that ends a document inside .txt files, like '<|endoftext|>'. None: a file is a document.",
    )
    text: str = Field("text", description="Column or key of the text, as of .jsonl; `body.text` lies inside `body`.")
    target: str | None = Field(
        None,
        description="Makes pairs: column or key of the target text, beside that of the source in `text`. For files of "
        "a sentence a line both are endings of names: with `text: en` and `target: de`, train.en goes with train.de.",
    )
    document_masking: bool = Field(False, description="Packed documents do not attend to each other.")
    quality: QualityConfig = Field(default_factory=QualityConfig, description="Which documents are learnt from.")

    @model_validator(mode="after")
    def _check_quality(self) -> "DataConfig":
        if self.target is not None and self.quality != QualityConfig():
            raise ValueError("data.quality judges documents, and data.target makes pairs\n  → leave one of them out")
        return self


class GroupRule(Section):
    match: str = Field(description="Regular expression over parameter names, like 'embedding' or 'blocks.0'.")
    lr_scale: float = Field(1.0, ge=0, description="Multiplies the learning rate of the matching parameters.")
    weight_decay: float | None = Field(None, ge=0, description="Replaces their weight decay; None: keep.")


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    name: OptimizerName = Field(
        "muon",
        description="Muon trains the matrices inside blocks, AdamW the rest; any other name trains everything."
        " adamw_rms: AdamW with steps in units of each tensor's size (nanoT5).",
    )
    lr: float | None = Field(None, ge=0, description="Peak learning rate; by default from model size and batch.")
    embedding_lr: float | None = Field(None, ge=0, description="muon: peak AdamW learning rate of the token embedding.")
    head_lr: float | None = Field(None, ge=0, description="muon: peak AdamW learning rate of head, norms and biases.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled decay of matrices; for muon of those inside blocks.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="Adam: decay of the first and second moment.")
    eps: float = Field(1e-8, ge=0, description="Added to the root of the second moment.")
    momentum: float = Field(0.95, ge=0, lt=1, description="muon and sgd.")
    nesterov: bool = Field(False, description="sgd: Nesterov momentum.")
    groups: tuple[GroupRule, ...] = Field((), description="Exceptions by parameter name.")


class ScheduleConfig(Section):
    name: Literal["wsd", "cosine", "linear", "inverse_sqrt", "constant"] = Field(
        "wsd", description="wsd: warm-up, stable, linear decay."
    )
    warmup: Warmup = Field("40 steps", description="Steps, or a share of the horizon, of linear warm-up.")
    decay: Fraction = Field(0.6, description="wsd: the last share of the horizon, over which the rate falls linearly.")
    floor: Fraction = Field(0.0, description="Learning rate at the end, as a share of its peak.")


class TrainConfig(Section):
    budget: Budget = Field(
        "", description="Horizon: `2000 steps`, `10M tokens`, `2 epochs` or `3 min`. Default: by depth."
    )
    batch: Annotated[int, quantity(lambda v: units.count(v, "token"), "16 rows", "token", "row")] = Field(
        0,
        ge=0,
        description="Tokens an optimizer step, over all micro-batches, or rows: `16 rows`. Default: from the size.",
    )
    micro_batch: Tokens = Field(0, ge=0, description="Tokens a forward pass; changes speed and memory only. 0: chosen.")
    clip: float | None = Field(None, gt=0, description="Largest gradient norm; None: off.")
    spikes: Literal["log", "skip", "rollback"] = Field(
        "log",
        description="A loss or gradient norm 6 deviations above the last 128: told; not learnt from; or the run goes"
        " back to its last checkpoint and passes over the batch, as it then does after three non-finite steps too.",
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of an average of the weights, which is then the model."
    )
    seed: Count = Field(0, ge=0, description="Of weights, data order and dropout.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, else mps, else cpu.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16, else fp16, on a GPU; fp32 on a CPU."
    )
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile; auto: where it repays its start.")
    recompute: bool = Field(False, description="Make activations again in the backward pass: less memory, slower.")


class ParallelConfig(Section):
    data: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp: every process holds the model. fsdp: each holds a shard of it (FSDP2)."
    )
    shards: Count = Field(0, ge=0, description="fsdp: processes that share one copy of the model. 0: all.")
    tensor: Count = Field(1, ge=1, description="Processes that share each matrix, and read the same data.")
    offload: bool = Field(False, description="fsdp: weights and moments rest in main memory.")
    patience: Count = Field(600, ge=1, description="Seconds without a step after which the run is taken to hang.")


class EvaluateConfig(Section):
    every: Warmup = Field("10%", description="Steps, or a share of the horizon, between evaluations.")
    tokens: Tokens = Field(500_000, ge=1, description="Validation tokens an evaluation reads at most.")
    sample: str | None = Field(
        "", description="Prompt continued at every evaluation; empty: from nothing; None: no sample."
    )
    sample_tokens: Tokens = Field(40, ge=1, description="Length of that text.")


class CheckpointConfig(Section):
    every: Warmup = Field("10%", description="Steps, or a share of the horizon, between checkpoints.")
    keep: Count = Field(2, ge=1, description="Newest checkpoints kept; the best one is always kept.")
    asynchronous: bool = Field(
        False, alias="async", description="Write them while training goes on; costs a copy of all that is saved."
    )
    average: Count = Field(0, ge=0, description="At the end, also average the weights of the last N checkpoints.")

    @model_validator(mode="after")
    def _check(self) -> "CheckpointConfig":
        if self.average > self.keep:
            raise ValueError(
                f"checkpoint.average {self.average} needs as many checkpoints kept; checkpoint.keep is {self.keep}\n"
                f"  → checkpoint.keep={self.average}"
            )
        return self


class TrackerConfig(Section):
    name: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = Field(
        "none", description="Where the metrics go beside metrics.jsonl; needs the extra of the same name."
    )
    project: str = Field("lmkit", description="What the tracker files the run under.")

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, value: object) -> object:
        """Reads `tracker: wandb` as `tracker: {name: wandb}`."""
        return {"name": value} if isinstance(value, str) else value


class Recipe(Section):
    task: ObjectiveConfig = Field(default_factory=CausalLMConfig, description="What is learnt. Default: by family.")
    model: ModelSection = Field(description="The architecture.")
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig, description="Text to ids.")
    data: DataConfig = Field(description="What to read.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="How weights move.")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="Learning rate over time.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="How long, how fast, on what.")
    parallel: ParallelConfig = Field(
        default_factory=ParallelConfig, description="How several processes share the work."
    )
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Scores during training.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What is kept.")
    tracker: TrackerConfig = Field(default_factory=TrackerConfig, description="Who else is told of the metrics.")

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        self._check_task()
        pairs = self.task.name == "seq2seq"  # its rows have lengths of their own
        if self.train.batch % self.model.context and not pairs:
            near = max(1, round(self.train.batch / self.model.context)) * self.model.context
            raise ValueError(
                f"train.batch {self.train.batch} is no multiple of model.context {self.model.context}; nearest: {near}"
            )
        if self.train.micro_batch % self.model.context and not pairs:
            raise ValueError(
                f"train.micro_batch {self.train.micro_batch} is not a multiple of model.context {self.model.context}"
            )
        return self

    def _check_task(self) -> None:
        task, model = self.task, self.model
        fitting = OBJECTIVES[model.stacks]
        if task.name not in fitting:
            raise ValueError(
                f"task {task.name} does not fit model.family {model.family}, a {model.stacks}; it learns"
                f" {' or '.join(fitting)}"
            )
        if (task.name == "seq2seq") != (self.data.target is not None):
            raise ValueError(
                "data.target is missing: seq2seq needs pairs of texts, a column or file ending for each side"
                if task.name == "seq2seq"
                else f"data.target makes pairs of texts, which {task.name} does not read"
            )
        if self.data.document_masking and (model.stacks == "encoder_decoder" or getattr(task, "pairs", None)):
            raise ValueError(
                "data.document_masking fits packed rows of documents only: causal_lm, or masked_lm without pairs"
            )
        if self.data.weights and getattr(task, "pairs", None):
            raise ValueError("data.weights keeps sources apart, and task.pairs draws from all\n  → leave one out")
        head = "pairs" if getattr(task, "pairs", None) else "lm"
        if model.head != head or model.labels:
            raise ValueError(
                f"model.head {model.head} with labels {list(model.labels)}: pretraining has {head}; leave both out"
            )
