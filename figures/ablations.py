"""Figures 7 and 31 and all correlations: susceptibility, ablation delta and loss of tokens."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ablation_correlations import draw_correlations
from common import (
    WIDTH,
    Run,
    arguments,
    empty_page,
    header,
    load_run,
    outputs,
    probe_title,
    save,
)
from susceptibilities.console import run as run_script
from susceptibilities.subsets import absent, place_of
from susceptibilities.tokens import CONTROL_PROBE

FOLDER = "baker2025/s4_3_ablations"
TABLES = ("correlations", "ceilings", "density")
SUBSETS = ("github", "dm_mathematics")
HEADS = ("0:0", "1:2")
PAIRS = ("susceptibility-ablation", "susceptibility-loss", "ablation-loss")
AXIS_LABELS = {
    "susceptibility": "susceptibility",
    "ablation": "ablation delta",
    "loss": "loss",
}
UNITS = {"susceptibility": "nats²", "ablation": "nats", "loss": "nats"}
COUNTS = "viridis"

Tables = dict[str, pl.DataFrame]


def number(value: float, digits: int = 2) -> str:
    """A value with a true minus sign, and no sign on zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def named(head: str, run: Run) -> str:
    return f"{head} {run.roles.get(head, '')}".rstrip()


def most_of(cells: pl.DataFrame) -> int:
    """The fullest hexagon, at least 2, as a logarithmic scale from 1 needs."""
    return max(2, int(cells["count"].max()))  # type: ignore[arg-type]


def hexbin(ax: Axes, cells: pl.DataFrame, norm: Normalize) -> PolyCollection:
    """Draw saved hexagons; the axes end where their lattice does."""
    width, height = cells["width"][0], cells["height"][0]
    corner = np.array([[0.5, -0.5], [0.5, 0.5], [0.0, 1.0], [-0.5, 0.5], [-0.5, -0.5], [0.0, -1.0]])
    shape = corner * np.array([width, height / 3])
    centers = cells.select("x", "y").to_numpy()
    drawn = PolyCollection(
        (centers[:, None] + shape[None]).tolist(),
        array=cells["count"].to_numpy(),
        norm=norm,
        cmap=COUNTS,
        edgecolors="face",
        linewidths=0.15,
    )
    ax.add_collection(drawn)
    for line in (ax.axhline, ax.axvline):
        line(0.0, color="#999999", linewidth=0.5, zorder=0)
    low, high = centers.min(0), centers.max(0)
    ax.set_xlim(low[0] - width, high[0] + width)
    ax.set_ylim(low[1] - height, high[1] + height)
    return drawn


def correlation(
    tables: Tables, probe: str, head: str, pair: str, control: bool = False
) -> dict[str, float] | None:
    """The row of Pearson's r of one panel, published form; None where it is undefined."""
    form = pl.col("form").is_null() if pair == PAIRS[2] else pl.col("form") == "chi"
    rows = tables["correlations"].filter(
        (pl.col("probe") == probe)
        & (pl.col("head") == head)
        & (pl.col("pair") == pair)
        & (pl.col("statistic") == "pearson")
        & (pl.col("control") == control)
        & form
    )
    if len(rows) != 1 or rows["value"][0] is None or rows["se"][0] is None:
        return None
    return rows.row(0, named=True)


def inset(ax: Axes, text: str, size: float, room: float) -> None:
    """Numbers at the top of a panel, which is made higher by a share of it to hold them."""
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + room * (high - low))
    ax.text(
        0.99,
        0.985,
        text,
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize=size,
        linespacing=1.35,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
    )


def spelled(row: dict[str, float] | None) -> str:
    if row is None:
        return "r undefined"
    return f"r = {number(row['value'], 3)} [{number(row['low'])}, {number(row['high'])}]"


def count_bar(figure: Figure, cax: Axes, drawn: PolyCollection, most: int, size: float) -> None:
    """A color bar of counts: its ends, and powers of ten between that have room."""
    bar = figure.colorbar(drawn, cax=cax)
    bar.outline.set_visible(False)  # type: ignore[operator]
    between = [10**k for k in range(1, 7) if 2 * 10**k <= most]
    ticks = [1, *between, most]
    bar.set_ticks(ticks, labels=[f"{t:,}" for t in ticks], minor=False)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=size, length=1.5, pad=1)


def draw_density(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Figure 7: susceptibility against ablation delta, two heads on two domains."""
    title = "Per-token susceptibility against ablation delta"
    places = [place_of(subset, run.domains) for subset in SUBSETS]
    cells = tables["density"]
    cells = cells.filter(pl.col("figure") == "fig7") if len(cells) else cells
    found = set(cells["probe"].unique()) if len(cells) else set()
    shown = [p.probe for p in places if p is not None and p.probe in found]
    if not shown:
        return empty_page(title, f"Not drawn: {absent(SUBSETS[0])}."), cells
    missing = [s for s, p in zip(SUBSETS, places, strict=True) if p is None or p.probe not in found]
    heads = [head for head in HEADS if head in set(cells["head"].unique())]
    figure = plt.figure(figsize=(WIDTH, 1.0 + 2.2 * len(shown)))
    height = figure.get_size_inches()[1]
    grid = figure.add_gridspec(
        len(shown),
        len(heads),
        left=0.1,
        right=0.91,
        top=1 - 0.62 / height,
        bottom=0.42 / height,
        hspace=0.2,
        wspace=0.2,
    )
    norm = LogNorm(1, most_of(cells))
    drawn = None
    for row, probe in enumerate(shown):
        for column, head in enumerate(heads):
            ax = figure.add_subplot(grid[row, column])
            mine = cells.filter((pl.col("probe") == probe) & (pl.col("head") == head))
            drawn = hexbin(ax, mine, norm)
            if row == 0:
                ax.set_title(f"head {named(head, run)}", fontweight="bold")
            if row == len(shown) - 1:
                ax.set_xlabel("susceptibility (nats²)")
            if column == 0:
                ax.set_ylabel(f"{probe_title(run, probe)}\nablation delta (nats)")
            lines = [spelled(correlation(tables, probe, head, PAIRS[0]))]
            allowed = tables["ceilings"].filter(
                (pl.col("head") == head) & (pl.col("form") == "chi") & ~pl.col("control")
            )["ceiling"]
            if len(allowed) and allowed[0] is not None:
                lines.append(f"noise allows |r| ≤ {number(allowed[0])}")
            control = correlation(tables, probe, head, PAIRS[0], control=True)
            if control is not None:
                lines.append(
                    f"control nβ = 0: r = {number(control['value'])} ± {number(control['se'])}"
                )
            inset(ax, "\n".join(lines), 6.5, 0.27)
    assert drawn is not None
    cax = figure.add_axes((0.925, 0.42 / height, 0.016, 1.6 / height))
    count_bar(figure, cax, drawn, most_of(cells), 6.5)
    cax.set_ylabel("tokens in a hexagon", fontsize=7)
    beyond = cells.select("probe", "head", "outside").unique()["outside"].max()
    gone = f" · no domain for {missing[0]}" if missing else ""
    header(
        figure,
        title,
        f"model {run.label} · all {cells['tokens'][0]:,} tokens of each domain, at most {beyond} "
        f"of them beyond an axis · in brackets: 95 % interval{gone}",
    )
    return figure, cells


def draw_pairs(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Figure 31: three pairwise comparisons for one head, one row a domain."""
    title = "Susceptibility, ablation delta and loss of each token, pair by pair"
    cells = tables["density"]
    cells = cells.filter(pl.col("figure") == "fig31") if len(cells) else cells
    if not len(cells):
        return empty_page(title, f"Not drawn: the model has no head {HEADS[0]}."), cells
    probes = [p for p in [*run.domains, CONTROL_PROBE] if p in set(cells["probe"].unique())]
    head = str(cells["head"][0])
    figure = plt.figure(figsize=(WIDTH, 0.95 + 1.22 * len(probes)))
    height = figure.get_size_inches()[1]
    grid = figure.add_gridspec(
        len(probes),
        len(PAIRS),
        left=0.066,
        right=0.945,
        top=1 - 0.6 / height,
        bottom=0.38 / height,
        hspace=0.42,
        wspace=0.42,
    )
    for row, probe in enumerate(probes):
        for column, pair in enumerate(PAIRS):
            ax = figure.add_subplot(grid[row, column])
            mine = cells.filter((pl.col("probe") == probe) & (pl.col("pair") == pair))
            drawn = hexbin(ax, mine, LogNorm(1, most_of(mine)))
            count_bar(figure, ax.inset_axes((1.03, 0.0, 0.035, 1.0)), drawn, most_of(mine), 5.5)
            across, up = pair.split("-")
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_locator(MaxNLocator(4))
            ax.tick_params(labelsize=6, pad=1.5)
            ax.set_ylabel(AXIS_LABELS[up], fontsize=6.5, labelpad=1)
            if row == len(probes) - 1:
                ax.set_xlabel(f"{AXIS_LABELS[across]} ({UNITS[across]})", fontsize=7)
            if column == 0:
                ax.set_title(probe_title(run, probe), fontsize=7.5, pad=3)
            inset(ax, spelled(correlation(tables, probe, head, pair)), 6, 0.2)
    header(
        figure,
        title,
        f"model {run.label} · head {named(head, run)} · all {cells['tokens'][0]:,} tokens of each "
        "domain · in brackets: 95 % interval",
    )
    return figure, cells


FIGURES: dict[str, Callable[[Tables, Run], tuple[Figure, pl.DataFrame]]] = {
    "fig7": draw_density,
    "fig31": draw_pairs,
    "ablation_correlations": draw_correlations,
}


def main() -> None:
    parser = arguments(__doc__, "<figure>")
    parser.add_argument("--figure", required=True, nargs="+", choices=FIGURES)
    given = parser.parse_args()
    tables = {name: pl.read_parquet(given.results / FOLDER / f"{name}.parquet") for name in TABLES}
    run = load_run(given.results)
    for name, out in outputs(given):
        save(FIGURES[name](tables, run)[0], out)


if __name__ == "__main__":
    run_script(main)
