"""What a model is fine-tuned for: the `task:` section of a fine-tuning recipe, one schema a task. No torch here."""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field

from lmkit.recipe.objectives import Count, Fraction, Section
from lmkit.recipe.sources import RowQualityConfig, Separator, SourcesConfig


def _fold(value: str | None) -> str | None:
    number, _, folds = (value or "1/2").partition("/")
    if not (number.isdecimal() and folds.isdecimal() and 1 <= int(number) <= int(folds) > 1):
        raise ValueError(f"{value!r}: write the number of a fold and of how many, from `1/5` to `5/5`")
    return value


class TaskSection(Section):
    """What recipes need to know of every task."""

    learns_tokens: ClassVar[bool] = False  # so a batch is a number of tokens, where nothing else is asked for
    new_model: ClassVar[bool] = True  # a model from scratch can be trained for it
    in_steps: ClassVar[bool] = True  # it is trained step by step


def _threshold(value: float | str) -> float | str:
    if value != "auto" and (isinstance(value, str) or not 0 < value < 1):
        raise ValueError(f"{value!r}: write a probability between 0 and 1, or auto")
    return value


class ClassifyConfig(TaskSection):
    """Label whole texts or pairs of texts."""

    name: Literal["classify"] = Field("classify", description="Label whole texts, or pairs of texts.")
    kind: Literal["auto", "single", "multi", "regression"] = Field(
        "auto", description="One label of several, any number of them, or a number; auto: by what the labels look like."
    )
    class_weights: bool = Field(False, description="Weigh each class by the inverse of its share of the rows.")
    label_smoothing: Fraction = Field(0.0, ge=0, lt=1, description="Share of a label given to all other classes.")
    cut: Literal["end", "middle"] = Field(
        "end", description="Where texts above data.max_length are cut; middle: the first quarter and the end stay."
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="New names for labels of the model's head: `{LABEL_0: neg, LABEL_1: pos}`."
    )
    threshold: Annotated[float | str, AfterValidator(_threshold)] = Field(
        0.5,
        description="Probability from which one of several labels holds, or the second of two classes; auto: the best"
        " micro F1 (of two classes macro F1) on held-out rows.",
    )
    calibrate: bool = Field(
        False, description="Divide the logits by the temperature under which held-out labels are likeliest."
    )
    scale_targets: bool = Field(
        True,
        description="Learn numbers in units of their spread, beginning at their mean; the model answers in theirs.",
    )
    baseline: bool = Field(True, description="Also train TF-IDF with logistic regression and print its scores.")
    metric: Literal["accuracy", "macro_f1", "mcc", "auroc", "pearson", "spearman", "micro_f1", ""] = Field(
        "", description="Score that decides which checkpoint is best; by default accuracy, micro_f1 or pearson."
    )


class TagConfig(TaskSection):
    """Label the words of sentences: names, parts of speech."""

    name: Literal["tag"] = Field("tag", description="Label words.")


class QAConfig(TaskSection):
    """Find the answer to a question in a text (SQuAD, Rajpurkar et al. 2016, 2018)."""

    name: Literal["qa"] = Field("qa", description="Find the answer to a question in a text.")
    overlap: Count = Field(128, ge=0, description="Tokens that neighbouring windows of a long text share.")
    max_answer: Count = Field(30, ge=1, description="Longest answer in tokens.")
    no_answer: bool | None = Field(None, description="Whether a question may have no answer; None: by the data.")


class LengthPenalty(Section):
    """What a hypothesis' log-probability is divided by, to compare texts of different lengths in a beam."""

    kind: Literal["average", "gnmt"] = Field(
        "average", description="average: length^alpha (fairseq, transformers); gnmt: ((5 + length) / 6)^alpha."
    )
    alpha: float = Field(1.0, ge=0, description="0: sums; 1 with `average`: means.")


class WritingConfig(TaskSection):
    """What all tasks that write a text from another share."""

    learns_tokens = True

    label_smoothing: Fraction = Field(0.1, ge=0, lt=1, description="Share of a label given to all other words.")
    prompt: str | None = Field(
        None,
        description="What the model reads, with {source} in it. None: the source alone; for decoders '{source}\\n'.",
    )
    beam: Count = Field(4, ge=1, description="Hypotheses kept while writing; 1: greedy.")
    length_penalty: LengthPenalty = Field(default_factory=LengthPenalty, description="Compares lengths in a beam.")
    max_new_tokens: Count = Field(256, ge=1, description="Longest text written.")


class TranslateConfig(WritingConfig):
    """Write the translation of a text; scored by BLEU and chrF."""

    name: Literal["translate"] = Field("translate", description="Write the translation of a text.")
    source_lang: str | None = Field(
        None, description="Language of the sources, as the model's tokenizer names it, like eng_Latn or en_XX."
    )
    target_lang: str | None = Field(None, description="Language to write, for models of several languages.")
    tokenize: Literal["auto", "13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"] = Field(
        "auto", description="sacrebleu's tokenisation of the target language; auto: by its script."
    )


class SummarizeConfig(WritingConfig):
    """Write a summary of a text; scored by ROUGE-L."""

    name: Literal["summarize"] = Field("summarize", description="Write a summary of a text.")


class ChatConfig(TaskSection):
    """Answer in conversations; only what the assistant says is learnt. They are cut to `data.max_length` tokens, by
    default the model's context, at most 1024."""

    learns_tokens = True

    name: Literal["chat"] = Field("chat", description="Answer in conversations.")
    template: str = Field("auto", description="auto: the model's own, else chatml; chatml; or a Jinja file.")
    fold_system: bool = Field(
        False, description="Put the system's message before the first of the user, for templates that have none."
    )


class LMConfig(TaskSection):
    """Go on with pretraining on other text, with the tokenizer the model has."""

    learns_tokens, new_model = True, False

    name: Literal["lm"] = Field("lm", description="Go on with pretraining on other text.")


class AnswerConfig(TaskSection):
    """Answer questions from a knowledge base: look up, else read, else write. Fits the thresholds between these; the
    model is taken as it is."""

    in_steps = False

    name: Literal["answer"] = Field("answer", description="Answer from a knowledge base, or by the model.")
    kb: str = Field("", description="Knowledge base made by `lmkit kb build`.")
    passages: Count = Field(5, ge=1, description="Passages that are read when the answer cannot be looked up.")
    precision: Fraction = Field(
        0.9, gt=0, le=1, description="Share of looked-up answers, and of answers read, that must be right on the data."
    )
    prompt: str = Field(
        "{passages}\n\nQuestion: {question}\nAnswer:", description="What a model that writes answers to."
    )
    max_new_tokens: Count = Field(32, ge=1, description="Longest answer that is written.")


TaskConfig = Annotated[
    ClassifyConfig | TagConfig | QAConfig | TranslateConfig | SummarizeConfig | ChatConfig | LMConfig | AnswerConfig,
    Field(discriminator="name"),
]


SECTIONS: dict[str, type[TaskSection]] = {
    schema.model_fields["name"].default: schema for schema in get_args(get_args(TaskConfig)[0])
}


def section_of(name: str) -> TaskConfig:
    """Returns the section of a task with nothing chosen."""
    return SECTIONS[name]()  # type: ignore[return-value]


class PixelConfig(Section):
    """How images become tokens, for a model that has not learnt it yet."""

    size: Count = Field(0, ge=0, description="Images are scaled down to this many pixels a side; 0: as they are.")
    patch: Count = Field(1, ge=1, description="Pixels a side of what becomes one token.")
    colours: Count = Field(64, ge=2, description="Different tokens: the means that k-means finds among patches.")


class TableConfig(SourcesConfig):
    """Labelled data. Columns are found by common names; naming one here settles it."""

    validation: Fraction | str | list[str] = Field(
        0.1, description="Share of the rows held out, the same of each class; or files of their own."
    )
    text: str | None = Field(None, description="Column of the text, the question of `answer`, or the source.")
    pair: str | None = Field(None, description="Column of the second text of a pair.")
    label: str | None = Field(None, description="Column of the label, or of tags; `a,b`: columns of 0 and 1, one each.")
    target: str | None = Field(
        None, description="Column of the text to write; for files of lines the ending of a name."
    )
    group: str | None = Field(
        None, description="Column of what rows have in common, as a person: rows of one are all held out, or none is."
    )
    fold: Annotated[str | None, AfterValidator(_fold)] = Field(
        None, description="`2/5` holds out the second fifth in place of a share; the five together are all rows, once."
    )
    separator: Separator | None = Field(
        None,
        description="Between the labels of a row that has several (`|`); for `lm` what ends a document in .txt.",
    )
    words: Literal["blanks", "punctuation"] = Field(
        "blanks", description="What parts words to tag; punctuation: marks are words too, as where spans are labelled."
    )
    max_length: Count = Field(0, ge=0, description="Tokens a row is cut to; 0: the model's context, at most 512.")
    pixels: PixelConfig = Field(default_factory=PixelConfig, description="Of images, for a new model.")
    limit: Count = Field(0, ge=0, description="Training rows at most, drawn at random; 0: all.")
    quality: RowQualityConfig = Field(default_factory=RowQualityConfig, description="Which rows are learnt from.")


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2022); DoRA: Liu et al. 2024."""

    rank: Count = Field(16, ge=1, description="Rank of the change to each matrix.")
    alpha: float = Field(32.0, gt=0, description="The change is scaled by alpha / rank.")
    targets: tuple[str, ...] = Field(
        ("attention|cross", "mlp"), description="Regular expressions over module names inside blocks; any match adapts."
    )
    dropout: Fraction = Field(0.0, ge=0, lt=1, description="Dropout on what the adapter reads.")
    dora: bool = Field(False, description="Also learn the length of each row of the changed matrix.")
    merge: bool = Field(True, description="Checkpoints hold the changed weights; False: the adapter, as PEFT keeps it.")
