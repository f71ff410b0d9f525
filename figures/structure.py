"""What the heads do over training: attention scores of every head, and the loss on repeats."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common import (
    GREY,
    WIDTH,
    Run,
    arguments,
    head_color,
    head_style,
    header,
    label_ends,
    load_run,
    save,
    short_step,
    step_axis,
)
from susceptibilities.console import run as run_script
from susceptibilities.naming import head_of

PANELS = {
    "previous_token": "Attention to the previous token",
    "prefix_matching": "Prefix matching (induction)",
    "current_token": "Attention to the same token",
}
# The role that a score gives.
ROLES = {
    "previous_token": "previous-token",
    "prefix_matching": "induction",
    "current_token": "current-token",
}
ERROR = "_se"


def draw_scores(ax: Axes, heads: pl.DataFrame, score: str, run: Run) -> list[tuple]:
    """One line a head; heads with the role of this score are named at its end."""
    ends = []
    order = sorted(heads["head"].unique().to_list(), key=lambda h: head_of(h) or (0, 0))
    for head in order:
        line = heads.filter(pl.col("head") == head).sort("step")
        x, y = line["step"].to_numpy(), line[score].to_numpy()
        ax.plot(x, y, head_style(head), color=head_color(head), linewidth=1.1)
        if score + ERROR in line.columns:
            se = line[score + ERROR].to_numpy()
            ax.fill_between(x, y - se, y + se, color=head_color(head), alpha=0.14, linewidth=0)
        if run.roles.get(head) == ROLES[score]:
            ends.append((float(y[-1]), head, head_color(head)))
    ax.set_ylim(bottom=0)
    return ends


def chosen_checkpoints(steps: list[int], count: int = 5) -> list[int]:
    """First, last, and some between, evenly on the logarithmic axis."""
    positive = [s for s in steps if s > 0]
    if len(steps) <= count or not positive:
        return steps
    targets = np.geomspace(positive[0], positive[-1], count)
    nearest = {min(positive, key=lambda s, t=t: abs(np.log(s / t))) for t in targets}
    return sorted(nearest)


def draw_repeats(ax: Axes, repeats: pl.DataFrame) -> None:
    """Loss at every position of a random sequence and its repetition, at some checkpoints."""
    steps = chosen_checkpoints(repeats["step"].unique().sort().to_list())
    colors = plt.get_cmap("viridis_r")(np.linspace(0.12, 0.95, len(steps)))
    for step, color in zip(steps, colors, strict=True):
        line = repeats.filter(pl.col("step") == step).sort("position")
        x, y, se = (line[c].to_numpy() for c in ("position", "loss", "se"))
        ax.plot(x, y, color=color, linewidth=1.0, label=short_step(step))
        ax.fill_between(x, y - se, y + se, color=color, alpha=0.18, linewidth=0)
    last = int(repeats["position"].max())  # type: ignore[arg-type]
    first = int(repeats["position"].min())  # type: ignore[arg-type]
    middle = (first + last) / 2
    ax.axvline(middle, color=GREY, linewidth=0.7, linestyle=(0, (2, 2)))
    ax.text(middle, 1.005, "second copy →", transform=ax.get_xaxis_transform(), fontsize=6.5,
            color=GREY, ha="left", va="bottom")  # fmt: skip
    ax.set_xlim(first, last)
    ax.set_xlabel("position in the sequence")
    ax.set_ylabel("loss (nats per token)")
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.18 * (high - low), high)  # room for the legend
    ax.legend(
        title="step",
        title_fontsize=6.5,
        fontsize=6.5,
        loc="lower center",
        ncols=len(steps),
        handlelength=1.0,
        columnspacing=0.9,
    )


def draw(heads: pl.DataFrame, repeats: pl.DataFrame, run: Run) -> Figure:
    """Four panels: three scores over training, and the loss on repeated sequences."""
    steps = heads["step"].unique().sort().to_list()
    figure = plt.figure(figsize=(WIDTH, 4.7))
    grid = figure.add_gridspec(
        2, 2, hspace=0.5, wspace=0.3, left=0.07, right=0.955, top=0.855, bottom=0.08
    )
    panels = []
    for place, (score, title) in enumerate(PANELS.items()):
        ax = figure.add_subplot(grid[divmod(place, 2)])
        ends = draw_scores(ax, heads, score, run)
        step_axis(ax, steps)
        ax.set_title(title)
        ax.set_ylabel("mean attention")
        panels.append((ax, ends))
    ax = figure.add_subplot(grid[1, 1])
    draw_repeats(ax, repeats)
    ax.set_title("Loss on repeated random tokens", pad=12)
    figure.canvas.draw()
    for panel, ends in panels:
        label_ends(panel, ends)
    header(
        figure,
        "What the heads do over training",
        f"model {run.label} · one line a head (solid: layer 0, dashed: layer 1), named where the "
        "score gives its role · bands: ±1 se",
        top=0.03,
    )
    return figure


def main() -> None:
    given = arguments(__doc__, "structure").parse_args()
    folder = given.results / "structure"
    figure = draw(
        pl.read_parquet(folder / "heads.parquet"),
        pl.read_parquet(folder / "repeats.parquet"),
        load_run(given.results),
    )
    save(figure, given.out or given.results / "figures" / "structure")


if __name__ == "__main__":
    run_script(main)
