"""Influence of tokens upon tokens: by contexts, by kind of pair, within a repeated sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from common import (
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

FOLDER = "baker2025/s5_influence_functions"
REPEATS = "repeated sequences"
TABLES = ("contexts", "pairs", "sequence", "reliability", "chains")
RUNS = {"posterior": ("#0072B2", "o", "-"), "control": ("#E69F00", "s", "--")}
TITLES = {"posterior": "posterior", "control": "control, n_beta = 0"}
# Kinds of pairs in the order drawn, None for a gap.
KINDS = (
    "same context, same token",
    "same domain, same token",
    "other domain, same token",
    None,
    "same context",
    "same domain",
    "other domain",
    None,
    "same context, other token",
    "same domain, other token",
    "other domain, other token",
    None,
    "copies of a token",
    "first copy",
    "second copy",
)
WRITTEN = {
    "same context": "same context, all",
    "same domain": "same domain, all",
    "other domain": "other domain, all",
    "copies of a token": "token and its copy",
    "first copy": "within the first copy",
    "second copy": "within the second copy",
}
SETS = {
    "same token": ("tokens, same token", "^", "#D55E00"),
    "tokens": ("tokens, all", "o", "#222222"),
    "contexts": ("contexts", "s", "#009E73"),
}

Tables = Mapping[str, pl.DataFrame]


def square(rows: pl.DataFrame) -> np.ndarray:
    """A matrix stored row by row."""
    size = round(np.sqrt(len(rows)))
    return rows["value"].to_numpy().reshape(size, size)


def draw_contexts(
    axes: Mapping[str, Axes], contexts: pl.DataFrame
) -> tuple[AxesImage, dict[str, np.ndarray]]:
    """Mean correlation over the pairs of tokens of every two contexts, one panel a run."""
    found = {run: square(contexts.filter(pl.col("run") == run)) for run in axes}
    first = contexts.filter(pl.col("run") == next(iter(axes)))
    labels = first.unique(["domain", "context"], maintain_order=True)["domain"].to_list()
    starts = [i for i, name in enumerate(labels) if i == 0 or name != labels[i - 1]]
    ends = [*starts[1:], len(labels)]
    text = [i for i, name in enumerate(labels) if name != REPEATS]
    # The scale of the text; repeated sequences go beyond it.
    limit = max(float(np.abs(m[np.ix_(text, text)]).max()) for m in found.values())
    image: AxesImage | None = None
    for run, ax in axes.items():
        image = ax.imshow(found[run], cmap="RdBu_r", vmin=-limit, vmax=limit)
        for start in starts[1:]:
            ax.axhline(start - 0.5, color="white", linewidth=0.7)
            ax.axvline(start - 0.5, color="white", linewidth=0.7)
        centers = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
        names = ["repeated\nsequences" if labels[a] == REPEATS else labels[a] for a in starts]
        ax.set_xticks([])
        ax.set_yticks(centers, names if run == next(iter(axes)) else [""] * len(names))
        ax.tick_params(length=0, labelsize=6.5)
        ax.spines[:].set_visible(False)
        ax.set_title(TITLES[run])
    assert image is not None
    return image, found


def draw_kinds(ax: Axes, pairs: pl.DataFrame) -> None:
    """Mean correlation of every kind of pair in both runs, with the numbers beside."""
    rows = pairs.filter(pl.col("form") == "correlation")
    present = [k for k in KINDS if k is None or k in rows["kind"].to_list()]
    places: dict[str, float] = {}
    y = 0.0
    for kind in present:
        y -= 0.55 if kind is None else 1.0
        if kind is not None:
            places[kind] = y
    for run, (color, marker, _) in RUNS.items():
        part = {r["kind"]: r for r in rows.filter(pl.col("run") == run).iter_rows(named=True)}
        shift = 0.17 if run == "posterior" else -0.17
        ax.errorbar(
            [part[k]["value"] for k in places],
            [y + shift for y in places.values()],
            xerr=[part[k]["se"] for k in places],
            fmt=marker,
            color=color,
            markersize=3.2,
            elinewidth=0.9,
            capsize=1.5,
            label=TITLES[run],
        )
    ax.axvline(0, color="#BBBBBB", linewidth=0.7, zorder=0)
    bottom, top = min(places.values()) - 0.6, max(places.values()) + 0.6
    ax.set_ylim(bottom, top)
    ax.set_yticks(list(places.values()), [WRITTEN.get(kind, kind) for kind in places])
    ax.tick_params(axis="y", length=0, labelsize=7)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("mean correlation of the two losses")
    columns = (("posterior", 1.25), ("control", 1.7), ("posterior - control", 2.17))
    for run, x in columns:
        head = "difference" if "-" in run else run
        ax.text(x, 1.03, head, transform=ax.transAxes, fontsize=7, color=GREY, ha="center")
        part = {r["kind"]: r for r in rows.filter(pl.col("run") == run).iter_rows(named=True)}
        for kind, y in places.items():
            ax.text(
                x,
                (y - bottom) / (top - bottom),
                number(part[kind]["value"], part[kind]["se"], 4 if "-" in run else 3),
                transform=ax.transAxes,
                fontsize=7,
                ha="center",
                va="center",
            )


def number(value: float, error: float, places: int = 3) -> str:
    """A value with its standard error."""
    text = f"{round(value, places) + 0.0:.{places}f}".replace("-", "−")
    return f"{text} ± {error:.{places}f}" if np.isfinite(error) else text


def draw_sequence(ax: Axes, sequence: pl.DataFrame, chains: Mapping[str, Any]) -> AxesImage:
    """Correlation of every two tokens of one sequence, which comes twice in a row."""
    matrix = square(sequence.filter(pl.col("run") == "posterior"))
    size = len(matrix)
    image = ax.imshow(
        matrix, cmap="RdBu_r", vmin=-1, vmax=1, extent=(0.5, size + 0.5, size + 0.5, 0.5)
    )
    for line in (ax.axhline, ax.axvline):
        line(size / 2 + 0.5, color="#222222", linewidth=0.5)
    ticks = [1, size // 2, size]
    ax.set_xticks(ticks)
    ax.set_yticks(ticks)
    ax.tick_params(length=2, labelsize=6.5)
    ax.set_title("A repeated sequence")
    ax.set_xlabel(
        "position of the token\n"
        f"second copy easier by {chains['gain_star']:.2f} nats at w*,\n"
        f"{number(chains['gain'], chains['gain_se'], 2)} along the chains",
        fontsize=7,
    )
    return image


def draw_reliability(ax: Axes, reliability: pl.DataFrame) -> None:
    """Correlation between influences from some chains and from as many others."""
    for name, (label, marker, color) in SETS.items():
        for run, (_, _, style) in RUNS.items():
            rows = reliability.filter((pl.col("pairs") == name) & (pl.col("run") == run))
            if not len(rows):
                continue
            # Side by side: the errors of the two runs would cover each other.
            nudge = 0.0 if run == "posterior" else 0.25
            ax.errorbar(
                rows["draws"] + nudge,
                rows["reliability"],
                rows["se"],
                color=color,
                marker=marker,
                markersize=3,
                markerfacecolor=color if run == "posterior" else "white",
                linestyle=style,
                linewidth=0.9,
                elinewidth=0.7,
                capsize=1.5,
                label=label if run == "posterior" else None,
            )
    ax.axhline(0, color="#BBBBBB", linewidth=0.7, zorder=0)
    ax.set_xticks(sorted(set(reliability["draws"].to_list())))
    top = float((reliability["reliability"] + reliability["se"].fill_nan(0)).max())  # type: ignore[arg-type]
    ax.set_ylim(top=max(0.5, 1.1 * top))
    ax.set_xlabel("draws of each half")
    ax.set_title("Reliability over chains  (filled: posterior, open: control)")
    ax.legend(loc="upper left", fontsize=6.5, handlelength=1.4, borderaxespad=0.1)


def draw(tables: Tables, run: Run) -> tuple[Figure, dict[str, np.ndarray]]:
    """The figure, and the matrices of the contexts that it draws."""
    if not len(tables["pairs"]):
        return empty_page("Influence functions", "No pairs of tokens were measured."), {}
    height = 7.5
    figure = plt.figure(figsize=(WIDTH, height))

    def square_axes(x: float, y: float, width: float) -> Axes:
        return figure.add_axes((x, y, width, width * WIDTH / height))

    left, right = square_axes(0.13, 0.6, 0.34), square_axes(0.52, 0.6, 0.34)
    image, drawn = draw_contexts({"posterior": left, "control": right}, tables["contexts"])
    bar = figure.colorbar(image, cax=figure.add_axes((0.885, 0.66, 0.012, 0.19)))
    bar.ax.tick_params(labelsize=6.5, length=2)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label("mean correlation", fontsize=7)
    kinds = figure.add_axes((0.215, 0.28, 0.32, 0.275))
    draw_kinds(kinds, tables["pairs"])
    kinds.legend(
        loc="lower right", fontsize=6.5, handlelength=1, borderaxespad=0.1, bbox_to_anchor=(1, 0.36)
    )
    chains = {row["run"]: row for row in tables["chains"].iter_rows(named=True)}
    first = chains["posterior"]
    seen = draw_sequence(square_axes(0.06, 0.0, 0.21), tables["sequence"], first)
    scale = figure.colorbar(seen, cax=figure.add_axes((0.285, 0.025, 0.012, 0.15)))
    scale.set_ticks([-1, 0, 1])
    scale.ax.tick_params(labelsize=6.5, length=2)
    scale.outline.set_visible(False)  # type: ignore[operator]
    draw_reliability(figure.add_axes((0.5, 0.0, 0.46, 0.2)), tables["reliability"])
    header(
        figure,
        "Influence of tokens upon tokens: the correlation of their losses along chains",
        f"model {run.label} · {first['chains']} chains of {first['draws']} draws · loss of the "
        f"text above w*: {number(first['rise'], first['rise_se'])} nats, control "
        f"{number(chains['control']['rise'], chains['control']['rise_se'])}",
        top=0.0,
    )
    return figure, drawn


def main() -> None:
    parser = arguments(__doc__, "influence")
    parser.add_argument("--figure", nargs="+", default=["influence"], choices=["influence"])
    given = parser.parse_args()
    folder = given.results / FOLDER
    tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    run = load_run(given.results)
    for _, out in outputs(given):
        save(draw(tables, run)[0], out)


if __name__ == "__main__":
    run_script(main)
