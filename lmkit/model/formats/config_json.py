"""Turns transformers' config.json into our `ModelConfig` and back.

Keys that differ only in their name are listed in `architecture.families`."""

from typing import Any

from pydantic import ValidationError

from lmkit.architecture.families import FAMILIES
from lmkit.architecture.model_config import ModelConfig, RopeScaling
from lmkit.base.errors import ModelError, did_you_mean

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2",
    "silu": "silu", "swish": "silu",
}  # fmt: skip
TO_HF_ACTIVATION = {"gelu_tanh": "gelu_new"}
SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "context")  # required keys
MOST = 2**31  # the largest value that any size may have
ORIGINAL = "original_max_position_embeddings"
SCALINGS = {  # the kinds of RoPE scaling, with the keys that have one name in config.json and in `RopeScaling`
    "linear": ("factor",), "dynamic": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim", "attention_factor"),
    "longrope": ("factor", "short_factor", "long_factor", "attention_factor"),
}  # fmt: skip
REASONS = {  # why a type that people ask for is missing
    "gemma3": ": it also reads images\n  → the folder of its text model alone, whose model_type is gemma3_text",
    "deberta-v2": ": its attention adds scores of contents and positions, which no other family here has",
}
REQUIRED = {"llama3": SCALINGS["llama3"], "longrope": ("short_factor", "long_factor"), "yarn": ()}
THETA_KEYS = ("rope_theta", "global_rope_theta", "rotary_emb_base")  # names in older files
DEFAULT_THETA = {"modernbert": 160_000.0, "gemma3_text": 1_000_000.0, "smollm3": 2_000_000.0}


def config_from_hf(h: dict[str, Any], head: str = "lm") -> ModelConfig:
    """Returns the `ModelConfig` that `h`, the content of config.json, describes.

    Raises ModelError for an unknown model_type, and for a setting that is not supported and would change the result."""
    name = h.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES or FAMILIES[name].model_type:
        known = ", ".join(n for n, f in FAMILIES.items() if not f.model_type)
        raise ModelError(f"model_type `{name}` is not supported{REASONS.get(str(name), '')}\n  allowed: {known}")
    try:
        return _read(h, name, head)
    except KeyError as e:
        raise ModelError(f"config.json ({name}): key {e} is missing") from None
    except ValidationError as e:
        lines = [
            f"  {'.'.join(map(str, x['loc'])) or 'config'}: {x['msg']} (got {x.get('input')!r})" for x in e.errors()
        ]
        raise ModelError(f"config.json ({name}) describes an impossible model:\n" + "\n".join(lines)) from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as e:  # the file may come from anybody
        raise ModelError(f"config.json ({name}): a value is of the wrong kind: {e}") from None


def _read(h: dict[str, Any], name: str, head: str) -> ModelConfig:
    family = FAMILIES[name]
    for key, value in family.fixed.items():
        if h.get(key) is not None and h[key] != value:
            raise ModelError(f"config.json: {key}: {h[key]!r} is not supported\n  allowed: {value!r}")
    axes: dict[str, Any] = {"family": name, "head": head, **family.axes}
    for axis, key in family.keys.items():
        if h.get(key) is not None:
            if axis in SIZES and (type(h[key]) is not int or not 0 < h[key] < MOST):
                raise ModelError(
                    f"config.json: {key}: {h[key]!r} is no size\n  allowed: whole numbers from 1 to {MOST:,}"
                )
            axes[axis] = _activation(h[key]) if axis == "activation" else h[key]
        elif axis in SIZES and key != "n_inner":  # GPT-2's n_inner may be null
            raise KeyError(key)
    axes |= _coded_axes(h, name, axes)
    heads = axes["num_heads"]
    axes.setdefault("intermediate_size", 4 * axes["hidden_size"])
    axes.setdefault("num_kv_heads", heads)
    axes.setdefault("head_dim", axes["hidden_size"] // heads)
    if axes.get("stacks") == "encoder_decoder":
        axes.setdefault("num_decoder_layers", axes["num_layers"])
        for axis, same in (("decoder_num_heads", "num_heads"), ("decoder_intermediate_size", "intermediate_size")):
            if axes.get(axis) == axes[same]:
                axes[axis] = 0
    if family.heads[head].encoder_only:
        axes |= {"stacks": "encoder", "num_decoder_layers": 0}
    if head in ("sequence", "token", "span"):
        axes["labels"] = ("start", "end") if head == "span" else _labels(h)
    return ModelConfig(**axes)


def _coded_axes(h: dict[str, Any], name: str, axes: dict[str, Any]) -> dict[str, Any]:
    """Returns the axes that several keys of config.json say together, or one in another way."""
    coded, more = FAMILIES[name].coded, dict[str, Any]()
    if "activation" in coded:
        more |= _t5_axes(h)
    if name == "gemma" and h.get("hidden_act") == "gelu":  # which the first files say, and mean gelu_tanh
        more["activation"] = "gelu_tanh"
    more |= {axis: value for axis, value in _rope_axes(h, name).items() if axis in coded}
    if "nope_layers" in coded:
        more["nope_layers"] = _nope_layers(h, axes["num_layers"])
    more |= _window_axes(h, name, axes | more)
    if "attention_bias" in h:
        more |= {axis: bool(h["attention_bias"]) for axis in ("qkv_bias", "output_bias") if axis in coded}
    if "position_padding_id" in coded:  # RoBERTa counts from padding + 1, and its table holds those rows too
        pad = 1 if h.get("pad_token_id") is None else h["pad_token_id"]
        more |= {"position_padding_id": pad, "position_offset": pad + 1}
        more["context"] = h["max_position_embeddings"] - pad - 1
    return more


def _labels(h: dict[str, Any]) -> tuple[str, ...]:
    names = h.get("id2label") or {str(i): f"LABEL_{i}" for i in range(h.get("num_labels", 2))}
    return tuple(str(names[i]) for i in sorted(names, key=int))


def _activation(name: Any) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ModelError(f"config.json: activation `{name}` is not supported{did_you_mean(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _t5_axes(h: dict[str, Any]) -> dict[str, Any]:
    gated, _, act = h.get("feed_forward_proj", "relu").rpartition("-")
    # T5 v1.1 differs from v1.0 by its untied head; transformers 5 writes scale_decoder_outputs instead.
    scaled = h.get("tie_word_embeddings") is not False and h.get("scale_decoder_outputs") is not False
    rate = h.get("dropout_rate", 0.1)
    return {
        "activation": "gelu_tanh" if h.get("feed_forward_proj") == "gated-gelu" else _activation(act),
        "gated": gated == "gated", "tied": scaled, "scaled_head": scaled, "context": h.get("n_positions", 512),
        "dropout": rate, "attention_dropout": rate, "activation_dropout": rate,
    }  # fmt: skip


def _window_axes(h: dict[str, Any], name: str, axes: dict[str, Any]) -> dict[str, Any]:
    layers, family = axes["num_layers"], FAMILIES[name]
    if "window_layers" not in family.coded:
        return {}
    if kinds := h.get("layer_types"):
        windowed = [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    elif name == "modernbert":
        windowed = [i for i in range(layers) if i % h.get("global_attn_every_n_layers", 3)]
    elif name in ("gemma2", "gemma3_text"):
        every = 2 if name == "gemma2" else h.get("sliding_window_pattern", 6)
        windowed = [i for i in range(layers) if (i + 1) % every]
    elif not h.get("use_sliding_window"):
        windowed = []
    else:
        windowed = list(axes.get("nope_layers") or range(h.get("max_window_layers", 28), layers))
    window = axes.get("sliding_window") if name == "modernbert" else h.get("sliding_window")
    return {"sliding_window": window if windowed else None, "window_layers": tuple(windowed)}


def _nope_layers(h: dict[str, Any], layers: int) -> tuple[int, ...]:
    """Returns SmolLM3's layers without positions; its list has a 1 where a layer has them."""
    every = h.get("no_rope_layer_interval", 4)
    marks = h.get("no_rope_layers") or [(i + 1) % every for i in range(layers)]
    return tuple(i for i, mark in enumerate(marks) if not mark)


def _rope_axes(h: dict[str, Any], name: str) -> dict[str, Any]:
    coded = FAMILIES[name].coded
    if "rope_theta" not in coded:
        return {}
    rope, local = dict(h.get("rope_parameters") or h.get("rope_scaling") or {}), dict[str, Any]()
    if "rope_theta_local" in coded:
        rope, local = rope.get("full_attention") or rope, rope.get("sliding_attention") or {}
    theta = rope.get("rope_theta") or next((h[key] for key in THETA_KEYS if h.get(key)), None)
    axes = {
        "rope_theta": theta or DEFAULT_THETA.get(name, 10_000.0), "rope_scaling": _rope_scaling(h, name, rope),
        "rope_theta_local": next(
            (found[key] for found, key in ((local, "rope_theta"), (h, "local_rope_theta"), (h, "rope_local_base_freq"))
             if found.get(key)), 10_000.0,
        ),
    }  # fmt: skip
    share = rope.get("partial_rotary_factor") or h.get("partial_rotary_factor")
    axes["partial_rotary_factor"] = share or h.get("rotary_pct") or (0.25 if name == "gpt_neox" else 1.0)
    if axes["partial_rotary_factor"] != 1.0 and "partial_rotary_factor" not in coded:
        raise ModelError(f"config.json: partial_rotary_factor other than 1 is not supported in {name}")
    if _rope_scaling(h, name, local):
        raise ModelError("config.json: RoPE scaling of windowed layers is not supported\n  allowed: default")
    return axes


def _rope_scaling(h: dict[str, Any], name: str, rope: dict[str, Any]) -> RopeScaling | None:
    """Returns the scaling that the RoPE parameters ask for, or None for none. `h` is the whole of config.json."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if name == "phi3" and kind in ("su", "yarn"):  # older names
        kind = "longrope"
    if kind == "default":
        return None
    if kind not in SCALINGS or "rope_scaling" not in FAMILIES[name].coded:
        allowed = ", ".join(("default", *SCALINGS)) if "rope_scaling" in FAMILIES[name].coded else "default"
        raise ModelError(f"config.json: RoPE scaling `{kind}` is not supported\n  allowed: {allowed}")
    values = {key: rope[key] for key in SCALINGS[kind] if rope.get(key) is not None}
    if kind in ("yarn", "llama3", "longrope"):
        outer = h.get(ORIGINAL)
        values["original_context"] = outer or rope.get(ORIGINAL) or h["max_position_embeddings"]
        if kind != "llama3" and "factor" not in values:
            values["factor"] = h["max_position_embeddings"] / values["original_context"]
    for key in REQUIRED.get(kind, ("factor",)):
        values.setdefault(key, rope[key])
    return RopeScaling(type=kind, **values)


# ---------------------------------------------------------------- out


def config_to_hf(c: ModelConfig, special: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """Returns the content of config.json. special: bos_token_id, eos_token_id, pad_token_id and the like."""
    family = c.table
    out: dict[str, Any] = {
        "architectures": [c.spec.cls], "model_type": family.model_type or c.family, "dtype": dtype, **special,
        "tie_word_embeddings": c.tied,
    }  # fmt: skip
    for axis, key in family.keys.items():
        value = getattr(c, axis)
        if axis == "head_dropout" and value is None:
            continue
        if axis == "embedding_size":
            value = value or c.hidden_size
        out[key] = TO_HF_ACTIVATION.get(value, value) if axis == "activation" else value
    if c.stacks == "encoder_decoder":
        out |= _decoder_keys(c, out)
    if "activation" in family.coded:
        out |= _t5_keys(c)
    out |= _coded_keys(c, special)
    if c.head in ("sequence", "token"):
        out["id2label"] = {str(i): name for i, name in enumerate(c.labels)}
        out["label2id"] = {name: i for i, name in enumerate(c.labels)}
    return out


def _coded_keys(c: ModelConfig, special: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of config.json that `_coded_axes` reads."""
    coded, more = c.table.coded, dict[str, Any]()
    if c.family == "gpt2":
        more["embd_pdrop"] = c.dropout
    if "position_padding_id" in coded:
        more["max_position_embeddings"] = c.context + c.position_offset
        more["pad_token_id"] = c.position_padding_id
    if "qkv_bias" in coded:
        more["attention_bias"] = c.qkv_bias
    if "rope_theta" in coded:
        more["rope_parameters"] = _rope_parameters(c)
    if "nope_layers" in coded:
        more["no_rope_layers"] = [int(i not in c.nope_layers) for i in range(c.num_layers)]
    if c.family == "phi3":
        more |= {"embd_pdrop": c.dropout, ORIGINAL: c.rope_scaling.original_context if c.rope_scaling else c.context}
    if "window_layers" in coded:
        windows = [c.window(i) for i in range(c.num_layers)]
        more["layer_types"] = ["sliding_attention" if w else "full_attention" for w in windows]
        if c.family in ("qwen2", "qwen3", "smollm3"):
            more["use_sliding_window"] = c.sliding_window is not None
        if c.family != "modernbert":
            more["sliding_window"] = c.sliding_window
    if c.family == "modernbert":
        more |= {"embedding_dropout": c.dropout, "local_attention": c.sliding_window or 128}
        more |= {f"{role}_token_id": special.get(f"{role}_token_id") for role in ("cls", "sep")}
    return more


def _decoder_keys(c: ModelConfig, out: dict[str, Any]) -> dict[str, Any]:
    start = out.get("decoder_start_token_id")
    start = out.get(f"{c.table.start}_token_id") if start is None else start
    keys = {"is_encoder_decoder": True, "decoder_start_token_id": start}
    if "decoder_num_heads" in c.table.keys:  # BART's decoder has sizes of its own
        own = c.decoder
        keys |= {"decoder_attention_heads": own.num_heads, "decoder_ffn_dim": own.intermediate_size}
        keys["forced_eos_token_id"] = out.get("eos_token_id")
    return keys


def _t5_keys(c: ModelConfig) -> dict[str, Any]:
    kind = TO_HF_ACTIVATION.get(c.activation, c.activation)
    gated = "gated-gelu" if c.activation == "gelu_tanh" else f"gated-{kind}"
    return {
        "feed_forward_proj": gated if c.gated else kind, "dropout_rate": c.dropout, "n_positions": c.context,
        "num_decoder_layers": c.num_decoder_layers or c.num_layers,
    }  # fmt: skip


def _rope_parameters(c: ModelConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if "partial_rotary_factor" in c.table.coded:
        rope["partial_rotary_factor"] = c.partial_rotary_factor
    if s := c.rope_scaling:
        rope |= {"rope_type": s.type}
        rope |= {key: value for key in SCALINGS[s.type] if (value := getattr(s, key)) is not None}
        if s.type in ("yarn", "llama3", "longrope"):
            rope[ORIGINAL] = s.original_context
    if "rope_theta_local" not in c.table.coded:
        return rope
    local = {"rope_type": "default", "rope_theta": c.rope_theta_local or c.rope_theta}
    return {"full_attention": rope, "sliding_attention": local}
