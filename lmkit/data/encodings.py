"""Encodings of text files other than UTF-8: which one a file has, by its bytes, and which ones unreadable bytes fit."""

import codecs
import re
from collections import Counter

from lmkit.base.display import note
from lmkit.data.inputs import Input
from lmkit.data.lines import BLOCK, DamagedFile, read_bytes

ENCODINGS = ("gbk", "big5", "shift_jis", "euc-kr", "cp1252", "cp1251")  # that tables are found in besides UTF-8
OPTION = "data.encoding={0}, or auto where files differ (of tokenize, data, eval, predict and kb: --encoding {0})"

AS_IN_TRAINING = "files are read as {}, as in training: --encoding says another"


def encodings_of(text: str) -> list[str]:
    """Returns the encodings in which bytes that are not UTF-8, here half surrogates, are text."""
    return [name for name in ENCODINGS if _can_be(text, name)]


def _can_be(text: str, encoding: str) -> bool:
    try:
        return text.encode(errors="surrogateescape").decode(encoding).isprintable()
    except UnicodeError:
        return False


def encoding_advice(place: str) -> str:
    """Returns what to do about a file that is not UTF-8: the encoding that its bytes look like, if any. place: a file,
    with a line in it or without."""
    encoding = detected_encoding(Input(re.sub(r":\d+( .*)?$", "", place)))
    return OPTION.format(encoding) if encoding != "utf-8" else OPTION.format("NAME") + ", as the file was written"


def settle_encodings(items: list[Input]) -> list[Input]:
    """Gives each file that is to be read in the encoding `auto` the one that its bytes look like, and tells which.

    Returns the files."""
    counts = Counter[str]()
    for item in items:
        for file in item.files:
            if file.encoding == "auto" and not file.name.startswith("hub:"):
                file.encoding = detected_encoding(file)
                counts[file.encoding] += 1
    if counts:
        note("files read by their bytes as " + ", ".join(f"{name}: {n:,}" for name, n in counts.most_common()))
    return items


def detected_encoding(item: Input) -> str:
    """Returns the encoding that a file is most likely in: UTF-8 where most of what is not ASCII is that, else one of
    ENCODINGS, as charset-normalizer ranks them. Columnar files, and those that cannot be read, count as UTF-8."""
    from charset_normalizer import from_bytes

    try:
        sample = b"" if item.kind in ("parquet", "arrow", "xlsx") else _undecoded_block(item)
    except (OSError, EOFError, DamagedFile):  # counted when it is read
        sample = b""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    known = sum(len(c.encode()) for c in sample.decode(errors="ignore") if c > "\x7f")
    if 2 * known >= sum(byte > 127 for byte in sample):
        return "utf-8"
    ranked = {name: match for name in ENCODINGS
              if (match := from_bytes(sample, cp_isolation=[name], threshold=0.5).best())}  # fmt: skip
    return min(ranked, key=lambda name: (ranked[name].chaos, -ranked[name].coherence), default="utf-8")


def _undecoded_block(item: Input) -> bytes:
    """Returns whole lines of the file around the first bytes that are not UTF-8; b"" where there are none."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    for number, block in enumerate(read_bytes(item)):
        try:
            decode(block)
        except UnicodeDecodeError:
            first, end = block.find(b"\n") + 1 if number else 0, block.rfind(b"\n") + 1
            return block[first:end] if len(block) >= BLOCK else block[first:]
    return b""
