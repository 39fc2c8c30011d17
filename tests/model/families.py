"""Tiny random transformers models of every shape, with nothing left at its default zero or one."""

import re
from typing import Any

import torch
import transformers as hf
from torch import nn

from lmkit.architecture.model_config import ModelConfig
from lmkit.model.formats.config_json import config_from_hf
from lmkit.model.formats.huggingface import from_hf, head_of
from lmkit.model.transformer import Transformer

VOCAB, LENGTH = 101, 23
_SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 48,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1_000.0, "factor": 4.0, "original_max_position_embeddings": 12}
_LONG = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0], "partial_rotary_factor": 1.0,
}  # fmt: skip
_MODERN = hf.ModernBertConfig(
    **_SIZES | {"num_hidden_layers": 5}, local_attention=8, pad_token_id=0, bos_token_id=3, eos_token_id=4,
    cls_token_id=3, sep_token_id=4,
)  # fmt: skip
_T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3,
    "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}  # fmt: skip
_BART = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 48,
    "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2,
}  # fmt: skip
_MARIAN = _BART | {"pad_token_id": 100, "decoder_start_token_id": 100, "eos_token_id": 0, "scale_embedding": True}
_ALBERT = _SIZES | {"num_hidden_layers": 4, "embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2}
CONFIGS: dict[str, Any] = {
    "gpt2": hf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=48, pad_token_id=0),
    "llama": hf.LlamaConfig(**_SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True, pad_token_id=0),
    "llama_tied": hf.LlamaConfig(**_SIZES, tie_word_embeddings=True, head_dim=16),
    "llama3": hf.LlamaConfig(**_SIZES, num_key_value_heads=1, rope_parameters=_LLAMA3),
    "llama_linear": hf.LlamaConfig(
        **_SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
    ),
    "mistral": hf.MistralConfig(**_SIZES, num_key_value_heads=2, sliding_window=7, pad_token_id=0),
    "qwen2": hf.Qwen2Config(**_SIZES, num_key_value_heads=2, pad_token_id=0),
    "qwen2_window": hf.Qwen2Config(
        **_SIZES, num_key_value_heads=4, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": hf.Qwen3Config(**_SIZES, num_key_value_heads=2, head_dim=16, pad_token_id=0),
    "qwen3_window": hf.Qwen3Config(
        **_SIZES, num_key_value_heads=4, head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "llama_yarn": hf.LlamaConfig(**_SIZES, rope_parameters=_YARN),
    "llama_yarn_mscale": hf.LlamaConfig(
        **_SIZES, rope_parameters=_YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False, "beta_fast": 16.0}
    ),
    "llama_dynamic": hf.LlamaConfig(
        **_SIZES, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    ),
    "smollm3": hf.SmolLM3Config(**_SIZES, num_key_value_heads=2, no_rope_layers=[1, 0, 1], pad_token_id=0),
    "smollm3_window": hf.SmolLM3Config(
        **_SIZES,
        num_key_value_heads=2,
        no_rope_layers=[0, 1, 0],
        use_sliding_window=True,
        sliding_window=6,
        pad_token_id=0,
    ),
    "phi3": hf.Phi3Config(**_SIZES, num_key_value_heads=2, sliding_window=9, pad_token_id=0),
    "phi3_longrope": hf.Phi3Config(
        **_SIZES, num_key_value_heads=2, pad_token_id=0, original_max_position_embeddings=18, rope_parameters=_LONG
    ),
    "gemma": hf.GemmaConfig(**_SIZES, num_key_value_heads=1, head_dim=16, pad_token_id=0),
    "gemma2": hf.Gemma2Config(
        **_SIZES,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=7,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0,
        pad_token_id=0,
    ),
    "gemma3_text": hf.Gemma3TextConfig(
        **_SIZES,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=7,
        query_pre_attn_scalar=24,
        pad_token_id=0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt_neox": hf.GPTNeoXConfig(**_SIZES, pad_token_id=0, rotary_pct=0.5),
    "gpt_neox_serial": hf.GPTNeoXConfig(**_SIZES, pad_token_id=0, rotary_pct=0.25, use_parallel_residual=False),
    "nanochat": hf.NanoChatConfig(**_SIZES, num_key_value_heads=2),
    "bert": hf.BertConfig(**_SIZES),
    "distilbert": hf.DistilBertConfig(
        vocab_size=VOCAB, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=48
    ),
    "roberta": hf.RobertaConfig(**_SIZES),
    "xlm-roberta": hf.XLMRobertaConfig(**_SIZES),
    "camembert": hf.CamembertConfig(**_SIZES),
    "electra": hf.ElectraConfig(**_SIZES, embedding_size=16),
    "electra_square": hf.ElectraConfig(**_SIZES, embedding_size=32),
    "albert": hf.AlbertConfig(**_ALBERT),
    "modernbert": _MODERN,
    "modernbert_global": hf.ModernBertConfig(**_MODERN.to_dict() | {"layer_types": ["full_attention"] * 5}),
    "t5": hf.T5Config(**_T5),
    "t5_v1_1": hf.T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": hf.MT5Config(**_T5),
    "bart": hf.BartConfig(**_BART),
    "mbart": hf.MBartConfig(**_BART, scale_embedding=True),
    "m2m_100": hf.M2M100Config(**_BART),
    "pegasus": hf.PegasusConfig(**_BART | {"pad_token_id": 0, "eos_token_id": 1}, scale_embedding=True),
    "marian": hf.MarianConfig(**_MARIAN, activation_function="swish"),
    "transformer": hf.MarianConfig(**_MARIAN, activation_function="relu"),
}
SEQ2SEQ = ("t5", "t5_v1_1", "mt5", "bart", "mbart", "m2m_100", "pegasus", "marian", "transformer")
SINUSOIDAL = ("m2m_100", "pegasus", "marian", "transformer")
ROBERTAS = ("roberta", "xlm-roberta", "camembert")  # whose positions count from the padding token
ENCODERS = (
    "bert", "distilbert", *ROBERTAS, "electra", "electra_square", "albert", "modernbert", "modernbert_global",
)  # fmt: skip
CASES = tuple(CONFIGS)
DECODERS = tuple(n for n in CASES if n not in SEQ2SEQ + ENCODERS)
_AUTO = {
    "sequence": hf.AutoModelForSequenceClassification, "token": hf.AutoModelForTokenClassification,
    "span": hf.AutoModelForQuestionAnswering, "none": hf.AutoModel, "pairs": hf.AutoModelForPreTraining,
}  # fmt: skip


def auto_class(name: str, head: str = "lm") -> Any:
    if head != "lm":
        return _AUTO[head]
    if name in ENCODERS:
        return hf.AutoModelForMaskedLM
    return hf.AutoModelForSeq2SeqLM if name in SEQ2SEQ else hf.AutoModelForCausalLM


def reference(name: str, head: str = "lm") -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config = type(CONFIGS[name]).from_dict(CONFIGS[name].to_dict())
    if head in ("sequence", "token"):
        config.num_labels = 3
    if name in ("t5_v1_1", "mt5"):
        config.scale_decoder_outputs = False
    model = auto_class(name, head).from_config(config).eval()
    if name in ("t5_v1_1", "mt5") and head == "lm":  # as on the hub: two tables
        model.lm_head.weight = nn.Parameter(torch.empty(VOCAB, 32))
    tables = re.compile("embed|wte|wpe|shared")
    # so small that every norm's eps is felt; smaller still in T5, whose attention scores nothing scales down
    vector, table, matrix = (0.5, 0.1, 0.15) if "t5" in name else (1.0, 0.05, 0.3)
    for key, p in model.named_parameters():
        if "embed_positions" not in key or name not in SINUSOIDAL:  # a fixed table
            nn.init.normal_(p, std=vector if p.dim() == 1 else table if tables.search(key) else matrix)
    for key, b in model.named_buffers():
        if key == "final_logits_bias":
            nn.init.normal_(b)
    return model


def described(theirs: hf.PreTrainedModel) -> dict[str, Any]:
    """Its config.json."""
    return theirs.config.to_dict() | {"architectures": [type(theirs).__name__]}


def ours(theirs: hf.PreTrainedModel, **changes: Any) -> Transformer:
    """The same model in lmkit, or a mutation of it."""
    h, tensors = described(theirs), dict(theirs.state_dict())
    config = config_from_hf(h, head_of(h, set(tensors)))
    model = Transformer(config)
    from_hf(model, tensors, "test")
    if changes:
        changed = ModelConfig.model_construct(**{**config.model_dump(), "rope_scaling": config.rope_scaling, **changes})
        mutated = Transformer(changed)
        mutated.load_state_dict(model.state_dict(), strict=False)
        model = mutated
    return model.eval()


def inputs(theirs: hf.PreTrainedModel, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """Rows of different lengths, longer than every window, with segment ids and a decoder's tokens where there are
    any. Each row ends with EOS."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 100, (3, length), generator=g)
    ids[:, 2] = 9
    keep = torch.ones_like(ids)
    c = theirs.config
    for row, end in enumerate((length, 15, 4)):
        keep[row, end:] = 0
        ids[row, end:] = c.pad_token_id if c.pad_token_id is not None else 0
        if isinstance(c.eos_token_id, int) and c.eos_token_id < VOCAB:
            ids[row, end - 1] = c.eos_token_id
    out = {"input_ids": ids, "attention_mask": keep}
    if getattr(c, "type_vocab_size", 0):
        out["token_type_ids"] = torch.randint(0, c.type_vocab_size, ids.shape, generator=g)
    return out


def decoder_inputs() -> torch.Tensor:
    return torch.randint(5, 100, (3, 17), generator=torch.Generator().manual_seed(2))
