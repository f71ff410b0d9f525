"""Loss traces of the chains as small drawings inside the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ..naming import component_order
from .numbers import format_number
from .tables import read_table

WIDTH, HEIGHT = 160.0, 56.0
POINTS = 80  # drawn of each chain at most


@dataclass(frozen=True)
class Panel:
    """One component: its chains as SVG polylines in a box of WIDTH by HEIGHT."""

    component: str
    lines: tuple[tuple[str, bool], ...]  # points, whether the chain is healthy
    zero: float | None  # y of the loss at w*, where it lies inside the box
    burn_in: float  # x at which draws begin
    low: str
    high: str


def trace_panels(section: Path, burn_in: int) -> tuple[int, list[Panel]]:
    """The last checkpoint's traces, one panel a component.

    Args:
        section: folder with traces.parquet and health.parquet.
        burn_in: SGLD steps before the first draw.

    Returns:
        The checkpoint's step and the panels; none where the run saved no traces.
    """
    traces = read_table(section / "traces.parquet", ["step", "component", "chain", "t", "loss"])
    health = read_table(
        section / "health.parquet", ["step", "component", "chain", "control", "healthy"]
    )
    if traces is None:
        return 0, []
    step = int(traces["step"].max())  # type: ignore[arg-type]
    traces = traces.filter(pl.col("step") == step, pl.col("loss").is_finite()).sort("t")
    bad: set[tuple[str, int]] = set()
    if health is not None:
        out = health.filter(pl.col("step") == step, ~pl.col("healthy"), ~pl.col("control"))
        bad = set(out.select("component", "chain").iter_rows())
    groups = traces.group_by("component", maintain_order=True)
    panels = [_panel(str(name), rows, burn_in, bad) for (name,), rows in groups]
    # As in the model, the unrestricted chain last.
    return step, sorted(panels, key=lambda p: (p.component == "full", component_order(p.component)))


def _panel(name: str, rows: pl.DataFrame, burn_in: int, bad: set[tuple[str, int]]) -> Panel:
    low, high, last = rows.select(
        low=pl.col("loss").min(), high=pl.col("loss").max(), last=pl.col("t").max()
    ).row(0)
    span, length = (high - low) or 1.0, max(last, 1)
    lines = []
    for (chain,), one in rows.group_by("chain", maintain_order=True):
        drawn = one.gather_every(-(-one.height // POINTS))
        points = " ".join(
            f"{WIDTH * t / length:.1f},{HEIGHT * (high - loss) / span:.1f}"
            for t, loss in drawn.select("t", "loss").iter_rows()
        )
        lines.append((points, (name, chain) not in bad))
    return Panel(
        component=name,
        lines=tuple(lines),
        zero=HEIGHT * high / span if low <= 0 <= high else None,
        burn_in=min(WIDTH, WIDTH * burn_in / length),
        low=format_number(low),
        high=format_number(high),
    )
