"""Tiny random transformers models of every decoder shape, with nothing left at its default zero or one."""

import torch
import transformers as hf
from torch import nn

_SIZES = {
    "vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 48,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
CASES = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=101, n_embd=32, n_layer=3, n_head=4, n_positions=48)),
    "llama": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**_SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True)
    ),
    "llama_tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES, tie_word_embeddings=True, head_dim=16)),
    "llama3": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SIZES, num_key_value_heads=1, rope_parameters=_LLAMA3)),
    "llama_linear": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**_SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0})
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_SIZES, num_key_value_heads=2, sliding_window=7)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_SIZES, num_key_value_heads=2, head_dim=16)),
    "qwen3_window": lambda: hf.Qwen3ForCausalLM(
        hf.Qwen3Config(
            **_SIZES, num_key_value_heads=4, head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=1
        )
    ),
    "nanochat": lambda: hf.NanoChatForCausalLM(hf.NanoChatConfig(**_SIZES, num_key_value_heads=2)),
}


def reference(name: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    model = CASES[name]().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3 if p.dim() > 1 else 0.5)
    return model


def ragged(length: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (3, length), longer than every window, and the attention mask of right-padded rows."""
    ids = torch.randint(0, 101, (3, length), generator=torch.Generator().manual_seed(1))
    keep = torch.ones_like(ids)
    keep[1, 15:], keep[2, 4:] = 0, 0
    return ids, keep
