"""The text of a page of HTML, without its tags."""

import re
from html.parser import HTMLParser

INLINE = re.compile("[abiqsu]|abbr|bd[io]|cite|code|data|dfn|em|font|kbd|mark|samp|small|span|strong|su[bp]|tt|var")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts = list[str]()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self.parts += [] if INLINE.fullmatch(tag) else ["\n"]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem not in ("script", "style"):
            self.parts.append(re.sub(r"\s+", " ", data))


def text_of_html(page: str) -> str:
    """Returns the text of a page: blanks and line ends are one blank, and every element that is more than a part of a
    line begins a new one. Scripts, styles and comments are left out."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    lines = (re.sub(" +", " ", line).strip() for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)
