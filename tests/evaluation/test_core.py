"""Tasks in the form of CORE: accuracies are those of transformers, one text at a time, and files are checked."""

import json
import random

import numpy as np
import pytest
import torch
import transformers as hf
from typer.testing import CliRunner

import lmkit
from lmkit.base.errors import DataError, UserError
from lmkit.commands.main import app
from lmkit.evaluation.core import read_core
from lmkit.ops.benchmarks import evaluate_benchmarks
from tests.evaluation.folders import folder as encoder_folder
from tests.generation.folders import llama_folder, seq2seq_folder

RNG = random.Random(0)
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and"]


def words(n):
    return " ".join(RNG.choice(WORDS) for _ in range(n))


ROWS = {
    "multiple_choice": [
        {"query": words(3), "choices": [words(1 + i % 2) + c for c in ".!?"], "gold": i % 3, "sort": "ab"[i % 2]}
        for i in range(20)
    ],
    "schema": [
        {
            "context_options": [f"{words(1)} {word}" for word in RNG.sample(WORDS, 2)],
            "continuation": words(2) + ".",
            "gold": i % 2,
        }
        for i in range(20)
    ],
    "cloze": [{"context": words(3) + " ", "continuation": RNG.choice("abcdefgh")} for _ in range(20)],
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def by_transformers(theirs, tokenizer, form, rows, shots):
    """(right, loss) of each row in nanochat's order: one forward pass an option, no padding."""
    rows = list(rows)
    random.Random(1337).shuffle(rows)
    key = {"multiple_choice": "query", "schema": None, "cloze": "context"}[form]
    question = lambda r: (r["context_options"][r["gold"]] if key is None else r[key]).strip()
    answer = lambda r: r["choices"][r["gold"]] if "choices" in r else r["continuation"]
    results = []
    for n, row in enumerate(rows):
        drawn = random.Random(1234 + n).sample([i for i in range(len(rows)) if i != n], shots)
        ahead = "".join(f"{question(rows[i])} {answer(rows[i])}\n\n" for i in drawn)
        if form == "multiple_choice":
            texts = [f"{ahead}{row['query']} {choice}" for choice in row["choices"]]
        elif form == "schema":
            texts = [f"{ahead}{context} {row['continuation']}" for context in row["context_options"]]
        else:
            texts = [f"{ahead}{row['context'].strip()}", f"{ahead}{row['context'].strip()} {row['continuation']}"]
        ids = [[0, *tokenizer(text, add_special_tokens=False).input_ids] for text in texts]
        same = lambda seqs: next(i for i, column in enumerate(zip(*seqs, strict=False)) if len(set(column)) > 1)
        if form == "cloze":
            starts, ids = [len(ids[0])], ids[1:]
        elif form == "schema":
            suffix = same([i[::-1] for i in ids])
            starts = [len(i) - suffix for i in ids]
        else:
            starts = [same(ids)] * len(ids)
        losses, greedy = [], []
        for sequence, start in zip(ids, starts, strict=True):
            cut = sequence[-(theirs.config.max_position_embeddings + 1) :]
            with torch.no_grad():
                logits = theirs(torch.tensor([cut[:-1]])).logits[0].double().log_softmax(-1)
            scored = len(sequence) - start
            at, gold = torch.arange(len(cut) - 1 - scored, len(cut) - 1), torch.tensor(cut[-scored:])
            losses.append(float(-logits[at, gold].mean()))
            greedy.append(bool((logits[at].argmax(-1) == gold).all()))
        best = int(np.argmin(losses))
        results.append((greedy[0], losses[0]) if form == "cloze" else (best == row["gold"], losses[row["gold"]]))
    return results


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("shots", [0, 2])
def test_accuracies_and_losses_are_those_of_transformers(form, shots, tmp_path):
    theirs, path = llama_folder(tmp_path / "model", context=96), write(tmp_path / "task.jsonl", ROWS[form])
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "model")
    want = by_transformers(theirs, tokenizer, form, ROWS[form], shots)
    facts, _ = evaluate_benchmarks(str(tmp_path / "model"), [str(path)], None, shots, None, None, 20)
    (task,) = facts["tasks"].values()
    assert task["form"] == form and task["rows"] == 20 == len(task["worst"])
    assert task["scores"]["accuracy"]["value"] == np.mean([right for right, _ in want])
    assert sorted(row["loss"] for row in task["worst"]) == pytest.approx(sorted(loss for _, loss in want), abs=1e-4)
    losses = [row["loss"] for row in task["worst"]]
    wrong = sum(not right for right, _ in want)
    assert losses[:wrong] == sorted(losses[:wrong], reverse=True) and not task["worst"][0]["right"]
    guessing = {"multiple_choice": 1 / 3, "schema": 1 / 2, "cloze": 0.0}[form]
    accuracy = task["scores"]["accuracy"]["value"]
    assert task["scores"]["centered"]["value"] == pytest.approx((accuracy - guessing) / (1 - guessing))
    assert facts["centered_mean"] == task["scores"]["centered"]["value"]


def test_a_cloze_is_right_where_greedy_text_is_the_continuation(tmp_path):
    llama_folder(tmp_path / "model")
    model = lmkit.load(tmp_path / "model", device="cpu")
    prompts = ["the quick", "over a dog", "fox jumps"]
    written = [c.text for c in model.generate([p + " " for p in prompts], temperature=0, max_tokens=3)]
    rows = [{"context": p, "answer": w} for p, w in zip(prompts, ["cat", "cat", "cat"], strict=True)]
    path = write(tmp_path / "write.jsonl", rows)
    facts, _ = evaluate_benchmarks(str(tmp_path / "model"), [str(path)], None, None, None, None, 3)
    given = {row["row"]["context"]: row["given"] for row in facts["tasks"]["write"]["worst"]}
    right = [r | {"aliases": [given[r["context"]]]} for r in rows]
    facts, _ = evaluate_benchmarks(str(tmp_path / "model"), [str(write(path, right))], None, None, None, None, 0)
    assert facts["tasks"]["write"]["scores"]["accuracy"]["value"] == 1 and len(written) == 3


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_other_models_answer_too(kind, tmp_path):
    if kind == "bert":
        encoder_folder(tmp_path / "model", kind)
    else:
        seq2seq_folder(tmp_path / "model", kind)
    path = write(tmp_path / "task.jsonl", ROWS["multiple_choice"])
    facts, _ = evaluate_benchmarks(str(tmp_path / "model"), [str(path)], None, None, 7, None, 7)
    rows = facts["tasks"]["task"]["worst"]
    assert len(rows) == 7 and all(row["loss"] > 0 for row in rows)


def lmkit_eval(*arguments):
    result = CliRunner().invoke(app, ["eval", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def test_the_command_says_all_in_one_object_and_does_it_again(tmp_path):
    llama_folder(tmp_path / "model")
    path, model = write(tmp_path / "task.jsonl", ROWS["multiple_choice"]), str(tmp_path / "model")
    told = json.loads(lmkit_eval(model, "--tasks", f"{path},basics", "--json").stdout)
    assert told["tasks"].keys() == {"task", "opposites", "plurals", "references", "series"}
    printed = lmkit_eval(model, "--tasks", str(path), "--by", "sort", "--worst", "2", "--json").stdout
    told = json.loads(printed)
    by = told["tasks"]["task"]["by"]["sort"]
    both = sum(part["rows"] * part["accuracy"]["value"] for part in by.values()) / 20
    assert both == pytest.approx(told["tasks"]["task"]["scores"]["accuracy"]["value"]) and by.keys() == {"a", "b"}
    assert told["settings"]["tasks"] == [str(path)] and told["settings"]["worst"] == 2
    (tmp_path / "scores.json").write_text(printed)
    again = lmkit_eval("--again", str(tmp_path / "scores.json"))
    assert "all is as in" in again.stderr and "sort=a" in again.stdout
    write(path, ROWS["multiple_choice"][:-1])
    assert "tasks.task.rows: 20 → 19" in lmkit_eval("--again", str(tmp_path / "scores.json")).stderr
    with pytest.raises(UserError, match="--by colour: no row has it"):
        lmkit_eval(model, "--tasks", str(path), "--by", "colour")
    with pytest.raises(UserError, match="--shots: is for --tasks"):
        lmkit_eval(model, "--data", str(path), "--shots", "1")
    (tmp_path / "scores.json").write_text("[]")
    with pytest.raises(UserError, match="holds no scores"):
        lmkit_eval("--again", str(tmp_path / "scores.json"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "a", "choices": ["b", "c"], "gold": 2}, "rows.jsonl:2: gold 2 is not the number"),
        ({"query": "a"}, "rows.jsonl:2: a row of none of these forms"),
        ({"context": "a", "continuation": "b"}, "rows.jsonl:2: cloze in a file of multiple_choice"),
        (["a"], "rows.jsonl:2: not a JSON object"),
    ],
)
def test_rows_of_no_form_are_named(row, said, tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROWS["multiple_choice"][0], row])
    with pytest.raises(DataError, match=said):
        read_core(path)


def test_a_bundle_says_shots_and_chances(tmp_path):
    (tmp_path / "eval_data").mkdir()
    write(tmp_path / "eval_data/one.jsonl", ROWS["schema"])
    (tmp_path / "core.yaml").write_text(
        "icl_tasks:\n- {label: one, dataset_uri: one.jsonl, num_fewshot: [1], icl_task_type: schema,"
        ' continuation_delimiter: "\\nAnswer: "}\n'
    )
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\none,40\n")
    llama_folder(tmp_path / "model", context=96)
    facts, table = evaluate_benchmarks(str(tmp_path / "model"), [str(tmp_path)], None, None, None, None, 0)
    task = facts["tasks"]["one"]
    assert (task["shots"], task["baseline"], task["delimiter"]) == (1, 0.4, "\nAnswer: ") and "0.4000" in table
