"""Mergeable first and second moments, in float64.

The moments of two sets of draws combine into those of their union (Chan, Golub and LeVeque
1983), so draws, chains and shards can be reduced in any order without keeping the draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Moments of a scalar observable x and K probe values y over a set of draws.

    Attributes:
        count: number of draws, scalar or of the shape of the leading axes (...).
        mean_x: (...); mean_y: (..., K).
        comoment: sum over draws of (x - mean_x)(y - mean_y), (..., K).
    """

    count: Array
    mean_x: Array
    mean_y: Array
    comoment: Array

    @classmethod
    def of(cls, x: Float[ArrayLike, "*lead draw"], y: Float[ArrayLike, "*lead draw k"]) -> Moments:
        """Moments over the draw axis: the last of ``x``, the last but one of ``y``."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        mean_x, mean_y = x.mean(-1), y.mean(-2)
        centred = y - mean_y[..., None, :]
        comoment = np.einsum("...d,...dk->...k", x - mean_x[..., None], centred)
        return cls(np.full(mean_x.shape, float(x.shape[-1])), mean_x, mean_y, comoment)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of draws together; an empty set (count 0) changes nothing."""
        count = self.count + other.count
        share = np.divide(other.count, count, out=np.zeros_like(count), where=count > 0)
        step_x, step_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        cross = (self.count * share * step_x)[..., None] * step_y
        return Moments(
            count,
            self.mean_x + share * step_x,
            self.mean_y + share[..., None] * step_y,
            self.comoment + other.comoment + cross,
        )

    @classmethod
    def stack(cls, parts: Sequence[Moments]) -> Moments:
        """The same numbers with a new first axis."""
        return cls(
            np.stack([part.count for part in parts]),
            np.stack([part.mean_x for part in parts]),
            np.stack([part.mean_y for part in parts]),
            np.stack([part.comoment for part in parts]),
        )

    def __getitem__(self, key: Any) -> Moments:
        """Index the leading axes."""
        return Moments(
            self.count[key],
            self.mean_x[key],
            self.mean_y[key],
            self.comoment[key],  # type: ignore[index]
        )

    def keep(self, mask: NDArray[np.bool_]) -> Moments:
        """The same moments with the sets where ``mask`` is False emptied."""
        return Moments(
            np.where(mask, self.count, 0.0),
            np.where(mask, self.mean_x, 0.0),
            np.where(mask[..., None], self.mean_y, 0.0),
            np.where(mask[..., None], self.comoment, 0.0),
        )

    @property
    def covariance(self) -> Array:
        """Cov(x, y) with 1 / r, the normalisation of Baker eq. 39, (..., K)."""
        return self.comoment / self.count[..., None]


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Merge any number of moments."""
    return reduce(Moments.merge, parts)
