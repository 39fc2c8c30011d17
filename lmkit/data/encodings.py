"""Text that is not Unicode: where it is not, and in which encodings it may have been written."""

ENCODINGS = ("gbk", "big5", "shift_jis", "euc-kr", "cp1252", "cp1251")  # that tables are found in besides UTF-8


def not_unicode(text: str) -> int | None:
    """Where the first half of a surrogate pair is: bytes not UTF-8 decode to these, and JSON can spell them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def encodings_of(text: str) -> list[str]:
    """In which encodings bytes that are not UTF-8, here half surrogates, are text."""
    return [name for name in ENCODINGS if _can_be(text, name)]


def _can_be(text: str, encoding: str) -> bool:
    try:
        return text.encode(errors="surrogateescape").decode(encoding).isprintable()
    except UnicodeError:
        return False
