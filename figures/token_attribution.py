"""Figure 9: mean per-token against dataset susceptibility."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common import (
    FORM_TITLES,
    GREY,
    WIDTH,
    Run,
    arguments,
    empty_page,
    header,
    load_run,
    probe_title,
    save,
)
from susceptibilities.console import run as run_script
from susceptibilities.cubes import CONTROL_PROBE
from susceptibilities.store import read_json

FOLDER = "baker2025/s4_5_token_attribution"
PANELS = (("rank_one", False), ("mean_shift", False), ("covariance", False), ("chi", True))
LINES = {
    "theory": ("#555555", ":", "slope 1/δh"),
    "least_squares": ("#D55E00", "-", "least squares"),
    "deming": ("#0072B2", "--", "errors in both axes"),
}
Tables = dict[str, pl.DataFrame]


def of(table: pl.DataFrame, form: str, control: bool) -> pl.DataFrame:
    return table.filter((pl.col("form") == form) & (pl.col("control") == control))


def statistic(fits: pl.DataFrame, name: str) -> Mapping[str, Any]:
    return fits.filter(pl.col("statistic") == name).row(0, named=True)


def interval(row: Mapping[str, Any], digits: int) -> str:
    """Value and 95 % interval: "0.82 [0.71, 0.93]"."""
    if row["low"] is None:
        return "unknown"
    value, low, high = (
        f"{row[name]:.{digits}g}".replace("-", "−") for name in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def draw_points(ax: Axes, points: pl.DataFrame, run: Run, size: float) -> None:
    """Points with errors: a color a probe, round in the first layer, triangles in the others."""
    first = pl.col("component").str.starts_with("0:")
    for (probe, in_first), rows in points.group_by("probe", first, maintain_order=True):
        color = run.color_of(str(probe))
        fitted = rows["fitted"][0]
        ax.errorbar(
            rows["dataset"],
            rows["mean"],
            xerr=rows["dataset_se"],
            yerr=rows["mean_se"],
            color=color,
            marker="o" if in_first else "^",
            markersize=size,
            # The control probe has no part in the lines.
            markerfacecolor=color if fitted else "white",
            markeredgewidth=0.4 if fitted else 0.6,
            markeredgecolor="white" if fitted else color,
            elinewidth=0.35,
            ecolor=(color, 0.55),
            linestyle="none",
            zorder=3,
        )


def draw_lines(ax: Axes, points: pl.DataFrame, slopes: Mapping[str, float | None]) -> None:
    """The lines through the center of the fitted points with the slopes in ``LINES``."""
    x, y = (points.filter(pl.col("fitted"))[name].to_numpy() for name in ("dataset", "mean"))
    ends = np.array([x.min(), x.max()])
    for name, (color, dash, _) in LINES.items():
        slope = slopes.get(name)
        if slope is not None and np.isfinite(slope):
            ax.plot(
                ends,
                y.mean() + slope * (ends - x.mean()),
                color=color,
                linestyle=dash,
                linewidth=1.0,
                zorder=4,
            )


def limits(ax: Axes, points: pl.DataFrame) -> None:
    """Limits from points and errors: a steep line must not stretch them."""
    for axis, name in (("x", "dataset"), ("y", "mean")):
        value, se = points[name].to_numpy(), points[f"{name}_se"].to_numpy()
        low, high = float((value - se).min()), float((value + se).max())
        margin = 0.05 * (high - low or 1.0)
        ax.set(**{f"{axis}lim": (low - margin, high + margin)})


def in_units(points: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Points in powers of ten of their own, and the powers of either axis."""
    powers = {}
    for name in ("dataset", "mean"):
        largest = float(points[name].abs().max() or 1.0)  # type: ignore[arg-type]
        powers[name] = math.floor(math.log10(largest))
    columns = [
        pl.col(column) / 10.0 ** powers[column.removesuffix("_se")]
        for column in ("dataset", "dataset_se", "mean", "mean_se")
    ]
    return points.with_columns(columns), powers


def unit(power: int) -> str:
    """What numbers in powers of ten are multiples of: "10⁻³ nats²"."""
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits} nats²" if power else "nats²"


def draw_means(tables: Tables, run: Run, delta_h: float) -> tuple[Figure, pl.DataFrame]:
    """Figure 9: mean per-token against dataset susceptibility."""
    figure = plt.figure(figsize=(WIDTH, 4.9))
    grid = figure.add_gridspec(
        1, 2, width_ratios=[1.25, 1], wspace=0.22, left=0.065, right=0.995, top=0.865, bottom=0.225
    )
    small = grid[1].subgridspec(2, 2, wspace=0.42, hspace=0.62)
    theory = 1 / delta_h
    drawn = []
    for place, (form, control) in enumerate((("chi", False), *PANELS)):
        large = place == 0
        ax = figure.add_subplot(grid[0] if large else small[place - 1])
        points, fits = of(tables["points"], form, control), of(tables["fits"], form, control)
        title = "χ, n_beta = 0 control" if control else FORM_TITLES[form]
        if points.is_empty():
            ax.set_title(title, fontsize=7.5)
            ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", color=GREY)
            ax.set(xticks=[], yticks=[])
            continue
        drawn.append(points)
        shown, powers = in_units(points)
        scale = 10.0 ** (powers["mean"] - powers["dataset"])
        found = {name: statistic(fits, name) for name in ("pearson", "least_squares", "deming")}
        slopes = {name: row["value"] for name, row in found.items()} | {"theory": theory}
        draw_points(ax, shown, run, 3.6 if large else 2.0)
        limits(ax, shown)
        low, high = found["pearson"]["low"], found["pearson"]["high"]
        if low > 0 or high < 0:  # else the points have no direction
            draw_lines(ax, shown, {k: v / scale for k, v in slopes.items() if v is not None})
        for line in (ax.axhline, ax.axvline):
            line(0.0, color="#DDDDDD", linewidth=0.6, zorder=0)
        words = [f"Pearson r = {interval(found['pearson'], 3)}"]
        words += [
            f"slope, {LINES[name][2]}: {interval(found[name], 3)}"
            for name in ("least_squares", "deming")
        ]
        if large:
            ax.set_title(title)
            words.append(f"theory: 1/δh = {theory:g}")
            ax.text(0.02, 0.985, "\n".join(words), transform=ax.transAxes, fontsize=7, va="top")
            ax.set_xlabel(f"dataset susceptibility ({unit(powers['dataset'])})")
            ax.set_ylabel(f"mean per-token susceptibility ({unit(powers['mean'])})", labelpad=2)
        else:
            ax.set_title(title, fontsize=7.5, pad=11)
            short = f"r = {interval(found['pearson'], 3)}"
            ax.text(0, 1.02, short, transform=ax.transAxes, fontsize=6, color=GREY, va="bottom")
            ax.set_xlabel(unit(powers["dataset"]), fontsize=6.2, labelpad=1)
            ax.set_ylabel(unit(powers["mean"]), fontsize=6.2, labelpad=1)
            ax.tick_params(labelsize=6.2)
            ax.locator_params(nbins=4)
    if not drawn:
        plt.close(figure)
        reason = "there are no dataset susceptibilities at the checkpoint of the per-token run"
        return empty_page("Mean per-token against dataset susceptibility", reason), tables["points"]
    legend_of_means(figure, drawn[0]["probe"].unique(maintain_order=True).to_list(), run)
    header(
        figure,
        "Mean per-token susceptibility against dataset susceptibility",
        f"model {run.label} · a point a head and domain · errors over chains and contexts · "
        "[95 % intervals]",
        top=0.02,
    )
    return figure, pl.concat(drawn)


def legend_of_means(figure: Figure, probes: Sequence[str], run: Run) -> None:
    """Colors of the probes, marks of the layers, and the lines."""
    handles, labels = [], []
    for probe in probes:
        own = probe == CONTROL_PROBE
        face = "white" if own else run.color_of(probe)
        handles.append(
            Line2D([], [], color=run.color_of(probe), marker="s", linestyle="none", mfc=face, ms=4)
        )
        labels.append(f"{probe} (like the training text)" if own else probe_title(run, probe))
    for marker, words in (("o", "layer 0"), ("^", "later layers")):
        handles.append(Line2D([], [], color=GREY, marker=marker, linestyle="none", ms=4))
        labels.append(words)
    for color, dash, words in LINES.values():
        handles.append(Line2D([], [], color=color, linestyle=dash))  # type: ignore[arg-type]
        labels.append(words)
    figure.legend(
        handles,
        labels,
        loc="lower center",
        bbox_to_anchor=(0.5, -0.02),
        ncols=4,
        fontsize=6.5,
        columnspacing=1.1,
        handletextpad=0.5,
    )


def main() -> None:
    given = arguments(__doc__, "fig9").parse_args()
    tables = {
        name: pl.read_parquet(given.results / FOLDER / f"{name}.parquet")
        for name in ("points", "fits")
    }
    delta_h = read_json(given.results / "config.json")["two_layer"]["delta_h"]
    figure, _ = draw_means(tables, load_run(given.results), delta_h)
    save(figure, given.out or given.results / "figures" / "fig9")


if __name__ == "__main__":
    run_script(main)
