"""How many texts hold personal data that has a form, as `lmkit.data.quality.personal` finds it."""

import re
from collections import Counter
from collections.abc import Iterable

from lmkit.checks.result import EXAMPLES, Result, percent
from lmkit.data.quality.personal import FORMS, find_personal
from lmkit.evaluation.intervals import proportion

BLIND_SPOTS = [
    "It does not see names, addresses, dates of birth or anything else without a fixed form.",
    "It sees telephone numbers after a + with their country, and North American ones; no other national ones.",
    "It cannot tell a person's address from that of a firm, or a real number from an invented one.",
    "A version like 8.1.2.3 looks like an IP address; private, local and reserved addresses are left out.",
]


def redacted(string: str) -> str:
    """Returns the string with all letters and digits but its first one as dots."""
    return string[0] + re.sub(r"\w", "•", string[1:])


def check_personal(texts: Iterable[tuple[str, str]], unit: str) -> Result:
    """Returns how many texts hold personal data of each kind. texts: (place, text); unit: what they are, in plural."""
    kinds, holders, examples, total = Counter[str](), Counter[str](), dict[str, list[str]](), 0
    for place, text in texts:
        total += 1
        matches = [(kind, text[begin:end]) for kind, begin, end in find_personal(text)]
        kinds.update(kind for kind, _ in matches)
        holders.update({kind for kind, _ in matches} | ({"any"} if matches else set()))
        for kind, string in matches:
            shown = examples.setdefault(kind, [])
            if len(shown) < EXAMPLES:
                shown.append(f"{kind} in {place}: {redacted(string)}")
    counts = {unit: total} | {name: kinds[name] for name in FORMS}
    shares = {f"with {name}": proportion(holders[name], total) for name in ("any", *FORMS)}
    summary = f"Of {total:,} {unit}, {percent(shares['with any'])} hold e-mail addresses or numbers of persons."
    return Result(
        "personal", summary, counts, shares, BLIND_SPOTS, [line for kind in examples.values() for line in kind]
    )
