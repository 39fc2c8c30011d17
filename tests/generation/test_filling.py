"""Masks are filled as transformers' fill-mask pipeline fills them."""

import json

import pytest
import torch
import transformers as hf

import lmkit
from lmkit.base.errors import ModelError, UserError
from lmkit.generation import filling
from lmkit.generation.filling import fill_masks, sample_fill
from lmkit.generation.sampling import SamplingConfig
from lmkit.ops import writing as command
from tests.generation.folders import encoder_folder, llama_folder, seq2seq_folder

TEXTS = [
    "The quick [MASK] fox.", "[MASK]", "the [MASK] [MASK] jumps over the lazy [MASK]", "A dog ([MASK]) [MASK]ing!",
]  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "roberta"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    encoder_folder(folder, request.param)
    return lmkit.load(folder)


def written(model):
    return [t.replace("[MASK]", model.tokenizer.special.mask) for t in TEXTS]


def test_equals_the_pipeline_of_transformers(model):
    texts = written(model)
    found = model.fill(texts, top_k=4)
    assert [f.row for f in found] == [0, 1, 2, 2, 2, 3, 3]
    pipeline = hf.pipeline("fill-mask", str(model.folder), top_k=4)
    for row, text in enumerate(texts):
        want = pipeline(text)
        want = want if isinstance(want[0], list) else [want]
        mine = [f for f in found if f.row == row]
        ids = pipeline.tokenizer(text)["input_ids"]
        assert [f.position for f in mine] == [i for i, t in enumerate(ids) if t == model.tokenizer.mask_id]
        for theirs, ours in zip(want, mine, strict=True):
            assert [(c.id, c.text) for c in ours.candidates] == [(x["token"], x["token_str"]) for x in theirs]
            scores = torch.tensor([x["score"] for x in theirs])
            torch.testing.assert_close(
                torch.tensor([c.probability for c in ours.candidates]), scores, rtol=0, atol=1e-5
            )


def test_batches_order_and_training_change_nothing(model, monkeypatch):
    texts = written(model)
    alone = [f for t in texts for f in model.fill([t])]
    monkeypatch.setattr(filling, "TEXTS", 3)
    monkeypatch.setattr(filling, "MAX_TOKENS", 20)
    monkeypatch.setattr(filling, "MASKS", 2)
    for dropout in (m for m in model.model.modules() if isinstance(m, torch.nn.Dropout)):
        dropout.p = 0.5
    model.model.train()
    before = torch.get_rng_state()
    together = list(fill_masks(model.model, model.tokenizer, iter(texts * 2)))
    assert model.model.training and torch.equal(before, torch.get_rng_state())
    assert [f.row for f in together] == sorted(f.row for f in together)
    for a, b in zip(alone * 2, together, strict=True):
        assert (a.position, a.text, [c.id for c in a.candidates]) == (b.position, b.text, [c.id for c in b.candidates])
        assert [c.probability for c in a.candidates] == pytest.approx([c.probability for c in b.candidates], abs=1e-6)
    assert sample_fill(model.model, model.tokenizer, texts[2]) == alone[2].text
    assert sample_fill(model.model, model.tokenizer, "no mask") == sample_fill(model.model, model.tokenizer, "") == ""
    model.model.eval()


SPLICED = {
    "bert": [
        (["dog"], "A [MASK].", "A dog."),
        (["dog"], "(ß [MASK])", "(ß dog)"),
        (["##s", "fox"], "Dog [MASK] [MASK]", "Dogs fox"),
        (["the"], "[MASK] Größe", "the Größe"),
        (["[UNK]"], "a [MASK]", "a [UNK]"),
    ],
    "roberta": [
        (["Ġquick"], "The <mask>.", "The quick."),
        (["own"], "The <mask>.", "Theown."),
        (["Ġquick"], "The\n<mask>", "The\n quick"),
        (["The", "Ġquick"], "<mask> <mask> ß", "The quick ß"),
    ],
}


def test_the_rest_of_a_text_stays_as_it_was_written(model):
    for tokens, text, want in SPLICED[model.config.family]:
        ids = filling.masked_ids(model.tokenizer, text)
        places = [i for i, token in enumerate(ids) if token == model.tokenizer.mask_id]
        for place, token in zip(places, tokens, strict=True):
            ids[place] = model.tokenizer.vocab[token]
        assert filling._spliced(model.tokenizer, text, ids, places) == want


def test_texts_that_cannot_be_filled_are_refused(model):
    mask = model.tokenizer.special.mask
    with pytest.raises(UserError, match=rf"text 2 has no mask: 'The \[mask\]'\n  → write {mask.replace('[', '.')} "):
        model.fill([f"a {mask}", "The [mask]"])
    with pytest.raises(UserError, match=r"text 1 has \d+ tokens.*context of 48"):
        model.fill(["dog " * 100 + mask])
    with pytest.raises(UserError, match="top_k 0"):
        model.fill([mask], top_k=0)
    [all_of_them] = model.fill([mask], top_k=10**6)
    assert sum(c.probability for c in all_of_them.candidates) == pytest.approx(1, abs=1e-4)
    with pytest.raises(UserError, match="MaskedLM, an encoder, which fills masks\n  → use `fill`"):
        model.generate([mask])


def test_the_command_lists_candidates_or_prints_json(model, capsys):
    texts, config = written(model), SamplingConfig(top_k=2)
    command.write_texts(str(model.folder), texts, config, 1, as_json=False, stream=True, allow_pickle=False)
    blocks = capsys.readouterr().out.split("---\n")
    found = model.fill(texts, 2)
    assert blocks[2].splitlines()[0] == found[2].text
    lines = [line.split("\t") for line in blocks[2].splitlines()[1:]]
    want = [(n, c) for n, f in enumerate(found[2:5], 1) for c in f.candidates]
    assert [(int(n), float(p), json.loads(t)) for n, p, t in lines] == [
        (n, pytest.approx(c.probability, abs=1e-4), c.text) for n, c in want
    ]
    command.write_texts(str(model.folder), texts, SamplingConfig(), 1, as_json=True, stream=True, allow_pickle=False)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["prompt"], r["mask"]) for r in rows[:5]] == [
        (texts[i], n) for i, n in ((0, 1), (1, 1), (2, 1), (2, 2), (2, 3))
    ]
    assert all(set(r) == {"prompt", "mask", "position", "candidates", "text"} for r in rows)
    assert all(len(r["candidates"]) == 5 for r in rows)
    with pytest.raises(UserError, match=f"--samples, --min-p: a {model.config.family} fills masks"):
        command.write_texts(str(model.folder), texts, config, 2, False, True, False, ["model", "top_k", "n", "min_p"])


def test_other_models_say_what_they_are(tmp_path):
    llama_folder(tmp_path / "llama")
    seq2seq_folder(tmp_path / "t5", "t5")
    for name in ("llama", "t5"):
        with pytest.raises(UserError, match="writes from left to right\n  → use `generate`"):
            lmkit.load(tmp_path / name).fill(["[MASK]"])
    encoder_folder(tmp_path / "bert", "bert", hf.BertForTokenClassification)
    with pytest.raises(UserError, match="BertForTokenClassification: it labels tokens, and predicts no words"):
        command.write_texts(str(tmp_path / "bert"), ["[MASK]"], SamplingConfig(), 1, False, False, False)


def test_a_tokenizer_without_a_mask_and_broken_weights_are_named(tmp_path):
    encoder_folder(tmp_path, "bert")
    model = lmkit.load(tmp_path)
    with pytest.raises(ModelError, match="the tokenizer has no mask token"):
        list(fill_masks(model.model, model.tokenizer.with_gaps, ["[MASK]"]))
    model.model.head.dense.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        model.fill(["[MASK]"])
