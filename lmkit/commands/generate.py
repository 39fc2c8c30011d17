"""`lmkit generate`: continue texts, write texts from others, or fill in masks, as the model does."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmkit.commands import options
from lmkit.commands.app import app
from lmkit.commands.options import read_prompts

if TYPE_CHECKING:
    from lmkit.generation.sampling import SamplingConfig


@app.command(epilog="Example: lmkit generate runs/demo 'It was' --max-tokens 20 --temperature 0.7 --seed 1")
def generate(
    context: typer.Context,
    model: options.Model,
    prompt: options.Prompt = None,
    file: options.PromptFile = None,
    n: Annotated[int, typer.Option("-n", "--samples", help="Continuations of each prompt.", min=1)] = 1,
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.Penalty = 1.0,
    seed: options.Seed = 0,
    stop: options.Stop = None,
    min_tokens: options.MinTokens = 0,
    no_repeat_ngram: options.NoRepeatNgram = 0,
    stop_ids: options.StopIds = None,
    typical_p: options.TypicalP = 1.0,
    presence_penalty: options.PresencePenalty = 0.0,
    frequency_penalty: options.FrequencyPenalty = 0.0,
    logit_bias: options.LogitBias = None,
    logprobs: options.Logprobs = 0,
    choices: options.Choices = None,
    regex: options.Regex = None,
    json_schema: options.JsonSchema = None,
    quant: options.Quant = None,
    speculate: options.Speculate = None,
    control_tokens: options.ControlTokens = False,
    beam: options.Beam = 1,
    length_penalty: options.LengthPenalty = 1.0,
    source_lang: options.SourceLang = None,
    target_lang: options.TargetLang = None,
    stream: options.Stream = None,
    as_json: options.Json = False,
    allow_pickle: options.Pickle = False,
) -> None:
    """Continue a text; write one from another (T5, BART, Marian); fill in the masks of one (BERT and its kin).

    Masks and gaps are written as the model's tokenizer names them: [MASK], <mask>, for T5 <extra_id_0>, <extra_id_1>.
    A model that was fine-tuned to answer questions answers the prompt.
    """
    prompts = read_prompts(prompt, file)
    given = [k for k in context.params if (s := context.get_parameter_source(k)) and s.name == "COMMANDLINE"]
    from lmkit.ops import answers, writing
    from lmkit.recipe.task_settings import settings_of

    config, settings = _sampling(context.params), settings_of(model)
    if settings and settings.task.name == "answer":
        answers.check_generate_options(given)
        most = max_tokens if "max_tokens" in given else None
        answers.answer_questions(model, prompts, None, most, as_json, allow_pickle)
        return
    show = sys.stdout.isatty() if stream is None else stream
    more = writing.WritingOptions(
        (source_lang, target_lang), min_tokens, no_repeat_ngram, tuple(stop_ids or ()), control_tokens, beam,
        length_penalty, writing.Constraint(choices, regex, json_schema), quant, speculate,
    )  # fmt: skip
    writing.write_texts(model, prompts, config, n, as_json, show, allow_pickle, given, more)


def _sampling(params: dict[str, Any]) -> "SamplingConfig":
    """Returns how tokens are chosen, by the options of the command. Raises UserError for a value out of range."""
    from lmkit.generation.sampling import SamplingConfig

    names = (
        "max_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "seed",
    )  # fmt: skip
    biases = tuple(map(options.token_and_bias, params["logit_bias"] or ()))
    return SamplingConfig(
        **{name: params[name] for name in names}, stop=tuple(params["stop"] or ()), logit_bias=biases,
        top_logprobs=params["logprobs"],
    )  # fmt: skip
