"""Errors over chains, verdicts, permutations, reliability."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from susceptibilities.jackknife import (
    Condition,
    Estimate,
    all_hold,
    decide,
    estimate,
    jackknife_se,
    permutation_p,
    split_reliability,
)

samples = arrays(np.float64, st.integers(2, 8), elements=st.floats(-100, 100))


def leave_one_out(values: np.ndarray) -> np.ndarray:
    """Means with each entry of the first axis left out."""
    return (values.sum(0) - values) / (len(values) - 1)


@given(samples)
def test_jackknife_of_a_mean_is_its_standard_error(values: np.ndarray):
    expected = values.std(ddof=1) / np.sqrt(len(values))
    assert jackknife_se(leave_one_out(values)) == pytest.approx(expected, abs=1e-9)


def test_jackknife_needs_two_chains():
    with pytest.raises(ValueError, match="at least 2 chains, found 1"):
        jackknife_se(np.zeros((1, 3)))


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for chains in rng.normal(3.0, 2.0, size=(2000, 4)):
        found = estimate(float(chains.mean()), leave_one_out(chains).tolist())
        low, high = found.interval()
        covered += low < 3.0 < high
    # Binomial error of 2000 trials at 0.95: 0.005.
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("value", "verdict"), [(5.0, True), (-5.0, False), (0.5, None), (-0.5, None)]
)
def test_a_condition_is_undecided_when_the_interval_spans_the_bound(value, verdict):
    assert Condition("x", ">", 0.0).verdict(Estimate(value, 1.0, 30)) is verdict
    flipped = None if verdict is None else not verdict
    assert Condition("x", "<", 0.0).verdict(Estimate(value, 1.0, 30)) is flipped


def test_several_conditions_hold_only_together():
    sure, unsure = Estimate(5.0, 1.0, 30), Estimate(0.5, 1.0, 30)
    conditions = [Condition("a", ">", 0.0), Condition("b", ">", 0.0)]
    assert decide({"a": sure, "b": sure}, conditions) is True
    assert decide({"a": sure, "b": unsure}, conditions) is None
    assert decide({"a": Estimate(-5.0, 1.0, 30), "b": unsure}, conditions) is False
    assert all_hold([]) is True


@given(
    arrays(np.float64, 3, elements=st.floats(-9, 9).map(lambda x: round(x, 3))),
    arrays(np.float64, 2, elements=st.floats(-9, 9).map(lambda x: round(x, 3))),
)
def test_permutation_p_counts_all_orders(a: np.ndarray, b: np.ndarray):
    pooled = np.concatenate([a, b])
    observed = a.mean() - b.mean()
    orders = [np.array(order) for order in permutations(pooled)]
    count = sum(order[:3].mean() - order[3:].mean() <= observed + 1e-9 for order in orders)
    assert permutation_p(a, b) == pytest.approx(count / len(orders))


def test_permutation_p_of_complete_separation():
    # One grouping of 28 has the two largest apart from the six smallest.
    assert permutation_p(np.arange(6.0), np.array([10.0, 11.0])) == pytest.approx(1 / 28)


@pytest.mark.parametrize(("signal", "expected"), [(0.0, 0.0), (1.0, 2 / 3), (30.0, 1.0)])
def test_reliability_is_that_of_half_the_chains(signal: float, expected: float):
    # Two chains of unit noise in a half: var 1/2, so reliability = s^2 / (s^2 + 1/2).
    rng = np.random.default_rng(1)
    chains = signal * rng.normal(size=(20, 3, 40)) + rng.normal(size=(4, 20, 3, 40))
    found, error = split_reliability(chains.mean(0), leave_one_out(chains))
    assert found == pytest.approx(expected, abs=0.06)
    assert 0 <= error < 0.1
