"""Models in GGUF files: llama.cpp's names of settings and tensors, and ours by way of transformers'."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lmkit.architecture.families import FAMILIES
from lmkit.architecture.model_config import ModelConfig, RopeScaling
from lmkit.architecture.tensor_names import tensor_names
from lmkit.base.display import note
from lmkit.base.errors import ModelError
from lmkit.base.files import replacing
from lmkit.base.gguf_file import GgufFile, gguf_library, read_gguf
from lmkit.model.formats.config_json import TO_HF_ACTIVATION, config_from_hf
from lmkit.model.rope import frequencies

# Families by llama.cpp's architecture; a file is read as the first. Mistral is a llama there.
ARCHITECTURES = {"llama": ("llama", "mistral"), "qwen2": ("qwen2",), "qwen3": ("qwen3",), "gpt2": ("gpt2",),
                 "gemma": ("gemma",)}  # fmt: skip
AXES = {
    "hidden_size": "embedding_length", "num_layers": "block_count", "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length", "context": "context_length",
}  # fmt: skip
TRANSPOSED = re.compile(r"\.c_(attn|proj|fc)\.weight$")  # GPT-2's Conv1D stores (in, out)
EPSILON = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
ROPE_FACTORS = "rope_freqs.weight"
Quantization = Literal["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


# ---------------------------------------------------------------- in


def gguf_config(path: Path) -> dict[str, Any]:
    """Returns what config.json of the same model would hold. Raises ModelError for another architecture."""
    file = read_gguf(path)
    architecture, has = file.needed("general.architecture"), file.tensors.__contains__
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path}: the architecture `{architecture}` is not supported\n  allowed: {', '.join(ARCHITECTURES)}"
        )
    name = ARCHITECTURES[architecture][0]
    family, values = FAMILIES[name], {k.removeprefix(f"{architecture}."): v for k, v in file.metadata.items()}
    keys = AXES | {"norm_eps": EPSILON[family.axes.get("norm", "rms")]}
    h = {family.keys[axis]: values[key] for axis, key in keys.items() if axis in family.keys and key in values}
    if "head_dim" in family.keys and "rope.dimension_count" in values:
        h.setdefault("head_dim", values["rope.dimension_count"])
    activation = family.axes.get("activation", "silu")
    h |= {
        "model_type": name, "architectures": [family.heads["lm"].cls], "tie_word_embeddings": not has("output.weight"),
        "vocab_size": len(file.needed("tokenizer.ggml.tokens")), "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_gate.bias"), family.keys["activation"]: TO_HF_ACTIVATION.get(activation, activation),
    }  # fmt: skip
    if "rope_theta" in family.coded:
        h["rope_parameters"] = _rope_of(file, values, h)
    return h


def _rope_of(file: GgufFile, values: Mapping[str, Any], h: Mapping[str, Any]) -> dict[str, Any]:
    theta, kind = float(values.get("rope.freq_base", 10_000.0)), values.get("rope.scaling.type", "none")
    if ROPE_FACTORS in file.tensors:
        factors = torch.tensor(np.array(file.tensors[ROPE_FACTORS].data, np.float32))
        scaling = RopeScaling(type="llama3", factor=float(factors.max()))  # a file has no more than the factors
        if not torch.allclose(factors, _rope_factors(scaling, 2 * factors.numel(), theta), rtol=1e-3):
            raise ModelError(f"{file.path}: {ROPE_FACTORS} are not those of a Llama 3")
        known = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        return {"rope_type": "llama3", "rope_theta": theta, "factor": scaling.factor} | known
    if kind == "none":
        return {"rope_theta": theta, "rope_type": "default"}
    scaled: dict[str, Any] = {"rope_type": kind, "factor": values.get("rope.scaling.factor")}
    if (original := values.get("rope.scaling.original_context_length")) is not None:
        scaled["original_max_position_embeddings"] = original
    return {"rope_theta": theta} | scaled


def _rope_factors(scaling: RopeScaling, dim: int, theta: float) -> Tensor:
    """Returns by how much Llama 3 stretches each wavelength, (dim / 2,)."""
    return frequencies(dim, theta, None) / frequencies(dim, theta, scaling)


def gguf_tensors(path: Path) -> dict[str, Tensor]:
    """Returns all tensors in float32, under transformers' names. Raises ModelError where they cannot be read."""
    file, h = read_gguf(path), gguf_config(path)
    c = config_from_hf(h)
    theirs, tensors = {ggml: name for name, ggml in _names(c).items()}, dict[str, Tensor]()
    for ggml, stored in file.tensors.items():
        name = theirs.get(ggml, ggml)  # a name that is not known is left over, and said
        try:
            values = np.array(gguf_library().dequantize(stored.data, stored.tensor_type), np.float32)
            tensors[name] = _turned(c, name, torch.from_numpy(values), back=True)
        except (NotImplementedError, ValueError, RuntimeError) as e:
            raise ModelError(f"{path}: {ggml} ({stored.tensor_type.name}) cannot be read: {e}") from None
    tensors.pop(ROPE_FACTORS, None)  # read with the configuration
    return tensors


def _names(c: ModelConfig) -> dict[str, str]:
    """Returns llama.cpp's name of each tensor by transformers' name."""
    library = gguf_library()
    numbers = {name: number for number, name in library.MODEL_ARCH_NAMES.items()}
    table = library.get_tensor_name_map(numbers[_architecture(c)], c.num_layers)
    modules = [module for group in tensor_names(c).values() for module in group] + ["lm_head"]
    pairs = [
        (f"{m}.{leaf}", table.get_name(f"{m}.{leaf}", (".weight", ".bias")))
        for m in modules
        for leaf in ("weight", "bias")
    ]
    return {name: ggml for name, ggml in pairs if ggml}


def _architecture(c: ModelConfig) -> str:
    architecture = next((name for name, families in ARCHITECTURES.items() if c.family in families), None)
    if architecture is None or c.head != "lm":
        allowed = ", ".join(family for families in ARCHITECTURES.values() for family in families)
        what = f"a {c.spec.cls} is not a model that GGUF can hold"
        raise ModelError(f"{what}\n  allowed: {allowed}, that write text\n  → --to hf, or onnx")
    return architecture


def _turned(c: ModelConfig, name: str, values: Tensor, back: bool = False) -> Tensor:
    """Returns a tensor with rows and columns in the order of llama.cpp. back: in the order of transformers.

    RoPE turns neighbours in llama.cpp's llama, and halves elsewhere; GPT-2's matrices are transposed; Gemma's norms
    hold the whole scale."""
    if c.norm_plus_one and name.endswith("norm.weight"):
        return values - 1 if back else values + 1
    if c.family == "gpt2" and TRANSPOSED.search(name):
        return values.t().contiguous()
    heads = c.num_heads if ".q_proj." in name else c.num_kv_heads if ".k_proj." in name else 0
    if _architecture(c) != "llama" or not heads:
        return values
    inner = (-1, 2) if back else (2, -1)
    return values.unflatten(0, (heads, -1)).unflatten(1, inner).transpose(1, 2).reshape(values.shape)


# ---------------------------------------------------------------- out


def write_gguf(
    c: ModelConfig, tensors: Iterable[tuple[str, Tensor]], path: Path, metadata: dict[str, Any], dtype: str,
    quantization: Quantization | None,
) -> None:  # fmt: skip
    """Writes a GGUF file. tensors: with transformers' names; metadata: of tokenizer and name; dtype: f32, f16 or bf16,
    of matrices that are not quantized.

    Raises ModelError for a model that llama.cpp would compute in another way, and StorageError."""
    library = gguf_library()
    architecture, kinds, names = _architecture(c), library.GGMLQuantizationType, _names(c)
    kind, settings = kinds[(quantization or dtype).upper()], _settings(c, architecture)
    path.parent.mkdir(parents=True, exist_ok=True)  # now that nothing about the model is wrong
    with replacing(path) as part:
        writer = library.GGUFWriter(part, architecture)
        for key, value in (settings | metadata).items():
            writer.add_key_value(key, value, library.GGUFValueType[_TYPES[type(value)]])
        writer.add_file_type(library.LlamaFileType[f"MOSTLY_{kind.name}" if kind != kinds.F32 else "ALL_F32"])
        if c.rope_scaling and c.rope_scaling.type == "llama3":
            writer.add_tensor(ROPE_FACTORS, _rope_factors(c.rope_scaling, c.head_dim, c.rope_theta).numpy())
        for name, values in tensors:
            array, own = _turned(c, name, values).float().cpu().numpy(), kind
            if array.ndim < 2 or names[name].startswith("position_embd"):
                own = kinds.F32
            elif array.shape[-1] % library.GGML_QUANT_SIZES[kind][0]:  # a row is no whole number of blocks
                own = kinds[dtype.upper()]
            writer.add_tensor(names[name], library.quants.quantize(array, own), raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


_TYPES = {int: "UINT32", float: "FLOAT32", bool: "BOOL", str: "STRING", list: "ARRAY"}


def _settings(c: ModelConfig, architecture: str) -> dict[str, Any]:
    if c.activation != c.table.axes.get("activation", "silu") or (c.family == "qwen3" and c.qkv_bias):
        raise ModelError(f"llama.cpp has no {c.family} with activation {c.activation} and qkv_bias {c.qkv_bias}")
    if c.rope_scaling and c.rope_scaling.type not in ("linear", "llama3"):
        raise ModelError(f"rope_scaling {c.rope_scaling.type} is not written to GGUF\n  allowed: linear, llama3")
    keys = AXES | {"norm_eps": EPSILON[c.norm]}
    values = {key: getattr(c, axis) for axis, key in keys.items()}
    values |= {"attention.value_length": c.head_dim, "vocab_size": c.vocab_size}
    if c.positions == "rope":
        values |= {"rope.dimension_count": c.head_dim, "rope.freq_base": c.rope_theta}
    if c.rope_scaling and c.rope_scaling.type == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": c.rope_scaling.factor}
    if c.sliding_window is not None and c.sliding_window < c.context:
        values["context_length"] = c.sliding_window
        note(f"llama.cpp has no sliding window here: the file's context is {c.sliding_window:,}, where all is seen")
    return {f"{architecture}.{key}": value for key, value in values.items()}
