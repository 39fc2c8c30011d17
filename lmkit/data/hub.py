"""Datasets of the hub by name, streamed: hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT (`train` unless said)."""

import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from lmkit.base.errors import DataError


def hub_records(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row, record) in order, with classes by their names. Raises DataError when the network, the hub or a file
    fails."""
    _find_hub(name)
    from datasets import load_dataset

    path, subset, split, *_ = [*name.split(":")[1:], "", ""]
    row = 0
    try:
        dataset = load_dataset(path, subset or None, split=split or "train", streaming=True)
        features = getattr(dataset, "features", None)
        names = class_names(features.to_dict() if features else {})
        rows = iter(dataset)
        while record := next(rows, None):
            row += 1
            yield row, record | {column: named(record.get(column), names[column]) for column in names}
    except Exception as e:  # the network, the hub and every file format may fail here, each with its own error
        raise DataError(
            f"{name} failed at row {row}: {e}\n  → check the network and the name: hub:NAME:CONFIG:SPLIT; "
            "then run the same command again"
        ) from e


def _find_hub(name: str) -> None:
    """Raises DataError at once where there is no network: the library of the hub would try for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE") or getproxies():
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError as e:
        raise DataError(
            f"{name}: {host} cannot be found ({e.strerror or e})\n"
            "  → check the network, or name files on this machine: .jsonl, .csv, .parquet, .txt"
        ) from e


def class_names(features: dict[str, Any]) -> dict[str, list[str]]:
    """Returns the class names of each column that holds classes, or lists of them. features: as `datasets` writes
    them."""
    names_by_column = {}
    for column, feature in features.items():
        feature = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            names_by_column[column] = feature["names"]
    return names_by_column


def named(value: Any, names: list[str]) -> Any:
    """Returns a class, or a list of classes, by name. Returns None for -1, which marks rows without a label: those of
    test sets, and those that annotators did not agree on."""
    if isinstance(value, list):
        return [named(v, names) for v in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None
