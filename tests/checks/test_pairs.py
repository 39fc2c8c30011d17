"""Preferences in pairs of sentences, against transformers: whole sentences of decoders, and of encoders the tokens that
both sentences have, each masked alone (the program of Nangia et al. 2020)."""

import csv
import difflib
import json

import pytest
import torch
import transformers as hf
from typer.testing import CliRunner

from lmkit.commands import main  # noqa: F401 - it adds the commands
from lmkit.commands.app import app
from tests.generation.folders import encoder_folder, llama_folder

PAIRS = [
    ("the quick fox jumps over the lazy dog.", "the lazy dog jumps over the quick fox.", "animal"),
    ("the brown dogs!", "the lazy dogs!", "colour"),
    ("a fox (the dog) jumps", "a dog (the dog) jumps", "animal"),
    ("jumping over a fox", "jumping over the brown fox", "animal"),
    ("a quick fox a fox jumps", "quick fox jumps", "which fox"),  # [SEP] after it makes the second one the shared one
    ("the fox", "the fox", "same"),
    ("the dog " * 60, "the fox " * 60, "long"),
]


def _decoder_gap(model, words, pair):
    totals = []
    for text in pair:
        ids = torch.tensor([[0, *words(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            totals.append(-float(model(ids, labels=ids).loss) * (ids.size(1) - 1))
    return totals[0] - totals[1]


def _encoder_gap(model, words, pair):
    ids = [words(text)["input_ids"] for text in pair]
    matcher = difflib.SequenceMatcher(None, *[list(map(str, side)) for side in ids])
    same = [op for op in matcher.get_opcodes() if op[0] == "equal"]
    totals = []
    for side, begin, end in ((ids[0], 1, 2), (ids[1], 3, 4)):
        places = [i for op in same for i in range(op[begin], op[end])][1:-1]
        rows = torch.tensor([side] * len(places))
        rows[range(len(places)), places] = words.mask_token_id
        with torch.no_grad():
            scores = model(rows).logits.log_softmax(-1)
        totals.append(sum(float(scores[row, place, side[place]]) for row, place in enumerate(places)))
    return totals[0] - totals[1]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_preferences_are_those_of_transformers(tmp_path, kind):
    model = llama_folder(tmp_path / "m", context=100) if kind == "llama" else encoder_folder(tmp_path / "m", kind)
    words, gap = hf.AutoTokenizer.from_pretrained(tmp_path / "m"), _decoder_gap if kind == "llama" else _encoder_gap
    with (tmp_path / "pairs.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["", "sent_more", "sent_less", "stereo_antistereo", "bias_type"])
        rows.writerows([i, *pair[:2], "stereo", pair[2]] for i, pair in enumerate(PAIRS))
    ran = CliRunner().invoke(app, ["check", str(tmp_path / "m"), "--pairs", str(tmp_path / "pairs.csv"), "--json"])
    assert ran.exit_code == 0, ran.output
    got = json.loads(ran.stdout.splitlines()[-1])
    gaps = [gap(model, words, pair[:2]) for pair in PAIRS[:5]]
    assert got["counts"] == {"pairs": 6, "ties": 1, "too long or empty": 1}
    wins = [value > 0 for value in gaps]
    assert got["shares"]["animal"]["value"] == pytest.approx((wins[0] + wins[2] + wins[3]) / 3)
    assert got["shares"]["all"]["value"] == pytest.approx((sum(wins) + 0.5) / 6)
    shown = {int(e.split(",")[0].rpartition(":")[2]): float(e.split(", ")[1].split()[0]) for e in got["examples"]}
    assert [shown[line] for line in (2, 3, 4, 5, 6)] == pytest.approx(gaps, abs=0.0011)
