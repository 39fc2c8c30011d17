"""The files that a run reads: listed with their checksums when it begins, and compared when it is to be repeated."""

import os
from contextlib import redirect_stderr
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from typing import Any

from lmkit.base.errors import DataError
from lmkit.base.files import sha256
from lmkit.base.runs import model_folder
from lmkit.data.inputs import Pairing, list_inputs
from lmkit.data.tables.formats import list_sources
from lmkit.data.tables.task_tables import TABLES
from lmkit.data.tokens.store import TokenStore, is_store
from lmkit.recipe.finetuning import FinetuneRecipe
from lmkit.recipe.pretraining import Recipe

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
Entry = dict[str, Any]  # path, bytes, sha256; of a token store its fingerprint stands for a checksum


def of_store(store: TokenStore, data_train: str | list[str]) -> list[Entry]:
    """Returns what a pretraining run reads: the files its tokens were made of, or the store that the recipe names."""
    if data_train in (str(store.path), [str(store.path)]):
        return [_entry(str(store.path))]
    return [{"path": i["name"], "bytes": i["size"], "sha256": i["sha256"]} for i in store.manifest["inputs"]]


def of_tables(recipe: FinetuneRecipe) -> list[Entry]:
    """Returns what a fine-tuning run reads: its tables, and the model it starts from. Raises DataError where there are
    no tables."""
    return [_entry(name) for name in sources(recipe)] + of_model(recipe)


def of_model(recipe: FinetuneRecipe) -> list[Entry]:
    """Returns the weights that fine-tuning starts from; none for a new model."""
    if not isinstance(recipe.model, str):
        return []
    folder = model_folder(recipe.model)
    if folder.is_file():
        return [_entry(str(folder))]
    return [_entry(str(file)) for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]


def sources(recipe: Recipe | FinetuneRecipe) -> list[str]:
    """Returns the names of files, token stores and hub datasets that there are now. Raises DataError where there are
    none."""
    data = recipe.data
    named = [data.train] if isinstance(data.validation, float | int) else [data.train, data.validation]
    with redirect_stderr(StringIO()):  # notes about files that are left alone come when the others are read
        return [name for part in named for name in list_data([part] if isinstance(part, str) else part, recipe)]


def changed(before: list[Entry], recipe: Recipe | FinetuneRecipe) -> list[str]:
    """Returns a line for each file that is not as it was."""
    changes = []
    for entry in before:
        name, path = entry["path"], Path(entry["path"])
        if name.startswith("hub:"):
            changes.append(f"{name}: on the hub, not compared")
        elif not path.exists():
            changes.append(f"{name}: missing")
        elif (now := _entry(name, size_alone=entry["bytes"])) != entry:
            sizes = f"{entry['bytes']:,} bytes, now {now['bytes']:,}" if now["bytes"] != entry["bytes"] else "same size"
            changes.append(f"{name}: its content changed ({sizes})")
    try:
        new = sorted(set(sources(recipe)) - {entry["path"] for entry in before})
    except DataError:
        new = []  # said above
    return changes + [f"{name}: new, and the recipe's data takes it in" for name in new if before]


def training_files(before: list[Entry], recipe: Recipe | FinetuneRecipe) -> list[Entry]:
    """Returns those of the files that a run read which it learnt from, also in part; of a token store, the files that
    it was made of."""
    named, learnt = recipe.data.sources, list[Entry]()
    for entry in before:
        path = entry["path"]
        if is_store(path):
            manifest = TokenStore(path).manifest
            names = {name for name, *_ in manifest["plan"]["inputs"]["train"]}
            inputs = [i for i in manifest["inputs"] if i["name"] in names]
            learnt += [{"path": i["name"], "bytes": i["size"], "sha256": i["sha256"]} for i in inputs]
        elif any(path == name or path.startswith(f"{name}/") or fnmatch(path, name) for name in named):
            learnt.append(entry)
    return learnt


def known_files(names: list[str], before: list[Entry]) -> dict[str, Entry]:
    """Returns those of the files, by name, that are among `before` by their content; datasets of the hub by their
    name."""
    sizes = {entry["bytes"] for entry in before}
    by_content = {entry["sha256"] or entry["path"]: entry for entry in before}
    read = [name for name in names if name.startswith("hub:") or os.stat(name).st_size in sizes]
    contents = {name: _entry(name)["sha256"] or name for name in read}
    return {name: by_content[content] for name, content in contents.items() if content in by_content}


def list_data(patterns: list[str], recipe: Recipe | FinetuneRecipe) -> list[str]:
    """Returns the files, token stores and hub datasets that `patterns` in the place of `data.train` stand for. Raises
    DataError where there are none."""
    data = recipe.data
    if len(patterns) == 1 and is_store(patterns[0]):
        return patterns
    if isinstance(recipe, FinetuneRecipe) and TABLES[recipe.task.name].make_row:
        items = [source.item for source in list_sources(patterns, recipe.task.name, recipe.data, labelled=True)]
    else:
        pairing = Pairing(str(data.text), data.target) if data.target is not None else None
        items = list_inputs(patterns, pairing, data)
    return [name for item in items for file in item.files for name in _inside(file.name)]


def _inside(name: str) -> list[str]:
    """Returns the file itself, or all files of a folder of labels."""
    if name.startswith("hub:") or not os.path.isdir(name):
        return [name]
    return sorted(os.path.join(here, file) for here, _, files in os.walk(name, followlinks=True) for file in files)


def _entry(name: str, size_alone: int | None = None) -> Entry:
    """Returns path, size and checksum. size_alone: a file of any other size is not read for its checksum."""
    path = Path(name)
    if name.startswith("hub:"):
        return {"path": name, "bytes": None, "sha256": None}
    if path.is_dir():
        store = TokenStore(path)
        size = sum(f.stat().st_size for f in path.glob("*.tokens"))
        return {"path": name, "bytes": size, "sha256": store.fingerprint}
    try:
        size = path.stat().st_size
        return {"path": name, "bytes": size, "sha256": sha256(path) if size_alone in (None, size) else None}
    except OSError:  # counted where it is read
        return {"path": name, "bytes": None, "sha256": None}
