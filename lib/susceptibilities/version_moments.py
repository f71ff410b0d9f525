"""Moments of several versions of the same columns: halves of the chains, chi and its parts.

Only versions of one column are compared with one another, so that the size is that of the columns
and not its square. Rows may have been transformed before (`whitening.Transform`): then a column is
a principal component, the same direction in every version and every replicate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .grouped import Grouped
from .moments import Array


@dataclass(frozen=True)
class VersionMoments:
    """Attributes:
    count: of rows.
    mean: (version, column).
    comoment: sum over rows of products of deviations, (version, version, column).
    """

    count: int
    mean: Array
    comoment: Array

    @classmethod
    def of(cls, versions: Float[Array, "version row column"]) -> VersionMoments:
        values = np.asarray(versions, np.float64)
        mean = values.mean(1)
        centred = values - mean[:, None]
        return cls(values.shape[1], mean, np.einsum("ark,brk->abk", centred, centred))

    def merge(self, other: VersionMoments) -> VersionMoments:
        count = self.count + other.count
        share, step = other.count / count, other.mean - self.mean
        cross = self.count * share * step[:, None] * step
        return VersionMoments(
            count, self.mean + share * step, self.comoment + other.comoment + cross
        )

    @property
    def covariance(self) -> Array:
        """With 1 / (N - 1), (version, version, column)."""
        return self.comoment / (self.count - 1)


def shares_of_parts(moments: Grouped[VersionMoments]) -> tuple[Array, Array]:
    """How much of a column's variance comes from each summand: Cov(part, whole) / Var(whole).

    They add up to one over the parts of a sum.

    Args:
        moments: of the whole, then of its parts.

    Returns:
        Value and standard error (groups of contexts), (part, column).
    """

    def shares(part: VersionMoments) -> Array:
        return part.comoment[1:, 0] / part.comoment[0, 0]

    return moments.jackknife(shares)
