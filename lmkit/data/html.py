"""The text of a page of HTML, without its tags."""

import re
from html.parser import HTMLParser

UNREAD = frozenset(("script", "style", "template", "noscript"))
INLINE = re.compile(
    "[abiqsu]|abbr|bd[io]|cite|code|data|dfn|em|font|kbd|mark|samp|small|span|strong|su[bp]|time|tt|var"
)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts, self.unread = list[str](), 0  # unread: how many elements without text it stands in

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.unread += tag in UNREAD
        self._border(tag)

    def handle_endtag(self, tag: str) -> None:
        self.unread -= tag in UNREAD and self.unread > 0
        self._border(tag)

    def _border(self, tag: str) -> None:
        if not INLINE.fullmatch(tag):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.unread:
            self.parts.append(re.sub(r"\s+", " ", data))


def text_of_html(page: str) -> str:
    """Returns the text of a page: blanks and line ends are one blank, and every element that is more than a part of a
    line begins a new one. Scripts, styles and comments are left out."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    lines = (re.sub(" +", " ", line).strip() for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)
