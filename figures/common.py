"""What all figures share: colors, the axis of training steps, labels at line ends, saving."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from susceptibilities.naming import head_of
from susceptibilities.store import atomic_path, read_json

plt.style.use(Path(__file__).with_name("style.mplstyle"))

WIDTH = 6.75  # inches: the width of a page's text

# Okabe and Ito's palette without its yellow, told apart under the common color deficiencies.
# A head has the color of its number in its layer, in every figure.
HEAD_COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#5D3A9B", "#1A1A1A"),
)
# Probes in the order of the corpus. Neighbours differ in lightness as well as hue.
PROBE_COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#E69F00", "#5D3A9B", "#56B4E9", "#882255", "#999933"),
    *("#CC79A7", "#1A1A1A", "#44AA99", "#DDAA77", "#7777CC", "#AA4499", "#117733", "#888888"),
    *("#661100", "#6699CC", "#AA7700"),
)
PROBE_MARKERS = "osD^vPX<>*hpd8HsD^v"
ROLE_COLORS = {
    "previous-token": "#0072B2",
    "current-token": "#56B4E9",
    "induction": "#D55E00",
    "multigram": "#8C8C8C",
}
ROLE_SHORT = {
    "previous-token": "prev",
    "current-token": "current",
    "induction": "induct",
    "multigram": "",
}
FORM_TITLES = {
    "chi": "χ, published form",
    "rank_one": "rank-one part",
    "mean_shift": "mean-shift part",
    "covariance": "covariance part",
}
GREY = "#6E6E6E"


@dataclass(frozen=True)
class Run:
    """Names that figures show.

    Attributes:
        label: the model's own name.
        domains: domain -> the corpus manifest's entry.
        roles: head -> role, empty where the structure of the model was not measured.
    """

    label: str
    domains: Mapping[str, Any]
    roles: Mapping[str, str]

    def color_of(self, probe: str) -> str:
        names = list(self.domains)
        return PROBE_COLORS[names.index(probe) % len(PROBE_COLORS)] if probe in names else GREY

    def marker_of(self, probe: str) -> str:
        names = list(self.domains)
        return PROBE_MARKERS[names.index(probe) % len(PROBE_MARKERS)] if probe in names else "o"


def load_run(results: Path) -> Run:
    """Names from the model's, the corpus's and the structure's files under ``results``."""
    heads = results / "structure" / "heads.parquet"
    roles: dict[str, str] = {}
    if heads.exists():
        table = pl.read_parquet(heads)
        final = table.filter(pl.col("step") == table["step"].max())
        roles = dict(zip(final["head"], final["role"], strict=True))
    return Run(
        label=read_json(results / "model" / "model.json")["label"],
        domains=read_json(results / "tokens" / "manifest.json")["domains"],
        roles=roles,
    )


def probe_title(run: Run, probe: str) -> str:
    """The domain's own name, with the subset of the Pile whose place it takes."""
    subset = run.domains.get(probe, {}).get("stands_in_for")
    return f"{probe} (for {subset})" if subset and subset != probe else probe


def head_color(head: str) -> str:
    place = head_of(head) or (0, 0)
    return HEAD_COLORS[place[1] % len(HEAD_COLORS)]


def head_style(head: str) -> str:
    """Solid in the first layer, dashed in the others."""
    place = head_of(head) or (0, 0)
    return "-" if place[0] == 0 else "--"


def head_label(head: str, roles: Mapping[str, str]) -> str:
    short = ROLE_SHORT.get(roles.get(head, ""), "")
    return f"{head} {short}".rstrip()


def short_step(step: float) -> str:
    """4000 -> 4k, 12500 -> 12.5k."""
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"


def step_axis(ax: Axes, steps: Sequence[int], label: bool = True) -> None:
    """Training steps: zero, then logarithmic from the first checkpoint after it."""
    positive = [s for s in steps if s > 0]
    if not positive:
        ax.set_xticks([0])
        return
    first, last = min(positive), max(positive)
    ax.set_xscale("symlog", linthresh=first, linscale=0.25)
    ax.set_xlim(-0.05 * first if 0 in steps else first, last)
    decades = [10.0**k for k in range(8) if first <= 10.0**k <= last]
    # Few decades need more labels.
    labelled = decades if len(decades) > 1 else sorted({float(first), *decades, float(last)})
    start = [0.0] if 0 in steps else []
    ax.xaxis.set_major_locator(FixedLocator([*start, *labelled]))
    minor = [m * 10.0**k for k in range(8) for m in range(2, 10)]
    ax.xaxis.set_minor_locator(FixedLocator([m for m in minor if first < m < last]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_step(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if label:
        ax.set_xlabel("training step")


def zero_line(ax: Axes) -> None:
    ax.axhline(0.0, color="#BBBBBB", linewidth=0.7, zorder=0)


def spread(places: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Places moved apart to at least ``gap``, as little as possible, within [low, high]."""
    order = np.argsort(places, kind="stable")
    count = len(places)
    gap = min(gap, (high - low) / max(count - 1, 1))
    # Least squares under order constraints: pool neighbours until none are too close.
    blocks: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        target, size = places[index] - rank * gap, 1
        while blocks and blocks[-1][0] > target:
            before, n = blocks.pop()
            target, size = (before * n + target * size) / (n + size), n + size
        blocks.append((target, size))
    flat = np.concatenate([np.full(size, target) for target, size in blocks])
    flat = np.clip(flat, low, high - (count - 1) * gap)
    moved = np.empty(count)
    moved[order] = flat + np.arange(count) * gap
    return moved


def label_ends(
    ax: Axes, ends: Sequence[tuple[float, str, str]], points: float = 8.0, size: float = 7.0
) -> None:
    """Names at the right edge beside the ends of lines, moved apart so that none overlap.

    Call it when limits and the layout are final.

    Args:
        ends: (y in data units, text, color).
        points: least distance between two names.
    """
    if not ends:
        return
    height = ax.get_window_extent().height * 72.0 / ax.figure.dpi
    to_axes = ax.transData + ax.transAxes.inverted()
    x = ax.get_xlim()[1]
    at = [float(to_axes.transform((x, y))[1]) for y, _, _ in ends]
    moved = spread(at, points / height, 0.0, 1.0)
    for (_, text, color), start, y in zip(ends, at, moved, strict=True):
        ax.annotate(
            text,
            xy=(1.0, min(max(start, 0.0), 1.0)),
            xytext=(1.045, y),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=size,
            color=color,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.5,
                "alpha": 0.6,
                "shrinkA": 0,
                "shrinkB": 1,
                "relpos": (0.0, 0.5),
            },
        )


def offset_into_title(ax: Axes) -> None:
    """Move the common factor of the y axis, which would push the title up, into the title.

    Call it when the figure has been drawn once, so that the factor is known.
    """
    factor = ax.yaxis.get_offset_text()
    if factor.get_text():
        factor.set_visible(False)
        ax.set_title(
            f"{ax.get_title(loc='left')}  ({factor.get_text()})",
            fontsize=ax._left_title.get_size(),  # type: ignore[attr-defined]
            color=ax._left_title.get_color(),  # type: ignore[attr-defined]
        )


def header(figure: Figure, title: str, subtitle: str, top: float = 0.02) -> None:
    """Title and subtitle above everything, flush left with the figure."""
    height = figure.get_size_inches()[1]
    figure.text(0.008, 1.0 + top - 0.02, title, fontsize=10, fontweight="bold", va="top", ha="left")
    figure.text(
        0.008, 1.0 + top - 0.02 - 0.19 / height, subtitle, fontsize=7.5, color=GREY, va="top"
    )


def empty_page(title: str, reason: str) -> Figure:
    """A page that says why there is nothing to draw."""
    figure = plt.figure(figsize=(WIDTH, 1.5))
    figure.text(0.5, 0.68, title, ha="center", va="center", fontsize=10, fontweight="bold")
    figure.text(0.5, 0.36, reason, ha="center", va="center", fontsize=8.5, color=GREY, wrap=True)
    figure.add_artist(
        Rectangle((0.01, 0.03), 0.98, 0.94, fill=False, edgecolor="#CCCCCC", linewidth=0.8)
    )
    return figure


def save(figure: Figure, out: Path) -> None:
    """Write ``out``.pdf and ``out``.png, each whole or not at all, and close the figure."""
    for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {"Software": None})):
        with atomic_path(out.with_name(out.name + suffix)) as path:
            figure.savefig(path, metadata=metadata)
    plt.close(figure)


def outputs(given: argparse.Namespace) -> list[tuple[str, Path]]:
    """(name, path without suffix) of every figure asked for."""
    if given.out is None:
        return [(name, given.results / "figures" / name) for name in given.figure]
    if len(given.figure) > 1:
        raise SystemExit("--out names one file: give one --figure with it")
    return [(given.figure[0], given.out)]


def arguments(description: str | None, name: str) -> argparse.ArgumentParser:
    """``--results`` and ``--out``, which all figure scripts have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    parser.add_argument("--out", type=Path, help=f"path without suffix [<results>/figures/{name}]")
    return parser
