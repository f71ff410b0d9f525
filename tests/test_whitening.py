"""Z-scores, whitening and row centring: scikit-learn, the identities, any division into blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from susceptibilities.column_moments import ColumnMoments
from susceptibilities.whitening import (
    PostProcessing,
    PrincipalComponents,
    Transform,
    standardise,
    whiten,
)

NAMES = ("embed", "0:0", "0:1", "mlp:0", "unembed")
PIPELINES = (
    "none",
    "standardised",
    "whitened",
    "standardised+row_centred",
    "whitened+row_centred",
)
seeds = st.integers(0, 10_000)
cuts = st.lists(st.integers(1, 119), max_size=6)


def matrix(seed: int = 0, rows: int = 120) -> np.ndarray:
    """Correlated columns of very different sizes and far from zero."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.normal(size=(5, 5)))[0] * [3.0, 1.5, 1.0, 0.5, 0.2]
    sizes = np.array([1e-4, 1.0, 30.0, 0.1, 5.0])
    return (rng.normal(size=(rows, 5)) @ mixing.T + 20 * rng.normal(size=5)) * sizes


def moments_of(values: np.ndarray, ends: list[int] | None = None) -> ColumnMoments:
    return ColumnMoments.over(np.split(values, sorted(set(ends or []))), NAMES)


def oracle(values: np.ndarray, pipeline: str) -> np.ndarray:
    """The same by scikit-learn."""
    base, _, centred = pipeline.partition("+")
    if base != "none":
        values = StandardScaler().fit_transform(values)
    if base == "whitened":
        values = PCA(whiten=True, svd_solver="full").fit_transform(values)
    return values - values.mean(1, keepdims=True) if centred else values


@settings(deadline=None, max_examples=40)
@given(seeds, cuts, cuts)
def test_equals_scikit_learn_for_any_blocks(seed: int, first: list[int], second: list[int]) -> None:
    values = matrix(seed)
    for pipeline in PIPELINES[:4]:
        transform = PostProcessing(pipeline=pipeline).fit(moments_of(values, first))
        blocks = np.split(values, sorted(set(second)))
        found = np.concatenate([transform.apply(block) for block in blocks])
        expected = oracle(values, pipeline)
        if pipeline == "whitened":
            expected = expected * np.sign((found * expected).sum(0))
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_the_accidental_order_deletes_the_uniform_direction_of_the_components() -> None:
    values = matrix()
    moments = moments_of(values)
    whitened = PostProcessing().fit(moments).apply(values)
    found = PostProcessing(pipeline="whitened+row_centred").fit(moments).apply(values)
    np.testing.assert_allclose(found, whitened - whitened.mean(1, keepdims=True), atol=1e-12)
    # One of five directions of equal variance is gone, and that one alone.
    np.testing.assert_allclose(
        np.linalg.eigvalsh(found.T @ found / 119), [0, 1, 1, 1, 1], atol=1e-10
    )
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-10)


@given(seeds, st.integers(6, 60))
@settings(deadline=None, max_examples=40)
def test_the_identities(seed: int, rows: int) -> None:
    """X^T X = (N - 1) I; a z-scored column has mean zero and a sum of squares of N."""
    values = matrix(seed, rows)
    moments = moments_of(values)
    scores = standardise(moments).apply(values)
    np.testing.assert_allclose(scores.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(np.square(scores).sum(0), rows, rtol=1e-10)
    whitened = whiten(moments).apply(values)
    np.testing.assert_allclose(whitened.T @ whitened, (rows - 1) * np.eye(5), atol=1e-6)
    # sqrt(N - 1) U of the singular value decomposition, signs aside.
    u, s, vt = np.linalg.svd(scores, full_matrices=False)
    signs = np.sign((whitened * u).sum(0))
    np.testing.assert_allclose(whitened, np.sqrt(rows - 1) * u * signs, atol=1e-6)
    found = PrincipalComponents.of(moments)
    np.testing.assert_allclose(found.values, s**2 / (rows - 1), atol=1e-10)
    np.testing.assert_allclose(found.values.sum(), 5 * rows / (rows - 1))
    np.testing.assert_allclose(found.vectors, vt.T * signs, atol=1e-6)


def test_signs_do_not_depend_on_the_solver() -> None:
    for seed in range(20):
        found = PrincipalComponents.of(moments_of(matrix(seed))).vectors
        assert (np.power(found, 3).sum(0) > 0).all()
    # Two columns: the second component is (1, -1) / sqrt(2), whose cubes add up to nothing.
    pair = np.random.default_rng(0).normal(size=(50, 2)) @ [[1.0, 0.6], [0.0, 0.8]]
    for order in ([0, 1], [1, 0]):
        moments = ColumnMoments.over([pair[:, order]], ("a", "b"))
        vectors = PrincipalComponents.of(moments).vectors
        np.testing.assert_allclose(vectors, np.array([[1, 1], [1, -1]]) / np.sqrt(2))


@settings(deadline=None, max_examples=40)
@given(seeds, cuts)
def test_moments_are_numpys_for_any_blocks(seed: int, ends: list[int]) -> None:
    values = matrix(seed)
    found = moments_of(values, ends)
    assert found.count == 120
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, values.std(0), rtol=1e-10)
    np.testing.assert_allclose(found.correlation, np.corrcoef(values.T), atol=1e-10)


def test_far_from_zero_no_digits_are_lost() -> None:
    """Where sums of squares would have none left."""
    values = (
        1e8 + matrix()[:, :1] * [1, 2, 3, 4, 5] + np.random.default_rng(1).normal(size=(120, 5))
    )
    found = moments_of(values, [7, 60])
    np.testing.assert_allclose(found.std, values.std(0), rtol=1e-8)
    np.testing.assert_allclose(found.correlation, np.corrcoef(values.T), atol=1e-7)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6])
def test_a_constant_column_is_named(constant: float) -> None:
    values = matrix()
    values[:, 3] = constant
    for pipeline in PIPELINES[1:]:
        with pytest.raises(ValueError, match="constant over all 120 rows: mlp:0"):
            PostProcessing(pipeline=pipeline).fit(moments_of(values, [3, 50]))
    assert np.array_equal(
        PostProcessing(pipeline="none").fit(moments_of(values)).apply(values), values
    )


def test_near_null_directions_are_an_error_or_left_out_by_name() -> None:
    values = matrix()
    values[:, 2] = 2 * values[:, 1] - 3 * values[:, 4]
    moments = moments_of(values, [40])
    with pytest.raises(ValueError, match=r"1 of 5 directions .* near_null: drop") as caught:
        whiten(moments)
    named = str(caught.value).split("in columns ")[1].split(";")[0]
    assert set(named.split(", ")) == {"0:0", "0:1", "unembed"}
    transform = PostProcessing(near_null="drop").fit(moments)
    assert transform.features == ("PC1", "PC2", "PC3", "PC4") and transform.matrix.shape == (5, 4)
    found = transform.apply(values)
    np.testing.assert_allclose(found.T @ found, 119 * np.eye(4), atol=1e-8)
    # As many rows as columns: the mean takes one direction.
    with pytest.raises(ValueError, match=r"1 of 5 directions.*5 rows"):
        whiten(moments_of(matrix(rows=5)))
    # The floor is a setting.
    with pytest.raises(ValueError, match=r"less than 0\.5 of the largest"):
        whiten(moments_of(matrix()), floor=0.5)


def test_bad_input_is_named() -> None:
    values = matrix()
    with pytest.raises(ValueError, match="5 columns"):
        ColumnMoments.of(values[:, :4], NAMES)
    with pytest.raises(ValueError, match="at least one"):
        ColumnMoments.of(values[:0], NAMES)
    with pytest.raises(ValueError, match="other columns"):
        moments_of(values).merge(ColumnMoments.of(values, NAMES[::-1]))
    with pytest.raises(ValueError, match="expected 5 columns, found 4"):
        standardise(moments_of(values)).apply(values[:, :4])
    values[[4, 9], 1] = np.nan
    values[7, 2] = np.inf
    with pytest.raises(ValueError, match=r"3 values are not finite, most .* column 0:0 \(2"):
        moments_of(values)
    with pytest.raises(ValidationError):
        PostProcessing.model_validate({"pipeline": "whitened+standardised"})


def test_every_pipeline_is_affine() -> None:
    """What `split_half` and `shares_of_parts` rest on."""
    values, rng = matrix(), np.random.default_rng(1)
    part = rng.normal(size=values.shape)
    for pipeline in PIPELINES:
        transform: Transform = PostProcessing(pipeline=pipeline).fit(moments_of(values))
        zero = transform.apply(np.zeros_like(values))
        both = transform.apply(part) + transform.apply(values - part) - zero
        np.testing.assert_allclose(both, transform.apply(values), atol=1e-6)
        stacked = transform.apply(np.stack([values, part]))
        np.testing.assert_allclose(stacked[1], transform.apply(part))
