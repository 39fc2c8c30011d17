"""What a recipe leaves open: the axes of each family, and the rules by which sizes give learning rates and horizon.

Rules and their evidence: nanochat's base_train (karpathy/nanochat) and the modded-nanogpt records, tuned at 100M
parameters and above; docs/decisions.md says where measurements below 30M parameters made us differ.
"""

import copy
import math
from typing import Any

from lmkit.units import count

_LLAMA = {"norm": "rms", "activation": "silu", "gated": True, "tied": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "positions": "learned", "norm": "layer", "norm_eps": 1e-5, "activation": "gelu_tanh", "qkv_bias": True,
        "output_bias": True, "mlp_bias": True, "tied": True,
    },
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen3": _LLAMA | {"qk_norm": "before_rope"},
    "nanochat": {
        "norm": "rms", "norm_gain": False, "embedding_norm": True, "qk_norm": "after_rope", "activation": "relu2",
        "rope_theta": 100_000.0, "rope_reversed": True, "tied": False, "logit_softcap": 15.0,
    },
}  # fmt: skip
REFERENCE_BATCH = 524_288  # tokens a step at which the learning rates were found
REFERENCE_HORIZON = 12 * 110.1e6  # tokens: 12 for each of the reference model's matrix and head parameters
TOKENS_PER_PARAMETER = 12  # compute-optimal was measured at 10.5


def expand(tree: dict[str, Any]) -> dict[str, Any]:
    """Fill every open key of a recipe (nested dicts). Raises ValueError where a needed size is missing or misshapen."""
    tree = copy.deepcopy(tree)
    model = _dict(tree, "model")
    _fill_sizes(model)
    if not all(isinstance(model.get(k), int) for k in ("hidden_size", "num_layers", "intermediate_size", "head_dim")):
        return tree  # the schema reports what is missing or mistyped
    for key, value in FAMILIES.get(str(model.get("family")), {}).items():
        model.setdefault(key, value)
    _fill_training(tree, model)
    return tree


def _dict(tree: dict[str, Any], section: str) -> dict[str, Any]:
    if tree.get(section) is None:
        tree[section] = {}
    return tree[section] if isinstance(tree[section], dict) else {}  # the schema reports what is no section


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
    gated = FAMILIES.get(str(model.get("family")), {}).get("gated", False)
    model.setdefault("intermediate_size", math.ceil(hidden * 8 / 3 / 64) * 64 if gated else 4 * hidden)


def num_matrix_parameters(model: dict[str, Any]) -> int:
    """Of the blocks' matrices: attention and feed-forward."""
    hidden, width = model["hidden_size"], model["head_dim"]
    attention = hidden * width * (2 * model["num_heads"] + 2 * model["num_kv_heads"])
    feed_forward = hidden * model["intermediate_size"] * (3 if model.get("gated") else 2)
    return model["num_layers"] * (attention + feed_forward)


def _fill_training(tree: dict[str, Any], model: dict[str, Any]) -> None:
    train, optimizer = _dict(tree, "train"), _dict(tree, "optimizer")
    vocab = count(model.get("vocab_size") or _dict(tree, "tokenizer").get("vocab_size", 4096))
    size = num_matrix_parameters(model) + vocab * model["hidden_size"]
    tokens = TOKENS_PER_PARAMETER * size
    if not train.get("budget"):
        train["budget"] = f"{tokens} tokens"
    if not train.get("batch"):
        ideal = 2 ** round(math.log2(REFERENCE_BATCH * (tokens / REFERENCE_HORIZON) ** 0.383))
        train["batch"] = max(1, ideal // model["context"]) * model["context"]
    batch = count(train["batch"], "token")
    name, scale = optimizer.get("name", "muon"), math.sqrt(batch / REFERENCE_BATCH)
    if name == "muon":
        narrow = (model["hidden_size"] / 768) ** -0.5
        optimizer.setdefault("betas", [0.8, 0.95])
        optimizer.setdefault("eps", 1e-10)
        defaults = {"lr": 0.02 * scale, "embedding_lr": 0.3 * scale * narrow, "head_lr": 0.008 * scale * narrow}
    else:
        train.setdefault("clip", 1.0)
        # OLMo-core's ladder: 0.0047 (N / 108M)^(-1/3) / 2; others are the usual starting points of torch and the papers
        adam = 0.0047 * (size / 108e6) ** (-1 / 3) / 2
        defaults = {"lr": {"sgd": 0.1, "adagrad": 0.01, "adadelta": 1.0, "adafactor": 0.01}.get(name, adam)}
    for key, value in defaults.items():
        if optimizer.get(key) is None:
            optimizer[key] = float(f"{value:.3g}")
