"""What `lmkit generate` may be asked for beyond sampling: the same as transformers' generate with these settings."""

import json

import pytest
import transformers
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.commands.main import app
from lmkit.recipe.pretraining import TokenizerConfig
from lmkit.text.tokenizer_files import load_tokenizer
from lmkit.text.training import train_tokenizer

TEXTS = ["the drug <drug> was given to her and she was well .", "he had <drug> and was not ill any more ."] * 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random GPT-2 whose texts end early, with a tokenizer that has a token of its own."""
    import torch

    path = tmp_path_factory.mktemp("gpt2")
    tokenizer = train_tokenizer(iter(TEXTS), TokenizerConfig(vocab_size=300, special=("<drug>",)), "gpt2")
    tokenizer.save(path, 64)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    for p in model.parameters():
        p.data.normal_(0, 0.5 if p.dim() > 1 else 0.1)
    model.save_pretrained(path)
    return path


def written(folder, *options: str, prompt: str = "the drug was") -> list[int]:
    command = ["generate", str(folder), prompt, "--max-tokens", "20", "--json", *options]
    return json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)["ids"]


def by_transformers(folder, prompt: str = "the drug was", **settings) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    return model.generate(ids, do_sample=False, max_new_tokens=20, **settings)[0, ids.size(1) :].tolist()


def test_lengths_repeats_and_ends_equal_transformers(folder):
    greedy = ("-t", "0")
    plain = written(folder, *greedy)
    assert plain == by_transformers(folder)
    assert (
        written(folder, *greedy, "--no-repeat-ngram", "2") == by_transformers(folder, no_repeat_ngram_size=2) != plain
    )
    stop = plain[len(plain) // 2]
    ends = [stop, transformers.AutoTokenizer.from_pretrained(folder).eos_token_id]
    assert written(folder, *greedy, "--stop-ids", str(stop)) == by_transformers(folder, eos_token_id=ends)
    late = written(folder, *greedy, "--stop-ids", str(stop), "--min-tokens", "15")
    assert late == by_transformers(folder, eos_token_id=ends, min_new_tokens=15) and len(late) >= 15


@pytest.mark.parametrize("penalty", ["0.5", "2"])
def test_beam_search_equals_transformers(folder, penalty):
    ids = written(folder, "--beam", "4", "--length-penalty", penalty)
    assert ids == by_transformers(folder, num_beams=4, length_penalty=float(penalty))
    with pytest.raises(UserError, match=r"--temperature: beam search.*draws nothing"):
        written(folder, "--beam", "4", "--temperature", "0.5")


def test_control_tokens_are_read_only_where_asked(folder):
    prompt, tokenizer = "<|endoftext|>the drug", load_tokenizer(folder)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    ids = reference(prompt, add_special_tokens=False).input_ids
    assert tokenizer.encode_control(prompt) == ids != tokenizer.encode(prompt)
    assert written(folder, "-t", "0", "--control-tokens", prompt=prompt) == by_transformers(folder, prompt)
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "sentencepiece", "bytes"])
def test_a_token_of_ones_own_is_one_token_everywhere(kind, tmp_path):
    config = TokenizerConfig(type=kind, vocab_size=330, special=("<drug>", "<gene>"))
    tokenizer = train_tokenizer(iter(TEXTS), config, "bert" if kind == "wordpiece" else "llama")
    tokenizer.save(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "he had <drug> and<gene> was"
    ids = tokenizer.encode(text)
    assert ids == reference(text, add_special_tokens=False).input_ids == load_tokenizer(tmp_path).encode(text)
    assert [ids.count(tokenizer.token_id(token)) for token in config.special] == [1, 1]
    assert "<drug>" in tokenizer.decode(ids) and (kind == "bytes" or tokenizer.vocab_size <= 330)
    with pytest.raises(UserError, match=r"tokenizer\.special: '<pad>' is a control token"):
        train_tokenizer(iter(TEXTS), TokenizerConfig(vocab_size=330, special=("<pad>",)), "llama")
