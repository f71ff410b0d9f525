"""Post-processing of the raw susceptibility matrix (Gordon et al., "Post-Processing").

For N rows (tokens) and d columns (components), in two passes over the rows: their moments
(`column_moments.ColumnMoments`), then `Transform.apply` to one block after another.

- z-scores: X' = (X_raw - u) / s by columns, u the mean and s the standard deviation with 1 / N, as
  scikit-learn's StandardScaler; so every column of X' has a sum of squares of N.
- PCA whitening: X = X' V Lambda^(-1/2), with X'^T X' = (N - 1) V Lambda V^T, as scikit-learn's
  PCA(whiten=True). Lambda has N - 1 and s has N: the eigenvalues add up to d N / (N - 1), and
  X^T X = (N - 1) I exactly.
- row centring: the mean of a row over its columns is subtracted, which deletes the uniform
  direction of the space it is done in.

The sign of each principal component is free. Here the sum of the cubes of its loadings is positive
(`pca.loading_signs`). Distances do not depend on it, but for ``whitened+row_centred``: the
direction that is deleted there is (1, ..., 1) in the basis of the components, another one for
other signs. Which signs the published run had is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field

from .column_moments import ColumnMoments
from .moments import Array
from .pca import loading_signs

Pipeline = Literal[
    "none", "standardised", "whitened", "standardised+row_centred", "whitened+row_centred"
]


@dataclass(frozen=True)
class Transform:
    """An affine map of rows.

    Attributes:
        components: columns that it takes, d.
        features: columns that it gives, K.
        mean: what is subtracted from a row, (d,).
        matrix: what the row is then multiplied by from the right, (d, K).
    """

    components: tuple[str, ...]
    features: tuple[str, ...]
    mean: Float[Array, " d"]
    matrix: Float[Array, "d K"]

    def apply(self, rows: Float[Array, "*lead row d"]) -> Float[Array, "*lead row K"]:
        """Map some rows; in float64.

        Raises:
            ValueError: another number of columns.
        """
        if rows.shape[-1] != len(self.mean):
            raise ValueError(f"expected {len(self.mean)} columns, found {rows.shape[-1]}")
        return (np.asarray(rows, np.float64) - self.mean) @ self.matrix


@dataclass(frozen=True)
class PrincipalComponents:
    """Of the z-scored columns.

    Attributes:
        values: eigenvalues of X'^T X' / (N - 1), decreasing, (K,).
        vectors: loadings, the right singular vectors of X', (d, K).
    """

    values: Array
    vectors: Array

    @classmethod
    def of(cls, moments: ColumnMoments) -> PrincipalComponents:
        """All d of them; those of no variance have rounding noise for a value, zero at least.

        Raises:
            ValueError: a column is constant.
        """
        covariance = moments.correlation * (moments.count / (moments.count - 1))
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        return cls(values, vectors * loading_signs(vectors))

    @property
    def share(self) -> Array:
        """Share of the squared Frobenius norm of X' that each carries, (K,)."""
        return self.values / self.values.sum()


def identity(moments: ColumnMoments) -> Transform:
    """Rows as they are."""
    d = len(moments.names)
    return Transform(moments.names, moments.names, np.zeros(d), np.eye(d))


def standardise(moments: ColumnMoments) -> Transform:
    """Z-scores of the columns.

    Raises:
        ValueError: a column is constant; the message names it.
    """
    return Transform(moments.names, moments.names, moments.mean, np.diag(1.0 / moments.std))


def whiten(
    moments: ColumnMoments, floor: float = 1e-10, near_null: Literal["error", "drop"] = "error"
) -> Transform:
    """Principal components of the z-scores, each of unit variance; see `PostProcessing`.

    Raises:
        ValueError: a column is constant, or ``near_null`` is ``error`` and there is a direction
            below the floor.
    """
    found = PrincipalComponents.of(moments)
    kept = found.values >= floor * found.values[0]
    if near_null == "error" and not kept.all():
        gone = found.vectors[:, ~kept]
        # How much of each column lies in those directions.
        most = np.argsort(-np.square(gone).sum(1))[:3]
        raise ValueError(
            f"{(~kept).sum()} of {len(kept)} directions of the z-scored matrix have less than "
            f"{floor:g} of the largest direction's variance (down to "
            f"{found.values.min() / found.values[0]:.1e}; most of them in columns "
            f"{', '.join(moments.names[i] for i in most)}; {moments.count} rows): whitening would "
            "blow up their rounding noise. Columns depend on one another linearly, or there are "
            "too few rows; near_null: drop leaves these directions out"
        )
    values, vectors = found.values[kept], found.vectors[:, kept]
    features = tuple(f"PC{number + 1}" for number in range(len(values)))
    matrix = vectors / moments.std[:, None] / np.sqrt(values)
    return Transform(moments.names, features, moments.mean, matrix)


def centre_rows(transform: Transform) -> Transform:
    """The same, and then the mean over columns is taken off every row."""
    matrix = transform.matrix - transform.matrix.mean(1, keepdims=True)
    return Transform(transform.components, transform.features, transform.mean, matrix)


class PostProcessing(BaseModel):
    """How the raw matrix is made into the one that is clustered."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pipeline: Pipeline = "whitened"
    """``whitened`` is the published method; ``standardised+row_centred`` that of the earlier work
    (section 3.2 there); ``whitened+row_centred`` what the published code did by mistake, up to
    the signs of the components. ``standardised`` and ``none`` are for comparison."""
    floor: float = Field(default=1e-10, ge=0, lt=1)
    """Directions with less than this share of the largest one's variance are near null: rounding
    of float32 alone gives about 1e-14."""
    near_null: Literal["error", "drop"] = "error"
    """What is done with them: an error that names their columns, or they are left out, and the
    whitened matrix has fewer columns than there are components."""

    def fit(self, moments: ColumnMoments) -> Transform:
        """The transform for a matrix with these moments.

        Raises:
            ValueError: see `standardise` and `whiten`.
        """
        base, _, centred = self.pipeline.partition("+")
        if base == "none":
            return identity(moments)
        fitted = (
            standardise(moments)
            if base == "standardised"
            else whiten(moments, self.floor, self.near_null)
        )
        return centre_rows(fitted) if centred else fitted
