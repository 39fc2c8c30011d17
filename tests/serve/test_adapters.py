"""Adapters of one base are served beside it, with its weights once in memory."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lmkit.generation.weights import PackedLinear
from lmkit.pretrained import load
from lmkit.serve.models import serve_all
from tests.generation.folders import llama_folder


def test_adapters_write_what_peft_writes_and_share_the_weights_of_their_base(tmp_path):
    llama_folder(tmp_path / "base", context=64)
    prompt, texts = torch.tensor([[5, 9, 40, 7]]), {}
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        config = LoraConfig(r=3, lora_alpha=9, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        adapted = get_peft_model(base, config)
        adapted.save_pretrained(tmp_path / name)
        out = adapted.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False)
        texts[name] = out[0, 4:].tolist()
    served = serve_all([str(tmp_path / name) for name in ("base", "a", "b")], 2, None)
    for name, want in texts.items():
        [logits] = [served[name].loaded.model.head(served[name].loaded.hidden(torch.tensor([[5, 9, 40, 7, *want]])))]
        assert logits[0, 3:-1].argmax(-1).tolist() == want
        assert load(tmp_path / name).logits([[5, 9]]).allclose(served[name].loaded.logits([[5, 9]]), atol=1e-5)
    layers = [
        [module.packed for module in one.loaded.model.modules() if isinstance(module, PackedLinear)]
        for one in served.values()
    ]
    assert len({id(packed) for packed in layers[0]}) == len(layers[0]) == 9  # two blocks of four matrices, and the head
    assert all([id(p) for p in packed] == [id(p) for p in layers[0]] for packed in layers[1:])
    embeddings = {one.loaded.model.embedding.weight.data_ptr() for one in served.values()}
    assert len(embeddings) == 1 and texts["a"] != texts["b"]
    for one in served.values():
        one.worker.stop()
