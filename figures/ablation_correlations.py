"""All correlations of susceptibility, ablation delta and loss over tokens, as heat maps."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from common import FORM_TITLES, GREY, ROLE_COLORS, WIDTH, Run, header
from susceptibilities.naming import head_of
from susceptibilities.tokens import CONTROL_PROBE

PAIRS = ("susceptibility-ablation", "susceptibility-loss", "ablation-loss")
BOUND = 0.1  # of a negligible correlation, as the claim states it
ORDER = ("chi", "rank_one", "mean_shift", "covariance")
COLORS = "RdBu_r"
# Marks of |r| with either quantity, in the row of what noise allows.
MARKS = {PAIRS[0]: ("#0072B2", "o", "ablation\ndelta"), PAIRS[1]: ("#D55E00", "s", "loss")}
GAP = 0.33  # inches between rows

Tables = dict[str, pl.DataFrame]


def layer_of(head: str) -> int:
    return (head_of(head) or (0, 0))[0]


def rows_of(
    table: pl.DataFrame, pair: str, statistic: str, form: str | None, control: bool
) -> pl.DataFrame:
    """Correlations of one panel; ``form`` is None for a pair without a susceptibility."""
    same = pl.col("form").is_null() if form is None else pl.col("form") == form
    return table.filter(
        (pl.col("pair") == pair)
        & (pl.col("statistic") == statistic)
        & (pl.col("control") == control)
        & same
    )


def limit(chosen: Sequence[pl.DataFrame]) -> Normalize:
    """Colors symmetric about zero, to the next tenth beyond the largest |value|."""
    largest = [float(rows["value"].abs().max() or 0.0) for rows in chosen]  # type: ignore[arg-type]
    size = max(0.1, np.ceil(10 * max(largest, default=1.0)) / 10)
    return Normalize(-size, size)


def heat(
    ax: Axes, rows: pl.DataFrame, probes: Sequence[str], heads: Sequence[str], norm: Normalize
) -> None:
    """Values (probe, head) as colors; a dot where the interval lies beyond the bound."""
    place = {(r["probe"], r["head"]): r for r in rows.iter_rows(named=True)}
    values = np.full((len(probes), len(heads)), np.nan)
    for i, probe in enumerate(probes):
        for j, head in enumerate(heads):
            row = place.get((probe, head))
            if row is None or row["value"] is None:
                continue
            values[i, j] = row["value"]
            if row["low"] is not None and (row["low"] > BOUND or row["high"] < -BOUND):
                ax.plot(j, i, ".", color="#111111", markersize=1.7)
    ax.imshow(values, norm=norm, cmap=COLORS, aspect="auto", interpolation="none")
    for j in np.flatnonzero(np.diff([layer_of(h) for h in heads])):
        ax.axvline(j + 0.5, color="white", linewidth=1.2)
    ax.set_xticks(range(len(heads)), [""] * len(heads))
    ax.set_yticks(range(len(probes)), [""] * len(probes))
    ax.tick_params(length=0, pad=2)
    for spine in ax.spines.values():
        spine.set_visible(False)


def head_axis(ax: Axes, heads: Sequence[str], run: Run) -> None:
    """Numbers of the heads under a panel in the colors of their roles, their layers below."""
    ax.set_xticks(range(len(heads)), [h.split(":")[1] for h in heads], fontsize=4.5)
    for label, head in zip(ax.get_xticklabels(), heads, strict=True):
        label.set_color(ROLE_COLORS.get(run.roles.get(head, ""), GREY))
        label.set_fontweight("bold")
    ax.tick_params(axis="x", length=0, pad=2)
    for layer in sorted({layer_of(h) for h in heads}):
        middle = float(np.mean([j for j, h in enumerate(heads) if layer_of(h) == layer]))
        ax.annotate(
            f"layer {layer}",
            (middle, 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -9),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=5.5,
            color=GREY,
        )


def draw_ceiling(
    ax: Axes, allowed: pl.DataFrame, chosen: dict[str, pl.DataFrame], heads: Sequence[str]
) -> None:
    """Bars: the largest |r| that noise allows, by head; marks: |r| on every domain."""
    place = {r["head"]: r for r in allowed.iter_rows(named=True)}
    for j, head in enumerate(heads):
        if head in place and place[head]["ceiling"] is not None:
            ax.bar(j, place[head]["ceiling"], width=0.86, color="#DDDDDD")
            ax.errorbar(
                j,
                place[head]["ceiling"],
                place[head]["ceiling_se"] or 0.0,
                ecolor="#777777",
                lw=0.6,
            )
    for (pair, rows), shift in zip(chosen.items(), (-0.2, 0.2), strict=True):
        color, marker, _ = MARKS[pair]
        known = rows.filter(pl.col("value").is_not_null())
        at = [heads.index(h) + shift for h in known["head"]]
        ax.plot(at, known["value"].abs(), marker, color=color, markersize=1.1, markeredgewidth=0)
    ax.set_xlim(-0.5, len(heads) - 0.5)
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.5, 1], [""] * 3)
    ax.tick_params(labelsize=6, length=1.5, pad=2)
    ax.set_xticks([])


def row_title(figure: Figure, grid: GridSpec, row: int, text: str, above: float) -> None:
    """A title over a row of panels, flush left with the figure."""
    box = grid[row, 0].get_position(figure)
    y = box.y1 + above / figure.get_size_inches()[1]
    figure.text(0.008, y, text, fontsize=7.5, va="bottom")


def color_bar(figure: Figure, grid: GridSpec, row: int, norm: Normalize) -> None:
    box = grid[row, 0].get_position(figure)
    bar = figure.colorbar(
        ScalarMappable(norm, COLORS), cax=figure.add_axes((0.94, box.y0, 0.012, box.height))
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=6, length=1.5)
    bar.ax.yaxis.set_major_locator(MaxNLocator(4))


def draw_correlations(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Every correlation, for chi, its parts and the control, over what noise allows."""
    table = tables["correlations"]
    probes = [p for p in [*run.domains, CONTROL_PROBE] if p in set(table["probe"].unique())]
    heads = sorted(table["head"].unique().to_list(), key=lambda h: head_of(h) or (0, 0))
    sources = [(form, False) for form in ORDER]
    if table["control"].any():
        sources.append(("chi", True))
    panel = max(0.55, 0.098 * len(probes))
    figure = plt.figure(figsize=(WIDTH, 1.1 + 4 * panel + 3 * GAP))
    height = figure.get_size_inches()[1]
    grid = figure.add_gridspec(
        4,
        len(sources),
        left=0.155,
        right=0.925,
        top=1 - 0.74 / height,
        bottom=0.36 / height,
        hspace=GAP / panel,
        wspace=0.07,
    )
    quantities = {
        PAIRS[0]: "Pearson r of susceptibility and ablation delta",
        PAIRS[1]: "Pearson r of susceptibility and loss",
    }
    for row, (pair, text) in enumerate(quantities.items()):
        chosen = [rows_of(table, pair, "pearson", *source) for source in sources]
        norm = limit(chosen)
        for column, (rows, (form, control)) in enumerate(zip(chosen, sources, strict=True)):
            ax = figure.add_subplot(grid[row, column])
            heat(ax, rows, probes, heads, norm)
            if row == 0:
                title = "χ, control nβ = 0" if control else FORM_TITLES[form]
                ax.set_title(title, fontsize=7, pad=3)
            if column == 0:
                ax.set_yticks(range(len(probes)), probes, fontsize=6)
        color_bar(figure, grid, row, norm)
        row_title(figure, grid, row, text, 0.17 if row == 0 else 0.05)
    for column, (form, control) in enumerate(sources):
        ax = figure.add_subplot(grid[2, column])
        allowed = tables["ceilings"].filter(
            (pl.col("form") == form) & (pl.col("control") == control)
        )
        draw_ceiling(
            ax,
            allowed,
            {pair: rows_of(table, pair, "pearson", form, control) for pair in MARKS},
            heads,
        )
        if column == 0:
            ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    row_title(
        figure, grid, 2, "Gray: the largest |r| that noise allows. Marks: |r| by domain", 0.05
    )
    box = grid[2, 0].get_position(figure)
    figure.legend(
        handles=[
            Line2D([], [], color=color, marker=marker, linestyle="", markersize=2.5, label=name)
            for color, marker, name in MARKS.values()
        ],
        loc="upper left",
        bbox_to_anchor=(0.922, box.y1),
        fontsize=6,
        handlelength=0.6,
        handletextpad=0.4,
        borderpad=0.2,
    )
    last = [
        ("abl. delta, loss: r", rows_of(table, PAIRS[2], "pearson", None, False)),
        ("abl. delta, loss: rank r", rows_of(table, PAIRS[2], "spearman", None, False)),
        ("χ, abl. delta: rank r", rows_of(table, PAIRS[0], "spearman", "chi", False)),
        ("χ, loss: rank r", rows_of(table, PAIRS[1], "spearman", "chi", False)),
    ]
    norm = limit([rows for _, rows in last])
    for column, (text, rows) in enumerate(last):
        ax = figure.add_subplot(grid[3, column])
        heat(ax, rows, probes, heads, norm)
        ax.set_title(text, fontsize=6.5, pad=2)
        head_axis(ax, heads, run)
        if column == 0:
            ax.set_yticks(range(len(probes)), probes, fontsize=6)
    color_bar(figure, grid, 3, norm)
    figure.legend(
        handles=[
            Patch(color=ROLE_COLORS[role], label=role)
            for role in ROLE_COLORS
            if role in run.roles.values()
        ],
        loc="lower left",
        bbox_to_anchor=(0.15, -0.2 / height),
        ncols=len(ROLE_COLORS),
        fontsize=6,
        handlelength=0.7,
        handleheight=0.7,
        columnspacing=1.4,
    )
    header(
        figure,
        "Correlations over tokens: every head, every domain",
        f"model {run.label} · columns of a panel: heads · dot: the 95 % interval lies beyond "
        f"±{BOUND:g}",
    )
    return figure, table
