"""Broken recipes through `lmkit pretrain`: exit code 2 at once, the key and its line named, nothing run or written."""

import time

import pytest

GOOD = """\
model: {family: nanochat, depth: 2, context: 64}
tokenizer: {type: bpe, vocab_size: 300}
data: {train: text/*.txt}
optimizer: {lr: 1e-3}
schedule: {name: wsd, warmup: 5 steps}
train: {budget: 100 steps, batch: 640}
"""
T5 = GOOD.replace("nanochat", "t5")
HUGE = "9" * 5000

BROKEN: dict[str, tuple[str | bytes, list[str]]] = {  # the recipe, and what must be said
    "unknown section": (GOOD + "trian: {seed: 1}\n", ["r.yaml:7", "unknown key `trian`", "did you mean"]),
    "unknown key": (GOOD.replace("budget", "buget"), ["r.yaml:6", "`train.buget`", "did you mean `train.budget`?"]),
    "unknown family": (GOOD.replace("nanochat", "nanocat"), ["r.yaml:1", "nanocat", "did you mean `nanochat`?"]),
    "unknown choice": (GOOD.replace("wsd", "wds"), ["r.yaml:5", "`schedule.name` = 'wds'", "did you mean `wsd`?"]),
    "unknown preset": (GOOD.replace("depth: 2", "preset: gpt3"), ["r.yaml:1", "model.preset 'gpt3'"]),
    "text for a number": (GOOD.replace("1e-3", "fast"), ["r.yaml:4", "`optimizer.lr`", "'fast'"]),
    "list for a number": (GOOD.replace("1e-3", "[1]"), ["r.yaml:4", "`optimizer.lr`", "[1]"]),
    "mapping for a number": (GOOD.replace("1e-3", "{a: 1}"), ["r.yaml:4", "`optimizer.lr`"]),
    "infinite rate": (GOOD.replace("1e-3", ".inf"), ["r.yaml:4", "`optimizer.lr`", "finite"]),
    "overflowing rate": (GOOD.replace("1e-3", "1e999"), ["r.yaml:4", "`optimizer.lr`", "finite"]),
    "rate that is none": (GOOD.replace("1e-3", ".nan"), ["r.yaml:4", "`optimizer.lr`"]),
    "negative rate": (GOOD.replace("1e-3", "-1"), ["r.yaml:4", "`optimizer.lr`", "greater than or equal to 0"]),
    "number for a section": (GOOD.replace("{lr: 1e-3}", "3"), ["r.yaml:4", "`optimizer`"]),
    "list for a section": (GOOD.replace("{budget: 100 steps, batch: 640}", "[1]"), ["r.yaml:6", "`train`"]),
    "text for the model": (GOOD.replace("{family: nanochat, depth: 2, context: 64}", "big"), ["r.yaml:1", "`model`"]),
    "fraction of a layer": (GOOD.replace("depth: 2", "depth: 2.5"), ["r.yaml:1", "depth", "2.5"]),
    "no layers": (GOOD.replace("depth: 2", "depth: 0"), ["r.yaml:1", "0"]),
    "negative depth": (GOOD.replace("depth: 2", "depth: -2"), ["r.yaml:1", "depth"]),
    "text for the depth": (GOOD.replace("depth: 2", "depth: deep"), ["r.yaml:1", "depth", "'deep'"]),
    "no heads": (GOOD.replace("depth: 2", "hidden_size: 64, num_layers: 1, num_heads: 0"), ["r.yaml:1", "num_heads"]),
    "no sizes": (GOOD.replace("depth: 2, ", ""), ["r.yaml:1", "depth"]),
    "heads do not divide": (
        GOOD.replace("depth: 2", "hidden_size: 100, num_layers: 1, num_heads: 3"),
        ["r.yaml:1", "model.hidden_size 100", "model.num_heads 3", "nearest: [2, 5]"],
    ),
    "context of one": (GOOD.replace("context: 64", "context: 1"), ["r.yaml:1", "context"]),
    "key of another family": (
        GOOD.replace("context: 64", "context: 64, sliding_window: 8"), ["r.yaml:1", "sliding_window 8", "nanochat"]
    ),
    "task of another family": (GOOD + "task: masked_lm\n", ["task masked_lm does not fit model.family nanochat"]),
    "pairs without targets": (GOOD.replace("nanochat", "transformer"), ["data.target is missing"]),
    "no data": (GOOD.replace("data: {train: text/*.txt}", ""), ["missing key `data`"]),
    "no training files": (GOOD.replace("{train: text/*.txt}", "{text: body}"), ["r.yaml:3", "`data.train`"]),
    "data without a value": (GOOD.replace("{train: text/*.txt}", ""), ["r.yaml:3", "`data`"]),
    "budget of nothing": (GOOD.replace("100 steps", "0 steps"), ["r.yaml:6", "nothing would be trained"]),
    "budget in parsecs": (GOOD.replace("100 steps", "100 parsecs"), ["r.yaml:6", "`parsec` is unknown"]),
    "infinite budget": (GOOD.replace("100 steps", "1e999 steps"), ["r.yaml:6", "`train.budget`"]),
    "batch of no whole rows": (GOOD.replace("640", "650"), ["train.batch 650", "model.context 64", "nearest: 640"]),
    "more averaged than kept": (
        GOOD + "checkpoint: {keep: 2, average: 3}\n",
        ["checkpoint.average 3", "checkpoint.keep"],
    ),
    "vocabulary below the bytes": (GOOD.replace("300", "3"), ["r.yaml:2", "`tokenizer.vocab_size`", "260"]),
    "key twice": (GOOD + "data: {train: b}\n", ["r.yaml:7", "key `data` stands twice"]),
    "key twice in a section": (GOOD.replace("{lr: 1e-3}", "{lr: 1e-3, lr: 1}"), ["r.yaml:4", "`lr` stands twice"]),
    "tab": (GOOD.replace("{lr: 1e-3}", "\n\tlr: 1"), ["r.yaml:5", "tabs"]),
    "open bracket": (GOOD.replace("640}", "640"), ["r.yaml:", "not a valid recipe"]),
    "open quote": (GOOD.replace("text/*.txt", '"text'), ["r.yaml:", "not a valid recipe"]),
    "key that is a list": (GOOD + "? [a, b]\n: 1\n", ["r.yaml:7", "not a valid recipe"]),
    "key that is a mapping": (GOOD + "{a: 1}: 1\n", ["r.yaml:7", "not a valid recipe"]),
    "key that is a number": (GOOD + "7: 1\n", ["r.yaml:7", "a key is a name, not `7`"]),
    "key that is nothing": (GOOD + "~: 1\n", ["r.yaml:7", "a key is a name"]),
    "alias": ("a: &a [1]\nb: *a\n", ["r.yaml:2", "aliases"]),
    "bomb of aliases": (
        "a: &a [x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        ["r.yaml:2", "aliases"],
    ),
    "merge key": ("a: &a {b: 1}\nc:\n  <<: *a\n", ["r.yaml:3", "aliases"]),
    "list": ("- 1\n", ["this is a list"]),
    "text": ("just words\n", ["this is a str"]),
    "empty": ("", ["this is empty"]),
    "only a comment": ("# nothing\n", ["this is empty"]),
    "two documents": (GOOD + "---\n" + GOOD, ["not a valid recipe"]),
    "nested without end": (GOOD + "x: " + "[" * 20_000, ["not a valid recipe"]),
    "number without end": (GOOD.replace("1e-3", HUGE), ["r.yaml", "not a valid recipe"]),
    "not UTF-8": (GOOD.encode() + b"# \xff\n", ["not UTF-8 text"]),
    "UTF-16": (GOOD.encode("utf-16"), ["not UTF-8 text"]),
    "NUL": (GOOD.encode() + b"\0", ["not a valid recipe"]),
    "too large": (b"# " + b"x" * 1_000_001, ["too large for a recipe"]),
    "base without a file": ("base: nowhere.yaml\n", ["nowhere.yaml", "no such recipe"]),
    "base that is itself": ("base: r.yaml\n", ["circle"]),
    "base that is a list": ("base: [a]\n" + GOOD, ["r.yaml:1", "base"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_recipes_end_at_once_with_the_key_and_its_line(name, tmp_path, monkeypatch, lmkit_):
    text, says = BROKEN[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.process_time()  # which busy neighbours do not lengthen
    shown = lmkit_("pretrain", "r.yaml", "--out", "run")
    assert time.process_time() - began < 2
    assert shown.code == 2 and not shown.out, shown
    assert all(part in shown.err for part in says), shown.err
    assert len(shown.err) < 5000 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch MARK']",
        "!!python/object/new:subprocess.Popen [['touch', 'MARK']]",
        "!!python/name:os.system",
        "!!python/module:antigravity",
        "!!binary aGk=",
        "!own {a: 1}",
    ],
)
def test_tags_are_refused_and_run_nothing(value, tmp_path, monkeypatch, lmkit_):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(GOOD + f"x: {value}\n")
    shown = lmkit_("pretrain", "r.yaml", "--out", "run")
    assert shown.code == 2 and "r.yaml:7" in shown.err and "tags (" in shown.err
    shown = lmkit_("pretrain", "r.yaml", f"train.seed={value}")
    assert shown.code == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["r.yaml"]


TASK = "task: classify\nmodel: {family: bert, hidden_size: 8, num_layers: 1, num_heads: 2}\ndata: {train: x.csv}\n"


@pytest.mark.parametrize(
    ("old", "new", "problems"),
    [
        ("num_heads", "num_heds", ["unknown key `model.num_heds`", "num_heads missing"]),
        ("size: 8", "size: -8", ["`model.hidden_size`: -8 is not a quantity"]),
        ("x.csv", "[x.csv, 1]", ["`data.train`: input should be a valid string (got 1)"]),
        ("x.csv", "3", ["`data.train`: input should be a valid string or a valid list (got 3)"]),
        ("x.csv", "x.csv, validation: -1", ["`data.validation`: -1 is not a quantity"]),
        ("classify", "{name: classify, threshold: []}", ["`task.threshold`: input should be a valid number or a"]),
    ],
)
def test_of_a_union_only_the_member_that_was_meant_is_told(old, new, problems, tmp_path, monkeypatch, lmkit_):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(TASK.replace(old, new))
    shown = lmkit_("finetune", "r.yaml")
    assert shown.code == 2 and f"{len(problems)} problem" in shown.err, shown.err
    assert all(problem in shown.err for problem in problems), shown.err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.lr", "not key=value"),
        ("=3", "not key=value"),
        ("train.buget=3", "did you mean `train.budget`?"),
        ("modle.depth=3", "unknown key `modle`"),
        ("train.seed=", "`train.seed`"),
        ("train.seed=a=b", "`train.seed`"),
        ("train.seed='", "not a valid recipe"),
        ("train.seed=[1", "not a valid recipe"),
        ("train.seed.x=1", "train.seed"),
        ("train..seed=1", "train."),
        ("optimizer.lr.scale=1", "not a section"),
        ("model.depth=2 layers", "depth"),
    ],
)
def test_overrides_that_say_nothing(override, says, tmp_path, monkeypatch, lmkit_):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(GOOD)
    shown = lmkit_("pretrain", "r.yaml", override)
    assert shown.code == 2 and says in shown.err, shown.err
