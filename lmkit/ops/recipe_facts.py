"""What is known of a recipe before anything is started: its parameters, its files, its rough cost. No torch here."""

from functools import cache
from pathlib import Path

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.errors import ModelError
from lmkit.base.runs import model_folder
from lmkit.base.units import SECONDS, seconds, split_quantity
from lmkit.plan.memory import parameters
from lmkit.plan.report import hardware
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe

CPU_SHARE = 0.3  # of the speed of a matrix product that training small models reaches on a CPU (an assumption)


def parameters_of(recipe: Recipe | FinetuneRecipe) -> int | None:
    """Returns the number of parameters; None where only loading the model would tell. Raises ModelError."""
    if isinstance(recipe.model, str):
        return _stored_parameters(model_folder(recipe.model))
    c = ModelConfig(**recipe.model.model_dump())
    return parameters(c if c.vocab_size else c.model_copy(update={"vocab_size": recipe.tokenizer.vocab_size})).total


def _stored_parameters(folder: Path) -> int | None:
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            with safe_open(file, framework="numpy") as tensors:
                shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as e:
            raise ModelError(f"{file}: damaged or not safetensors: {e}") from None
        for shape in shapes:
            size = 1
            for length in shape:
                size *= length
            total += size
    return total or None


def rough_seconds(
    recipe: Recipe | FinetuneRecipe, num_parameters: int | None, tokens: float, rows: int
) -> float | None:
    """Returns about how long training takes on this CPU; None where that cannot be told.

    tokens, rows: of the training data, 0 where they are not known."""
    number, unit = split_quantity(recipe.train.budget)
    if unit in SECONDS:
        return seconds(recipe.train.budget)
    batch, batch_unit = split_quantity(recipe.train.batch)
    batch_tokens = batch * tokens / rows if batch_unit == "row" and rows else batch
    total = number * {"epoch": tokens, "token": 1}.get(unit, batch_tokens)
    if not total or num_parameters is None:
        return None
    return 6 * num_parameters * total / (CPU_SHARE * _cpu_speed())  # forward and backward (Kaplan et al. 2020)


@cache
def _cpu_speed() -> float:
    return hardware("cpu").peak


def said_time(duration: float) -> str:
    """Returns a rough time as people say it."""
    minutes = duration / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{max(1, round(minutes))} min"
