"""Means and covariances of columns, merged from blocks of rows, in float64.

Two sets of rows combine as in Chan, Golub and LeVeque (1983), so a matrix is gone through once, a
block of rows at a time, and the result does not depend on the blocks but for rounding.
`grouped` keeps them apart by groups of rows, for a jackknife.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from .moments import Array


@dataclass(frozen=True)
class ColumnMoments:
    """Moments of the columns of some rows.

    Attributes:
        names: of the columns.
        count: of rows, N.
        mean: (d,).
        comoment: sum over rows of products of deviations from the mean, (d, d).
    """

    names: tuple[str, ...]
    count: int
    mean: Array
    comoment: Array

    @classmethod
    def of(cls, rows: Float[ArrayLike, "row column"], names: Sequence[str]) -> ColumnMoments:
        """
        Raises:
            ValueError: no rows, another number of columns than names, or a value that is not
                finite.
        """
        values = np.asarray(rows, np.float64)
        if values.ndim != 2 or values.shape[1] != len(names) or not len(values):
            raise ValueError(
                f"expected rows of {len(names)} columns, at least one; found shape {values.shape}"
            )
        if not np.isfinite(values).all():
            bad = ~np.isfinite(values)
            worst = int(bad.sum(0).argmax())
            raise ValueError(
                f"{bad.sum()} values are not finite, most of them in column {names[worst]} "
                f"({bad[:, worst].sum()} of {len(values)} rows)"
            )
        mean = values.mean(0)
        centred = values - mean
        return cls(tuple(names), len(values), mean, centred.T @ centred)

    @classmethod
    def over(cls, blocks: Iterable[Array], names: Sequence[str]) -> ColumnMoments:
        """Of all rows of some blocks, at least one."""
        return reduce(lambda a, b: a.merge(b), (cls.of(block, names) for block in blocks))

    def merge(self, other: ColumnMoments) -> ColumnMoments:
        if self.names != other.names:
            raise ValueError(f"moments of other columns: {self.names} and {other.names}")
        count = self.count + other.count
        share, step = other.count / count, other.mean - self.mean
        cross = self.count * share * np.outer(step, step)
        return ColumnMoments(
            self.names, count, self.mean + share * step, self.comoment + other.comoment + cross
        )

    @property
    def std(self) -> Array:
        """Standard deviation of every column with 1 / N, as scikit-learn's StandardScaler, (d,).

        Raises:
            ValueError: a column is constant.
        """
        found = np.sqrt(np.diag(self.comoment) / self.count)
        # A constant column has rounding noise for a deviation, not always a true zero.
        constant = found <= 1e-12 * np.abs(self.mean)
        if constant.any():
            listed = ", ".join(n for n, c in zip(self.names, constant, strict=True) if c)
            raise ValueError(
                f"constant over all {self.count} rows: {listed}. A z-score needs a column that "
                "varies: leave the component out, or look at its chains"
            )
        return found

    @property
    def correlation(self) -> Array:
        """Correlations of the columns, X'^T X' / N of the z-scored matrix X', (d, d)."""
        std = self.std
        return self.comoment / self.count / np.outer(std, std)
