"""BERT, what is built like it, and ModernBERT."""

from typing import Any

from lmkit.architecture.families.spec import BIAS, SIZES, Family, HeadSpec, at

_BERT_AXES = {
    "stacks": "encoder", "positions": "learned", "norm": "layer", "norm_eps": 1e-12, "norm_position": "post",
    "final_norm": False, "embedding_norm": True, "type_vocab_size": 2, "activation": "gelu", "qkv_bias": True,
    "output_bias": True, "mlp_bias": True, "tied": True, "head_bias": "learned", "dropout": 0.1,
    "attention_dropout": 0.1,
}  # fmt: skip
_BERT_KEYS = SIZES | {
    "norm_eps": "layer_norm_eps", "type_vocab_size": "type_vocab_size", "activation": "hidden_act",
    "dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob",
    "head_dropout": "classifier_dropout",
}  # fmt: skip
_BERT_INPUTS = {
    "embedding": "word_embeddings", "encoder.inputs.position": "position_embeddings",
    "encoder.inputs.segment": "token_type_embeddings", "encoder.inputs.norm": "LayerNorm",
}  # fmt: skip
_BERT_BLOCK = {
    "attention.qkv": "attention.self.query attention.self.key attention.self.value",
    "attention.output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense", "mlp.down": "output.dense", "mlp_norm": "output.LayerNorm",
}  # fmt: skip
_ENCODER: dict[str, Any] = {"is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True}
_ENCODER |= {"position_embedding_type": "absolute"}
_PER_TOKEN = {"token": "classifier", "span": "qa_outputs"}


def _encoder(
    cls: str, lm: HeadSpec, sequence: HeadSpec, names: dict[str, str], copies: dict[str, str], prefix: str,
    pooler: dict[str, str] | None = None, pretraining: dict[str, str] | None = None, **more: Any,
) -> Family:  # fmt: skip
    heads = {"lm": lm, "sequence": sequence, "none": HeadSpec(f"{cls}Model", pooler or {}, "first")}
    for kind, module in _PER_TOKEN.items():
        suffix = "ForTokenClassification" if kind == "token" else "ForQuestionAnswering"
        heads[kind] = HeadSpec(cls + suffix, {"output": module})
    if pretraining:
        heads["pairs"] = HeadSpec(f"{cls}ForPreTraining", pretraining, "first")
    axes, keys = more.pop("axes", {}), more.pop("keys", {})
    return Family(
        _BERT_AXES | axes, _BERT_KEYS | keys, names, heads, copies=copies, prefix=prefix, fixed=_ENCODER, **more
    )


def _bert_names(prefix: str) -> dict[str, str]:
    return at("", f"{prefix}embeddings.", _BERT_INPUTS) | at(
        "encoder.blocks.{i}.", f"{prefix}encoder.layer.{{i}}.", _BERT_BLOCK
    )


_BERT = _encoder(
    "Bert",
    HeadSpec("BertForMaskedLM", {
        "": "cls.predictions", "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
    }, activation=""),
    HeadSpec("BertForSequenceClassification", {"dense": "bert.pooler.dense", "output": "classifier"}, "first"),
    _bert_names("bert."),
    {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    "bert.", {"dense": "bert.pooler.dense"}, {"dense": "bert.pooler.dense", "output": "cls.seq_relationship"},
    adam=(0.9, 0.999, 1e-6),
)  # fmt: skip
_ROBERTA_CLASSIFIER = {"dense": "classifier.dense", "output": "classifier.out_proj"}


def _roberta(cls: str) -> Family:
    """Returns a family whose classes differ from RoBERTa's in their names alone."""
    lm = {"": "lm_head", "dense": "lm_head.dense", "norm": "lm_head.layer_norm"}
    return _encoder(
        cls, HeadSpec(f"{cls}ForMaskedLM", lm, activation="gelu"),
        HeadSpec(f"{cls}ForSequenceClassification", _ROBERTA_CLASSIFIER, "first"), _bert_names("roberta."),
        {
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        "roberta.", {"dense": "roberta.pooler.dense"},
        axes={"type_vocab_size": 1, "norm_eps": 1e-5}, coded=("context", "position_offset", "position_padding_id"),
        tokens="roberta", adam=(0.9, 0.98, 1e-6),
    )  # fmt: skip


_DISTILBERT = Family(
    axes=_BERT_AXES | {"type_vocab_size": 0, "head_dropout": 0.2},
    keys={
        "vocab_size": "vocab_size", "hidden_size": "dim", "num_layers": "n_layers", "num_heads": "n_heads",
        "intermediate_size": "hidden_dim", "context": "max_position_embeddings", "activation": "activation",
        "dropout": "dropout", "attention_dropout": "attention_dropout", "head_dropout": "seq_classif_dropout",
    },
    names={
        "embedding": "distilbert.embeddings.word_embeddings",
        "encoder.inputs.position": "distilbert.embeddings.position_embeddings",
        "encoder.inputs.norm": "distilbert.embeddings.LayerNorm",
    } | at("encoder.blocks.{i}.", "distilbert.transformer.layer.{i}.", {
        "attention.qkv": "attention.q_lin attention.k_lin attention.v_lin", "attention.output": "attention.out_lin",
        "attention_norm": "sa_layer_norm", "mlp.up": "ffn.lin1", "mlp.down": "ffn.lin2",
        "mlp_norm": "output_layer_norm",
    }),
    heads={
        "lm": HeadSpec("DistilBertForMaskedLM", {
            "": "vocab_projector", "dense": "vocab_transform", "norm": "vocab_layer_norm",
        }, activation=""),
        "sequence": HeadSpec(
            "DistilBertForSequenceClassification", {"dense": "pre_classifier", "output": "classifier"}, "first", "relu"
        ),
        "token": HeadSpec("DistilBertForTokenClassification", {"output": "classifier"}),
        "span": HeadSpec("DistilBertForQuestionAnswering", {"output": "qa_outputs"}),
        "none": HeadSpec("DistilBertModel", {}),
    },
    copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}, prefix="distilbert.",
    fixed={"tie_weights_": True, "tie_word_embeddings": True}, adam=(0.9, 0.98, 1e-6),
)  # fmt: skip
_ELECTRA = _encoder(
    "Electra",
    HeadSpec("ElectraForMaskedLM", {
        "": "generator_lm_head", "dense": "generator_predictions.dense", "norm": "generator_predictions.LayerNorm",
    }, activation="gelu"),
    HeadSpec("ElectraForSequenceClassification", _ROBERTA_CLASSIFIER, "first", "gelu"),
    _bert_names("electra.") | {"encoder.inputs.projection": "electra.embeddings_project"},
    {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    "electra.", keys={"embedding_size": "embedding_size"}, adam=(0.9, 0.999, 1e-6),
    bodies={"ElectraForPreTraining": "discriminator_predictions."},
)  # fmt: skip
_ALBERT_POOLER = {"dense": "albert.pooler"}
_ALBERT = _encoder(
    "Albert",
    HeadSpec("AlbertForMaskedLM", {
        "": "predictions", "dense": "predictions.dense", "norm": "predictions.LayerNorm"
    }, activation=""),
    HeadSpec("AlbertForSequenceClassification", _ALBERT_POOLER | {"output": "classifier"}, "first"),
    at("", "albert.embeddings.", _BERT_INPUTS)
    | {"encoder.inputs.projection": "albert.encoder.embedding_hidden_mapping_in"}
    | at("encoder.blocks.{i}.", "albert.encoder.albert_layer_groups.{g}.albert_layers.{j}.", {
        "attention.qkv": "attention.query attention.key attention.value", "attention.output": "attention.dense",
        "attention_norm": "attention.LayerNorm", "mlp.up": "ffn", "mlp.down": "ffn_output",
        "mlp_norm": "full_layer_layer_norm",
    }),
    {
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    "albert.", _ALBERT_POOLER, _ALBERT_POOLER | {"output": "sop_classifier.classifier"},
    axes={
        "activation": "gelu_tanh", "embedding_size": 128, "layer_groups": 1, "dropout": 0.0, "attention_dropout": 0.0,
        "head_dropout": 0.1,
    },
    keys={
        "embedding_size": "embedding_size", "layer_groups": "num_hidden_groups", "group_layers": "inner_group_num",
        "head_dropout": "classifier_dropout_prob",
    },
    adam=(0.9, 0.999, 1e-6),
)  # fmt: skip
_MODERN_HEAD = {"dense": "head.dense", "norm": "head.norm"}
_MODERN: dict[str, Any] = {"activation": "gelu", "bias": False}
_MODERNBERT = Family(
    axes={
        "stacks": "encoder", "norm": "layer", "norm_eps": 1e-5, "norm_bias": False, "first_norm": False,
        "embedding_norm": True, "activation": "gelu", "gated": True, "rope_theta": 160_000.0,
        "rope_theta_local": 10_000.0, "sliding_window": 128, "tied": True, "head_bias": "learned",
    },
    keys=SIZES | {
        "norm_eps": "norm_eps", "norm_bias": "norm_bias", "activation": "hidden_activation", "mlp_bias": "mlp_bias",
        "sliding_window": "local_attention", "pooling": "classifier_pooling", "dropout": "mlp_dropout",
        "attention_dropout": "attention_dropout", "head_dropout": "classifier_dropout",
    },
    names={
        "embedding": "model.embeddings.tok_embeddings", "encoder.inputs.norm": "model.embeddings.norm",
        "encoder.norm": "model.final_norm",
    } | at("encoder.blocks.{i}.", "model.layers.{i}.", {
        "attention_norm": "attn_norm", "attention.qkv": "attn.Wqkv", "attention.output": "attn.Wo",
        "mlp_norm": "mlp_norm", "mlp.up": "mlp.Wi", "mlp.down": "mlp.Wo",
    }),
    heads={
        "lm": HeadSpec("ModernBertForMaskedLM", {"": "decoder"} | _MODERN_HEAD, **_MODERN),
        "none": HeadSpec("ModernBertModel", {}),
        "sequence": HeadSpec(
            "ModernBertForSequenceClassification", _MODERN_HEAD | {"output": "classifier"}, "pooling", **_MODERN
        ),
        "token": HeadSpec("ModernBertForTokenClassification", _MODERN_HEAD | {"output": "classifier"}, **_MODERN),
        "span": HeadSpec("ModernBertForQuestionAnswering", _MODERN_HEAD | {"output": "classifier"}, **_MODERN),
    },
    coded=("window_layers", "rope_theta", "rope_theta_local", *BIAS),
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"}, adam=(0.9, 0.98, 1e-6),
    fixed={
        "classifier_bias": False, "classifier_activation": "gelu", "decoder_bias": True, "tie_word_embeddings": True,
    },
)  # fmt: skip

ENCODERS = {
    "bert": _BERT, "distilbert": _DISTILBERT, "roberta": _roberta("Roberta"), "xlm-roberta": _roberta("XLMRoberta"),
    "camembert": _roberta("Camembert"), "electra": _ELECTRA, "albert": _ALBERT, "modernbert": _MODERNBERT,
}  # fmt: skip
