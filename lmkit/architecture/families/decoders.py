"""GPT-2, GPT-NeoX, Llama and what is built like it, Gemma, nanochat."""

from dataclasses import replace
from typing import Any

from lmkit.architecture.families.spec import BIAS, QKV, SIZES, Family, HeadSpec, at

_GENERIC_HEADS = {  # of every Llama-like class: sequence and token classification, questions
    "sequence": ("ForSequenceClassification", {"output": "score"}, "last", False, None),
    "token": ("ForTokenClassification", {"output": "score"}, "each", True, None),
    "span": ("ForQuestionAnswering", {"output": "qa_outputs"}, "each", True, "transformer."),
}


def _causal_heads(cls: str, span_prefix: str = "transformer.") -> dict[str, HeadSpec]:
    heads = {"lm": HeadSpec(f"{cls}ForCausalLM", {"": "lm_head"}), "none": HeadSpec(f"{cls}Model", {})}
    for kind, (suffix, modules, pool, bias, prefix) in _GENERIC_HEADS.items():
        where = span_prefix if prefix else None
        heads[kind] = HeadSpec(cls + suffix, modules, pool, output_bias=bias, prefix=where)
    return heads


_LLAMA_AXES = {"norm": "rms", "activation": "silu", "gated": True}
_LLAMA_KEYS = SIZES | {
    "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim", "norm_eps": "rms_norm_eps",
    "activation": "hidden_act", "attention_dropout": "attention_dropout", "tied": "tie_word_embeddings",
}  # fmt: skip
_LLAMA_BLOCK = {
    "attention_norm": "input_layernorm", "attention.qkv": QKV, "attention.output": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm", "mlp.up": "mlp.gate_proj mlp.up_proj", "mlp.down": "mlp.down_proj",
}  # fmt: skip
_LLAMA_NAMES = {"embedding": "model.embed_tokens", "decoder.norm": "model.norm"} | at(
    "decoder.blocks.{i}.", "model.layers.{i}.", _LLAMA_BLOCK
)
_LM_COPY = {"lm_head.weight": "model.embed_tokens.weight"}
_ROPE, _WINDOW = ("rope_theta", "rope_scaling"), ("sliding_window", "window_layers")


def _llama(cls: str, keys: dict[str, str], coded: tuple[str, ...], **axes: Any) -> Family:
    return Family(
        _LLAMA_AXES | axes, _LLAMA_KEYS | keys, _LLAMA_NAMES,
        _causal_heads(cls, "model." if cls == "Mistral" else "transformer."), coded, _LM_COPY, tokens="llama",
    )  # fmt: skip


def _gemma(
    cls: str, activation: str, coded: tuple[str, ...], block: dict[str, str], more: dict[str, str], **axes: Any
) -> Family:
    """Returns a generation of Gemma; the classes that its heads have in transformers differ."""
    kinds = _causal_heads(cls.removesuffix("Text"))
    heads = {kind: kinds[kind] for kind in ("lm", "sequence", "token") if kind != "token" or cls != "Gemma3Text"}
    heads["sequence"] = replace(heads["sequence"], cls=f"{cls}ForSequenceClassification")
    heads["none"] = HeadSpec(f"{cls}Model", {})
    return Family(
        _LLAMA_AXES | {"activation": "gelu_tanh", "norm_plus_one": True, "scaled_embedding": True, "tied": True} | axes,
        _LLAMA_KEYS | {"activation": activation} | more,
        _LLAMA_NAMES | at("decoder.blocks.{i}.", "model.layers.{i}.", block), heads, (*_ROPE, *BIAS, *coded), _LM_COPY,
        {"use_bidirectional_attention": False}, tokens="gemma",
    )  # fmt: skip


_GEMMA2_BLOCK = {
    "attention_post_norm": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}  # fmt: skip
_GEMMA2_KEYS = {
    "query_pre_attn_scalar": "query_pre_attn_scalar", "attention_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
}  # fmt: skip
_GEMMA2_AXES = {"norm_position": "both", "query_pre_attn_scalar": 256}
_PHI3 = _llama(
    "Phi3", {"sliding_window": "sliding_window", "dropout": "resid_pdrop"}, (*_ROPE, "partial_rotary_factor")
)
_PHI3 = replace(
    _PHI3, keys={axis: key for axis, key in _PHI3.keys.items() if axis != "head_dim"},
    names=_PHI3.names | at("decoder.blocks.{i}.", "model.layers.{i}.", {
        "attention.qkv": "self_attn.qkv_proj", "mlp.up": "mlp.gate_up_proj",
    }),
    heads={kind: spec for kind, spec in _PHI3.heads.items() if kind != "span"},
)  # fmt: skip
_NEOX_HEADS = _causal_heads("GPTNeoX") | {
    "token": HeadSpec("GPTNeoXForTokenClassification", {"output": "classifier"}),
    "span": HeadSpec("GPTNeoXForQuestionAnswering", {"output": "qa_outputs"}),
}
_GPT_NEOX = Family(
    axes={
        "norm": "layer", "norm_eps": 1e-5, "activation": "gelu", "qkv_bias": True, "output_bias": True,
        "mlp_bias": True, "parallel_residual": True, "partial_rotary_factor": 0.25,
    },
    keys=SIZES | {
        "norm_eps": "layer_norm_eps", "activation": "hidden_act", "attention_dropout": "attention_dropout",
        "dropout": "hidden_dropout", "head_dropout": "classifier_dropout", "tied": "tie_word_embeddings",
        "parallel_residual": "use_parallel_residual",
    },
    names={"embedding": "gpt_neox.embed_in", "decoder.norm": "gpt_neox.final_layer_norm"} | at(
        "decoder.blocks.{i}.", "gpt_neox.layers.{i}.", {
            "attention_norm": "input_layernorm", "attention.qkv": "attention.query_key_value",
            "attention.output": "attention.dense", "mlp_norm": "post_attention_layernorm",
            "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h",
        }),
    heads=_NEOX_HEADS, coded=(*_ROPE, *BIAS, "partial_rotary_factor"),
    copies={"lm_head.weight": "gpt_neox.embed_in.weight"}, prefix="gpt_neox.", tokens="gpt2",
)  # fmt: skip
_NANOCHAT = Family(
    axes={
        "norm": "rms", "norm_gain": False, "embedding_norm": True, "qk_norm": "after_rope", "activation": "relu2",
        "rope_theta": 100_000.0, "rope_reversed": True, "logit_softcap": 15.0,
    },
    keys=_LLAMA_KEYS | {"logit_softcap": "final_logit_softcapping"},
    names=_LLAMA_NAMES | at(
        "decoder.blocks.{i}.", "model.layers.{i}.", {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
    ),
    heads={"lm": HeadSpec("NanoChatForCausalLM", {"": "lm_head"}), "none": HeadSpec("NanoChatModel", {})},
    coded=(*_ROPE, "qkv_bias"), copies=_LM_COPY, tokens="nanochat",
)  # fmt: skip
_GPT2 = Family(
    axes={
        "positions": "learned", "norm": "layer", "norm_eps": 1e-5, "activation": "gelu_tanh", "qkv_bias": True,
        "output_bias": True, "mlp_bias": True, "tied": True,
    },
    keys={
        "vocab_size": "vocab_size", "hidden_size": "n_embd", "num_layers": "n_layer", "num_heads": "n_head",
        "intermediate_size": "n_inner", "context": "n_positions", "activation": "activation_function",
        "norm_eps": "layer_norm_epsilon", "dropout": "resid_pdrop", "attention_dropout": "attn_pdrop",
        "tied": "tie_word_embeddings",
    },
    names={
        "embedding": "transformer.wte", "decoder.inputs.position": "transformer.wpe", "decoder.norm": "transformer.ln_f"
    } | at("decoder.blocks.{i}.", "transformer.h.{i}.", {
        "attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj",
        "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
    }),
    heads={
        "lm": HeadSpec("GPT2LMHeadModel", {"": "lm_head"}), "none": HeadSpec("GPT2Model", {}),
        "sequence": HeadSpec("GPT2ForSequenceClassification", {"output": "score"}, "last", output_bias=False),
        "token": HeadSpec("GPT2ForTokenClassification", {"output": "classifier"}),
        "span": HeadSpec("GPT2ForQuestionAnswering", {"output": "qa_outputs"}),
    },
    copies={"lm_head.weight": "transformer.wte.weight"}, prefix="transformer.", tokens="gpt2",
    fixed={
        "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "scale_attn_weights": True,
    },
)  # fmt: skip

DECODERS = {
    "gpt2": _GPT2,
    "llama": _llama("Llama", {"mlp_bias": "mlp_bias"}, (*_ROPE, *BIAS)),
    "mistral": _llama("Mistral", {"sliding_window": "sliding_window"}, _ROPE),
    "qwen2": _llama("Qwen2", {}, (*_ROPE, *_WINDOW), qkv_bias=True),
    "qwen3": _llama("Qwen3", {}, (*_ROPE, *BIAS, *_WINDOW), qk_norm="before_rope"),
    "smollm3": _llama("SmolLM3", {"mlp_bias": "mlp_bias"}, (*_ROPE, *BIAS, *_WINDOW, "nope_layers")),
    "phi3": _PHI3,
    "gemma": _gemma("Gemma", "hidden_act", (), {}, {}),
    "gemma2": _gemma("Gemma2", "hidden_activation", _WINDOW, _GEMMA2_BLOCK, _GEMMA2_KEYS, **_GEMMA2_AXES),
    "gemma3_text": _gemma(
        "Gemma3Text",
        "hidden_activation",
        (*_WINDOW, "rope_theta_local"),
        _GEMMA2_BLOCK,
        _GEMMA2_KEYS,
        qk_norm="before_rope",
        rope_theta=1_000_000.0,
        rope_theta_local=10_000.0,
        **_GEMMA2_AXES,
    ),
    "gpt_neox": _GPT_NEOX,
    "nanochat": _NANOCHAT,
}
