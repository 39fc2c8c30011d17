"""GGUF files: what is written is what transformers and llama.cpp read, and what is read is what they compute."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Split

import lmkit
from lmkit.base.errors import ModelError, UserError
from lmkit.ops.export import export
from lmkit.recipe.pretraining import TokenizerConfig
from lmkit.text.training import train_tokenizer

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 416,
    "max_position_embeddings": 48,
}  # fmt: skip
CONFIGS = {
    "llama": hf.LlamaConfig(**SIZES, num_key_value_heads=2),
    "tied": hf.LlamaConfig(**SIZES, tie_word_embeddings=True, head_dim=16),
    "mistral": hf.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
    "qwen2": hf.Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": hf.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=128),
    "gpt2": hf.GPT2Config(vocab_size=416, n_embd=32, n_layer=2, n_head=4),
}
STRETCHED = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
ONLY_LLAMA_CPP = {  # that transformers' reader of GGUF does not read
    "biased": hf.LlamaConfig(**SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True),
    "llama3": hf.LlamaConfig(**SIZES, rope_parameters=STRETCHED),
    "linear": hf.LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}),
    "gemma": hf.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16, pad_token_id=0),
    "wide": hf.LlamaConfig(**SIZES | {"hidden_size": 256, "intermediate_size": 256}),
}
CORPUS = ["She had been forced into prudence in her youth; she learned romance as she grew older. " * 20] * 3
TEXTS = ["She had\n\n  been 12345 “forced”,\tnaïve don't DON'T", "東京 🙂  x\r\n", "<s></s> <|endoftext|>", "a"]
IDS = torch.arange(3, 43)[None] * 7 % 300


def folder(tmp_path: Path, name: str, kind: str = "bpe") -> tuple[Path, hf.PreTrainedModel]:
    """A random model of transformers with a tokenizer trained here, in a folder."""
    config = (CONFIGS | ONLY_LLAMA_CPP)[name]
    family = "gpt2" if name == "gpt2" else "llama"
    tokenizer = train_tokenizer(iter(CORPUS), TokenizerConfig(type=kind, vocab_size=340), family)
    config.update({"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id})
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(tmp_path / "hf")
    tokenizer.save(tmp_path / "hf")
    return tmp_path / "hf", model


def exported(tmp_path: Path, name: str, quantization: str | None = None) -> tuple[Path, torch.Tensor]:
    """The path of a GGUF file, and the logits of the model that it was made of."""
    source, model = folder(tmp_path, name)
    export(str(source), tmp_path / "out", "gguf", quantization, "f32", False)
    with torch.no_grad():
        return tmp_path / f"out/model-{quantization or 'f32'}.gguf", model(IDS).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_we_write_and_we_read_the_same(name, tmp_path):
    file, want = exported(tmp_path, name)
    theirs = hf.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours, before = lmkit.load(file), lmkit.load(tmp_path / "hf").tokenizer
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.logits(IDS), want, rtol=0, atol=1e-5)
    for text in TEXTS:
        ids = before.encode(text)
        assert ours.tokenizer.encode(text) == ids and ours.tokenizer.decode(ids) == text
        if "<" not in text:  # transformers takes text that spells a control token for one
            assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert ours.tokenizer.first_ids == before.first_ids and ours.eos == {before.eos_id}
    assert ours.generate(["She"], temperature=0, max_tokens=8) == lmkit.load(tmp_path / "hf").generate(
        ["She"], temperature=0, max_tokens=8
    )


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0"])
def test_quantized_matrices_are_read_as_transformers_reads_them(quantization, tmp_path):
    file, want = exported(tmp_path, "llama", quantization)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert kinds["token_embd.weight"] == kinds["blk.1.attn_q.weight"] == quantization.upper()
    assert kinds["output_norm.weight"] == kinds["blk.0.attn_norm.weight"] == "F32"
    theirs = hf.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    with torch.no_grad():
        read, got = theirs(IDS).logits, lmkit.load(file).logits(IDS)
    torch.testing.assert_close(got, read, rtol=0, atol=1e-5)
    assert 1e-4 < (got - want).abs().max() < (0.1 if quantization == "q8_0" else 2)


@pytest.mark.parametrize("name", [name for name in CONFIGS | ONLY_LLAMA_CPP if name != "wide"])
def test_llama_cpp_computes_the_same_and_writes_the_same_tokens(name, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    file, want = exported(tmp_path, name)
    model = llama_cpp.Llama(str(file), n_ctx=48, logits_all=True, verbose=False, n_threads=1)
    ours = lmkit.load(file)
    for text in TEXTS:
        assert model.tokenize(text.encode(), add_bos=True) == ours.tokenizer.first_ids + ours.tokenizer.encode(text)
    model.eval(IDS[0].tolist())
    torch.testing.assert_close(torch.tensor(model.scores[: IDS.size(1)]), want[0], rtol=0, atol=5e-3)  # it caches f16
    torch.testing.assert_close(ours.logits(IDS), want, rtol=0, atol=1e-5)
    model.reset()
    prompt = ours.tokenizer.first_ids + ours.tokenizer.encode("She had been")
    written = [token for token, _ in zip(model.generate(prompt, temp=0), range(8), strict=False)]
    ids = prompt
    for token in written:
        assert int(ours.logits([ids])[0, -1].argmax()) == token
        ids = [*ids, token]


def test_k_quants_of_llama_cpp_are_read(tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    file, _ = exported(tmp_path, "wide")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 1
    smaller = file.with_name("q4_k_m.gguf")
    assert llama_cpp.llama_model_quantize(str(file).encode(), str(smaller).encode(), params) == 0
    assert {"Q4_K", "Q6_K"} <= {tensor.tensor_type.name for tensor in gguf.GGUFReader(smaller).tensors}
    theirs = hf.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=smaller.name).eval()
    with torch.no_grad():
        torch.testing.assert_close(lmkit.load(smaller).logits(IDS), theirs(IDS).logits, rtol=0, atol=1e-4)


def test_pieces_with_scores_give_the_ids_of_llama_cpp(tmp_path):
    source, _ = folder(tmp_path, "llama", "sentencepiece")
    export(str(source), tmp_path / "out", "gguf", None, None, False)
    file, before = tmp_path / "out/model-f32.gguf", lmkit.load(source).tokenizer
    read = lmkit.load(file).tokenizer
    assert [read.encode(text) for text in TEXTS] == [before.encode(text) for text in TEXTS]
    model = pytest.importorskip("llama_cpp").Llama(str(file), n_ctx=48, vocab_only=True, verbose=False)
    assert [model.tokenize(text.encode(), add_bos=False) for text in TEXTS] == [before.encode(text) for text in TEXTS]


def test_a_template_goes_with_the_file(tmp_path):
    source, _ = folder(tmp_path, "llama")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    export(str(source), tmp_path / "out", "gguf", None, None, False)
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model-f32.gguf").chat_template == template
    export(str(tmp_path / "out/model-f32.gguf"), tmp_path / "back", "hf", None, "bf16", False)
    back = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert back.dtype == torch.bfloat16 and (tmp_path / "back/chat_template.jinja").read_text() == template


@pytest.mark.parametrize("kind", ["unigram", "bytes"])
def test_tokenizers_that_llama_cpp_lacks_are_refused(kind, tmp_path):
    source, _ = folder(tmp_path, "llama", kind)
    with pytest.raises(ModelError, match=r"llama\.cpp has no tokenizer like this one"):
        export(str(source), tmp_path / "out", "gguf", None, None, False)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_other_cuts_goes_on_working_and_is_refused(tmp_path):
    """As older versions trained them: two digits are one word."""
    source, _ = folder(tmp_path, "llama")
    backend = Tokenizer.from_file(str(source / "tokenizer.json"))
    backend.pre_tokenizer[0] = Split(Regex(r"\p{N}{1,2}|\P{N}+"), "isolated")
    backend.save(str(source / "tokenizer.json"))
    assert lmkit.load(source).tokenizer.decode(lmkit.load(source).tokenizer.encode("12345 a")) == "12345 a"
    with pytest.raises(ModelError, match=r"(?s)cuts words by .*allowed: qwen2"):
        export(str(source), tmp_path / "out", "gguf", None, None, False)


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    file, _ = exported(tmp_path, "llama")
    whole = file.read_bytes()
    for size in (0, 3, 40, 3000, len(whole) // 2, len(whole) - 100):
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"broken\.gguf: damaged, cut off"):
            lmkit.load(broken)
        broken.unlink()
    rng = np.random.default_rng(0)
    for start in range(0, 2000, 50):
        noisy = bytearray(whole)
        noisy[start : start + 8] = rng.bytes(8)
        broken = tmp_path / f"noisy{start}.gguf"
        broken.write_bytes(noisy)
        try:
            lmkit.load(broken)
        except UserError:
            continue
    other = tmp_path / "other.gguf"
    named = lambda name: b"general.architecture\x08\0\0\0" + len(name).to_bytes(8, "little") + name
    other.write_bytes(whole.replace(named(b"llama"), named(b"mamba")))
    with pytest.raises(ModelError, match=r"`mamba` is not supported\n  allowed: llama, qwen2, qwen3, gpt2"):
        lmkit.load(other)


def test_without_the_package_its_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install \"lmkit\[gguf\]\""):
        lmkit.load(tmp_path / "model.gguf")
