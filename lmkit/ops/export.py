"""`lmkit export`: a model in the files of other tools: transformers, llama.cpp, ONNX runtimes."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lmkit.base.errors import StorageError, UserError
from lmkit.base.files import write_atomic
from lmkit.base.runs import ADAPTER_CONFIG, model_folder
from lmkit.model.formats.gguf import Quantization, write_gguf
from lmkit.model.formats.huggingface import to_hf
from lmkit.model.formats.model_card import CARD, exported_card, folder_uses
from lmkit.ops.onnx_graph import write_onnx
from lmkit.pretrained import Pretrained, load
from lmkit.text.chat import own_template
from lmkit.text.gguf import KEY, TEMPLATE_KEY, tokenizer_metadata

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def export(model: str, out: Path, kind: str, quantization: Quantization | None, dtype: str | None, merge: bool) -> None:
    """Writes the model in a run, folder or GGUF file to the folder `out`, and prints what to do with it.

    kind: hf, gguf or onnx; dtype: a key of DTYPES, None for the number format that the model is kept in; merge: adds an
    adapter to the weights of its base. Raises UserError and ModelError for what the format cannot hold."""
    origin = model_folder(model)
    if (origin / ADAPTER_CONFIG).exists() and not merge:
        raise UserError(
            f"{origin} is an adapter, and not a whole model\n"
            "  → --merge adds it to the weights of its base; an adapter alone is exported by copying its folder"
        )
    if quantization and kind != "gguf":
        raise UserError(f"--quant {quantization} is for --to gguf alone")
    if kind == "onnx" and dtype not in (None, "f32"):
        raise UserError("ONNX files are written in float32 alone\n  → leave out --dtype")
    loaded = load(model, device="cpu")
    by_name = {str(number).removeprefix("torch."): number for number in DTYPES.values()}
    kept = loaded.config_json.get("dtype") or loaded.config_json.get("torch_dtype")
    number = DTYPES[dtype] if dtype else by_name.get(str(kept), torch.float32)
    if kind != "gguf":
        _check_empty(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if kind == "gguf":
            uses = _to_gguf(loaded, out, number, quantization)
        else:
            uses = _to_folder(loaded, out, number) if kind == "hf" else _to_onnx(loaded, out)
        write_atomic(out / CARD, exported_card(loaded.model, origin, model, uses))
    except OSError as e:
        raise StorageError(f"{e.filename or out}: cannot be written: {e.strerror}") from None
    print(f"{out}   ({', '.join(sorted(path.name for path in out.iterdir()))})")
    print("\n".join(f"  next   {use.replace('FOLDER', str(out))}" for use in uses))


def _check_empty(out: Path) -> None:
    if out.is_dir() and (names := sorted(path.name for path in out.iterdir())):
        raise UserError(f"{out}: holds {', '.join(names[:6])}\n  → name a new folder")


def _to_folder(loaded: Pretrained, out: Path, dtype: torch.dtype) -> Sequence[str]:
    loaded.save(out, dtype)
    return folder_uses(loaded.config, "", out)


def _to_gguf(loaded: Pretrained, out: Path, dtype: torch.dtype, quantization: Quantization | None) -> Sequence[str]:
    c, tokenizer = loaded.config, loaded.needs_tokenizer()
    metadata = {"general.name": out.name} | tokenizer_metadata(tokenizer, c.vocab_size)
    named = loaded.special.get("eos_token_id")
    ends = [*(named if isinstance(named, list) else [named] if named is not None else []), *sorted(loaded.eos)]
    control = [i for i in dict.fromkeys(ends) if i in tokenizer.special_ids]
    metadata |= {f"{KEY}{key}_token_id": i for key, i in zip(("eos", "eot"), control, strict=False)}
    if template := next(filter(None, map(own_template, loaded.homes)), None):
        metadata[TEMPLATE_KEY] = template
    short = {kind: name for name, kind in DTYPES.items()}
    file = out / f"model-{quantization or short[dtype]}.gguf"
    write_gguf(c, to_hf(loaded.model), file, metadata, dtype, quantization)
    return [f"lmkit generate FOLDER/{file.name}", f"llama-cli -m FOLDER/{file.name}"]


def _to_onnx(loaded: Pretrained, out: Path) -> Sequence[str]:
    write_onnx(loaded, out / "model.onnx")
    loaded.save(out)
    for weights in out.glob("*.safetensors*"):
        weights.unlink()
    return ["import onnxruntime", 'session = onnxruntime.InferenceSession("FOLDER/model.onnx")']
