"""Published sizes, and small ones for a laptop. `model: {preset: bert-base}` starts from one; any key can be set beside
it. Vocabulary sizes are those of the published tokenizers: with a tokenizer of your own, set `vocab_size: 0`."""

from typing import Any

Size = dict[str, Any]


def _plain(
    family: str, vocab: int, context: int, sizes: dict[str, tuple[int, int, int]], **more: Any
) -> dict[str, Size]:
    """Returns sizes by name out of (layers, hidden_size, heads), with a feed-forward layer four times as wide."""
    return {
        name: {
            "family": family, "vocab_size": vocab, "context": context, "num_layers": layers, "hidden_size": hidden,
            "num_heads": heads, "intermediate_size": 4 * hidden, **more,
        }
        for name, (layers, hidden, heads) in sizes.items()
    }  # fmt: skip


def _t5(vocab: int, sizes: dict[str, tuple[int, int, int, int, int]], **more: Any) -> dict[str, Size]:
    """Returns sizes by name out of (layers of each stack, hidden_size, heads, width of a head, feed-forward width)."""
    return {
        name: {
            "family": "t5", "vocab_size": vocab, "context": 512, "num_layers": layers, "num_decoder_layers": layers,
            "hidden_size": hidden, "num_heads": heads, "head_dim": width, "intermediate_size": wide, **more,
        }
        for name, (layers, hidden, heads, width, wide) in sizes.items()
    }  # fmt: skip


def _llama(family: str, vocab: int, context: int, sizes: tuple[int, int, int, int, int, int], **more: Any) -> Size:
    """Returns sizes by name out of (layers, hidden_size, heads, key/value heads, width of a head, feed-forward
    width)."""
    layers, hidden, heads, kv_heads, width, wide = sizes
    return {
        "family": family, "vocab_size": vocab, "context": context, "num_layers": layers, "hidden_size": hidden,
        "num_heads": heads, "num_kv_heads": kv_heads, "head_dim": width, "intermediate_size": wide, **more,
    }  # fmt: skip


def _gemma2(
    family: str,
    vocab: int,
    context: int,
    sizes: tuple[int, int, int, int, int, int],
    window: int,
    every: int,
    **more: Any,
) -> Size:
    """Returns a size of Gemma from its second generation on, where only each `every`-th layer sees the whole text."""
    windowed = [i for i in range(sizes[0]) if (i + 1) % every]
    return _llama(family, vocab, context, sizes, sliding_window=window, window_layers=windowed, **more)


_BERT_SIZES = {
    "bert-tiny": (2, 128, 2), "bert-mini": (4, 256, 4), "bert-small": (4, 512, 8), "bert-medium": (8, 512, 8),
    "bert-base": (12, 768, 12), "bert-large": (24, 1024, 16),
}  # fmt: skip
_V1_1 = {"activation": "gelu_tanh", "gated": True, "tied": False, "scaled_head": False}
_SCALING = {"type": "llama3", "factor": 32.0, "original_context": 8192}
_MODERN = {"family": "modernbert", "vocab_size": 50368, "context": 8192}
_ELECTRA_SMALL = {  # of the generator and the discriminator
    "family": "electra", "vocab_size": 30522, "context": 512, "num_layers": 12, "hidden_size": 256, "num_heads": 4,
    "intermediate_size": 1024, "embedding_size": 128,
}  # fmt: skip
_SEQ2SEQ = {"family": "transformer", "vocab_size": 37000, "context": 512}

PRESETS: dict[str, Size] = {
    **_plain("gpt2", 50257, 1024, {
        "gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20), "gpt2-xl": (48, 1600, 25),
    }),
    "llama-2-7b": _llama("llama", 32000, 4096, (32, 4096, 32, 32, 128, 11008), norm_eps=1e-5),
    "tinyllama-1.1b": _llama("llama", 32000, 2048, (22, 2048, 32, 4, 64, 5632), norm_eps=1e-5),
    "llama-3.2-1b": _llama(
        "llama", 128256, 131072, (16, 2048, 32, 8, 64, 8192), norm_eps=1e-5, rope_theta=500_000.0, tied=True,
        rope_scaling=_SCALING,
    ),
    "smollm2-135m": _llama(
        "llama", 49152, 8192, (30, 576, 9, 3, 64, 1536), norm_eps=1e-5, rope_theta=100_000.0, tied=True
    ),
    "mistral-7b": _llama(
        "mistral", 32000, 32768, (32, 4096, 32, 8, 128, 14336), norm_eps=1e-5, sliding_window=4096
    ),
    "qwen2.5-0.5b": _llama("qwen2", 151936, 32768, (24, 896, 14, 2, 64, 4864), rope_theta=1_000_000.0, tied=True),
    "qwen3-0.6b": _llama(
        "qwen3", 151936, 40960, (28, 1024, 16, 8, 128, 3072), rope_theta=1_000_000.0, tied=True
    ),
    "smollm3-3b": _llama(
        "smollm3", 128256, 65536, (36, 2048, 16, 4, 128, 11008), rope_theta=5_000_000.0, tied=True,
        nope_layers=[i for i in range(36) if i % 4 == 3],
    ),
    "phi-3-mini": _llama(
        "phi3", 32064, 4096, (32, 3072, 32, 32, 96, 8192), norm_eps=1e-5, sliding_window=2047
    ),
    "gemma-2b": _llama("gemma", 256000, 8192, (18, 2048, 8, 1, 256, 16384)),
    "gemma-2-2b": _gemma2(
        "gemma2", 256000, 8192, (26, 2304, 8, 4, 256, 9216), 4096, 2, attention_softcap=50.0, logit_softcap=30.0
    ),
    "gemma-3-270m": _gemma2("gemma3_text", 262144, 32768, (18, 640, 4, 1, 256, 2048), 512, 6),
    "gemma-3-1b": _gemma2("gemma3_text", 262144, 32768, (26, 1152, 4, 1, 256, 6912), 512, 6),
    **_plain("gpt_neox", 50304, 2048, {
        "pythia-70m": (6, 512, 8), "pythia-160m": (12, 768, 12), "pythia-410m": (24, 1024, 16),
        "pythia-1.4b": (24, 2048, 16),
    }),
    **_plain("nanochat", 65536, 2048, {"nanochat-d20": (20, 1280, 10)}, num_kv_heads=10),
    **_plain("bert", 30522, 512, _BERT_SIZES),
    **_plain("distilbert", 30522, 512, {"distilbert-base": (6, 768, 12)}),
    **_plain("xlm-roberta", 250002, 512, {"xlm-roberta-base": (12, 768, 12), "xlm-roberta-large": (24, 1024, 16)},
             position_offset=2, position_padding_id=1),
    **_plain("camembert", 32005, 512, {"camembert-base": (12, 768, 12)}, position_offset=2, position_padding_id=1),
    **_plain("roberta", 50265, 512, {"roberta-base": (12, 768, 12), "roberta-large": (24, 1024, 16)},
             position_offset=2, position_padding_id=1),
    **_plain("albert", 30000, 512, {
        "albert-base-v2": (12, 768, 12), "albert-large-v2": (24, 1024, 16), "albert-xlarge-v2": (24, 2048, 16),
        "albert-xxlarge-v2": (12, 4096, 64),
    }),
    "electra-small-generator": _ELECTRA_SMALL,
    "electra-base-generator": {
        "family": "electra", "vocab_size": 30522, "context": 512, "num_layers": 12, "hidden_size": 256, "num_heads": 4,
        "intermediate_size": 1024, "embedding_size": 768,
    },
    "electra-small": _ELECTRA_SMALL,
    "electra-base": {
        "family": "electra", "vocab_size": 30522, "context": 512, "num_layers": 12, "hidden_size": 768, "num_heads": 12,
        "intermediate_size": 3072, "embedding_size": 768,
    },
    "modernbert-base": _MODERN | {
        "num_layers": 22, "hidden_size": 768, "num_heads": 12, "intermediate_size": 1152,
        "window_layers": [i for i in range(22) if i % 3],
    },
    "modernbert-large": _MODERN | {
        "num_layers": 28, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 2624,
        "window_layers": [i for i in range(28) if i % 3],
    },
    "transformer-base": _SEQ2SEQ | {"num_layers": 6, "hidden_size": 512, "num_heads": 8, "intermediate_size": 2048},
    "transformer-big": _SEQ2SEQ | {
        "num_layers": 6, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096, "dropout": 0.3,
    },
    "opus-mt": {
        "family": "marian", "vocab_size": 58101, "context": 512, "num_layers": 6, "hidden_size": 512, "num_heads": 8,
        "intermediate_size": 2048,
    },
    **_t5(32128, {
        "t5-small": (6, 512, 8, 64, 2048), "t5-base": (12, 768, 12, 64, 3072), "t5-large": (24, 1024, 16, 64, 4096),
    }),
    **_t5(32128, {
        "t5-v1_1-small": (8, 512, 6, 64, 1024), "t5-v1_1-base": (12, 768, 12, 64, 2048),
        "t5-v1_1-large": (24, 1024, 16, 64, 2816),
    }, **_V1_1),
    **_t5(250112, {
        "mt5-small": (8, 512, 6, 64, 1024), "mt5-base": (12, 768, 12, 64, 2048), "mt5-large": (24, 1024, 16, 64, 2816),
    }, family="mt5", **_V1_1),
    **_plain("bart", 50265, 1024, {"bart-base": (6, 768, 12), "bart-large": (12, 1024, 16)}),
    **_plain("mbart", 250027, 1024, {"mbart-large-cc25": (12, 1024, 16)}),
    **_plain("pegasus", 96103, 1024, {"pegasus-large": (16, 1024, 16)}),
    **_plain("m2m_100", 256206, 1024, {"nllb-200-600m": (12, 1024, 16)}),
}  # fmt: skip
