"""Moments merge in any order to those of all draws together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from susceptibilities.moments import Moments, merge_all


@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_merged_moments_are_those_of_the_union(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x = 5 + rng.normal(size=(2, sum(sizes)))
    y = -3 + rng.normal(size=(2, sum(sizes), 4))
    cuts = np.cumsum(sizes)[:-1]
    parts = [
        Moments.of(a, b)
        for a, b in zip(np.split(x, cuts, axis=1), np.split(y, cuts, axis=1), strict=True)
    ]
    rng.shuffle(parts)
    merged, whole = merge_all(parts), Moments.of(x, y)
    for name in ("count", "mean_x", "mean_y", "comoment"):
        assert np.allclose(getattr(merged, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    numpys = [[np.cov(x[i], y[i, :, k], ddof=0)[0, 1] for k in range(4)] for i in range(2)]
    assert np.allclose(whole.covariance, numpys, atol=1e-12)


def test_an_emptied_set_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 7)), rng.normal(size=(3, 7, 2))
    moments = Moments.of(x, y)
    kept = moments.keep(np.array([True, False, True]))
    merged = merge_all(kept[i] for i in range(3))
    rest = Moments.of(x[[0, 2]].ravel(), y[[0, 2]].reshape(-1, 2))
    assert merged.count == 14
    assert np.allclose(merged.covariance, rest.covariance)


def test_small_differences_on_a_large_offset_survive() -> None:
    rng = np.random.default_rng(1)
    x, y = 1e-4 * rng.normal(size=1000), 1e-4 * rng.normal(size=(1000, 1))
    exact = np.mean((x - x.mean()) * (y[:, 0] - y[:, 0].mean()))
    shifted = merge_all(Moments.of(x[i::3] + 1e3, y[i::3] + 1e3) for i in range(3))
    assert np.allclose(shifted.covariance, exact, rtol=1e-3)
