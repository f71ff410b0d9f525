"""Planted uniform modes are found within their errors; the null is that of unrelated columns."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from susceptibilities.column_moments import ColumnMoments
from susceptibilities.grouped import Grouped
from susceptibilities.matrix_spectrum import (
    flipped_moments,
    leading_cosine,
    leading_share,
    spectrum,
    uniform_mode,
    uniform_share,
)
from susceptibilities.token_errors import context_blocks, context_numbers
from susceptibilities.whitening import PrincipalComponents

COLUMNS, CONTEXTS, LENGTH, GROUPS = 12, 200, 10, 20
NAMES = tuple(f"0:{head}" for head in range(COLUMNS))
NUMBERS = np.repeat(np.arange(CONTEXTS), LENGTH)


def planted(loadings: np.ndarray, rng: np.random.Generator, contexts: int = CONTEXTS) -> np.ndarray:
    """One factor plus noise of one, in columns of sizes of their own.

    Half of the factor's variance is one number a context: tokens of a context are dependent.
    """
    common = rng.normal(size=contexts).repeat(LENGTH)
    factor = np.sqrt(0.5) * (common + rng.normal(size=common.shape))
    noise = rng.normal(size=(len(factor), len(loadings)))
    sizes = 10.0 ** rng.uniform(-3, 3, len(loadings))
    return (factor[:, None] * loadings + noise) * sizes + sizes


def grouped(values: np.ndarray, groups: np.ndarray, block: int = 333) -> Grouped[ColumnMoments]:
    blocks = np.split(values, range(block, len(values), block))
    return Grouped.over(lambda rows: ColumnMoments.of(rows, NAMES), blocks, groups)


def truth(loadings: np.ndarray) -> tuple[float, float, float]:
    """Cosine and shares of the correlation matrix that the rows are drawn from."""
    covariance = np.outer(loadings, loadings) + np.eye(len(loadings))
    size = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(size, size)
    values, vectors = np.linalg.eigh(correlation)
    d = len(loadings)
    return abs(vectors[:, -1].sum()) / d**0.5, values[-1] / d, correlation.mean()


def test_a_uniform_mode_of_known_share() -> None:
    """Equal correlations r: cosine 1 and share (1 + (d - 1) r) / d, for both shares."""
    found = uniform_mode(grouped(planted(np.full(COLUMNS, 2.0), np.random.default_rng(0)),
                                 NUMBERS % GROUPS))  # fmt: skip
    r = 4 / 5
    share = (1 + (COLUMNS - 1) * r) / COLUMNS
    assert truth(np.full(COLUMNS, 2.0)) == pytest.approx((1, share, share))
    assert found.cosine.value > 0.999 and found.positive == 1.0
    for estimate in (found.leading_share, found.uniform_share):
        low, high = estimate.interval(0.999)
        assert low < share < high and estimate.se < 0.02
    assert found.uniform_share.value <= found.leading_share.value


def test_intervals_cover_although_tokens_of_a_context_are_dependent() -> None:
    """A factor that no column has as much of as the next: cosine inside (0, 1)."""
    loadings = np.linspace(-0.3, 2.0, COLUMNS)
    expected = truth(loadings)
    assert 0.7 < expected[0] < 0.95
    rng, runs = np.random.default_rng(1), 150
    inside, naive, values, errors = [], [], [], []
    for _ in range(runs):
        rows = planted(loadings, rng)
        found = uniform_mode(grouped(rows, NUMBERS % GROUPS))
        estimates = (found.cosine, found.leading_share, found.uniform_share)
        values.append([e.value for e in estimates])
        errors.append([e.se for e in estimates])
        bounds = [e.interval() for e in estimates]
        inside.append([low < t < high for (low, high), t in zip(bounds, expected, strict=True)])
        # Groups that cut every context, as if tokens were independent.
        other = uniform_mode(grouped(rows, np.arange(len(rows)) % GROUPS)).leading_share
        naive.append(other.interval()[0] < expected[1] < other.interval()[1])
    covered = np.mean(inside, 0)
    # 95 % of 150 runs, two standard errors of that either way.
    assert (covered > 0.9).all() and (covered < 0.99).all(), covered
    np.testing.assert_allclose(np.mean(errors, 0), np.std(values, 0), rtol=0.25)
    assert np.mean(naive) < covered[1] - 0.1


def test_the_spectrum_and_its_errors() -> None:
    loadings, rng = np.linspace(0.5, 2.0, COLUMNS), np.random.default_rng(2)
    runs = [spectrum(grouped(planted(loadings, rng), NUMBERS % GROUPS)) for _ in range(80)]
    rows = planted(loadings, rng)
    found = spectrum(grouped(rows, NUMBERS % GROUPS))
    scores = (rows - rows.mean(0)) / rows.std(0)
    singular = np.linalg.svd(scores, compute_uv=False)
    np.testing.assert_allclose(found.values, singular**2 / (len(rows) - 1), rtol=1e-9)
    np.testing.assert_allclose(found.share, singular**2 / np.square(scores).sum(), rtol=1e-9)
    np.testing.assert_allclose(found.cumulative[-1], 1.0)
    assert found.df == GROUPS - 1 and found.cumulative_se[-1] < 1e-12
    for name in ("values", "share", "cumulative"):
        scatter = np.std([getattr(r, name)[0] for r in runs], ddof=1)
        predicted = np.sqrt(np.mean([getattr(r, f"{name}_se")[0] ** 2 for r in runs]))
        assert predicted == pytest.approx(scatter, rel=0.25)


def test_left_out_groups_are_what_a_pass_over_the_rest_gives() -> None:
    rows, groups = planted(np.ones(COLUMNS), np.random.default_rng(3)), NUMBERS % 7
    found = grouped(rows, groups, block=101)
    for group, part in enumerate(found.left_out):
        expected = ColumnMoments.of(rows[groups != group], NAMES)
        assert part.count == expected.count
        np.testing.assert_allclose(part.comoment, expected.comoment, rtol=1e-9)
    np.testing.assert_allclose(found.whole.mean, rows.mean(0), rtol=1e-12)


def test_rows_and_groups_must_fit() -> None:
    rows = planted(np.ones(COLUMNS), np.random.default_rng(4), contexts=4)
    with pytest.raises(ValueError, match="expected 39 rows, as there are groups, found more"):
        grouped(rows, np.arange(39) % 2)
    with pytest.raises(ValueError, match="expected 41 rows, as there are groups, found 40"):
        grouped(rows, np.arange(41) % 2)
    with pytest.raises(ValueError, match="at least 2 groups of contexts, found 1"):
        grouped(rows, np.zeros(40, dtype=np.int64))


def null_of(rows: np.ndarray, count: int, seed: int = 0) -> list[ColumnMoments]:
    blocks = np.split(rows, range(333, len(rows), 333))
    moments = ColumnMoments.over(blocks, NAMES)
    contexts = np.repeat(np.arange(len(rows) // LENGTH), LENGTH)
    return flipped_moments(blocks, contexts, moments, count, seed)


def test_the_null_is_that_of_unrelated_columns() -> None:
    """The leading direction of unrelated columns is any direction: cos^2 has a Beta law."""
    rows = planted(np.full(COLUMNS, 2.0), np.random.default_rng(5), contexts=400)
    flipped = null_of(rows, 300)
    cosines = np.array([leading_cosine(m) for m in flipped])
    law = stats.beta(0.5, (COLUMNS - 1) / 2)
    assert stats.kstest(cosines**2, law.cdf).pvalue > 0.01
    shares = np.array([leading_share(m) for m in flipped])
    # Far from the planted one and near 1 / d; that of the uniform direction is 1 / d on average.
    assert shares.max() < 0.25 < 0.8 < leading_share(ColumnMoments.of(rows, NAMES))
    uniform = np.array([uniform_share(m) for m in flipped])
    assert abs(uniform.mean() - 1 / COLUMNS) < 4 * uniform.std() / 300**0.5
    # The dependence within a context is kept: it makes the null wider than one of its own tokens.
    singles = flipped_moments(
        [rows], np.arange(len(rows)), ColumnMoments.of(rows, NAMES), 300, seed=1
    )
    assert shares.mean() > np.mean([leading_share(m) for m in singles])


def test_flips_are_of_the_z_scores_and_repeatable() -> None:
    rows = planted(np.full(COLUMNS, 2.0), np.random.default_rng(6), contexts=20)
    one, two = null_of(rows, 3), null_of(rows, 3)
    other = null_of(rows, 3, seed=1)
    for a, b, c in zip(one, two, other, strict=True):
        assert np.array_equal(a.comoment, b.comoment) and not np.allclose(a.comoment, c.comoment)
        # Sums of squares of z-scores about zero do not change when signs do.
        np.testing.assert_allclose(np.diag(a.comoment) + a.count * a.mean**2, len(rows))
    for count, found in ((10, "more"), (201, "200")):
        with pytest.raises(ValueError, match=f"expected {count} rows.* found {found}"):
            flipped_moments([rows], np.arange(count), ColumnMoments.of(rows, NAMES), 1, 0)


def test_a_rank_one_matrix_is_the_uniform_mode_whatever_its_vector() -> None:
    """The rank-one part of chi: positive sizes times one vector over tokens."""
    rng = np.random.default_rng(7)
    rows = rng.standard_t(3, size=(CONTEXTS * LENGTH, 1)) * rng.uniform(0.1, 3, COLUMNS)
    found = uniform_mode(grouped(rows, NUMBERS % GROUPS))
    for estimate in (found.cosine, found.leading_share, found.uniform_share):
        assert estimate.value == pytest.approx(1.0, abs=1e-9) and estimate.se < 1e-9
    assert PrincipalComponents.of(ColumnMoments.of(rows, NAMES)).share[1] < 1e-12


def test_contexts_are_numbered_over_probes() -> None:
    table = pl.DataFrame({"probe": ["b", "b", "a", "a", "a", "b"], "context": [5, 5, 5, 7, 5, 6]})
    numbers = context_numbers(table)
    assert numbers.tolist() == [2, 2, 0, 1, 0, 3]
    # Whole contexts are in one block.
    blocks = context_blocks(table, 2)
    assert len({(n, b) for n, b in zip(numbers, blocks, strict=True)}) == 4
