"""Results as HTML: a table for the report, and text with its tokens highlighted.

Token text is other people's: it may hold markup, control characters or marks that change the
direction of what follows. All of it is escaped, and whatever cannot be seen is written out
(``visible.pieces``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from .highlight import (
    MEANINGS,
    SCHEMES,
    UNITS,
    Highlight,
    Key,
    Kind,
    Opacity,
    Panel,
    Track,
    color,
    keys,
    kinds,
    load_highlight,
    save_highlight,
    shade,
    shared_keys,
    signed,
)
from .markup import environment, write_text
from .report.numbers import format_count, format_number
from .store import atomic_path, fingerprint
from .visible import pieces, printable, visible

__all__ = [
    "Highlight",
    "Panel",
    "Track",
    "color",
    "highlight_fragment",
    "highlight_page",
    "load_highlight",
    "save_highlight",
    "table_fragment",
    "visible",
    "write_table",
    "write_text",
]


def table_fragment(
    frame: pl.DataFrame,
    labels: Mapping[str, str],
    caption: str = "",
    numbers: Collection[str] = (),
) -> str:
    """An HTML table by itself, all text escaped, to be embedded in the report.

    Args:
        frame: one row a row of the table, in its order. Strings are shown as given (pass tokens
            through ``visible`` first), integers with thousands apart, floats with four
            significant digits, null and NaN as nothing. Numbers stand flush right.
        labels: column of the frame -> its heading. Only these are shown, in this order; the
            first heads the rows.
        numbers: columns of strings that are numbers written out, such as "0.12 ± 0.03".

    Raises:
        ValueError: a label or a name in ``numbers`` for which there is no column, no label at
            all, or a column of lists.
    """
    if missing := [name for name in (*labels, *numbers) if name not in frame.columns]:
        raise ValueError(f"table: no column {', '.join(missing)}; found {frame.columns}")
    if not labels:
        raise ValueError(f"table: no column chosen; found {frame.columns}")
    if nested := [name for name in labels if frame.schema[name].is_nested()]:
        raise ValueError(f"table: column {', '.join(nested)} holds lists; write them out as text")
    shown = frame.select(*labels)
    flush_right = [
        place
        for place, (name, dtype) in enumerate(shown.schema.items())
        if dtype.is_numeric() or name in numbers
    ]
    module: Any = environment().get_template("table.jinja").module
    fragment = module.plain_table(
        printable(caption),
        [printable(label) for label in labels.values()],
        [[cell(value) for value in row] for row in shown.iter_rows()],
        flush_right,
    )
    return str(fragment).strip() + "\n"


def write_table(
    out: Path,
    frame: pl.DataFrame,
    labels: Mapping[str, str],
    caption: str = "",
    numbers: Collection[str] = (),
) -> None:
    """Write ``out``.html, as ``table_fragment`` makes it, and ``out``.csv with all columns."""
    fragment = table_fragment(frame, labels, caption, numbers)
    with atomic_path(out.with_name(f"{out.name}.csv")) as path:
        frame.write_csv(path)
    write_text(out.with_name(f"{out.name}.html"), fragment)


def cell(value: Any) -> str:
    """One value as the text of a table's cell."""
    if value is None or value != value:  # NaN is not itself
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_count(value)
    if isinstance(value, float):
        return format_number(value)
    return printable(str(value))


def highlight_page(spec: Highlight) -> str:
    """A whole page of highlighted text; it opens from disk and loads nothing."""
    template = environment().get_template("highlight.html.jinja")
    return template.render(spec=_heading(spec), fragment=Markup(highlight_fragment(spec)))


def highlight_fragment(spec: Highlight) -> str:
    """The text, its legend and the choice of colors, without the style sheet.

    Each token is a span with its bars as the background and its values, signed, as the title.
    Bars name their color by a custom property, so that the reader's choice needs no script.
    """
    shared = shared_keys(spec.panels)
    return (
        environment()
        .get_template("highlight.jinja")
        .render(
            uid=f"h{fingerprint(spec.model_dump())[:8]}",
            colors={
                f"{scheme}-{name}": ",".join(map(str, rgb))
                for scheme, pairs in SCHEMES.items()
                for name, rgb in pairs[spec.opacity]._asdict().items()
            },
            spec=spec,
            columns=max(1, min(spec.columns, len(spec.panels))),
            shared=[
                _key(key, spec.opacity, place, len(shared)) for place, key in enumerate(shared)
            ],
            kinds=kinds(spec.panels),
            meanings=MEANINGS,
            panels=[
                {
                    "label": printable(panel.label),
                    "bars": len(panel.tracks),
                    "keys": []
                    if shared
                    else [
                        _key(key, spec.opacity, place, len(panel.tracks))
                        for place, key in enumerate(keys(panel))
                    ],
                    "tokens": Markup("").join(
                        _token(panel, place, spec.opacity) for place in range(len(panel.tokens))
                    ),
                    "head": ["", "Token", *(_heading_of(track) for track in panel.tracks)],
                    "rows": list(_values(panel)),
                }
                for panel in spec.panels
            ],
        )
    )


def _heading(spec: Highlight) -> dict[str, str]:
    return {"title": printable(spec.title), "subtitle": printable(spec.subtitle)}


def _heading_of(track: Track) -> str:
    return f"{printable(track.name)} ({UNITS[track.kind]})"


def _values(panel: Panel) -> Iterable[list[str]]:
    """Rows of the table of values: place, token, one value a track."""
    columns = [track.values for track in panel.tracks]
    for place, (token, *values) in enumerate(zip(panel.tokens, *columns, strict=True)):
        yield [str(place), visible(token), *("" if v is None else signed(v) for v in values)]


def _key(key: Key, opacity: Opacity, place: int, bars: int) -> dict[str, Any]:
    """A line of the legend, for the template."""
    return {
        "place": key.place,
        "top": f"{100 * place / bars:.4g}%",
        "bottom": f"{100 * (place + 1) / bars:.4g}%",
        "name": printable(key.name),
        "kind": key.kind,
        "ends": [signed(value, key.unit) for value in (key.scale[0], key.scale[-1])],
        "swatches": [_paint(value, key.limit, key.kind, opacity) for value in key.scale],
    }


def _paint(value: float, limit: float, kind: Kind, opacity: Opacity) -> str:
    """``color``, with the name of the color in place of its numbers."""
    chosen = shade(value, limit, kind, opacity)
    return f"rgba(var(--{'green' if chosen.green else 'red'}),{chosen.alpha:.4g})"


def _token(panel: Panel, place: int, opacity: Opacity) -> Markup:
    """The span of one token."""
    bars, lines = [], []
    for letter, track in zip("abc", panel.tracks, strict=False):
        value = track.values[place]
        lines.append(f"{printable(track.name)}: {signed(value, UNITS[track.kind])}")
        if value is not None and shade(value, track.limit, track.kind, opacity).alpha > 0:
            bars.append(f"--{letter}:{_paint(value, track.limit, track.kind, opacity)}")
    body = Markup("").join(_piece(kind, text) for kind, text in pieces(panel.tokens[place]))
    return Markup('<span class="t" style="{}" title="{}">{}</span>').format(
        ";".join(bars), "\n".join(lines), body
    )


def _piece(kind: str, text: str) -> Markup:
    """A run of a token's text; the style sheet adds the marks of spaces, breaks and tabs."""
    if kind == "text":
        # A bdi element keeps the direction of what it holds to itself.
        return Markup("<bdi>{}</bdi>").format(text)
    if kind == "newline":
        return Markup('<i class="newline"></i><br>')
    return Markup('<i class="{}">{}</i>').format(kind, text)
