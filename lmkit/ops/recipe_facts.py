"""What is known of a recipe before anything is started: its parameters, its files, its rough cost. No torch here."""

from functools import cache
from pathlib import Path

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.base.runs import model_folder
from lmkit.base.units import SECONDS, seconds, show_bytes, show_count, split_quantity
from lmkit.data.inventory import list_data
from lmkit.data.tables.columns import check_settings
from lmkit.plan.memory import parameters
from lmkit.plan.report import hardware
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe
from lmkit.recipe.recipe_file import BY_NAME

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


def describe(recipe: Recipe | FinetuneRecipe) -> tuple[list[str], list[UserError]]:
    """Returns lines about what a recipe would do, and what would stop it: files that are missing or cannot be read."""
    problems, lines = list[UserError](), list[str]()
    finetunes = isinstance(recipe, FinetuneRecipe)
    train, rate = recipe.train, recipe.optimizer.lr
    try:
        size = parameters_of(recipe)
    except ModelError as e:
        problems.append(e)
        size = None
    model = recipe.model if isinstance(recipe.model, str) else f"a new {recipe.model.family}"
    counted = f", {show_count(size)} parameters" if size else ""
    lines.append(f"`lmkit {'finetune' if finetunes else 'pretrain'}` with task {recipe.task.name}")
    lines.append(f"  model  {model}{counted}{', low-rank adapters' if getattr(recipe, 'lora', None) else ''}")
    for key in ("train", "validation"):
        try:
            lines.append(f"  data   {key}: {_said_data(getattr(recipe.data, key), recipe)}")
        except UserError as e:
            problems.append(e)
    for name in (recipe.tokenizer.path, getattr(recipe.task, "kb", None), getattr(recipe.task, "template", None)):
        if name and name not in BY_NAME and not Path(name).exists():
            problems.append(DataError(f"{name}: no such file"))
    lines.append(
        f"  train  {train.budget}, batch {train.batch} {'' if finetunes else 'tokens'}".rstrip()
        + f", {recipe.optimizer.name}, peak learning rate {rate or 'by the width of the model'}, {recipe.schedule.name}"
    )
    return lines, problems


def _said_data(source: float | str | list[str], recipe: Recipe | FinetuneRecipe) -> str:
    """Returns how many files of which size there are. Raises UserError where there are none, or a setting is not for
    this task."""
    if isinstance(recipe, FinetuneRecipe):
        check_settings(recipe.task.name, recipe.data)
    if isinstance(source, float | int):
        return f"{100 * source:.4g}% of these, held out"
    names = list_data([source] if isinstance(source, str) else source, recipe)
    files = [Path(name) for name in names if not name.startswith("hub:")]
    if len(files) < len(names):
        return f"{', '.join(sorted(set(names)))}, which is fetched when training starts"
    size = sum(file.stat().st_size for name in files for file in (name.rglob("*") if name.is_dir() else [name]))
    return f"{len(files):,} file{'s' if len(files) > 1 else ''} there, {show_bytes(size)}"


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
