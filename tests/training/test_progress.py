"""What is seen of training: a picture on a terminal, plain lines elsewhere, and JSON for programs."""

import json
import os
import pty
import re
import subprocess
import sys

import pyte

from tests.training.stopping import rows


def test_programs_read_rows_from_standard_output(tiny):
    got = subprocess.run([sys.executable, "-m", "lmkit", "pretrain", "tiny.yaml", "--out", "run", "--json"],
                         capture_output=True, text=True)  # fmt: skip
    assert got.returncode == 0 and [json.loads(line) for line in got.stdout.splitlines()] == rows("run")
    assert "done in" in got.stderr and "\r" not in got.stderr and "\x1b" not in got.stderr


def test_a_terminal_shows_one_picture_and_a_line_for_each_evaluation(tiny):
    screen = pyte.HistoryScreen(100, 40, history=1000)
    stream, pictures = pyte.ByteStream(screen), []
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    run = subprocess.Popen(
        [sys.executable, "-m", "lmkit", "pretrain", "tiny.yaml", "--out=run", "evaluate.every=2%", "train.budget=6 s"],
        stdout=follower, stderr=follower, env=environment,
    )  # fmt: skip
    os.close(follower)
    try:
        while data := os.read(leader, 65536):
            stream.feed(data)
            pictures.append("\n".join(line.rstrip() for line in screen.display))
    except OSError:  # what Linux says when the other end is closed
        pass
    assert run.wait() == 0
    fullest = max(pictures, key=lambda p: sum(f"\n  {name}" in p for name in ("loss ", "scores ", "speed ", "sample ")))
    assert re.search(r"\n  loss    \d\.\d{4} [▁▂▃▄▅▆▇█]+ +learning rate", fullest)
    assert re.search(r"tokens/s   memory [\d.]+ .B   time: \d+% steps, \d+% evaluations, \d+% checkpoints", fullest)
    assert re.search(r"\n  scores  best loss \d\.\d+, of step \d+   now \d\.\d+ bits per byte", fullest)
    end = pictures[-1]
    assert "done in" in end and "  speed " not in end and end.count("train ━") == 0
    assert len(re.findall(r"eval step \d+ ", end)) == min(sum("val_loss" in row for row in rows("run")), 30)
