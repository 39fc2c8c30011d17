"""What is shown of many texts is what plain searches, transformers and scikit-learn find in them."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.commands.main import app
from lmkit.data.tokens.store import TokenStore
from lmkit.inspect import nearest
from lmkit.inspect.neurons import activations, parse_neuron
from lmkit.inspect.probing import mean_states, probe_layers
from lmkit.pretrained import load
from tests.generation.folders import encoder_folder, llama_folder, seq2seq_folder
from tests.model.families import reference

TEXTS = ["The quick brown fox", "over the lazy dog.", "The lazy dog jumps over the quick brown fox, and again.", "fox"]


def printed(*arguments) -> str:
    ran = CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def longest_in_common(document: str, query: str) -> int:
    """In characters, each of which is a token here."""
    starts = [(i, j) for i in range(len(query)) for j in range(i + 1, len(query) + 1) if query[i:j] in document]
    return max((j - i for i, j in starts), default=0)


def test_the_nearest_documents_are_those_of_a_plain_search(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abc"), size=rng.integers(1, 60))) for _ in range(80)]
    llama_folder(tmp_path / "m")
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = ["tokenize", tmp_path / "corpus.jsonl", "--out", tmp_path / "tokens", "--tokenizer", tmp_path / "m"]
    ran = CliRunner().invoke(app, [*map(str, command), "--validation", "0.1"])
    assert ran.exit_code == 0, ran.output
    monkeypatch.setattr(nearest, "BLOCK", 50)
    query, train = "abcabbcacbacca", TokenStore(tmp_path / "tokens").split("train")
    words = TokenStore(tmp_path / "tokens").tokenizer
    documents = [words.decode(train.document(i).tolist()) for i in range(train.num_documents)]
    assert len(words.encode(query)) == len(query)
    grams = {query[i : i + 4] for i in range(len(query) - 3)}
    counts = [sum(d[i : i + 4] in grams for i in range(len(d) - 3)) for d in documents]
    want = sorted(((longest_in_common(d, query), n, i) for i, (d, n) in enumerate(zip(documents, counts, strict=True))
                   if n), reverse=True)[:6]  # fmt: skip
    assert len({length for length, *_ in want}) > 1
    facts = json.loads(printed(tmp_path / "m", query, "--nearest", tmp_path / "tokens", "--top", 6, "--json"))
    assert [(d["length"], d["ngrams"], d["document"]) for d in facts["documents"]] == want
    assert all(d["text"] in query and d["text"] in documents[d["document"]] for d in facts["documents"])
    assert all(len(d["text"]) == d["length"] for d in facts["documents"])
    assert "0 documents" in printed(tmp_path / "m", "zzzzzz", "--nearest", tmp_path / "tokens")


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_states_of_layers_are_those_of_transformers(kind, tmp_path):
    make = {"llama": llama_folder, "bert": lambda p: encoder_folder(p, "bert"), "t5": lambda p: seq2seq_folder(p, "t5")}
    theirs = make[kind](tmp_path)
    loaded = load(tmp_path)
    got = mean_states(loaded, TEXTS)
    model = theirs.get_encoder() if kind == "t5" else theirs
    for number, text in enumerate(TEXTS):
        ids = torch.tensor([loaded.tokenizer.backend.encode(text).ids])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        assert len(states) == len(got)
        last = len(states) - (kind != "bert")  # transformers has the last states after the final norm
        for layer, expected in enumerate(states[:last]):
            np.testing.assert_allclose(got[layer, number], expected[0].mean(0), atol=5e-5)


def test_probes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], 160).tolist()
    noise = rng.normal(size=(2, 160, 6)).astype(np.float32)
    noise[1, :, 0] += np.array([{"a": -3, "b": 0, "c": 3}[label] for label in labels])  # layer 1 knows
    probes = probe_layers(noise[:, :120], labels[:120], noise[:, 120:], labels[120:])
    for layer, probe in enumerate(probes):
        scale = StandardScaler().fit(noise[layer, :120])
        judge = LogisticRegression(max_iter=1000).fit(scale.transform(noise[layer, :120]), labels[:120])
        assert probe.accuracy.value == judge.score(scale.transform(noise[layer, 120:]), labels[120:])
        assert probe.accuracy.low < probe.accuracy.value < probe.accuracy.high
    assert probes[1].accuracy.value > 0.8 > 0.6 > max(probes[0].accuracy.value, probes[1].control.value)


def test_the_command_probes_a_table(tmp_path):
    llama_folder(tmp_path / "m")
    rows = [{"body": f"{n} {word}", "kind": kind} for n in range(30) for word, kind in (("fox", "x"), ("dog", "y"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [tmp_path / "m", "--probe", tmp_path / "rows.jsonl", "--text", "body", "--label", "kind"]
    facts = json.loads(printed(*command, "--json"))
    assert facts["train"] == 48 and facts["held_out"] == 12 and facts["commonest"]["value"] == 0.5
    assert [layer["layer"] for layer in facts["layers"]] == [0, 1, 2]
    assert facts["layers"][2]["accuracy"]["value"] == 1.0 > facts["layers"][2]["control"]["value"]
    assert printed(*command).splitlines()[-1].startswith("layer   2  100.0%")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "albert", "t5"])
def test_neurons_are_those_of_transformers(name, tmp_path):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path)
    words = {word: i for i, word in enumerate(["<pad>", "<unk>", *" ".join(TEXTS).split()])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>").save_pretrained(tmp_path)
    downs = [m for key, m in theirs.named_modules() if key.endswith(ENDS[name]) and "attention" not in key]
    loaded, seen = load(tmp_path), []
    for down in downs:
        down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 7]))
    neuron = parse_neuron(loaded, "2.7")
    got = {a.text: a for a in activations(loaded, neuron, TEXTS)}
    assert sorted(got) == list(range(len(TEXTS)))
    for a in got.values():
        seen.clear()
        with torch.no_grad():
            (theirs.get_encoder() if name == "t5" else theirs)(torch.tensor([a.ids]))
        np.testing.assert_allclose(a.values, seen[1][0], atol=2e-5)
    with pytest.raises(UserError, match="layers 1 to"):
        parse_neuron(loaded, "99.0")


ENDS = {
    "llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "bert": "output.dense", "albert": "ffn_output",
    "t5": "DenseReluDense.wo",
}  # fmt: skip


def test_the_command_shows_where_a_neuron_fires(tmp_path):
    llama_folder(tmp_path / "m")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS * 3))
    loaded = load(tmp_path / "m")
    every = list(activations(loaded, parse_neuron(loaded, "1.3"), TEXTS * 3))
    values = np.concatenate([a.values for a in every])
    command = [tmp_path / "m", "--neuron", "1.3", "--data", tmp_path / "rows.jsonl", "--text", "body", "--top", 4]
    facts = json.loads(printed(*command, "--json"))
    assert facts["texts"] == 12 and facts["tokens"] == len(values) == sum(facts["histogram"]["counts"])
    assert facts["quantiles"]["0.9"] == pytest.approx(float(np.quantile(values, 0.9)))
    peaks = sorted((float(a.values.max()) for a in every), reverse=True)
    assert [top["activation"] for top in facts["top"]] == pytest.approx(peaks[:4], abs=1e-6)
    best = max(every, key=lambda a: a.values.max())
    assert facts["top"][0]["token"] == loaded.tokenizer.decode([best.ids[int(best.values.argmax())]])
    page = tmp_path / "page.html"
    printed(*command, "--html", page)
    assert page.read_text().count("rows.jsonl:") == 4 and "background:rgb" in page.read_text()
    assert "TEXT" in printed(tmp_path / "m", "the lazy dog", "--neuron", "1.3").splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a dog", "--lens", "--probe", "x.csv"], "--lens and --probe are views of their own"),
        (["--neuron", "1.0"], "TEXT is missing"),
        (["a dog", "--probe", "x.csv"], "leave TEXT out"),
        (["a dog", "--word", "dog"], "--word is of --attribute"),
        (["a dog", "--attribute", "--word", "dog"], "--word is of models that label words"),
        (["a dog", "--attribute", "--target", "dog"], "writes none"),
    ],
)
def test_options_that_do_not_belong_together_are_told(arguments, message, tmp_path):
    llama_folder(tmp_path)
    with pytest.raises(UserError, match=message):
        printed(tmp_path, *arguments)
