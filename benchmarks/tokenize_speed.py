"""Is `lmkit tokenize` faster than `tokenizers` called bare on all cores, and how much memory does it take?

    python benchmarks/tokenize_speed.py TEXT... [--separator $'\\n\\n'] [--vocab-size 8192] [--rounds 3]

Both read the same .txt files, cut them at the separator and encode with the same byte-level BPE, trained here. The bare
side calls encode_batch on batches of documents and takes the ids; lmkit also splits, checks, hashes, writes and syncs.
Each try is a process of its own, the two sides in turn. Text that repeats flatters both caches: give real text."""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BATCH = 4_000_000  # characters of documents per encode_batch


def bare(tokenizer: Path, separator: str, texts: list[str]) -> None:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    total = 0
    for name in texts:
        with open(name, encoding="utf-8", newline="") as f:
            rest = ""
            while block := f.read(BATCH):
                *documents, rest = (rest + block).split(separator)
                total += sum(len(e.ids) for e in backend.encode_batch(documents, add_special_tokens=False))
            total += len(backend.encode(rest, add_special_tokens=False).ids)
    print(total)


def lmkit(tokenizer: Path, separator: str, texts: list[str], out: Path) -> None:
    from lmkit.data.tokens.tokenize import tokenize
    from lmkit.recipe.pretraining import DataConfig, TokenizerConfig

    data = DataConfig(train=texts, validation=0.01, separator=separator)
    store = tokenize(data, TokenizerConfig(path=str(tokenizer)), "nanochat", out)
    print(sum(store.split(name).num_tokens for name in ("train", "validation")))


def descendants(pid: int) -> list[int]:
    """`pid` and all processes below it."""
    try:
        below = [
            int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(d for p in below for d in descendants(p))]


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def measure(side: str, arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of all processes together, of one try."""
    start, peak, done = time.monotonic(), 0, threading.Event()
    process = subprocess.Popen([sys.executable, __file__, "--side", side, *arguments], stdout=subprocess.DEVNULL)

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, sum(map(resident, descendants(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    seconds = time.monotonic() - start
    done.set()
    watcher.join()
    if status:
        sys.exit(f"{side} failed with status {status}")
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--separator", default="\n\n")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["bare", "lmkit"], help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "bare":
        bare(options.tokenizer, options.separator, options.texts)
    elif options.side == "lmkit":
        lmkit(options.tokenizer, options.separator, options.texts, options.out)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    from lmkit.recipe.pretraining import TokenizerConfig
    from lmkit.text.training import train_tokenizer

    size = sum(Path(t).stat().st_size for t in options.texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer"
        sample = (Path(t).read_bytes()[:20_000_000].decode(errors="ignore") for t in options.texts[:5])
        train_tokenizer(sample, TokenizerConfig(vocab_size=options.vocab_size), "nanochat").save(tokenizer)
        common = [*options.texts, f"--separator={options.separator}", "--tokenizer", str(tokenizer)]
        best = {}
        for n in range(options.rounds):
            for side in ("bare", "lmkit"):
                seconds, peak = measure(side, [*common, "--out", f"{folder}/{n}"])
                best[side] = max(best.get(side, 0.0), size / seconds)
                print(f"round {n + 1}  {side:<6} {size / seconds:7.2f} MB/s   peak {peak / 1e6:6.0f} MB", flush=True)
    print(f"{size:.0f} MB: lmkit is {best['lmkit'] / best['bare']:.2f} times as fast as tokenizers (best of each)")


if __name__ == "__main__":
    main()
