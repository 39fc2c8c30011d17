"""A tiny model learns conversations through the real commands; lmkit and transformers then hear the same answers."""

import builtins
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import lmkit
from lmkit.base.errors import DataError, ModelError, UserError
from lmkit.commands.main import app
from lmkit.data.inputs import Problems
from lmkit.data.tables.table import Table
from lmkit.generation.sampling import SamplingConfig
from lmkit.model.resize import resize_vocabulary
from lmkit.model.transformer import Transformer
from lmkit.objectives.causal_lm import PromptedLM
from lmkit.ops import conversation as talking
from lmkit.tasks.chat import ChatLearner
from lmkit.text.chat import Chat, find_template
from lmkit.training import finetuning_run
from tests.generation.folders import llama_folder
from tests.model.families import ours, reference

QUESTIONS = ["Who are you?", "Name a fox.", "2+2?", "Größe?", "Say it.", "Over the dog", "Quick!", "日本語?"]
ANSWERS = ["A model.", "Brown.", "Four", "naïve 🙂", "it\n it", "jumps", "the lazy dog.", "Yes: 日本"]
TALKS = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}]
         for q, a in zip(QUESTIONS, ANSWERS, strict=True)]  # fmt: skip
TALKS[0] += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Quite."}]
FAST = ("optimizer.lr=0.01", "schedule.name=linear", "train.budget=140 steps", "evaluate.every=50%", "train.clip=1")


def lmkit_(*args: str, stdin: str = "") -> str:
    got = CliRunner().invoke(app, list(args), input=stdin)
    if got.exception is not None and not isinstance(got.exception, SystemExit):
        raise got.exception
    assert got.exit_code == 0, got.output
    return got.stdout


def table(talks: list) -> Table:
    return Table([{"messages": t} for t in talks], [f"t:{i}" for i in range(len(talks))], {}, "jsonl", Problems())


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A folder with `base`, `talks.jsonl` and the run of eight conversations learnt by heart."""
    folder = tmp_path_factory.mktemp("chat")
    llama_folder(folder / "base", context=96)
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": t}) + "\n" for t in TALKS))
    data = str(folder / "talks.jsonl")
    lmkit_("finetune", "--task", "chat", "--model", str(folder / "base"), "--data", data, "--validation", data,
           "--out", str(folder / "run"), *FAST)  # fmt: skip
    return folder


def test_it_learns_to_answer_and_stops_as_in_transformers(taught, capsys):
    run = taught / "run"
    scores = json.loads((run / "scores.json").read_text())["scores"]
    assert scores["loss"]["value"] < 0.05 and scores["accuracy"]["value"] == 1.0
    samples = json.loads((run / "scores.json").read_text())["samples"]
    assert [row["answer"] for row in samples] == [row["gold"] for row in samples] == ANSWERS[1:6]
    assert "Answers to held-out prompts" in Path(lmkit_("report", str(run)).strip()).read_text()
    (taught / "prompts.txt").write_text("\n".join(QUESTIONS), encoding="utf-8")
    lines = lmkit_("generate", str(run), "--chat", "-t", "0", "--json", "--file", str(taught / "prompts.txt"))
    said = [json.loads(line) for line in lines.splitlines()]
    assert [row["messages"][-1]["content"] for row in said] == ANSWERS and {r["finish"] for r in said} == {"stop"}

    folder = run / "best"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.generation_config.eos_token_id == [words.convert_tokens_to_ids("<|im_end|>"), words.eos_token_id]
    for talk, row in zip(TALKS, said, strict=True):
        ids = words.apply_chat_template(talk[:1], add_generation_prompt=True, return_tensors="pt")["input_ids"]
        written = theirs.generate(ids, do_sample=False, max_new_tokens=40)[0, ids.shape[1] :].tolist()
        assert written == row["ids"] and words.decode(written, skip_special_tokens=True) == talk[1]["content"]

    best = json.loads((run / "status.json").read_text())["best"]  # the lowest loss, not the highest
    evaluated = [row["val_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()
                 if "val_loss" in (row := json.loads(line))]  # fmt: skip
    assert best["val_loss"] == min(evaluated)
    assert finetuning_run.resume(run) == 0
    assert "control tokens added: <|im_start|> (292), <|im_end|> (293)" in (err := capsys.readouterr().err)
    assert "grows from 292 to 320 rows" in err and "»A model.<|im_end|>«" in err and "»naïve 🙂<|im_end|>«" in err


def test_pipes_options_and_a_conversation(taught, monkeypatch, capsys):
    run = str(taught / "run")
    assert lmkit_("generate", run, "--chat", "-t", "0", stdin="2+2?\n") == "Four\n"
    assert lmkit_("generate", run, "2+2?", "--chat", "-t", "0", "-n", "2", "--stream") == "Four\n---\nFour\n"
    two = lmkit_("generate", run, "2+2?", "--chat", "-t", "0", "--system", "Be kind.", "--json", "--max-tokens", "1")
    row = json.loads(two)
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"] and row["finish"] == "length"
    assert lmkit_("chat", run, "2+2?", "-t", "0") == lmkit_("generate", run, "2+2?", "--chat", "-t", "0") == "Four\n"
    notes = CliRunner().invoke(app, ["generate", run, "2+2?", "--chat", "-t", "0"]).stderr
    assert notes.startswith("generate --chat is the command `lmkit chat` now\n")

    lines = iter(["Who are you?", "Sure?", "/reset", "2+2?", "x" * 200, "2+2?", "2+2?", "2+2?", ""])
    monkeypatch.setattr(builtins, "input", lambda prompt="": next(lines))
    capsys.readouterr()
    talking.converse(run, None, None, SamplingConfig(temperature=0, max_tokens=24), 1, False, True, False)
    got = capsys.readouterr()
    assert got.out.splitlines()[:3] == ["A model.", "Quite.", "Four"]
    assert "model's context of 96" in got.err  # of the long message, which does not end the conversation
    assert "oldest 1 turns are forgotten" in got.err and next(lines, None) is None
    with pytest.raises(UserError, match="lmkit finetune --task chat"):
        talking.converse(str(taught / "base"), ["Hi"], None, SamplingConfig(), 1, False, False, False)


@pytest.fixture(scope="module")
def learner(taught) -> ChatLearner:
    loaded = lmkit.load(taught / "run")
    words = loaded.needs_tokenizer()
    return ChatLearner(Chat(words, find_template([loaded.folder], "auto", words)), 96)


def states(model: Transformer, learner: ChatLearner, rows: list[dict]) -> torch.Tensor:
    batch = learner.objective.collate(rows)
    return model(batch.tokens, None, batch.segments, batch.positions)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_window", "nanochat"])
def test_packed_conversations_cost_what_they_cost_alone(name, learner):
    config = ours(reference(name)).config
    model = Transformer(config.model_copy(update={"vocab_size": 320, "context": 96})).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    packed = learner.examples(table(TALKS))
    assert len(packed) > 1 and max(len(e["documents"]) for e in packed) > 1  # several rows, several in a row
    alone, one = [learner.examples(table([t]))[0] for t in TALKS], PromptedLM(0)
    apart = [float(one.loss(model, one.collate([e])).nats["tokens"]) for e in alone]
    together = learner.objective.loss(model, learner.objective.collate(packed))
    assert float(together.nats["tokens"]) == pytest.approx(sum(apart), rel=1e-5)
    out = learner.outputs(model, table(TALKS), packed)
    np.testing.assert_allclose([o.nats for o in out], apart, rtol=1e-5)
    # each answer and each end are learnt, once
    assert [o.tokens for o in out] == [sum(learner.chat.encode(t)[0].learnt) for t in TALKS]

    changed = [e | {"tokens": np.where(e["segments"] == 0, 5, e["tokens"])} for e in packed]
    before, after = (states(model, learner, rows) for rows in (packed, changed))
    others = torch.from_numpy(np.stack([e["segments"] for e in packed])) > 0  # neighbours see nothing of it
    assert torch.equal(before[others], after[others]) and not torch.equal(before, after)


def test_cuts_and_losses_are_said(learner, capsys):
    short = ChatLearner(learner.chat, 41)
    long = [{"role": "user", "content": "fox " * 60}, {"role": "assistant", "content": "dog"}]
    rows = short.examples(table([*TALKS, long, [TALKS[2][0], {"role": "assistant", "content": "so " * 60}]]))
    err = capsys.readouterr().err
    assert "left out: 1 of 10 conversations (10.0%)" in err and "cut: 2 of 10 conversations (20.0%)" in err
    assert {d for e in rows for d in e["documents"]} == {*range(8), 9} and all(len(e["tokens"]) == 41 for e in rows)
    short.examples(table([*TALKS, long, [TALKS[2][0], {"role": "assistant", "content": "so " * 60}]]))
    assert capsys.readouterr().err == ""  # once
    with pytest.raises(DataError, match="no conversation is left"):
        short.examples(table([long]))
    assert short.examples(table([])) == []


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "nanochat", "bart"])
def test_a_larger_vocabulary_keeps_every_old_row(name):
    model = ours(reference(name))
    grown, ids = resize_vocabulary(model, 128, 90, 103), torch.randint(0, 90, (2, 9))
    read = (lambda m: m(ids)) if name != "bart" else (lambda m: m(ids, targets=ids))
    with torch.no_grad():
        old, new = model.head(read(model)), grown.head(read(grown))
    assert torch.equal(model.embedding.weight[:90], grown.embedding.weight[:90])
    torch.testing.assert_close(new[..., :90], old[..., :90], atol=0, rtol=0)
    for row in (90, 102, 127):
        torch.testing.assert_close(grown.embedding.weight[row], model.embedding.weight[:90].mean(0))
        torch.testing.assert_close(grown.head.weight[row], model.head.weight[:90].mean(0))
    assert (grown.head.weight is grown.embedding.weight) == model.config.tied
    assert resize_vocabulary(model, 101, 101, 101) is model


def test_what_cannot_chat_says_so(taught, tmp_path, capsys):
    shutil.copytree(taught / "run" / "best", tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    shutil.rmtree(tmp_path / "base" / "training")  # which would call the copy damaged
    for folder, told in ((tmp_path / "base", True), (taught / "run", False)):
        talking.Speaker(str(folder), lmkit.load(folder), SamplingConfig(), False, False)
        assert (f"--task chat --model {folder}" in capsys.readouterr().err) is told
    data = ("--data", str(taught / "talks.jsonl"), "--task", "chat", "--out", str(tmp_path / "run"))
    with pytest.raises(ModelError, match="bert is an encoder"):
        lmkit_("finetune", "model={family: bert, hidden_size: 32, num_layers: 1, num_heads: 2}", *data)
    with pytest.raises(UserError, match="lora leaves embeddings"):
        lmkit_("finetune", "lora={rank: 2}", "--model", str(taught / "base"), *data)


def test_held_out_conversations_that_a_template_refuses_end_no_run(taught, tmp_path):
    """Their template wants turns to alternate: what is learnt does, what is held out does not."""
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    )
    strict += "{% endif %}{{ '<|im_start|>' + m.role + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
    (tmp_path / "strict.jinja").write_text(strict)
    twice = [[{"role": "user", "content": "again"}, *talk] for talk in TALKS[:2]]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps({"messages": t}) + "\n" for t in twice))
    got = CliRunner().invoke(app, [
           "finetune", "--task", "chat", "--model", str(taught / "base"), "--data", str(taught / "talks.jsonl"),
           "--validation", str(tmp_path / "twice.jsonl"), "--out", str(tmp_path / "run"), "train.budget=2 steps",
           f"task.template={tmp_path / 'strict.jinja'}"])  # fmt: skip
    assert got.exit_code == 0 and "nothing is held out: no conversation is left of 2" in got.stderr
    assert "alternate" in got.stderr
    assert lmkit.load(tmp_path / "run").config.family == "llama"


def test_files_of_conversations_are_answered_in_their_order(taught, tmp_path):
    """An answer that the file has already stands beside the new one; a conversation that cannot be read leaves the
    others alone."""
    asked = [TALKS[1][:1], TALKS[0], [{"role": "user", "content": "long " * 200}], TALKS[5][:1]]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"messages": t}) + "\n" for t in asked))
    command = ("chat", str(taught / "run"), "--data", str(tmp_path / "asked.jsonl"), "-t", "0", "--max-tokens", "24")
    lines = [json.loads(line) for line in lmkit_(*command).splitlines()]
    assert [line["place"].rpartition(":")[2] for line in lines] == ["1", "2", "3", "4"]
    assert "context" in lines[2]["error"] and lines[1]["gold"] == "Quite."
    for line, talk in zip(lines, (TALKS[1], TALKS[0], None, TALKS[5]), strict=True):
        if talk:
            assert [m["content"] for m in line["messages"]] == [m["content"] for m in talk]
    with pytest.raises(UserError, match="--data holds whole conversations"):
        lmkit_(*command, "Hello")


def test_a_long_conversation_ends_with_a_whole_turn(learner):
    """Not in the middle of an answer, unless that is the first."""
    task = ChatLearner(learner.chat, 64)
    talk = [{"role": role, "content": f"{word} {word}"} for word in ("alpha", "beta", "gamma", "delta", "epsilon")
            for role in ("user", "assistant")]  # fmt: skip
    (encoded,) = task.chat.encode(talk)
    ends = [i + 1 for i in range(len(encoded.ids)) if encoded.learnt[i] and not any(encoded.learnt[i + 1 : i + 2])]
    task.max_length = ends[2] + 3
    (row,) = task.examples(table([talk]))
    assert len(row["tokens"]) == ends[2] and row["tokens"].tolist() == encoded.ids[: ends[2]]
    task.max_length = ends[0] - 2
    (row,) = task.examples(table([talk]))
    assert len(row["tokens"]) == ends[0] - 2


def test_the_system_can_be_folded_into_the_first_turn(taught, tmp_path):
    """For a template that refuses a system message, in training and in answers."""
    template = tmp_path / "plain.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    talks = [[{"role": "system", "content": "Be brief."}, *talk] for talk in TALKS]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": t}) + "\n" for t in talks))
    data = str(tmp_path / "talks.jsonl")
    command = ("finetune", "--task", "chat", "--model", str(taught / "base"), "--data", data, "--validation", data,
               f"task.template={template}", *FAST)  # fmt: skip
    with pytest.raises(DataError, match="no system here"):
        lmkit_(*command, "train.budget=1 step", "--out", str(tmp_path / "refused"))
    lmkit_(*command, "task.fold_system=true", "train.budget=2 steps", "--out", str(tmp_path / "run"))
    shown = lmkit_("chat", str(tmp_path / "run"), "Who?", "--system", "Be brief.", "--json", "--max-tokens", "2")
    assert json.loads(shown)["messages"][0] == {"role": "user", "content": "Be brief.\n\nWho?"}
