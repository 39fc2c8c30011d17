"""Writing files so that a crash leaves the old one or the new one, never half of one."""

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
    """Write beside `path`, flush to disk, rename over it. An OSError names `path`, as those of a full disk do not."""
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
    """A file to write in the place of `path`: renamed over it when all went well, else removed, so that `path` is as it
    was or whole. What is no file on a disk, like /dev/stdout, is written as it is.

    Raises StorageError where it cannot be written, before anything is computed for it, and RunInUse where another
    process is writing it."""
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
                file.truncate(0)  # what a killed process left
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
    """The file `part`, held alone. Raises BlockingIOError where another process holds it."""
    while True:
        with part.open("ab") as file:
            lock_now(file.fileno(), fcntl.LOCK_EX)
            if not part.exists() or not os.path.samestat(part.stat(), os.fstat(file.fileno())):
                continue  # another process has renamed it since it was opened
            yield file
            return


def lock_now(descriptor: int, how: int) -> None:
    """Lock an open file or folder, shared or alone, until it is closed; where the file system has no locks, as if it
    were. Raises BlockingIOError where another process is in the way."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_link(link: Path, target: Path) -> None:
    """Whoever reads the link meanwhile finds the one before or this one."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    part.replace(link)


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


def share(folder: Path, like: Path) -> None:
    """Give the weights in a folder the mode of `like`, which this process made: safetensors lets nobody else read its
    files, whatever the umask says. A file that lies elsewhere too is left as it is."""
    for file in folder.rglob("*.safetensors"):
        if not file.is_symlink() and file.stat().st_nlink == 1:
            file.chmod(like.stat().st_mode)


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
