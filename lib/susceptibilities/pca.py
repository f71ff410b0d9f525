"""Joint trajectory PCA (Baker 3.3, Appendix B), with errors over chains.

Rows of the data matrix X are (probe, checkpoint), columns are attention heads. Every column is
standardized and X_std = U S V' (eq. 47). What is called here

- loadings: V, one column a principal component (Fig. 6);
- scores: U S = X_std V, the trajectories (Figs. 14, 15). The paper's formula for the
  projection, (gamma - mu) V, leaves out the division by the standard deviations; U S, which its
  text calls the principal components, has it;
- contributions: U S averaged over checkpoints, each column then scaled to unit norm (Fig. 12);
- share: S^2 over its sum (Fig. 13).

A PCA leaves the sign of each component open. Here the sum of the cubes of a component's loadings
is positive (the large loadings decide, and nearly equal ones do not make it jump), unless
`orient` is told which heads shall have which sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student

from .jackknife import jackknife_se

Array = NDArray[np.float64]


@dataclass(frozen=True)
class JointPCA:
    """Result of `joint_pca`; K = min(probes * steps - 1, heads) components.

    Attributes:
        mean, scale: of each column before standardization, (head,).
        loadings: (head, K), orthonormal columns.
        singular_values: (K,), decreasing unless the components were matched to another PCA.
        scores: (probe, step, K).
    """

    mean: Array
    scale: Array
    loadings: Array
    singular_values: Array
    scores: Array

    @property
    def share(self) -> Array:
        """Share of the variance that each component explains, (K,)."""
        squares = np.square(self.singular_values)
        return squares / squares.sum()

    @property
    def contributions(self) -> Array:
        """Scores averaged over checkpoints, columns of unit norm, (probe, K)."""
        means = self.scores.mean(1)
        norms = np.linalg.norm(means, axis=0)
        # A component without variance has rounding noise for scores, and no contributions.
        real = self.singular_values > 1e-10 * self.singular_values.max()
        return np.where(real, means / np.where(norms > 0, norms, 1.0), 0.0)

    def select(self, order: Sequence[int] | NDArray[np.int64], signs: Array) -> JointPCA:
        """Components in another order and with other signs."""
        return replace(
            self,
            loadings=self.loadings[:, order] * signs,
            singular_values=self.singular_values[order],
            scores=self.scores[..., order] * signs,
        )


def joint_pca(values: Array) -> JointPCA:
    """PCA of all trajectories together.

    Args:
        values: susceptibilities, (probe, step, head).

    Raises:
        ValueError: fewer than two rows, a value that is not finite, or a constant column.
    """
    probes, steps, heads = values.shape
    rows = values.reshape(probes * steps, heads)
    if len(rows) < 2:
        raise ValueError(f"joint PCA needs at least 2 rows (probe x step), found {len(rows)}")
    if not np.isfinite(rows).all():
        raise ValueError(f"joint PCA: {np.sum(~np.isfinite(rows))} values are not finite")
    mean, scale = rows.mean(0), rows.std(0)
    # A constant column has rounding noise for a deviation, never a true zero.
    constant = np.flatnonzero(scale <= 1e-12 * np.abs(rows).max(0))
    if len(constant):
        raise ValueError(f"joint PCA: columns {constant.tolist()} are constant over all rows")
    u, s, vt = np.linalg.svd((rows - mean) / scale, full_matrices=False)
    kept = min(len(rows) - 1, heads)
    pca = JointPCA(
        mean, scale, vt[:kept].T, s[:kept], (u * s)[:, :kept].reshape(probes, steps, kept)
    )
    return pca.select(np.arange(kept), loading_signs(pca.loadings))


def loading_signs(loadings: Array) -> Array:
    """Signs (K,) that make the sum of the cubes of each column of loadings (head, K) positive.

    Where that is zero but for rounding, the first loading that is not is made positive.
    """
    cubes = np.power(loadings, 3).sum(0)
    first = (np.abs(loadings) > 1e-6).argmax(0)
    leading = loadings[first, np.arange(loadings.shape[1])]
    return _signs(np.where(np.abs(cubes) > 1e-9, cubes, leading))


def _signs(values: Array) -> Array:
    return np.where(values < 0, -1.0, 1.0)


def orient(pca: JointPCA, anchors: Mapping[int, tuple[Sequence[int], int]]) -> JointPCA:
    """Turn components so that the mean loading over some heads has a given sign.

    Args:
        anchors: component number (from 0) -> (columns of the heads, +1 or -1). Components
            without an anchor, and those with no heads, stay as they are.
    """
    signs = np.ones(len(pca.singular_values))
    for k, (columns, sign) in anchors.items():
        if k < len(signs) and len(columns):
            signs[k] = sign * _signs(pca.loadings[list(columns), k].mean())
    return pca.select(np.arange(len(signs)), signs)


def match(pca: JointPCA, reference: JointPCA) -> JointPCA:
    """The components of `pca` in the order and with the signs that fit `reference` best.

    The signed permutation that maximises the sum of |v_k . v'_k| (an assignment problem), so
    that two components whose variances are nearly equal, and which therefore swap places in
    some replicates, are compared with themselves. No rotation within such a pair is allowed:
    it would hide the uncertainty that `JackknifedPCA.identified` reports.
    """
    overlap = reference.loadings.T @ pca.loadings
    order = linear_sum_assignment(-np.abs(overlap))[1]
    return pca.select(order, _signs(overlap[np.arange(len(order)), order]))


def part_shares(pca: JointPCA, part: Array) -> Array:
    """How much of the variance of each component's scores comes from one summand of the values.

    Where the values are a sum of parts, so are the scores, and cov(score of part, score) over
    var(score), taken over all rows, adds up to one over the parts.

    Args:
        pca: of the whole.
        part: (probe, step, head).

    Returns:
        (K,).
    """
    rows = (part - part.mean((0, 1))) / pca.scale @ pca.loadings
    variance = np.square(pca.scores).sum((0, 1))
    return (rows * pca.scores).sum((0, 1)) / variance


@dataclass(frozen=True)
class JackknifedPCA:
    """A joint PCA with errors from leave-one-chain-out replicates.

    Attributes:
        pca: from all chains.
        replicates: one PCA a left-out chain, matched to `pca`.
        identified: (K,), whether the component's variance differs from both neighbours' by more
            than the error of the difference. If not, only the span of the two has a meaning.
        share_se: (K,), of the k-th largest share (in each replicate's own order).
        cumulative_se: (K,), of the sum of the k largest shares.
    """

    pca: JointPCA
    replicates: tuple[JointPCA, ...]
    identified: NDArray[np.bool_]
    share_se: Array
    cumulative_se: Array

    @property
    def loadings_se(self) -> Array:
        """(head, K)."""
        return jackknife_se(np.stack([r.loadings for r in self.replicates]))

    @property
    def scores_se(self) -> Array:
        """(probe, step, K)."""
        return jackknife_se(np.stack([r.scores for r in self.replicates]))

    @property
    def contributions_se(self) -> Array:
        """(probe, K)."""
        return jackknife_se(np.stack([r.contributions for r in self.replicates]))


def jackknife_pca(
    values: Array,
    replicates: Array,
    anchors: Mapping[int, tuple[Sequence[int], int]] | None = None,
    level: float = 0.95,
) -> JackknifedPCA:
    """Joint PCA and its errors over chains.

    Args:
        values: (probe, step, head), from all chains.
        replicates: (C, probe, step, head), replicate c without chain c.
        anchors: signs, as in `orient`; replicates take theirs from the reference.
        level: confidence of the test behind `identified` (Student t, C - 1 degrees of freedom).
    """
    if replicates.shape[1:] != values.shape:
        raise ValueError(
            f"replicates have shape {replicates.shape}, expected (chains, *{values.shape})"
        )
    reference = orient(joint_pca(values), anchors or {})
    unmatched = [joint_pca(r) for r in replicates]
    shares = np.stack([r.share for r in unmatched])
    gap = -np.diff(reference.share)
    quantile = student.ppf(0.5 + level / 2, len(replicates) - 1)
    clear = gap > quantile * jackknife_se(-np.diff(shares, axis=1))
    return JackknifedPCA(
        pca=reference,
        replicates=tuple(match(r, reference) for r in unmatched),
        identified=np.append(True, clear) & np.append(clear, True),
        share_se=jackknife_se(shares),
        cumulative_se=jackknife_se(shares.cumsum(1)),
    )
