"""Figures 6, 12, 13, 14 and 15: the joint trajectory PCA."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch
from matplotlib.patheffects import withStroke

from common import (
    FORM_TITLES,
    GREY,
    ROLE_COLORS,
    WIDTH,
    Run,
    arguments,
    header,
    label_ends,
    load_run,
    outputs,
    probe_title,
    save,
    short_step,
    step_axis,
    zero_line,
)
from susceptibilities.console import run as run_script
from susceptibilities.cubes import FORMS
from susceptibilities.naming import head_of

FOLDER = "baker2025/s4_2_trajectory_pca"
ORDER = ("chi", "rank_one", "mean_shift", "covariance")
FORM_STYLES = {
    "chi": ("#1A1A1A", "o", "-"),
    "rank_one": ("#0072B2", "s", "--"),
    "mean_shift": ("#D55E00", "^", "-."),
    "covariance": ("#999999", "D", ":"),
}
PUBLISHED_TOP3 = 0.98  # Baker 4.2

Tables = dict[str, pl.DataFrame]


def of_form(table: pl.DataFrame, form: str, pc: int | None = None) -> pl.DataFrame:
    chosen = table.filter(pl.col("form") == form)
    return chosen if pc is None else chosen.filter(pl.col("pc") == pc)


def share_of(tables: Tables, form: str, pc: int) -> float:
    return float(of_form(tables["variance"], form, pc)["share"].item())


def is_identified(tables: Tables, form: str, pc: int) -> bool:
    return bool(of_form(tables["variance"], form, pc)["identified"].item())


def components_drawn(tables: Tables, wanted: int = 3) -> list[int]:
    """The first components, as many as there are."""
    return list(range(1, min(wanted, int(tables["variance"]["pc"].max())) + 1))  # type: ignore[arg-type]


def head_places(heads: list[str]) -> np.ndarray:
    """Places of heads along an axis, with a gap between layers."""
    return np.array([i + 0.8 * (head_of(h) or (0, 0))[0] for i, h in enumerate(heads)])


def draw_loadings(tables: Tables, run: Run, form: str = "chi") -> tuple[Figure, pl.DataFrame]:
    """Figure 6: loadings of the first components on every head, for chi and each part."""
    loadings = tables["loadings"]
    pcs = components_drawn(tables)
    heads = of_form(loadings, "chi", 1)["component"].to_list()
    places = head_places(heads)
    colors = [ROLE_COLORS.get(run.roles.get(h, ""), GREY) for h in heads]
    figure = plt.figure(figsize=(WIDTH, 1.15 + 1.2 * len(pcs)))
    size = figure.get_size_inches()[1]
    grid = figure.add_gridspec(
        len(pcs),
        len(ORDER),
        width_ratios=[2.5, 1, 1, 1],
        hspace=0.34,
        wspace=0.13,
        left=0.072,
        right=0.995,
        top=1 - 0.86 / size,
        bottom=0.36 / size,
    )
    shown_chi = of_form(loadings, form).filter(pl.col("pc") <= len(pcs))
    reach = np.max(np.abs(shown_chi["value"].to_numpy()) + shown_chi["se"].to_numpy())
    bound = min(1.05, max(0.4, 1.12 * float(reach)))
    for row, pc in enumerate(pcs):
        for column, shown in enumerate((form, *(f for f in ORDER if f != form))):
            ax = figure.add_subplot(grid[row, column])
            part = of_form(loadings, shown, pc)
            ax.bar(
                places,
                part["value"],
                width=0.78,
                color=colors,
                alpha=1.0 if is_identified(tables, shown, pc) else 0.4,
            )
            ax.errorbar(
                places,
                part["value"],
                part["se"],
                fmt="none",
                ecolor="#222222",
                elinewidth=0.7 if column == 0 else 0.5,
                capsize=1.4 if column == 0 else 0,
            )
            ax.axhline(0, color="#555555", linewidth=0.6)
            even = 1 / np.sqrt(len(heads))
            for y in (even, -even):
                ax.axhline(y, color="#BBBBBB", linewidth=0.5, linestyle=(0, (1, 2)), zorder=0)
            ax.set_ylim(-bound, bound)
            ax.set_xlim(places[0] - 0.8, places[-1] + 0.8)
            last = row == len(pcs) - 1
            numbers = [h.split(":")[1] for h in heads]
            ax.set_xticks(places, numbers if column == 0 and last else [""] * len(heads))
            ax.tick_params(axis="x", length=0, labelsize=7, pad=1)
            ax.spines["bottom"].set_visible(False)
            ax.tick_params(axis="y", labelleft=column == 0)
            note = "" if is_identified(tables, shown, pc) else " *"
            ax.text(
                0.995,
                1.0,
                f"{100 * share_of(tables, shown, pc):.1f} %{note}",
                transform=ax.transAxes,
                ha="right",
                va="bottom",
                fontsize=6.5,
                color=GREY,
            )
            if row == 0:
                ax.set_title(
                    FORM_TITLES[shown],
                    pad=14,
                    fontsize=8.5 if column == 0 else 7.5,
                    color="black" if column == 0 else "#444444",
                )
            if column == 0:
                ax.set_ylabel(f"PC{pc} loading")
            if last:
                for layer in sorted({(head_of(h) or (0, 0))[0] for h in heads}):
                    inside = [
                        p for p, h in zip(places, heads, strict=True) if h.startswith(f"{layer}:")
                    ]
                    ax.text(
                        float(np.mean(inside)),
                        -0.13 if column == 0 else -0.03,
                        f"layer {layer}" + (" heads" if column == 0 else ""),
                        transform=ax.get_xaxis_transform(),
                        ha="center",
                        va="top",
                        fontsize=6.5,
                    )
    present = [r for r in ROLE_COLORS if r in run.roles.values()]
    header(
        figure,
        "Loadings of the principal components on heads",
        f"model {run.label} · bars: loadings with jackknife errors over chains · %: share of "
        "variance\n"
        "dotted: size in an even spread · faint, *: not separated from a neighboring component",
        top=0.02,
    )
    figure.legend(
        handles=[Patch(color=ROLE_COLORS[r], label=r) for r in present],
        loc="upper right",
        bbox_to_anchor=(1.0, 1.015),
        ncols=1,
        labelspacing=0.25,
        handlelength=0.9,
        fontsize=7,
        borderaxespad=0,
    )
    return figure, loadings.filter(pl.col("pc") <= len(pcs))


def draw_contributions(tables: Tables, run: Run, form: str = "chi") -> tuple[Figure, pl.DataFrame]:
    """Figure 12: contribution of every probe to the first components."""
    rows = of_form(tables["contributions"], form)
    pcs = components_drawn(tables)
    probes = rows.filter(pl.col("pc") == 1)["probe"].to_list()
    y = np.arange(len(probes))[::-1]
    figure = plt.figure(figsize=(WIDTH, 0.95 + 0.2 * len(probes)))
    size = figure.get_size_inches()[1]
    grid = figure.add_gridspec(
        1, len(pcs), wspace=0.08, left=0.29, right=0.995, top=1 - 0.7 / size, bottom=0.36 / size
    )
    for column, pc in enumerate(pcs):
        ax = figure.add_subplot(grid[column])
        part = rows.filter(pl.col("pc") == pc)
        colors = ["#0072B2" if v > 0 else "#D55E00" for v in part["value"]]
        ax.barh(y, part["value"], height=0.66, color=colors, alpha=0.9)
        ax.errorbar(
            part["value"],
            y,
            xerr=part["se"],
            fmt="none",
            ecolor="#222222",
            elinewidth=0.8,
            capsize=1.6,
        )
        ax.axvline(0, color="#555555", linewidth=0.6)
        shown = rows.filter(pl.col("pc") <= len(pcs))
        reach = np.max(np.abs(shown["value"].to_numpy()) + shown["se"].to_numpy())
        limit = max(0.75, 1.08 * float(reach))
        ax.set_xlim(-limit, limit)
        ax.set_xticks([-0.5, 0, 0.5])
        ax.set_ylim(-0.6, len(probes) - 0.4)
        ax.set_yticks(y, [probe_title(run, p) for p in probes] if column == 0 else [""] * len(y))
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        star = "" if is_identified(tables, form, pc) else " *"
        ax.set_title(f"PC{pc}{star}   {100 * share_of(tables, form, pc):.1f} %")
        for place in y[::2]:
            ax.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", zorder=-1, linewidth=0)
        ax.set_xlabel("contribution")
    header(
        figure,
        f"Contributions of the probes to the components — {FORM_TITLES[form]}",
        f"model {run.label} · scores averaged over checkpoints, columns of unit norm · error bars: "
        "jackknife over chains",
        top=0.02,
    )
    return figure, rows.filter(pl.col("pc") <= len(pcs))


def draw_scree(tables: Tables, run: Run, form: str = "chi") -> tuple[Figure, pl.DataFrame]:
    """Figure 13: variance explained, for chi and each part, beside the published sum."""
    variance = tables["variance"]
    figure = plt.figure(figsize=(WIDTH, 2.75))
    grid = figure.add_gridspec(1, 2, wspace=0.24, left=0.075, right=0.985, top=0.76, bottom=0.15)
    single, total = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    for shown in ORDER[::-1]:
        color, marker, style = FORM_STYLES[shown]
        # Components without variance have rounding noise for a share.
        part = of_form(variance, shown).with_columns(
            share=pl.when(pl.col("share") > 1e-12).then("share")
        )
        for ax, value, error in (
            (single, "share", "se"),
            (total, "cumulative", "cumulative_se"),
        ):
            ax.errorbar(
                part["pc"],
                part[value],
                part[error],
                color=color,
                marker=marker,
                linestyle=style,
                # The rank-one part often lies under chi: open and larger, it shows around it.
                markersize=5.6 if shown == "rank_one" else 3.2,
                markerfacecolor="white" if shown == "rank_one" else color,
                linewidth=1.3 if shown == form else 0.9,
                elinewidth=0.7,
                capsize=1.5,
                label=FORM_TITLES[shown],
                zorder=3 if shown == form else 2,
            )
    count = int(variance["pc"].max())  # type: ignore[arg-type]
    single.set_yscale("log")
    low = float(of_form(variance, "chi")["share"].min())  # type: ignore[arg-type]
    single.set_ylim(max(low / 2, 1e-6), 1.4)
    single.set_ylabel("share of variance")
    total.set_ylim(0, 1.03)
    total.set_ylabel("cumulative share")
    for ax in (single, total):
        ax.set_xlabel("component")
        ax.set_xlim(0.6, count + 0.4)
        ax.set_xticks(range(1, count + 1, 1 if count <= 10 else 3))
    total.plot(
        [0.6, 3], [PUBLISHED_TOP3] * 2, color="#AA3377", linewidth=0.8, linestyle=(0, (4, 2))
    )
    total.plot([3, 3], [0, PUBLISHED_TOP3], color="#AA3377", linewidth=0.8, linestyle=(0, (4, 2)))
    total.annotate(
        "published: first three\nexplain over 98 %",
        (3, 0.12),
        xytext=(5, 0),
        textcoords="offset points",
        fontsize=7,
        color="#AA3377",
        va="center",
    )
    handles, labels = total.get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        labels[::-1],
        loc="upper left",
        bbox_to_anchor=(0.06, 0.885),
        ncols=4,
        columnspacing=1.6,
        handlelength=2.4,
    )
    header(
        figure,
        "Variance explained by the components of the joint PCA",
        f"model {run.label} · error bars: jackknife over chains",
        top=0.03,
    )
    return figure, variance


def trajectories(scores: pl.DataFrame, pcs: tuple[int, int]) -> dict[str, np.ndarray]:
    """Probe -> array (step, [step, x, y, se x, se y])."""
    found = {}
    for (probe,), rows in scores.group_by(["probe"], maintain_order=True):
        one, two = (rows.filter(pl.col("pc") == pc).sort("step") for pc in pcs)
        found[str(probe)] = np.column_stack(
            [one["step"], one["value"], two["value"], one["se"], two["se"]]
        )
    return found


def chosen_steps(steps: np.ndarray, count: int = 5) -> list[int]:
    """Checkpoints whose step is written along a trajectory: spread evenly on the log axis."""
    positive = steps[steps > 0]
    if len(positive) <= count:
        return [int(s) for s in positive]
    targets = np.geomspace(positive[0], positive[-1], count)[1:]
    return sorted({int(positive[np.argmin(np.abs(np.log(positive / t)))]) for t in targets})


def draw_plane(ax: Axes, paths: dict[str, np.ndarray], run: Run, width: float) -> None:
    """Trajectories with markers at some steps and an error ellipse at the last one."""
    for probe, path in paths.items():
        color = run.color_of(probe)
        ax.plot(path[:, 1], path[:, 2], color=color, linewidth=width, alpha=0.9)
        marked = np.isin(path[:, 0], chosen_steps(path[:, 0]))
        ax.plot(
            path[marked, 1], path[marked, 2], "o", color=color, markersize=2.2, linestyle="none"
        )
        _, x, y, sx, sy = path[-1]
        ax.add_patch(Ellipse((x, y), 2 * sx, 2 * sy, facecolor=color, alpha=0.1, linewidth=0))
        ax.plot(
            [x],
            [y],
            run.marker_of(probe),
            color=color,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=4,
        )
    ax.axhline(0, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.axvline(0, color="#DDDDDD", linewidth=0.6, zorder=0)


def label_steps(ax: Axes, paths: dict[str, np.ndarray], points: float = 13.0) -> None:
    """Step numbers along trajectories, leaving out those that would lie on another one."""
    extent = {p: float(np.ptp(path[:, 1:3], axis=0).sum()) for p, path in paths.items()}
    scale = 72.0 / ax.figure.dpi
    # The large markers at the ends are there already.
    taken = [tuple(ax.transData.transform(path[-1, 1:3]) * scale) for path in paths.values()]
    for probe in sorted(paths, key=lambda p: -extent[p]):
        path = paths[probe]
        for step in chosen_steps(path[:, 0])[:-1]:
            row = path[path[:, 0] == step][0]
            place = ax.transData.transform((row[1], row[2])) * scale
            if any(np.hypot(place[0] - x, 1.6 * (place[1] - y)) < points for x, y in taken):
                continue
            taken.append((float(place[0]), float(place[1])))
            ax.annotate(
                short_step(step),
                (row[1], row[2]),
                xytext=(2.5, 2.5),
                textcoords="offset points",
                fontsize=5.5,
                color="#444444",
                path_effects=[withStroke(linewidth=1.6, foreground="white", alpha=0.85)],
            )


def draw_trajectories(tables: Tables, run: Run, form: str = "chi") -> tuple[Figure, pl.DataFrame]:
    """Figure 14: trajectories of the probes in the plane of PC1 and PC2, and of PC2 and PC3."""
    scores = of_form(tables["scores"], form)
    pcs = components_drawn(tables)
    planes = [(1, 2), (3, 2)] if len(pcs) >= 3 else [(1, min(2, len(pcs)))]
    figure = plt.figure(figsize=(WIDTH, 3.95))
    grid = figure.add_gridspec(
        1,
        len(planes),
        width_ratios=[1.5, 1.0][: len(planes)],
        wspace=0.1,
        left=0.07,
        right=0.985,
        top=0.86,
        bottom=0.245,
    )
    panels = []
    for column, (x, y) in enumerate(planes):
        ax = figure.add_subplot(grid[column], sharey=panels[0][0] if panels else None)
        paths = trajectories(scores, (x, y))
        draw_plane(ax, paths, run, width=1.1 if column == 0 else 0.7)
        ax.margins(0.07)
        ax.set_xlabel(f"PC{x}  ({100 * share_of(tables, form, x):.1f} % of the variance)")
        if column == 0:
            ax.set_ylabel(f"PC{y}  ({100 * share_of(tables, form, y):.1f} %)")
        else:
            ax.tick_params(labelleft=False)
        panels.append((ax, paths))
    figure.canvas.draw()
    for ax, paths in panels:
        label_steps(ax, paths)
    probes = list(panels[0][1])
    handles = [
        Line2D([], [], color=run.color_of(p), marker=run.marker_of(p), markersize=4.5)
        for p in probes
    ]
    figure.legend(
        handles,
        [probe_title(run, p) for p in probes],
        loc="lower center",
        bbox_to_anchor=(0.5, -0.02),
        ncols=3 if len(probes) < 16 else 4,
        fontsize=7,
        columnspacing=1.4,
        labelspacing=0.35,
    )
    header(
        figure,
        f"Trajectories of the probes over training — {FORM_TITLES[form]}",
        f"model {run.label} · large marker: last checkpoint, ellipse: ±1 jackknife standard error "
        "· numbers: training steps",
        top=0.02,
    )
    return figure, scores


def draw_series(tables: Tables, run: Run, form: str = "chi") -> tuple[Figure, pl.DataFrame]:
    """Figure 15: the components as time series, one line a probe."""
    scores = of_form(tables["scores"], form)
    pcs = components_drawn(tables)
    steps = scores["step"].unique().sort().to_list()
    figure = plt.figure(figsize=(WIDTH, 0.75 + 1.65 * len(pcs)))
    size = figure.get_size_inches()[1]
    grid = figure.add_gridspec(
        len(pcs), 1, hspace=0.22, left=0.07, right=0.74, top=1 - 0.55 / size, bottom=0.4 / size
    )
    panels = []
    for row, pc in enumerate(pcs):
        ax = figure.add_subplot(grid[row])
        zero_line(ax)
        ends = []
        part = scores.filter(pl.col("pc") == pc)
        for (probe,), line in part.group_by(["probe"], maintain_order=True):
            name = str(probe)
            x, y, se = (line.sort("step")[c].to_numpy() for c in ("step", "value", "se"))
            ax.plot(x, y, color=run.color_of(name), linewidth=1.2)
            ax.plot(
                x[:: max(1, len(x) // 10)],
                y[:: max(1, len(x) // 10)],
                run.marker_of(name),
                color=run.color_of(name),
                markersize=2.4,
                linestyle="none",
            )
            ax.fill_between(x, y - se, y + se, color=run.color_of(name), alpha=0.1, linewidth=0)
            ends.append((float(y[-1]), probe_title(run, name), run.color_of(name)))
        step_axis(ax, steps, label=row == len(pcs) - 1)
        ax.tick_params(labelbottom=row == len(pcs) - 1)
        ax.set_ylabel(f"PC{pc}  ({100 * share_of(tables, form, pc):.1f} %)")
        panels.append((ax, ends))
    figure.canvas.draw()
    for ax, ends in panels:
        label_ends(ax, ends, points=8.2, size=6.5)
    header(
        figure,
        f"The components as time series — {FORM_TITLES[form]}",
        f"model {run.label} · bands: ±1 jackknife standard error over chains",
        top=0.015,
    )
    return figure, scores


FIGURES: dict[str, Callable[..., tuple[Figure, pl.DataFrame]]] = {
    "fig6": draw_loadings,
    "fig12": draw_contributions,
    "fig13": draw_scree,
    "fig14": draw_trajectories,
    "fig15": draw_series,
}


def main() -> None:
    parser = arguments(__doc__, "<figure>")
    parser.add_argument("--figure", required=True, nargs="+", choices=FIGURES)
    parser.add_argument("--form", default="chi", choices=FORMS, help="which form [chi]")
    given = parser.parse_args()
    tables = {
        name: pl.read_parquet(given.results / FOLDER / f"{name}.parquet")
        for name in ("loadings", "variance", "contributions", "scores")
    }
    run = load_run(given.results)
    for name, out in outputs(given):
        save(FIGURES[name](tables, run, given.form)[0], out)


if __name__ == "__main__":
    run_script(main)
