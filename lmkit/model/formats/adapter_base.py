"""Which weights an adapter belongs to. On other weights it would give other answers, and nobody would notice."""

from pathlib import Path

from lmkit.base.errors import ModelError
from lmkit.base.files import sha256
from lmkit.text.tokenizer import read_object

FILE = "adapter_base.json"  # a file in an adapter's folder, which PEFT ignores


def weight_checksums(base: Path) -> dict[str, str]:
    """Returns the sha256 of each file of weights of a model's folder, or of a GGUF file, by the file's name."""
    files = [base] if base.is_file() else sorted(p for kind in ("*.safetensors", "*.bin") for p in base.glob(kind))
    return {file.name: sha256(file) for file in files}


def check_base(folder: Path, base: Path) -> None:
    """Raises ModelError where `base` does not hold the weights that the adapter in `folder` was trained on.

    Folders that PEFT wrote do not say which weights these were, and are not checked."""
    trained_on = read_object(folder / FILE)
    if trained_on and trained_on != weight_checksums(base):
        raise ModelError(
            f"{folder}: its base {base} has other weights than those it was trained on\n"
            "  → put back the weights it was trained on, or train the adapter again on these"
        )
