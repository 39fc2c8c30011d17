"""Hugging Face folders in and out. A name table per family, a line per tensor, read in both directions.

A row is (our name, their names): several of theirs are rows stacked in one of ours; `{i}` runs over blocks.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from lmkit.architecture import ModelConfig, RopeScaling
from lmkit.errors import ModelError, did_you_mean
from lmkit.files import write_json
from lmkit.model.transformer import Transformer

WEIGHTS = "model.safetensors"


class Row(NamedTuple):
    ours: str
    theirs: tuple[str, ...]


def _rows(prefix: str, other: str, pairs: dict[str, str]) -> list[Row]:
    return [Row(f"{prefix}{a}", tuple(f"{other}{x}" for x in b.split())) for a, b in pairs.items()]


_ENDS = {"embedding.token": "embed_tokens", "decoder.norm": "norm"}
_LLAMA_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.up": "mlp.gate_proj mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_BLOCK, _LAYER, _HEAD = "decoder.blocks.{i}.", "model.layers.{i}.", [Row("head", ("lm_head",))]
_LLAMA = _rows("", "model.", _ENDS) + _rows(_BLOCK, _LAYER, _LLAMA_BLOCK) + _HEAD
_GPT2_BLOCK = {
    "attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj",
    "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
}  # fmt: skip
TABLES: dict[str, list[Row]] = {
    "gpt2": _rows("", "transformer.", {"embedding.token": "wte", "embedding.position": "wpe", "decoder.norm": "ln_f"})
    + _rows(_BLOCK, "transformer.h.{i}.", _GPT2_BLOCK)
    + _HEAD,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen3": _LLAMA,
    "nanochat": _rows("", "model.", _ENDS)
    + _rows(_BLOCK, _LAYER, _LLAMA_BLOCK | {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"})
    + _HEAD,
}
ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "nanochat": "NanoChatForCausalLM",
}  # fmt: skip
# Buffers that older versions saved beside the weights: masks and rotary tables, made anew by every loader.
IGNORED = re.compile(r"(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)$")
TRANSPOSED = re.compile(r"\.c_(attn|proj|fc)\.weight$")  # GPT-2's Conv1D stores (in, out)
ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2",
    "silu": "silu", "swish": "silu",
}  # fmt: skip
TO_HF_ACTIVATION = {"gelu_tanh": "gelu_new"}


# ---------------------------------------------------------------- config.json


def config_from_hf(h: dict[str, Any]) -> ModelConfig:
    """`h` is config.json. Raises ModelError for an unknown model_type or a setting that would change the result."""
    family = h.get("model_type")
    if family not in TABLES:
        raise ModelError(f"model_type `{family}` is not supported{did_you_mean(str(family), TABLES)}")
    try:
        return _gpt2_config(h) if family == "gpt2" else _llama_config(h)
    except KeyError as e:
        raise ModelError(f"config.json ({family}): key {e} is missing") from None
    except ValidationError as e:
        lines = [
            f"  {'.'.join(map(str, x['loc'])) or 'config'}: {x['msg']} (got {x.get('input')!r})" for x in e.errors()
        ]
        raise ModelError(f"config.json ({family}) describes an impossible model:\n" + "\n".join(lines)) from None


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ModelError(f"config.json: activation `{name}` is not supported{did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _gpt2_config(h: dict[str, Any]) -> ModelConfig:
    for flag in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if h.get(flag):
            raise ModelError(f"config.json: {flag} is not supported")
    if not h.get("scale_attn_weights", True):
        raise ModelError("config.json: scale_attn_weights: false is not supported")
    return ModelConfig(
        family="gpt2", vocab_size=h["vocab_size"], hidden_size=h["n_embd"], num_layers=h["n_layer"],
        num_heads=h["n_head"], num_kv_heads=h["n_head"], head_dim=h["n_embd"] // h["n_head"],
        intermediate_size=h.get("n_inner") or 4 * h["n_embd"], context=h["n_positions"], positions="learned",
        norm="layer", norm_eps=h.get("layer_norm_epsilon", 1e-5), activation=_activation(h["activation_function"]),
        qkv_bias=True, output_bias=True, mlp_bias=True, tied=h.get("tie_word_embeddings", True),
        dropout=h.get("resid_pdrop", 0.1), attention_dropout=h.get("attn_pdrop", 0.1),
    )  # fmt: skip


def _llama_config(h: dict[str, Any]) -> ModelConfig:
    family, heads = h["model_type"], h["num_attention_heads"]
    nano, bias = family == "nanochat", bool(h.get("attention_bias", False))
    theta, scaling = _rope(h)
    window, layers = h.get("sliding_window"), h["num_hidden_layers"]
    windowed: tuple[int, ...] = ()
    if family == "qwen3":
        kinds = h.get("layer_types") or [
            "sliding_attention"
            if h.get("use_sliding_window") and i >= h.get("max_window_layers", 28)
            else "full_attention"
            for i in range(layers)
        ]
        windowed = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
        window = window if windowed else None
    qk_norm = {"nanochat": "after_rope", "qwen3": "before_rope"}.get(family, "none")
    return ModelConfig(
        family=family, vocab_size=h["vocab_size"], hidden_size=h["hidden_size"], num_layers=layers, num_heads=heads,
        num_kv_heads=h.get("num_key_value_heads") or heads, head_dim=h.get("head_dim") or h["hidden_size"] // heads,
        intermediate_size=h["intermediate_size"], context=h["max_position_embeddings"], rope_theta=theta,
        rope_scaling=scaling, rope_reversed=nano, norm_gain=not nano, norm_eps=h.get("rms_norm_eps", 1e-6),
        embedding_norm=nano, qk_norm=qk_norm, activation=_activation(h.get("hidden_act", "relu2" if nano else "silu")),
        gated=not nano, qkv_bias=bias, output_bias=bias,
        mlp_bias=h.get("mlp_bias", False) if family == "llama" else False,
        sliding_window=window if family in ("mistral", "qwen3") else None, window_layers=windowed,
        tied=h.get("tie_word_embeddings", False), logit_softcap=h.get("final_logit_softcapping") if nano else None,
        attention_dropout=h.get("attention_dropout", 0.0),
    )  # fmt: skip


def _rope(h: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    rope = dict(h.get("rope_parameters") or h.get("rope_scaling") or {})
    theta = rope.get("rope_theta") or h.get("rope_theta") or 10_000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("config.json: partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise ModelError(f"config.json: RoPE scaling `{kind}` is not supported\n  allowed: default, linear, llama3")
    if kind == "linear":
        return theta, RopeScaling(type="linear", factor=rope["factor"])
    return theta, RopeScaling(
        type="llama3", factor=rope["factor"], low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_context=rope.get("original_max_position_embeddings") or h["max_position_embeddings"],
    )  # fmt: skip


def config_to_hf(c: ModelConfig, special: dict[str, int | None], dtype: str = "float32") -> dict[str, Any]:
    """config.json. `special`: bos_token_id, eos_token_id, pad_token_id."""
    common = {
        "architectures": [ARCHITECTURES[c.family]], "model_type": c.family, "dtype": dtype, "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied, **special,
    }  # fmt: skip
    if c.family == "gpt2":
        return common | {
            "n_embd": c.hidden_size, "n_layer": c.num_layers, "n_head": c.num_heads, "n_inner": c.intermediate_size,
            "n_positions": c.context, "activation_function": TO_HF_ACTIVATION.get(c.activation, c.activation),
            "layer_norm_epsilon": c.norm_eps, "resid_pdrop": c.dropout, "embd_pdrop": c.dropout,
            "attn_pdrop": c.attention_dropout,
        }  # fmt: skip
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if s := c.rope_scaling:
        rope |= {"rope_type": s.type, "factor": s.factor}
        if s.type == "llama3":
            rope |= {
                "low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_context,
            }  # fmt: skip
    out = common | {
        "hidden_size": c.hidden_size, "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim, "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.context, "rms_norm_eps": c.norm_eps, "rope_parameters": rope,
        "hidden_act": TO_HF_ACTIVATION.get(c.activation, c.activation), "attention_dropout": c.attention_dropout,
        "attention_bias": c.qkv_bias,
    }  # fmt: skip
    if c.family == "llama":
        out["mlp_bias"] = c.mlp_bias
    if c.family == "nanochat":
        out["final_logit_softcapping"] = c.logit_softcap
    if c.family == "mistral":
        out["sliding_window"] = c.sliding_window
    if c.family == "qwen3":
        kinds = ["sliding_attention" if c.window(i) else "full_attention" for i in range(c.num_layers)]
        out |= {
            "use_sliding_window": c.sliding_window is not None,
            "sliding_window": c.sliding_window,
            "layer_types": kinds,
        }
    return out


# ---------------------------------------------------------------- tensors


def _expanded(c: ModelConfig) -> dict[str, tuple[str, ...]]:
    return {
        row.ours.replace("{i}", str(i)): tuple(t.replace("{i}", str(i)) for t in row.theirs)
        for row in TABLES[c.family]
        for i in range(c.num_layers if "{i}" in row.ours else 1)
    }


def to_hf(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its Hugging Face name; a tied head is left out, as transformers does."""
    c, names = model.config, _expanded(model.config)
    for name, p in model.named_parameters():
        ours, leaf = name.rsplit(".", 1)
        theirs = names[ours]
        parts = p.detach().split(model.row_blocks(name)) if len(theirs) > 1 else (p.detach(),)
        for other, part in zip(theirs, parts, strict=True):
            full = f"{other}.{leaf}"
            part = part.t() if c.family == "gpt2" and TRANSPOSED.search(full) else part
            yield full, part.clone(memory_format=torch.contiguous_format)  # a view would drag its whole storage along


@torch.no_grad()
def from_hf(model: Transformer, theirs: dict[str, Tensor], where: str) -> None:
    """Fill `model` in place. Raises ModelError that lists every missing, left-over and misshapen tensor."""
    c, names, used = model.config, _expanded(model.config), set()
    prefix = "transformer." if c.family == "gpt2" else "model."
    if not any(k.startswith(prefix) for k in theirs):  # saved from the bare model class, as the hub's gpt2 was
        theirs = {k if k.startswith("lm_head.") else prefix + k: v for k, v in theirs.items()}
    theirs = {k: v for k, v in theirs.items() if not IGNORED.search(k)}
    if c.tied:  # either copy may be the survivor
        head, token = "lm_head.weight", f"{names['embedding.token'][0]}.weight"
        if token not in theirs and head in theirs:
            theirs[token] = theirs[head]
        used.add(head)
    problems = []
    for name, p in model.named_parameters():
        ours, leaf = name.rsplit(".", 1)
        wanted = [f"{other}.{leaf}" for other in names[ours]]
        used |= set(wanted)
        if missing := [w for w in wanted if w not in theirs]:
            problems += [f"missing {w}" for w in missing]
            continue
        parts = [theirs[w].t() if c.family == "gpt2" and TRANSPOSED.search(w) else theirs[w] for w in wanted]
        got = (sum(t.shape[0] for t in parts), *parts[0].shape[1:]) if parts[0].dim() else ()
        if got != tuple(p.shape):
            problems.append(f"{' + '.join(wanted)}: shape {got}, the model has {tuple(p.shape)}")
            continue
        p.copy_(torch.cat(parts) if len(parts) > 1 else parts[0])
    problems += [f"left over {k}" for k in sorted(set(theirs) - used)]
    if problems:
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ModelError(f"{where}: the tensors do not fit a {c.family} model:\n  " + "\n  ".join(problems[:20]) + more)


# ---------------------------------------------------------------- folders


def save_folder(
    model: Transformer, folder: Path, special: dict[str, int | None], dtype: torch.dtype | None = None
) -> None:
    """config.json, generation_config.json and safetensors (sharded above 5 GB), as transformers loads them."""
    from huggingface_hub import save_torch_state_dict

    tensors = {k: v.to(dtype) if dtype else v for k, v in to_hf(model)}
    kind = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_json(folder / "config.json", config_to_hf(model.config, special, kind))
    given = {k: v for k, v in special.items() if v is not None}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **given})
    save_torch_state_dict(tensors, folder, metadata={"format": "pt"})


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{folder}: no config.json, so this is not a model folder") from None
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}: cannot be read as JSON: {e}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not a JSON object")
    return config


def load_folder(folder: Path, allow_pickle: bool = False) -> Transformer:
    """The model in a Hugging Face folder, in float32. Pickled weights are refused unless the user says so."""
    model = Transformer(config_from_hf(read_config(folder)))
    from_hf(model, read_tensors(folder, allow_pickle), str(folder))
    return model.eval()


def read_tensors(folder: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / f"{WEIGHTS}.index.json"
    names = [WEIGHTS]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as e:
            raise ModelError(f"{index}: damaged: {e}") from None
        if outside := [n for n in names if Path(n).name != n]:
            raise ModelError(f"{index}: points outside its folder: {outside[0]!r}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).exists():
            if name == WEIGHTS:
                return _pickled(folder, allow_pickle)
            raise ModelError(f"{folder}: shard {name} is missing")
        try:
            tensors |= load_file(folder / name)
        except (SafetensorError, OSError, ValueError) as e:
            raise ModelError(f"{folder / name}: damaged or not safetensors: {e}") from None
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _pickled(folder: Path, allowed: bool) -> dict[str, Tensor]:
    found = sorted(folder.glob("pytorch_model*.bin"))
    if not found:
        raise ModelError(f"{folder}: no {WEIGHTS}")
    if not allowed:
        raise ModelError(
            f"{found[0]}: pickled weights can run code when opened\n"
            "  → get the safetensors version, or pass --allow-pickle (weights only, nothing else is unpickled)"
        )
    tensors: dict[str, Tensor] = {}
    for path in found:
        try:
            tensors |= torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # torch raises many types for a hostile or damaged pickle
            raise ModelError(f"{path}: refused: {str(e).splitlines()[0]}") from None
    return {k: v.float() for k, v in tensors.items()}
