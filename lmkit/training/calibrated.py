"""A copy of a model whose logits are divided by a temperature. It is a plain model, which any program reads."""

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from lmkit.architecture.model_config import ModelConfig
from lmkit.architecture.tensor_names import tensor_names
from lmkit.recipe.task_settings import TaskSettings


def calibrated_writer(
    folder: Path, config: ModelConfig, settings: TaskSettings, temperature: float
) -> Callable[[Path], None]:
    """Returns a function that writes the copy: weights and bias of the head's last layer, which is linear, are divided.

    folder: a Hugging Face or PEFT folder of a model with the axes `config`. settings: those of the copy."""
    output = f".{tensor_names(config)['head.output'][0]}."

    def write(copy: Path) -> None:
        for file in folder.resolve().iterdir():
            if file.suffix == ".safetensors":
                tensors = load_file(file)
                for name in tensors:
                    if output in f".{name}":
                        tensors[name] = tensors[name] / temperature
                save_file(tensors, copy / file.name, metadata={"format": "pt"})
            elif file.is_file():
                shutil.copy(file, copy)
        settings.write(copy)

    return write
