"""A model and its tokenizer out of a folder, ready to use from Python."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmkit.architecture.model_config import ModelConfig
from lmkit.base.display import note, waiting
from lmkit.base.errors import ModelError, StorageError, UserError
from lmkit.base.files import disk_error, write_atomic, write_json
from lmkit.base.runs import ADAPTER_CONFIG, model_folder, reading
from lmkit.generation.completions import Completion, Opening
from lmkit.generation.engine import complete
from lmkit.generation.filling import Filled, fill_masks
from lmkit.generation.prompts import end_ids, prompt_ids
from lmkit.generation.rules import GENERATION_CONFIG, GENERATION_KEYS, Rules, not_followed, rules_of
from lmkit.generation.sampling import SamplingConfig
from lmkit.images import palette
from lmkit.model.formats.huggingface import check_whole, load_folder, read_config, save_folder
from lmkit.model.formats.peft import adapted_config, load_adapted
from lmkit.model.heads import Head, TaskHead
from lmkit.model.transformer import Transformer
from lmkit.recipe.task_settings import settings_of
from lmkit.text.chat import TEMPLATE_FILE, Chat, find_template, own_template
from lmkit.text.tokenizer import Tokenizer, frame_texts, read_object
from lmkit.text.tokenizer_files import load_tokenizer

OPENING_KEYS = ("decoder_start_token_id", "forced_bos_token_id", "bad_words_ids")
HEADS = {
    "sequence": "it labels texts", "token": "it labels tokens", "span": "it marks answers in texts",
    "none": "it has no head",
}  # fmt: skip
BESIDE = (TEMPLATE_FILE, palette.FILE)  # files of a model's folder that its changed versions keep
USES = dict.fromkeys(HEADS, "`load(...).logits` gives its scores") | {"none": "`load(...).hidden` gives its states"}
TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt")


class Pretrained:
    """A model with its tokenizer, as `load` returns them. `model` is in eval mode and float32; `tokenizer` is None
    where the folder has none."""

    def __init__(self, model: Transformer, folder: Path, base: Path | None = None):
        """base: the folder of the model that `folder`, an adapter's, was merged into. Raises ModelError for files
        beside the weights that are damaged, or another model's."""
        self.model, self.folder = model, folder
        self.homes = [folder, base] if base else [folder]  # of what stands beside the weights
        has_one = lambda home: home.is_file() or any(any(home.glob(name)) for name in TOKENIZER_FILES)
        with_tokenizer = filter(has_one, self.homes)
        self.tokenizer_folder = next(with_tokenizer, None)
        self.tokenizer = tokenizer = load_tokenizer(self.tokenizer_folder) if self.tokenizer_folder else None
        if tokenizer is not None:
            _check_fit(tokenizer, model.config, folder)
        self.config_json = config = adapted_config(folder, base) if base else read_config(folder)
        self.generation_config = next(filter(None, map(_generation_config, self.homes)), {})
        for settings in (config, self.generation_config):
            _check_ids(settings, model.config.vocab_size, folder)
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id", None) for role in ("bos", "eos", "pad")}
        # where there is no generation_config.json, transformers takes what older versions wrote into config.json
        old = {key: value for key, value in config.items() if key in GENERATION_KEYS}
        self.writing_settings: dict[str, Any] = self.generation_config or old
        self.special: dict[str, Any] = {k: v if config.get(k) is None else config[k] for k, v in ids.items()}
        if model.config.stacks == "encoder_decoder":
            settings = config | {k: v for k, v in self.generation_config.items() if v is not None}
            self.special |= {key: settings[key] for key in OPENING_KEYS if settings.get(key) is not None}
        named = [c.get("eos_token_id") for c in (config, self.generation_config)]  # None, an id or a list of ids
        listed = {i for ends in named if ends is not None for i in (ends if isinstance(ends, list) else [ends])}
        self.eos = frozenset(listed) | (end_ids(tokenizer) if tokenizer else frozenset())

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def logits(
        self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, decoder_input_ids: Any = None
    ) -> Tensor:
        """Returns what the head makes of token ids (batch, length), tensors or nested lists, in float32.

        (batch, length, vocabulary) for words, of the decoder's length where there is one; (batch, labels) for texts;
        (batch, length, labels) for tokens and spans. attention_mask: 1 = real; no real token sees a place with 0, whose
        logits mean nothing. Positions count from the first column, as in transformers. decoder_input_ids: what the
        decoder reads; heads for labels and spans make it of input_ids. Raises UserError for what does not fit."""
        if self.config.head == "none":
            raise UserError(f"{self.folder}: a model without a head has no logits\n  → use `hidden`")
        ids, mask = self._ids("input_ids", input_ids), self._mask(input_ids, attention_mask)
        states = self.hidden(ids, mask, token_type_ids, decoder_input_ids)
        if isinstance(self.model.head, TaskHead) and not bool(self._marked(ids, mask)[0].any(1).all()):
            raise UserError("input_ids: a row has no end token (EOS), which this model's head reads")
        with torch.no_grad():
            return self.apply_head(states, ids, mask)

    def apply_head(self, states: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the logits of hidden states (batch, length, hidden). ids: what the model read, (batch, length);
        mask: the same shape, bool, True on real tokens, None where only padding tells."""
        head = self.model.head
        if isinstance(head, Head):
            return head(states)
        marked, real = self._marked(ids, mask)
        last = (marked * torch.arange(ids.size(1), device=ids.device)).argmax(1)
        return head(states, last, real)

    def _marked(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns which tokens may stand for a row, the last of them does, and which are real."""
        pad, end = self.special.get("pad_token_id"), self.special.get("eos_token_id")
        real = mask if mask is not None else torch.ones_like(ids).bool() if pad is None else ids != pad
        by_end = isinstance(self.model.head, TaskHead) and self.model.head.pool == "end"
        return ids.eq(-1 if end is None else end) if by_end else real, real

    @torch.no_grad()
    def hidden(
        self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, decoder_input_ids: Any = None
    ) -> Tensor:
        """Returns the last states (batch, length, hidden), which `logits` gives to the head; the decoder's, if there is
        one."""
        c, ids, keep = self.config, self._ids("input_ids", input_ids), self._mask(input_ids, attention_mask)
        types = None if token_type_ids is None else self._ids("token_type_ids", token_type_ids, c.type_vocab_size)
        if types is not None and types.shape != ids.shape:
            raise UserError(f"token_type_ids has shape {tuple(types.shape)}, input_ids {tuple(ids.shape)}")
        if keep is not None and bool(keep.all()):
            keep = None  # without a mask the fast kernel runs
        if c.causal:
            # As segments, padding sees padding: a masked row that sees nothing would become NaN.
            return self.model(ids, segments=None if keep is None else keep.long())
        if c.stacks == "encoder":
            return self.model(ids, keep, types=types)
        if decoder_input_ids is None and c.head in ("lm", "none"):
            raise UserError("decoder_input_ids is missing: this model's decoder needs something to read")
        targets = self.shifted(ids) if decoder_input_ids is None else self._ids("decoder_input_ids", decoder_input_ids)
        return self.model(ids, keep, targets=targets)

    @property
    def decoder_start(self) -> int:
        """The token an encoder-decoder's decoder starts from. Raises ModelError where nothing names it."""
        start = self.special.get("decoder_start_token_id")
        start = self.special.get(f"{self.config.table.start}_token_id") if start is None else start
        if start is None:
            raise ModelError(f"{self.folder}: config.json names no decoder_start_token_id")
        return int(start)

    def shifted(self, ids: Tensor) -> Tensor:
        """Returns what a decoder reads whose heads label `ids` (batch, length), which its encoder reads."""
        return torch.cat((torch.full_like(ids[:, :1], self.decoder_start), ids[:, :-1]), dim=1)

    def _ids(self, name: str, given: Any, limit: int | None = None) -> Tensor:
        limit = self.config.vocab_size if limit is None else limit
        try:
            ids = torch.as_tensor(given, device=self.model.embedding.weight.device).long()
        except (ValueError, TypeError) as e:
            raise UserError(f"{name} must be (batch, length) of integers: {e}") from None
        if ids.dim() != 2:
            raise UserError(f"{name} must have the shape (batch, length); got {tuple(ids.shape)}")
        if ids.size(1) > self.config.context and self.config.positions != "relative":
            raise UserError(f"{name} has {ids.size(1)} columns; the model's context is {self.config.context}")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < limit:
            raise UserError(f"{name} {int(ids.min())} to {int(ids.max())} lie outside 0..{limit - 1}")
        return ids

    def _mask(self, input_ids: Any, given: Any) -> Tensor | None:
        if given is None:
            return None
        mask, shape = self._ids("attention_mask", given, 2).bool(), self._ids("input_ids", input_ids).shape
        if mask.shape != shape:
            raise UserError(
                "input_ids and attention_mask must have one shape (batch, length);"
                f" got {tuple(shape)} and {tuple(mask.shape)}"
            )
        return mask

    @property
    def opening(self) -> Opening | None:
        """How the decoder beside an encoder begins to write; None for other models. Raises like `decoder_start`."""
        if self.config.stacks != "encoder_decoder":
            return None
        words = self.special.get("bad_words_ids") or []
        never = tuple(word[0] for word in words if len(word) == 1 and word[0] not in self.eos)
        return Opening(self.decoder_start, self.special.get("forced_bos_token_id"), never)

    @property
    def rules(self) -> Rules:
        """What generation_config.json allows to be written; never an id without a token. Raises ModelError."""
        size = self.config.vocab_size
        unused = self.tokenizer.unused_ids(size) if self.tokenizer else ()
        forced = {"forced_bos_token_id": self.special.get("forced_bos_token_id")}
        return rules_of(self.writing_settings | forced, self.eos, size, unused, str(self.folder))

    def generate(self, prompts: list[str], samples: int = 1, **options: Any) -> list[Completion]:
        """Returns `samples` completions of each prompt, in order; of an encoder-decoder, texts written from each
        source.

        options: the fields of `SamplingConfig`. Raises UserError for a model that writes no text."""
        self.check_use("generate")
        config, tokenizer = SamplingConfig(**{"rules": self.rules} | options), self.needs_tokenizer()
        return list(complete(self.model, tokenizer, prompts, config, self.eos, samples, opening=self.opening))

    def fill(self, texts: list[str], top_k: int = 5) -> list[Filled]:
        """Returns the `top_k` likeliest tokens for each mask of each text, in order, with their probabilities.

        Write the tokenizer's mask ([MASK], <mask>) where a word is missing. Raises UserError for a text without one or
        longer than the context, and for a model that fills no masks."""
        self.check_use("fill")
        return list(fill_masks(self.model, self.needs_tokenizer(), texts, top_k))

    def read_whole(self, text: str | list[int]) -> list[int]:
        """Returns the ids of a text as the model reads it in one piece. Raises UserError for one that is empty or
        longer than the context, and for ids that are no tokens."""
        if isinstance(text, list):
            ids = text
            check_ids(ids, self.config.vocab_size, "input")
        elif self.config.causal:
            ids = prompt_ids(self.needs_tokenizer(), text)
        else:
            ids = frame_texts(self.needs_tokenizer(), [text])[0].ids
        if not 0 < len(ids) <= self.config.context:
            raise UserError(f"input: {len(ids):,} tokens, and the model reads 1 to {self.config.context:,}")
        return ids

    @torch.no_grad()
    def embed(self, texts: Sequence[str | list[int]]) -> Tensor:
        """Returns a vector of length 1 for each text, (texts, hidden_size): the mean of an encoder's states, or the
        last state of a decoder. Raises UserError as `read_whole` does."""
        vectors = []
        with self.model.evaluating():
            for text in texts:
                read = torch.tensor([self.read_whole(text)], device=self.model.embedding.weight.device)
                encodes = self.config.stacks == "encoder_decoder"
                states = self.model.encode(read)[0] if encodes else self.hidden(read)[0]  # (length, hidden)
                vectors.append((states[-1] if self.config.causal else states.mean(0)).float().cpu())
        return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)

    def check_use(self, use: Literal["generate", "fill"]) -> None:
        """Raises UserError for a model that cannot do this: says what it is, and what it can."""
        c, what = self.config, f"{self.folder} is a {self.config.spec.cls}"
        if not isinstance(self.model.head, Head):
            raise UserError(f"{what}: {HEADS[c.head]}, and predicts no words\n  → in Python, {USES[c.head]}")
        if (c.stacks == "encoder") != (use == "fill"):
            does = "an encoder, which fills masks" if use == "generate" else "which writes from left to right"
            raise UserError(f"{what}, {does}\n  → use `{'fill' if use == 'generate' else 'generate'}`")

    def chat(self, name: str) -> Chat:
        """Returns the tokenizer with the chat template. Raises UserError for a model, called `name`, that cannot
        chat."""
        self.check_use("generate")
        if self.config.stacks != "decoder":
            raise UserError(f"{name} is a {self.config.spec.cls}\n  → chatting needs a decoder")
        tokenizer, folders = self.needs_tokenizer(), [self.folder]
        if base := read_object(self.folder / ADAPTER_CONFIG).get("base_model_name_or_path"):
            folders.append(model_folder(base))
        template = find_template(folders, "auto", tokenizer)
        if missing := template.missing(tokenizer):
            raise UserError(
                f"{name} has no chat template, and its tokenizer no {' and no '.join(missing)}\n"
                f"  → `lmkit finetune --task chat --model {name} --data CONVERSATIONS` teaches it to chat"
            )
        return Chat(tokenizer, template)

    def needs_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer. Raises ModelError where there is none."""
        if self.tokenizer is None:
            looked = ", ".join(TOKENIZER_FILES)
            raise ModelError(f"{self.folder}: no tokenizer (none of {looked})\n  → copy the model's own there")
        return self.tokenizer

    def save(self, path: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Writes a folder that transformers loads: config, weights, tokenizer, chat template, generation settings; and
        what lmkit knows of the task. Raises StorageError."""
        folder = Path(path)
        problem_type = self.config_json.get("problem_type")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            special = self.special | ({"problem_type": problem_type} if problem_type else {})
            save_folder(self.model, folder, special, dtype)
            if self.generation_config:
                write_json(folder / GENERATION_CONFIG, self.generation_config)
            if self.tokenizer is not None:
                self.tokenizer.save(folder, self.config.context, self.config.type_vocab_size > 1)
            copy_beside(self.homes, folder)
            if settings := settings_of(self.folder):
                settings.write(folder)
        except Exception as e:
            if (problem := disk_error(e)) is None:
                raise
            raise StorageError(f"{folder}: the model could not be written: {problem.strerror}") from None


def check_ids(ids: Sequence[int], vocab_size: int, where: str) -> None:
    """Raises UserError for numbers that are no tokens."""
    if not all(0 <= i < vocab_size for i in ids):
        raise UserError(f"{where}: an id of a token lies outside 0 to {vocab_size - 1}")


def copy_beside(homes: Sequence[Path], folder: Path, names: Sequence[str] = BESIDE) -> None:
    """Copies the files of these names, each from the first of a model's `homes` that has it. A chat template that
    stands in tokenizer_config.json, as older versions of transformers write it, becomes a file."""
    for name in names:
        if home := next((home for home in homes if (home / name).is_file()), None):
            if not (folder / name).exists() or not (folder / name).samefile(home / name):
                shutil.copyfile(home / name, folder / name)
        elif name == TEMPLATE_FILE and (source := next(filter(None, map(own_template, homes)), None)) is not None:
            write_atomic(folder / name, source)


def load(path: Path | str, allow_pickle: bool = False, device: str = "auto", merge: bool = True) -> Pretrained:
    """Returns the model in a run (its best checkpoint), a Hugging Face folder or a GGUF file, in float32. An adapter's
    folder, as PEFT keeps it, is merged into the base model it names, whose tokenizer it takes if it has none of its
    own.

    device: as torch names it; auto takes a GPU if one is there. merge: as for `load_adapted`. Raises ModelError for a
    folder that is missing, damaged or unsupported, or whose tokenizer is another model's."""
    return Pretrained(*read_model(path, allow_pickle, device, merge))


def read_model(
    path: Path | str, allow_pickle: bool = False, device: str = "auto", merge: bool = True
) -> tuple[Transformer, Path, Path | None]:
    """Returns what `Pretrained` is made of. Arguments and errors are those of `load`."""
    folder = model_folder(path)
    with reading(folder), waiting(f"reading {folder}"):
        base = None
        if (folder / ADAPTER_CONFIG).exists():
            check_whole(folder)
            model, base = load_adapted(folder, allow_pickle, merge)
        else:
            model = load_folder(folder, allow_pickle)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return model.to(device), folder, base


def say_untaught(name: str, chat: Chat) -> None:
    """Notes where a model has no chat template of its own, as those that were trained to chat have."""
    if chat.template.foreign:
        note(
            f"{name} has no chat template, so most likely it was not trained to chat: answers only go on with the text"
            f"\n  → `lmkit finetune --task chat --model {name} --data CONVERSATIONS` teaches it to chat"
        )


def say_not_followed(loaded: Pretrained, followed: Iterable[str] = ()) -> None:
    """Notes what generation_config.json asks for and is not done. followed: what the caller does of it."""
    if settings := not_followed(loaded.writing_settings, followed):
        note(f"{GENERATION_CONFIG}: not followed here: {', '.join(settings)}")


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / GENERATION_CONFIG
    try:
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise ModelError(f"{path}: not a JSON object: {e}") from None


def _check_ids(said: dict[str, Any], vocab_size: int, folder: Path) -> None:
    """Raises ModelError for token ids that are none; beyond the embedding only those may lie that are never read."""
    whole = lambda ids: isinstance(ids, list) and all(type(i) is int for i in ids)
    for key, value in said.items():
        ids = [value] if type(value) is int else value
        fits = not (key in OPENING_KEYS and whole(ids)) or all(0 <= i < vocab_size for i in ids)
        if key.endswith("_token_id") and value is not None and not (whole(ids) and fits):
            raise ModelError(f"{folder}: {key}: {value!r} is no token's id\n  allowed: 0 to {vocab_size - 1}")
    words = said.get("bad_words_ids") or []
    if not isinstance(words, list) or not all(whole(word) for word in words):
        raise ModelError(f"{folder}: bad_words_ids is no list of lists of tokens' ids")


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
