"""Tables that a section has written as HTML, checked before the report embeds them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from markupsafe import Markup

from ..claims import InputError

# All that a table of ``render.table_fragment`` is made of, and plain emphasis. None of these
# elements or attributes can run anything, load anything or change the page outside the table.
_TABLE = {"table", "caption", "colgroup", "col", "thead", "tbody", "tfoot", "tr", "th", "td"}
_TEXT = {"b", "bdi", "br", "code", "em", "i", "small", "span", "strong", "sub", "sup"}
_VOID = {"br", "col"}
_ATTRIBUTES = {"class", "colspan", "dir", "headers", "lang", "rowspan", "scope", "title"}


def load_fragment(path: Path) -> Markup:
    """Read one ``<table>`` whose text was escaped when it was written.

    Raises:
        InputError: it holds anything but a table and plain text, or its tags do not match.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    checker = _Checker(path)
    checker.feed(text)
    checker.close()
    checker.finish()
    return Markup(text)


class _Checker(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self._path = path
        self._open: list[str] = []
        self._tables = 0

    def _refuse(self, what: str) -> None:
        line, column = self.getpos()
        raise InputError(
            f"{self._path}, line {line}, column {column + 1}: {what}; a table of the report is "
            "one <table> with escaped text: write it with susceptibilities.render.table_fragment"
        )

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TABLE | _TEXT:
            self._refuse(f"element <{tag}>")
        if tag == "table":
            self._tables += 1
        if not self._open and (tag != "table" or self._tables > 1):
            self._refuse(f"<{tag}> outside the table")
        for name, _ in attrs:
            if name not in _ATTRIBUTES:
                self._refuse(f"attribute {name} of <{tag}>")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self._refuse(f"</{tag}> without its beginning")

    def handle_data(self, data: str) -> None:
        if not self._open and data.strip():
            self._refuse(f"text outside the table: {data.strip()[:40]!r}")

    def handle_comment(self, data: str) -> None:
        self._refuse("a comment")

    def handle_decl(self, decl: str) -> None:
        self._refuse(f"<!{decl[:40]}>")

    def unknown_decl(self, data: str) -> None:
        self._refuse(f"<![{data[:40]}]>")

    def handle_pi(self, data: str) -> None:
        self._refuse(f"<?{data[:40]}>")

    def finish(self) -> None:
        """What can only be seen at the end."""
        if self._open or self._tables != 1:
            self._refuse(f"<{self._open[-1]}> is not closed" if self._open else "no table")
