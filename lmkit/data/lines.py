"""The content of a file of text, unpacked, decoded and line by line, in bounded memory. Damage is counted."""

import codecs
import gzip
import hashlib
import io
import os
from collections.abc import Iterator
from typing import IO, Any, TypeVar

from lmkit.base.errors import DataError
from lmkit.data.inputs import Input, Problems

MAX_RECORD = 128 * 2**20  # bytes of one line of JSON, characters of one CSV field
BLOCK = 2**20
BROKEN, BINARY, UNREADABLE = "broken records", "binary files", "unreadable files"
T = TypeVar("T")


def guarded(item: Input, records: Iterator[T], problems: Problems) -> Iterator[T]:
    """Passes on the records that are read from this input. What cannot be read is counted in `problems`.

    Raises DataError for a file that changes meanwhile."""
    item.sha256, item.done, item.whole = "", 0, False
    try:
        yield from records
        if item.kind != "hub":
            now = os.stat(item.name)
            if (now.st_size, now.st_mtime_ns) != (item.size, item.mtime):
                raise DataError(
                    f"{item.name} changed while it was read\n  → run the same command again when it is complete"
                )
        item.whole = True
    except BinaryFile:
        problems.add(BINARY, item.name)
    except (OSError, EOFError, DamagedFile) as e:
        problems.add(UNREADABLE, f"{item.name} ({str(e).partition(chr(10))[0] or type(e).__name__})")


class DamagedFile(Exception):
    """A packed or columnar file that its library cannot read on."""


class BinaryFile(Exception):
    """A file with NUL bytes where text should be."""


class _Raw(io.RawIOBase):
    """The bytes of a file, hashed and counted as they pass."""

    def __init__(self, item: Input):
        self.item, self.file, self.hash = item, io.FileIO(item.name), hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = self.file.readinto(buffer) or 0
        self.hash.update(memoryview(buffer)[:n])
        self.item.done += n
        return n

    def finish(self) -> None:
        while self.readinto(bytearray(BLOCK)):
            pass
        self.item.sha256 = self.hash.hexdigest()

    def close(self) -> None:
        self.file.close()
        super().close()


def read_blocks(item: Input) -> Iterator[bytes]:
    """Yields the text, unpacked and in UTF-8, about a megabyte at a time. `item.encoding`, and UTF-16 with a BOM, are
    recoded; bytes that are no text there stay as they are."""
    decode, errors = None, "surrogateescape"
    if codecs.lookup(item.encoding).name != "utf-8":
        decode = codecs.getincrementaldecoder(item.encoding)(errors).decode
    blocks = read_bytes(item)
    for number, block in enumerate(blocks):
        if number == 0 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            errors = "surrogatepass"
            decode = codecs.getincrementaldecoder("utf-16")(errors).decode
        if decode:
            block = decode(block).encode(errors=errors)
        if number == 0 and b"\0" in block:  # UTF-32 too, whose BOM begins like that of UTF-16
            for _ in blocks:  # the rest is read for its checksum
                pass
            raise BinaryFile
        yield block.removeprefix(codecs.BOM_UTF8) if number == 0 else block
    if decode and (rest := decode(b"", final=True)):
        yield rest.encode(errors=errors)


def read_bytes(item: Input) -> Iterator[bytes]:
    """Yields the bytes, unpacked. At the end, `item.sha256` is that of the whole file as it is on disk."""
    with _Raw(item) as raw, io.BufferedReader(raw, BLOCK) as stream:
        yield from _unpacked(stream, item.packing)
        raw.finish()


def _unpacked(stream: IO[bytes], packing: str) -> Iterator[bytes]:
    """Yields blocks of the content. Raises DamagedFile or EOFError when a packed file is damaged or ends early."""
    import zlib

    import zstandard

    try:
        if packing == ".zst":
            yield from _unzstd(stream, zstandard.ZstdDecompressor())
            return
        source: Any = gzip.GzipFile(fileobj=stream) if packing == ".gz" else stream
        while block := source.read(BLOCK):
            yield block
    except (zlib.error, zstandard.ZstdError) as e:
        raise DamagedFile(str(e)) from e


def _unzstd(stream: IO[bytes], engine: Any) -> Iterator[bytes]:
    """Yields the content frame after frame, since the library's own reader takes a frame that ends early for the end of
    the file. It reads four kilobytes at a time, because they can unpack to 128 MB."""
    frame = None
    while packed := stream.read(4096):
        while packed:
            frame = frame or engine.decompressobj()
            if block := frame.decompress(packed):
                yield block
            packed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("zstd frame ends early")


def read_lines(item: Input, problems: Problems) -> Iterator[tuple[int, str | None]]:
    """Yields (line number, line with its end), decoded. Bytes that are not UTF-8 become half surrogates, which are
    refused later. For a line that is too long, which is counted, it yields None."""
    number, parts, size = 0, [b""], 0
    for block in read_blocks(item):
        *lines, rest = block.split(b"\n")
        for line in lines:
            number += 1
            if size + len(line) <= MAX_RECORD:
                yield number, (b"".join([*parts, line]) + b"\n").decode(errors="surrogateescape")
            else:
                _too_long(item, number, problems)
                yield number, None
            parts, size = [], 0
        size += len(rest)
        parts = [*parts, rest] if size <= MAX_RECORD else []
    if size > MAX_RECORD:
        _too_long(item, number + 1, problems)
        yield number + 1, None
    elif size:
        yield number + 1, b"".join(parts).decode(errors="surrogateescape")


def _too_long(item: Input, number: int, problems: Problems) -> None:
    problems.add(BROKEN, f"{item.name}:{number} (a line above {MAX_RECORD:,} bytes)")


def not_unicode(text: str) -> int | None:
    """Returns where the first half of a surrogate pair stands. Bytes that are not UTF-8 decode to these, and JSON can
    spell them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
