"""A model and its tokenizer out of a folder, ready to use from Python."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmkit.architecture import ModelConfig
from lmkit.errors import ModelError, StorageError, UserError
from lmkit.files import write_json
from lmkit.generation.engine import Completion, complete, end_ids
from lmkit.generation.sampling import SamplingConfig
from lmkit.model.huggingface import load_folder, read_config, save_folder
from lmkit.model.transformer import Transformer
from lmkit.runs import model_folder
from lmkit.text.tokenizer import Tokenizer, load_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt")


class Pretrained:
    """What `load` gives. `model` is in eval mode and float32; `tokenizer` is None where the folder has none."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None, folder: Path):
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        config = read_config(folder)
        self.generation_config = _generation_config(folder)
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id", None) for role in ("bos", "eos", "pad")}
        self.special: dict[str, Any] = {k: v if config.get(k) is None else config[k] for k, v in ids.items()}
        named = [c.get("eos_token_id") for c in (config, self.generation_config)]  # None, an id or a list of ids
        listed = {i for ends in named if ends is not None for i in (ends if isinstance(ends, list) else [ends])}
        self.eos = frozenset(listed) | (end_ids(tokenizer) if tokenizer else frozenset())

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @torch.no_grad()
    def logits(self, input_ids: Any, attention_mask: Any = None) -> Tensor:
        """(batch, length, vocabulary) float32 of token ids (batch, length), a tensor or nested lists.

        attention_mask: (batch, length), 1 = real; no real token sees a place with 0, whose logits mean nothing.
        Positions count from the first column, as in transformers. Raises UserError for what does not fit."""
        device, c = self.model.head.weight.device, self.config
        try:
            ids = torch.as_tensor(input_ids, device=device).long()
            mask = None if attention_mask is None else torch.as_tensor(attention_mask, device=device).bool()
        except (ValueError, TypeError) as e:
            raise UserError(f"input_ids and attention_mask must be (batch, length) of integers: {e}") from None
        if ids.dim() != 2 or (mask is not None and mask.shape != ids.shape):
            shapes = f"{tuple(ids.shape)} and {None if mask is None else tuple(mask.shape)}"
            raise UserError(f"input_ids and attention_mask must have one shape (batch, length); got {shapes}")
        if ids.size(1) > c.context:
            raise UserError(f"input_ids has {ids.size(1)} columns; the model's context is {c.context}")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < c.vocab_size:
            raise UserError(
                f"input_ids {int(ids.min())} to {int(ids.max())} lie outside the vocabulary 0..{c.vocab_size - 1}"
            )
        # As segments, padding sees padding: a masked row that sees nothing would become NaN.
        segments = None if mask is None or bool(mask.all()) else mask.long()
        return self.model.head(self.model(ids, segments=segments))

    def generate(self, prompts: list[str], samples: int = 1, **options: Any) -> list[Completion]:
        """`samples` completions of each prompt, in order. options: the fields of `SamplingConfig`."""
        return list(complete(self.model, self.needs_tokenizer(), prompts, SamplingConfig(**options), self.eos, samples))

    def needs_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ModelError where there is none."""
        if self.tokenizer is None:
            looked = ", ".join(TOKENIZER_FILES)
            raise ModelError(f"{self.folder}: no tokenizer (none of {looked})\n  → copy the model's own there")
        return self.tokenizer

    def save(self, path: Path | str) -> None:
        """Write a folder that transformers loads: config, weights in float32, tokenizer. Raises StorageError."""
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_folder(self.model, folder, self.special)
            if self.generation_config:
                write_json(folder / "generation_config.json", self.generation_config)
            if self.tokenizer is not None:
                self.tokenizer.save(folder, self.config.context)
        except OSError as e:
            raise StorageError(f"{folder}: the model could not be written: {e.strerror or e}") from None


def load(path: Path | str, allow_pickle: bool = False, device: str = "auto") -> Pretrained:
    """The model in a run (its latest checkpoint) or a Hugging Face folder, in float32.

    device: as torch names it; auto takes a GPU if one is there. Raises ModelError for a folder that is missing, damaged
    or unsupported, or whose tokenizer is another model's."""
    folder = model_folder(path)
    model = load_folder(folder, allow_pickle)
    tokenizer = load_tokenizer(folder) if any(any(folder.glob(name)) for name in TOKENIZER_FILES) else None
    if tokenizer is not None:
        _check_fit(tokenizer, model.config, folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return Pretrained(model.to(device), tokenizer, folder)


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    try:
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}
    except (ValueError, TypeError) as e:
        raise ModelError(f"{path}: not a JSON object: {e}") from None


def _check_fit(tokenizer: Tokenizer, config: ModelConfig, folder: Path) -> None:
    """Control tokens added later (padding, mostly) may lie beyond the embedding: text never becomes one."""
    largest = tokenizer.vocab_size - 1
    while largest in tokenizer.special_ids - {tokenizer.bos_id, tokenizer.eos_id}:
        largest -= 1
    if largest >= config.vocab_size:
        raise ModelError(
            f"{folder}: the tokenizer has tokens up to id {largest}, the model has {config.vocab_size} embeddings\n"
            "  → they do not belong together: copy the tokenizer the model was trained with"
        )
