"""Tiny random models with a real byte-level tokenizer, as folders that lmkit and transformers both open."""

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = "The quick brown fox jumps over the lazy dog. Größe, naïve, 日本語, 🙂🙃. "
SIZE = {"intermediate_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def tokenizer(vocab_size: int = 300) -> hf.PreTrainedTokenizerFast:
    """Bytes and a few merges, so that most characters outside ASCII take several tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet
    )
    backend.train_from_iterator([TEXT[:45]], trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def llama_folder(path, context: int = 48, eos=None) -> hf.PreTrainedModel:
    """Weights large enough that greedy text is varied; no eos unless given, so that lengths are known."""
    words = tokenizer()
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": eos, "pad_token_id": 2}
    sizes = SIZE | {"vocab_size": len(words), "max_position_embeddings": context, "num_key_value_heads": 2}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **ids)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    model.save_pretrained(path)
    words.save_pretrained(path)
    return model
