"""Opens GGUF files, in which llama.cpp keeps a whole model: metadata, tokenizer and tensors."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from lmkit.base.errors import ModelError, UserError


@dataclass(frozen=True)
class GgufFile:
    """The content of a file. `tensors` are those of `gguf.GGUFReader`, in their own number formats."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Any]

    def needed(self, key: str) -> Any:
        """Returns the value of a key of the metadata. Raises ModelError where there is none."""
        if key not in self.metadata:
            raise ModelError(f"{self.path}: its metadata lack {key}\n  → convert the model again")
        return self.metadata[key]


def is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" and path.is_file()


def gguf_library() -> ModuleType:
    """Returns the package `gguf`. Raises UserError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError('GGUF files need the package gguf: pip install "lmkit[gguf]"') from None
    return gguf


def read_gguf(path: Path) -> GgufFile:
    """Returns what is in a GGUF file; tensors are read from the disk when they are used.

    Raises ModelError for a file that is damaged or cut off."""
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # configuration, tokenizer, template and tensors are asked for one after the other
def _read(path: Path, changed: int) -> GgufFile:
    library = gguf_library()
    try:
        reader = library.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        return GgufFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})
    except Exception as e:  # the reader raises whatever numpy makes of damaged bytes
        raise ModelError(f"{path}: damaged, cut off, or not a GGUF file: {e}\n  → get the file again") from None
