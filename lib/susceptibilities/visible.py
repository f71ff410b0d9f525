"""Token text made visible: spaces, line breaks, control and direction marks, lone surrogates."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import groupby
from typing import Literal

Kind = Literal["text", "space", "newline", "tab", "escape"]

_WHITESPACE: dict[str, Kind] = {" ": "space", "\n": "newline", "\t": "tab"}
# What stands for them in a line of plain text. Not a middle dot: text has its own.
PLAIN_MARKS = {"space": "\N{OPEN BOX}", "newline": "↵", "tab": "⇥"}
# Letters and symbols that draw nothing.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_DOTTED_CIRCLE = "\N{DOTTED CIRCLE}"


def pieces(text: str) -> Iterator[tuple[Kind, str]]:
    r"""Cut text into runs of what is drawn as it is and of what needs a mark.

    Yields:
        ("text", letters as they are; a combining mark without a base gets a dotted circle),
        ("space" | "newline" | "tab", one such character),
        ("escape", ``\x00``, ``\u202e`` and so on for one character that draws nothing, or that
        would change how its neighbors are drawn: control, format and direction marks, spaces
        other than the ordinary one, lone surrogates, private and unassigned code points).
    """
    for kind, run in groupby(text, kind_of):
        if kind == "text":
            drawn = "".join(run)
            bare = unicodedata.category(drawn[0]).startswith("M")
            yield kind, _DOTTED_CIRCLE + drawn if bare else drawn
        else:
            for character in run:
                yield kind, escape(character) if kind == "escape" else character


def kind_of(character: str) -> Kind:
    """How one character has to be shown."""
    if character in _WHITESPACE:
        return _WHITESPACE[character]
    category = unicodedata.category(character)
    hidden = category[0] in "CZ" or character in _BLANK
    return "escape" if hidden else "text"


def escape(character: str) -> str:
    r"""The code point as Python writes it: ``\x1b``, ``\u202e``, ``\U000e0001``."""
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
    """A token's text for a table or a label: ``␣the``, ``↵``, ``\\x00``."""
    return "".join(PLAIN_MARKS.get(kind, part) for kind, part in pieces(text))


def printable(text: str) -> str:
    """Words as they are, with spaces, and all else that cannot be seen as in ``visible``."""
    return "".join(
        part if kind == "space" else PLAIN_MARKS.get(kind, part) for kind, part in pieces(text)
    )
