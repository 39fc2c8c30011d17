"""Scores of lm-evaluation-harness over lmkit's models are those of its own `hf` model on the same folder."""

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import lmkit
from lmkit.base.errors import UserError
from lmkit.commands.main import app
from tests.evaluation.folders import folder as encoder_folder
from tests.evaluation.pseudo import pseudo_log_likelihood
from tests.generation.folders import llama_folder, seq2seq_folder

pytest.importorskip("lm_eval")
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lmkit.ops.harness import HarnessModel, run_tasks

WORDS = ["the quick brown fox", "jumps over", "the lazy dog", "a naïve Größe", "quick", "fox over dog"]
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
"""
KINDS = {
    "multiple_choice": 'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: gold\nfewshot_split: test\n'
    "metric_list: [{metric: acc}, {metric: acc_norm}]",
    "loglikelihood_rolling": 'doc_to_text: ""\ndoc_to_target: "{{question}}"\n'
    "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]",
    "generate_until": 'doc_to_text: "{{question}}"\ndoc_to_target: "{{choices[0]}}"\n'
    'generation_kwargs: {until: ["o"], max_gen_toks: 8}\nmetric_list: [{metric: exact_match}]',
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """One task of each kind over one file of rows; some are longer than the models' context."""
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    rows = []
    for i in range(12):
        choices = ["A", "B", "C"] if i % 3 == 0 else [f" {w}" for w in rng.choice(WORDS, 3, replace=False)]
        question = " ".join(rng.choice(WORDS, 1 + i % 4)) + ("?" if i % 2 else " ")
        rows.append({"question": question, "choices": choices, "gold": int(rng.integers(3)), "sort": "ab"[i % 2]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, rest in KINDS.items():
        text = CHOICE.format(name=f"own_{kind}", kind=kind, file=folder / "rows.jsonl") + rest + "\n"
        (folder / f"{kind}.yaml").write_text(text)
    return folder


def instances(kind, *pairs):
    return [Instance(request_type=kind, doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]


def t5_folder(path):
    """As lmkit's own checkpoints do, it says which ids have no token, so that transformers never writes them."""
    model = seq2seq_folder(path, "t5")
    model.generation_config.suppress_tokens = list(
        range(lmkit.load(path).tokenizer.vocab_size, model.config.vocab_size)
    )
    model.save_pretrained(path)


MODELS = {
    "llama": llama_folder,
    "t5": t5_folder,
    "bart": lambda path: seq2seq_folder(path, "bart"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_score_of_a_task_equals_that_of_hf(kind, tasks, tmp_path):
    """Accuracies and texts exactly, log-probabilities of every choice within 1e-4; also with three examples ahead."""
    MODELS[kind](tmp_path)
    theirs, ours = HFLM(pretrained=str(tmp_path), device="cpu", dtype="float32"), lmkit.load(tmp_path, device="cpu")
    for shots in (0, 3):
        names = [f"own_{name}" for name in KINDS if not shots or name == "multiple_choice"]
        manager = TaskManager(include_path=tasks, include_defaults=False)
        want = simple_evaluate(theirs, tasks=names, num_fewshot=shots, task_manager=manager, bootstrap_iters=0)
        got = run_tasks(ours, names, tasks, shots, None)
        for name in names:
            for key, value in want["results"][name].items():
                if isinstance(value, float):
                    assert got["results"][name][key] == pytest.approx(value, rel=1e-4), (name, key)
            for a, b in zip(got["samples"][name], want["samples"][name], strict=True):
                if name == "own_generate_until":
                    assert a["filtered_resps"] == b["filtered_resps"] and len(a["filtered_resps"][0]) > 0
                else:
                    pairs = zip(np.ravel(a["filtered_resps"]), np.ravel(b["filtered_resps"]), strict=True)
                    assert all(
                        float(x) == pytest.approx(float(y), abs=1e-4) for x, y in pairs if x not in (True, False)
                    )


def test_greedy_continuations_are_known_as_such(tmp_path):
    llama_folder(tmp_path)
    # With its cache, `hf` takes the first place for the last where the same ids are cut at two places.
    theirs = HFLM(pretrained=str(tmp_path), device="cpu", dtype="float32", logits_cache=False)
    ours = HarnessModel(str(tmp_path), "cpu")
    asked = {"until": [], "max_gen_toks": 4}
    written = theirs.generate_until(instances("generate_until", ("the quick", asked)))[0]
    pairs = [("the quick", written), ("the quick", " fox"), ("", "the lazy"), ("<s>the", " dog"), ("the ", "dog")]
    want, got = (m.loglikelihood(instances("loglikelihood", *pairs)) for m in (theirs, ours))
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]
    assert [value for value, _ in got] == pytest.approx([value for value, _ in want], abs=1e-4)


def test_an_encoder_gives_pseudo_likelihoods_and_writes_nothing(tmp_path):
    encoder_folder(tmp_path, "bert")
    ours = HarnessModel(str(tmp_path), "cpu")
    texts = ["the unbelievable dog.", "an old hill is over there and who flies over it? so be it, he said."]
    want = [sum(values) for values in pseudo_log_likelihood(ours.loaded.model, ours.words, texts)]
    assert ours.loglikelihood_rolling(instances("loglikelihood_rolling", *((t,) for t in texts))) == pytest.approx(want)
    (alone, _), (after, _) = ours.loglikelihood(
        instances("loglikelihood", ("", "the unbelievable dog."), ("the unbelievable", " dog."))
    )
    ids = ours.words.encode(texts[0])
    each = pseudo_log_likelihood(ours.loaded.model, ours.words, texts[:1])[0]
    assert alone == pytest.approx(want[0]) and len(each) == len(ids)
    assert after == pytest.approx(sum(each[len(ours.words.encode("the unbelievable")) :]))
    with pytest.raises(UserError, match="an encoder"):
        ours.generate_until(instances("generate_until", ("the", {})))


def test_what_is_fetched_is_said_before_and_what_is_no_task_too(tasks, tmp_path, monkeypatch, capsys):
    llama_folder(tmp_path)
    ours = lmkit.load(tmp_path, device="cpu")
    with monkeypatch.context() as m, pytest.raises(UserError, match="own_multiple_choise: no task of the harness"):
        m.setattr("lmkit.ops.harness.TaskManager", lambda **k: TaskManager(**k | {"include_defaults": False}))  # sooner
        run_tasks(ours, ["own_multiple_choise"], tasks, None, None)
    (tmp_path / "lost.yaml").write_text(CHOICE.format(name="lost", kind="multiple_choice", file="lost.jsonl"))
    with pytest.raises(UserError, match=r"the harness ends with FileNotFoundError.*lost\.jsonl"):
        run_tasks(ours, [str(tmp_path / "lost.yaml")], None, None, None)
    monkeypatch.setattr("lmkit.ops.harness.simple_evaluate", lambda *a, **k: k["tasks"])
    assert run_tasks(ours, ["own_multiple_choice"], tasks, None, None) and "hub" not in capsys.readouterr().err
    assert run_tasks(ours, ["hellaswag"], tasks, None, None) == ["hellaswag"]
    assert "Rowan/hellaswag" in capsys.readouterr().err


def test_the_command_scores_tasks_of_files_beside_those_of_core_and_again(tasks, tmp_path, capsys):
    llama_folder(tmp_path / "model")
    (tmp_path / "core.jsonl").write_text('{"query": "the quick", "choices": ["brown", "dog"], "gold": 0}\n')
    names = f"{tasks},{tmp_path / 'core.jsonl'}"
    arguments = ["eval", str(tmp_path / "model"), "--tasks", names, "--limit", "5", "--json"]
    printed = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    told = json.loads(printed)
    assert told["tasks"].keys() == {"core", *(f"own_{name}" for name in KINDS)} and told["harness"]
    acc = told["tasks"]["own_multiple_choice"]["scores"]["acc"]
    assert told["tasks"]["own_multiple_choice"]["rows"] == 5 and acc["low"] <= acc["value"] <= acc["high"]
    (tmp_path / "scores.json").write_text(printed)
    again = CliRunner().invoke(app, ["eval", "--again", str(tmp_path / "scores.json")], catch_exceptions=False)
    assert "all is as in" in again.stderr and "own_multiple_choice" in again.stdout


def test_without_the_harness_its_extra_is_named(tasks, tmp_path, monkeypatch):
    llama_folder(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "lmkit.ops.harness", None)
    with pytest.raises(UserError, match=r"pip install \"lmkit\[harness\]\""):
        CliRunner().invoke(app, ["eval", str(tmp_path / "model"), "--tasks", "hellaswag"], catch_exceptions=False)
