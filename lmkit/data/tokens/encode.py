"""Encoding on all cores: one process a core, each fed through pipes, so that all end when this one is killed."""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Self

import numpy as np

import lmkit
from lmkit.base.errors import ModelError
from lmkit.text.tokenizer_files import load_tokenizer
from lmkit.text.words import WordEncoder

CHECKED_CHARS = 20_000  # of the first document of every batch, its beginning is decoded again and compared


@dataclass(frozen=True)
class Encoded:
    ids: bytes  # of all documents, control tokens included, in the store's number type
    lengths: np.ndarray  # (documents,) int64, ids of each
    differs: bool  # decode(encode(text)) != text for the first document


class Encoder:
    """Encodes in this process."""

    def __init__(self, tokenizer: Path, processes: int = 1):
        self.tokenizer = load_tokenizer(tokenizer)
        self.words = WordEncoder(self.tokenizer, processes)

    def __call__(self, texts: list[bytes]) -> Encoded:
        decoded = [text.decode() for text in texts]
        ids, lengths = self.words(decoded)
        first = decoded[0][:CHECKED_CHARS]
        return Encoded(ids, lengths, self.tokenizer.decode(self.tokenizer.encode(first), skip_special=False) != first)


class RemoteEncoder:
    """Encodes in a process of its own. Blocks travel as a length in 8 bytes and the content."""

    def __init__(self, tokenizer: Path, processes: int):
        above = str(Path(lmkit.__file__).parent.parent)
        paths = os.pathsep.join([above, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmkit.data.tokens.encode", str(tokenizer), str(processes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then closes the pipes
        )

    def __call__(self, texts: list[bytes]) -> Encoded:
        assert self.process.stdin and self.process.stdout
        sizes = np.array([len(t) for t in texts], np.int64)
        try:
            _send(self.process.stdin, sizes.tobytes(), b"".join(texts))
            problem, ids, lengths, differs = (_receive(self.process.stdout) for _ in range(4))
        except (BrokenPipeError, EOFError):
            raise RuntimeError(f"an encoding process ended with status {self.process.wait()}") from None
        if problem:
            raise ModelError(problem.decode())
        return Encoded(ids, np.frombuffer(lengths, np.int64), bool(differs[0]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


class EncoderPool:
    """Encodes batches of UTF-8 texts in the background, in `workers` processes, or with 0 in a thread of this one."""

    def __init__(self, tokenizer: Path, workers: int):
        self.remote = [RemoteEncoder(tokenizer, workers) for _ in range(workers)]
        self.idle: SimpleQueue[Encoder | RemoteEncoder] = SimpleQueue()
        for encoder in self.remote:
            self.idle.put(encoder)
        if not workers:
            self.idle.put(Encoder(tokenizer))
        self.width = max(1, workers)
        self.threads = ThreadPoolExecutor(self.width)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for encoder in self.remote:
            encoder.close()
        self.threads.shutdown(cancel_futures=True)

    def submit(self, texts: list[bytes]) -> "Future[Encoded]":
        return self.threads.submit(self._encode, texts)

    def _encode(self, texts: list[bytes]) -> Encoded:
        encoder = self.idle.get()
        try:
            return encoder(texts)
        finally:
            self.idle.put(encoder)


def _send(pipe: IO[bytes], *blocks: bytes) -> None:
    for block in blocks:
        pipe.write(len(block).to_bytes(8, "little"))
        pipe.write(block)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """Returns the next block. Raises EOFError when the other side is gone."""
    size = int.from_bytes(_exactly(pipe, 8), "little")
    return _exactly(pipe, size)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    block = pipe.read(size)
    if len(block) < size:
        raise EOFError
    return block


def serve(tokenizer: Path, processes: int) -> None:
    """Answers requests on standard input until it ends."""
    encoder = Encoder(tokenizer, processes)
    while True:
        try:
            sizes = np.frombuffer(_receive(sys.stdin.buffer), np.int64)
            blob = _receive(sys.stdin.buffer)
            ends = np.cumsum(sizes)
            try:
                done = encoder([blob[end - size : end] for end, size in zip(ends, sizes, strict=True)])
            except ModelError as problem:
                _send(sys.stdout.buffer, str(problem).encode(), b"", b"", b"")
                continue
            _send(sys.stdout.buffer, b"", done.ids, done.lengths.tobytes(), bytes([done.differs]))
        except (EOFError, BrokenPipeError):  # whoever asked is gone
            os._exit(0)  # at once: what is left to send has no reader


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
