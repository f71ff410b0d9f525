"""Two figures of the response matrix: what lies at the ends of its components, and reliability.

`response_matrix.py` draws these and the others.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common import FORM_TITLES, GREY, WIDTH, Run, header
from susceptibilities.categories import TITLES
from susceptibilities.cubes import FORMS

ALL = "all heads"
PARTS = ("rank_one", "mean_shift", "covariance")
TITLE = {**FORM_TITLES, "remainder": "χ without its rank-one part"}
COLORS = {
    "chi": "#1A1A1A",
    "rank_one": "#0072B2",
    "mean_shift": "#D55E00",
    "covariance": "#8C8C8C",
    "remainder": "#009E73",
}
MARKERS = {"chi": "o", "rank_one": "s", "mean_shift": "^", "covariance": "D", "remainder": "v"}
LAYER_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
CONTROL = "n_beta = 0 control"

Tables = dict[str, pl.DataFrame]


def chosen(table: pl.DataFrame, **values: object) -> pl.DataFrame:
    """Rows with these values."""
    return table.filter(*(pl.col(name) == value for name, value in values.items()))


def has_control(tables: Tables) -> bool:
    return bool((tables["variance"]["source"] == "control").any())


ORDER = (
    *("word_start", "word_part", "word_end", "spacing", "newline", "delimiter", "left_bracket"),
    *("right_bracket", "numeric", "others", "induction"),
)


def draw_categories(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Which categories are more or less frequent at the ends of the first components."""
    table = chosen(tables["enrichment"], tails="pooled")
    pcs = sorted(table["pc"].unique().to_list())
    forms = ("chi", "remainder")
    control = has_control(tables)
    figure = plt.figure(figsize=(WIDTH, 5.9))
    grid = figure.add_gridspec(
        len(forms), len(pcs), hspace=0.29, wspace=0.08, left=0.135, right=0.985, top=0.845,
        bottom=0.075,
    )  # fmt: skip
    names = list(ORDER)
    rows = np.arange(len(names))
    ends = {"top": ("#009E73", "o", -0.17), "bottom": ("#AA3377", "s", 0.17)}
    run_only = table.filter((pl.col("source") == "run") & pl.col("form").is_in(forms))
    reach = min(6.0, 1.08 * float(run_only["value"].abs().max()) + 0.2)  # type: ignore[arg-type]
    for i, form in enumerate(forms):
        for j, pc in enumerate(pcs):
            ax = figure.add_subplot(grid[i, j])
            own = chosen(tables["variance"], source="run", form=form, pc=pc, scope=ALL)
            own = chosen(own, scaling="standardized")
            clear = bool(own["identified"].item())
            ax.axvline(0, color="#555555", linewidth=0.6)
            for y in rows[::2]:
                ax.axhspan(y - 0.5, y + 0.5, color="#F4F4F1", zorder=-1, linewidth=0)
            for end, (color, marker, offset) in ends.items():
                for source in ("control", "run") if control and form == "chi" else ("run",):
                    part = chosen(table, source=source, form=form, pc=pc, end=end)
                    by_name = {r["category"]: r for r in part.iter_rows(named=True)}
                    value = np.array([by_name[name]["value"] for name in names])
                    low = np.array([by_name[name]["low"] for name in names])
                    high = np.array([by_name[name]["high"] for name in names])
                    main = source == "run"
                    ax.errorbar(
                        np.clip(value, -reach, reach),
                        rows + offset + (0.0 if main else 0.14 * np.sign(offset)),
                        xerr=np.stack([value - low, high - value]) if main else None,
                        fmt=marker,
                        color=color,
                        alpha=1.0 if main else 0.8,
                        markersize=3.4 if main else 2.2,
                        markerfacecolor=color if main else "white",
                        markeredgewidth=0.5,
                        elinewidth=0.8,
                        zorder=3,
                    )
            ax.set_xlim(-reach, reach)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.set_yticks(rows, [TITLES[name] for name in names] if j == 0 else [""] * len(names))
            ax.tick_params(axis="y", length=0)
            ticks = [t for t in (-6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6) if abs(t) <= reach]
            ticks = [t for t in ticks if reach <= 3.5 or t % 2 == 0]
            ax.set_xticks(ticks, [f"{2.0**t:g}×" if t >= 0 else f"1/{2**-t}" for t in ticks])
            ax.tick_params(axis="x", labelsize=6.8)
            star = "" if clear else " *"
            ax.set_title(f"PC{pc}  ({100 * own['share'].item():.1f} %{star})", fontsize=7.5, pad=3)
            if j == 0:
                ax.text(
                    0.0,
                    1.11,
                    TITLE[form],
                    transform=ax.transAxes,
                    fontsize=8.5,
                    fontweight="bold",
                    color=COLORS[form],
                )
            if i == len(forms) - 1 and j == len(pcs) // 2:
                ax.set_xlabel("share in the tail relative to the share of all tokens")
    handles = [
        Line2D([], [], linestyle="none", marker=m, color=c, markersize=4, label=f"{end} 5 %")
        for end, (c, m, _) in ends.items()
    ]
    if control:
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker="o",
                color=GREY,
                markerfacecolor="white",
                markersize=3.4,
                label="n_beta = 0 control (χ)",
            )
        )
    figure.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(0.995, 0.945), ncols=3,
        columnspacing=1.4,
    )  # fmt: skip
    header(
        figure,
        "What lies at the ends of the components",
        f"model {run.label} · bars: 95 % intervals over chains and contexts · "
        "* not separated from a neighbor within the errors",
        top=0.02,
    )
    return figure, table


def draw_reliability(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Reliability of chi and its parts against draws, and where it would reach one half."""
    growth, half = tables["reliability"], tables["half"]
    groups = sorted(growth["group"].unique().to_list())
    control = has_control(tables)
    figure = plt.figure(figsize=(WIDTH, 4.5))
    grid = figure.add_gridspec(
        2, 2, hspace=0.34, wspace=0.1, left=0.075, right=0.985, top=0.8, bottom=0.09
    )
    start = int(half["chain_draws"].min())  # type: ignore[arg-type]
    finite = half.filter((pl.col("source") == "run") & pl.col("form").is_in(FORMS))["draws"]
    finite = finite.filter(finite.is_finite())
    furthest = max(float(finite.max() or 0), 100.0 * start)  # type: ignore[arg-type]
    limit = min(10 ** np.ceil(np.log10(furthest) + 0.3), 1e6 * start)
    axis = np.geomspace(start, limit, 200)
    for place, form in enumerate(("chi", *PARTS)):
        ax = figure.add_subplot(grid[place // 2, place % 2])
        ax.axhline(0, color="#555555", linewidth=0.6)
        ax.axhline(0.5, color="#BBBBBB", linewidth=0.7, linestyle=(0, (3, 2)), zorder=0)
        for number, group in enumerate(groups):
            color = LAYER_COLORS[number % len(LAYER_COLORS)]
            if control:
                rows = chosen(growth, source="control", group=group, form=form)
                ax.plot(
                    rows["draws"] * 1.07,
                    rows["value"],
                    marker="o",
                    markersize=2.6,
                    markerfacecolor="white",
                    markeredgewidth=0.6,
                    linewidth=0.6,
                    linestyle=(0, (1, 1.5)),
                    color=color,
                )
            rows = chosen(growth, source="run", group=group, form=form)
            found = chosen(half, source="run", group=group, form=form).row(0, named=True)
            measured = float(rows["draws"].max())  # type: ignore[arg-type]
            one = found["one_chain"]

            def grown(r: float, at: np.ndarray) -> np.ndarray:
                times = at / start
                return times * r / (1 + (times - 1) * r)

            if found["low"] > 0:
                inside = axis <= measured
                ax.plot(axis[inside], grown(one, axis[inside]), color=color, linewidth=1.1)
                ax.plot(axis, grown(one, axis), color=color, linewidth=0.9, linestyle=(0, (4, 2)))
            # Below zero the formula has no meaning: there is no signal then.
            low, high = (min(max(found[end], 0.0), 1.0) for end in ("low", "high"))
            ax.fill_between(
                axis, grown(low, axis), grown(high, axis), color=color, alpha=0.12, linewidth=0
            )
            ax.errorbar(
                rows["draws"], rows["value"], rows["se"], fmt="o", color=color, markersize=3.4,
                elinewidth=0.8, zorder=4,
            )  # fmt: skip
            ax.text(
                0.02,
                0.955 - 0.085 * number,
                f"{group}: {found['statement']}",
                transform=ax.transAxes,
                va="center",
                fontsize=6.8,
                color=color,
            )
        ax.set_xscale("log")
        ax.set_xlim(start / 1.25, limit)
        ax.set_ylim(-0.12, 1.3)
        ax.set_yticks(np.arange(0, 1.01, 0.25))
        ax.set_title(TITLE[form], pad=3)
        ax.tick_params(labelleft=place % 2 == 0, labelbottom=place >= 2)
        if place % 2 == 0:
            ax.set_ylabel("reliability over chains")
        if place >= 2:
            ax.set_xlabel("draws, in chains of the same length")
    handles = [
        Line2D([], [], color=LAYER_COLORS[n % 4], marker="o", markersize=3.4, label=group)
        for n, group in enumerate(groups)
    ]
    handles.append(
        Line2D([], [], color=GREY, linestyle=(0, (4, 2)), label="Spearman-Brown from one chain")
    )
    if control:
        handles.append(
            Line2D([], [], color=GREY, linestyle=":", marker="o", markerfacecolor="white",
                   markersize=3, label=CONTROL)
        )  # fmt: skip
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.0, 0.9), ncols=4, columnspacing=1.6
    )
    header(
        figure,
        "How well chains agree on each part, and how many draws one half would take",
        f"model {run.label} · correlation over tokens between disjoint chains, mean over a "
        "layer's heads · dots: measured, ±1 s.e.",
        top=0.02,
    )
    return figure, growth
