"""Figure 10, and the tokens that make the gap between two heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common import (
    GREY,
    WIDTH,
    Run,
    arguments,
    empty_page,
    head_label,
    header,
    load_run,
    outputs,
    probe_title,
    save,
)
from susceptibilities.console import run as run_script
from susceptibilities.subsets import absent, place_of
from susceptibilities.visible import visible

FOLDER = "baker2025/s4_5_token_attribution"
CODE = "github-all"
LISTED = 15  # tokens of Figure 10
LISTED_GAP = 10
NEGATIVE, POSITIVE = "#D55E00", "#0072B2"
GAPS = {
    "paper": "the paper's pair",
    "clearest": "largest in standard errors",
    "largest": "largest in size",
}

Tables = dict[str, pl.DataFrame]


def thousands(value: float) -> str:
    """A number with thousands apart, four significant digits where it is small."""
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


def token_bars(
    ax: Axes, rows: pl.DataFrame, value: str, noise: str | None, color: str | Sequence[str]
) -> None:
    """Horizontal bars with errors, one a token; white ticks: what noise alone would give."""
    y = np.arange(len(rows))[::-1]
    ax.barh(y, rows[value], height=0.72, color=color, alpha=0.9)
    ax.errorbar(
        rows[value],
        y,
        xerr=rows[f"{value}_se"],
        fmt="none",
        ecolor="#222222",
        elinewidth=0.7,
        capsize=1.3,
    )
    if noise is not None:
        ax.plot(rows[noise], y, "|", color="#1A1A1A", markersize=8.5, markeredgewidth=1.8)
        ax.plot(rows[noise], y, "|", color="white", markersize=7, markeredgewidth=0.9)
    names = [f"{visible(t)}  ×{count}" for t, count in rows.select("text", "count").iter_rows()]
    ax.set_yticks(y, names)
    ax.tick_params(axis="y", length=0, labelsize=7)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.spines["left"].set_visible(False)
    ax.axvline(0, color="#555555", linewidth=0.6)


def draw_negative(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Figure 10: the tokens that carry most of the negative total, for two heads."""
    tokens = tables["gap_tokens"].filter(pl.col("gap_name") == "paper")
    title = "Tokens with the largest negative totals"
    if tokens.is_empty():
        return empty_page(f"{title}: heads 0:0 and 0:1 on {CODE}", why_not(run)), tokens
    probe = tokens["probe"][0]
    figure = plt.figure(figsize=(WIDTH, 3.45))
    grid = figure.add_gridspec(1, 2, wspace=0.34, left=0.125, right=0.985, top=0.8, bottom=0.13)
    sides = sorted((tokens[f"head_{side}"][0], side) for side in "ab")
    drawn = []
    for column, (head, side) in enumerate(sides):
        ax = figure.add_subplot(grid[column])
        rows = tokens.with_columns(
            size=-pl.col(f"negative_{side}"), size_se=pl.col(f"negative_{side}_se")
        ).sort("size", descending=True)
        total = float(rows["size"].sum())
        noise = float(rows[f"noise_{side}"].sum())
        shown = rows.head(LISTED)
        token_bars(ax, shown, "size", f"noise_{side}", NEGATIVE)
        part = float(shown["size"].sum()) / total if total else 0.0
        ax.set_title(
            f"{head_label(head, run.roles)}: total −{thousands(total)}, noise alone "
            f"−{thousands(noise)}",
            fontsize=8,
        )
        ax.text(
            0.985,
            0.03,
            f"these {len(shown)}: {part:.0%} of the total",
            transform=ax.transAxes,
            ha="right",
            fontsize=7,
            color=GREY,
        )
        ax.set_xlabel("total negative susceptibility, size (nats²)")
        ax.set_xlim(left=0)
        drawn.append(shown)
    header(
        figure,
        f"{title} on {probe_title(run, probe)}",
        f"model {run.label} · for 163,680 tokens · beside a token: how often it was seen · "
        "errors over chains and contexts\nwhite ticks: what noise alone would give",
        top=0.02,
    )
    return figure, pl.concat(drawn)


def why_not(run: Run) -> str:
    """Why the paper's pair cannot be drawn."""
    found = place_of(CODE, run.domains)
    return absent(CODE) if found is None else "the model has no heads 0:0 and 0:1"


def draw_gaps(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Which tokens make the gap between two heads: the paper's pair and the largest gaps."""
    gaps, tokens = tables["gaps"], tables["gap_tokens"]
    figure = plt.figure(figsize=(WIDTH, 3.5))
    grid = figure.add_gridspec(
        1, len(gaps), wspace=0.55, left=0.105, right=0.985, top=0.6, bottom=0.13
    )
    drawn = []
    for column, gap in enumerate(gaps.iter_rows(named=True)):
        ax = figure.add_subplot(grid[column])
        mine = tokens.filter(pl.col("gap_name") == gap["gap_name"])
        rows = mine.sort(pl.col("gap").abs(), descending=True).head(LISTED_GAP)
        rows = rows.sort("gap", descending=True)
        colors = [POSITIVE if v > 0 else NEGATIVE for v in rows["gap"]]
        token_bars(ax, rows, "gap", None, colors)
        ax.locator_params(axis="x", nbins=4)
        ax.set_xlabel("part of the gap (nats²)")
        p = "p < 0.001" if gap["p"] < 0.001 else f"p = {gap['p']:.2g}"
        pair = f"{gap['head_a']} − {gap['head_b']} ({GAPS[gap['gap_name']]})"
        lines = [
            pair,
            f"on {probe_title(run, gap['probe'])}",
            f"gap {thousands(gap['gap'])} ± {thousands(gap['gap_se'])}",
            p if gap["gap_name"] == "paper" else f"{p}, corrected",
            f"rank-one part {thousands(gap['rank_one_gap'])} ± {thousands(gap['rank_one_gap_se'])}",
        ]
        if gap["control_gap"] is not None:
            control = f"{thousands(gap['control_gap'])} ± {thousands(gap['control_gap_se'])}"
            lines.append(f"n_beta = 0 control {control}")
        ax.set_title("\n".join(lines), fontsize=7)
        drawn.append(rows)
    header(
        figure,
        "Tokens that make the gap between two heads",
        f"model {run.label} · parts add up to the gap of the sums, for 163,680 tokens · the "
        f"{LISTED_GAP} largest\nbeside a token: how often it was seen · corrected: for all pairs "
        "and domains",
        top=0.02,
    )
    figure.legend(
        handles=[
            Patch(color=POSITIVE, label="with the gap"),
            Patch(color=NEGATIVE, label="against it"),
        ],
        loc="upper right",
        bbox_to_anchor=(1.0, 1.02),
        fontsize=7,
        handlelength=0.9,
        borderaxespad=0,
    )
    return figure, pl.concat(drawn)


FIGURES: dict[str, Callable[[Tables, Run], tuple[Figure, pl.DataFrame]]] = {
    "fig10": draw_negative,
    "head_gaps": draw_gaps,
}


def main() -> None:
    parser = arguments(__doc__, "NAME")
    parser.add_argument("--figure", choices=list(FIGURES), nargs="+", required=True)
    given = parser.parse_args()
    tables = {
        name: pl.read_parquet(given.results / FOLDER / f"{name}.parquet")
        for name in ("gaps", "gap_tokens")
    }
    run = load_run(given.results)
    for name, out in outputs(given):
        figure, _ = FIGURES[name](tables, run)
        save(figure, out)


if __name__ == "__main__":
    run_script(main)
