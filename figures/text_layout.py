"""Token text on a grid of columns, for figures: which letter stands where, and line breaks."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby

from matplotlib.font_manager import findfont, get_font

from susceptibilities.visible import Kind, escape, pieces

MONO, SANS = "DejaVu Sans Mono", "DejaVu Sans"  # both come with matplotlib
ADVANCE = 1233 / 2048  # of every glyph of the monospaced font, in ems
TAB = 4


@dataclass(frozen=True)
class Cell:
    """What stands in one or more columns of a line: a letter with its marks, or an escape."""

    token: int
    kind: Kind
    text: str
    columns: int = 1
    column: int = 0  # where it begins in its line


@cache
def glyph(family: str, character: str) -> float | None:
    """Advance of a character in ems, or None where the font does not have it."""
    font = get_font(findfont(family))
    if not font.get_char_index(ord(character)):
        return None
    font.set_size(100, 72)
    return font.load_char(ord(character)).linearHoriAdvance / 65536 / 100


def plain(text: str) -> bool:
    """Whether this is one letter of the monospaced font."""
    return len(text) == 1 and glyph(MONO, text) is not None


def cells(token: int, text: str) -> Iterator[Cell]:
    """Cells of one token, in the order in which they are drawn.

    Letters that none of the fonts has are written as escapes. Runs of right-to-left letters are
    turned around, within the token only; letters are not joined.
    """
    for kind, part in pieces(text):
        if kind == "text":
            letters = list(_letters(token, part))
            for backwards, group in groupby(letters, lambda cell: _right_to_left(cell.text[0])):
                run = list(group)
                yield from reversed(run) if backwards else run
        else:
            yield Cell(token, kind, part, len(part))


def _letters(token: int, text: str) -> Iterator[Cell]:
    clusters: list[str] = []
    for character in text:
        if clusters and unicodedata.category(character).startswith("M"):
            clusters[-1] += character
        else:
            clusters.append(character)
    for cluster in clusters:
        cluster = unicodedata.normalize("NFC", cluster)
        if plain(cluster):
            yield Cell(token, "text", cluster)
        elif all(glyph(SANS, c) is not None for c in cluster):
            wide = (glyph(SANS, cluster[0]) or 0.0) > 1.25 * ADVANCE
            yield Cell(token, "text", cluster, 2 if wide else 1)
        else:
            written = "".join(escape(c) for c in cluster)
            yield Cell(token, "escape", written, len(written))


def _right_to_left(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("R", "AL")


def lines(tokens: Sequence[str], columns: int) -> list[list[Cell]]:
    """Lines of at most ``columns`` columns, broken after spaces where that is possible."""
    words: list[list[Cell]] = [[]]
    for token, text in enumerate(tokens):
        for cell in cells(token, text):
            words[-1].append(cell)
            if cell.kind in ("space", "newline", "tab") or len(words[-1]) >= columns:
                words.append([])
    found: list[list[Cell]] = [[]]
    at = 0
    for word in words:
        # A space may stick out of the last column: it is nothing but a mark.
        length = sum(cell.columns for cell in word if cell.kind in ("text", "escape"))
        if at and at + length > columns:
            found.append([])
            at = 0
        for cell in word:
            if at and at + cell.columns > columns and cell.kind in ("text", "escape"):
                found.append([])
                at = 0
            wide = TAB - at % TAB if cell.kind == "tab" else cell.columns
            found[-1].append(replace(cell, column=at, columns=wide))
            at += wide
            if cell.kind == "newline":
                found.append([])
                at = 0
    return found if found[-1] or len(found) == 1 else found[:-1]
