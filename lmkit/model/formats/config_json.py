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


def config_from_hf(h: dict[str, Any], head: str = "lm") -> ModelConfig:
    """Returns the `ModelConfig` that `h`, the content of config.json, describes.

    Raises ModelError for an unknown model_type, and for a setting that is not supported and would change the result."""
    name = h.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES or FAMILIES[name].model_type:
        known = [n for n, f in FAMILIES.items() if not f.model_type]
        raise ModelError(f"model_type `{name}` is not supported{did_you_mean(str(name), known)}")
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
        if key in h and h[key] != value:
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
    if "activation" in family.coded:
        axes |= _t5_axes(h)
    axes |= {axis: value for axis, value in _rope_axes(h, name).items() if axis in family.coded}
    axes |= _window_axes(h, name, axes)
    if "attention_bias" in h:
        axes |= {axis: bool(h["attention_bias"]) for axis in ("qkv_bias", "output_bias") if axis in family.coded}
    if "position_padding_id" in family.coded:  # RoBERTa counts from padding + 1, and its table holds those rows too
        pad = 1 if h.get("pad_token_id") is None else h["pad_token_id"]
        axes |= {"position_padding_id": pad, "position_offset": pad + 1}
        axes["context"] = h["max_position_embeddings"] - pad - 1
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
    kinds = h.get("layer_types")
    if name == "modernbert":
        every = h.get("global_attn_every_n_layers", 3)
        kinds = kinds or ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    elif not kinds:
        first = h.get("max_window_layers", 28) if h.get("use_sliding_window") else layers
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    windowed = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    window = axes.get("sliding_window") if name == "modernbert" else h.get("sliding_window")
    return {"sliding_window": window if windowed else None, "window_layers": windowed}


def _rope_axes(h: dict[str, Any], name: str) -> dict[str, Any]:
    if "rope_theta" not in FAMILIES[name].coded:
        return {}
    rope = dict(h.get("rope_parameters") or h.get("rope_scaling") or {})
    if name == "modernbert":
        full, local = rope.get("full_attention", {}), rope.get("sliding_attention", {})
        for kind in (full.get("rope_type"), local.get("rope_type")):
            if kind not in (None, "default"):
                raise ModelError(f"config.json: RoPE scaling `{kind}` is not supported\n  allowed: default")
        return {
            "rope_theta": full.get("rope_theta") or h.get("global_rope_theta") or 160_000.0,
            "rope_theta_local": local.get("rope_theta") or h.get("local_rope_theta") or 10_000.0,
        }
    theta = rope.get("rope_theta") or h.get("rope_theta") or 10_000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("config.json: partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in ("linear", "llama3"):
        raise ModelError(f"config.json: RoPE scaling `{kind}` is not supported\n  allowed: default, linear, llama3")
    if kind == "linear":
        return {"rope_theta": theta, "rope_scaling": RopeScaling(type="linear", factor=rope["factor"])}
    scaling = RopeScaling(
        type="llama3", factor=rope["factor"], low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_context=rope.get("original_max_position_embeddings") or h["max_position_embeddings"],
    )  # fmt: skip
    return {"rope_theta": theta, "rope_scaling": scaling}


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
    if c.family == "gpt2":
        out["embd_pdrop"] = c.dropout
    if c.stacks == "encoder_decoder":
        out |= _decoder_keys(c, out)
    if "activation" in family.coded:
        out |= _t5_keys(c)
    if "position_padding_id" in family.coded:
        out["max_position_embeddings"] = c.context + c.position_offset
        out["pad_token_id"] = c.position_padding_id
    if "qkv_bias" in family.coded:
        out["attention_bias"] = c.qkv_bias
    if "rope_theta" in family.coded:
        out["rope_parameters"] = _rope_parameters(c)
    if "window_layers" in family.coded:
        windows = [c.window(i) for i in range(c.num_layers)]
        out["layer_types"] = ["sliding_attention" if w else "full_attention" for w in windows]
        if c.family in ("qwen2", "qwen3"):
            out |= {"use_sliding_window": c.sliding_window is not None, "sliding_window": c.sliding_window}
    if c.family == "modernbert":
        out |= {"embedding_dropout": c.dropout, "local_attention": c.sliding_window or 128}
        out |= {f"{role}_token_id": special.get(f"{role}_token_id") for role in ("cls", "sep")}
    if c.head in ("sequence", "token"):
        out["id2label"] = {str(i): name for i, name in enumerate(c.labels)}
        out["label2id"] = {name: i for i, name in enumerate(c.labels)}
    return out


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
    if c.family == "modernbert":
        thetas = {"full_attention": c.rope_theta, "sliding_attention": c.rope_theta_local or c.rope_theta}
        return {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if s := c.rope_scaling:
        rope |= {"rope_type": s.type, "factor": s.factor}
        if s.type == "llama3":
            rope |= {
                "low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_context,
            }  # fmt: skip
    return rope
