"""Figures 3-5 and 16-29: the susceptibility of every head over training, one probe a figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common import (
    FORM_TITLES,
    WIDTH,
    Run,
    arguments,
    empty_page,
    head_color,
    head_label,
    head_style,
    header,
    label_ends,
    load_run,
    offset_into_title,
    outputs,
    save,
    step_axis,
    zero_line,
)
from susceptibilities.console import run as run_script
from susceptibilities.cubes import FORMS
from susceptibilities.naming import HEAD_PATTERN
from susceptibilities.subsets import absent, place_of

TABLE = "baker2025/s4_1_dataset_susceptibilities/susceptibility.parquet"
# The subset of the Pile of each figure of the paper.
SUBSETS = {
    "fig3": "github",
    "fig4": "freelaw",
    "fig5": "hackernews",
    "fig16": "arxiv",
    "fig17": "dm_mathematics",
    "fig18": "enron_emails",
    "fig19": "nih_exporter",
    "fig20": "pubmed_abstracts",
    "fig21": "pubmed_central",
    "fig22": "uspto_backgrounds",
    "fig23": "wikipedia_en",
    "fig24": "pile-cc",
    "fig25": "hackernews",
    "fig26": "github-all",
    "fig27": "freelaw",
    "fig28": "philpapers",
    "fig29": "stackexchange",
}


def curves(table: pl.DataFrame, probe: str) -> pl.DataFrame:
    """The rows that are drawn: heads on one probe, in order of layer, head and step."""
    chosen = table.filter(
        (pl.col("probe") == probe) & pl.col("component").str.contains(HEAD_PATTERN)
    )
    return chosen.with_columns(
        pl.col("component").str.split(":").list.get(0).cast(pl.Int64).alias("layer"),
        pl.col("component").str.split(":").list.get(1).cast(pl.Int64).alias("head"),
    ).sort("layer", "head", "step")


def draw_lines(ax: Axes, rows: pl.DataFrame, width: float, band: bool) -> list[tuple[float, str]]:
    """One line a head; returns where each ends, by head."""
    ends = []
    for (head,), line in rows.group_by(["component"], maintain_order=True):
        name = str(head)
        x, y, se = (line[column].to_numpy() for column in ("step", "value", "se"))
        ax.plot(x, y, head_style(name), color=head_color(name), linewidth=width)
        if band:
            ax.fill_between(x, y - se, y + se, color=head_color(name), alpha=0.13, linewidth=0)
        ends.append((float(y[-1]), name))
    return ends


def draw(table: pl.DataFrame, run: Run, subset: str) -> tuple[Figure, pl.DataFrame]:
    """The figure of a subset and the rows drawn (none where the corpus has no such domain)."""
    place = place_of(subset, run.domains)
    if place is None or not len(rows := curves(table, place.probe)):
        reason = absent(subset).replace("this corpus has", "This corpus has") + "."
        return empty_page(f"Susceptibility on {subset} over training", reason), table.clear()
    steps = rows["step"].unique().sort().to_list()
    layers = rows["layer"].unique().sort().to_list()
    figure = plt.figure(figsize=(WIDTH, 4.35))
    grid = figure.add_gridspec(
        2,
        1,
        height_ratios=[2.3, 1.0],
        hspace=0.5,
        left=0.085,
        right=0.925,
        top=0.885,
        bottom=0.095,
    )
    above = grid[0].subgridspec(1, len(layers), wspace=0.34)
    below = grid[1].subgridspec(1, len(FORMS) - 1, wspace=0.3)
    first: Axes | None = None
    panels = []
    for column, layer in enumerate(layers):
        ax = figure.add_subplot(above[column], sharey=first)
        first = first or ax
        chosen = rows.filter((pl.col("form") == "chi") & (pl.col("layer") == layer))
        zero_line(ax)
        panels.append((ax, draw_lines(ax, chosen, 1.3, band=True)))
        step_axis(ax, steps)
        ax.set_title(f"Layer {layer} heads")
        ax.margins(y=0.06)
    for ax, _ in panels[1:]:
        ax.tick_params(labelleft=False)
    panels[0][0].set_ylabel("susceptibility χ (nats²)")
    for column, form in enumerate(("rank_one", "mean_shift", "covariance")):
        ax = figure.add_subplot(below[column])
        zero_line(ax)
        draw_lines(ax, rows.filter(pl.col("form") == form), 0.8, band=False)
        step_axis(ax, steps)
        ax.set_title(FORM_TITLES[form], fontsize=7.5, color="#444444")
        ax.tick_params(labelsize=6.5)
        ax.set_xlabel("training step", fontsize=7)
        ax.locator_params(axis="y", nbins=4)
    below_left = figure.axes[len(layers)]
    below_left.set_ylabel("parts of χ", fontsize=7)
    figure.canvas.draw()
    for ax in figure.axes:
        offset_into_title(ax)
    for ax, ends in panels:
        label_ends(ax, [(y, head_label(h, run.roles), head_color(h)) for y, h in ends])
    title = f"Susceptibility to {place.probe}"
    if place.is_stand_in:
        title += f", standing in for {subset}"
    chains = int(rows["n_chains"].max())  # type: ignore[arg-type]
    header(
        figure,
        title,
        f"model {run.label} · bands: ±1 standard error over {chains} chains and contexts · "
        "solid: layer 0, dashed: layer 1",
        top=0.05,
    )
    return figure, rows


def main() -> None:
    parser = arguments(__doc__, "<figure>")
    parser.add_argument("--figure", required=True, nargs="+", choices=SUBSETS)
    given = parser.parse_args()
    table, run = pl.read_parquet(given.results / TABLE), load_run(given.results)
    for name, out in outputs(given):
        save(draw(table, run, SUBSETS[name])[0], out)


if __name__ == "__main__":
    run_script(main)
