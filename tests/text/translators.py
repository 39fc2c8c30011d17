"""Folders of small tokenizers as translators have them."""

import io
import json
import random
from pathlib import Path
from typing import Any

import sentencepiece
import transformers

ENGLISH = "the Emma was handsome clever over it and she had been very good young woman don't know 12 3.5"
GERMAN = "die Emma war schön klug über es und sie hatte aber sehr gute junge Frau weiß nicht 東 12 3.5"


def _model(words: str, kind: str, **options: Any) -> bytes:
    choice, model = random.Random(0), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(choice.choices(words.split(), k=9)) for _ in range(300)]), model_writer=model,
        vocab_size=90, hard_vocab_limit=False, model_type=kind, minloglevel=3, **options,
    )  # fmt: skip
    return model.getvalue()


def marian_folder(folder: Path) -> None:
    """As opus-mt has it: ids that follow neither model, and languages to write."""
    pieces = dict.fromkeys(["</s>", "<unk>", ">>fra<<", ">>deu<<"])
    for name, words in (("source", ENGLISH), ("target", GERMAN)):
        content = _model(words, "unigram")
        (folder / f"{name}.spm").write_bytes(content)
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        pieces |= dict.fromkeys(reversed([model.id_to_piece(i) for i in range(3, model.get_piece_size())]))
    ids = {piece: i for i, piece in enumerate([*pieces, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(ids))
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def nllb_folder(folder: Path, **settings: Any) -> None:
    content = _model(f"{ENGLISH} {GERMAN}", "bpe", normalization_rule_name="identity")
    (folder / "tokenizer.model").write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    llama = json.loads(transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str())["model"]
    (folder / "tokenizer.model").unlink()
    pieces = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *llama["vocab"]])
    ids, merges = {piece: i for i, piece in enumerate(pieces)}, [tuple(merge) for merge in llama["merges"]]
    languages = ["deu_Latn", "eng_Latn", "fra_Latn"]
    transformers.NllbTokenizer(
        vocab=ids, merges=merges, additional_special_tokens=languages, **settings
    ).save_pretrained(folder)
