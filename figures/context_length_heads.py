"""By head, beside Figures 33 and 34: the variance over tokens, and what repeats do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

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
    zero_line,
)
from context_length import FOLDER, FORM_ORDER, KINDS, POOLED, Tables, kind_of, kinds_legend, panels
from susceptibilities.console import run as run_script
from susceptibilities.naming import head_of


def head_axis(ax: Axes, heads: Sequence[str], label: bool) -> np.ndarray:
    """Heads side by side with a gap between layers; their places."""
    places = np.array([i + 0.8 * (head_of(h) or (0, 0))[0] for i, h in enumerate(heads)])
    ax.set_xticks(places, heads if label else [""] * len(heads), fontsize=5.8, rotation=90)
    ax.set_xlim(places[0] - 0.8, places[-1] + 0.8)
    ax.tick_params(axis="x", length=0)
    return places


def draw_variance_by_head(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Variance of every head, mean over lengths and domains, with and without sampling noise."""
    rows = tables["heads"].filter(
        (pl.col("probe") == POOLED) & pl.col("quantity").is_in(["variance", "signal"])
    )
    heads = rows["component"].unique(maintain_order=True).to_list()
    shown = [("run", f, FORM_TITLES[f]) for f in FORM_ORDER]
    shown.append(("control", "chi", "χ at nβ = 0"))
    figure, axes = panels(6, 3, 1.6, 0.78)
    axes[5].set_visible(False)
    for ax, (source, which, title) in zip(axes, shown, strict=False):
        part = rows.filter((pl.col("source") == source) & (pl.col("form") == which))
        places = head_axis(ax, heads, label=True)
        ax.set_title(title, fontsize=8)
        ax.tick_params(axis="y", labelsize=6.5)
        if not len(part):
            ax.text(0.5, 0.5, "not sampled", transform=ax.transAxes, ha="center", color=GREY)
            continue
        ax.set_yscale("log")
        for place, head in zip(places, heads, strict=True):
            color, _, marker = KINDS[kind_of(head, run)]
            one = part.filter(pl.col("component") == head)
            values = {r["quantity"]: (r["value"], r["se"]) for r in one.iter_rows(named=True)}
            raw, clean = values["variance"], values["signal"]
            ax.plot(place, raw[0], marker, color=color, markerfacecolor="white", markersize=4)
            if clean[0] > 0:
                bar = clean[1] if np.isfinite(clean[1]) else 0.0
                low = min(bar, 0.999 * clean[0])
                ax.errorbar(
                    [place],
                    [clean[0]],
                    [[low], [bar]],
                    fmt=marker,
                    color=color,
                    markersize=3.2,
                    elinewidth=0.8,
                )
        lowest = part.filter(pl.col("value") > pl.col("se").fill_nan(0.0))["value"].min()
        ax.set_ylim(bottom=0.4 * lowest)  # type: ignore[operator]
        ax.yaxis.set_minor_locator(NullLocator())
    for i in (0, 3):
        axes[i].set_ylabel("variance (nats⁴)")
    header(
        figure,
        "Variance of per-token susceptibility by head",
        f"model {run.label} · over tokens of one length and domain, mean over both\n"
        "filled: sampling noise subtracted, ±1 standard error (none where negative) · open: as "
        "sampled",
        top=0.0,
    )
    kinds_legend(figure, heads, run, loc="center", bbox_to_anchor=(0.85, 0.27), ncols=1)
    return figure, rows


def draw_repeats(tables: Tables, run: Run) -> tuple[Figure, pl.DataFrame]:
    """Later minus first instances of repeated sequences, by head and form."""
    rows = tables["repeats"].filter((pl.col("probe") == POOLED) & (pl.col("form") != "loss"))
    if not len(rows):
        reason = "no sequence of tokens repeats often enough in these contexts"
        return empty_page("Repeated sequences", reason), rows
    heads = rows["component"].unique(maintain_order=True).to_list()
    columns = {
        "difference_sd": "later minus first",
        "beyond_length_sd": "beyond the change with context length",
    }
    size = 1.1 + 1.3 * len(FORM_ORDER)
    figure = plt.figure(figsize=(WIDTH, size))
    grid = figure.add_gridspec(
        len(FORM_ORDER),
        2,
        left=0.085,
        right=0.992,
        top=1 - 1.1 / size,
        bottom=0.36 / size,
        wspace=0.16,
        hspace=0.16,
    )
    for i, shown in enumerate(FORM_ORDER):
        left: Axes | None = None
        for j, (measure, title) in enumerate(columns.items()):
            ax = figure.add_subplot(grid[i, j], sharey=left)
            left = left or ax
            part = rows.filter((pl.col("form") == shown) & (pl.col("measure") == measure))
            zero_line(ax)
            places = head_axis(ax, heads, label=i == len(FORM_ORDER) - 1)
            draw_instances(ax, part, heads, places, run)
            ax.tick_params(axis="y", labelsize=6.5)
            if i == 0:
                ax.set_title(title, fontsize=8, pad=6)
            if j == 0:
                ax.set_ylabel(f"{FORM_TITLES[shown]}\n(SD of the head)", fontsize=7)
    counts = {
        name: rows.filter(pl.col("instance") == name)["pairs"].max()
        for name in rows["instance"].unique(maintain_order=True)
    }
    spelled = " and ".join(f"{count:,} {name}" for name, count in counts.items())
    header(
        figure,
        "Repeated sequences: later instances against the first, by head",
        f"model {run.label} · repeated 3-grams, {spelled} instances"
        f"{loss_note(tables)}\nfilled: second instance · open: third and later · gray: nβ = 0, "
        "second · error bars: ±1 standard error",
        top=0.0,
    )
    kinds_legend(figure, heads, run, lines=2)
    return figure, rows


def loss_note(tables: Tables) -> str:
    """How much the loss changes from the first to the second instance."""
    row = tables["repeats"].filter(
        (pl.col("form") == "loss")
        & (pl.col("probe") == POOLED)
        & (pl.col("instance") == "second")
        & (pl.col("measure") == "difference")
    )
    if not len(row):
        return ""
    change = f"{row['value'].item():+.2f}".replace("-", "−")
    return f" · their loss: {change} ± {row['se'].item():.2f} nats"


def draw_instances(
    ax: Axes, rows: pl.DataFrame, heads: Sequence[str], places: np.ndarray, run: Run
) -> None:
    """Markers with error bars: second and later instances of the run, second of the control."""
    shapes = (("run", "second", -0.17), ("run", "later", 0.17), ("control", "second", 0.0))
    for source, instance, shift in shapes:
        part = rows.filter((pl.col("source") == source) & (pl.col("instance") == instance))
        values = {r["component"]: (r["value"], r["se"]) for r in part.iter_rows(named=True)}
        for place, head in zip(places, heads, strict=True):
            if head not in values:
                continue
            color, _, marker = KINDS[kind_of(head, run)]
            value, se = values[head]
            if source == "control":
                ax.errorbar([place], [value], [se], fmt="_", color="#999999", elinewidth=0.6)
                continue
            ax.errorbar(
                [place + shift],
                [value],
                [se],
                fmt=marker,
                color=color,
                markerfacecolor=color if instance == "second" else "white",
                markersize=3.2,
                markeredgewidth=0.8,
                elinewidth=0.8,
            )


FIGURES: dict[str, Callable[[Tables, Run], tuple[Figure, pl.DataFrame]]] = {
    "variance_by_head": draw_variance_by_head,
    "repeats_by_head": draw_repeats,
}


def main() -> None:
    parser = arguments(__doc__, "<figure>")
    parser.add_argument("--figure", required=True, nargs="+", choices=FIGURES)
    given = parser.parse_args()
    tables = {
        name: pl.read_parquet(given.results / FOLDER / f"{name}.parquet")
        for name in ("heads", "repeats")
    }
    run = load_run(given.results)
    for name, out in outputs(given):
        save(FIGURES[name](tables, run)[0], out)


if __name__ == "__main__":
    run_script(main)
