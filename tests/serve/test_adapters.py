"""Adapters of one base are served beside it, with its weights once in memory."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

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
    held = {p.data_ptr(): p.nbytes for one in served.values() for p in one.loaded.model.parameters()}
    alone = sum(p.nbytes for p in served["base"].loaded.model.parameters())
    lora = sum(p.nbytes for p in served["a"].loaded.model.parameters() if p.size(0) == 3 or p.size(-1) == 3)
    assert sum(held.values()) < alone + 3 * lora and texts["a"] != texts["b"]
    for one in served.values():
        one.worker.stop()
