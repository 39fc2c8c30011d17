"""Each task learns a toy problem to the end through the real command, and transformers loads what it leaves."""

import csv
import io
import json
import random
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
import transformers
import yaml
from rich.console import Console
from scipy.special import softmax
from sklearn import metrics
from sklearn.calibration import _TemperatureScaling

import lmkit
from lmkit.base import display
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.base.manifest import damage
from lmkit.commands.options import task_changes
from lmkit.ops import predictions
from lmkit.ops.text_scores import evaluate_models
from lmkit.recipe import recipe_file
from lmkit.recipe.finetuning import FinetuneRecipe, expand_finetuning
from lmkit.tasks import evaluate
from lmkit.tasks.table import task_of
from lmkit.training import finetuning_run
from lmkit.training.finetune import render

NOISE = ["the", "a", "film", "book", "it", "was", "is", "and", "of", "in", "that", "very", "quite", "some", "more"]
SMALL = "hidden_size: 32, num_layers: 2, num_heads: 2, context: 64"
TRAIN = ("train.budget=60 steps", "train.batch=32 rows", "optimizer.name=adamw", "optimizer.lr=0.005",
         "schedule.name=linear", "tokenizer.type=wordpiece", "tokenizer.vocab_size=400", "evaluate.every=50%",
         "model.dropout=0", "model.attention_dropout=0")  # fmt: skip
MUON = ("optimizer.name=muon", "optimizer.lr=0.03", "optimizer.embedding_lr=0.02", "optimizer.head_lr=0.02")
PLAIN = {"modernbert": (), "gpt2": ("tokenizer.type=bpe",), "llama": ("tokenizer.type=bpe",)}


def run(out: Path, *changes: str, low: dict | None = None) -> dict:
    """Fine-tune; its scores."""
    recipe = recipe_file.load_recipe(FinetuneRecipe, None, changes, expand_finetuning, low)
    assert finetuning_run.start(recipe, "toy", out) == 0
    return json.loads((out / "scores.json").read_text())


def sentence(rng: random.Random, *words: str) -> str:
    text = [*rng.choices(NOISE, k=rng.randint(2, 9)), *words]
    rng.shuffle(text)
    return " ".join(text)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    """One word decides."""
    path, rng = tmp_path_factory.mktemp("data") / "reviews.csv", random.Random(0)
    words = {"good": ["superb", "lovely"], "bad": ["dull", "awful"]}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "body", "stars"])
        for i in range(300):
            label = rng.choice(["good", "bad"])
            writer.writerow([i, sentence(rng, rng.choice(words[label])), label])
    return path


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "albert", "electra", "modernbert", "gpt2", "llama", "t5", "bart"]
)
def test_every_family_learns_to_classify_and_loads_in_transformers(family, reviews, tmp_path):
    sizes = f"family: {family}, {SMALL}" + (", embedding_size: 16" if family == "albert" else "")
    changes = [c for c in TRAIN if family not in ("modernbert", "llama", "t5") or "_dropout" not in c]
    scores = run(
        tmp_path / "run", f"model={{{sizes}}}", "task.name=classify", f"data.train={reviews}", "data.text=body",
        "data.label=stars", *changes, *PLAIN.get(family, ()),
    )  # fmt: skip
    assert scores["scores"]["accuracy"]["value"] == 1.0
    assert scores["baselines"]["TF-IDF"]["accuracy"]["value"] > 0.9

    folder = tmp_path / "run/best"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["it was a superb film", "some very very dull book of the film"]
    with torch.no_grad():
        wanted = theirs(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    predictions.predict_rows(str(tmp_path / "run"), [str(rows)], tmp_path / "said.jsonl", {"text": "text"}, None)
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["label"] for row in said] == ["good", "bad"]
    np.testing.assert_allclose([[row["scores"][k] for k in ("bad", "good")] for row in said],
                               wanted.softmax(-1), atol=2e-5)  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "albert", "electra", "roberta", "gpt2"])
def test_a_pipeline_says_of_pairs_what_predict_says(family, tmp_path):
    sizes = f"family: {family}, {SMALL}" + (", embedding_size: 16" if family == "albert" else "")
    rows = [{"text": f"a {w} film", "pair": f"it was {v}", "label": w} for w in NOISE[:4] for v in NOISE[:8]]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "run", f"model={{{sizes}}}", "task={name: classify, baseline: false}", f"data.train={path}",
        "train.budget=4 steps", "train.batch=8 rows", *PLAIN.get(family, ()))  # fmt: skip
    predictions.predict_rows(str(tmp_path / "run"), [str(path)], tmp_path / "said.jsonl", {}, None)
    said = [json.loads(line)["scores"] for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "run/best"), top_k=None)
    theirs = pipe([{"text": row["text"], "text_pair": row["pair"]} for row in rows])
    for ours, scores in zip(said, theirs, strict=True):
        assert ours == pytest.approx({score["label"]: score["score"] for score in scores}, abs=2e-5)


def reordered(folder: Path, out: Path, labels: list[str]) -> str:
    """The same model as transformers saves it with its labels in another order."""
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    rows = torch.tensor([theirs.config.label2id[label] for label in labels])
    for parameter in theirs.classifier.parameters():
        parameter.data = parameter.data[rows]
    theirs.config.id2label, theirs.config.label2id = dict(enumerate(labels)), {v: i for i, v in enumerate(labels)}
    theirs.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return str(out)


def test_a_head_is_taken_over_by_the_names_of_its_labels(reviews, tmp_path, capsys):
    columns = ("task={name: classify, baseline: false}", f"data.train={reviews}", "data.text=body", "data.label=stars")
    run(tmp_path / "run", f"model={{family: bert, {SMALL}}}", *columns, *TRAIN)
    swapped = reordered(tmp_path / "run/best", tmp_path / "swapped", ["good", "bad"])
    still = ("train.budget=1 step", "train.batch=32 rows", "optimizer.lr=1e-12")
    scores = run(tmp_path / "again", f"model={swapped}", *columns, *still)["scores"]
    assert scores["accuracy"]["value"] == 1.0
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again/best")
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    capsys.readouterr()
    named = reordered(tmp_path / "run/best", tmp_path / "renamed", ["good", "bad"])
    config_file = Path(named) / "config.json"
    config_file.write_text(config_file.read_text().replace('"good"', '"Good"'))
    run(tmp_path / "other", f"model={named}", *columns, *still)
    shown = capsys.readouterr().err
    assert "a new head: the labels (bad, good) are not those of the start (Good, bad)" in shown
    assert "head.output.weight" in shown
    (advice,) = re.findall(r"the head goes on with (.*)", shown)
    scores = run(tmp_path / "advised", f"model={named}", *columns, *still, *shlex.split(advice))["scores"]
    assert scores["accuracy"]["value"] == 1.0
    assert lmkit.load(tmp_path / "advised").config.labels == ("bad", "good")

    unnamed = json.dumps({"Good": "LABEL_0", "bad": "LABEL_1"})  # and then as they are named where nobody named them
    for old, new in json.loads(unnamed).items():
        config_file.write_text(config_file.read_text().replace(f'"{old}"', f'"{new}"'))
    rows = {"text": "body", "label": "stars"}
    with pytest.raises(DataError, match=r"--labels 'LABEL_0=NAME'"):
        evaluate_models([named], [str(reviews)], None, rows, as_json=True, allow_pickle=False)
    capsys.readouterr()
    changes = task_changes(["LABEL_0=good", "LABEL_1=bad"])
    evaluate_models([named], [str(reviews)], None, rows, as_json=True, allow_pickle=False, changes=changes)
    assert json.loads(capsys.readouterr().out)["models"][named]["accuracy"]["value"] == 1.0
    with pytest.raises(UserError, match="`LABEL_2` is no label of the model\n  allowed: LABEL_0, LABEL_1"):
        predictions.predict_rows(named, [str(reviews)], None, rows, None, task_changes(["LABEL_2=good"]))
    with pytest.raises(UserError, match="two labels would have one name"):
        predictions.predict_rows(named, [str(reviews)], None, rows, None, task_changes(["LABEL_0=bad", "LABEL_1=bad"]))


def test_predictions_stand_beside_their_rows_in_any_format(reviews, tmp_path):
    run(tmp_path / "run", f"model={{family: bert, {SMALL}}}", "task={name: classify, baseline: false}", *TRAIN,
        f"data.train={reviews}", "data.text=body", "data.label=stars", "train.budget=4 steps")  # fmt: skip
    model, rows = str(tmp_path / "run"), list(csv.DictReader(reviews.open()))
    for name in ("said.csv", "said.tsv", "said.jsonl"):
        predictions.predict_rows(model, [str(reviews)], tmp_path / name, {}, None, keep=["id", "body"])
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [(line["id"], line["body"], line["gold"]) for line in lines] == [tuple(row.values()) for row in rows]
    p = [[line["scores"][name] for name in ("bad", "good")] for line in lines]
    wanted = metrics.log_loss([line["gold"] for line in lines], p)
    assert np.mean([line["loss"] for line in lines]) == pytest.approx(wanted, abs=1e-5)
    for name, mark in (("said.csv", ","), ("said.tsv", "\t")):
        table = pandas.read_csv(tmp_path / name, sep=mark, dtype={"id": str})
        assert table[["id", "body", "gold", "label"]].to_dict("records") == [
            {key: line[key] for key in ("id", "body", "gold", "label")} for line in lines
        ]
        assert table["scores.good"].tolist() == [line["scores"]["good"] for line in lines]

    unlabelled = tmp_path / "new.csv"
    unlabelled.write_text("id,body,label\n7,a dull film,?\n8,,good\n")
    predictions.predict_rows(model, [str(unlabelled)], tmp_path / "said.jsonl", {}, None, keep=["id", "label"])
    first, second = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert "gold" not in first and first["input.label"] == "?" and first["label"] in ("bad", "good")
    assert second == {"place": f"{unlabelled}:3", "id": "8", "label": "good", "error": "empty texts"}
    with pytest.raises(DataError, match="no column `idd`"):
        predictions.predict_rows(model, [str(unlabelled)], None, {}, None, keep=["idd"])
    with pytest.raises(UserError, match=r"SQuAD\n  → .jsonl, .csv or .tsv"):
        predictions.predict_rows(model, [str(unlabelled)], tmp_path / "said.json", {}, None)


def test_cut_in_the_middle_long_texts_are_known_by_their_end(tmp_path, capsys):
    rng, path = random.Random(0), tmp_path / "long.csv"
    rows = [(" ".join(rng.choices(NOISE, k=60)), rng.choice(["good", "bad"])) for _ in range(300)]
    path.write_text("text,label\n" + "".join(f"{text} {label},{label}\n" for text, label in rows))
    base = ("task.name=classify", f"data.train={path}", f"model={{family: bert, {SMALL}}}", *TRAIN,
            "data.max_length=24")  # fmt: skip
    scores = run(tmp_path / "run", *base, "task.cut=middle")
    assert scores["scores"]["accuracy"]["value"] == 1.0
    model = str(tmp_path / "run")
    capsys.readouterr()
    evaluate.evaluate_tables({model: [lmkit.load(model)]}, [task_of(model)], [str(path)], {}, True)
    assert json.loads(capsys.readouterr().out)["models"][model]["accuracy"]["value"] == 1.0

    pairs = tmp_path / "pairs.csv"
    pairs.write_text("sentence1,sentence2,label\n" + "".join(f"{text},{text},{label}\n" for text, label in rows))
    with pytest.raises(UserError, match="pairs"):
        run(tmp_path / "pairs", *base, f"data.train={pairs}", "task.cut=middle")


def test_scoring_many_rows_shows_how_far_it_is(reviews, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(display, "PLAIN_INTERVAL", -1.0)
    model = f"model={{family: bert, {SMALL}}}"
    scores = run(tmp_path / "run", model, "task.name=classify", f"data.train={reviews}", "data.text=body",
                 "data.label=stars", *TRAIN, "train.budget=2 steps")  # fmt: skip
    assert scores["rows"] == 30
    said = [line for line in capsys.readouterr().err.splitlines() if " scoring " in line]
    assert re.search(r" scoring 100% 30 of 30 eta 0", said[-1]) and len(said) < 30


def test_several_labels_numbers_pairs_and_adapters(tmp_path):
    rng = random.Random(0)
    topics = {"sport": "ball", "food": "soup", "art": "paint"}
    rows = []
    for _ in range(300):
        labels = [name for name in topics if rng.random() < 0.5]
        rows.append({"text": sentence(rng, *(topics[name] for name in labels)), "label": labels})
    several = tmp_path / "several.jsonl"
    several.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ("task.name=classify", *TRAIN, f"model={{family: modernbert, {SMALL}}}", *MUON)
    scores = run(tmp_path / "several", *base, f"data.train={several}", "train.budget=120 steps")
    assert scores["scores"]["exact_match"]["value"] == 1.0
    model = str(tmp_path / "several")
    told = evaluate.evaluate_tables({model: [lmkit.load(model)]}, [task_of(model)], [str(several)], {}, True)
    bins = told["reliability"][model]  # of every label of every row
    assert sum(b["rows"] for b in bins) == 3 * len(rows)
    assert sum(b["rows"] * b["accuracy"] for b in bins) == pytest.approx(sum(len(row["label"]) for row in rows))
    gaps = sum(b["rows"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
    assert told["models"][model]["ece"]["value"] == pytest.approx(gaps / 3 / len(rows))

    rows = []
    for _ in range(400):
        n = rng.randint(0, 3)
        rows.append({"text": sentence(rng, *["more"] * n, *["ball"] * (3 - n)), "label": n + 0.5})
    numbers = tmp_path / "numbers.jsonl"
    numbers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = run(tmp_path / "numbers", *base, f"data.train={numbers}", "task.kind=regression", "train.budget=150 steps")
    assert scores["scores"]["pearson"]["value"] > 0.9

    rows = []
    for _ in range(400):
        first, second = rng.choice(["ball", "soup"]), rng.choice(["ball", "soup"])
        texts = {"premise": sentence(rng, first), "hypothesis": sentence(rng, second)}
        rows.append(texts | {"label": f"{first} {second}"})
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = run(tmp_path / "pairs", *base, f"data.train={pairs}", "train.budget=120 steps")
    assert scores["scores"]["accuracy"]["value"] == 1.0

    # and on from there, by adapters alone, with a head of its own
    adapted = ("task.name=classify", f"model={tmp_path / 'pairs'}", f"data.train={several}", "lora={rank: 4, alpha: 8}",
               "optimizer.lr=0.01", "train.budget=100 steps")  # fmt: skip
    scores = run(tmp_path / "merged", *adapted)
    assert scores["scores"]["micro_f1"]["value"] > 0.99
    same = run(tmp_path / "adapter", *adapted, "lora.merge=false")
    for name, score in scores["scores"].items():  # what is merged rounds differently
        assert same["scores"][name]["value"] == pytest.approx(score["value"], abs=1e-3)
    assert (tmp_path / "adapter/best/adapter_model.safetensors").is_file()
    base = json.loads((tmp_path / "adapter/best/adapter_config.json").read_text())["base_model_name_or_path"]
    assert (Path(base) / "config.json").is_file()  # PEFT and transformers cannot load a run
    again = run(tmp_path / "again", "task.name=classify", f"model={tmp_path / 'adapter'}", f"data.train={several}",
                "optimizer.lr=0", "train.budget=1 steps")  # fmt: skip
    for name, score in same["scores"].items():  # an adapter is taken with the model it changes
        assert again["scores"][name]["value"] == pytest.approx(score["value"], abs=1e-3)
    weights = Path(base, "model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"its base .* has other weights than those it was trained on"):
        lmkit.load(tmp_path / "adapter")


def numbers(path: Path, unit: float, mean: float) -> Path:
    rng, rows = random.Random(0), []
    for _ in range(300):
        n = rng.randint(0, 3)
        rows.append({"text": sentence(rng, *["more"] * n, *["ball"] * (3 - n)), "label": unit * n + mean})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_numbers_of_any_size_are_learnt_alike_and_answered_as_they_are(family, tmp_path, capsys):
    """A run on numbers 4096 times as large does the same, bit for bit, and transformers answers in their units. gpt2's
    head has no bias to hold a mean."""
    said, mean = {}, 40.5 if family == "bert" else 0.5
    for unit in (1, 4096):
        data = numbers(tmp_path / f"{unit}.jsonl", unit, mean * unit)
        scores = run(tmp_path / f"run-{unit}", "task={name: classify, kind: regression, baseline: false}", *TRAIN,
                     f"model={{family: {family}, {SMALL}}}", f"data.train={data}", "train.budget=100 steps",
                     f"data.validation={data}", "train.ema=0.9", *PLAIN.get(family, ()))["scores"]  # fmt: skip
        assert scores["pearson"]["value"] > 0.9 and scores["rmse"]["value"] < 0.5 * unit
        assert f"learnt in units of {unit if family == 'bert' else 2 * unit}" in capsys.readouterr().err
        predictions.predict_rows(str(tmp_path / f"run-{unit}"), [str(data)], tmp_path / "said.jsonl", {}, None)
        said[unit] = [json.loads(line)["score"] for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert said[4096] == [4096 * x for x in said[1]]
    folder = tmp_path / "run-4096/best"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()][:8]
    for text, number in zip(texts, said[4096], strict=False):
        with torch.no_grad():
            assert model(**tokenizer(text, return_tensors="pt")).logits.item() == pytest.approx(number, rel=1e-4)

    still = run(tmp_path / "still", "task={name: classify, kind: regression, baseline: false}", f"model={folder}",
                f"data.train={data}", f"data.validation={data}", "train.budget=1 step",
                "optimizer.lr=1e-12")["scores"]  # fmt: skip
    assert still["rmse"]["value"] == pytest.approx(scores["rmse"]["value"])  # a head of numbers goes on as it was
    older = yaml.safe_load((tmp_path / "run-1/recipe.yaml").read_text())
    del older["task"]["scale_targets"]
    (tmp_path / "older.yaml").write_text(yaml.safe_dump(older))
    assert recipe_file.read_run(tmp_path / "older.yaml")[0]["task"]["scale_targets"] is False


@pytest.mark.parametrize("more", [("train.ema=0.5",), ("lora={rank: 2}", "lora.merge=false")], ids=["ema", "adapter"])
def test_learning_numbers_goes_on_bit_for_bit(more, tmp_path):
    base = ("task={name: classify, kind: regression, baseline: false}", "checkpoint.every=4",
            f"data.train={numbers(tmp_path / 'numbers.jsonl', 700, 90000)}")  # fmt: skip
    run(tmp_path / "start", *base, f"model={{family: bert, {SMALL}}}", *TRAIN, "train.budget=4 steps")
    steps = (*base, f"model={tmp_path / 'start'}", "train.budget=8 steps", "train.batch=32 rows", *more)
    for name in ("whole", "half"):
        run(tmp_path / name, *steps)
    for link in ("latest", "best"):
        (tmp_path / "half" / link).unlink()
    shutil.rmtree(tmp_path / "half/checkpoints/step-00000008")
    assert finetuning_run.resume(tmp_path / "half") == 0
    whole, half = (tmp_path / name / "checkpoints/step-00000008" for name in ("whole", "half"))
    files = [file.relative_to(whole) for file in whole.rglob("*.safetensors")]
    assert len(files) > 2 and all((whole / file).read_bytes() == (half / file).read_bytes() for file in files)


def test_the_threshold_of_several_labels_is_fitted_and_kept(tmp_path):
    """Judge: scikit-learn's F1 at every threshold there is."""
    rng, topics = random.Random(0), {"sport": "ball", "food": "soup", "art": "paint"}
    rows = [{"text": sentence(rng, *(topics[name] for name in names)), "label": names}
            for names in ([name for name in topics if rng.random() < 0.25] for _ in range(200))]  # fmt: skip
    data, held, said = (tmp_path / name for name in ("several.jsonl", "held.jsonl", "said.jsonl"))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:150]))
    held.write_text("".join(json.dumps(row) + "\n" for row in rows[150:]))
    run(tmp_path / "run", f"model={{family: bert, {SMALL}}}", *TRAIN, "train.budget=6 steps", f"data.train={data}",
        f"data.validation={held}", "task={name: classify, threshold: auto, baseline: false}")  # fmt: skip
    folder, model = tmp_path / "run/best", str(tmp_path / "run")
    fitted = json.loads((folder / "lmkit.json").read_text())["fitted"]["threshold"]

    def predicted(**changes) -> tuple[np.ndarray, np.ndarray]:
        predictions.predict_rows(model, [str(held)], said, {}, None, changes)
        lines = [json.loads(line) for line in said.read_text().splitlines()]
        held_labels = np.array([[name in line["labels"] for name in sorted(topics)] for line in lines])
        return held_labels, np.array([[line["scores"][name] for name in sorted(topics)] for line in lines])

    gold = np.array([[name in row["label"] for name in sorted(topics)] for row in rows[150:]])
    holds, p = predicted()
    best = max(metrics.f1_score(gold, p >= t, average="micro", zero_division=0) for t in np.unique(p))
    assert metrics.f1_score(gold, holds, average="micro") == pytest.approx(best) and 0 < fitted != 0.5
    np.testing.assert_array_equal(predicted(threshold=0.3)[0], p >= 0.3)
    wanted = metrics.classification_report(gold, p >= fitted, target_names=sorted(topics), output_dict=True,
                                           zero_division=0)  # fmt: skip
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert scores["fitted"]["threshold"] == fitted and scores["scores"]["micro_f1"]["value"] == pytest.approx(best)
    classes = scores["classes"]
    assert {k: tuple(v.values()) for k, v in classes.items()} == {k: tuple(wanted[k].values()) for k in topics}


def two_classes(tmp_path: Path, held: int = 100) -> tuple[str, ...]:
    """Few rows say `yes`, half of them by a word: a model of them is unsure, and 0.5 is no good threshold."""
    rng, lines = random.Random(0), ["text,label"]
    for _ in range(400):
        label = "yes" if rng.random() < 0.25 else "no"
        lines.append(f"{sentence(rng, *(['superb'] if label == 'yes' and rng.random() < 0.5 else []))},{label}")
    (tmp_path / "rows.csv").write_text("\n".join(lines[: 401 - held]))
    (tmp_path / "held.csv").write_text("\n".join([lines[0], *lines[401 - held :]]))
    return (f"model={{family: bert, {SMALL}}}", *TRAIN, f"data.train={tmp_path / 'rows.csv'}",
            f"data.validation={tmp_path / 'held.csv'}", "task.name=classify", "task.baseline=false")  # fmt: skip


def test_two_classes_have_a_threshold_too_and_it_is_that_of_the_second(tmp_path, capsys):
    """Judge: scikit-learn's macro F1 at every threshold there is."""
    base, model, said = two_classes(tmp_path), str(tmp_path / "run"), tmp_path / "said.jsonl"
    scores = run(tmp_path / "run", *base, "task.threshold=auto", "train.budget=20 steps")
    told, fitted = capsys.readouterr(), scores["fitted"]["threshold"]
    assert f"yes, the second class, is predicted from a probability of {fitted:.3f}" in told.err
    assert "fitted on the 100 held-out rows that are scored here, so the scores flatter" in told.err

    def predicted(**changes) -> tuple[list[str], np.ndarray]:
        predictions.predict_rows(model, [str(tmp_path / "held.csv")], said, {}, None, changes)
        lines = [json.loads(line) for line in said.read_text().splitlines()]
        return [line["label"] for line in lines], np.array([line["scores"]["yes"] for line in lines])

    gold = [row["label"] for row in csv.DictReader((tmp_path / "held.csv").open())]
    labels, p = predicted()
    at = lambda t: metrics.f1_score(gold, np.where(p >= t, "yes", "no"), average="macro", zero_division=0)
    assert scores["scores"]["macro_f1"]["value"] == pytest.approx(max(map(at, [*p, 1.0]))) and at(0.5) < at(fitted)
    report = metrics.classification_report(gold, labels, output_dict=True)
    assert scores["scores"]["accuracy"]["value"] == pytest.approx(report["accuracy"])
    assert {k: tuple(v.values()) for k, v in scores["classes"].items()} == {
        k: pytest.approx(tuple(report[k].values())) for k in ("no", "yes")
    }
    assert predicted(threshold=0.1)[0] == ["yes" if x >= 0.1 else "no" for x in p]
    capsys.readouterr()
    evaluate_models([model], [str(tmp_path / "held.csv")], None, {}, as_json=True, allow_pickle=False)
    again = json.loads(capsys.readouterr().out)["models"][model]
    assert again["macro_f1"]["value"] == scores["scores"]["macro_f1"]["value"]

    with pytest.raises(UserError, match=r"task\.threshold=auto is fitted on held-out rows, and there are none"):
        run(tmp_path / "none", *base, "task.threshold=auto", "data.validation=0")
    (tmp_path / "rows.csv").write_text((tmp_path / "rows.csv").read_text() + "\nwell,perhaps")
    with pytest.raises(UserError, match="for one of two classes, and these are 3 classes"):
        run(tmp_path / "three", *base, "task.threshold=auto")


@pytest.mark.parametrize("more", [(), ("lora={rank: 2, merge: false}",)], ids=["whole", "adapter"])
def test_calibrated_models_are_plain_ones(more, tmp_path, capsys):
    """Judge: scikit-learn's temperature of the logits that transformers has of the checkpoint."""
    base, held = two_classes(tmp_path), tmp_path / "held.csv"
    if more:
        run(tmp_path / "start", *base, "train.budget=1 step")
        base = (
            f"model={tmp_path / 'start'}",
            *base[1 + len(TRAIN) :],
            "optimizer.lr=0.01",
            "train.budget=60 steps",
            *more,
        )
    scores = run(tmp_path / "run", *base, "task.calibrate=true")
    told = capsys.readouterr().err
    texts, gold = zip(*csv.reader(held.open().readlines()[1:]), strict=True)

    def logits(folder: Path) -> np.ndarray:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            return model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits.double().numpy()

    best = (tmp_path / "run/best").resolve()
    assert best == tmp_path / "run/calibrated" and damage(best) is None
    (before,) = [f for f in (tmp_path / "run/checkpoints").iterdir() if f.name == f"step-{scores_step(tmp_path):08d}"]
    found, labels = scores["calibration"], np.array(gold) == "yes"
    judge = _TemperatureScaling().fit(logits(before), labels.astype(int))
    assert found["temperature"] == pytest.approx(1 / judge.beta_, rel=1e-3) and found["temperature"] > 1.1
    np.testing.assert_allclose(logits(best), logits(before) / found["temperature"], atol=1e-5)
    predictions.predict_rows(str(tmp_path / "run"), [str(held)], tmp_path / "said.jsonl", {}, None)
    said = [json.loads(line)["scores"]["yes"] for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(said, softmax(logits(best), axis=1)[:, 1], atol=2e-5)

    capsys.readouterr()
    evaluate_models([str(before), str(best)], [str(held)], None, {}, as_json=True, allow_pickle=False)
    ece = [model["ece"]["value"] for model in json.loads(capsys.readouterr().out)["models"].values()]
    assert [found["ece_before"], found["ece_after"]] == pytest.approx(ece) and ece[1] == scores["scores"]["ece"][
        "value"
    ]
    assert f"(ECE) {ece[0]:.4f} before, {ece[1]:.4f} after" in told and ece[1] < ece[0]
    assert json.loads((best / "lmkit.json").read_text())["fitted"] == {"temperature": found["temperature"]}


def scores_step(folder: Path) -> int:
    return json.loads((folder / "run/status.json").read_text())["best"]["step"]


def test_many_classes_have_their_scores_in_a_file_and_what_is_confused_is_shown(tmp_path, capsys):
    rng, data, held, said = random.Random(0), *(tmp_path / name for name in ("many.csv", "held.csv", "said.jsonl"))
    rows = [f"{sentence(rng, f'w{n % 16}')},class {n % 16}\n" for n in range(400)]
    data.write_text("text,label\n" + "".join(rows[:320]))
    held.write_text("text,label\n" + "".join(rows[320:]))
    run(tmp_path / "run", f"model={{family: bert, {SMALL}}}", *TRAIN, f"data.train={data}", "train.budget=20 steps",
        f"data.validation={held}", "task={name: classify, baseline: false}")  # fmt: skip
    shown = capsys.readouterr().out
    predictions.predict_rows(str(tmp_path / "run"), [str(held)], said, {}, None)
    guesses = [json.loads(line)["label"] for line in said.read_text().splitlines()]
    gold = [row["label"] for row in csv.DictReader(held.open())]
    wanted = metrics.classification_report(gold, guesses, output_dict=True, zero_division=0)
    classes = {row["class"]: row for row in csv.DictReader((tmp_path / "run/classes.csv").open())}
    assert len(classes) == 16
    for name, row in classes.items():
        numbers = [float(row[key]) for key in ("precision", "recall", "f1", "rows")]
        assert numbers == pytest.approx(list(wanted[name].values()))
    counts = Counter((a, b) for a, b in zip(gold, guesses, strict=True) if a != b)
    lines = re.findall(r"^ +(\d+)  (class \d+) → (class \d+)$", shown, re.MULTILINE)
    assert len(lines) == min(10, len(counts)) and all(counts[a, b] == int(n) for n, a, b in lines)
    assert sorted(int(n) for n, _, _ in lines) == sorted(counts.values())[-10:]


def test_labels_in_one_cell_are_cut_where_the_user_says_and_so_when_scored(tmp_path, capsys):
    data = tmp_path / "cells.csv"
    cells = ["sport;food", "sport", "food", "food;art"]
    rows = [f"{cells[i % 4]} {i}{' x' * 80 * (i < 8)},{cells[i % 4]}\n" for i in range(40)]
    data.write_text("cell,kinds\n" + "".join(rows))
    columns = ("data.text=cell", "data.label=kinds")  # which scoring remembers
    scores = run(tmp_path / "run", "task.name=classify", f"data.train={data}", "data.separator=;", *columns, *TRAIN,
                 f"model={{family: bert, {SMALL}}}", "train.budget=1 steps")  # fmt: skip
    said = capsys.readouterr().err
    assert "micro_f1" in scores["scores"] and "3 classes:" in said
    assert "rows are longer than 64 tokens and are cut" in said
    model = str(tmp_path / "run")
    evaluate.evaluate_tables({model: [lmkit.load(model)]}, [task_of(model)], [str(data)], {}, True)
    assert json.loads(capsys.readouterr().out)["models"][model]["micro_f1"]["value"] >= 0

    others = tmp_path / "others.csv"
    others.write_text("text,label\na,unheard\n")
    with pytest.raises(
        DataError, match=r"no column `cell`(.*\n)*.*data.text=NAME"
    ):  # another text is not taken instead
        predictions.predict_rows(model, [str(others)], tmp_path / "said.jsonl", {}, None)
    predictions.predict_rows(model, [str(others)], tmp_path / "said.jsonl", {"text": "text"}, None)
    assert len((tmp_path / "said.jsonl").read_text().splitlines()) == 1
    others.write_text("words,mark\na,sport\n")
    with pytest.raises(DataError, match="no column `cell`"):
        evaluate.evaluate_tables({model: [lmkit.load(model)]}, [task_of(model)], [str(others)], {}, True)


def test_tags(tmp_path, capsys):
    rng = random.Random(0)
    lines = []
    for _ in range(250):
        words = rng.choices(NOISE, k=rng.randint(2, 6))
        tags = ["O"] * len(words)
        at = rng.randint(0, len(words))
        kind, name = rng.choice([("PER", ["Anne", "Elliot"]), ("LOC", ["Bath"]), ("PER", ["Wentworth"])])
        words[at:at], tags[at:at] = name, [f"B-{kind}", *[f"I-{kind}"] * (len(name) - 1)]
        lines += [f"{w} {t}" for w, t in zip(words, tags, strict=True)] + [""]
    data = tmp_path / "names.conll"
    data.write_text("\n".join(lines))
    base = (*TRAIN, f"data.train={data}", "task.name=tag", "tokenizer.vocab_size=300", "train.budget=80 steps")
    scores = run(tmp_path / "run", f"model={{family: bert, {SMALL}}}", *base)
    assert scores["scores"]["f1"]["value"] == 1.0
    assert re.search(r"example   \w+/»(O|B-PER|B-LOC)«", capsys.readouterr().err)
    theirs = transformers.pipeline("token-classification", str(tmp_path / "run/best"), aggregation_strategy="first")
    found = theirs("it was Anne Elliot in Bath")
    assert [(f["entity_group"], f["word"]) for f in found] == [("PER", "Anne Elliot"), ("LOC", "Bath")]

    run(tmp_path / "unsure", f"model={{family: bert, {SMALL}}}", *base, "train.budget=10 steps")
    predictions.predict_rows(str(tmp_path / "unsure"), [str(data)], tmp_path / "said.jsonl", {}, None)
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "unsure/best").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "unsure/best")
    sentences = [[line.split() for line in part.split("\n")] for part in "\n".join(lines).strip().split("\n\n")]
    for sentence_, line in list(zip(sentences, (tmp_path / "said.jsonl").open(), strict=True))[:20]:
        inputs, said = (
            tokenizer([w for w, _ in sentence_], is_split_into_words=True, return_tensors="pt"),
            json.loads(line),
        )
        firsts = [inputs.word_to_tokens(0, i).start for i in range(len(sentence_))]
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[0, firsts] = torch.tensor([model.config.label2id[tag] for _, tag in sentence_])
        assert said["loss"] == pytest.approx(model(**inputs, labels=labels).loss.item(), abs=1e-4)
        assert said["gold"] == [tag for _, tag in sentence_] and said["loss"] > 0.01


def test_answers_in_texts(tmp_path, capsys):
    rng, rows = random.Random(0), []
    for i in range(400):
        number = str(rng.randint(10, 99))
        words = sentence(rng, *(rng.choices(NOISE, k=30))).split()
        there = rng.random() < 0.8
        context = " ".join([*words[:20], *(["costs", number] if there else []), *words[20:]])
        answers = {"text": [number] if there else [], "answer_start": [context.index(number)] if there else []}
        rows.append({"id": str(i), "context": context, "question": "how much is it ?", "answers": answers})
    data = tmp_path / "prices.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ("task.name=qa", "task.overlap=8", "data.max_length=32", f"data.train={data}", *TRAIN)
    scores = run(tmp_path / "run", *base, f"model={{family: bert, {SMALL}}}", "train.budget=200 steps")
    assert scores["scores"]["f1"]["value"] > 0.97, scores["scores"]
    assert re.search(r"\[SEP\].* → »(\d\d|no answer here)«", capsys.readouterr().err)
    for name in ("said.json", "said.jsonl"):
        predictions.predict_rows(str(tmp_path / "run"), [str(data)], tmp_path / name, {}, None)
    official = json.loads((tmp_path / "said.json").read_text())  # what SQuAD's script reads
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert official == {line["id"]: line["answer"] for line in lines} and official.keys() == {r["id"] for r in rows}
    assert [line["gold"] for line in lines][:9] == [
        [{"text": t, "start": s} for t, s in zip(*r["answers"].values(), strict=True)] for r in rows[:9]
    ]
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run/best").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/best")
    for row, line in list(zip(rows, lines, strict=True))[:12]:
        windows = tokenizer(row["question"], row["context"], truncation="only_second", max_length=32, stride=8,
                            return_overflowing_tokens=True, return_offsets_mapping=True)  # fmt: skip
        first, losses = (row["answers"]["answer_start"] or [-9])[0], []
        for i, places in enumerate(windows["offset_mapping"]):
            inside = zip(places, windows.sequence_ids(i), strict=True)
            at = [j for j, ((low, high), part) in enumerate(inside) if part == 1 and first <= low < high <= first + 2]
            whole = at and places[at[0]][0] == first and places[at[-1]][1] == first + 2
            start, end = (torch.tensor([at[k]] if whole else [0]) for k in (0, -1))
            inputs = {key: torch.tensor([windows[key][i]]) for key in ("input_ids", "token_type_ids")}
            losses.append(model(**inputs, start_positions=start, end_positions=end).loss.item())
        assert line["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    theirs = transformers.pipeline("question-answering", str(tmp_path / "run/best")) if hasattr(
        transformers.pipelines, "QuestionAnsweringPipeline") else None  # fmt: skip
    if theirs is not None:
        assert theirs(question="how much is it ?", context="the film costs 42 and it was")["answer"] == "42"


@pytest.mark.parametrize("family", ["transformer", "gpt2"])
def test_translations_by_both_kinds_of_writers(family, tmp_path):
    rng = random.Random(0)
    lexicon = dict(
        zip(
            ["red", "green", "blue", "cat", "dog", "bird"],
            ["rot", "grün", "blau", "Katze", "Hund", "Vogel"],
            strict=True,
        )
    )
    pairs = [rng.choices(list(lexicon), k=4) for _ in range(600)]
    data = tmp_path / "words.tsv"
    with data.open("w") as file:
        file.write("source\ttarget\n")
        file.writelines(f"{' '.join(p)}\t{' '.join(lexicon[w] for w in p)}\n" for p in pairs)
    base = ("task.name=translate", "task.beam=2", "task.max_new_tokens=16", "task.label_smoothing=0",
            f"data.train={data}", "tokenizer.type=bpe", "tokenizer.vocab_size=300", *TRAIN, *MUON,
            "train.budget=200 steps", f"model={{family: {family}, {SMALL}}}")  # fmt: skip
    scores = run(tmp_path / "run", *base)
    assert scores["scores"]["bleu"]["value"] > 99
    theirs = lmkit.load(tmp_path / "run/best")
    if family == "transformer":
        assert theirs.generate(["green dog red cat"], temperature=0)[0].text == "grün Hund rot Katze"


def test_a_decoder_writes_into_half_of_a_short_row_and_its_scores_say_how(tmp_path, capsys):
    data = tmp_path / "words.tsv"
    data.write_text("source\ttarget\n" + "".join(f"cat {i}\tKatze {i}\n" for i in range(40)))
    run(tmp_path / "run", "task.name=translate", f"data.train={data}", f"model={{family: gpt2, {SMALL}}}", *TRAIN,
        "tokenizer.type=bpe", "tokenizer.vocab_size=300", "train.budget=1 steps")  # fmt: skip
    said = capsys.readouterr().out
    assert "bleu  nrefs:1|case:mixed|eff:no|tok:13a" in said and "chrf  nrefs:1|" in said
    assert "written by beam of 4, length penalty average, alpha 1" in said and "ter  nrefs:1|" in said
    assert "copied source" in said and re.search(r"verdict  bleu [\d.]+ is (worse|no better) than that of ", said)

    chinese = tmp_path / "references.jsonl"
    rows = [{"source": f"cat {i}", "first": f"猫 {i}", "second": f"一只猫 {i}" if i % 2 else None} for i in range(8)]
    chinese.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, columns = str(tmp_path / "run"), {"target": "first,second"}
    config = task_of(model).model_copy(update={"tokenize": "auto"})
    evaluate.evaluate_tables({model: [lmkit.load(model)]}, [config], [str(chinese)], columns, False)
    shown = capsys.readouterr()
    assert "tokenised as zh (task.tokenize)" in shown.err and "bleu  nrefs:var|case:mixed|eff:no|tok:zh|" in shown.out
    listed = tmp_path / "listed.jsonl"
    listed.write_text('{"source": "cat 1", "target": ["猫", "一只猫"]}\n{"source": "cat 2", "target": ["狗"]}\n')
    predictions.predict_rows(model, [str(listed)], tmp_path / "said.jsonl", {}, None)
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [line["gold"] for line in lines] == [["猫", "一只猫"], "狗"]
    assert (
        "chrf  nrefs:var|" in shown.out
        and "ter  nrefs:var|case:lc|tok:tercom|norm:yes|punct:yes|asian:yes" in shown.out
    )


def test_a_run_goes_on_bit_for_bit_and_two_models_are_compared(reviews, tmp_path, capsys):
    base = ("task.name=classify", f"model={{family: bert, {SMALL}}}", f"data.train={reviews}", "data.text=body",
            "data.label=stars", *TRAIN, "train.budget=8 steps", "checkpoint.every=4")  # fmt: skip
    run(tmp_path / "whole", *base)
    run(tmp_path / "half", *base)
    for step in (tmp_path / "half/checkpoints").glob("step-00000008"):
        for file in sorted(step.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        step.rmdir()
    assert finetuning_run.resume(tmp_path / "half") == 0
    for file in ("model.safetensors", "training/optimizer.safetensors"):
        whole, half = (tmp_path / name / "checkpoints/step-00000008" / file for name in ("whole", "half"))
        assert whole.read_bytes() == half.read_bytes()
    run(tmp_path / "other", *base, "train.seed=1")
    capsys.readouterr()
    models = {str(tmp_path / name): [lmkit.load(tmp_path / name)] for name in ("whole", "other")}
    tasks = [task_of(name) for name in models]
    evaluate.evaluate_tables(models, tasks, [str(reviews)], {"text": "body", "label": "stars"}, True)
    told = json.loads(capsys.readouterr().out)
    assert set(told["models"]) == set(models)
    assert 0 <= told["comparison"]["p"] <= 1


def test_several_seeds_go_on_where_a_kill_left_them(reviews, tmp_path, capsys):
    base = ("task.name=classify", f"model={{family: bert, {SMALL}}}", f"data.train={reviews}", "data.text=body",
            "data.label=stars", *TRAIN, "train.budget=2 steps", "seeds=2", "train.seed=5")  # fmt: skip
    whole = run(tmp_path / "run", *base)["seeds"]
    assert "2 seeds: mean" in capsys.readouterr().out and len(whole) == 2
    (tmp_path / "run/scores.json").unlink()
    (tmp_path / "run/seed-6/scores.json").unlink()
    (tmp_path / "run/seed-6/status.json").write_text('{"state": "running"}')  # killed before its scores were kept
    assert finetuning_run.resume(tmp_path / "run") == 0
    assert json.loads((tmp_path / "run/scores.json").read_text())["seeds"] == whole


def test_several_seeds_answer_together_by_the_mean_of_their_probabilities(reviews, tmp_path, capsys):
    columns = ("data.text=body", "data.label=stars")
    model = str(tmp_path / "run")
    run(tmp_path / "run", "task.name=classify", f"model={{family: bert, {SMALL}}}", f"data.train={reviews}", *columns,
        *TRAIN, "train.budget=4 steps", "seeds=2", "task.baseline=false")  # fmt: skip
    said = {}
    for name in ("run", "run/seed-0", "run/seed-1"):
        predictions.predict_rows(str(tmp_path / name), [str(reviews)], tmp_path / "said.jsonl", {}, None)
        lines = (tmp_path / "said.jsonl").read_text().splitlines()
        said[name] = np.array([json.loads(line)["scores"]["good"] for line in lines])
    assert not np.allclose(said["run/seed-0"], said["run/seed-1"], atol=1e-3)
    np.testing.assert_allclose(said["run"], (said["run/seed-0"] + said["run/seed-1"]) / 2, atol=2e-6)

    capsys.readouterr()
    evaluate_models(models=[model], data=[str(reviews)], task=None, columns={}, as_json=True, allow_pickle=False)
    scores = json.loads(capsys.readouterr().out)["models"]
    gold = np.array([row["stars"] == "good" for row in csv.DictReader(reviews.open())])
    wanted = {model: said["run"], f"{model}/seed-0": said["run/seed-0"], f"{model}/seed-1": said["run/seed-1"]}
    assert {k: v["accuracy"]["value"] for k, v in scores.items()} == {
        k: pytest.approx(float(((p > 0.5) == gold).mean())) for k, p in wanted.items()
    }
    (tmp_path / "run/seed-1/status.json").write_text('{"state": "stopped"}')
    with pytest.raises(UserError, match="1 of 2 seeds are trained"):
        predictions.predict_rows(model, [str(reviews)], None, {}, None)


def test_the_example_of_a_long_conversation_shows_its_first_answer():
    words = SimpleNamespace(decode=lambda ids, skip_special: " ".join(map(str, ids)))
    example = {"tokens": list(range(100)), "labels": [-1] * 79 + [80] + [-1] * 20}
    pieces = render(example, words, {})
    assert pieces[0] == ("…", False) and pieces[1][0].startswith("35 36") and pieces[2] == ("80", True)
    assert render(example | {"labels": [-1] * 100}, words, {})[0][0].startswith("0 1")


def test_what_is_learnt_is_coloured_on_a_terminal_and_marked_elsewhere(monkeypatch, capsys):
    pieces = [("a [red] cat → ", False), ("katze", True)]
    display.note_marked("example  ", pieces)
    assert capsys.readouterr().err == "example  a [red] cat → »katze«\n"
    out = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=out, force_terminal=True, color_system="standard"))
    display.note_marked("example  ", pieces)
    assert "[red] cat → " in out.getvalue() and "\x1b[1;32mkatze\x1b[0m" in out.getvalue()


def test_a_tagger_of_spans_says_entities_of_any_text(tmp_path, capsys):
    rng, names = random.Random(0), {"Ann": "PER", "Rome": "LOC", "New York": "LOC", "IBM": "ORG"}
    records = []
    for _ in range(300):
        text, spans = "", []
        parts = rng.choices(NOISE, k=5) + rng.choices(list(names), k=2)
        for part in rng.sample(parts, len(parts)):
            spans += [[len(text), len(text) + len(part), names[part]]] if part in names else []
            text += part + rng.choice([" ", ", ", "; "])
        records.append({"text": text, "label": spans})
    doccano = tmp_path / "spans.jsonl"
    doccano.write_text("".join(json.dumps(record) + "\n" for record in records))
    model = f"model={{family: bert, {SMALL}}}"
    scores = run(tmp_path / "run", model, "task.name=tag", f"data.train={doccano}", *TRAIN, "train.budget=120 steps")
    assert scores["scores"]["f1"]["value"] > 0.95
    text = "it was Rome, and Ann (of IBM) in New York."
    (tmp_path / "new.txt").write_text(text + "\n")
    (tmp_path / "new.json").write_text(json.dumps([{"id": 1, "data": {"text": text}, "annotations": []}]))
    for name in ("new.txt", "new.json"):
        predictions.predict_rows(str(tmp_path / "run"), [str(tmp_path / name)], tmp_path / "said.jsonl", {}, None)
        (said,) = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
        assert [(e["text"], e["label"]) for e in said["entities"]] == [
            ("Rome", "LOC"), ("Ann", "PER"), ("IBM", "ORG"), ("New York", "LOC")
        ]  # fmt: skip
        assert all(text[e["start"] : e["end"]] == e["text"] for e in said["entities"])
    capsys.readouterr()
    evaluate_models([str(tmp_path / "run")], [str(doccano)], None, {}, as_json=True, allow_pickle=False)
    assert json.loads(capsys.readouterr().out)["models"][str(tmp_path / "run")]["f1"]["value"] > 0.95
