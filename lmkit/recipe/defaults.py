"""What a recipe leaves open: the axes of each family, and the rules by which sizes give learning rates and horizon.

Rules and their evidence: nanochat's base_train (karpathy/nanochat) and the modded-nanogpt records, tuned at 100M
parameters and above; docs/decisions.md says where measurements below 30M parameters made us differ.
"""

import copy
import math
from typing import Any

from lmkit.architecture.families import FAMILIES
from lmkit.architecture.model_config import block_matrices
from lmkit.architecture.sizes import PRESETS
from lmkit.base.errors import did_you_mean
from lmkit.base.units import count, split_quantity
from lmkit.recipe.objectives import default_objective
from lmkit.recipe.optimizers import OPTIMIZERS

REFERENCE_BATCH = 524_288  # tokens a step at which the learning rates were found
REFERENCE_HORIZON = 12 * 110.1e6  # tokens: 12 for each of the reference model's matrix and head parameters
TOKENS_PER_PARAMETER = 12  # compute-optimal was measured at 10.5


def expand_pretraining(tree: dict[str, Any]) -> dict[str, Any]:
    """Fills every open key of a recipe (nested dicts). Raises ValueError where a needed size is missing or
    misshapen."""
    tree = copy.deepcopy(tree)
    model = section(tree, "model")
    _fill_preset(model)
    _fill_task(tree, model)
    _fill_sizes(model)
    if not all(isinstance(model.get(k), int) for k in ("hidden_size", "num_layers", "intermediate_size", "head_dim")):
        return tree  # the schema reports what is missing or mistyped
    if _axes(model).get("scaled_head"):  # T5's head is scaled if it is tied; its dropouts are one
        model.setdefault("scaled_head", model.get("tied", True))
        for key in ("attention_dropout", "activation_dropout"):
            model.setdefault(key, model.get("dropout", _axes(model)["dropout"]))
    for key, value in _axes(model).items():
        model.setdefault(key, value)
    _fill_training(tree, model)
    return tree


def _fill_preset(model: dict[str, Any]) -> None:
    preset = model.pop("preset", None)
    if preset is None:
        return
    if preset not in PRESETS:
        raise ValueError(f"model.preset {preset!r} is unknown{did_you_mean(str(preset), PRESETS)}")
    for key, value in PRESETS[preset].items():
        model.setdefault(key, value)


def _fill_task(tree: dict[str, Any], model: dict[str, Any]) -> None:
    if tree.get("task") is None:
        tree["task"] = {}
    task = section(tree, "task")
    task.setdefault("name", default_objective(str(model.get("family"))))
    if task.get("pairs"):
        model.setdefault("head", "pairs")


def _axes(model: dict[str, Any]) -> dict[str, Any]:
    family = FAMILIES.get(str(model.get("family")))
    return family.axes if family else {}


def section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns `tree[name]`, which is made if it is missing."""
    if tree.get(name) is None:
        tree[name] = {}
    return tree[name] if isinstance(tree[name], dict) else {}  # the schema reports what is no section


def _fill_sizes(model: dict[str, Any]) -> None:
    depth = model.pop("depth", None)
    for key in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "context"):
        if key in model:
            model[key] = count(model[key])
    if depth is not None:
        depth = count(depth)
        model.setdefault("num_layers", depth)
        head_dim = model.get("head_dim") or (128 if 64 * depth >= 512 else 64)
        model.setdefault("hidden_size", math.ceil(64 * depth / head_dim) * head_dim)
        model.setdefault("num_heads", model["hidden_size"] // head_dim)
    if "hidden_size" not in model or "num_heads" not in model:
        missing = [k for k in ("hidden_size", "num_heads", "num_layers") if k not in model]
        raise ValueError(f"model: set `depth`, or the sizes themselves ({', '.join(missing)} missing)")
    hidden, heads = model["hidden_size"], model["num_heads"]
    if "head_dim" not in model:
        if hidden % heads:
            fits = [h for h in range(1, 2 * heads) if hidden % h == 0 and hidden // h % 2 == 0]
            near = sorted(fits, key=lambda h: (abs(h - heads), -h))[:2]
            raise ValueError(
                f"model.hidden_size {hidden} is not divisible by model.num_heads {heads}; nearest: {sorted(near)}"
            )
        model["head_dim"] = hidden // heads
    model.setdefault("num_kv_heads", heads)
    model.setdefault("context", 1024)
    if _axes(model).get("stacks") == "encoder_decoder":
        model.setdefault("num_decoder_layers", model.get("num_layers"))
    gated = model.get("gated", _axes(model).get("gated", False))
    model.setdefault("intermediate_size", math.ceil(hidden * 8 / 3 / 64) * 64 if gated else 4 * hidden)


def num_matrix_parameters(model: dict[str, Any]) -> int:
    """Returns the weights of all blocks' attention and feed-forward matrices."""
    names = ("hidden_size", "head_dim", "num_heads", "num_kv_heads", "intermediate_size")
    sizes = {name: model[name] for name in names} | {"gated": bool(model.get("gated"))}
    layers = model.get("layer_groups", 0) * model.get("group_layers", 1) or model["num_layers"]
    decoder_layers = model.get("num_decoder_layers", 0)  # beside an encoder, which they read
    return layers * block_matrices(**sizes, cross=False) + decoder_layers * block_matrices(**sizes, cross=True)


def _fill_training(tree: dict[str, Any], model: dict[str, Any]) -> None:
    train, optimizer = section(tree, "train"), section(tree, "optimizer")
    vocab = count(model.get("vocab_size") or section(tree, "tokenizer").get("vocab_size", 4096))
    size = num_matrix_parameters(model) + vocab * (model.get("embedding_size") or model["hidden_size"])
    tokens = TOKENS_PER_PARAMETER * size
    if not train.get("budget"):
        train["budget"] = f"{tokens} tokens"
    if not train.get("batch"):
        ideal = 2 ** round(math.log2(REFERENCE_BATCH * (tokens / REFERENCE_HORIZON) ** 0.383))
        train["batch"] = max(1, ideal // model["context"]) * model["context"]
    if isinstance(train["batch"], str) and split_quantity(train["batch"])[1] == "row":
        train["batch"] = count(train["batch"], "row") * model["context"]
    batch = count(train["batch"], "token")
    name, scale = optimizer.get("name", "muon"), math.sqrt(batch / REFERENCE_BATCH)
    if name == "muon":
        narrow = (model["hidden_size"] / 768) ** -0.5
        head = 0.008 * scale * narrow
        optimizer.setdefault("betas", [0.8, 0.95])
        optimizer.setdefault("eps", 1e-10)
        embedding = head if model.get("tied") else 0.3 * scale * narrow  # a table that is the head too learns as one
        defaults = {"lr": 0.02 * scale, "embedding_lr": embedding, "head_lr": head}
    else:
        train.setdefault("clip", 1.0)
        # OLMo-core's ladder: 0.0047 (N / 108M)^(-1/3) / 2
        adam = 0.0047 * (size / 108e6) ** (-1 / 3) / 2
        betas = FAMILIES[model["family"]].adam if model.get("family") in FAMILIES else (0.9, 0.95, 1e-8)
        optimizer.setdefault("betas", list(betas[:2]))
        optimizer.setdefault("eps", betas[2])
        if vaswani := _vaswani_peak(tree, model):
            adam = vaswani
        usual = OPTIMIZERS[name].lr if name in OPTIMIZERS else None
        defaults = {"lr": adam if usual is None else usual}
    for key, value in defaults.items():
        if optimizer.get(key) is None:
            optimizer[key] = float(f"{value:.3g}")


def _vaswani_peak(tree: dict[str, Any], model: dict[str, Any]) -> float | None:
    """Returns the learning rate of Vaswani et al. 2017, 5.3, width^-0.5 * min(n^-0.5, n * warmup^-1.5), where it is
    largest: with `schedule: {name: inverse_sqrt, warmup: N steps}` the 2017 Transformer follows it exactly."""
    schedule = section(tree, "schedule")
    if schedule.get("name") != "inverse_sqrt" or model.get("positions") != "sinusoidal":
        return None
    steps, unit = split_quantity(schedule.get("warmup", "40 steps"))
    return None if unit == "%" or not steps else (model["hidden_size"] * steps) ** -0.5
