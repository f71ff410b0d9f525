"""The spectrum of a z-scored matrix, and whether its leading direction is the uniform mode.

Gordon et al., after "PCA whitening": the leading right singular vector v_1 of X' is approximately
the uniform direction 1 / sqrt(d), and sigma_1^2 is the majority of |X'|_F^2.

What to know of the claim before it is judged:

- Of columns that all correlate positively, v_1 has loadings of one sign (Perron and Frobenius), so
  |cos| with the uniform direction is near 1 whenever the correlations are of similar size, be they
  large or small. The share says how large they are: for equal correlations r it is
  (1 + (d - 1) r) / d.
- The rank-one part of chi is E_C[g] times one vector over tokens. Its z-scored columns are all the
  same up to the sign of E_C[g]: |cos| and share are 1 by construction, whatever the model does.
  How near chi is to it says how large that part is beside the others, see `part_shares`.

Errors are those of a jackknife over groups of contexts. They say how much the numbers depend on
which text was read; the noise of the chains is in the matrix itself (`split_half`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from .column_moments import ColumnMoments
from .grouped import Grouped
from .jackknife import Estimate
from .moments import Array
from .whitening import PrincipalComponents


@dataclass(frozen=True)
class MatrixSpectrum:
    """All arrays are (K,), by decreasing variance.

    Attributes:
        values, values_se: eigenvalues of X'^T X' / (N - 1).
        share, share_se: of the squared Frobenius norm of X'.
        cumulative, cumulative_se: sums of the largest shares.
        df: degrees of freedom of the errors, groups of contexts - 1.
    """

    values: Array
    values_se: Array
    share: Array
    share_se: Array
    cumulative: Array
    cumulative_se: Array
    df: int


def spectrum(moments: Grouped[ColumnMoments]) -> MatrixSpectrum:
    """Eigenvalues and shares; the k-th largest of every replicate is compared with the k-th.

    Raises:
        ValueError: a column is constant, in all rows or without one group.
    """

    def numbers(part: ColumnMoments) -> Array:
        found = PrincipalComponents.of(part)
        return np.stack([found.values, found.share, found.share.cumsum()])

    (values, share, cumulative), (values_se, share_se, cumulative_se) = moments.jackknife(numbers)
    df = len(moments.groups) - 1
    return MatrixSpectrum(values, values_se, share, share_se, cumulative, cumulative_se, df)


def leading_cosine(moments: ColumnMoments) -> float:
    """|cos| between the leading right singular vector of X' and the uniform direction."""
    leading = PrincipalComponents.of(moments).vectors[:, 0]
    return float(abs(leading.sum()) / np.sqrt(len(leading)))


def leading_share(moments: ColumnMoments) -> float:
    """sigma_1^2 over the squared Frobenius norm of X'."""
    return float(PrincipalComponents.of(moments).share[0])


def uniform_share(moments: ColumnMoments) -> float:
    """Share of the squared Frobenius norm of X' along the uniform direction itself.

    It is what row centring takes away, and at most `leading_share`.
    """
    return float(moments.correlation.mean())


@dataclass(frozen=True)
class UniformMode:
    """Attributes: see `leading_cosine`, `leading_share`, `uniform_share`.

    ``positive`` is the share of columns whose loading on v_1 has the sign of their mean.
    """

    cosine: Estimate
    leading_share: Estimate
    uniform_share: Estimate
    positive: float


def uniform_mode(moments: Grouped[ColumnMoments]) -> UniformMode:
    """The numbers behind the claim, with errors over groups of contexts."""
    loadings = PrincipalComponents.of(moments.whole).vectors[:, 0]
    return UniformMode(
        moments.estimate(leading_cosine),
        moments.estimate(leading_share),
        moments.estimate(uniform_share),
        float(np.mean(loadings * loadings.sum() > 0)),
    )


def flipped_moments(
    blocks: Iterable[Float[Array, "row column"]],
    contexts: Int[NDArray[np.int64], " row"],
    moments: ColumnMoments,
    count: int,
    seed: int,
) -> list[ColumnMoments]:
    """Moments under the hypothesis of columns that have nothing to do with one another.

    In each of ``count`` replicates every z-scored column is multiplied, context by context, by a
    sign of its own drawn at random. That keeps the sizes of all entries, heavy tails, rows of
    large norm and the dependence of tokens within a context; what columns have in common is lost.

    Args:
        blocks: rows of the raw matrix in order, some at a time; gone through once.
        contexts: number of every row's context, from 0 (`token_errors.context_numbers`).
        moments: of all rows.

    Memory: ``count`` times (contexts times columns bytes, and the moments).

    Raises:
        ValueError: another number of rows than ``contexts``.
    """
    rng = np.random.default_rng(seed)
    shape = (count, int(contexts.max()) + 1, len(moments.names))
    signs = (2 * rng.integers(0, 2, shape, dtype=np.int8) - 1).astype(np.int8)
    std, first = moments.std, 0
    found: list[ColumnMoments] = []
    for block in blocks:
        scores = (np.asarray(block, np.float64) - moments.mean) / std
        mine = contexts[first : first + len(block)]
        first += len(block)
        if len(mine) < len(block):
            break
        parts = [ColumnMoments.of(scores * s[mine], moments.names) for s in signs]
        found = [a.merge(b) for a, b in zip(found, parts, strict=True)] if found else parts
    if first != len(contexts):
        raise ValueError(
            f"expected {len(contexts)} rows, one a context number; found "
            f"{'more' if first > len(contexts) else first}"
        )
    return found
