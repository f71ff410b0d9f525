"""The per-token response matrix: parts of chi, PCA, ends of the components, reliability."""

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

from common import (
    GREY,
    ROLE_COLORS,
    WIDTH,
    Run,
    arguments,
    header,
    load_run,
    outputs,
    save,
)
from response_details import (
    ALL,
    COLORS,
    MARKERS,
    PARTS,
    TITLE,
    Tables,
    chosen,
    draw_categories,
    draw_reliability,
    has_control,
)
from susceptibilities.console import run as run_script
from susceptibilities.cubes import FORMS
from susceptibilities.naming import head_of

FOLDER = "arditi2026/response_matrix"
TABLES = ("variance", "loadings", "made_of", "enrichment", "sizes", "reliability", "half")
# Baker v2 and v3: shares of PC1 to PC3, pooled and by layer.
PUBLISHED = {
    ALL: (0.896, 0.038, 0.013),
    "layer 0": (0.9534, 0.0183, 0.0073),
    "layer 1": (0.9914, 0.0039, 0.0011),
}
PUBLISHED_COLOR = "#AA3377"


def places_of(heads: list[str]) -> np.ndarray:
    """Places of heads along an axis, with a gap between layers."""
    return np.array([i + 0.8 * (head_of(h) or (0, 0))[0] for i, h in enumerate(heads)])


def head_axis(ax: Axes, heads: list[str], roles: dict[str, str], names: bool = True) -> None:
    """Heads by number, in the color of their role, with the layer's name below."""
    places = places_of(heads)
    ax.set_xticks(places, [h.split(":")[1] if names else "" for h in heads])
    ax.tick_params(axis="x", length=0, labelsize=7, pad=1)
    ax.set_xlim(places[0] - 0.8, places[-1] + 0.8)
    if not names:
        return
    for label, head in zip(ax.get_xticklabels(), heads, strict=True):
        label.set_color(ROLE_COLORS.get(roles.get(head, ""), "#222222"))
    for layer in sorted({(head_of(h) or (0, 0))[0] for h in heads}):
        own = [p for p, h in zip(places, heads, strict=True) if (head_of(h) or (0, 0))[0] == layer]
        ax.annotate(
            f"layer {layer}",
            (float(np.mean(own)), 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -12),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7,
            color=GREY,
        )


def role_handles(roles: dict[str, str]) -> list[Patch]:
    present = [name for name in ROLE_COLORS if name in roles.values()]
    return [Patch(color=ROLE_COLORS[name], label=name) for name in present]


def draw_parts(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Size of chi and its parts in every head, and which part each component is made of."""
    sizes = tables["sizes"]
    made = chosen(tables["made_of"], scope=ALL, scaling="standardized")
    sources = ["run", *(["control"] if has_control(tables) else [])]
    figure = plt.figure(figsize=(WIDTH, 3.1))
    grid = figure.add_gridspec(
        1, 2, width_ratios=[1.35, 1], wspace=0.2, left=0.075, right=0.985, top=0.74, bottom=0.13
    )
    ax = figure.add_subplot(grid[0])
    heads = [h for h in chosen(sizes, source="run", form="chi")["component"] if h != ALL]
    places = places_of(heads)
    for form in FORMS:
        for source in sources[::-1]:
            rows = chosen(sizes, source=source, form=form).filter(pl.col("component") != ALL)
            main = source == "run"
            ax.errorbar(
                places + (0.0 if main else 0.28),
                rows["value"],
                rows["se"] if main else None,
                fmt=MARKERS[form],
                color=COLORS[form],
                markersize=(5.4 if form == "chi" else 3.6) if main else 2.6,
                markerfacecolor="white" if form == "chi" or not main else COLORS[form],
                markeredgewidth=0.8 if main else 0.5,
                alpha=1.0 if main else 0.75,
                elinewidth=0.7,
                zorder=2 if form == "chi" else 3,
            )
    ax.set_yscale("log")
    ax.set_ylabel("standard deviation over tokens")
    ax.set_title("Size of χ and of its parts, head by head", pad=4)
    head_axis(ax, heads, dict(run.roles))
    bars = figure.add_subplot(grid[1])
    pcs = sorted(made["pc"].unique().to_list())
    labels = ["all of χ" if pc == 0 else f"PC{pc}" for pc in pcs]
    ends = []
    for row, pc in enumerate(pcs):
        for offset, source in zip((-0.19, 0.21), sources, strict=False):
            y = row + (offset if len(sources) > 1 else 0)
            height = 0.36 if source == "run" else 0.22
            left, right = 0.0, 0.0
            for part in PARTS:
                value = float(chosen(made, source=source, pc=pc, part=part)["value"].item())
                start = right if value >= 0 else left
                bars.barh(
                    y,
                    value,
                    height,
                    left=start,
                    color=COLORS[part],
                    alpha=1.0 if source == "run" else 0.45,
                    linewidth=0,
                )
                right, left = (right + value, left) if value >= 0 else (right, left + value)
            ends += [left, right]
    bars.axvline(0, color="#555555", linewidth=0.6)
    bars.axvline(1, color="#BBBBBB", linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
    bars.set_xlim(min(-0.02, *ends) - 0.01, max(1.02, *ends) + 0.01)
    bars.set_yticks(range(len(pcs)), labels)
    bars.tick_params(axis="y", length=0)
    bars.invert_yaxis()
    bars.set_xlabel("share of the variance")
    bars.set_title("What each component is made of", pad=4)
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=MARKERS[form],
            color=COLORS[form],
            markerfacecolor="white" if form == "chi" else COLORS[form],
            markersize=5,
            label=TITLE[form],
        )
        for form in ("chi", *PARTS)
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.0, 0.9), ncols=4, columnspacing=1.6
    )
    note = " · small open marks, pale bars: n_beta = 0 control" if len(sources) > 1 else ""
    header(
        figure,
        "What χ is made of",
        f"model {run.label} · per token, domains pooled · error bars: ±1 s.e. over chains and "
        f"contexts{note}",
        top=0.03,
    )
    return figure, made


def draw_pca(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Variance by component, pooled and by layer; loadings of the first three components."""
    variance = chosen(tables["variance"], scaling="standardized")
    loadings = chosen(tables["loadings"], scaling="standardized", scope=ALL)
    scopes = [s for s in PUBLISHED if (variance["scope"] == s).any()]
    figure = plt.figure(figsize=(WIDTH, 6.35))
    top = figure.add_gridspec(
        1, len(scopes), wspace=0.12, left=0.075, right=0.985, top=0.86, bottom=0.635
    )
    shown = ("chi", "rank_one", "remainder", "covariance")
    first = None
    for column, scope in enumerate(scopes):
        ax = figure.add_subplot(top[column], sharey=first)
        first = first or ax
        for form in shown[::-1]:
            rows = chosen(variance, source="run", scope=scope, form=form).filter(
                pl.col("share") > 1e-9
            )
            ax.errorbar(
                rows["pc"],
                rows["share"],
                rows["se"],
                color=COLORS[form],
                marker=MARKERS[form],
                markersize=5.6 if form == "rank_one" else 3.2,
                markerfacecolor="white" if form == "rank_one" else COLORS[form],
                linewidth=1.2 if form == "chi" else 0.8,
                elinewidth=0.7,
                zorder=4 if form == "chi" else 2,
            )
        if has_control(tables):
            rows = chosen(variance, source="control", scope=scope, form="chi")
            ax.plot(
                rows["pc"],
                rows["share"].clip(1e-9),
                color=COLORS["chi"],
                linewidth=0.7,
                linestyle=(0, (1, 1.5)),
                marker=".",
                markersize=2.5,
            )
        ax.plot(
            range(1, 4),
            PUBLISHED[scope],
            linestyle="none",
            marker="_",
            markersize=11,
            markeredgewidth=1.4,
            color=PUBLISHED_COLOR,
            zorder=5,
        )
        count = int(variance.filter(pl.col("scope") == scope)["pc"].max())  # type: ignore[arg-type]
        ax.set_yscale("log")
        ax.set_ylim(2e-5, 1.6)
        ax.set_xlim(0.4, count + 0.6)
        ax.set_xticks(range(1, count + 1, 1 if count <= 10 else 3))
        ax.set_title(scope, pad=3)
        ax.set_xlabel("component", labelpad=1)
        ax.tick_params(labelleft=column == 0)
        if column == 0:
            ax.set_ylabel("share of variance")
    handles = [
        Line2D([], [], color=COLORS[f], marker=MARKERS[f], markersize=4, label=TITLE[f])
        for f in shown
    ]
    handles += [
        Line2D([], [], color=COLORS["chi"], linestyle=":", label="χ, n_beta = 0 control"),
        Line2D(
            [],
            [],
            linestyle="none",
            marker="_",
            markersize=9,
            markeredgewidth=1.4,
            color=PUBLISHED_COLOR,
            label="published, another model",
        ),
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.0, 0.955), ncols=3, columnspacing=1.6
    )
    draw_loadings(figure, variance, loadings, run, has_control(tables))
    header(
        figure,
        "PCA of the response matrix: tokens × heads",
        f"model {run.label} · columns standardized, all domains pooled · error bars: ±1 standard "
        "error over chains and contexts",
        top=0.02,
    )
    return figure, variance


def draw_loadings(
    figure: Figure, variance: pl.DataFrame, loadings: pl.DataFrame, run: Run, control: bool
) -> None:
    """The lower half of `draw_pca`: bars by head for chi, for the rest, and for the control."""
    columns = [("run", "chi", TITLE["chi"]), ("run", "remainder", TITLE["remainder"])]
    columns += [("control", "chi", "χ, n_beta = 0 control")] if control else []
    heads = chosen(loadings, source="run", form="chi", pc=1)["component"].to_list()
    pcs = sorted(loadings["pc"].unique().to_list())
    grid = figure.add_gridspec(
        len(pcs), len(columns), hspace=0.3, wspace=0.07, left=0.075, right=0.985, top=0.515,
        bottom=0.085,
    )  # fmt: skip
    bound = min(1.05, max(0.4, 1.2 * float(loadings["value"].abs().max())))  # type: ignore[arg-type]
    places = places_of(heads)
    colors = [ROLE_COLORS.get(run.roles.get(h, ""), GREY) for h in heads]
    for row, pc in enumerate(pcs):
        for column, (source, form, title) in enumerate(columns):
            ax = figure.add_subplot(grid[row, column])
            part = chosen(loadings, source=source, form=form, pc=pc)
            own = chosen(variance, source=source, scope=ALL, form=form, pc=pc)
            clear = bool(own["identified"].item())
            ax.bar(places, part["value"], width=0.78, color=colors, alpha=1.0 if clear else 0.35)
            ax.errorbar(
                places,
                part["value"],
                part["se"],
                fmt="none",
                ecolor="#222222",
                elinewidth=0.6,
            )
            ax.axhline(0, color="#555555", linewidth=0.6)
            even = 1 / np.sqrt(len(heads))
            for y in (even, -even):
                ax.axhline(y, color="#BBBBBB", linewidth=0.5, linestyle=(0, (1, 2)), zorder=0)
            ax.set_ylim(-bound, bound)
            ax.spines["bottom"].set_visible(False)
            ax.tick_params(axis="y", labelleft=column == 0)
            if column == 0:
                ax.set_ylabel(f"PC{pc}")
            if row == 0:
                ax.set_title(title, pad=11, color=COLORS[form])
            ax.text(
                0.995,
                1.0,
                f"{100 * own['share'].item():.1f} %{'' if clear else ' *'}",
                transform=ax.transAxes,
                ha="right",
                va="bottom",
                fontsize=6.5,
                color=GREY,
            )
            head_axis(ax, heads, dict(run.roles), names=row == len(pcs) - 1)
    figure.legend(
        handles=role_handles(dict(run.roles)),
        loc="lower left",
        bbox_to_anchor=(0.06, -0.012),
        ncols=4,
        columnspacing=1.4,
        fontsize=7,
    )
    figure.text(
        0.985,
        0.008,
        "* not separated from a neighbor within the errors",
        ha="right",
        fontsize=6.5,
        color=GREY,
    )


FIGURES: dict[str, Callable[[Tables, Run], tuple[Figure, pl.DataFrame]]] = {
    "parts_of_chi": draw_parts,
    "response_pca": draw_pca,
    "pc_categories": draw_categories,
    "reliability_by_draws": draw_reliability,
}


def load_tables(results: Path) -> Tables:
    return {name: pl.read_parquet(results / FOLDER / f"{name}.parquet") for name in TABLES}


def main() -> None:
    parser = arguments(__doc__, "<figure>")
    parser.add_argument("--figure", required=True, nargs="+", choices=FIGURES)
    given = parser.parse_args()
    tables, run = load_tables(given.results), load_run(given.results)
    for name, out in outputs(given):
        save(FIGURES[name](tables, run)[0], out)


if __name__ == "__main__":
    run_script(main)
