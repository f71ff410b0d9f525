"""Figures 33 and 34, and what they are made of: susceptibilities by the length of the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from common import (
    FORM_TITLES,
    GREY,
    WIDTH,
    Run,
    arguments,
    header,
    load_run,
    outputs,
    probe_title,
    save,
    zero_line,
)
from susceptibilities.console import run as run_script
from susceptibilities.cubes import FORMS
from susceptibilities.naming import head_of

FOLDER = "baker2025/s4_4_context_length"
POOLED = "all domains"
FORM_ORDER = ("chi", "rank_one", "mean_shift", "covariance")
# The paper's colors: first layer blue, induction heads of later layers orange, the rest red.
KINDS = {
    "layer 0": ("#0072B2", "-", "o"),
    "layer 1, induction": ("#F0A000", (0, (4, 1.2)), "D"),
    "layer 1, others": ("#C8202F", "-", "s"),
}
UNIT = "nats²"

Tables = dict[str, pl.DataFrame]


def kind_of(head: str, run: Run) -> str:
    """Which of ``KINDS`` a head is, by this model's own roles."""
    layer = (head_of(head) or (0, 0))[0]
    if layer == 0:
        return "layer 0"
    induction = run.roles.get(head) == "induction"
    return "layer 1, induction" if induction else "layer 1, others"


def drawing_order(heads: Sequence[str], run: Run) -> list[str]:
    """Induction heads last, so that they lie on top."""
    return sorted(heads, key=lambda head: kind_of(head, run) == "layer 1, induction")


def kinds_legend(
    figure: Figure, heads: Sequence[str], run: Run, lines: int = 1, **place: object
) -> None:
    """Colors of the heads, in a row below the header; heads of small groups are named.

    Args:
        lines: how many lines the header's subtitle has.
    """
    below = 0.3 + 0.15 * lines  # inches from the top of the figure
    place = place or {
        "loc": "upper left",
        "bbox_to_anchor": (-0.003, 1 - below / figure.get_size_inches()[1]),
        "ncols": 3,
        "borderaxespad": 0.0,
        "columnspacing": 1.6,
    }
    handles, labels = [], []
    for kind, (color, style, _) in KINDS.items():
        members = [head for head in heads if kind_of(head, run) == kind]
        if members:
            handles.append(Line2D([], [], color=color, linestyle=style, linewidth=1.8))
            named = f" ({', '.join(members)})" if len(members) <= 2 else ""
            labels.append(kind + named)
    figure.legend(handles, labels, **place)  # type: ignore[arg-type]


def length_axis(ax: Axes, longest: float, label: bool = True) -> None:
    """Context lengths, logarithmic, marked at powers of two."""
    ax.set_xscale("log", base=2)
    powers = [2.0**k for k in range(0, int(np.log2(longest)) + 1, 2 if longest > 40 else 1)]
    ax.xaxis.set_major_locator(FixedLocator(powers))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlim(0.93, longest * 1.04)
    if label:
        ax.set_xlabel("context length")


def draw_curves(ax: Axes, rows: pl.DataFrame, run: Run, value: str) -> None:
    """One line a head with its band; values that are not positive are left out on a log axis."""
    for head in drawing_order(rows["component"].unique(maintain_order=True).to_list(), run):
        line = rows.filter(pl.col("component") == head).sort("bin")
        x, y, se = (line[c].to_numpy() for c in ("center", value, f"{value}_se"))
        color, style, _ = KINDS[kind_of(head, run)]
        ax.plot(x, y, color=color, linestyle=style, linewidth=0.9, alpha=0.95)
        ax.fill_between(x, y - se, y + se, color=color, alpha=0.1, linewidth=0)


def panels(count: int, columns: int, height: float, head: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels of a height below a header, both in inches."""
    rows = -(-count // columns)
    size = head + height * rows + 0.15
    figure = plt.figure(figsize=(WIDTH, size))
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.075,
        right=0.992,
        top=1 - head / size,
        bottom=0.38 / size,
        wspace=0.26,
        hspace=0.42,
    )
    return figure, [figure.add_subplot(grid[i // columns, i % columns]) for i in range(count)]


def domain_panels(
    tables: Tables, run: Run, form: str, value: str, title: str, subtitle: str, log: bool
) -> tuple[Figure, pl.DataFrame]:
    """One panel a probe and one for the mean over domains."""
    rows = tables["curves"].filter((pl.col("source") == "run") & (pl.col("form") == form))
    probes = rows["probe"].unique(maintain_order=True).to_list()
    columns = 3 if len(probes) > 4 else 2
    figure, axes = panels(len(probes), columns, 1.42, 0.84)
    longest = float(rows["high"].max())  # type: ignore[arg-type]
    for i, (ax, probe) in enumerate(zip(axes, probes, strict=True)):
        part = rows.filter(pl.col("probe") == probe)
        if log:
            plain = part.with_columns(signal="variance", signal_se="variance_se")
            for head in part["component"].unique(maintain_order=True):
                line = plain.filter(pl.col("component") == head).sort("bin")
                color = KINDS[kind_of(str(head), run)][0]
                ax.plot(line["center"], line["signal"], color=color, linewidth=0.5, alpha=0.35)
            # On a logarithmic axis only what is clear of zero has a place.
            positive = part.with_columns(
                pl.when(pl.col("signal") > pl.col("signal_se")).then("signal").alias("signal")
            )
            ax.set_yscale("log")
            draw_curves(ax, positive, run, value)
            if positive["signal"].count():
                ax.set_ylim(bottom=0.5 * positive["signal"].min())  # type: ignore[operator]
            ax.yaxis.set_minor_locator(NullLocator())
        else:
            zero_line(ax)
            draw_curves(ax, part, run, value)
        last = i + columns >= len(probes)
        length_axis(ax, longest, label=last)
        name = "mean of the domains" if probe == POOLED else probe_title(run, str(probe))
        ax.set_title(name, fontsize=7, fontweight="bold" if probe == POOLED else "normal", pad=3)
        ax.tick_params(labelsize=6.5)
        if i % columns == 0:
            ax.set_ylabel(f"{'variance' if log else 'mean'} ({UNIT if not log else 'nats⁴'})")
        ax.yaxis.get_offset_text().set_fontsize(6)
    header(figure, title, subtitle, top=0.0)
    heads = rows["component"].unique(maintain_order=True).to_list()
    kinds_legend(figure, heads, run)
    return figure, rows


def draw_means(tables: Tables, run: Run, form: str = "chi") -> tuple[Figure, pl.DataFrame]:
    """Figure 33: mean by context length, one panel a probe."""
    return domain_panels(
        tables,
        run,
        form,
        "mean",
        f"Mean per-token susceptibility by context length — {FORM_TITLES[form]}",
        f"model {run.label} · bins of half a doubling · bands: ±1 standard error over chains "
        "and contexts",
        log=False,
    )


def draw_variances(tables: Tables, run: Run, form: str = "chi") -> tuple[Figure, pl.DataFrame]:
    """Figure 34: variance by context length, without (and, thin, with) the sampling noise."""
    return domain_panels(
        tables,
        run,
        form,
        "signal",
        f"Variance of per-token susceptibility by context length — {FORM_TITLES[form]}",
        f"model {run.label} · lines with bands: sampling noise subtracted, ±1 standard error · "
        "thin and pale: as sampled",
        log=True,
    )


def draw_parts(tables: Tables, run: Run, form: str = "chi") -> tuple[Figure, pl.DataFrame]:
    """Means over domains: every form, as it is and over each head's own spread; and the control."""
    rows = tables["curves"].filter(pl.col("probe") == POOLED)
    shared = tables["shared"]
    columns = [
        ("run", "mean", f"as they are ({UNIT})"),
        ("run", "scaled", "over the head's own SD"),
        ("control", "scaled", "the same at nβ = 0"),
    ]
    size = 1.1 + 1.35 * len(FORM_ORDER)
    figure = plt.figure(figsize=(WIDTH, size))
    grid = figure.add_gridspec(
        len(FORM_ORDER),
        3,
        left=0.085,
        right=0.992,
        top=1 - 1.1 / size,
        bottom=0.38 / size,
        wspace=0.24,
        hspace=0.2,
    )
    longest = float(rows["high"].max())  # type: ignore[arg-type]
    for i, shown in enumerate(FORM_ORDER):
        for j, (source, value, name) in enumerate(columns):
            ax = figure.add_subplot(grid[i, j])
            part = rows.filter((pl.col("source") == source) & (pl.col("form") == shown))
            zero_line(ax)
            last = i == len(FORM_ORDER) - 1
            if len(part):
                draw_curves(ax, part, run, value)
            else:
                ax.text(0.5, 0.5, "not sampled", transform=ax.transAxes, ha="center", color=GREY)
            length_axis(ax, longest, label=last)
            ax.tick_params(labelbottom=last, labelsize=6.5)
            if i == 0:
                ax.set_title(name, fontsize=8, pad=9)
            if j == 0:
                ax.set_ylabel(FORM_TITLES[shown])
            ax.yaxis.get_offset_text().set_fontsize(6)
            if j > 0:
                one = shared.filter((pl.col("source") == source) & (pl.col("form") == shown))
                note = shared_note(one)
                ax.text(0.03, 1.0, note, transform=ax.transAxes, fontsize=6, color=GREY, va="top")
    header(
        figure,
        "Context length: what the curves of all heads share",
        f"model {run.label} · means of the domains · bands: ±1 standard error\n"
        "one curve: share of all heads' curves, over their SD, that is one curve times a number a "
        "head",
        top=0.0,
    )
    heads = rows["component"].unique(maintain_order=True).to_list()
    kinds_legend(figure, heads, run, lines=2)
    return figure, rows


def shared_note(row: pl.DataFrame) -> str:
    """How much of the curves is one curve, in words short enough for a panel."""
    if not len(row) or row["share"].item() is None or not np.isfinite(row["share"].item()):
        return "one curve: no signal to tell" if len(row) else ""
    share, se = row["share"].item(), row["se"].item()
    if share > 0.999:
        return "one curve: more than 99.9 %"
    error = f" ± {100 * se:.1f}" if se is not None and np.isfinite(se) else ""
    return f"one curve: {100 * share:.1f}{error} %"


FIGURES: dict[str, Callable[..., tuple[Figure, pl.DataFrame]]] = {
    "fig33": draw_means,
    "fig34": draw_variances,
    "context_length_parts": draw_parts,
}


def main() -> None:
    parser = arguments(__doc__, "<figure>")
    parser.add_argument("--figure", required=True, nargs="+", choices=FIGURES)
    parser.add_argument("--form", default="chi", choices=FORMS, help="of fig33, fig34 [chi]")
    given = parser.parse_args()
    tables = {
        name: pl.read_parquet(given.results / FOLDER / f"{name}.parquet")
        for name in ("curves", "shared")
    }
    run = load_run(given.results)
    for name, out in outputs(given):
        save(FIGURES[name](tables, run, given.form)[0], out)


if __name__ == "__main__":
    run_script(main)
