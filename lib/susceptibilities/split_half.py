"""How much of a susceptibility matrix is signal, column by column, from two halves of the chains.

The two halves (`matrix`) share no chain, neither of the component nor of the unrestricted run, so
what they have in common over tokens is signal and the rest is sampling noise. Errors are over
groups of contexts; the scatter over other chains is not in them, as there is one pair of halves:
of a column whose noise is a few directions of the weights and not one for every token, they are
too small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .grouped import Grouped
from .moments import Array
from .reliability import spearman_brown
from .version_moments import VersionMoments


@dataclass(frozen=True)
class SplitHalf:
    """All arrays are (column,).

    Attributes:
        correlation, correlation_se: over tokens, between the halves: the reliability of a half.
        noise_share, noise_share_se: of the variance of the column from all chains.
        df: degrees of freedom of the errors, groups of contexts - 1.
    """

    correlation: Array
    correlation_se: Array
    noise_share: Array
    noise_share_se: Array
    df: int

    @property
    def reliability(self) -> Array:
        """Of all chains, by Spearman and Brown's formula."""
        return spearman_brown(self.correlation, 2.0)

    @property
    def ceiling(self) -> Array:
        """Correlation with the column that a perfect prediction of its signal would have."""
        return np.sqrt(np.clip(1.0 - self.noise_share, 0.0, 1.0))


def split_half(moments: Grouped[VersionMoments]) -> SplitHalf:
    """Agreement of the halves and share of noise.

    The noise variance of an estimate from all chains is a quarter of the variance of the halves'
    difference: exactly for a mean over chains in halves of one size, to first order for the
    products of means that chi is made of. Of an odd number of chains it is a little too large;
    for the covariance part too small (by a tenth or two at six chains): what chains' means add to
    a pooled covariance grows with the number of chains.

    Args:
        moments: of the column from all chains, from one half, from the other.
    """

    def numbers(part: VersionMoments) -> Array:
        c = part.covariance
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = c[1, 2] / np.sqrt(c[1, 1] * c[2, 2])
            noise = (c[1, 1] + c[2, 2] - 2 * c[1, 2]) / 4 / c[0, 0]
        return np.stack([correlation, noise])

    (correlation, noise), (correlation_se, noise_se) = moments.jackknife(numbers)
    return SplitHalf(correlation, correlation_se, noise, noise_se, len(moments.groups) - 1)
