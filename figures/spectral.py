"""The covariance part without sampling: what a reliability costs, its terms, the spectrum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common import (
    GREY,
    HEAD_COLORS,
    WIDTH,
    Run,
    arguments,
    head_label,
    header,
    load_run,
    outputs,
    save,
)
from susceptibilities.console import run as run_script
from susceptibilities.reliability import spearman_brown

FOLDER = "estimators/spectral_covariance"
TABLES = ("cost", "reliability", "terms", "spectrum")
SHOWN = 4  # components with curves of their own; the others are in the tables
OTHER = "sets of other documents"
TERMS = {"linear": "linear", "quadratic": "pairs used", "rest": "other pairs"}

Tables = Mapping[str, pl.DataFrame]


def color_of(component: str, places: Sequence[str]) -> str:
    """By place: two heads of different layers would share the color of their number."""
    return HEAD_COLORS[places.index(component) % len(HEAD_COLORS)]


def draw_cost(ax: Axes, tables: Tables, components: Sequence[str]) -> None:
    """Reliability against processor time: loss sets, and chains."""
    cost = tables["cost"]
    found = tables["reliability"].filter(pl.col("term").is_in(["covariance", "sampled"]))
    values = cost.filter(pl.col("unit") != "one pass")["seconds"].to_numpy()
    low, high = values.min() / 3, values.max() * 1e3
    times = np.geomspace(low, high, 200)
    for name in components:
        color = color_of(name, components)
        mine = cost.filter(pl.col("component") == name)
        spectral = mine.filter((pl.col("estimator") == "spectral") & pl.col("half").is_not_nan())
        one = spectral.row(0, named=True)
        sampled = mine.filter(pl.col("estimator").str.ends_with("spectral size")).row(0, named=True)
        whole = mine.filter(
            (pl.col("estimator") == "spectral") & (pl.col("target") != one["target"])
        ).row(0, named=True)
        for row, style in ((one, "-"), (sampled, (0, (4, 2)))):
            if row["reliability"] > 0:
                curve = [spearman_brown(row["reliability"], t / row["seconds"]) for t in times]
                ax.plot(times, curve, color=color, linestyle=style, linewidth=1.1)
        measured = found.filter((pl.col("component") == name) & (pl.col("between") == OTHER))
        chains = found.filter((pl.col("component") == name) & (pl.col("between") == "chains"))
        for rows, unit, marker, size in ((measured, one, "o", 4.0), (chains, sampled, "s", 3.0)):
            first = float(rows["units"].min() or 1)  # type: ignore[arg-type]
            ax.errorbar(
                rows["units"].to_numpy() / first * unit["seconds"],
                rows["value"].to_numpy(),
                yerr=rows["se"].to_numpy(),
                fmt=marker,
                markersize=size,
                color=color,
                markerfacecolor=color if marker == "o" else "white",
                linewidth=0.8,
                capsize=0,
            )
        ax.axvline(whole["seconds"], color=color, linestyle=":", linewidth=0.9)
    ax.axhline(0.5, color="#BBBBBB", linewidth=0.7, zorder=0)
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(-0.15, 1.02)
    ax.set_xlabel("processor time (s)")
    ax.set_ylabel("reliability")
    ax.set_title("what a reliability costs")


def draw_terms(ax: Axes, terms: pl.DataFrame, components: Sequence[str], run: Run) -> None:
    """Sizes of the terms, the posterior's and the control's."""
    names = [name for name in TERMS if name in terms.columns]
    for place, name in enumerate(components):
        for number, term in enumerate(names):
            rows = {
                r["run"]: r for r in terms.filter(pl.col("component") == name).iter_rows(named=True)
            }
            x = place + (number - (len(names) - 1) / 2) * 0.26
            error = rows["posterior"].get("rest_se") if term == "rest" else None
            ax.bar(
                x,
                rows["posterior"][term],
                0.22,
                color=color_of(name, components),
                alpha=(1.0, 0.6, 0.3)[number],
                yerr=error,
                error_kw={"linewidth": 0.8},
            )
            if "control" in rows:
                ax.plot(x, rows["control"][term], "o", markersize=3, mfc="white", color="#444444")
    ax.set_yscale("log")
    ax.set_xticks(range(len(components)), [head_label(name, run.roles) for name in components])
    ax.set_ylabel("size over tokens (nats²)")
    ax.set_title(", ".join(TERMS[name] for name in names), fontsize=7.5)


def draw_spectrum(
    ax: Axes, spectrum: pl.DataFrame, components: Sequence[str], factor: float
) -> None:
    """Eigenvalues by rank, the largest first; ``factor``: n_beta / localization."""
    for name in components:
        rows = spectrum.filter(pl.col("component") == name).sort("rank")
        color = color_of(name, components)
        ax.fill_between(rows["rank"], rows["low"], rows["high"], color=color, alpha=0.2, lw=0)
        ax.plot(rows["rank"], rows["value"], color=color, marker=".", markersize=3, linewidth=0.9)
    ax.axhline(0.0, color="#BBBBBB", linewidth=0.7, zorder=0)
    ax.set_xlabel("rank (Lanczos)")
    ax.set_ylabel("eigenvalue of the Hessian")
    low, high = ax.get_ylim()
    other = ax.twinx()
    other.set_ylim(factor * low, factor * high)
    other.set_ylabel("n_beta · eigenvalue / γ")
    ax.set_title("spectrum")


def draw(tables: Tables, run: Run) -> Figure:
    components = tables["cost"]["component"].unique(maintain_order=True).to_list()
    some = components[:SHOWN]
    figure, axes = plt.subplots(
        1, 3, figsize=(WIDTH, 2.5), width_ratios=(1.5, 1.1, 1.0), layout="constrained"
    )
    draw_cost(axes[0], tables, some)
    draw_terms(axes[1], tables["terms"], some, run)
    first = tables["terms"].filter(pl.col("run") == "posterior").row(0, named=True)
    draw_spectrum(axes[2], tables["spectrum"], some, first["relative"] / first["largest"])
    for name in some:
        axes[0].plot([], [], color=color_of(name, some), label=head_label(name, run.roles))
    style = {"color": GREY, "markersize": 3}
    axes[0].plot([], [], linestyle="-", marker="o", label="loss sets", **style)
    axes[0].plot([], [], linestyle="--", marker="s", mfc="white", label="chains", **style)
    axes[0].legend(fontsize=6, loc="lower right", framealpha=0.9)
    left_out = f"; {len(components) - SHOWN} more in the table" if len(components) > SHOWN else ""
    header(
        figure,
        "The covariance part without sampling",
        f"{run.label} · from derivatives of the losses, beside chains{left_out}",
        top=0.16,
    )
    return figure


def main() -> None:
    parser = arguments(__doc__, "spectral")
    given = parser.parse_args()
    given.figure = ["spectral"]
    folder = given.results / FOLDER
    tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    for _, out in outputs(given):
        save(draw(tables, load_run(given.results)), out)


if __name__ == "__main__":
    run_script(main)
