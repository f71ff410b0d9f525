"""Figures 11, 35, 36 and the search: distributions of one token's susceptibilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from common import (
    FORM_TITLES,
    GREY,
    WIDTH,
    Run,
    arguments,
    empty_page,
    header,
    load_run,
    outputs,
    save,
)
from susceptibilities.console import run as run_script
from susceptibilities.visible import visible

FOLDER = "baker2025/s4_6_bimodal_tokens"
TABLES = ("cases", "case_values", "search", "modes", "values")
PANELS = ("chi", "rank_one", "mean_shift", "covariance", "control")
TITLES = {
    "chi": FORM_TITLES["chi"],
    "rank_one": "rank-one",
    "mean_shift": "mean shift",
    "covariance": "covariance",
    "control": "χ at nβ = 0",
}
HIGH, LOW, OTHER = "#0072B2", "#D55E00", "#BDBDBD"
PUBLISHED_SPACE = {"space_00": (-1.57, 0.52), "space_01": (-2.13, 0.76)}  # Table 1
ROWS = 6  # of the search
ROW, EMPTY_ROW, LEFT = 1.62, 0.45, 0.062  # inches, inches, share of the width

Tables = dict[str, pl.DataFrame]


@dataclass(frozen=True)
class Row:
    """One token for one head, drawn as a row of histograms.

    Attributes:
        values: columns `PANELS` and ``group``; none where there is only a reason.
        groups: name of a group -> its color, in the order in which they are stacked.
        marks: panel -> (center, error) of each mode, drawn above the histogram.
        split: of chi, between the modes.
    """

    title: str
    detail: str
    values: pl.DataFrame | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    marks: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    split: float | None = None


def number(value: float | None, error: float | None = None, digits: int = 2) -> str:
    """Value and error for a line of text."""
    if value is None or not np.isfinite(value):
        return "–"
    text = f"{value:.{digits}g}".replace("-", "−")
    return text if error is None or not np.isfinite(error) else f"{text} ± {error:.1g}"


def p_text(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.0001" if value < 1e-4 else f"= {value:.2g}"


def head_name(run: Run, head: str) -> str:
    role = run.roles.get(head, "")
    return f"head {head} ({role})" if role else f"head {head}"


def extent(values: np.ndarray) -> tuple[float, float]:
    """Where the histogram ends: 1 % of the values may lie beyond, and are drawn at the ends."""
    low, high = np.quantile(values, [0.005, 0.995])
    margin = 0.06 * (high - low) or 1e-9
    return float(low - margin), float(high + margin)


def unit_of(reach: float) -> tuple[float, str]:
    """Factor by which numbers of this size have few digits, and how it is written."""
    if reach >= 0.2:
        return 1.0, ""
    return (1e3, ", 10⁻³") if reach >= 2e-4 else (1e6, ", 10⁻⁶")


def draw_histogram(ax: Axes, row: Row, panel: str, wide: bool) -> None:
    """A stacked histogram of the groups, with its name above."""
    assert row.values is not None
    values = row.values[panel].to_numpy().astype(np.float64)
    factor, unit = unit_of(max(map(abs, extent(values))))
    values = factor * values
    low, high = extent(values)
    bins = np.linspace(low, high, int(np.clip(2.5 * len(values) ** 0.5, 16, 40)) + 1)
    inside = np.clip(values, low, high)
    groups = row.values["group"].to_numpy()
    ax.hist(
        [inside[groups == name] for name in row.groups],
        bins=list(bins),
        stacked=True,
        color=list(row.groups.values()),
        linewidth=0,
    )
    tallest = ax.get_ylim()[1]
    ax.set_ylim(0, 1.16 * tallest)
    ax.set_xlim(low, high)
    ax.axvline(0, color="#222222", linewidth=0.6)
    split = factor * row.split if panel == "chi" and row.split is not None else np.nan
    if low < split < high:
        ax.plot([split] * 2, [0, tallest], color=GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    for (center, error), color in zip(row.marks.get(panel, ()), (LOW, HIGH), strict=False):
        if low < factor * center < high:
            ax.errorbar(
                [factor * center],
                [1.08 * tallest],
                xerr=[factor * error if np.isfinite(error) else 0.0],
                fmt="v",
                color=color,
                markersize=4.5 if wide else 3.5,
                markeredgecolor="white",
                markeredgewidth=0.4,
                elinewidth=0.9,
                capsize=1.5,
            )
    ax.xaxis.set_major_locator(MaxNLocator(6 if wide else 3, prune=None if wide else "both"))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.tick_params(labelsize=7 if wide else 6.5, left=wide, labelleft=wide)
    ax.spines["left"].set_visible(wide)
    ax.set_title(f"{TITLES[panel]}{unit}", fontsize=6.8, pad=2, color="#333333")


def draw_row(figure: Figure, row: Row, top: float, bottom: float, legend: bool) -> None:
    """Chi at the left, its parts and the control at its right; or the reason for nothing.

    Args:
        top, bottom: of the row and of its axes, in inches from the lower edge of the figure.
    """
    height = float(figure.get_size_inches()[1])
    figure.text(LEFT, top / height, row.title, fontsize=8, fontweight="bold", va="top")
    figure.text(LEFT, (top - 0.17) / height, row.detail, fontsize=6.8, color=GREY, va="top")
    if row.values is None:
        return
    grid = figure.add_gridspec(
        1,
        len(PANELS),
        width_ratios=[2.5, 1, 1, 1, 1],
        wspace=0.1,
        left=LEFT,
        right=0.995,
        top=(top - 0.48) / height,
        bottom=bottom / height,
    )
    for column, panel in enumerate(PANELS):
        ax = figure.add_subplot(grid[column])
        if panel == "control" and row.values["control"].null_count():
            ax.axis("off")
            ax.text(0.5, 0.5, "no control", ha="center", color=GREY, fontsize=6.5)
            continue
        draw_histogram(ax, row, panel, wide=column == 0)
        if column == 0:
            ax.set_ylabel("occurrences", fontsize=7)
    if legend and len(row.groups) > 1:
        figure.legend(
            handles=[Patch(color=color, label=name) for name, color in row.groups.items()],
            loc="upper right",
            bbox_to_anchor=(0.998, (top + 0.02) / height),
            ncols=len(row.groups),
            fontsize=6.8,
            handlelength=0.9,
            handleheight=0.8,
            columnspacing=1.0,
            borderaxespad=0,
            borderpad=0,
        )


def draw_rows(rows: Sequence[Row], title: str, subtitle: str, legends: bool) -> Figure:
    """Rows under one another.

    Args:
        legends: whether every row has its own groups; else the first one's legend is for all.
    """
    sizes = [ROW if row.values is not None else EMPTY_ROW for row in rows]
    top = 0.45 + 0.13 * (subtitle.count("\n") + 1)
    height = top + sum(sizes)
    figure = plt.figure(figsize=(WIDTH, height))
    header(figure, title, subtitle, top=0.04 / height)
    edge = height - top
    for place, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        draw_row(figure, row, edge, edge - size + 0.3, legends or place == 0)
        edge -= size
    return figure


def case_row(tables: Tables, run: Run, case: str) -> Row:
    """A case of the paper."""
    mine = tables["cases"].filter((pl.col("case") == case) & ~pl.col("control"))
    chi = mine.filter(pl.col("form") == "chi").row(0, named=True)
    title = f"‘{visible(chi['word'])}’, {head_name(run, chi['component'])}, {place_of(chi, run)}"
    if not chi["probe"]:
        return Row(title, f"{chi['reason']}.")
    detail = details(chi, case)
    values = tables["case_values"].filter(pl.col("case") == case)
    if not chi["high"]:
        return Row(title, detail, values.with_columns(group=pl.lit("all")), {"all": HIGH})
    colors = {chi["low"]: LOW, chi["high"]: HIGH}
    counts = {k: int((values["kind"] == k).sum()) for k in values["kind"].unique().sort()}
    named = {kind: f"{kind} ({count})" for kind, count in counts.items()}
    order = [k for k in (*colors, *(k for k in counts if k not in colors)) if k in counts]
    marks = {
        row["form"]: [(row["lower"], row["lower_se"]), (row["upper"], row["upper_se"])]
        for row in mine.iter_rows(named=True)
        if row["lower"] is not None
    }
    return Row(
        title,
        detail,
        values.with_columns(group=pl.col("kind").replace_strict(named)),
        {named[kind]: colors.get(kind, OTHER) for kind in order},
        marks,
    )


def place_of(chi: Mapping[str, Any], run: Run) -> str:
    if chi["place"] == "stand-in":
        return f"{chi['probe']} (for {chi['subset']})"
    if chi["place"] == "other":
        return f"{chi['probe']}, not {chi['subset']}"
    return chi["subset"]


def details(chi: Mapping[str, Any], case: str) -> str:
    """The statistics of a row in one line."""
    said = [f"{chi['count']} occurrences in {chi['contexts']} contexts"]
    if case in PUBLISHED_SPACE:
        mean, deviation = PUBLISHED_SPACE[case]
        said.append(f"mean {number(chi['mean'])}, standard deviation {number(chi['deviation'])}")
        said.append(f"published {number(mean, digits=3)} and {deviation}")
    said.append(f"dip test p {p_text(chi['p_adjusted'])}")
    if chi["high"]:
        said.append(f"D {number(chi['distance'], chi['distance_se'])}")
        said.append(f"κ {number(chi['kappa'], chi['kappa_se'])}")
        if chi["auc"] is not None:
            said.append(f"AUC {number(chi['auc'], chi['auc_se'])}")
    if chi["place"] == "other":
        said.append(f"no domain stands in for {chi['subset']}")
    return " · ".join(said)


def draw_cases(cases: Sequence[str], title: str) -> Callable[[Tables, Run], Figure]:
    def draw(tables: Tables, run: Run) -> Figure:
        rows = [case_row(tables, run, case) for case in cases]
        if all(row.values is None for row in rows):
            reasons = dict.fromkeys(row.detail for row in rows)
            return empty_page(title, "\n".join(reasons))
        marked = any(row.marks for row in rows)
        subtitle = f"model {run.label} · per-token susceptibility of every occurrence, in nats²"
        if marked:
            subtitle += (
                " · triangles: centers of the two modes ± standard error\n"
                "D: distance of the modes; κ: agreement of halves of the chains beyond chance; "
                "AUC: of the two kinds of context"
            )
        return draw_rows(rows, title, subtitle, legends=True)

    return draw


def search_row(tables: Tables, run: Run, about: Mapping[str, Any]) -> Row:
    """A token of the search."""
    title = (
        f"{about['rank']}.  ‘{visible(about['text'])}’, {head_name(run, about['component'])}, "
        f"{about['probe']}"
    )
    detail = " · ".join(
        (
            f"{about['count']} occurrences in {about['contexts']} contexts",
            f"dip test p {p_text(about['p'])}, corrected p {p_text(about['p_adjusted'])}",
            f"D {number(about['distance'], about['distance_se'])}",
            f"κ {number(about['kappa'], about['kappa_se'])}",
            f"AUC of the loss {number(about['auc_loss'])}",
        )
    )
    values = tables["values"].filter(pl.col("rank") == about["rank"])
    return Row(
        title,
        detail,
        values.with_columns(
            group=pl.when("upper").then(pl.lit("upper mode")).otherwise(pl.lit("lower mode"))
        ),
        {"lower mode": LOW, "upper mode": HIGH},
        {
            "chi": [
                (about["lower"], about["lower_se"] or np.nan),
                (about["upper"], about["upper_se"] or np.nan),
            ]
        },
        about["split"],
    )


def draw_search(tables: Tables, run: Run) -> Figure:
    """The strongest cases of the search over all tokens, heads and domains."""
    title = "Search for bimodal tokens: the strongest cases"
    rows = [search_row(tables, run, r) for r in tables["modes"].head(ROWS).iter_rows(named=True)]
    if not rows:
        return empty_page(title, "no token occurs often enough, in enough contexts, to be tested")
    found = int(tables["modes"]["two_modes"].sum())
    of = f"of {len(tables['modes'])} tokens and domains"
    passed = f"{found} {of} pass" if found else f"none {of} passes"
    tests = tables["search"].filter((pl.col("form") == "chi") & ~pl.col("control"))
    subtitle = (
        f"model {run.label} · {passed} the dip test (Benjamini–Hochberg over {len(tests)} tests), "
        "D > 2 and κ > 0.5\n"
        "in nats²; colors: the modes of χ, in every panel; triangles: their centers ± standard "
        "error; κ: agreement of halves of the chains"
    )
    return draw_rows(rows, title, subtitle, legends=False)


FIGURES: dict[str, Callable[[Tables, Run], Figure]] = {
    "fig11": draw_cases(
        ("to_arxiv", "slash_hackernews", "to_github"), "The bimodal tokens of section 4.6"
    ),
    "fig35": draw_cases(("space_00", "space_01"), "The space token on github-all"),
    "fig36": draw_cases(("slash_enron",), "The slash token, in the paper on enron_emails"),
    "bimodal_search": draw_search,
}


def main() -> None:
    parser = arguments(__doc__, "<figure>")
    parser.add_argument("--figure", required=True, nargs="+", choices=FIGURES)
    given = parser.parse_args()
    tables = {name: pl.read_parquet(given.results / FOLDER / f"{name}.parquet") for name in TABLES}
    run = load_run(given.results)
    for name, out in outputs(given):
        save(FIGURES[name](tables, run), out)


if __name__ == "__main__":
    run_script(main)
