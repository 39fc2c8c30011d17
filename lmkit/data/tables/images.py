"""Images with labels: the idx files of MNIST and its kin, and CIFAR-10's binary files."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.base.errors import DataError
from lmkit.data.inputs import PACKED, Input
from lmkit.data.lines import read_bytes

PlacedRecord = tuple[str, dict[str, Any]]
IMAGES = re.compile(r"(?:^|/)(?:(?P<idx>[^/]*images[-.]idx\d-ubyte)|(?P<cifar>(?:data_batch_\d+|test_batch)\.bin))$")
PIXELS = 32 * 32 * 3


def image_files(folder: str) -> list[str]:
    """Returns the files of training images in a folder. Raises DataError when it has only other images."""
    if not os.path.isdir(folder):
        return []
    names = sorted(n for n in os.listdir(folder) if IMAGES.search(n.removesuffix(Input(n).packing)))
    train = [name for name in names if "train" in name or name.startswith("data_batch")]
    if names and not train:
        raise DataError(
            f"{folder} holds no training images, but {', '.join(names)}\n"
            f"  → to read those, name the file: {os.path.join(folder, names[0])}"
        )
    return [os.path.join(folder, name) for name in train]


def _idx(item: Input, dimensions: str) -> np.ndarray:
    """Returns the array in an idx file: two zeros, 8 for bytes, how many dimensions, each as four bytes, the values.

    Raises DataError when it is anything else, or shorter or longer than it says."""
    content = b"".join(read_bytes(item))
    sizes = content[4 : 4 + 4 * content[3]] if len(content) > 3 else b""
    shape = tuple(int(n) for n in np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4"))
    values = np.frombuffer(content, np.uint8)[4 + 4 * len(shape) :]
    if content[:3] != b"\0\0\x08" or str(len(shape)) not in dimensions or len(values) != math.prod(shape):
        raise DataError(
            f"{item.name}: not an idx file of bytes, or damaged (dimensions {shape}, {len(values):,} values)\n"
            f"  allowed: {' or '.join(dimensions)} dimensions of unsigned bytes\n  → is the file complete?"
        )
    return values.reshape(shape)


def _labels_beside(item: Input) -> Input | None:
    """Returns the file of labels, whose name has `labels` for `images` and idx1, with a point or a hyphen, packed or
    not."""
    folder, _, name = item.name.removesuffix(item.packing).rpartition("images")
    for separator in dict.fromkeys((name[0], "-", ".")):
        for packing in dict.fromkeys((item.packing, "", *PACKED)):
            path = f"{folder}labels{separator}idx1-ubyte{packing}"
            if os.path.isfile(path):
                labels = Input(path)
                labels.look()
                return labels
    return None


def idx_records(item: Input, labelled: bool) -> Iterator[PlacedRecord]:
    """Yields images of (height, width) or (height, width, channels), and labels as text. Raises DataError without the
    labels."""
    images = _idx(item, "34")
    beside = _labels_beside(item)
    if not beside and labelled:
        expected = item.name.replace("images", "labels").replace("idx3", "idx1")
        raise DataError(f"{item.name}: the file of its labels is missing\n  → put it there: {expected}")
    labels = _idx(beside, "1") if beside else None
    if beside and labels is not None and len(labels) != len(images):
        raise DataError(
            f"images and labels are not as many:\n  {len(images):>11,} images in {item.name}\n"
            f"  {len(labels):>11,} labels in {beside.name}\n  → take two files that belong together"
        )
    for row, image in enumerate(images):
        yield f"{item.name}:{row + 1}", {"image": image} | ({} if labels is None else {"label": str(labels[row])})


def cifar_records(item: Input) -> Iterator[PlacedRecord]:
    """Yields images of (32, 32, 3). Labels go by the names in batches.meta.txt beside the file, else as numbers.

    Raises DataError when the file is not made of whole images."""
    content = np.frombuffer(b"".join(read_bytes(item)), np.uint8)
    if not len(content) or len(content) % (1 + PIXELS):
        raise DataError(
            f"{item.name}: {len(content):,} bytes are not whole images of CIFAR-10\n"
            f"  allowed: {1 + PIXELS:,} bytes an image: its label, then 32x32 of red, green and blue\n"
            "  → is the file complete?"
        )
    rows = content.reshape(-1, 1 + PIXELS)
    meta = Path(item.name).with_name("batches.meta.txt")
    names = meta.read_text().split() if meta.is_file() else []
    for number, row in enumerate(rows, 1):
        label = int(row[0])
        image = np.ascontiguousarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
        yield f"{item.name}:{number}", {"image": image, "label": names[label] if label < len(names) else str(label)}
