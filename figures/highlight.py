"""Highlighted text (Figures 1, 8 and 32) as PDF and PNG, and as a page that opens from disk."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke

from common import GREY, WIDTH, save
from susceptibilities.console import run as run_script
from susceptibilities.highlight import (
    MEANINGS,
    SCHEMES,
    Highlight,
    Key,
    Panel,
    Scheme,
    keys,
    kinds,
    load_highlight,
    shade,
    shared_keys,
    signed,
)
from susceptibilities.markup import write_text
from susceptibilities.render import highlight_page
from susceptibilities.visible import printable
from text_layout import ADVANCE, MONO, SANS, Cell, lines, plain

SIZES = {1: 6.8, 2: 6.4, 3: 5.8, 4: 5.2}  # columns -> size of the text in points
NARROW = 300.0  # points: below this a legend has two lines a track
MARK = "#00000073"
COLOR_NAMES: dict[Scheme, tuple[str, str]] = {
    "paper": ("green", "red"),
    "blue-orange": ("blue", "orange"),
}
HALO = [withStroke(linewidth=1.1, foreground="#FFFFFFB3")]


@dataclass(frozen=True)
class Style:
    """Sizes of one figure, in points, and its colors."""

    spec: Highlight
    scheme: Scheme
    size: float

    @property
    def cell(self) -> float:
        return self.size * ADVANCE

    @property
    def pitch(self) -> float:
        return 1.95 * self.size

    @property
    def bar(self) -> float:
        return 1.62 * self.size

    def paint(self, value: float, key: Key) -> tuple[float, ...]:
        """RGBA of a value, each from 0 to 1."""
        chosen = shade(value, key.limit, key.kind, self.spec.opacity)
        pair = SCHEMES[self.scheme][self.spec.opacity]
        rgb = pair.green if chosen.green else pair.red
        return (*(part / 255 for part in rgb), chosen.alpha)


def write(ax: Axes, x: float, y: float, text: str, size: float, **how: Any) -> None:
    """Text with its middle at height y. Never read as mathematics: a dollar is a dollar."""
    settings: dict[str, Any] = {"va": "center_baseline", "ha": "left", "color": "#222222"} | how
    ax.text(x, y, text, fontsize=size, parse_math=False, **settings)


def draw_lines(
    ax: Axes, rows: list[list[Cell]], panel: Panel, x: float, y: float, style: Style
) -> None:
    """The bars of every token, then the text over them."""
    bars, colors, edges = [], [], []
    names = keys(panel)
    for number, row in enumerate(rows):
        top = y + number * style.pitch
        for token, group in groupby(row, key=lambda cell: cell.token):
            run = list(group)
            left = x + run[0].column * style.cell
            right = x + (run[-1].column + run[-1].columns) * style.cell
            edges.append(((left, left), (top, top + style.bar)))
            for place, (track, key) in enumerate(zip(panel.tracks, names, strict=True)):
                value = track.values[token]
                if value is None:
                    continue
                height = style.bar / len(names)
                bars.append(Rectangle((left, top + place * height), right - left, height))
                colors.append(style.paint(value, key))
        draw_text(ax, row, x, top + style.bar / 2, style)
    ax.add_collection(
        PatchCollection(bars, facecolors=colors, edgecolors="none", linewidths=0, zorder=1)
    )
    # One line of all edges, lifted between them.
    gaps = [(*pair, np.nan) for pair in np.asarray(edges).reshape(-1, 2).tolist()]
    flat = np.asarray(gaps).reshape(-1, 2, 3)
    ax.plot(flat[:, 0].ravel(), flat[:, 1].ravel(), color="#00000026", linewidth=0.4, zorder=2)


def draw_text(ax: Axes, row: list[Cell], x: float, y: float, style: Style) -> None:
    """Words in one piece, so that they stay on their columns; marks and rare letters alone."""

    def alone(cell: Cell) -> int:
        return -1 if cell.kind == "text" and plain(cell.text) else cell.column

    shape: dict[str, Any] = {"family": [MONO, SANS], "zorder": 3}
    spaces = [cell.column for cell in row if cell.kind == "space"]
    ax.plot(
        x + (np.asarray(spaces) + 0.5) * style.cell,
        np.full(len(spaces), y),
        linestyle="none",
        marker=".",
        markersize=0.22 * style.size,
        markeredgewidth=0,
        color=MARK,
        zorder=3,
    )
    for place, group in groupby(row, key=alone):
        run = list(group)
        left = x + run[0].column * style.cell
        first = run[0]
        if place < 0:
            word = "".join(cell.text for cell in run)
            write(ax, left, y, word, style.size, color="#000000", path_effects=HALO, **shape)
        elif first.kind in ("newline", "tab"):
            mark = "↵" if first.kind == "newline" else "⇥"
            write(ax, left, y, mark, style.size, color=MARK, **shape)
        elif first.kind == "escape":
            middle = left + 0.5 * first.columns * style.cell
            small = 0.88 * style.size
            write(ax, middle, y, first.text, small, color="#000000A0", ha="center", **shape)
        elif first.kind == "text":
            middle = left + 0.5 * first.columns * style.cell
            write(ax, middle, y, first.text, style.size, color="#000000", ha="center", **shape)


def legend_height(names: Sequence[Key], width: float) -> float:
    """Points that the legend takes; where there is little room, a name stands over its scale."""
    return len(names) * (11.0 if width > NARROW else 20.0)


def draw_legend(
    ax: Axes, names: Sequence[Key], x: float, y: float, width: float, style: Style
) -> None:
    """A track's place among the bars, its name, and its colors from end to end."""
    narrow = width <= NARROW
    for place, key in enumerate(names):
        middle = y + place * legend_height(names[:1], width) + 5
        if key.place:
            third = 7 / len(names)
            ax.add_patch(Rectangle((x, middle - 3.5), 8, 7, fill=False, ec=GREY, lw=0.4))
            ax.add_patch(Rectangle((x, middle - 3.5 + place * third), 8, third, fc="#222222"))
        name = textwrap.shorten(printable(key.name), 38, placeholder="…")
        write(ax, x + (12 if key.place else 0), middle, name, 6.6)
        middle += 9 if narrow else 0
        side = 5 if narrow else 7
        left = x + (56 if narrow else 200)
        first, last = (signed(value, key.unit) for value in (key.scale[0], key.scale[-1]))
        write(ax, left - 4, middle, first, 6, ha="right", color=GREY)
        for step, value in enumerate(key.scale):
            fill = style.paint(value, key)
            ax.add_patch(Rectangle((left + side * step, middle - 3.5), side, 7, fc=fill, lw=0))
        wide = side * len(key.scale)
        ax.add_patch(Rectangle((left, middle - 3.5), wide, 7, fill=False, ec="#CCCCCC", lw=0.4))
        write(ax, left + wide + 4, middle, last, 6, color=GREY)


def meanings(spec: Highlight, scheme: Scheme) -> list[str]:
    """What the colors mean, a line for each kind of value."""
    green, red = COLOR_NAMES[scheme]
    found = []
    for kind in kinds(spec.panels):
        good, bad = MEANINGS[kind]
        first = f"{green} means {good}, " if good else ""
        found.append(f"{kind.capitalize()}: {first}{red} means {bad}.")
    grows = "the value" if spec.opacity == "linear" else "the square of the value"
    found.append(f"Opacity is proportional to {grows}, full from the ends of the scale on.")
    return found


def draw(spec: Highlight, scheme: Scheme = "paper") -> Figure:
    """The whole figure: panels in rows of ``spec.columns``, legend above them."""
    width = 72 * WIDTH
    columns = max(1, min(spec.columns, len(spec.panels)))
    style = Style(spec, scheme, SIZES[columns])
    gap, pad = 8.0, 5.0
    wide = (width - gap * (columns - 1)) / columns
    room = int((wide - 2 * pad) / style.cell)
    shared = shared_keys(spec.panels)
    laid = [lines(panel.tokens, room) for panel in spec.panels]

    title = textwrap.wrap(printable(spec.title), 88)
    words = textwrap.wrap(printable(spec.subtitle), 128)
    words += textwrap.wrap(" ".join(meanings(spec, scheme)), 128)
    heads = [
        (10 if panel.label else 0) + (0 if shared else legend_height(keys(panel), wide) + 3)
        for panel in spec.panels
    ]
    tall = [
        head + len(rows) * style.pitch + 2 * pad - (style.pitch - style.bar)
        for head, rows in zip(heads, laid, strict=True)
    ]
    starts = range(0, len(tall), columns)
    top = (
        13 * len(title) + 10 * len(words) + (legend_height(shared, width) + 4 if shared else 0) + 8
    )
    height = top + sum(max(tall[i : i + columns]) + gap for i in starts)

    figure = plt.figure(figsize=(WIDTH, height / 72))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    y = 6.0
    for line in title:
        write(ax, 0, y, line, 10, fontweight="bold")
        y += 13
    for line in words:
        write(ax, 0, y, line, 7.2, color=GREY)
        y += 10
    draw_legend(ax, shared, 0, y, width, style)
    y = top
    for start in starts:
        for place in range(start, min(start + columns, len(tall))):
            panel, x, below = spec.panels[place], (place - start) * (wide + gap), y
            if panel.label:
                write(ax, x, y + 4, printable(panel.label), 7.4, fontweight="bold")
                below += 10
            if not shared:
                draw_legend(ax, keys(panel), x, below, wide, style)
            below = y + heads[place]
            box = FancyBboxPatch(
                (x, below),
                wide,
                tall[place] - heads[place],
                boxstyle="round,pad=0,rounding_size=2",
                facecolor="none",
                edgecolor="#CCCCCC",
                linewidth=0.5,
            )
            ax.add_patch(box)
            draw_lines(ax, laid[place], panel, x + pad, below + pad, style)
        y += max(tall[start : start + columns]) + gap
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    parser.add_argument("--spec", type=Path, required=True, help="a <name>.highlight.json")
    parser.add_argument(
        "--out", type=Path, help="figure, path without suffix [<results>/figures/<name>]"
    )
    parser.add_argument(
        "--page", type=Path, help="write the HTML page here; no figure without --out"
    )
    parser.add_argument("--scheme", choices=SCHEMES, default="paper", help="the figure's colors")
    given = parser.parse_args()
    spec = load_highlight(given.spec)
    if given.page:
        write_text(given.page, highlight_page(spec))
    if given.out or not given.page:
        name = given.spec.name.removesuffix(".json").removesuffix(".highlight")
        save(draw(spec, given.scheme), given.out or given.results / "figures" / name)


if __name__ == "__main__":
    run_script(main)
