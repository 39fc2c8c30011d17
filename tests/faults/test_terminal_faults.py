"""Whatever a process is started with: outputs that are closed, full or left by their reader, terminals of any kind, no
home, few file descriptors, odd names, no network. The command is run as a person runs it."""

import json
import os
import pty
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import lmkit
from lmkit.base.errors import DataError
from lmkit.data.hub import hub_records

ABOVE = str(Path(lmkit.__file__).parent.parent)
ROWS = "".join(json.dumps({"text": f"document {i} has a few words"}) + "\n" for i in range(60))
TOKENIZE = "tokenize a.jsonl --out tokens --vocab-size 300"


def environment(**changes: str | None) -> dict[str, str]:
    found = os.environ | {"PYTHONPATH": ABOVE} | changes
    return {name: value for name, value in found.items() if value is not None}


@pytest.fixture
def shell(tmp_path):
    """`shell("recipes | head -1")`: the exit code of lmkit, what was written to either output."""
    (tmp_path / "a.jsonl").write_text(ROWS)

    def run(command: str, setup: str = ":", **changes: str | None) -> tuple[int, str, str]:
        line = f"{setup}; {shlex.quote(sys.executable)} -m lmkit {command}; echo ${{PIPESTATUS[0]}} > code"
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(**changes), capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=600)  # fmt: skip
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert "Traceback" not in err and "Exception ignored" not in err, err
        return int((tmp_path / "code").read_text()), out, err

    return run


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (f"{TOKENIZE} >&-", 0, "training the tokenizer"),
        (f"{TOKENIZE} 2>&-", 0, "nothing was left out"),
        (f"{TOKENIZE} <&- >&- 2>&-", 0, ""),
        (f"{TOKENIZE} 2>/dev/full", 0, "nothing was left out"),
        (f"{TOKENIZE} >/dev/full", 7, "lmkit: standard output: No space left on device"),
        (f"{TOKENIZE} 2>&1 | true", 0, ""),
        ("recipes | head -1", 0, ""),
        ("recipes no-such | true", 2, "no recipe `no-such`"),
        ("tokenize no-such.txt --out tokens 2>&-", 3, ""),
    ],
)
def test_outputs_that_are_closed_full_or_left_change_no_result(command, code, says, shell, tmp_path):
    found, out, err = shell(command)
    assert found == code and says in out + err, (found, out, err)
    if command.startswith("tokenize a.jsonl"):
        manifest = json.loads((tmp_path / "tokens" / "manifest.json").read_text())
        assert [shard["documents"] for shard in manifest["shards"]["train"]] != [0]


def test_what_an_encoding_lacks_is_spelled_out(shell):
    code, out, _ = shell(TOKENIZE, PYTHONIOENCODING="ascii:strict")
    assert code == 0 and "documents " in out and "nothing was left out" in out


def on_terminal(command: str, folder: Path, columns: int = 80, **changes: str | None) -> tuple[int, str]:
    """The exit code and all that was written to a terminal of `columns`."""
    import fcntl
    import struct
    import termios

    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-m", "lmkit", *shlex.split(command)], cwd=folder, stdin=inner,
                               stdout=inner, stderr=inner, env=environment(**changes), close_fds=True)  # fmt: skip
    os.close(inner)
    shown = b""
    while True:
        try:
            block = os.read(outer, 65536)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        shown += block
    os.close(outer)
    return process.wait(timeout=600), shown.decode(errors="replace")


COLOUR = re.compile(r"\x1b\[[\d;]*[1-9]\d*m")


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        ({"TERM": "xterm-256color"}, 20),
        ({"TERM": "xterm-256color"}, 1),
        ({"TERM": "dumb"}, 80),
        ({"TERM": None}, 80),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, 80),
        ({"TERM": "no-such-terminal"}, 0),
    ],
)
def test_terminals_of_any_kind_show_the_same_words(changes, columns, tmp_path):
    (tmp_path / "a.jsonl").write_text(ROWS)
    code, shown = on_terminal(TOKENIZE, tmp_path, columns, COLUMNS=None, LINES=None, **changes)
    assert code == 0 and "Traceback" not in shown
    assert "nothing was left out" in shown and "lmkit pretrain RECIPE" in shown
    if changes["TERM"] in ("dumb", None):
        assert "\x1b" not in shown
    if "NO_COLOR" in changes:
        assert not COLOUR.search(shown.replace("\x1b[1m", ""))


def test_names_and_labels_do_not_steer_a_terminal(tmp_path):
    (tmp_path / "\x1b]0;title\x07.md").write_text("x")
    (tmp_path / "a\x1b[2J.txt").write_bytes(b"\0")
    code, shown = on_terminal("tokenize . --out tokens", tmp_path, TERM="xterm")
    assert code == 3 and "1 binary files" in shown
    assert "\x1b]0" not in shown and "\x1b[2J" not in shown and "\x07" not in shown


# ---------------------------------------------------------------- what surrounds the process


RECIPE = """\
model: {family: nanochat, hidden_size: 16, num_layers: 1, num_heads: 2, context: 16}
tokenizer: {type: bytes}
data: {train: a.jsonl}
train: {budget: 2 steps, batch: 64}
"""


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"HOME": "/proc"}, 7, "LMKIT_CACHE"),  # a home that nothing can be made in, whoever asks
        ({"HOME": "here"}, 7, "there is no home directory for the cache of tokens\n  → set LMKIT_CACHE"),
        ({"LMKIT_CACHE": "a.jsonl"}, 7, "Not a directory"),
        ({"HOME": "/proc", "LMKIT_CACHE": "cache"}, 0, ""),
    ],
)
def test_a_home_without_room_is_named_with_the_way_out(changes, code, says, tmp_path, monkeypatch, lmkit_):
    monkeypatch.chdir(tmp_path)
    for name in ("LMKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "a.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE)
    shown = lmkit_("pretrain", "r.yaml", "--out", "run")
    assert shown.code == code and says in shown.err, shown.err
    assert (tmp_path / "run" / "latest").exists() == (code == 0)


def test_few_file_descriptors_are_enough(tmp_path):
    """A hundred files, of which few are open together."""
    for i in range(100):
        (tmp_path / f"{i}.jsonl").write_text(ROWS)
    done = subprocess.run(
        [sys.executable, "-m", "lmkit", "tokenize", ".", "--out", "tokens", "--kind", "bytes"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)),
    )  # fmt: skip
    assert done.returncode == 0 and "nothing was left out" in done.stdout, done.stderr


NAMES = ["a b", "a\nb", "é日本 🙂", "x" * 240, "--out", "-", "'\"$HOME`", "[1]*?", "~", ".hidden", "a:b", "a=b"]


@pytest.mark.parametrize("name", NAMES)
def test_files_and_folders_of_any_name_are_read_and_written(name, tmp_path, monkeypatch, lmkit_):
    monkeypatch.chdir(tmp_path)
    Path(f"{name}.jsonl").write_text(ROWS)
    shown = lmkit_("tokenize", f"./{name}.jsonl", "--out", f"./{name}", "--kind", "bytes")
    assert shown.code == 0 and "nothing was left out" in shown.out, shown.err
    Path("link").symlink_to(tmp_path / name)
    shown = lmkit_("tokenize", f"./{name}.jsonl", "--out", "link", "--kind", "bytes")
    assert shown.code == 0 and "nothing to do" in shown.err
    shutil.move(name, "moved")  # a store holds no path of its own
    assert lmkit.__name__ and json.loads(Path("moved/manifest.json").read_text())["inputs"][0]["size"] == len(ROWS)


def test_a_path_as_long_as_the_system_allows(tmp_path, monkeypatch, lmkit_):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(ROWS)
    deep = "/".join(["d" * 100] * 30)
    assert lmkit_("tokenize", "a.jsonl", "--out", deep, "--kind", "bytes").code == 0
    beyond = "/".join(["d" * 100] * 60)
    shown = lmkit_("tokenize", "a.jsonl", "--out", beyond, "--kind", "bytes")
    assert shown.code == 7 and "File name too long" in shown.err


# ---------------------------------------------------------------- no network


def test_no_network_is_said_at_once(monkeypatch):
    asked = []

    def lost(host, port, *rest):
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    for name in (
        "HF_HUB_OFFLINE",
        "HF_ENDPOINT",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("lmkit.data.hub.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", lost)
    with pytest.raises(
        DataError, match=r"hub:org/name: huggingface.co cannot be found(.|\n)*name files on this machine"
    ):
        next(hub_records("hub:org/name"))
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hf")
    with pytest.raises(DataError, match=r"mirror\.example cannot be found"):
        next(hub_records("hub:org/name"))
    assert asked == ["huggingface.co", "mirror.example"]


def test_files_of_this_machine_open_no_connection(tmp_path, monkeypatch, lmkit_):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    (tmp_path / "a.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert lmkit_("pretrain", "r.yaml", "--out", "run").code == 0
    assert lmkit_("generate", "run", "a", "--max-tokens", "2").code == 0
    assert lmkit_("eval", "run", "--data", "a.jsonl").code == 0
    shown = lmkit_("generate", "gpt2", "a")  # no name of a hub
    assert shown.code == 4 and "gpt2: no such model or run" in shown.err


# ---------------------------------------------------------------- secrets


def test_no_secret_of_the_environment_is_written_down(tmp_path, monkeypatch, lmkit_):
    monkeypatch.chdir(tmp_path)
    secrets = {
        name: f"secret-{i}-abcdef" for i, name in enumerate(("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"))
    }
    for name, value in secrets.items() | {("LMKIT_CACHE", str(tmp_path / "cache"))}:
        monkeypatch.setenv(name, value)
    (tmp_path / "a.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE)
    shown = lmkit_("pretrain", "r.yaml", "--out", "run")
    assert shown.code == 0
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not [name for name, value in secrets.items() if value.encode() in written or value in shown.err + shown.out]
