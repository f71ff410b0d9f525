"""Work, precision per unit of it, and thinning, against AR(1) chains, whose optimum is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from susceptibilities.efficiency import (
    Costs,
    best_thinning,
    draw_correlation,
    efficiency,
    integrated_time,
    mean_variance,
    price,
    relaxation,
    thinning_row,
    typical,
)
from susceptibilities.evaluation import Evaluation
from susceptibilities.posterior import TESTED, SamplerConfig


def ar1(rho: float, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Stationary chains along the axis ``draw``, unit variance: (component, chain, draw, entry)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=shape)
    values = np.empty(shape)
    values[:, :, 0] = noise[:, :, 0]
    for t in range(1, shape[2]):
        values[:, :, t] = rho * values[:, :, t - 1] + np.sqrt(1 - rho**2) * noise[:, :, t]
    return values


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("draws", [2, 4, 30])
def test_the_correlation_is_found_also_in_short_chains(rho: float, draws: int) -> None:
    found, errors, raw = [], [], []
    for seed in range(60):
        values = ar1(rho, (8, 6, draws, 3), seed)
        values *= np.array([1.0, 1e-3, 50.0, 1, 1, 1, 1, 1])[:, None, None, None]
        value, se = draw_correlation(values + 7.0, np.ones((8, 6), dtype=bool))
        found.append(value)
        errors.append(se)
        centred = values - values.mean((1, 2), keepdims=True)
        products = (centred[:, :, 1:] * centred[:, :, :-1]).mean((1, 2))
        raw.append(np.mean(products / np.square(centred).mean((1, 2))))
    spread = np.std(found, ddof=1)
    assert abs(np.mean(found) - rho) < 4 * spread / np.sqrt(60) + 0.01
    assert 0.6 < np.mean(errors) / spread < 1.6
    if draws == 4:  # without the correction six such chains lose a good part of it
        assert np.mean(raw) < rho - 0.03


def test_what_cannot_be_measured_is_nan_and_lost_chains_do_not_count() -> None:
    everything = np.ones((2, 6), dtype=bool)
    assert np.isnan(draw_correlation(np.ones((2, 6, 5, 1)), everything)).all()
    assert np.isnan(draw_correlation(ar1(0.3, (2, 6, 1, 1)), everything)).all()
    values = ar1(0.5, (2, 6, 20, 1))
    kept = everything.copy()
    kept[0, 4] = False
    broken = values.copy()
    broken[0, 4] = np.nan
    whole = draw_correlation(np.delete(values, 4, 1), everything[:, :5])[0]
    assert draw_correlation(broken, kept)[0] == pytest.approx(whole, abs=0.1)


@given(rho=st.floats(-0.9, 0.99), draws=st.integers(1, 40))
def test_variance_of_a_mean_is_the_sum_of_all_correlations(rho: float, draws: int) -> None:
    lag = np.abs(np.subtract.outer(np.arange(draws), np.arange(draws)))
    assert mean_variance(rho, draws) == pytest.approx(np.mean(rho**lag), abs=1e-12)


@given(
    steps=st.floats(0.3, 60),
    draw=st.floats(0.01, 3000),
    step=st.floats(0.1, 10),
)
def test_the_best_thinning_is_the_known_optimum(steps: float, draw: float, step: float) -> None:
    best = best_thinning(steps, step, draw)
    brute = min(range(1, 900), key=lambda k: price(steps, k, step, draw))
    assert price(steps, best, step, draw) == pytest.approx(price(steps, brute, step, draw))

    # The equation of the optimum changes sign within a step of it.
    def slope(k: float) -> float:
        return np.sinh(k / steps) - k / steps - draw / (step * steps)

    assert slope(best + 1) > 0 and (best == 1 or slope(best - 1) < 0)


def test_limits() -> None:
    assert best_thinning(6.7, 1.0, 1e-9) == 1
    assert best_thinning(0.0, 1.0, 100.0) == 1
    assert best_thinning(6.7, 1.0, 0.0) == 1
    assert relaxation(np.exp(-0.5), 3) == pytest.approx(6.0)
    assert relaxation(-0.1, 3) == 0.0 and relaxation(float("nan"), 3) == 0.0
    assert integrated_time(0.0, 5) == 1.0
    rho = np.exp(-2 / 7)
    assert integrated_time(7.0, 2) == pytest.approx((1 + rho) / (1 - rho))
    assert 1000 * mean_variance(rho, 1000) == pytest.approx(integrated_time(7.0, 2), rel=0.01)


def test_price_is_variance_times_cost_in_a_simulation() -> None:
    """Means of long chains, every k-th draw: variance over chains times what they cost."""
    chains = ar1(np.exp(-1 / 6), (1, 4000, 600, 1))[0, :, :, 0]
    for k in (1, 4, 12, 25):
        kept = chains[:, ::k]
        cost = kept.shape[1] * (k * 2.0 + 15.0)
        assert kept.mean(1).var() * cost == pytest.approx(price(6.0, k, 2.0, 15.0), rel=0.08)


SAMPLER = SamplerConfig(
    n_beta=30, localization=300, step_size=1e-3, chains=6, burn_in=12, draws=8, thinning=6, batch=4
)


def test_costs() -> None:
    counted = Costs.of(SAMPLER, Evaluation(control_variate="linear"), 400, 30_000, None)
    assert counted.gradients == 12 + 48 + TESTED
    assert counted.work(control=False) == 6 * (3 * 64 * 400 + 8 * 30_000)
    assert counted.work(control=True) - counted.work(control=False) == 6 * 2 * 30_000
    assert counted.draw / counted.gradient == pytest.approx(30_000 / 1200)
    seconds = {"sampling": 6 * 64 * 0.01, "draws": 6 * 8 * 0.2, "control": 2.5}
    measured = Costs.of(SAMPLER, Evaluation(control_variate="linear"), 400, 30_000, seconds)
    assert measured.gradient == pytest.approx(0.01)
    assert measured.draw == pytest.approx(0.2)
    assert measured.work(control=True) - measured.work(control=False) == pytest.approx(2.5)


def test_thinning_row() -> None:
    seconds = {"sampling": 6 * 64 * 0.01, "draws": 6 * 8 * 0.2, "control": 0.0}
    costs = Costs.of(SAMPLER, Evaluation(control_variate="linear"), 400, 30_000, seconds)
    row = thinning_row(np.exp(-6 / 5), 0.05, 6, [costs, costs])
    assert row["relaxation"] == pytest.approx(5.0)
    assert row["relaxation_low"] < 5.0 < row["relaxation_high"]
    assert row["draw_cost"] == pytest.approx(20.0)
    assert row["best"] == best_thinning(5.0, 0.01, 0.2)
    assert row["best_low"] <= row["best"] <= row["best_high"]
    assert 0 < row["every"] < row["used"] <= 1
    best = thinning_row(np.exp(-row["best"] / 5), 0.0, row["best"], [costs])
    assert best["used"] == pytest.approx(1.0)


def test_efficiency_is_work_saved_for_the_same_error() -> None:
    assert efficiency(1.0, 10.0, 2.0, 8.0) == pytest.approx(3.2)
    assert typical(np.array([3.0, 4.0])) == pytest.approx(np.sqrt(12.5))
