"""Reads and writes Hugging Face folders. The names of tensors are in `lmkit.architecture.families`, for both."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmkit.architecture.families import FAMILIES, Family
from lmkit.architecture.model_config import ModelConfig
from lmkit.architecture.tensor_names import tensor_names
from lmkit.base.display import note
from lmkit.base.errors import ModelError, did_you_mean
from lmkit.base.files import share, write_json
from lmkit.base.gguf_file import is_gguf
from lmkit.base.manifest import MANIFEST, damage
from lmkit.base.runs import OWN
from lmkit.model.formats.config_json import config_from_hf, config_to_hf
from lmkit.model.formats.gguf import TRANSPOSED, gguf_config, gguf_tensors
from lmkit.model.heads import TaskHead
from lmkit.model.sharding import fill_tensor, whole
from lmkit.model.transformer import Transformer

WEIGHTS = "model.safetensors"
MOST_LAYERS, MOST_CONTEXT = 10_000, 2**22
# Older versions of transformers saved more than weights: masks, tables and counters that every loader makes anew, and a
# bias that T5's cross-attention never used.
IGNORED = re.compile(
    r"(\.(attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq|position_ids|coder\.version"
    r"|EncDecAttention\.relative_attention_bias\.weight)$"
)
RENAMED = {"embed_out.": "lm_head."}  # of GPT-NeoX in older files
LEGACY = {".gamma": ".weight", ".beta": ".bias"}  # names of LayerNorm's parameters in files that come from TensorFlow


def _tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yields the name and tensor of each parameter, and of the one buffer that is saved: BART's bias."""
    saved = model.state_dict().keys()
    return chain(model.named_parameters(), ((n, b) for n, b in model.named_buffers() if n in saved))


def _theirs(names: dict[str, tuple[str, ...]], name: str) -> list[str]:
    ours, leaf = name.rsplit(".", 1)
    return [f"{other}.{leaf}" if other else leaf for other in names[ours]]


def to_hf(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor under its Hugging Face name. A tied head is left out, as transformers does."""
    c, names = model.config, tensor_names(model.config)
    for name, p in _tensors(model):
        theirs = _theirs(names, name)
        full = in_files(model, name, whole(p.detach(), model.moved_rows.get(name)))
        parts = full.split(model.row_blocks(name)) if len(theirs) > 1 else (full,)
        for other, part in zip(theirs, parts, strict=True):
            # a view would keep its whole storage
            yield other, as_stored(c, other, part).clone(memory_format=torch.contiguous_format)
    if c.table.stored_positions:
        for name, stack in zip(("encoder", "decoder"), model.stacks, strict=True):
            yield f"model.{name}.embed_positions.weight", stack.inputs.places.clone()


def in_files(model: Transformer, name: str, weights: Tensor, back: bool = False) -> Tensor:
    """Returns a parameter as files have it: the output layer of a head times its unit, all others as they are. back:
    does the inverse. Both are exact, since units are powers of two."""
    unit = model.head.unit if isinstance(model.head, TaskHead) and name.startswith("head.output.") else None
    if unit is None:
        return weights
    return weights / unit if back else weights * unit


def as_stored(c: ModelConfig, name: str, weights: Tensor) -> Tensor:
    """Returns a tensor of ours as transformers stores it under `name`.

    GPT-2 stores matrices (in, out); GPT-NeoX has the rows of queries, keys and values head by head."""
    if c.family == "gpt2" and TRANSPOSED.search(name):
        return weights.t()
    if ".query_key_value." in name:
        return weights.unflatten(0, (3, c.num_heads, -1)).transpose(0, 1).flatten(0, 2)
    return weights


def as_ours(c: ModelConfig, name: str, weights: Tensor) -> Tensor:
    """Undoes `as_stored`."""
    if ".query_key_value." in name:
        return weights.unflatten(0, (c.num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return as_stored(c, name, weights)


def _bare(family: Family, name: str, prefix: str | None) -> str:
    """Returns the name without the prefix of the model's body, which only some files have."""
    name = next((name[: -len(old)] + new for old, new in LEGACY.items() if name.endswith(old)), name)
    name = next((new + name[len(old) :] for old, new in RENAMED.items() if name.startswith(old)), name)
    return name.removeprefix(prefix or family.prefix).removeprefix(family.prefix)


@torch.no_grad()
def from_hf(model: Transformer, tensors: dict[str, Tensor], where: str) -> None:
    """Fills `model` in place. Raises a ModelError that lists missing and left-over tensors, and those that do not fit.

    where: the folder or file that the tensors come from, for messages."""
    c, names, family = model.config, tensor_names(model.config), model.config.table
    bare = lambda name: _bare(family, name, c.spec.prefix)
    theirs = {bare(k): v for k, v in tensors.items() if not IGNORED.search(k)}
    if c.positions == "sinusoidal":
        theirs = {k: v for k, v in theirs.items() if not k.endswith("embed_positions.weight")}
    if c.head == "none" and model.head.dense is not None and bare(f"{names['head.dense'][0]}.weight") not in theirs:
        note(f"{where}: no pooler; only hidden states are given")
        model.head.dense = None
    wanted = {name: [bare(full) for full in _theirs(names, name)] for name, _ in _tensors(model)}
    problems = _merge_copies(c, theirs, {w for group in wanted.values() for w in group})
    for name, p in _tensors(model):
        missing = [w for w in wanted[name] if w not in theirs]
        if missing and not isinstance(p, torch.nn.Parameter):
            continue  # a file may leave out BART's bias, which then stays zero
        if missing:
            problems += [f"missing {w}" for w in missing]
            continue
        parts = [as_ours(c, w, theirs[w]) for w in wanted[name]]
        shape = (sum(t.shape[0] for t in parts), *parts[0].shape[1:]) if parts[0].dim() else ()
        if shape != tuple(p.shape):
            problems.append(f"{' + '.join(wanted[name])}: shape {shape}, the model has {tuple(p.shape)}")
            continue
        if wrong := [f"{w}: {no}" for w, part in zip(wanted[name], parts, strict=True) if (no := _unfit(part))]:
            problems += wrong
            continue
        full = torch.cat(parts) if len(parts) > 1 else parts[0]
        fill_tensor(p, in_files(model, name, full, back=True), model.moved_rows.get(name))
    left_over = sorted(set(theirs) - {w for group in wanted.values() for w in group})
    pooler = tuple(bare(module) + "." for module in family.heads["none"].modules.values())
    pooler += tuple(family.bodies.values())
    if unused := [k for k in left_over if pooler and k.startswith(pooler)]:
        note(f"{where}: {len(unused)} tensors of a pooler or head that this model does not use are left out")
    problems += [f"left over {k}" for k in left_over if k not in unused]
    if problems:
        more = [f"... {len(problems) - 20} more ..."] if len(problems) > 20 else []
        shown = [*problems[:10], *more, *problems[max(10, len(problems) - 10) :]]  # some missing, some left over
        raise ModelError(f"{where}: the tensors do not fit a {c.family} model:\n  " + "\n  ".join(shown))


def _unfit(weights: Tensor) -> str:
    """Returns the reason why these numbers cannot be weights, or "" if they can."""
    if not weights.is_floating_point():
        return f"{weights.dtype}, the model has floating-point numbers"
    if not weights.numel():
        return "holds no numbers"
    return "" if all(bound.isfinite() for bound in weights.aminmax()) else "holds numbers that are not finite (NaN)"


def _merge_copies(c: ModelConfig, theirs: dict[str, Tensor], wanted: set[str]) -> list[str]:
    """Leaves one copy of tied tensors in `theirs`; files may save them under either name, or under both.

    Returns a message for each two tensors that should be one and differ."""
    problems, family = [], c.table
    for copy, original in family.copies.items():
        copy, original = (_bare(family, name, c.spec.prefix) for name in (copy, original))
        if copy in wanted:  # not tied
            if copy not in theirs and original in theirs and "tied" in family.coded:
                theirs[copy] = theirs[original]  # a file of T5 v1.1 may hold one table where both are equal
            continue
        value = theirs.pop(copy, None)
        if value is not None and original in wanted and not torch.equal(theirs.setdefault(original, value), value):
            problems.append(f"{copy} and {original} should be one tensor and differ")
    return problems


def head_of(h: dict[str, Any], tensors: set[str]) -> str:
    """Returns the kind of head in a folder: that of the class in config.json `h`, or else what its tensors show.

    tensors: the names of the folder's tensors. Raises ModelError for an unknown class."""
    family = FAMILIES.get(str(h.get("model_type")))
    if family is None:
        return "lm"  # `config_from_hf` says what is wrong
    has = lambda spec: any(t.startswith(f"{m}.") for m in spec.modules.values() if m for t in tensors)
    listed = h.get("architectures") or [None]
    if not isinstance(listed, list) or not isinstance(listed[0], str | None):
        raise ModelError(f"config.json: architectures: {listed!r} is no list of names of classes")
    named = listed[0]
    classes = dict.fromkeys(family.bodies, "none") | {spec.cls: kind for kind, spec in family.heads.items()}
    if named is None:
        return next(
            (kind for kind in ("sequence", "span", "lm") if kind in family.heads and has(family.heads[kind])), "lm"
        )
    if named not in classes:
        raise ModelError(f"config.json: architecture `{named}` is not supported{did_you_mean(str(named), classes)}")
    kind = classes[named]
    if kind == "lm" and "pairs" in family.heads:
        output = family.heads["pairs"].modules["output"]
        kind = "pairs" if any(t.startswith(output) for t in tensors) else kind
    return kind


# ---------------------------------------------------------------- folders


def save_folder(model: Transformer, folder: Path, special: dict[str, Any], dtype: torch.dtype | None = None) -> None:
    """Writes config.json, generation_config.json and safetensors (sharded above 5 GB), as transformers loads them.

    special: ids of control tokens for config.json, by key; dtype: the number format of the file, by default the
    model's."""
    tensors = {k: v.to(dtype) if dtype else v for k, v in to_hf(model)}
    write_folder(model.config, tensors, folder, special)


def write_folder(c: ModelConfig, tensors: dict[str, Tensor], folder: Path, special: dict[str, Any]) -> None:
    """Writes the files of `save_folder` for tensors that already have their Hugging Face names."""
    from huggingface_hub import save_torch_state_dict

    kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    config = config_to_hf(c, special, kind)
    write_json(folder / "config.json", config)
    if c.stacks != "encoder":
        ids = {k: v for k, v in config.items() if k.endswith("_token_id") and v is not None}
        if special.get("suppress_tokens"):  # ids of rows that belong to no token
            ids["suppress_tokens"] = special["suppress_tokens"]
        write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
    share(folder, folder / "config.json")


def read_config(folder: Path) -> dict[str, Any]:
    if is_gguf(folder):
        return gguf_config(folder)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{folder}: no config.json, so this is not a model folder") from None
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"{path}: cannot be read as JSON: {e}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not a JSON object")
    if config.get("quantization_config"):
        raise ModelError(f"{path}: quantized weights (quantization_config) are not supported\n  → get the full ones")
    return config


def load_folder(folder: Path, allow_pickle: bool = False) -> Transformer:
    """Returns the model in a Hugging Face folder or a GGUF file, in float32, in eval mode.

    Raises ModelError where the folder cannot be read, and for pickled weights without `allow_pickle`."""
    check_whole(folder)
    h, tensors = read_config(folder), read_tensors(folder, allow_pickle)
    config = config_from_hf(h, head_of(h, set(tensors)))
    check_sizes(config, tensors, str(folder))
    if "auto_map" in h:
        note(f"{folder}: the model's own code (auto_map) is not run; lmkit's {config.family} reads the weights")
    model = Transformer(config)
    from_hf(model, tensors, str(folder))
    return model.eval()


def check_whole(folder: Path) -> None:
    """Raises ModelError for a checkpoint whose files of the model have changed since they were written.

    Every checkpoint in a run has a manifest to check against; other folders are checked only if they have one."""
    real = folder.resolve()
    in_run = real.parent.name == "checkpoints" and OWN.fullmatch(real.name) is not None
    if (in_run or (folder / MANIFEST).exists()) and (problem := damage(folder, to_use=True)):
        siblings = real.parent
        siblings = siblings / "checkpoints" if (siblings / "checkpoints").is_dir() else siblings  # of a run's average
        whole_ones = sorted(p.name for p in siblings.glob("step-*") if p.is_dir() and not damage(p))
        raise ModelError(
            f"{folder} is damaged: {problem}\n  → whole are: {', '.join(whole_ones) or 'none'}, in {siblings}"
            "\n  → a copy that was changed on purpose is read without its folder `training`"
        )


def check_sizes(c: ModelConfig, tensors: dict[str, Tensor], where: str) -> None:
    """Raises ModelError where config.json describes a much larger model than the weights are, before memory for it is
    allocated."""
    own = c.layer_groups * c.group_layers or c.num_layers
    if max(own, c.num_decoder_layers) > len(tensors) or c.num_layers > MOST_LAYERS:
        raise ModelError(f"{where}: config.json says {c.num_layers:,} layers, the weights are {len(tensors):,} tensors")
    if c.context > MOST_CONTEXT and c.positions in ("rope", "sinusoidal"):  # a table that no file holds
        raise ModelError(f"{where}: config.json says a context of {c.context:,}\n  allowed: up to {MOST_CONTEXT:,}")
    try:
        with torch.device("meta"):
            claimed = sum(p.numel() for p in Transformer(c).parameters())
    except (RuntimeError, TypeError, OverflowError) as e:
        raise ModelError(f"{where}: config.json describes an impossible model: {e}") from None
    present = sum(t.numel() for t in tensors.values())
    if claimed > 2 * present:  # T5 v1.1 may leave out one of two tables
        raise ModelError(f"{where}: config.json describes {claimed:,} parameters, the weights are {present:,} numbers")


def read_tensors(folder: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    if is_gguf(folder):
        return gguf_tensors(folder)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / f"{WEIGHTS}.index.json"
    names = [WEIGHTS]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as e:
            raise ModelError(f"{index}: damaged: {e}") from None
        if outside := [n for n in names if not isinstance(n, str) or Path(n).name != n]:
            raise ModelError(f"{index}: points outside its folder: {outside[0]!r}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).exists():
            if name == WEIGHTS:
                return _pickled(folder, allow_pickle)
            raise ModelError(f"{folder}: shard {name} is missing")
        try:
            shard = load_file(folder / name)
        except (SafetensorError, OSError, ValueError, KeyError) as e:
            raise ModelError(f"{folder / name}: damaged or not safetensors: {e}") from None
        if twice := tensors.keys() & shard:
            raise ModelError(f"{folder / name}: {sorted(twice)[0]} is in another shard too")
        tensors |= shard
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _pickled(folder: Path, allowed: bool) -> dict[str, Tensor]:
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ModelError(f"{folder}: no {WEIGHTS}")
    if not allowed:
        raise ModelError(
            f"{files[0]}: pickled weights can run code when opened\n"
            "  → get the safetensors version; or, in Python, lmkit.load(FOLDER, allow_pickle=True).save(NEW)\n"
            "    (weights only, nothing else is unpickled); `lmkit generate` and `eval` also take --allow-pickle"
        )
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors |= torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # torch raises many types for a hostile or damaged pickle
            raise ModelError(f"{path}: refused: {(str(e) or type(e).__name__).splitlines()[0]}") from None
    if not_tensors := [k for k, v in tensors.items() if not isinstance(k, str) or not isinstance(v, Tensor)]:
        raise ModelError(f"{files[0]}: {not_tensors[0]!r} is no tensor: this is no file of weights alone")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


@torch.no_grad()
def adopt(model: Transformer, source: Transformer, new: tuple[str, ...] = ()) -> list[str]:
    """Copies the weights of `source` that transformers would copy into `model`, of the same family with another head.

    Parameters whose names begin with one of `new` get none. Returns the names of the parameters that stay as they
    were."""
    family, c = model.config.table, source.config
    prefix = lambda config: None if config.head == "none" else config.spec.prefix
    bare = {_bare(family, name, prefix(c)): tensor for name, tensor in to_hf(source)}
    names, untouched = tensor_names(model.config), list[str]()
    for name, p in _tensors(model):
        theirs = [_bare(family, full, prefix(model.config)) for full in _theirs(names, name)]
        parts = [as_ours(c, t, bare[t]) for t in theirs if t in bare]
        if (
            name.startswith(new)
            or len(parts) < len(theirs)
            or (sum(t.shape[0] for t in parts), *parts[0].shape[1:]) != tuple(p.shape)
        ):
            untouched.append(name)
        else:
            p.copy_(torch.cat(parts))
    return untouched
