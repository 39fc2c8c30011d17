"""The installed command, as a user types it: raw text -> tokens -> model -> text and scores. One tiny run is shared."""

import json
import math
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

import lmkit
from lmkit.recipe.recipe_file import recipes_folder
from tests.command import lmkit as typed
from tests.model.families import CASES

COMMANDS = ["tokenize", "pretrain", "generate", "eval", "runs", "recipes"]
FAMILIES = ["gpt2", "llama", "nanochat"]


def shell(command: str, cwd: Path, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess:
    args = [sys.executable, "-m", *shlex.split(command)]
    got = subprocess.run(args, cwd=cwd, input=stdin, capture_output=True, text=True)
    assert got.returncode == code, f"{command}\n{got.stdout}\n{got.stderr}"
    assert "Traceback" not in got.stderr
    return got


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Iterator[Path]:
    """A folder with the shipped corpus, a small recipe, and a trained runs/FAMILY for each decoder family."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMKIT_CACHE", str(folder / "cache"))
        _fill(folder)
        yield folder


def _fill(folder: Path) -> None:
    (folder / "recipes").symlink_to(recipes_folder())
    text = (recipes_folder() / "corpus/austen-persuasion.txt").read_text().split("\n\f\n")
    (folder / "text.txt").write_text("\n\f\n".join(part[:1500] for part in text))
    typed("tokenize text.txt --separator '\n\f\n' --out tokens --vocab-size 400 --validation 20%", folder=folder)
    (folder / "small.yaml").write_text(
        "model: {family: nanochat, depth: 1, context: 64}\n"
        "data: {train: tokens}\n"
        "train: {budget: 6 steps, batch: 512}\n"
        "evaluate: {sample_tokens: 5, every: 3}\n"
    )
    for family in FAMILIES:
        typed(f"pretrain small.yaml model.family={family} --out runs/{family}", folder=folder)
    (folder / "runs/demo").symlink_to("nanochat")


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_a_run_and_agrees(work, family):
    folder = work / "runs" / family / "best"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = lmkit.load(work / "runs" / family)
    text = "She had been “forced” into prudence — 1806…\n\n  naïve 東京 🙂 <|bos|></s>"
    plain = "Anne Elliot hoped she had outlived the age of blushing."
    special = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    assert tokenizer(plain)["input_ids"] == special + ours.tokenizer.encode(plain)
    assert ours.tokenizer.decode(ours.tokenizer.encode(text)) == text
    ids = torch.tensor([tokenizer(plain)["input_ids"][:20]])
    with torch.no_grad():
        want = theirs(ids).logits
    assert (ours.logits(ids) - want).abs().max() <= 2e-5
    kept = want.shape[-1]
    assert kept % 64 == 0


def test_greedy_text_equals_transformers(work):
    out = typed("generate runs/llama 'She had' -t 0 --max-tokens 12 --json", folder=work).stdout
    line = json.loads(out)
    folder = work / "runs/llama/best"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("She had", return_tensors="pt")
    want = theirs.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
    assert line["ids"] == want and len(line["logprobs"]) == len(want)


HELP = """
import sys, lmkit.commands.main as main
sys.argv = ["lmkit", "pretrain", "--help"]
try:
    main.main()
except SystemExit:
    print(*(word for name in ("torch", "transformers", "datasets") for word in (name, name in sys.modules)))
"""


def test_every_help_text_is_quick_and_its_example_runs(work):
    for command in ["", *COMMANDS]:
        text = typed(f"{command} --help", folder=work).stdout
        example = re.search(r"Example: (lmkit .*?)\s*\Z", text, re.DOTALL)
        assert example, command
        line = " ".join(example[1].split()).replace("$'\\f'", "'\f'")
        if "*" in line:  # the shell's part
            line = line.replace("recipes/corpus/*.txt", "text.txt")
        typed(line.removeprefix("lmkit "), folder=work)
    best = min(_processor_seconds("lmkit --help", work) for _ in range(3))
    assert best < 1.0  # 0.2 s on this class of machine, however busy; a torch import would cost over 1 s
    shown = subprocess.run([sys.executable, "-c", HELP], cwd=work, capture_output=True, text=True, check=True)
    assert (
        shown.stdout.splitlines()[-1] == "torch False transformers False datasets False"
    )  # of which each costs a second


def _processor_seconds(command: str, cwd: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shell(command, cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_runs_are_listed_for_people_and_machines(work):
    rows = [json.loads(line) for line in typed("runs --json", folder=work).stdout.splitlines()]
    by_name = {row["run"]: row for row in rows}
    assert by_name["runs/llama"]["state"] == "done" and by_name["runs/llama"]["step"] == 6
    assert "llama 1×64" in typed("runs", folder=work).stdout


def test_eval_reports_scores_with_intervals(work):
    line = json.loads(typed("eval runs/gpt2 --data text.txt --separator '\f' --json", folder=work).stdout)
    assert line["documents"] == 24
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert line[name]["low"] < line[name]["value"] < line[name]["high"]


def test_dry_run_says_what_would_happen_and_starts_nothing(work):
    got = typed("pretrain small.yaml --dry-run", folder=work)
    for said in ("parameters", "held out", "6 steps", "memory", "tokens/s", "Nothing was started"):
        assert said in got.stdout
    assert "hidden_size: 64" in typed("pretrain small.yaml --print-recipe", folder=work).stdout
    assert not (work / "runs/small").exists()


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("pretrain smal.yaml", 2, "no such recipe"),
        ("pretrain dmo", 2, "did you mean `demo`?"),
        ("pretrain small.yaml data.train=nowhere.txt", 3, "nowhere.txt"),
        ("pretrain small.yaml train.batch=512000", 3, "fewer than one batch"),
        ("pretrain --resume runs/nothing", 2, "not a run directory"),
        ("generate runs/nothing hello", 4, "no such model or run"),
        ("generate runs/llama hello --temperature -1", 2, "temperature"),
        ("generate runs/llama '" + "word " * 300 + "'", 2, "context of 64"),
        ("eval runs/llama --data missing.txt", 3, "missing.txt"),
        ("tokenize missing.txt --out t", 3, "missing.txt"),
        ("tokenize text.txt --out t --kind bep", 2, "did you mean `bpe`?"),
    ],
)
def test_a_mistake_is_one_message_with_its_exit_code(work, command, code, says):
    assert says in typed(command, code, work).stderr


def test_piped_output_is_plain(work):
    got = shell("lmkit pretrain small.yaml --out runs/plain", work)
    assert "\r" not in got.stdout + got.stderr and "\x1b" not in got.stdout + got.stderr


def test_kill_9_then_resume_equals_the_uninterrupted_run(work):
    """From outside, at whatever moment it happens to be."""
    settings = "train.budget='40 steps' checkpoint.every=5 model.dropout=0.1 evaluate.every=10 model.family=gpt2"
    typed(f"pretrain small.yaml {settings} --out runs/straight", folder=work)
    args = [sys.executable, "-m", *shlex.split(f"lmkit pretrain small.yaml {settings} --out runs/killed")]
    process = subprocess.Popen(args, cwd=work, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = work / "runs/killed/metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 17):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    shell("lmkit pretrain --resume runs/killed", work)
    for name in ("metrics.jsonl", "latest/model.safetensors", "latest/training/optimizer.safetensors"):
        assert (work / "runs/killed" / name).read_bytes() == (work / "runs/straight" / name).read_bytes(), name


# The command that checks a GPU works, on whatever device there is.
GPU_CHECK = Path(__file__).parent.parent.parent / "benchmarks" / "gpu_check.py"
TIMED = ("generation, batch 1", "generation, batch 32", "training speed, toy")
OTHERS = (
    "exact resume, compile off", "fp16 with a loss scaler", "fsdp, one process of torchrun",
    "fsdp and tensor, mesh of one", "out of memory", "compile on and off",
)  # fmt: skip


def test_every_check_has_a_row_and_none_fails(tmp_path):
    command = [sys.executable, str(GPU_CHECK), "--toy", "--out", str(tmp_path / "rows.json")]
    got = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert got.returncode == 0, got.stdout + got.stderr
    rows = {row["check"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert all(row["verdict"] == "ok" or row["verdict"].startswith("skipped: ") for row in rows.values())
    assert all(rows[f"parity {name}"]["verdict"] == "ok" for name in CASES)
    assert {*OTHERS, *TIMED} <= rows.keys()
    assert any("two processes" in name for name in rows) and any("memory beside the plan" in name for name in rows)
    for name in TIMED:
        figures = rows[name]["figures"]
        assert figures["tokens_per_second"] > 1 and 0.01 < figures["ratio"] < 100
    for row in rows.values():
        assert row["check"] in got.stdout and all(math.isfinite(value) for value in row["figures"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
