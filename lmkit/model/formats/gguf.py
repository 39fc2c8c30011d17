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
from lmkit.model.layers import rope_frequencies

# Families by llama.cpp's architecture; a file is read as the first. Mistral is a llama there.
ARCHITECTURES = {"llama": ("llama", "mistral"), "qwen2": ("qwen2",), "qwen3": ("qwen3",), "gpt2": ("gpt2",)}
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
        "vocab_size": _rows(file, "token_embd.weight"), "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_gate.bias"), family.keys["activation"]: TO_HF_ACTIVATION.get(activation, activation),
    }  # fmt: skip
    if "rope_theta" in family.coded:
        h["rope_parameters"] = _rope_of(file, values, h)
    ids = {role: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in _CONFIG_IDS.items()}
    return h | {f"{role}_token_id": i for role, i in ids.items() if i is not None}


_CONFIG_IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def _rows(file: GgufFile, name: str) -> int:
    if name not in file.tensors:
        raise ModelError(f"{file.path}: the tensor {name} is missing")
    return int(file.tensors[name].shape[-1])


def _rope_of(file: GgufFile, values: Mapping[str, Any], h: Mapping[str, Any]) -> dict[str, Any]:
    theta, kind = float(values.get("rope.freq_base", 10_000.0)), values.get("rope.scaling.type", "none")
    if ROPE_FACTORS in file.tensors:
        factors = torch.tensor(np.array(file.tensors[ROPE_FACTORS].data, np.float32))
        scaling = _scaling_of(factors, theta)
        made = _rope_factors(scaling, 2 * factors.numel(), theta)
        if not torch.allclose(factors, made, rtol=1e-3):
            raise ModelError(f"{file.path}: {ROPE_FACTORS} are not those of a Llama 3")
        return {
            "rope_type": "llama3", "rope_theta": theta, "factor": scaling.factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": scaling.original_context,
        }  # fmt: skip
    return {"rope_theta": theta} | (
        {"rope_type": "default"} if kind == "none" else {"rope_type": kind, "factor": values.get("rope.scaling.factor")}
    )


def _scaling_of(factors: Tensor, theta: float) -> RopeScaling:
    """Returns what Llama 3's stretching of wavelengths was made from, which a file does not say.

    The context is solved for where a wavelength is stretched in part; frequency factors are taken to be 1 and 4."""
    factor, wavelength = float(factors.max()), 2 * torch.pi / rope_frequencies(2 * factors.numel(), theta, None)
    between = (factors > 1) & (factors < factor)
    if not between.any():
        return RopeScaling(type="llama3", factor=factor)
    share_kept = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    context = (wavelength[between] * (1 + 3 * share_kept)).mean()
    return RopeScaling(type="llama3", factor=factor, original_context=round(float(context)))


def _rope_factors(scaling: RopeScaling, dim: int, theta: float) -> Tensor:
    """Returns by how much Llama 3 stretches each wavelength, (dim / 2,)."""
    return rope_frequencies(dim, theta, None) / rope_frequencies(dim, theta, scaling)


def gguf_tensors(path: Path) -> dict[str, Tensor]:
    """Returns all tensors in float32, under transformers' names. Raises ModelError where they cannot be read."""
    file, h = read_gguf(path), gguf_config(path)
    c = config_from_hf(h)
    theirs, tensors = {ggml: name for name, ggml in _names(c).items()}, dict[str, Tensor]()
    for ggml, stored in file.tensors.items():
        if ggml == ROPE_FACTORS:  # read with the configuration
            continue
        try:
            values = torch.from_numpy(np.array(gguf_library().dequantize(stored.data, stored.tensor_type), np.float32))
        except (NotImplementedError, ValueError) as e:
            raise ModelError(f"{path}: {ggml} ({stored.tensor_type.name}) cannot be read: {e}") from None
        name = theirs.get(ggml, ggml)
        tensors[name] = _permuted(c, name, values, undo=True)
        if c.family == "gpt2" and TRANSPOSED.search(name):
            tensors[name] = values.t()
    return tensors


def _names(c: ModelConfig) -> dict[str, str]:
    """Returns llama.cpp's name of each tensor by transformers' name."""
    library = gguf_library()
    numbers = {name: number for number, name in library.MODEL_ARCH_NAMES.items()}
    table = library.get_tensor_name_map(numbers[_architecture(c)], c.num_layers)
    modules = [module for group in tensor_names(c).values() for module in group] + ["lm_head"]
    pairs = [(f"{m}.{leaf}", table.get_name(f"{m}.{leaf}", (".weight", ".bias"))) for m in modules for leaf in _LEAVES]
    return {name: ggml for name, ggml in pairs if ggml}


_LEAVES = ("weight", "bias")


def _architecture(c: ModelConfig) -> str:
    architecture = next((name for name, families in ARCHITECTURES.items() if c.family in families), None)
    if architecture is None or c.head != "lm":
        allowed = ", ".join(family for families in ARCHITECTURES.values() for family in families)
        raise ModelError(f"a {c.spec.cls} is not a model that GGUF can hold\n  allowed: {allowed}, that write text")
    return architecture


def _permuted(c: ModelConfig, name: str, values: Tensor, undo: bool = False) -> Tensor:
    """Returns rows of queries and keys in the order of llama.cpp's llama: RoPE turns neighbours there, halves here.

    undo: returns them in our order."""
    heads = {"q_proj": c.num_heads, "k_proj": c.num_kv_heads}.get(name.split(".")[-2])
    if _architecture(c) != "llama" or heads is None:
        return values
    inner = (-1, 2) if undo else (2, -1)
    return values.unflatten(0, (heads, -1)).unflatten(1, inner).transpose(1, 2).reshape(values.shape)


# ---------------------------------------------------------------- out


def write_gguf(
    c: ModelConfig, tensors: Iterable[tuple[str, Tensor]], path: Path, metadata: dict[str, Any], dtype: torch.dtype,
    quantization: Quantization | None,
) -> None:  # fmt: skip
    """Writes a GGUF file. tensors: with transformers' names; metadata: of tokenizer and name; dtype: of matrices that
    are not quantized.

    Raises ModelError for a model that llama.cpp would compute in another way, and StorageError."""
    library = gguf_library()
    architecture, kinds = _architecture(c), library.GGMLQuantizationType
    _check_shape(c)
    plain = {torch.float32: kinds.F32, torch.float16: kinds.F16, torch.bfloat16: kinds.BF16}[dtype]
    names, kind = _names(c), kinds[quantization.upper()] if quantization else plain
    with replacing(path) as part:
        writer = library.GGUFWriter(part, architecture)
        for key, value in (_settings(c, architecture) | metadata).items():
            _ADD[type(value)](writer, key, value)
        writer.add_file_type(library.LlamaFileType[f"MOSTLY_{kind.name}" if kind != kinds.F32 else "ALL_F32"])
        if c.rope_scaling and c.rope_scaling.type == "llama3":
            writer.add_tensor(ROPE_FACTORS, _rope_factors(c.rope_scaling, c.head_dim, c.rope_theta).numpy())
        for name, values in tensors:
            if c.family == "gpt2" and TRANSPOSED.search(name):
                values = values.t().contiguous()
            own = kinds.F32 if values.dim() < 2 or names[name].startswith("position_embd") else kind
            if quantization and own == kind and values.size(-1) % library.GGML_QUANT_SIZES[kind][0]:
                own = plain  # a row is no whole number of blocks
            array = _permuted(c, name, values).float().cpu().numpy()
            writer.add_tensor(names[name], library.quants.quantize(array, own), raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


_ADD = {
    int: lambda writer, key, value: writer.add_uint32(key, value),
    float: lambda writer, key, value: writer.add_float32(key, value),
    bool: lambda writer, key, value: writer.add_bool(key, value),
    str: lambda writer, key, value: writer.add_string(key, value),
    list: lambda writer, key, value: writer.add_array(key, value),
}  # fmt: skip


def _settings(c: ModelConfig, architecture: str) -> dict[str, Any]:
    keys = AXES | {"norm_eps": EPSILON[c.norm]}
    values = {key: getattr(c, axis) for axis, key in keys.items()}
    values |= {"attention.value_length": c.head_dim, "vocab_size": c.vocab_size}
    if c.positions == "rope":
        values |= {"rope.dimension_count": c.head_dim, "rope.freq_base": c.rope_theta}
    if c.rope_scaling and c.rope_scaling.type == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": c.rope_scaling.factor}
    if c.sliding_window is not None and c.sliding_window < c.context:
        values["context_length"] = c.sliding_window
        note(
            f"llama.cpp has no sliding window here: the file says a context of {c.sliding_window:,}, where all is seen"
        )
    return {f"{architecture}.{key}": value for key, value in values.items()}


def _check_shape(c: ModelConfig) -> None:
    """Raises ModelError for settings of a family that a GGUF file cannot say."""
    activation = c.table.axes.get("activation", "silu")
    if c.activation != activation:
        raise ModelError(f"llama.cpp computes a {c.family} with {activation}, and this one has {c.activation}")
    if c.family == "qwen3" and c.qkv_bias:
        raise ModelError("llama.cpp has no biases in the attention of a qwen3, and this one has")
