"""Two modes of a sample: the most likely mixture of two components.

A better fit of two components than of one does not by itself mean two modes: a skewed or a flat
sample asks for two as well. That there are two is for the dip test to say (`bimodality`); this
module says where.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Components are t distributions: with Gaussian ones a heavy tail alone would ask for a second.
_FREEDOM = 4.0
# The scale of a t distribution of `_FREEDOM` fitted to Gaussian values is their standard deviation
# divided by this.
_GAUSSIAN = 1.2034
# One component at most so much wider than the other; else it may shrink to a point.
_WIDEST = 3.0
_STARTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_ITERATIONS, _TOLERANCE = 300, 1e-6


@dataclass(frozen=True)
class Modes:
    """Two components of a sample, the lower one first.

    Attributes:
        share: of the upper component.
        lower, upper: their centers.
        lower_sd, upper_sd: their widths (standard deviations of Gaussian modes).
        gain: BIC of one component minus BIC of two; above 10 is strong evidence for two.
    """

    share: float
    lower: float
    upper: float
    lower_sd: float
    upper_sd: float
    gain: float

    @property
    def distance(self) -> float:
        """Ashman's D; above 2 the modes are clearly apart."""
        spread = math.hypot(self.lower_sd, self.upper_sd)
        return math.sqrt(2.0) * (self.upper - self.lower) / spread if spread > 0 else 0.0

    @property
    def split(self) -> float:
        """The value between the centers at which both components are equally likely."""
        grid = np.linspace(self.lower, self.upper, 513)
        low, high = _log_densities(grid[None], *self._parameters())[0][0]
        above = high > low
        if above[0] or not above[-1]:
            return (self.lower + self.upper) / 2
        return float(grid[int(above.argmax())])

    def is_upper(self, values: Array) -> Mask:
        """Which values belong to the upper mode, (n,)."""
        return values > self.split

    def _parameters(self) -> tuple[Array, Array, Array]:
        """Shares, centers and scales, each (1, 2)."""
        shares = np.array([[1.0 - self.share, self.share]])
        centers = np.array([[self.lower, self.upper]])
        scales = np.array([[self.lower_sd, self.upper_sd]]) / _GAUSSIAN
        return shares, centers, scales


def two_modes(values: Array, size: float | None = None, start: Modes | None = None) -> Modes:
    """The most likely mixture of two t distributions, by the EM algorithm.

    Args:
        values: (n,), at least two of them different.
        size: effective number of values, for the BIC; n by default.
        start: where to start; by default from nine splits of the sample.
    """
    if start is not None:
        return fit_modes(values[None], start, size)[0]
    x, center, unit = _scaled(values[None])
    cuts = np.quantile(x[0], _STARTS)
    low = x <= cuts[:, None]
    counts = np.maximum(np.stack([low.sum(1), (~low).sum(1)], 1), 1)
    sums = np.stack([(x * low).sum(1), (x * ~low).sum(1)], 1)
    found = _maximize(x, counts / counts.sum(1, keepdims=True), sums / counts, np.full((9, 2), 0.5))
    best = int(found.likelihood.argmax())
    return _modes(
        found, best, _one_component(x)[0], center[0], unit[0], size or x.shape[1], x.shape[1]
    )


def fit_modes(values: Array, start: Modes, size: float | None = None) -> list[Modes]:
    """`two_modes` of every row of values (sample, n), all from one start."""
    x, center, unit = _scaled(values)
    centers = (np.array([start.lower, start.upper]) - center[:, None]) / unit[:, None]
    scales = np.array([start.lower_sd, start.upper_sd]) / _GAUSSIAN / unit[:, None]
    shares = np.broadcast_to([1 - start.share, start.share], centers.shape)
    found = _maximize(x, shares, centers, scales)
    one = _one_component(x)
    used = size or x.shape[1]
    count = x.shape[1]
    return [_modes(found, k, one[k], center[k], unit[k], used, count) for k in range(len(x))]


def _scaled(values: Array) -> tuple[Array, Array, Array]:
    """Rows with median 0 and standard deviation 1, and what they were."""
    center, unit = np.median(values, axis=1), values.std(1)
    if not (unit > 0).all():
        raise ValueError("equal values have no two modes; expected a sample that varies")
    return (values - center[:, None]) / unit[:, None], center, unit


def _one_component(x: Array) -> Array:
    """Log-likelihood of a single component, (row,)."""
    rows = len(x)
    start = (np.ones((rows, 1)), np.zeros((rows, 1)), np.full((rows, 1), 0.7))
    return _maximize(x, *start).likelihood


class _Found(NamedTuple):
    """Components (row, component) and log-likelihood (row,) of rows of values."""

    shares: Array
    centers: Array
    scales: Array
    likelihood: Array


def _modes(
    found: _Found, row: int, one: float, center: float, unit: float, size: float, count: int
) -> Modes:
    """A row of what was found, in the units of the data, the lower mode first."""
    order = np.argsort(found.centers[row])
    low, high = center + unit * found.centers[row][order]
    low_sd, high_sd = _GAUSSIAN * unit * found.scales[row][order]
    # Of two components three parameters are more: a share, a center and a scale.
    # The likelihood is scaled to the number of values that are independent of one another.
    ratio = float(found.likelihood[row] - one) * size / count
    gain = 2 * ratio - 3 * math.log(size)
    share = float(found.shares[row][order][1])
    return Modes(share, float(low), float(high), float(low_sd), float(high_sd), float(gain))


def _log_densities(x: Array, shares: Array, centers: Array, scales: Array) -> tuple[Array, Array]:
    """Log of share times density without its constant, and squared distance from the center in
    scales, each (row, component, n), for x (row, n)."""
    squares = np.square((x[:, None] - centers[..., None]) / scales[..., None])
    logs = np.log(np.maximum(shares, 1e-300) / scales)[..., None]
    return logs - (_FREEDOM + 1) / 2 * np.log1p(squares / _FREEDOM), squares


def _maximize(x: Array, shares: Array, centers: Array, scales: Array) -> _Found:
    """EM on every row of x (row, n), or on one row (1, n) from many starts (row, component)."""
    before = np.full(len(centers), -np.inf)
    for _ in range(_ITERATIONS):
        logs, squares = _log_densities(x, shares, centers, scales)
        likelihood = np.logaddexp.reduce(logs, axis=1)
        total = likelihood.sum(-1)
        done = np.all(total - before <= _TOLERANCE * x.shape[1])
        before = total
        if done:
            break
        belongs = np.exp(logs - likelihood[:, None])
        # Far values count less: this is what makes the components t distributions.
        weight = belongs * (_FREEDOM + 1) / (_FREEDOM + squares)
        size = np.maximum(belongs.sum(-1), 1e-9)
        centers = (weight * x[:, None]).sum(-1) / np.maximum(weight.sum(-1), 1e-12)
        spread = np.square(x[:, None] - centers[..., None])
        scales = np.sqrt((weight * spread).sum(-1) / size)
        scales = np.maximum(scales, np.maximum(scales.max(1, keepdims=True) / _WIDEST, 1e-6))
        shares = size / x.shape[1]
    return _Found(shares, centers, scales, before)
