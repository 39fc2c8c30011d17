"""Tokens a second that a decoder writes, beside transformers, llama.cpp and CTranslate2, on one thread, interleaved.

    python benchmarks/generation_speed.py MODEL --batches 1 16 --tokens 48 --rounds 3

MODEL is a folder of Hugging Face. Peers that are not installed are left out: llama-cpp-python (which writes one text at
a time) and ctranslate2. Every number is the median of the rounds; what is timed is writing, without reading the prompt,
except for peers that do not part the two (they read 16 tokens)."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from lmkit.generation.beam import beam_search
from lmkit.generation.engine import Engine, Request
from lmkit.generation.sampling import SamplingConfig
from lmkit.generation.weights import prepare
from lmkit.pretrained import load
from lmkit.recipe.tasks import LengthPenalty

PROMPT = 16  # tokens


def prompts(batch: int) -> list[list[int]]:
    return [[100 + i + 7 * j for j in range(PROMPT)] for i in range(batch)]


def lmkit_writer(folder: str, quant: str | None) -> Callable[[int, int], float]:
    models = {rows: load(folder).model for rows in (1, 16)}
    for rows, model in models.items():
        prepare(model, quant, rows)

    def write(batch: int, tokens: int) -> float:
        engine = Engine(models[1 if batch == 1 else 16], max_rows=batch)
        for prompt in prompts(batch):
            engine.submit(Request(prompt, SamplingConfig(max_tokens=tokens, temperature=0)))
        engine.step()
        began = time.perf_counter()
        while engine.busy:
            engine.step()
        return batch * (tokens - 1) / (time.perf_counter() - began)

    return write


def beam_writers(folder: str) -> dict[str, Callable[[int, int], float]]:
    """Returns beam search with four hypotheses, here and in transformers."""
    model = load(folder).model
    prepare(model, None, 4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def ours(batch: int, tokens: int) -> float:
        began = time.perf_counter()
        beam_search(model, prompts(batch), SamplingConfig(max_tokens=tokens), 4, LengthPenalty())
        return batch * tokens / (time.perf_counter() - began)

    return {"lmkit, beam 4": ours, "transformers, beam 4": transformers_writer(theirs, num_beams=4)}


def transformers_writer(model: torch.nn.Module, **options: int) -> Callable[[int, int], float]:
    model.generation_config.eos_token_id = None

    def write(batch: int, tokens: int) -> float:
        ids = torch.tensor(prompts(batch))
        more = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0, **options}
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **more)
        return batch * tokens / (time.perf_counter() - began)

    return write


def llama_writer(folder: str, kind: str, home: Path) -> Callable[[int, int], float]:
    import llama_cpp

    options = ["--dtype", "f32"] if kind == "f32" else ["--quant", kind]
    command = [sys.executable, "-m", "lmkit", "export", folder, str(home / kind), "--to", "gguf", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    model = llama_cpp.Llama(str(next((home / kind).glob("*.gguf"))), n_threads=1, n_ctx=512, verbose=False)

    def write(batch: int, tokens: int) -> float:
        model.reset()
        model.eval(prompts(1)[0])
        began = time.perf_counter()
        for _ in range(tokens):
            model.eval([model.sample(temp=0.0)])
        return tokens / (time.perf_counter() - began)

    return write


def ctranslate2_writer(folder: str, home: Path) -> Callable[[int, int], float]:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(folder).convert(str(home / "ct2"), force=True)
    model = ctranslate2.Generator(str(home / "ct2"), intra_threads=1, inter_threads=1)
    words = transformers.AutoTokenizer.from_pretrained(folder)

    def write(batch: int, tokens: int) -> float:
        starts = [words.convert_ids_to_tokens(prompt) for prompt in prompts(batch)]
        began = time.perf_counter()
        model.generate_batch(
            starts, max_length=tokens, min_length=tokens, sampling_topk=1, include_prompt_in_result=False, end_token=[]
        )
        return batch * tokens / (time.perf_counter() - began)

    return write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beam", action="store_true", help="beam search alone, beside transformers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as home:
        makers: dict[str, Callable[[], Callable[[int, int], float]]] = {
            "lmkit": lambda: lmkit_writer(given.model, None),
            "lmkit, int8": lambda: lmkit_writer(given.model, "int8"),
            "transformers": lambda: transformers_writer(
                transformers.AutoModelForCausalLM.from_pretrained(given.model).eval()
            ),
            "llama.cpp, f32": lambda: llama_writer(given.model, "f32", Path(home)),
            "llama.cpp, q8_0": lambda: llama_writer(given.model, "q8_0", Path(home)),
            "CTranslate2": lambda: ctranslate2_writer(given.model, Path(home)),
        }
        writers = beam_writers(given.model) if given.beam else {}
        for name, make in makers.items() if not given.beam else ():
            try:
                writers[name] = make()
            except Exception as e:  # a peer that is not here, or does not read this model
                print(f"{name}: left out ({type(e).__name__}: {str(e).splitlines()[0][:90]})", flush=True)
        for batch in given.batches:
            measured: dict[str, list[float]] = {name: [] for name in writers}
            for _ in range(given.rounds):
                for name, write in writers.items():
                    if batch == 1 or not name.startswith("llama.cpp"):
                        measured[name].append(write(batch, given.tokens))
            base = statistics.median(measured["transformers, beam 4" if given.beam else "transformers"])
            for name, speeds in measured.items():
                if speeds:
                    speed = statistics.median(speeds)
                    each = " ".join(f"{one:.1f}" for one in speeds)
                    print(
                        f"batch {batch:>3}  {name:22} {speed:7.1f} tokens/s  {speed / base:.2f}x   ({each})", flush=True
                    )


if __name__ == "__main__":
    main()
