"""Reads and writes adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors."""

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmkit.architecture.model_config import ModelConfig
from lmkit.architecture.tensor_names import tensor_names
from lmkit.base.errors import ModelError
from lmkit.base.files import write_json
from lmkit.base.gguf_file import is_gguf
from lmkit.base.runs import ADAPTER_CONFIG, model_folder
from lmkit.model.formats.adapter_base import check_base
from lmkit.model.formats.config_json import config_from_hf, config_to_hf
from lmkit.model.formats.huggingface import (
    TRANSPOSED,
    as_ours,
    as_stored,
    from_hf,
    head_of,
    in_files,
    read_config,
    read_tensors,
)
from lmkit.model.heads import TaskHead
from lmkit.model.lora import LoraLinear, Part, adapters, freeze_base, linears, merge_lora, part_heights, place
from lmkit.model.transformer import Transformer
from lmkit.recipe.tasks import LoraConfig
from lmkit.text.tokenizer import read_object

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# The config.json of the whole model. Under its usual name, transformers would expect all weights in the folder.
ADAPTED_CONFIG = "adapted_config.json"
PREFIX = "base_model.model."  # PEFT's wrappers around the model
ADAPTED = re.compile(r"(.*)\.(lora_A|lora_B|lora_magnitude_vector)(\.weight)?")
TASK_TYPES = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS", "none": "FEATURE_EXTRACTION"}
WRITING = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}

# Keys of adapter_config.json. READ: keys that are read. SILENT: keys that the tensors answer, or that matter only in
# training. PLAIN: keys, and those of their values that change nothing. Any other key with a value might change the
# result, so it is refused by name.
READ = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "lora_alpha", "lora_dropout", "r", "rank_pattern",
    "task_type", "use_dora", "use_rslora",
}  # fmt: skip
SILENT = {
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "megatron_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size",
    "revision", "target_modules",
}  # fmt: skip
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}  # fmt: skip


# ---------------------------------------------------------------- out


def adapter_writer(
    model: Transformer, config: LoraConfig, base: str, special: dict[str, int | None] | None = None
) -> Callable[[Path], None]:
    """Returns a function that writes the adapters and the head for labels, as they are now, into a folder.

    PEFT loads that folder onto the model `base`: a run, a folder or a name on the hub. adapted_config.json, which PEFT
    ignores, says which head the whole model has. special: as for `save_folder`; missing keys are those of the base."""
    if (Path(base) / "recipe.yaml").is_file():  # a run, which only we can load
        base = str(model_folder(base))
    names, rank_pattern, alpha_pattern = tensor_names(model.config), {}, {}
    tensors: dict[str, Tensor] = {}
    for ours, lora in adapters(model).items():
        rows = zip(names[ours], lora.parts, lora.lora_a.split(lora.ranks), lora.lora_b, strict=True)
        for i, (theirs, part, a, b) in enumerate(rows):
            if not part.rank:
                continue
            stored = partial(as_stored, model.config, f"{theirs}.lora_B")
            tensors[f"{theirs}.lora_A.weight"], tensors[f"{theirs}.lora_B.weight"] = a, stored(b)
            if lora.magnitude is not None:
                tensors[f"{theirs}.lora_magnitude_vector"] = stored(lora.magnitude[i])
            if part.rank != config.rank:
                rank_pattern[theirs] = part.rank
            if not math.isclose(part.scale * part.rank, config.alpha):
                alpha_pattern[theirs] = part.scale * part.rank
    adapted = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    known, head = {n for group in names.values() for n in group}, _head_tensors(model, names)
    settings = {
        "peft_type": "LORA", **_task_keys(model.config), "base_model_name_or_path": base, "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout, "target_modules": _short(adapted, known),
        "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern, "use_dora": config.dora, "use_rslora": False,
        "fan_in_fan_out": model.config.family == "gpt2", "modules_to_save": _whole_modules(head, names) or None,
        "bias": "none", "inference_mode": True,
    }  # fmt: skip
    own = {PREFIX + k: v.detach().float().cpu().clone().contiguous() for k, v in (tensors | head).items()}

    def write(folder: Path) -> None:
        write_json(folder / ADAPTER_CONFIG, settings)
        write_json(folder / ADAPTED_CONFIG, config_to_hf(model.config, special or {}))
        save_file(own, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    return write


def _task_keys(c: ModelConfig) -> dict[str, Any]:
    """Returns the keys that say what the adapter is for: a task of PEFT, or the model's class where PEFT has no such
    task, as for masked words."""
    task = WRITING.get(c.stacks) if c.head in ("lm", "pairs") else TASK_TYPES[c.head]
    kind = c.table.model_type or c.family
    library = {"base_model_class": c.spec.cls, "parent_library": f"transformers.models.{kind}.modeling_{kind}"}
    return {"task_type": task, "auto_mapping": None if task else library}


def _head_tensors(model: Transformer, names: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Returns the tensors of a head for labels under transformers' names; such a head is trained without an adapter."""
    if not isinstance(model.head, TaskHead):
        return {}
    out: dict[str, Tensor] = {}
    for name, p in model.head.named_parameters(prefix="head"):
        ours, leaf = name.rsplit(".", 1)
        if ours in names:  # leaves out the parameters of an adapter inside the head
            out[f"{names[ours][0]}.{leaf}"] = in_files(model, name, p.detach())
    return out


def _whole_modules(head: dict[str, Tensor], names: dict[str, tuple[str, ...]]) -> list[str]:
    """Returns PEFT's modules_to_save: for each tensor of the head, the outermost module that holds nothing of the body.

    PEFT saves some heads as one module, even if smaller ones are named (`classifier` with all modules in it)."""
    body = {n.split(".")[0] for ours, group in names.items() if not ours.startswith(("head", "pairs")) for n in group}
    modules = [name.rsplit(".", 1)[0] for name in head]
    return sorted({m if m.split(".")[0] in body else m.split(".")[0] for m in modules})


def _short(adapted: set[str], known: set[str]) -> list[str]:
    """Returns PEFT's target_modules: of each adapted module the name after the block's number, or the whole name.

    The short name serves where it means no module that is not adapted. Modules of transformers that are not in `known`
    have other endings, so PEFT cannot adapt them by mistake."""
    targets = set()
    for name in adapted:
        short = re.sub(r"^.*\.\d+\.", "", name)
        targets.add(short if {n for n in known if n.endswith(f".{short}")} <= adapted else name)
    return sorted(targets)


# ---------------------------------------------------------------- in


@torch.no_grad()
def load_adapter(model: Transformer, folder: Path) -> None:
    """Puts the adapters of a folder, written by us or by PEFT, on a model without any, and freezes as `add_lora` does.

    Raises ModelError for settings with which the model would compute something else than with PEFT, and for tensors
    that do not fit; the model then stays as it was."""
    settings, tensors = read_adapter(folder)
    names, layers = tensor_names(model.config), linears(model)
    where = {theirs: (ours, i) for ours in layers for i, theirs in enumerate(names.get(ours, ()))}
    by_layer: dict[str, dict[int, dict[str, Tensor]]] = {}
    whole: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, tensor in tensors.items():
        if (match := ADAPTED.fullmatch(name)) is None:
            whole[name] = tensor
        elif match[1] in where:
            ours, i = where[match[1]]
            by_layer.setdefault(ours, {}).setdefault(i, {})[match[2]] = tensor
        else:
            problems.append(f"{name}: the model has no such matrix")
    parts = {
        ours: _parts(layers[ours], part_heights(model, ours), names[ours], given, settings, problems)
        for ours, given in by_layer.items()
    }
    copies = _whole_tensors(model, names, whole, problems)
    if problems or not parts:
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        listed = "\n  ".join(problems[:20]) + more if problems else "it adapts nothing"
        raise ModelError(f"{folder}: the adapter does not fit a {model.config.spec.cls}:\n  {listed}")
    for p, value in copies:
        p.copy_(value)
    for ours, given in by_layer.items():
        lora = LoraLinear(
            layers[ours], parts[ours], float(settings.get("lora_dropout", 0.0)), bool(settings.get("use_dora"))
        )
        _fill(lora, given, model.config, names[ours])
        place(model, ours, lora.train(model.training))
    freeze_base(model)


def _parts(
    base: nn.Linear, heights: list[int], theirs: tuple[str, ...], given: dict[int, dict[str, Tensor]],
    settings: dict[str, Any], problems: list[str],
) -> list[Part]:  # fmt: skip
    """Returns the parts of a layer as the settings describe them. Tensors that do not fit are added to `problems`."""
    parts = []
    for i, (name, rows) in enumerate(zip(theirs, heights, strict=True)):
        if i not in given:
            parts.append(Part(rows, 0, 0.0))
            continue
        rank = max(1, int(_by_pattern(settings, "rank_pattern", name, settings.get("r", 8))))
        alpha = float(_by_pattern(settings, "alpha_pattern", name, settings.get("lora_alpha", 8)))
        # rsLoRA (Kalajdzievski 2023) divides by the root of the rank
        parts.append(Part(rows, rank, alpha / (rank**0.5 if settings.get("use_rslora") else rank)))
        wanted: dict[str, tuple[int, ...]] = {"lora_A": (rank, base.in_features), "lora_B": (rows, rank)}
        wanted |= {"lora_magnitude_vector": (rows,)} if settings.get("use_dora") else {}
        shapes = {key: tuple(tensor.shape) for key, tensor in given[i].items()}
        for key in sorted(key for key in wanted | shapes if wanted.get(key) != shapes.get(key)):
            problems.append(f"{name}.{key}: shape {shapes.get(key, 'missing')}, expected {wanted.get(key, 'none')}")
    return parts


def _fill(lora: LoraLinear, given: dict[int, dict[str, Tensor]], c: ModelConfig, theirs: tuple[str, ...]) -> None:
    stacked = lora.lora_a.split(lora.ranks)
    for i, tensors in given.items():
        stacked[i].copy_(tensors["lora_A"])
        lora.lora_b[i].copy_(as_ours(c, f"{theirs[i]}.lora_B", tensors["lora_B"]))
        if lora.magnitude is not None:
            lora.magnitude[i].copy_(as_ours(c, f"{theirs[i]}.lora_B", tensors["lora_magnitude_vector"]))


def _by_pattern(settings: dict[str, Any], key: str, name: str, default: Any) -> Any:
    """Returns the value of a module in PEFT's rank_pattern or alpha_pattern, or the default.

    Their keys are regular expressions for the ends of names, of which the first that matches counts."""
    patterns = settings.get(key) or {}
    return next((value for p, value in patterns.items() if re.match(rf"(.*\.)?({p})$", name)), default)


def _whole_tensors(
    model: Transformer, names: dict[str, tuple[str, ...]], whole: dict[str, Tensor], problems: list[str]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Returns our parameters that the adapter replaces as a whole (PEFT's modules_to_save), with their values.

    Tensors that do not fit are added to `problems`."""
    own: dict[str, nn.Parameter] = {}
    for name, p in model.named_parameters():
        ours, leaf = name.rsplit(".", 1)
        theirs = f"{names[ours][0]}.{leaf}"
        if len(names[ours]) == 1 and not (model.config.family == "gpt2" and TRANSPOSED.search(theirs)):
            own[theirs] = p
    copies = []
    for name, value in whole.items():
        if name not in own:
            problems.append(f"{name}: the model has no such tensor of its own")
            continue
        p = own[name]
        if p.shape != value.shape:
            problems.append(f"{name}: shape {tuple(value.shape)}, the model has {tuple(p.shape)}")
        elif model.config.tied and p is model.embedding.weight and not torch.equal(p.cpu(), value):
            problems.append(f"{name}: trained apart from the head that shares it; one tensor cannot be both")
        else:
            copies.append((p, value))
    return copies


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the content of adapter_config.json, and the tensors in float32 under transformers' names.

    Raises ModelError for damaged or pickled files, and for settings that are not supported."""
    path, settings = folder / ADAPTER_CONFIG, _read_settings(folder)
    for key, value in settings.items():
        if key in PLAIN and value not in PLAIN[key]:
            allowed = ", ".join(json.dumps(v) for v in PLAIN[key])
            raise ModelError(f"{path}: {key}: {value!r} is not supported\n  allowed: {allowed}")
        if value and key not in READ | SILENT | PLAIN.keys():
            raise ModelError(f"{path}: {key}: {value!r} is not supported")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.exists():
        pickled = (folder / "adapter_model.bin").exists()
        why = "\n  → adapter_model.bin is a pickle: save the adapter again with a newer PEFT" if pickled else ""
        raise ModelError(f"{folder}: no {ADAPTER_WEIGHTS}{why}")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError, ValueError) as e:
        raise ModelError(f"{weights}: damaged or not safetensors: {e}") from None
    return settings, {name.removeprefix(PREFIX): tensor.float() for name, tensor in tensors.items()}


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as e:
        raise ModelError(f"{path}: cannot be read as a JSON object: {e}") from None


# ---------------------------------------------------------------- an adapter and its base


def config_and_head(folder: Path) -> tuple[dict[str, Any], str]:
    """Returns the content of config.json and the kind of head: of the model in a folder, or of an adapter and its base.

    Raises ModelError where they cannot be read."""
    if not (folder / ADAPTER_CONFIG).exists():
        return (h := read_config(folder)), head_of(h, set())
    settings = _read_settings(folder)
    base = _base_folder(folder, settings)
    h = adapted_config(folder, base)
    return h, _head(h, head_of(read_config(base), set()), settings, folder)


def adapted_config(folder: Path, base: Path) -> dict[str, Any]:
    """Returns the base's config.json, changed by the keys of the adapter's own config.json where it has one."""
    own = read_object(folder / ADAPTED_CONFIG) or read_object(folder / "config.json")  # the name in older versions
    return read_config(base) | {key: value for key, value in own.items() if value is not None}


def load_adapted(folder: Path, allow_pickle: bool = False, merge: bool = True) -> tuple[Transformer, Path]:
    """Returns the base model with the adapter merged, in float32, and the base model's folder. Without `merge`, an
    adapter of LoRA stays beside the weights of its base; one of DoRA would compute its lengths for every token.

    The base may have another head than the adapter was trained with; the adapter then holds all of the new head. Raises
    ModelError where the base is not on this machine, and where the two do not fit."""
    settings, tensors = read_adapter(folder)
    base = _base_folder(folder, settings)
    check_base(folder, base)
    h, weights = adapted_config(folder, base), read_tensors(base, allow_pickle)
    had = head_of(read_config(base), set(weights))
    whole = {name: value for name, value in tensors.items() if not ADAPTED.fullmatch(name)}
    config = _config(h, had, settings, whole, folder)
    config, apart = _untied(config, settings, weights, whole, folder)
    model = Transformer(config)
    from_hf(model, _without_head(weights, config, had) | whole | apart, f"{folder} on {base}")
    load_adapter(model, folder)
    if merge or any(lora.magnitude is not None for lora in adapters(model).values()):
        merge_lora(model)
    return model.eval(), base


def _base_folder(folder: Path, settings: dict[str, Any]) -> Path:
    """Returns the folder of the base model.

    A path in adapter_config.json counts from the adapter's folder, or else, as in PEFT, from the working directory.
    Raises ModelError where there is no such folder, and where it holds an adapter itself."""
    name = settings.get("base_model_name_or_path")
    path = folder / ADAPTER_CONFIG
    if not name:
        raise ModelError(f"{path}: base_model_name_or_path is missing\n  → write the base model's folder there")
    for candidate in (folder / name, Path(name)):
        if candidate.is_dir() or is_gguf(candidate):
            base = model_folder(candidate)
            if (base / ADAPTER_CONFIG).exists():
                raise ModelError(
                    f"{path}: base_model_name_or_path {name!r} is an adapter itself\n"
                    "  → in Python, lmkit.load(...).save(FOLDER) merges it: write that FOLDER"
                )
            return base
    raise ModelError(
        f"{path}: base_model_name_or_path {name!r} is no folder here\n"
        f"  → get it, if that is its name on the hub: hf download {name} --local-dir FOLDER\n"
        f"  → then write FOLDER (absolute, or as seen from {folder}) as base_model_name_or_path"
    )


def _config(
    h: dict[str, Any], had: str, settings: dict[str, Any], whole: dict[str, Tensor], folder: Path
) -> ModelConfig:
    """Returns the base's axes, with the head that the adapter was trained with and as many labels as that head has."""
    head = _head(h, had, settings, folder)
    output = whole.get(f"{config_from_hf(h, had).table.heads[head].modules.get('output')}.weight")
    if head in ("sequence", "token") and output is not None and len(h.get("id2label") or (0, 1)) != len(output):
        h = h | {"id2label": {str(i): f"LABEL_{i}" for i in range(len(output))}}
    return config_from_hf(h, head)


def _head(h: dict[str, Any], had: str, settings: dict[str, Any], folder: Path) -> str:
    """Returns the kind of head that the adapter was trained with; `had` is the kind that the base has.

    Raises ModelError for a head that the family does not have."""
    heads = config_from_hf(h, had).table.heads
    kinds = {task: kind for kind, task in TASK_TYPES.items()} | dict.fromkeys(WRITING.values(), "lm")
    kinds |= {spec.cls: kind for kind, spec in heads.items()}
    task = str(settings.get("task_type") or (settings.get("auto_mapping") or {}).get("base_model_class"))
    head = had if (had == "pairs" and kinds.get(task) == "lm") else kinds.get(task, had)
    if head not in heads:
        raise ModelError(f"{folder / ADAPTER_CONFIG}: task_type {task} does not exist in {h['model_type']}")
    return head


def _untied(
    c: ModelConfig, settings: dict[str, Any], weights: dict[str, Tensor], whole: dict[str, Tensor], folder: Path
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Unties head and embedding where PEFT trained a copy of one of them, so that the other stays as it was.

    Returns the axes of the model with a head of its own, and the weights of both matrices; where nothing is to untie,
    the axes as they are and no weights. Raises ModelError for such an adapter of a model that is not a plain decoder,
    and for copies that PEFT ties."""
    if not (c.tied and c.head in ("lm", "pairs")):
        return c, {}
    apart = c.model_copy(update={"tied": False})
    embedding, head = (f"{tensor_names(apart)[ours][0]}.weight" for ours in ("embedding", "head"))
    trained = {name: whole[name] for name in (embedding, head) if name in whole}
    if not trained:
        return c, {}
    if c.stacks != "decoder" or settings.get("ensure_weight_tying"):
        how = "with ensure_weight_tying" if settings.get("ensure_weight_tying") else f"in a {c.family}"
        raise ModelError(
            f"{folder / ADAPTER_CONFIG}: modules_to_save: a matrix that embedding and head share ({', '.join(trained)})"
            f" is not supported {how}\n  → leave it out of modules_to_save"
        )
    same = [value for name, value in weights.items() if embedding.endswith(name) or name.endswith(embedding)]
    return apart, {name: value for name in (embedding, head) for value in same} | trained


def _without_head(weights: dict[str, Tensor], c: ModelConfig, had: str) -> dict[str, Tensor]:
    """Returns the base's tensors without those of the base's head that the model `c` does not have."""
    heads = c.table.heads
    modules = lambda kind: {m for k in {kind, "lm" if kind == "pairs" else kind} for m in heads[k].modules.values()}
    dropped = tuple(f"{module}." for module in modules(had) - modules(c.head) if module)
    if had == "lm" != c.head:
        dropped += ("final_logits_bias",)  # BART's bias belongs to no module
    if c.spec.encoder_only:
        dropped += ("decoder.",)
    return {name: value for name, value in weights.items() if not (dropped and name.startswith(dropped))}
