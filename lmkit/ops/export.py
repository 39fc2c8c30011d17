"""`lmkit export`: a model in the files of other tools: transformers, llama.cpp, ONNX runtimes."""

from pathlib import Path

import torch

from lmkit.base.display import waiting
from lmkit.base.errors import UserError
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
    if (quantization and kind != "gguf") or (kind == "onnx" and dtype not in (None, "f32")):
        raise UserError("--quant is for GGUF files, --dtype for these and for folders; ONNX files are in float32")
    if kind != "gguf" and out.is_dir() and (names := sorted(path.name for path in out.iterdir())):
        raise UserError(f"{out}: holds {', '.join(names[:6])}\n  → name a new folder")
    loaded = load(model, device="cpu")
    kept = str(loaded.config_json.get("dtype") or loaded.config_json.get("torch_dtype"))
    dtype = dtype or next((name for name, number in DTYPES.items() if str(number) == f"torch.{kept}"), "f32")
    with waiting(f"writing {out}"):
        uses = _write(loaded, out, kind, dtype, quantization)
    write_atomic(out / CARD, exported_card(loaded.model, origin, model, uses))
    print(f"{out}   ({', '.join(sorted(path.name for path in out.iterdir()))})")
    print("\n".join(f"  next   {use.replace('FOLDER', str(out))}" for use in uses))


def _write(
    loaded: Pretrained, out: Path, kind: str, dtype: str, quantization: Quantization | None
) -> list[str]:  # fmt: skip
    """Writes the model, and returns lines that say how to use it, with FOLDER where `out` stands."""
    if kind == "gguf":
        file = out / f"model-{quantization or dtype}.gguf"
        write_gguf(loaded.config, to_hf(loaded.model), file, _metadata(loaded, out.name), dtype, quantization)
        verb = "chat" if any(map(own_template, loaded.homes)) else "generate"
        return [f"lmkit {verb} FOLDER/{file.name}", f"llama-cli -m FOLDER/{file.name}"]
    if kind == "onnx":
        out.mkdir(parents=True, exist_ok=True)
        write_onnx(loaded, out / "model.onnx")
        loaded.save(out)
        for weights in out.glob("*.safetensors*"):
            weights.unlink()
        return ["import onnxruntime", 'session = onnxruntime.InferenceSession("FOLDER/model.onnx")']
    loaded.save(out, DTYPES[dtype])
    return folder_uses(loaded.config, "", out)


def _metadata(loaded: Pretrained, name: str) -> dict[str, object]:
    """Returns what a GGUF file says besides the model's sizes: its name, tokenizer, ends and chat template."""
    tokenizer, named = loaded.needs_tokenizer(), loaded.special.get("eos_token_id")
    metadata = {"general.name": name} | tokenizer_metadata(tokenizer, loaded.config.vocab_size)
    ends = dict.fromkeys([*(named if isinstance(named, list) else [named]), *sorted(loaded.eos)])
    control = [i for i in ends if i in tokenizer.special_ids]
    metadata |= {f"{KEY}{key}_token_id": i for key, i in zip(("eos", "eot"), control, strict=False)}
    template = next(filter(None, map(own_template, loaded.homes)), None)
    return metadata | ({TEMPLATE_KEY: template} if template else {})
