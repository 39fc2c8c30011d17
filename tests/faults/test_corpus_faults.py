"""Text for language models in any state, through `lmkit tokenize`: it is read, or left out with a count and its place;
where nothing is left, exit code 3 says why. Memory and time stay bounded, and what is stored decodes to what was."""

import csv
import gzip
import io
import json
import os
import shutil
import tracemalloc
import unicodedata
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lmkit.data import documents, lines
from lmkit.data.tokens import tokenize as pipeline
from lmkit.data.tokens.store import TokenStore
from lmkit.recipe.pretraining import TokenizerConfig
from lmkit.text.tokenizer_files import load_tokenizer
from lmkit.text.training import LONGEST, train_tokenizer

TEXT = "".join(f"Line {i} of a text with ordinary words in it.\n" for i in range(60))
DOCUMENTS = [f"document {i} has a few words" for i in range(60)]
ROWS = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS).encode()  # line 61 is the first free one
NOISE = os.urandom(3000).hex().encode()
TABLE = b"id,text\n" + b"".join(b"%d,%s\n" % (i, text.encode()) for i, text in enumerate(DOCUMENTS))  # and 62 here


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tokenize(here, lmkit_):
    def run(*names: object, size: str = "300", **options: str):
        extra = [part for key, value in options.items() for part in (f"--{key}", value)]
        return lmkit_("tokenize", *names, "--out", "tokens", "--vocab-size", size, *extra)

    return run


def stored(split: str = "train") -> list[str]:
    store = TokenStore("tokens")
    tokenizer, part = load_tokenizer(store.tokenizer_path), store.split(split)
    before, after = part.frame
    ids = (part.document(i).tolist() for i in range(part.num_documents))
    return [tokenizer.decode(found[before : len(found) - after], skip_special=False) for found in ids]


def parquet(**columns: list) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


# ---------------------------------------------------------------- nothing can be read


NOTHING: dict[str, tuple[bytes, list[str]]] = {  # a file alone, and what must be said
    "empty.txt": (b"", ["1 empty documents: empty.txt:1"]),
    "blank.txt": (b"\n" * 1_000_000, ["1 empty documents: blank.txt:1"]),
    "spaces.txt": (b" \t\r\n" * 1000, ["1 empty documents"]),
    "bom.txt": (b"\xef\xbb\xbf", ["1 empty documents"]),
    "program.txt": (b"\x7fELF" + bytes(range(256)), ["1 binary files: program.txt"]),
    "nul.txt": (TEXT.encode()[:100] + b"\0", ["1 binary files"]),
    "utf-16 without mark.txt": (TEXT.encode("utf-16-le"), ["1 binary files"]),
    "utf-32.txt": (TEXT.encode("utf-32"), ["1 binary files"]),
    "utf-32-be.txt": (b"\0\0\xfe\xff" + TEXT.encode("utf-32-be"), ["1 binary files"]),
    "latin.txt": (f"Café\n{TEXT}".encode("latin-1"), ["1 undecodable documents (not UTF-8): latin.txt:1"]),
    "empty.jsonl": (b"", ["no train document"]),
    "blank.jsonl": (b"\n" * 100_000, ["no train document"]),
    "list.jsonl": (b"[\n" + ROWS.replace(b"}", b"},"), ["broken records: list.jsonl:1 (Expecting value, column 2)"]),
    "indented.jsonl": (json.dumps({"text": "a"}, indent=1).encode(), ["3 broken records: indented.jsonl:1"]),
    "other key.jsonl": (b'{"body": "a"}\n', ["other key.jsonl:1: no key `text`", "allowed: body", "--text NAME"]),
    "near key.jsonl": (b'{"txet": "a"}\n', ["no key `text`", "did you mean `txet`?"]),
    "no header.csv": (b"1,hello there\n2,hello again\n", ["no header.csv:1: no column `text`", "--text NAME"]),
    "two columns.csv": (b"text,text\na,b\n", ["two columns.csv:1: 2 columns are called `text`", "rename"]),
    "a million columns.csv": (b",".join(b"c%d" % i for i in range(1_000_000)), ["no column `text`"]),
    "empty.csv": (b"", ["no train document"]),
    "header.csv": (b"text\n", ["no train document"]),
    "empty.parquet": (b"", ["1 unreadable files: empty.parquet"]),
    "cut.parquet": (parquet(text=DOCUMENTS)[:200], ["1 unreadable files: cut.parquet"]),
    "other.parquet": (parquet(body=DOCUMENTS), ["other.parquet: no column `text`", "allowed: body"]),
    "numbers.parquet": (parquet(text=[1, 2]), ["2 records without text: numbers.parquet:1 (int)"]),
    "nulls.parquet": (parquet(text=[None, None]), ["2 records without text"]),
    "cut.txt.gz": (gzip.compress(NOISE)[:900], ["1 unreadable files: cut.txt.gz (Compressed"]),
    "no.txt.gz": (b"not packed at all", ["1 unreadable files: no.txt.gz (Not a gzipped file"]),
    "cut.txt.zst": (zstandard.compress(NOISE)[:900], ["zst (zstd frame ends early)"]),
    "no.txt.zst": (b"not packed at all", ["1 unreadable files: no.txt.zst"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
def test_a_file_of_which_nothing_is_left_says_why(name, here, tokenize):
    content, says = NOTHING[name]
    (here / name).write_bytes(content)
    shown = tokenize(name)
    assert shown.code == 3 and not shown.out and all(part in shown.err for part in says), shown.err
    assert len(shown.err) < 2000 and not (here / "tokens" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["gone.txt"], ["no such file: gone.txt", "notes.md"]),
        (["note.md"], ["no such file: note.md", "did you mean `notes.md`?"]),
        (["*.csv"], ["no file matches *.csv", "notes.md"]),
        (["no/such/folder/*.txt"], ["no file matches"]),
        (["bare"], ["no text files in bare", "it holds: nothing", "allowed: .txt, .jsonl"]),
        (["notes.md"], ["`.md` is not a kind of text file", "allowed: .txt, .jsonl"]),
        (["pipe.txt"], ["pipe.txt is not a regular file"]),
        (["/dev/zero"], ["/dev/zero"]),
        (["zero.txt"], ["zero.txt is not a regular file"]),
        (["loop"], ["no text files in loop"]),
        (["around.txt"], ["1 unreadable files: around.txt (", "symbolic links"]),
        (["broken.txt"], ["1 unreadable files: broken.txt (", "No such file"]),
        (["x" * 5000], ["no such file"]),
        ([os.fsdecode(b"caf\xe9.txt")], [r"b'caf\xe9.txt': the name is not UTF-8", "rename"]),
        (["hub:"], ["hub:"]),
    ],
)
def test_paths_that_lead_nowhere_end_at_once(given, says, here, tokenize):
    (here / "notes.md").write_text("x")
    (here / "bare").mkdir()
    (here / "loop").mkdir()
    (here / "loop" / "loop").symlink_to(here / "loop")
    (here / "around.txt").symlink_to("around.txt")
    (here / "broken.txt").symlink_to("nothing.txt")
    (here / "zero.txt").symlink_to("/dev/zero")
    (here / os.fsdecode(b"caf\xe9.txt")).write_text(TEXT)
    os.mkfifo(here / "pipe.txt")
    shown = tokenize(*given)
    assert shown.code == 3 and all(part in shown.err for part in says), shown.err


@pytest.mark.parametrize("out", ["a.jsonl", "a.jsonl/under", "o" * 300, "around"])
def test_a_folder_that_cannot_be_made_is_said(out, here, lmkit_):
    (here / "a.jsonl").write_bytes(ROWS)
    (here / "around").symlink_to("around")
    shown = lmkit_("tokenize", "a.jsonl", "--out", out)
    assert shown.code == 7 and "choose another folder" in shown.err, shown
    assert (here / "a.jsonl").read_bytes() == ROWS


# ---------------------------------------------------------------- some of it can be read

NESTED = b"[" * 100_000 + b"]" * 100_000
SOME: dict[str, tuple[bytes, list[str], int]] = {  # what follows 60 good records, what must be said, more that is read
    "comma.jsonl": (b'{"text": "a",}\n', ["1 broken records", ":61 (Expecting property name"], 0),
    "twice.jsonl": (b'{"text": "a", "text": "b"}\n', ["1 broken records", ":61 (key `text` stands twice)"], 0),
    "nested twice.jsonl": (b'{"text": "a", "m": {"k": 1, "k": 1}}\n', [":61 (key `k` stands twice)"], 0),
    "nan.jsonl": (b'{"text": NaN}\n{"text": "x", "n": NaN}\n', ["1 records without text", ":61 (float)"], 1),
    "types.jsonl": (b'{"text": 1}\n{"text": null}\n{"text": ["a"]}\n{"text": {"text": "a"}}\n{"text": true}\n',
                    ["5 records without text", ":61 (int)", ":62 (NoneType)", ":63 (list)", ":64 (dict)"], 0),
    "no objects.jsonl": (b'1\n"text"\n["text"]\nnull\n', ["4 broken records", ":61 (not an object but int)"], 0),
    "deep.jsonl": (b'{"text": "x", "deep": ' + NESTED + b"}\n", ["1 broken records", ":61 (nested too deeply)"], 0),
    "huge number.jsonl": (b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n", ["1 broken records", ":61 (Exceeds"], 0),
    "single quotes.jsonl": (b"{'text': 'a'}\n", ["1 broken records", ":61"], 0),
    "cut.jsonl": (b'{"text": "a', ["1 broken records", ":61 (Unterminated string"], 0),
    "half.jsonl": (b'{"text": "a\\ud83d b"}\n{"text": "a\xff"}\n', ["2 undecodable documents (not UTF-8)", ":61"], 0),
    "whole pair.jsonl": (b'{"text": "a\\ud83d\\ude42"}\n', ["nothing was left out"], 1),
    "nul.jsonl": (b'{"text": "a\\u0000b"}\n', ["nothing was left out"], 1),
    "crlf.jsonl": (b'{"text": "a"}\r\n\r\n{"text": "b"}', ["nothing was left out"], 2),
    "some keys.jsonl": (b'{"body": "a"}\n', ["1 records without text", ":61 (no key `text`)"], 0),
    "blank lines.jsonl": (b"\n" * 100_000 + b'{"text": "a"}\n', ["nothing was left out"], 1),
    "fields.csv": (b"1\n2,a,b\n3,c\n", ["2 broken records", ":62 (1 fields under a header of 2)", ":63 (3 fields"], 1),
    "quotes.csv": (b'1,"a ""quoted"" one, with\nlines"\n2,no "need" here\n', ["nothing was left out"], 2),
    "stray.csv": (b'1,"a"b\n2,fine\n', ["1 broken records", ":62-62 ("], 1),
    "open.csv": (b'1,"never closed\n2,b\n3,c\n', ["1 broken records", ":62-64 (unexpected end of data)"], 0),
    "crlf.csv": (b"1,a\r\n\r\n2,b\r\n", ["nothing was left out"], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_broken_records_are_counted_with_their_lines(name, here, tokenize):
    after, says, more = SOME[name]
    (here / name).write_bytes((ROWS if name.endswith("jsonl") else TABLE) + after)
    shown = tokenize(name)
    assert shown.code == 0 and all(part in shown.out for part in says), shown.out
    assert len(stored("train")) + len(stored("validation")) == len(DOCUMENTS) + more


def test_files_that_cannot_be_read_are_counted_beside_those_that_can(here, tokenize):
    folder = here / "data"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(ROWS)
    (folder / "b.txt.gz").write_bytes(b"no")
    (folder / "c.txt").write_bytes(b"\0\0")
    (folder / "d.txt").symlink_to("d.txt")
    (folder / "e.parquet").write_bytes(b"PAR1")
    (folder / "f.md").write_text("x")
    (folder / "deeper" / "up").symlink_to(folder)
    (folder / "deeper" / "twice.jsonl").symlink_to(folder / "a.jsonl")
    secret = folder / "g.txt"
    secret.write_text(TEXT)
    secret.chmod(0)
    shown = tokenize("data")
    unreadable = 3 if os.geteuid() == 0 else 4  # root may read all
    assert shown.code == 0 and f"{unreadable} unreadable files" in shown.out and "1 binary files" in shown.out
    assert "1 files of other kinds left alone (1 .md)" in shown.err
    assert len([text for text in stored() + stored("validation") if text in DOCUMENTS]) == len(DOCUMENTS)


def test_semicolons_tabs_and_marks_are_found(here, tokenize):
    for name, delimiter in (("a.csv", ";"), ("b.csv", "\t"), ("c.tsv", "\t")):
        out = io.StringIO()
        csv.writer(out, delimiter=delimiter).writerows([["id", "text"], *enumerate(DOCUMENTS)])
        (here / name).write_bytes(b"\xef\xbb\xbf" + out.getvalue().encode())
        assert tokenize(name).code == 0
        assert sorted(stored() + stored("validation")) == sorted(DOCUMENTS)
        shutil.rmtree("tokens")


# ---------------------------------------------------------------- encodings and scripts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("unit", ["plain text\r\n", "日本語の文章です。\n"])
def test_the_held_out_end_of_a_file_is_its_share_in_any_encoding(encoding, unit, here, tokenize):
    text = unit * 500
    (here / "a.txt").write_bytes((b"\xfe\xff" if encoding == "utf-16-be" else b"") + text.encode(encoding))
    shown = tokenize("a.txt", validation="10%", kind="bytes")
    assert shown.code == 0, shown.err
    [head], [tail] = stored("train"), stored("validation")
    assert head + tail == text and 0.09 < len(tail) / len(text) <= 0.1


SCRIPTS = [
    "שלום עולם \u202eabc\u202c", "العربية: ١٢٣ \u0640", "e\u0301 \u0065\u0327\u0301 ñ",
    "👨\u200d👩\u200d👧 🇩🇪 👍🏽 ❤\ufe0f", "a\u200bb\u200dc\ufeffd\u00add",
    "日本語は空白なしで書かれます。" * 20, "ไม่มีช่องว่าง" * 20, "a\u2028\u2029\u0085\x0b\x0cb",
    "\x1b[31m\x07\x08 \x7f", "  two  spaces \t ", "\U0010ffff\ufffe\ue000", "ﬁ Ⅷ ㎏ ²", "İıſß",
    "<|bos|> </s> <s> [CLS] <unk> <|endoftext|> <|im_start|>",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["bpe", "bytes", "unigram", "sentencepiece"])
def test_every_script_comes_back_as_it_was(kind, here, tokenize):
    texts = [*SCRIPTS, *DOCUMENTS]
    (here / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    shown = tokenize("a.jsonl", kind=kind, size="500", family="llama")
    assert shown.code == 0, shown.err
    found = stored() + stored("validation")
    assert sorted(found) == sorted(texts)
    assert any(unicodedata.normalize("NFC", text) != text for text in found)  # nothing was normalised


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("unit", ["a", "ACGT", "\n", " ", "日本語", "=-", "ab \n"])
@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "sentencepiece"])
def test_an_endless_run_of_characters_is_learnt_from(kind, unit):
    """Trainers take the square of its length: with byte-level BPE a million characters had not ended after 200 s."""
    texts = [unit * (200_000 // len(unit)), *DOCUMENTS]
    made = train_tokenizer(iter(texts), TokenizerConfig(type=kind, vocab_size=320), "bert")
    assert made.encode("document 7 has a few words")


def test_runs_are_cut_for_learning_only_where_they_are_long():
    from lmkit.text.training import _in_short_runs

    for text in (TEXT, "a" * LONGEST, f"{'a' * 2500} b{' ' * 2500}c\n", "x " * 5000 + "a" * 1001, ""):
        parts = list(_in_short_runs(iter([text])))
        assert "".join(parts) == text and (len(parts) > 1) == any(
            len(run) > LONGEST for run in [*text.split(), *"".join("x" if c.isspace() else " " for c in text).split()]
        )


@pytest.mark.parametrize(
    "name", ["line.txt", "line.jsonl", "line.txt.gz", "line.jsonl.zst", "field.csv", "zeros.txt.gz"]
)
def test_one_endless_line_takes_bounded_memory(name, here, tokenize, monkeypatch):
    """30 MB here under limits a hundredth of their size."""
    monkeypatch.setattr(lines, "MAX_RECORD", 2**20)
    monkeypatch.setattr(documents, "MAX_CHARS", 100_000)
    filler = (b"\0" if name == "zeros.txt.gz" else b"words and ") * (30_000_000 // (1 if "zeros" in name else 10))
    before, after = {"jsonl": (b'{"text": "', b'"}\n'), "csv": (b'text\n"', b'"\n')}.get(name.split(".")[1], (b"", b""))
    pack = {"gz": lambda b: gzip.compress(b, 1), "zst": zstandard.compress}.get(name.rpartition(".")[2], bytes)
    (here / name).write_bytes(pack(before + filler + after))
    del filler
    (here / "good.jsonl").write_bytes(ROWS)
    monkeypatch.setattr(pipeline, "SMALL_BYTES", 10**9)  # in this process, to be measured
    tracemalloc.start()
    shown = tokenize(name, "good.jsonl", kind="bytes") if "txt" not in name or "zeros" in name else None
    if shown is None:  # all of it is text: reading alone is measured, and it loses nothing
        problems = documents.Problems()
        item = documents.Input(name)
        item.look()
        total = sum(len(d.text) for d in documents.read_documents(item, documents.DataConfig(train=""), problems))
        assert total == 30_000_000 and problems.counts == {documents.OVER_LONG: 1}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (80_000_000 if "zst" in name else 25_000_000), peak  # a frame of zstd comes as one
    if shown is not None:
        assert shown.code == 0, shown.err
        assert ("1 binary files" if "zeros" in name else "1 broken records") in shown.out
        assert len(stored() + stored("validation")) == len(DOCUMENTS)


# ---------------------------------------------------------------- files that change, archives


def test_a_file_that_changes_between_learning_and_encoding_is_refused_or_counted(here, tokenize, monkeypatch):
    (here / "a.jsonl").write_bytes(ROWS)
    train = pipeline.train_tokenizer

    def meanwhile(change):
        def run(texts, *rest):
            made = train(iter(list(texts)), *rest)
            change()
            return made

        monkeypatch.setattr(pipeline, "train_tokenizer", run)
        shutil.rmtree("tokens", ignore_errors=True)
        return tokenize("a.jsonl")

    shown = meanwhile(lambda: (here / "a.jsonl").write_bytes(ROWS * 2))
    assert shown.code == 3 and "a.jsonl changed while it was read" in shown.err and "again" in shown.err
    shown = meanwhile(lambda: (here / "a.jsonl").unlink())
    assert shown.code == 3 and "1 unreadable files: a.jsonl (" in shown.err
    assert not (here / "tokens" / "manifest.json").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.7z"])
def test_archives_are_never_unpacked(name, here, tokenize):
    """Members with `..` or absolute names can then do nothing."""
    import tarfile
    import zipfile

    if "zip" in name:
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("../../climbed.txt", TEXT)
    else:
        with tarfile.open(name, "w:gz" if "gz" in name else "w") as archive:
            member = tarfile.TarInfo("../climbed.txt")
            archive.addfile(member, io.BytesIO())
    shown = tokenize(name)
    assert shown.code == 3 and "is not a kind of text file" in shown.err and "allowed: .txt" in shown.err
    assert not (here.parent / "climbed.txt").exists() and sorted(p.name for p in here.iterdir()) == [name, "tokens"]


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("sources", "targets", "code", "says"),
    [
        (60, 59, 3, ["60 lines in a.en", "59 lines in a.de", "find the line that is missing"]),
        (60, 0, 3, ["60 lines in a.en", "0 lines in a.de"]),
        (0, 0, 3, ["no train document"]),
        (60, None, 3, ["a.en: the file with its target texts is missing", "expected: a.de"]),
        (60, 60, 0, ["2 pairs with an empty side", "a.de:1", "a.en:2"]),
    ],
)
def test_files_line_by_line_belong_together(sources, targets, code, says, here, tokenize):
    lines = [*DOCUMENTS[:1], " ", *DOCUMENTS[2:]]
    (here / "a.en").write_text("".join(line + "\n" for line in lines[:sources]))
    if targets is not None:
        (here / "a.de").write_text("".join(line + "\n" for line in ["", "zwei", *DOCUMENTS[2:]][:targets]))
    shown = tokenize("a.en", text="en", target="de", family="transformer")
    assert shown.code == code and all(part in shown.err + shown.out for part in says), shown


CHINESE = "这部电影非常好看，我很喜欢。演员的表演也很出色。"


def test_commands_read_encodings_and_named_endings(tmp_path, lmkit_):
    (tmp_path / "a.txt").write_text((CHINESE + "\n") * 40, encoding="gbk")
    (tmp_path / "b.md").write_text((CHINESE + "\n") * 40)
    files = ("tokenize", tmp_path / "a.txt", tmp_path / "b.md", "--kind", "bytes")
    shown = lmkit_(*files, "--out", tmp_path / "out")
    assert shown.code == 3 and "b.md: `.md` is not a kind of text file" in shown.err and "--text-files" in shown.err
    shown = lmkit_(*files[:2], *files[3:], "--out", tmp_path / "out")
    assert shown.code == 3 and "→ data.encoding=gbk" in shown.err and "--encoding gbk" in shown.err
    shown = lmkit_(*files, "--text-files", ".md", "--encoding", "auto", "--out", tmp_path / "auto")
    assert shown.code == 0 and "read by their bytes as gbk: 1, utf-8: 1" in shown.err
    passages = "".join(f"Über {i}\n\n" for i in range(3))
    (tmp_path / "kb.txt").write_text(passages, encoding="cp1252")
    shown = lmkit_("kb", "build", tmp_path / "kb.sqlite", tmp_path / "kb.txt", "--encoding", "cp1252")
    assert shown.code == 0 and "3 passages" in shown.out
