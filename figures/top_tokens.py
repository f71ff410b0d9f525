"""Figure 30, Table 3 as a figure, and the polarity of kinds of tokens (Baker 6)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from common import (
    FORM_TITLES,
    GREY,
    ROLE_COLORS,
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
    zero_line,
)
from susceptibilities.categories import TITLES
from susceptibilities.console import run as run_script
from susceptibilities.cubes import FORMS
from susceptibilities.subsets import place_of
from susceptibilities.tokens import CONTROL_PROBE
from susceptibilities.visible import escape, visible
from text_layout import MONO, SANS, glyph

FOLDER = "baker2025/d_top_tokens"
BLUE, RED = "#0072B2", "#C1440E"
DATASETS = ("arxiv", "dm_mathematics", "github", "philpapers", "wikipedia_en")  # Figure 30's
SHOWN = 7  # bars of each sign in a panel of Figure 30
ORDER = ("chi", "mean_shift", "rank_one", "covariance")
CONTROL_TITLE = "χ, n_beta = 0"
TEXT = {"family": [MONO, SANS], "parse_math": False}

Tables = dict[str, pl.DataFrame]


def drawable(text: str) -> str:
    """A token's text in letters that the fonts have; all others as escapes."""
    return "".join(
        c if glyph(MONO, c) is not None or glyph(SANS, c) is not None else escape(c)
        for c in visible(text)
    )


def label_of(text: str, most: int = 9) -> str:
    """A short label: a run of spaces as its length, anything long cut."""
    if len(text) > 3 and not text.strip(" "):
        return f"␣×{len(text)}"
    label = drawable(text)
    return label if len(label) <= most else label[: most - 1] + "…"


def chosen_probes(counts: pl.DataFrame, run: Run) -> list[str]:
    """Probes in the place of the paper's five datasets, then the first others of the corpus."""
    measured = [p for p in counts["probe"].unique(maintain_order=True) if p != CONTROL_PROBE]
    places = [place_of(subset, run.domains) for subset in DATASETS]
    found = [place.probe for place in places if place is not None and place.probe in measured]
    rest = [probe for probe in measured if probe not in found]
    return [*dict.fromkeys(found), *rest][: len(DATASETS)]


def missing_datasets(run: Run) -> str:
    gone = [subset for subset in DATASETS if place_of(subset, run.domains) is None]
    return f"no text here for {', '.join(gone)}: other domains in their place" if gone else ""


def draw_side(ax: Axes, rows: pl.DataFrame, sign: int) -> float:
    """Bars of one sign from the middle outwards; returns the length of the longest."""
    color = BLUE if sign > 0 else RED
    ordered = rows.sort("count", "occurrences", "token", descending=[True, False, False])
    longest = 0.0
    for place, row in enumerate(ordered.head(SHOWN).iter_rows(named=True)):
        ax.barh(place, sign * row["count"], height=0.72, color=color)
        ax.plot(
            [sign * max(row["count"] - row["se"], 0), sign * (row["count"] + row["se"])],
            [place, place],
            color="#555555",
            linewidth=0.5,
        )
        ax.plot(
            [sign * row["expected"]] * 2,
            [place - 0.36, place + 0.36],
            color="white",
            linewidth=1.4,
        )
        ax.plot(
            [sign * row["expected"]] * 2,
            [place - 0.36, place + 0.36],
            color="#222222",
            linewidth=0.6,
        )
        longest = max(longest, row["count"] + row["se"], row["expected"])
        ax.text(
            0.5 + 0.5 * sign,
            place,
            label_of(row["text"]),
            transform=ax.get_yaxis_transform(),
            ha="right" if sign > 0 else "left",
            va="center_baseline",
            fontsize=5.8,
            **TEXT,
        )
    if (more := len(ordered) - SHOWN) > 0:
        ax.text(
            0.5 + 0.5 * sign,
            SHOWN - 0.1,
            f"+{more} more",
            transform=ax.get_yaxis_transform(),
            ha="right" if sign > 0 else "left",
            va="center",
            fontsize=5.5,
            color=GREY,
        )
    return longest


def draw_counts(tables: Tables, run: Run, form: str = "chi") -> Figure:
    """Figure 30: which tokens the top k are, three heads by five datasets."""
    counts = tables["counts"].filter((pl.col("run") == "posterior") & (pl.col("form") == form))
    probes = chosen_probes(counts, run)
    heads = counts["component"].unique(maintain_order=True).to_list()
    figure, axes = plt.subplots(
        len(probes),
        len(heads),
        figsize=(WIDTH, 1.15 + 1.17 * len(probes)),
        squeeze=False,
        sharex="row",
    )
    size = figure.get_size_inches()[1]
    figure.subplots_adjust(
        left=0.03, right=0.995, top=1 - 0.84 / size, bottom=0.52 / size, hspace=0.36, wspace=0.05
    )
    for row, probe in enumerate(probes):
        reach = 1.0
        for column, head in enumerate(heads):
            ax = axes[row, column]
            part = counts.filter((pl.col("probe") == probe) & (pl.col("component") == head))
            for sign in (1, -1):
                reach = max(reach, draw_side(ax, part.filter(pl.col("sign") == sign), sign))
            ax.axvline(0, color="#555555", linewidth=0.6)
            ax.set_ylim(SHOWN + 0.35, -0.6)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.tick_params(axis="x", labelsize=6, pad=1.5, length=2)
            ax.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
            ax.xaxis.get_major_locator().set_params(integer=True, nbins=6)
            if row == 0:
                ax.set_title(head_label(head, run.roles), loc="center", fontsize=8, pad=13)
        if row == len(probes) - 1:
            axes[row, 1 if len(heads) > 1 else 0].set_xlabel(
                f"occurrences among the top {int(counts['k'][0])}", labelpad=1.5
            )
        # The labels stand at both edges: leave them room.
        axes[row, 0].set_xlim(-1.5 * reach, 1.5 * reach)
        axes[row, 0].text(
            0.0,
            1.02,
            probe_title(run, probe),
            transform=axes[row, 0].transAxes,
            ha="left",
            va="bottom",
            fontsize=7,
            fontweight="bold",
        )
    figure.legend(
        [
            Patch(color=RED),
            Patch(color=BLUE),
            Line2D([], [], color="#222222", linewidth=0.6, marker="|", linestyle="none"),
        ],
        ["top negative", "top positive", "expected if tokens were drawn at random"],
        loc="lower center",
        ncols=3,
        fontsize=7,
        bbox_to_anchor=(0.5, -0.1 / size),
    )
    k, tokens = (int(counts[name][0]) for name in ("k", "tokens"))
    gone = missing_datasets(run)
    header(
        figure,
        f"Tokens among the top {k} susceptibilities — {FORM_TITLES[form]}",
        f"model {run.label} · top {k} of {tokens} tokens, the paper’s share · lines: ±1 standard "
        f"error" + (f"\n{gone}" if gone else ""),
        top=0.02,
    )
    return figure


def loss_axis(ax: Axes, loss: np.ndarray) -> None:
    """A logarithmic axis with few labels: powers of ten, or thirds of them on a short range."""
    ax.set_xscale("log")
    if np.log10(loss.max() / loss.min()) > 1.7:
        ax.xaxis.set_major_locator(LogLocator(numticks=4))
    else:
        ticks = [m * 10.0**k for k in range(-6, 3) for m in (1, 3)]
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    ax.xaxis.set_minor_locator(NullLocator())


def draw_table3(tables: Tables, run: Run, form: str = "chi") -> Figure:
    """Table 3: chi, its parts and the control's chi of one token against its loss."""
    table = tables["table3"]
    if table.is_empty():
        return empty_page(
            "One token: susceptibility against loss",
            "no token occurs often enough in this run (at least ten times, in five contexts)",
        )
    has_control = bool(table["control"].is_not_null().any())
    names: list[str] = [form, *(f for f in ORDER if f != form)]
    if has_control:
        names.append("control")
    figure = plt.figure(figsize=(WIDTH, 2.55))
    grid = figure.add_gridspec(
        1,
        len(names),
        width_ratios=[1.7, *[1.0] * (len(names) - 1)],
        left=0.085,
        right=0.995,
        top=0.70,
        bottom=0.17,
        wspace=0.1,
    )
    loss = table["loss"].to_numpy()
    top = table["rank"].to_numpy() <= 10
    first = None
    for column, name in enumerate(names):
        ax = figure.add_subplot(grid[column], sharey=first if name != "control" else None)
        first = first or ax
        values = table[name].to_numpy()
        ax.axhline(values.mean(), color="#999999", linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
        zero_line(ax)
        if column == 0:
            ax.errorbar(
                loss, values, table["se"].to_numpy(), fmt="none", ecolor="#CCCCCC", elinewidth=0.5
            )
        for mask, color in ((~top, GREY), (top, BLUE)):
            ax.plot(
                loss[mask],
                values[mask],
                "o",
                color=color,
                markersize=2.6 if column == 0 else 1.8,
                markeredgewidth=0,
            )
        loss_axis(ax, loss)
        ax.set_title(CONTROL_TITLE if name == "control" else FORM_TITLES[name], fontsize=7.5)
        if column == 0:
            ax.set_ylabel("susceptibility (nats²)")
            ax.set_xlabel("loss of the token (nats)")
        elif name == "control":
            ax.yaxis.tick_right()
            ax.spines[["left"]].set_visible(False)
            ax.spines[["right"]].set_visible(True)
        else:
            ax.tick_params(labelleft=False)
    entries = {
        "the ten with the largest χ (rows of the table)": Line2D(
            [], [], marker="o", linestyle="none", color=BLUE, markersize=3.5
        ),
        "all others": Line2D([], [], marker="o", linestyle="none", color=GREY, markersize=3.5),
        "mean": Line2D([], [], color="#999999", linewidth=0.8, linestyle=(0, (2, 2))),
    }
    if top.all():
        del entries["all others"]
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="upper left",
        bbox_to_anchor=(0.0, 0.895),
        ncols=3,
        fontsize=7,
        borderpad=0,
        handletextpad=0.4,
    )
    row = table.row(0, named=True)
    header(
        figure,
        "One token: susceptibility against loss",
        f"model {run.label} · {len(table)} occurrences on {probe_title(run, row['probe'])}, head "
        f"{head_label(row['component'], run.roles)} · bars: ±1 se over chains",
        top=0.06,
    )
    figure.text(
        0.992,
        1.04,
        drawable(row["text"]),
        fontsize=10,
        fontweight="bold",
        ha="right",
        va="top",
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "none", "edgecolor": BLUE},
        **TEXT,
    )
    return figure


def draw_polarity(tables: Tables, run: Run, form: str = "chi") -> Figure:
    """Section 6: mean susceptibility by kind of token, for every head and all of them."""
    table = tables["polarity"]
    kinds = (
        table.filter(pl.col("category") != "contrast")
        .select("category", "claimed", "n")
        .unique(maintain_order=True)
        .filter(pl.col("n") > 0)
    )
    ordered = [
        *kinds.filter(pl.col("claimed") < 0)["category"],
        *kinds.filter(pl.col("claimed") > 0)["category"],
        *kinds.filter(pl.col("claimed") == 0)["category"],
    ]
    claimed = dict(kinds.select("category", "claimed").iter_rows())
    number = dict(kinds.select("category", "n").iter_rows())
    cases = [("posterior", name) for name in (form, *(f for f in ORDER if f != form))]
    if len(table.filter(pl.col("run") == "control")):
        cases.append(("control", "chi"))
    figure, axes = plt.subplots(
        1,
        len(cases),
        figsize=(WIDTH, 1.35 + 0.225 * len(ordered)),
        sharey=True,
        squeeze=False,
        width_ratios=[1.6, *[1.0] * (len(cases) - 1)],
    )
    size = figure.get_size_inches()[1]
    figure.subplots_adjust(
        left=0.195, right=0.995, top=1 - 0.72 / size, bottom=0.58 / size, wspace=0.09
    )
    places = {category: i for i, category in enumerate(ordered)}
    for ax, (name, shown) in zip(axes[0], cases, strict=True):
        part = table.filter((pl.col("run") == name) & (pl.col("form") == shown))
        for category, place in places.items():
            rows = part.filter(pl.col("category") == category).drop_nulls("mean")
            heads = rows.filter(pl.col("component") != "mean of heads")
            ax.scatter(
                heads["mean"],
                place + np.linspace(-0.24, 0.24, len(heads)),
                s=5,
                color=[ROLE_COLORS.get(run.roles.get(h, ""), GREY) for h in heads["component"]],
                linewidths=0,
                zorder=2,
            )
            mean = rows.filter(pl.col("component") == "mean of heads")
            ax.errorbar(
                mean["mean"],
                [place] * len(mean),
                xerr=mean["mean_se"].fill_null(0.0),
                fmt="D",
                color="#1A1A1A",
                markersize=3.2,
                elinewidth=1.0,
                capsize=1.6,
                zorder=3,
            )
        low, high = ax.get_xlim()
        reach = max(abs(low), abs(high))
        ax.set_xlim(-reach, reach)
        ax.xaxis.set_major_locator(MaxNLocator(2, symmetric=True))  # the panels are narrow
        for category, place in places.items():
            if sign := claimed[category]:
                ax.axhspan(
                    place - 0.45,
                    place + 0.45,
                    xmin=0.5 if sign > 0 else 0.0,
                    xmax=1.0 if sign > 0 else 0.5,
                    color="#EDEDE4",
                    zorder=0,
                )
        ax.axvline(0, color="#777777", linewidth=0.6, zorder=1)
        ax.set_title(
            CONTROL_TITLE if name == "control" else FORM_TITLES[shown], loc="center", fontsize=7.5
        )
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=6.5)
        ax.locator_params(axis="x", nbins=5 if ax is axes[0, 0] else 3)
    axes[0, 0].set_ylim(len(ordered) - 0.4, -0.6)
    axes[0, 0].set_yticks(
        range(len(ordered)),
        [f"{TITLES.get(c, c)}  ({number[c]:,})".replace(",", "\u2009") for c in ordered],
    )
    figure.supxlabel(
        "mean, in standard deviations over all tokens",
        fontsize=8,
        y=0.29 / size,
        x=0.6,
        va="center",
    )
    present = [role for role in ROLE_COLORS if role in run.roles.values()]
    figure.legend(
        [
            Line2D([], [], marker="D", linestyle="none", color="#1A1A1A", markersize=3.5),
            *(
                Line2D([], [], marker="o", linestyle="none", color=ROLE_COLORS[r], markersize=3)
                for r in present
            ),
            Patch(color="#EDEDE4"),
        ],
        ["mean of heads ±1 se", *present, "the paper’s sign"],
        loc="lower center",
        bbox_to_anchor=(0.5, -0.1 / size),
        ncols=len(present) + 2,
        fontsize=7,
        columnspacing=1.3,
        handletextpad=0.4,
    )
    header(
        figure,
        "Susceptibility by kind of token",
        f"model {run.label} · all domains · in parentheses: number of tokens · small dots: heads",
        top=0.03,
    )
    return figure


FIGURES: dict[str, Callable[[Tables, Run, str], Figure]] = {
    "fig30": draw_counts,
    "table3": draw_table3,
    "polarity": draw_polarity,
}
READS = {"fig30": "counts", "table3": "table3", "polarity": "polarity"}


def load_tables(results: Path) -> Tables:
    """Saved tables of the section."""
    return {name: pl.read_parquet(results / FOLDER / f"{name}.parquet") for name in READS.values()}


def main() -> None:
    parser = arguments(__doc__, "<figure>")
    parser.add_argument("--figure", required=True, nargs="+", choices=FIGURES)
    parser.add_argument("--form", default="chi", choices=FORMS, help="which form [chi]")
    given = parser.parse_args()
    tables = load_tables(given.results)
    run = load_run(given.results)
    for name, out in outputs(given):
        save(FIGURES[name](tables, run, given.form), out)


if __name__ == "__main__":
    run_script(main)
