"""The dip test, the two modes, and whether chains agree on them: oracles and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog
from sklearn.mixture import GaussianMixture

from susceptibilities import mixture
from susceptibilities.bimodality import (
    auc,
    benjamini_hochberg,
    design_effect,
    dip_test,
    halves,
    holm,
    power,
)
from susceptibilities.dip import SMALLEST, dip, p_value, simulate
from susceptibilities.jackknife import pseudo_values
from susceptibilities.mixture import two_modes


def dip_by_definition(values) -> float:
    """The least sup-distance to a unimodal distribution function, by one linear program a mode."""
    x, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    above = np.cumsum(counts) / counts.sum()
    below = above - counts / counts.sum()
    size = len(x)
    if size == 1:
        return 0.0
    best = np.inf
    for mode in range(size):
        # Unknowns: G at every point, G just before the mode (it may jump there), the distance.
        before, distance = size, size + 1
        rows, bounds = [], []

        def at_most(row: dict[int, float], bound: float, rows=rows, bounds=bounds) -> None:
            full = np.zeros(size + 2)
            for place, factor in row.items():
                full[place] = factor
            rows.append(full)
            bounds.append(bound)

        for i in range(size):
            low = before if i == mode else i
            at_most({low: 1, distance: -1}, below[i])
            at_most({low: -1, distance: -1}, -below[i])
            at_most({i: 1, distance: -1}, above[i])
            at_most({i: -1, distance: -1}, -above[i])
        at_most({before: 1, mode: -1}, 0.0)
        left = [*range(mode), before]
        right = list(range(mode, size))
        for side, places, sign in ((left, range(mode + 1), 1.0), (right, range(mode, size), -1.0)):
            steps = np.diff(x[list(places)])
            for a in range(len(steps)):
                # Nondecreasing; then convex to the left of the mode, concave to the right.
                at_most({side[a]: 1, side[a + 1]: -1}, 0.0)
                if a:
                    s, t = 1 / steps[a - 1], 1 / steps[a]
                    row = {side[a - 1]: -s, side[a]: s + t, side[a + 1]: -t}
                    at_most({k: sign * v for k, v in row.items()}, 0.0)
        cost = np.zeros(size + 2)
        cost[distance] = 1
        found = linprog(cost, np.array(rows), np.array(bounds), bounds=[(0, 1)] * (size + 2))
        assert found.status == 0
        best = min(best, found.fun)
    return best


@settings(max_examples=60, deadline=None)
@example([2, 2, 6, 8, 9, 10])  # hulls with parallel edges
@example([1, 1, 1, 6, 9, 9, 9, 12])
@example([0, 4, 6, 7, 9, 11, 12])
@given(st.lists(st.integers(0, 12), min_size=2, max_size=9))
def test_dip_is_the_distance_to_the_nearest_unimodal_distribution(values):
    assert dip(values) == pytest.approx(dip_by_definition(values), abs=1e-9)


def test_dip_agrees_with_the_reference_implementation():
    """Values of the package diptest 0.12, which has a license that this one cannot depend on."""
    rng = np.random.default_rng(0)
    expected = {
        0.048182351792768016: rng.random(40),
        0.03997347715813173: rng.normal(size=75),
        0.06639281084203545: np.concatenate([rng.normal(-3, 1, 60), rng.normal(3, 1, 30)]),
        0.016786902026882534: rng.exponential(size=200),
        0.07666666666666667: rng.integers(0, 9, 50).astype(float),
        0.04358796044317889: rng.standard_cauchy(33),
    }
    for value, sample in expected.items():
        assert dip(sample) == pytest.approx(value, abs=1e-10)


def test_dip_does_not_depend_on_order_scale_or_sign():
    sample = np.random.default_rng(1).normal(size=60)
    for changed in (sample[::-1], 1e-6 * sample, -sample, 1e4 + sample):
        assert dip(changed) == pytest.approx(dip(sample), abs=1e-9)
    assert dip(np.arange(20)) == pytest.approx(1 / 40)
    assert dip([0.0] * 5 + [1.0] * 5) == 0.25
    assert dip([3.0, 3.0]) == 0.0
    assert dip([1e-310, 2e-310, 1.0]) > 0
    with pytest.raises(ValueError, match="finite values, found 2 of which 1"):
        dip([1.0, math.nan])


@pytest.mark.parametrize("size", [25, 400])
def test_p_values_of_uniform_samples_are_uniform(size):
    p = np.array([p_value(found, size) for found in simulate(size, 1500, seed=5)])
    for level in (0.5, 0.1, 0.05, 0.01):
        assert np.mean(p <= level) == pytest.approx(level, abs=4 * math.sqrt(level / 1500))


def test_p_values_fall_with_the_dip_and_reach_beyond_the_table():
    found = [p_value(t / math.sqrt(77), 77) for t in np.linspace(0, 1.5, 50)]
    assert found[0] == 1.0 and np.all(np.diff(found) < 0) and 0 < found[-1] < 1e-10
    assert p_value(0.25, SMALLEST - 1) == 1.0
    # The 5 % point for n = 50 in the table of the package diptest, from a million samples.
    assert p_value(0.07027379, 50) == pytest.approx(0.05, abs=0.001)


def test_copies_of_a_value_in_a_context_are_worth_one():
    rng = np.random.default_rng(2)
    values = rng.normal(size=40)
    assert design_effect(values, np.arange(40)) == pytest.approx(1.0, abs=0.1)
    contexts = np.repeat(np.arange(40), 5)
    assert design_effect(np.repeat(values, 5), contexts) == pytest.approx(5.0, rel=0.1)
    test = dip_test(np.repeat(values, 5), contexts)
    assert test.count == 200 and test.contexts == 40
    assert test.effective == pytest.approx(40, rel=0.1)
    # One context alone says nothing.
    assert dip_test(values, np.zeros(40, dtype=int)).p == 1.0


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
def test_the_level_holds_when_occurrences_of_a_context_are_alike(correlation):
    rng = np.random.default_rng(3)
    rejected = []
    for _ in range(300):
        contexts = np.repeat(np.arange(24), rng.poisson(5, 24))
        shared = rng.normal(size=24)[contexts]
        own = rng.normal(size=len(contexts))
        normal = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
        rejected.append(dip_test(stats.norm.cdf(normal), contexts).p <= 0.05)
    assert np.mean(rejected) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_single_modes_of_any_shape_pass_and_two_do_not():
    rng = np.random.default_rng(4)
    contexts = np.arange(300)
    for single in (rng.normal(size=300), rng.exponential(size=300), rng.standard_t(2, 300)):
        assert dip_test(single, contexts).p > 0.3
    two = np.concatenate([rng.normal(-2.5, 1, 150), rng.normal(2.5, 1, 150)])
    assert dip_test(two, contexts).p < 1e-4
    assert power(300, 5.0, 0.5, 0.05, 50) > 0.95
    assert power(30, 3.0, 0.2, 0.05, 50) < 0.1
    assert power(0, 3.0, 0.2, 0.05) == 0.0


def test_corrections_for_many_tests():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.5]), [1.0, 1.0])
    np.testing.assert_allclose(benjamini_hochberg([0.01, 0.04, 0.03]), [0.03, 0.04, 0.04])
    assert len(holm([])) == len(benjamini_hochberg([])) == 0


@pytest.fixture
def sample():
    rng = np.random.default_rng(6)
    return 1e-3 * np.concatenate([rng.normal(-2, 1.0, 700), rng.normal(3, 0.6, 300)])


def test_modes_are_where_they_were_put(sample):
    modes = two_modes(sample)
    assert modes.lower == pytest.approx(-2e-3, abs=1.5e-4)
    assert modes.upper == pytest.approx(3e-3, abs=1e-4)
    assert modes.lower_sd == pytest.approx(1e-3, rel=0.1)
    assert modes.upper_sd == pytest.approx(0.6e-3, rel=0.12)
    assert modes.share == pytest.approx(0.3, abs=0.02)
    assert modes.distance == pytest.approx(math.sqrt(2) * 5 / math.hypot(1, 0.6), rel=0.1)
    assert modes.gain > 100
    truth = np.arange(1000) >= 700
    assert np.mean(modes.is_upper(sample) == truth) > 0.99


def test_modes_do_not_move_with_outliers_or_fewer_effective_values(sample):
    modes, disturbed = two_modes(sample), two_modes(np.append(sample, [0.1, -0.1, 0.2]))
    assert disturbed.lower == pytest.approx(modes.lower, abs=1e-4)
    assert disturbed.upper == pytest.approx(modes.upper, abs=1e-4)
    few = two_modes(sample, size=100)
    assert few.lower == modes.lower and few.gain < 0.15 * modes.gain
    with pytest.raises(ValueError, match="sample that varies"):
        two_modes(np.ones(5))


def test_mixture_of_gaussians_agrees_with_scikit_learn(sample, monkeypatch):
    monkeypatch.setattr(mixture, "_FREEDOM", 1e9)
    monkeypatch.setattr(mixture, "_GAUSSIAN", 1.0)
    ours = two_modes(sample)
    scaled = 1e3 * sample[:, None]
    theirs = GaussianMixture(2, n_init=4, tol=1e-8, max_iter=1000, random_state=0).fit(scaled)
    order = np.argsort(theirs.means_.ravel())
    np.testing.assert_allclose([ours.lower, ours.upper], 1e-3 * theirs.means_.ravel()[order], 1e-3)
    widths = 1e-3 * np.sqrt(theirs.covariances_.ravel()[order])
    np.testing.assert_allclose([ours.lower_sd, ours.upper_sd], widths, rtol=1e-3)
    one = GaussianMixture(1).fit(scaled)
    assert ours.gain == pytest.approx(one.bic(scaled) - theirs.bic(scaled), abs=0.1)


def left_out(chains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return chains.mean(0), np.stack([np.delete(chains, c, 0).mean(0) for c in range(len(chains))])


def test_chains_agree_on_modes_of_tokens_and_not_on_their_own():
    rng = np.random.default_rng(7)
    upper = rng.random(120) < 0.4
    real = np.where(upper, 1.0, -1.0) + 0.3 * rng.normal(size=(6, 120))
    values, replicates = left_out(real)
    np.testing.assert_allclose(pseudo_values(values, replicates), real, atol=1e-12)
    split = halves(values, replicates, two_modes(values))
    assert split.upper.shape == (10, 2, 120) and split.groups.sum(-1).tolist() == [[3, 3]] * 10
    assert split.kappa() > 0.98
    same, chance = split.agreement()
    assert same > 0.99 and chance == pytest.approx(0.4**2 + 0.6**2, abs=0.08)
    # Two modes in every chain, each time of other tokens.
    noise = np.where(rng.random((6, 120)) < 0.5, 3.0, -3.0) + 0.3 * rng.normal(size=(6, 120))
    values, replicates = left_out(noise)
    split = halves(values, replicates, two_modes(values))
    assert abs(split.kappa()) < 0.15


def test_the_gap_is_measured_where_it_was_not_chosen():
    rng = np.random.default_rng(8)
    upper = rng.random(200) < 0.5
    part = np.where(upper, 1.0, -1.0) + 0.2 * rng.normal(size=(4, 200))
    other = 0.8 * rng.normal(size=(4, 200))
    values, replicates = left_out(part + other)
    split = halves(values, replicates, two_modes(values))
    gap = split.gap(part + other)
    assert split.gap(part) + split.gap(other) == pytest.approx(gap)
    # In-sample the noise of the other part would add to the gap.
    assert split.gap(other) == pytest.approx(0.0, abs=0.1)
    pure = rng.normal(size=(4, 200))
    values, replicates = left_out(pure)
    split = halves(values, replicates, two_modes(values))
    assert abs(split.gap(pure)) < 0.3


def test_auc_counts_pairs():
    rng = np.random.default_rng(9)
    scores = rng.integers(0, 6, 40).astype(float)
    positive = rng.random(40) < 0.4
    pairs = scores[positive][:, None] - scores[~positive][None]
    assert auc(scores, positive) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert math.isnan(auc(scores, np.zeros(40, dtype=bool)))
