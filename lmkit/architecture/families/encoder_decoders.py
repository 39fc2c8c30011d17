"""BART, mBART, M2M-100, Pegasus, Marian and the 2017 Transformer, T5 and mT5."""

from typing import Any

from lmkit.architecture.families.spec import QKV, Family, HeadSpec, at

_CROSS = {
    "cross_norm": "encoder_attn_layer_norm", "cross.query": "encoder_attn.q_proj",
    "cross.key_value": "encoder_attn.k_proj encoder_attn.v_proj", "cross.output": "encoder_attn.out_proj",
}  # fmt: skip
_BART_BLOCK = {
    "attention_norm": "self_attn_layer_norm", "attention.qkv": QKV, "attention.output": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm", "mlp.up": "fc1", "mlp.down": "fc2",
}  # fmt: skip
_BART_STACK = {"inputs.position": "embed_positions", "inputs.norm": "layernorm_embedding", "norm": "layer_norm"}
_SEQ2SEQ = {"stacks": "encoder_decoder", "qkv_bias": True, "output_bias": True, "mlp_bias": True, "tied": True}
_BART_AXES = _SEQ2SEQ | {
    "positions": "learned", "position_offset": 2, "norm": "layer", "norm_eps": 1e-5, "norm_position": "post",
    "final_norm": False, "embedding_norm": True, "activation": "gelu", "head_bias": "fixed", "dropout": 0.1,
}  # fmt: skip
_BART_KEYS = {
    "vocab_size": "vocab_size", "hidden_size": "d_model", "num_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers", "num_heads": "encoder_attention_heads",
    "decoder_num_heads": "decoder_attention_heads", "intermediate_size": "encoder_ffn_dim",
    "decoder_intermediate_size": "decoder_ffn_dim", "context": "max_position_embeddings",
    "activation": "activation_function", "dropout": "dropout", "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout", "scaled_embedding": "scale_embedding",
    "head_dropout": "classifier_dropout",
}  # fmt: skip
_BART_NAMES = {"embedding": "model.shared"}
for _stack in ("encoder", "decoder"):
    _BART_NAMES |= at(f"{_stack}.", f"model.{_stack}.", _BART_STACK)
    _BART_NAMES |= at(
        f"{_stack}.blocks.{{i}}.", f"model.{_stack}.layers.{{i}}.",
        _BART_BLOCK | (_CROSS if _stack == "decoder" else {}),
    )  # fmt: skip
_BART_COPIES = {
    f"{name}.weight": "model.shared.weight"
    for name in ("lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens")
}
_CLASSIFICATION_HEAD = {"dense": "classification_head.dense", "output": "classification_head.out_proj"}


def _bart(cls: str, lm: str, heads: bool = True, **more: Any) -> Family:
    kinds = {"lm": HeadSpec(lm, {"": ""}), "none": HeadSpec(f"{cls}Model", {})}
    if heads:
        kinds["sequence"] = HeadSpec(f"{cls}ForSequenceClassification", _CLASSIFICATION_HEAD, "end")
        kinds["span"] = HeadSpec(f"{cls}ForQuestionAnswering", {"output": "qa_outputs"})
    axes = more.pop("axes", {})
    return Family(_BART_AXES | axes, _BART_KEYS, _BART_NAMES, kinds, copies=_BART_COPIES, **more)


_MARIAN_AXES = {"positions": "sinusoidal", "position_offset": 0, "embedding_norm": False, "scaled_embedding": True}
_MARIAN_FIXED = {"share_encoder_decoder_embeddings": True, "tie_word_embeddings": True}
_T5_BLOCK = {
    "attention_norm": "layer.0.layer_norm",
    "attention.qkv": "layer.0.SelfAttention.q layer.0.SelfAttention.k layer.0.SelfAttention.v",
    "attention.output": "layer.0.SelfAttention.o",
}  # fmt: skip
_T5_CROSS = {
    "cross_norm": "layer.1.layer_norm", "cross.query": "layer.1.EncDecAttention.q",
    "cross.key_value": "layer.1.EncDecAttention.k layer.1.EncDecAttention.v",
    "cross.output": "layer.1.EncDecAttention.o",
}  # fmt: skip


def _t5_names() -> dict[str, str]:
    names = {"embedding": "shared"}
    for stack, mlp, cross in (("encoder", "layer.1.", {}), ("decoder", "layer.2.", _T5_CROSS)):
        names |= at(f"{stack}.", f"{stack}.", {
            "relative": "block.0.layer.0.SelfAttention.relative_attention_bias", "norm": "final_layer_norm",
        })  # fmt: skip
        block = _T5_BLOCK | cross | at("mlp_", mlp, {"norm": "layer_norm"})
        # a gated layer stacks wi_0 (gate) on wi_1; the other has wi alone: `model.huggingface` drops what is not there
        block |= at("mlp.", f"{mlp}DenseReluDense.", {"up": "wi_0 wi_1", "down": "wo"})
        names |= at(f"{stack}.blocks.{{i}}.", f"{stack}.block.{{i}}.", block)
    return names


def _t5(cls: str, **axes: Any) -> Family:
    return Family(
        axes={
            "stacks": "encoder_decoder", "positions": "relative", "norm": "rms", "norm_eps": 1e-6,
            "scaled_attention": False, "activation": "relu", "tied": True, "scaled_head": True, "dropout": 0.1,
            "attention_dropout": 0.1, "activation_dropout": 0.1, **axes,
        },
        keys={
            "vocab_size": "vocab_size", "hidden_size": "d_model", "num_layers": "num_layers",
            "num_decoder_layers": "num_decoder_layers", "num_heads": "num_heads", "head_dim": "d_kv",
            "intermediate_size": "d_ff", "norm_eps": "layer_norm_epsilon", "head_dropout": "classifier_dropout",
            "relative_buckets": "relative_attention_num_buckets",
            "relative_distance": "relative_attention_max_distance",
        },
        names=_t5_names(),
        heads={
            "lm": HeadSpec(f"{cls}ForConditionalGeneration", {"": "lm_head"}), "none": HeadSpec(f"{cls}Model", {}),
            "sequence": HeadSpec(
                f"{cls}ForSequenceClassification", _CLASSIFICATION_HEAD, "end", prefix="transformer."
            ),
            "token": HeadSpec(
                f"{cls}ForTokenClassification", {"output": "classifier"}, prefix="transformer.", encoder_only=True
            ),
            "span": HeadSpec(f"{cls}ForQuestionAnswering", {"output": "qa_outputs"}),
        },
        coded=("context", "activation", "gated", "tied", "scaled_head", "dropout", "attention_dropout",
               "activation_dropout"),
        copies={
            f"{name}.weight": "shared.weight" for name in ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens")
        },
        prefix="", tokens="t5",
    )  # fmt: skip


ENCODER_DECODERS = {
    "bart": _bart("Bart", "BartForConditionalGeneration", start="eos", tokens="roberta", adam=(0.9, 0.98, 1e-6)),
    "mbart": _bart(
        "MBart", "MBartForConditionalGeneration", start="eos", tokens="roberta", adam=(0.9, 0.98, 1e-6),
        axes={"norm_position": "pre", "final_norm": True, "scaled_embedding": True},
    ),
    "m2m_100": _bart(  # and NLLB
        "M2M100", "M2M100ForConditionalGeneration", False, start="eos", tokens="roberta", adam=(0.9, 0.98, 1e-6),
        axes=_MARIAN_AXES | {
            "position_offset": 2, "closed_sinusoids": True, "norm_position": "pre", "final_norm": True,
            "head_bias": "none", "activation": "relu",
        },
    ),
    "pegasus": _bart(
        "Pegasus", "PegasusForConditionalGeneration", False, tokens="t5", adam=(0.9, 0.98, 1e-6), stored_positions=True,
        axes=_MARIAN_AXES | {"norm_position": "pre", "final_norm": True, "activation": "relu"},
    ),
    "marian": _bart(
        "Marian", "MarianMTModel", False, fixed=_MARIAN_FIXED, tokens="marian", adam=(0.9, 0.98, 1e-9),
        axes=_MARIAN_AXES | {"activation": "silu"},
    ),
    "transformer": _bart(  # Vaswani et al. 2017, as transformers' Marian computes it
        "Marian", "MarianMTModel", False, fixed=_MARIAN_FIXED, tokens="marian", adam=(0.9, 0.98, 1e-9),
        axes=_MARIAN_AXES | {"activation": "relu"}, model_type="marian",
    ),
    "t5": _t5("T5"),
    "mt5": _t5("MT5", activation="gelu_tanh", gated=True, tied=False, scaled_head=False),
}  # fmt: skip
