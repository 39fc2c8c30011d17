"""Writing files so that a crash leaves the old one or the new one, never half of one."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside `path`, flush to disk, rename over it."""
    part = path.with_name(f".{path.name}.part")
    data = content.encode() if isinstance(content, str) else content
    with part.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def disk_error(e: BaseException) -> OSError | None:
    """What the disk said, if that is what `e` is. safetensors and tokenizers, which are Rust, wrap it in types of their
    own."""
    if isinstance(e, OSError):
        return e
    code = re.search(r"\(os error (\d+)\)", str(e))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
