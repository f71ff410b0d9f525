"""Long tables of susceptibilities as arrays (probe, step, head), and arrays as long tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .estimators import FORMS
from .naming import head_of
from .tokens import CONTROL_PROBE

Array = NDArray[np.float64]

PARTS = FORMS[1:]


@dataclass(frozen=True)
class Axes:
    """The axes of a cube of susceptibilities of attention heads."""

    probes: tuple[str, ...]
    steps: tuple[int, ...]
    heads: tuple[str, ...]

    @classmethod
    def of(cls, table: pl.DataFrame) -> Axes:
        """Axes of a table: heads only; probes in their order there, without the control probe."""
        probes = [str(p) for p in table["probe"].unique(maintain_order=True)]
        heads = [str(c) for c in table["component"].unique() if head_of(c) is not None]
        return cls(
            tuple(p for p in probes if p != CONTROL_PROBE),
            tuple(sorted(int(s) for s in table["step"].unique())),
            tuple(sorted(heads, key=lambda name: head_of(name) or (0, 0))),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.probes), len(self.steps), len(self.heads)


def cube(table: pl.DataFrame, axes: Axes, form: str, column: str = "value") -> Array:
    """Values of one form as an array (probe, step, head); NaN where the table has no row."""
    rows = table.filter(
        (pl.col("form") == form)
        & pl.col("probe").is_in(axes.probes)
        & pl.col("step").is_in(axes.steps)
        & pl.col("component").is_in(axes.heads)
    )
    index = []
    for name, labels in (
        ("probe", axes.probes),
        ("step", axes.steps),
        ("component", axes.heads),
    ):
        place = {label: i for i, label in enumerate(labels)}
        index.append(np.array([place[x] for x in rows[name].to_list()], dtype=np.int64))
    values = np.full(axes.shape, np.nan)
    values[tuple(index)] = rows[column].to_numpy()
    return values


def full_cube(table: pl.DataFrame, axes: Axes, form: str, column: str = "value") -> Array:
    """`cube`, refusing a table with gaps."""
    values = cube(table, axes, form, column)
    missing = np.argwhere(np.isnan(values))
    if len(missing):
        p, s, h = missing[0]
        raise ValueError(
            f"{len(missing)} of {values.size} values of '{form}' are missing, the first for "
            f"probe {axes.probes[p]}, step {axes.steps[s]}, head {axes.heads[h]}: "
            "expected one for every probe, step and head"
        )
    return values


def replicate_cubes(replicates: pl.DataFrame, axes: Axes, form: str, values: Array) -> Array:
    """Replicates of one form, (C, probe, step, head).

    A chain that was left out as unhealthy for some head has no replicate there: nothing is
    removed in that one, so the value from all chains stands in.
    """
    numbers = sorted(replicates["replicate"].unique().to_list())
    cubes = [cube(replicates.filter(pl.col("replicate") == c), axes, form) for c in numbers]
    return np.stack([np.where(np.isnan(c), values, c) for c in cubes])


def long(labels: Sequence[tuple[str, Sequence[object]]], **columns: NDArray) -> pl.DataFrame:
    """Arrays with labelled axes as a long table, one row an entry."""
    shape = tuple(len(values) for _, values in labels)
    grids = np.indices(shape).reshape(len(shape), -1)
    data: dict[str, object] = {}
    for (name, values), grid in zip(labels, grids, strict=True):
        data[name] = [values[i] for i in grid]
    for name, array in columns.items():
        data[name] = np.broadcast_to(array, shape).ravel()
    return pl.DataFrame(data)
