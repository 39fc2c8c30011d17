"""Writes files so that after a crash there is the old file or the new one, never a part of one."""

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lmkit.base.errors import RunInUse, StorageError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file beside `path`, flushes it to the disk, and renames it to `path`.

    An OSError names `path`; the system's own error for a full disk does not."""
    part = path.with_name(f".{path.name}.part")
    data = content.encode() if isinstance(content, str) else content
    try:
        with part.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except OSError as e:
        with suppress(OSError):
            part.unlink()
        e.filename = str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a file to write in the place of `path`, so that `path` stays as it was or becomes the whole new file.

    The file is renamed to `path` if the `with` block succeeds, and else removed. A `path` that is no file on a disk,
    like /dev/stdout, is written directly. Raises StorageError where `path` cannot be written, if possible before the
    `with` block, and RunInUse where another process is writing it."""
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    part, done = path.with_name(f".{path.name}.part"), False
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with _locked(part) as file:
            try:
                file.truncate(0)  # removes what a killed process left
                yield part
                os.fsync(file.fileno())
                part.replace(path)
                done = True
            finally:
                if not done:
                    part.unlink(missing_ok=True)
        fsync_directory(path.parent)
    except BlockingIOError:
        raise RunInUse(f"{path}: another process is writing it\n  → wait for it, or name another file") from None
    except OSError as e:
        raise StorageError(f"{path}: cannot be written: {e.strerror or e}\n  → name another place") from None


@contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """Opens the file `part` and locks it. Raises BlockingIOError where another process has locked it."""
    while True:
        with part.open("ab") as file:
            lock_now(file.fileno(), fcntl.LOCK_EX)
            if not part.exists() or not os.path.samestat(part.stat(), os.fstat(file.fileno())):
                continue  # another process has renamed the file since it was opened
            yield file
            return


def lock_now(descriptor: int, how: int) -> None:
    """Locks an open file or folder until it is closed; `how` says whether shared or alone.

    It does nothing where the file system has no locks. Raises BlockingIOError where another process has locked it."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_link(link: Path, target: Path) -> None:
    """Makes `link` point to `target`. A process that reads it meanwhile finds the old target or the new one."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    part.replace(link)


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def disk_error(e: BaseException) -> OSError | None:
    """Returns the OSError that `e` is or contains, or None.

    safetensors and tokenizers, which are written in Rust, wrap it in types of their own."""
    if isinstance(e, OSError):
        return e
    code = re.search(r"\(os error (\d+)\)", str(e))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def share(folder: Path, like: Path) -> None:
    """Gives the weights in a folder the file mode of `like`, which this process wrote.

    safetensors writes files that only their owner can read, whatever the umask is. Links, and files with other hard
    links, stay as they are."""
    for file in folder.rglob("*.safetensors"):
        if not file.is_symlink() and file.stat().st_nlink == 1:
            file.chmod(like.stat().st_mode)


def fsync_directory(path: Path) -> None:
    """Flushes renames inside the folder `path` to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def folder_bytes(folder: Path) -> int:
    """Returns the bytes of all files in a folder; links count for nothing."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_symlink() and p.is_file())
