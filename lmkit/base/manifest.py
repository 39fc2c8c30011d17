"""Writes and checks folders that exist under their name if and only if they are whole, by a manifest of their files."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmkit.base.files import fsync_directory, sha256, share, write_atomic, write_json

MANIFEST = "training/manifest.json"


def put_whole(final: Path, part: Path, write: Callable[[Path], None], step: int) -> None:
    """Writes a folder so that it exists under the name `final` only when it is whole.

    `write` fills the folder `part`; then a manifest of sizes and checksums is written, everything is flushed to the
    disk, and `part` is renamed to `final`, which it replaces."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    (part / "training").mkdir()
    write(part)
    files = sorted(f for f in part.rglob("*") if f.is_file())
    facts = {str(f.relative_to(part)): {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files}
    write_manifest(part / MANIFEST, {"step": step, "files": facts})
    share(part, part / MANIFEST)
    for f in files:
        with f.open("rb") as handle:
            os.fsync(handle.fileno())
    for folder in {f.parent for f in files} | {part / "training", part}:
        fsync_directory(folder)
    old = final.with_name(final.name + ".old")
    if final.exists():
        final.rename(old)
    part.rename(final)
    fsync_directory(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def replace_listed(folder: Path, name: str, content: str) -> None:
    """Replaces the file `name` of a whole folder.

    While it is written, the manifest lists both the old and the new file, so the folder is whole whenever the process
    is killed."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    before, data = manifest["files"].get(name), content.encode()
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"][name] = facts | ({"before": before} if before else {})
    write_manifest(folder / MANIFEST, manifest)
    write_atomic(folder / name, data)
    manifest["files"][name] = facts
    write_manifest(folder / MANIFEST, manifest)


def damage(folder: Path, to_use: bool = False) -> str | None:
    """Returns what is wrong with a checkpoint according to its manifest; None if it is whole.

    to_use: checks only the model and its tokenizer, and not what training needs to go on."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        written, files = manifest.pop("sha256"), dict(manifest["files"])
        if written != checksum(manifest):
            return "its manifest does not match its own checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest is missing or unreadable"
    for name, facts in files.items():
        if to_use and "/" in name:
            continue
        problem = _differs(folder / name, name, facts)
        if problem and not ("before" in facts and _differs(folder / name, name, facts["before"]) is None):
            return problem
    return None


def _differs(path: Path, name: str, facts: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != facts["bytes"]:
        return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
    try:
        return None if sha256(path) == facts["sha256"] else f"{name} does not match its checksum"
    except OSError as e:
        return f"{name} cannot be read: {e.strerror}"


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Writes a manifest with a checksum of itself."""
    write_json(path, manifest | {"sha256": checksum(manifest)})


def checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
