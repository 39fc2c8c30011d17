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
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))  # writing takes longest
    for kind, rest in KINDS.items():
        file = folder / ("few.jsonl" if kind == "generate_until" else "rows.jsonl")
        text = CHOICE.format(name=f"own_{kind}", kind=kind, file=file) + rest + "\n"
        (folder / f"{kind}.yaml").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """The harness asks pip for all that is installed after each run, which takes longer than the run."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


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


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_slices_and_worst_rows_are_those_of_hf_on_the_rows_alone(tasks, tmp_path):
    llama_folder(tmp_path / "model")
    theirs, names = HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32"), [f"own_{k}" for k in KINDS]
    arguments = ["eval", str(tmp_path / "model"), "--tasks", str(tasks)]
    got = CliRunner().invoke(app, [*arguments, "--by", "sort", "--worst", "3", "--json"], catch_exceptions=False)
    shown = CliRunner().invoke(app, [*arguments, "--worst", "1"], catch_exceptions=False).stdout
    told = json.loads(got.stdout)["tasks"]
    for file in ("rows", "few"):
        rows = [line for line in (tasks / f"{file}.jsonl").open() if json.loads(line)["sort"] == "a"]
        (tmp_path / f"{file}.jsonl").write_text("".join(rows))
    for kind in KINDS:
        text = (tasks / f"{kind}.yaml").read_text().replace(str(tasks), str(tmp_path))
        (tmp_path / f"{kind}.yaml").write_text(text)
    judges = [
        simple_evaluate(theirs, tasks=names, bootstrap_iters=0,
                        task_manager=TaskManager(include_path=folder, include_defaults=False))
        for folder in (tasks, tmp_path)
    ]  # fmt: skip
    for name in names:
        want = {k: v for k, v in judges[1]["results"][name].items() if k.endswith(",none") and "_stderr" not in k}
        part = told[name]["by"]["sort"]["a"]
        assert part["rows"] == judges[1]["n-samples"][name]["effective"]
        assert {f"{k},none": part[k]["value"] for k in part if k != "rows"} == pytest.approx(want, rel=1e-4), name
        assert len(told[name]["worst"]) == 3 and f"{told[name]['worst'][0]['place']}: " in shown
    choices = [(s["acc"], -s["filtered_resps"][s["target"]][0], s["doc_id"]) for s in judges[0]["samples"][names[0]]]
    hardest = sorted(choices, key=lambda row: (row[0], -row[1]))[:3]
    worst = told["own_multiple_choice"]["worst"]
    assert [(float(w["right"]), w["place"]) for w in worst] == [(a, f"{names[0]}:{i}") for a, _, i in hardest]
    assert [w["loss"] for w in worst] == pytest.approx([loss for _, loss, _ in hardest], abs=1e-4)
    with pytest.raises(
        UserError, match=r"--by colour: no task has this column\n  own.*: question, choices, gold, sort"
    ):
        CliRunner().invoke(app, [*arguments, "--by", "colour"], catch_exceptions=False)


def test_with_the_chat_template_scores_are_those_of_hf_with_the_same_flag(tasks, tmp_path):
    llama_folder(tmp_path / "model", context=160)
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    theirs = HFLM(pretrained=str(tmp_path / "model"), device="cpu", dtype="float32")
    manager = TaskManager(include_path=tasks, include_defaults=False)
    options = {"tasks": ["own_multiple_choice"], "num_fewshot": 2, "apply_chat_template": True}
    want = simple_evaluate(theirs, task_manager=manager, bootstrap_iters=0, **options)["samples"]
    got = run_tasks(lmkit.load(tmp_path / "model", device="cpu"), options["tasks"], tasks, 2, None, True)["samples"]
    for a, b in zip(got["own_multiple_choice"], want["own_multiple_choice"], strict=True):
        assert a["arguments"] == b["arguments"] and "user: " in str(a["arguments"])
        logs = [[float(response[0]) for response in row["filtered_resps"]] for row in (a, b)]
        assert logs[0] == pytest.approx(logs[1], abs=1e-4)
    ours, talk = HarnessModel(str(tmp_path / "model"), "cpu"), [("user", "the fox?"), ("assistant", "over a dog ")]
    messages = [{"role": role, "content": content} for role, content in talk]
    for prompt in (True, False):
        assert ours.apply_chat_template(messages, prompt) == theirs.apply_chat_template(messages, prompt)
    arguments = ["eval", str(tmp_path / "model"), "--tasks", "basics", "--apply-chat-template"]
    with pytest.raises(UserError, match="--apply-chat-template: is for tasks of the harness"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


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
