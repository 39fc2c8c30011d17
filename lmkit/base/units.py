"""Sizes as people write them: `512k`, `2.5B`, `16384 tokens`, `5%`, `3 min`, `40 steps`."""

import re

SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
LARGEST = 1e18  # larger whole numbers lose digits, and are too large for an index
SECONDS = {
    "ms": 1e-3, "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400,
    "day": 86400,
}  # fmt: skip
QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-zA-Z%]*)\s*([a-zA-Z]*)\s*", re.IGNORECASE)

# The same as a pattern of JSON schemas: what a text may be where these units may follow the number.
NUMBER = r"^\s*[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?\s*"


def pattern(*units: str) -> str:
    """Returns the pattern of a number, its scale, and one of `units` (singular), if any. `%` goes with no scale."""
    words = [f"{unit}s?" for unit in units if unit != "%"]
    scaled = rf"[kKmMbBgGtT]?\s*({'|'.join(words)})?" if words else "[kKmMbBgGtT]?"
    return f"{NUMBER}({scaled}|%)\\s*$" if "%" in units else rf"{NUMBER}{scaled}\s*$"


def split_quantity(text: str | int | float) -> tuple[float, str]:
    """Returns the number and the unit in a text, the unit in the singular and in lower case.

    `"2.5B tokens"` gives (2.5e9, "token"); `"3 min"` gives (3.0, "min"); `40` gives (40.0, ""). Raises ValueError that
    names the accepted forms."""
    match = QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(
            f"{text!r} is not a quantity; write a number and a unit, like 2000, 512k, 2.5B tokens, 5% or 3 min"
        )
    number, first, second = float(match[1]), match[2], match[3]
    if number > LARGEST:
        raise ValueError(f"{text!r} is too large; allowed: up to {LARGEST:.0e}")
    if second:
        if first.lower() not in SCALE:
            raise ValueError(f"{text!r}: `{first}` is not a scale; use k, M, B or T")
        return number * SCALE[first.lower()], _singular(second)
    if first.lower() in SCALE and first not in ("m", ""):  # a small m alone means minutes; k, M, B, T are scales
        return number * SCALE[first.lower()], ""
    return number, _singular(first)


def _singular(unit: str) -> str:
    """Returns the unit in the singular and in lower case. The s of `ms` is no plural."""
    unit = unit.lower()
    return unit if unit in ("s", "ms") else unit.removesuffix("s")


def count(text: str | int | float, *units: str) -> int:
    """Returns a whole number: `512k`, `16384`, or with one of `units` (singular) after it, as `16384 tokens`.

    Raises ValueError for another unit, and for a number that is not whole."""
    number, unit = split_quantity(text)
    if unit and unit not in units:
        allowed = ", ".join(f"{u}s" for u in units) or "none"
        raise ValueError(f"{text!r}: unit `{unit}` does not fit here; allowed: {allowed}")
    if number != int(number):
        raise ValueError(f"{text!r} is not a whole number")
    return int(number)


def fraction(text: str | int | float) -> float:
    """Returns the share that a text names: 0.05 for `5%` or `0.05`. Raises ValueError for one outside [0, 1]."""
    number, unit = split_quantity(text)
    if unit not in ("", "%"):
        raise ValueError(f"{text!r}: unit `{unit}` does not fit here; write a share like 5% or 0.05")
    value = number / 100 if unit == "%" else number
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} must lie between 0 and 1 (or 0% and 100%)")
    return value


def seconds(text: str | int | float) -> float:
    """Returns the seconds in a text such as `3 min`, `90s` or `1.5h`. Raises ValueError for another unit."""
    number, unit = split_quantity(text)
    if unit not in SECONDS:
        raise ValueError(f"{text!r}: unit `{unit}` is not a time; allowed: ms, s, min, h, d")
    return number * SECONDS[unit]


def show_count(n: float) -> str:
    """Returns a number as people read it: 1234 gives `1,234`; 1234567 gives `1.23M`."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(n) >= scale:
            return f"{n / scale:.3g}{letter}"
    return f"{n:,.0f}"


def show_bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if abs(n) < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.2f} GB"


def show_seconds(s: float) -> str:
    """Returns seconds as people read them: 95 gives `1:35`; 4000 gives `1:06:40`."""
    s = max(0, round(s))
    return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}" if s >= 3600 else f"{s // 60}:{s % 60:02d}"


def brief(text: str, most: int = 40) -> str:
    """Returns a text for a message: on one line, without control characters, with at most `most` characters."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= most else f"{line[: most - 1]}…"
