"""What is seen inside a model is what transformers and captum see there."""

import json
import re

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerIntegratedGradients
from transformers import (
    BartForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.commands.main import app
from lmkit.inspect.attribution import attribute
from lmkit.inspect.questions import Question, question
from lmkit.inspect.reading import attention_weights, lens, token_losses
from lmkit.pretrained import load
from tests.generation.folders import SIZE, encoder_folder, llama_folder, seq2seq_folder, tokenizer
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
    got = attention_weights(loaded, IDS)["attentions"]
    assert len(got) == len(want)
    for layer, expected in zip(got, want, strict=True):
        torch.testing.assert_close(layer, expected[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_encoder_decoders_look_like_those_of_transformers(name, tmp_path):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path)
    theirs.set_attn_implementation("eager")
    loaded, written = load(tmp_path), [3, 50, 12, 9]
    with torch.no_grad():
        out = theirs(torch.tensor([IDS]), decoder_input_ids=torch.tensor([written]), output_attentions=True,
                     output_hidden_states=True)  # fmt: skip
    got = attention_weights(loaded, IDS, written)
    assert list(got) == ["encoder_attentions", "decoder_attentions", "cross_attentions"]
    for kind, layers in got.items():
        for layer, expected in zip(layers, out[kind], strict=True):
            torch.testing.assert_close(layer, expected[0], rtol=0, atol=2e-5)
    layers = lens(loaded, IDS, written)
    torch.testing.assert_close(layers[-1], out.logits[0], rtol=0, atol=5e-5)
    if name == "t5":
        with torch.no_grad():
            normed = theirs.decoder.final_layer_norm(out.decoder_hidden_states[1])
            first = theirs.lm_head(normed * theirs.model_dim**-0.5)[0]
        torch.testing.assert_close(layers[0], first, rtol=0, atol=2e-5)


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
    spam = Question(IDS, [(None, 1)], "spam")
    got = attribute(loaded, spam)
    assert got.scores == pytest.approx(want.tolist(), abs=2e-4)
    assert got.gap < 0.02 and got.logit == pytest.approx(float(forward(tokens)[0, 1].detach()), abs=2e-5)
    embedded = theirs.bert.embeddings.word_embeddings(tokens).detach().requires_grad_()
    by_states = lambda x: theirs(inputs_embeds=x).logits
    want = InputXGradient(by_states).attribute(embedded, target=1).sum(-1)[0]
    assert attribute(loaded, spam, "gradient").scores == pytest.approx(want.tolist(), abs=2e-4)
    without = torch.tensor([[2, *IDS[1:]]])
    change = float((forward(tokens) - forward(without))[0, 1].detach())
    assert attribute(loaded, spam, "occlusion").scores[0] == pytest.approx(change, abs=2e-4)


def judged(forward, embedding, ids, pad, **keywords):
    """The integral as captum has it, over what the embedding gives for `ids`."""
    tokens = torch.tensor([ids])
    here, there = embedding(tokens).detach(), embedding(torch.full_like(tokens, pad)).detach()
    judge = IntegratedGradients(forward)
    return judge.attribute(here, there, n_steps=50, method="gausslegendre", **keywords).sum(-1)[0].tolist()


def test_labels_of_words_are_attributed_as_captum_does(tmp_path):
    theirs = encoder_folder(tmp_path, "bert", BertForTokenClassification)
    theirs.config.id2label = {0: "O", 1: "B-ANIMAL"}
    theirs.save_pretrained(tmp_path)
    text = "the lazy foxs jumps over a dog"
    ids = load(tmp_path).tokenizer.backend.encode(text).ids
    with torch.no_grad():  # of some words each label is the likelier
        theirs.classifier.bias[1] -= theirs(torch.tensor([ids])).logits[0].diff(dim=-1).median()
        theirs.save_pretrained(tmp_path)
        loaded, labels = load(tmp_path), theirs(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    firsts = [1, 2, 3, 5, 6, 7, 8]  # "foxs" is two pieces
    assert {labels[i] for i in firsts} == {0, 1}
    want = next(i for i in firsts if labels[i] == 1)
    q = question(loaded, text)
    assert q.logits == [(want, 1)] and [tag for _, tag in q.tags] == [("O", "B-ANIMAL")[labels[i]] for i in firsts]
    q = question(loaded, text, "B-ANIMAL", "jumps")
    assert q.logits == [(5, 1)] == question(loaded, text, "B-ANIMAL", "4").logits
    embedding = theirs.bert.embeddings.word_embeddings
    want = judged(lambda x: theirs(inputs_embeds=x).logits[:, 5], embedding, ids, 0, target=1)
    assert attribute(loaded, q).scores == pytest.approx(want, abs=5e-4)
    with pytest.raises(UserError, match="allowed: one of them"):
        question(loaded, text, word="9")


def test_answers_are_attributed_as_captum_does(tmp_path):
    theirs = encoder_folder(tmp_path, "bert", BertForQuestionAnswering)
    loaded, context = load(tmp_path), "a quick fox jumps over the lazy dog."
    q = question(loaded, "the dog jumps over ?", context=context)
    tokens, types = torch.tensor([q.ids]), torch.tensor([q.types])
    pair = loaded.tokenizer.backend.encode("the dog jumps over ?", context)
    assert q.ids == pair.ids and q.types == pair.type_ids
    with torch.no_grad():
        out = theirs(tokens, token_type_ids=types)
    inside = [i for i, s in enumerate(pair.sequence_ids) if s == 1]
    spans = {(a, b): float(out.start_logits[0, a] + out.end_logits[0, b]) for a in inside for b in inside if a <= b}
    start, end = max(spans, key=spans.get)
    assert q.logits == [(start, 0), (end, 1)] and q.says == context[pair.offsets[start][0] : pair.offsets[end][1]]

    def forward(x):
        out = theirs(inputs_embeds=x, token_type_ids=types.expand(len(x), -1))
        return out.start_logits[:, start] + out.end_logits[:, end]

    with pytest.raises(UserError, match="finds answers"):
        question(loaded, "the dog ?", "B-ANIMAL", context=context)
    with pytest.raises(UserError, match="--context is where"):
        question(loaded, "the dog ?")
    got = attribute(loaded, q)
    assert got.scores == pytest.approx(judged(forward, theirs.bert.embeddings.word_embeddings, q.ids, 0), abs=5e-4)
    assert got.logit == pytest.approx(spans[start, end], abs=5e-5)


@pytest.mark.parametrize(("kind", "mask"), [("bert", "[MASK]"), ("roberta", "<mask>")])
def test_the_word_at_a_mask_is_attributed_as_captum_does(kind, mask, tmp_path):
    theirs = encoder_folder(tmp_path, kind)
    loaded = load(tmp_path)
    q = question(loaded, f"the {mask} dog")
    ((place, best),) = q.logits
    assert q.ids[place] == loaded.tokenizer.mask_id
    forward = lambda x: theirs(inputs_embeds=x).logits[:, place]
    embedding = theirs.get_input_embeddings()
    with torch.no_grad():
        assert best == int(theirs(torch.tensor([q.ids])).logits[0, place].argmax())
    pad = theirs.config.pad_token_id
    assert attribute(loaded, q).scores == pytest.approx(judged(forward, embedding, q.ids, pad, target=best), abs=2e-3)
    with pytest.raises(UserError, match=f"write {re.escape(mask)} in TEXT"):
        question(loaded, "the dog")


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_what_encoder_decoders_write_next_is_attributed_as_captum_does(kind, tmp_path):
    theirs = seq2seq_folder(tmp_path, kind)
    loaded = load(tmp_path)
    q = question(loaded, "The quick fox", target="over")
    first = [theirs.config.decoder_start_token_id]
    assert q.written == first + loaded.tokenizer.encode("over")
    written = torch.tensor([q.written])
    forward = lambda x: theirs(inputs_embeds=x, decoder_input_ids=written.expand(len(x), -1)).logits[:, -1]
    embedding = theirs.get_input_embeddings()
    ((_, best),) = q.logits
    with torch.no_grad():
        assert best == int(forward(embedding(torch.tensor([q.ids]))).argmax())
    got = attribute(loaded, q)
    assert got.scores == pytest.approx(judged(forward, embedding, q.ids, 2, target=best), abs=2e-3)


def test_a_classifier_of_two_stacks_reads_the_text_twice(tmp_path):
    theirs = reference("bart", "sequence")
    theirs.save_pretrained(tmp_path)
    assert isinstance(theirs, BartForSequenceClassification)
    loaded, ids = load(tmp_path), [*IDS, 2]
    embedding, first = theirs.get_input_embeddings(), theirs.config.decoder_start_token_id

    def forward(x):
        start = embedding(torch.full((len(x), 1), first))
        out = theirs.model(inputs_embeds=x, decoder_inputs_embeds=torch.cat((start, x[:, :-1]), 1))
        return theirs.classification_head(out.last_hidden_state[:, -1])

    got = attribute(loaded, Question(ids, [(None, 1)], ""))
    want = judged(forward, embedding, ids, theirs.config.pad_token_id, target=1)
    assert got.scores == pytest.approx(want, abs=5e-4)


def printed(*arguments: str) -> str:
    return CliRunner().invoke(app, ["inspect", *arguments], catch_exceptions=False).stdout


def test_the_command_prints_numbers_text_and_a_page(classifier, tmp_path):
    folder, _ = classifier
    facts = json.loads(printed(str(folder), "over the lazy dog", "--attribute", "--label", "spam", "--json"))
    assert facts["output"] == "spam" and len(facts["scores"]) == len(facts["tokens"])
    other = json.loads(printed(str(folder), "over the lazy dog", "--attribute", "--label", "ham", "--json"))
    assert facts["probability"] + other["probability"] == pytest.approx(1)
    assert facts["likeliest"] == max(facts, other, key=lambda f: f["probability"])["output"] == other["likeliest"]
    page = tmp_path / "page.html"
    printed(str(folder), "a <b> dog", "--attribute", "--html", str(page))
    assert "&lt;" in page.read_text() and "<script" not in page.read_text() and "http" not in page.read_text()
    with pytest.raises(UserError, match="labels texts, and has no view of --lens\n  allowed: --attribute"):
        printed(str(folder), "a dog", "--lens")
    encoder_folder(tmp_path / "tagger", "bert", BertForTokenClassification)
    facts = json.loads(printed(str(tmp_path / "tagger"), "the foxs dog", "--attribute", "--word", "dog", "--json"))
    assert facts["output"].endswith(" at dog") and facts["tokens"] == ["[CLS]", " the", " fox", "s", " dog", " [SEP]"]
    assert [word for word, _ in facts["words"]] == ["the", "foxs", "dog"]
    encoder_folder(tmp_path / "qa", "bert", BertForQuestionAnswering)
    lines = printed(str(tmp_path / "qa"), "a dog", "--attribute", "--context", "the fox").splitlines()
    assert lines[0] == "[CLS] a dog [SEP] the fox [SEP]" and "without the text" in lines[1]
    seq2seq_folder(tmp_path / "t5", "t5")
    lines = printed(str(tmp_path / "t5"), "The fox", "--attention", "--target", "dog").splitlines()
    kinds = dict.fromkeys(line.split()[0] for line in lines if " ← " in line)
    assert list(kinds) == ["encoder", "decoder", "cross"]
    llama_folder(tmp_path / "llama")
    lines = printed(str(tmp_path / "llama"), "The fox").splitlines()
    assert lines[0] == "The fox" and lines[1].startswith("loss ")
    assert json.loads(printed(str(tmp_path / "llama"), "T", "--json"))["tokens"][0]["text"] == "T"
