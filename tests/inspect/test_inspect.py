"""What is seen inside a model is what transformers and captum see there."""

import json

import pytest
import torch
from captum.attr import InputXGradient, LayerIntegratedGradients
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.commands.main import app
from lmkit.inspect.attribution import attribute
from lmkit.inspect.reading import attention_weights, lens, token_losses
from lmkit.pretrained import load
from tests.generation.folders import SIZE, llama_folder, seq2seq_folder, tokenizer
from tests.model.families import reference

IDS = [5, 17, 60, 33, 8, 41, 22]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3_window", "gemma2", "bert", "modernbert"])
def test_attention_is_that_of_transformers(name, tmp_path):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path)
    theirs.set_attn_implementation("eager")
    loaded = load(tmp_path)
    with torch.no_grad():
        want = theirs(torch.tensor([IDS]), output_attentions=True).attentions
    got = attention_weights(loaded, IDS)
    assert len(got) == len(want)
    for layer, expected in zip(got, want, strict=True):
        torch.testing.assert_close(layer, expected[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_the_lens_ends_with_what_the_model_says(name, tmp_path):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    with torch.no_grad():
        out = theirs(torch.tensor([IDS]), output_hidden_states=True)
    layers = lens(loaded, IDS)
    assert len(layers) == len(out.hidden_states) - 1
    torch.testing.assert_close(layers[-1], out.logits[0], rtol=0, atol=2e-5)
    if name == "llama":
        with torch.no_grad():
            first = theirs.lm_head(theirs.model.norm(out.hidden_states[1]))[0]
        torch.testing.assert_close(layers[0], first, rtol=0, atol=2e-5)


def test_losses_are_those_of_transformers(tmp_path):
    theirs = llama_folder(tmp_path / "llama")
    loaded = load(tmp_path / "llama")
    tokens = token_losses(loaded, "The fox jumps")
    ids = loaded.tokenizer.encode("The fox jumps")
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
    want = [float(logits[i, token]) for i, token in enumerate(ids[1:])]
    assert [t.log_prob for t in tokens[1:]] == pytest.approx(want, abs=2e-5) and tokens[0].log_prob is None
    assert tokens[1].alternatives[0][1] == pytest.approx(float(logits[0].max().exp()), abs=1e-5)
    theirs = seq2seq_folder(tmp_path / "bart", "bart").eval()
    loaded = load(tmp_path / "bart")
    tokens = token_losses(loaded, "The fox", "lazy dog")
    ids, labels = loaded.tokenizer.encode("The fox"), [*loaded.tokenizer.encode("lazy dog"), 1]
    if loaded.tokenizer.document_frame[1]:
        ids = [*loaded.tokenizer.document_frame[0], *ids, *loaded.tokenizer.document_frame[1]]
    with torch.no_grad():
        logits = (
            theirs(torch.tensor([ids]), decoder_input_ids=torch.tensor([[1, *labels[:-1]]])).logits[0].log_softmax(-1)
        )
    assert [t.log_prob for t in tokens] == pytest.approx(
        [float(r[i]) for r, i in zip(logits, labels, strict=True)], abs=5e-5
    )


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder, words = tmp_path_factory.mktemp("mails"), tokenizer()
    torch.manual_seed(1)
    labels = {0: "ham", 1: "spam"}
    config = BertConfig(**SIZE, vocab_size=len(words), id2label=labels, pad_token_id=2, max_position_embeddings=64)
    theirs = BertForSequenceClassification(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.15)
    theirs.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder, theirs


def test_attributions_are_those_of_captum(classifier):
    folder, theirs = classifier
    loaded, tokens = load(folder), torch.tensor([IDS])
    forward = lambda ids: theirs(ids, attention_mask=torch.ones_like(ids)).logits
    judge = LayerIntegratedGradients(forward, theirs.bert.embeddings.word_embeddings)
    want = judge.attribute(tokens, torch.full_like(tokens, 2), target=1, n_steps=50, method="gausslegendre").sum(-1)[0]
    got = attribute(loaded, IDS, 1)
    assert got.scores == pytest.approx(want.tolist(), abs=2e-4)
    assert got.gap < 0.02 and got.logit == pytest.approx(float(forward(tokens)[0, 1].detach()), abs=2e-5)
    embedded = theirs.bert.embeddings.word_embeddings(tokens).detach().requires_grad_()
    by_states = lambda x: theirs(inputs_embeds=x).logits
    want = InputXGradient(by_states).attribute(embedded, target=1).sum(-1)[0]
    assert attribute(loaded, IDS, 1, "gradient").scores == pytest.approx(want.tolist(), abs=2e-4)
    without = torch.tensor([[2, *IDS[1:]]])
    change = float((forward(tokens) - forward(without))[0, 1].detach())
    assert attribute(loaded, IDS, 1, "occlusion").scores[0] == pytest.approx(change, abs=2e-4)


def printed(*arguments: str) -> str:
    return CliRunner().invoke(app, ["inspect", *arguments], catch_exceptions=False).stdout


def test_the_command_prints_numbers_text_and_a_page(classifier, tmp_path):
    folder, _ = classifier
    facts = json.loads(printed(str(folder), "over the lazy dog", "--attribute", "--label", "spam", "--json"))
    assert facts["output"] == "spam" and len(facts["scores"]) == len(facts["tokens"])
    page = tmp_path / "page.html"
    printed(str(folder), "a <b> dog", "--attribute", "--html", str(page))
    assert "&lt;" in page.read_text() and "<script" not in page.read_text() and "http" not in page.read_text()
    with pytest.raises(UserError, match="predict words"):
        printed(str(folder), "a dog", "--lens")
    llama_folder(tmp_path / "llama")
    lines = printed(str(tmp_path / "llama"), "The fox").splitlines()
    assert lines[0] == "The fox" and lines[1].startswith("loss ")
