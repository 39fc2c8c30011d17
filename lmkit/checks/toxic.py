"""Words of a list in texts: the plainest measure of toxic language, with a list that the user chose."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lmkit.base.errors import DataError
from lmkit.checks.result import EXAMPLES, Result, percent
from lmkit.evaluation.intervals import proportion

AROUND = 30  # characters on each side of a word that an example shows
BLIND_SPOTS = [
    "It sees the words of the list alone: no insult, threat or prejudice in other words, and no other spelling.",
    "It does not see what is meant: a quotation, a report or a word of two meanings counts like an insult.",
]


def read_words(path: Path) -> list[str]:
    """Returns the words and phrases of a file, one a line, each once. Raises DataError where there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {e}") from None
    words = list(dict.fromkeys(line.strip().casefold() for line in lines if line.strip()))
    if not words:
        raise DataError(f"{path}: holds no word\n  → write one word or phrase a line")
    return words


def check_words(texts: Iterable[tuple[str, str]], words: Sequence[str], unit: str) -> Result:
    """Returns how many texts hold a word of the list, as a whole word in any case. texts: (place, text); unit: what
    they are, in plural."""
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")
    total, holders, occurrences, examples = 0, 0, Counter[str](), list[str]()
    for place, text in texts:
        total, folded = total + 1, text.casefold()
        matches = list(pattern.finditer(folded))
        occurrences.update(match[0] for match in matches)
        holders += bool(matches)
        if matches and len(examples) < EXAMPLES:
            begin, end = matches[0].span()
            examples.append(f"{place}: …{folded[max(0, begin - AROUND) : end + AROUND]!r}")
    shares = {"with a word": proportion(holders, total)}
    counts = {unit: total, "with a word": holders, "words in all": occurrences.total()}
    counts |= dict(occurrences.most_common(EXAMPLES))
    summary = f"Of {total:,} {unit}, {percent(shares['with a word'])} hold one of {len(words):,} listed words."
    return Result("toxic", summary, counts, shares, BLIND_SPOTS, examples)
