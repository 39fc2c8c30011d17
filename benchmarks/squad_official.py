"""EM and F1 beside SQuAD's own script, on the same predictions.

    lmkit predict RUN --data dev.json --out predictions.jsonl
    python benchmarks/squad_official.py evaluate-v2.0.py dev.json predictions.jsonl

The script is Rajpurkar et al.'s, and not part of lmkit. After the predictions, invented ones are compared: answers with
words dropped, doubled, capitalised and punctuated.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from lmkit.evaluation.answers import score_answers

OTHERS = ["", "the", "a an the", "Über—x", "U.S.", "...", "  "]


def official(script: str, data: str, predictions: dict[str, str]) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(predictions, file)
        file.flush()
        said = subprocess.run([sys.executable, script, data, file.name], capture_output=True, text=True, check=True)
    return json.loads(said.stdout)


def ours(golds: dict[str, list[str]], predictions: dict[str, str]) -> dict[str, float]:
    found = score_answers([golds[i] for i in predictions], list(predictions.values()), False)
    names = {"exact_match": "exact", "f1": "f1", "has_answer_exact_match": "HasAns_exact",
             "has_answer_f1": "HasAns_f1", "no_answer_accuracy": "NoAns_exact"}  # fmt: skip
    return {names[k]: 100 * estimate.value for k, estimate in found.items()}


def invented(golds: list[str], rng: random.Random) -> str:
    words = rng.choice([*golds, *OTHERS, "other words"]).split()
    changed = [rng.choice([w, w.upper(), f"{w},", f"the {w}", "", f"{w} {w}"]) for w in words]
    return rng.choice([" ", "  ", " a "]).join(changed)


def main() -> None:
    script, data, file = sys.argv[1:]
    questions = [q for a in json.loads(Path(data).read_text())["data"] for p in a["paragraphs"] for q in p["qas"]]
    golds = {q["id"]: [a["text"] for a in q["answers"]] for q in questions}
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    rng = random.Random(0)
    tries = [{r["place"].rpartition(":")[2]: r["answer"] for r in rows}]
    tries += [{i: invented(texts, rng) for i, texts in golds.items()} for _ in range(20)]
    for n, predictions in enumerate(tries):
        mine, theirs = ours(golds, predictions), official(script, data, predictions)
        assert mine, "nothing was scored"
        gap = max(abs(mine[k] - theirs[k]) for k in mine)
        assert gap < 1e-9, (mine, theirs)
        if not n:
            print(", ".join(f"{k} {v:.4f} (official {theirs[k]:.4f})" for k, v in mine.items()))
    print(f"equal on {len(rows):,} predictions and on {(len(tries) - 1) * len(golds):,} invented ones")


if __name__ == "__main__":
    main()
