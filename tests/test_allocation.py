"""Shares of the noise of chi, and the draws that make most of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from controlled_chains import BASE, sgld, token_shard
from quadratic import random_quadratic
from susceptibilities.allocation import Allocation, variances
from susceptibilities.jackknife import jackknife_se
from susceptibilities.posterior import SamplerConfig
from susceptibilities.token_estimates import TokenMoments, estimate_tokens

positive = st.floats(0.01, 100)
CONFIG = SamplerConfig(
    n_beta=4, localization=10, step_size=0.02, chains=6, burn_in=0, draws=10, thinning=2, batch=1
)


@given(positive, positive, positive, positive, st.integers(1, 50), st.integers(1, 50))
def test_the_best_ratio_is_that_of_a_search(
    a: float, b: float, cost_a: float, cost_b: float, unrestricted: int, own: int
) -> None:
    found = Allocation(a / unrestricted, b / own, unrestricted, own, cost_a, cost_b)

    def price(log_ratio: float) -> float:
        """Variance times work with this many draws of the unrestricted chains for one other."""
        ratio = np.exp(log_ratio)
        return (a / ratio + b) * (ratio * cost_a + cost_b)

    search = minimize_scalar(price, bounds=(-12, 12), method="bounded", options={"xatol": 1e-9})
    assert np.log(found.best) == pytest.approx(search.x, abs=1e-3)
    assert found.used == pytest.approx(search.fun / price(np.log(unrestricted / own)))
    assert found.equal == pytest.approx(search.fun / price(0.0))
    assert replace(found, unrestricted_draws=own, unrestricted_variance=a / own).used == (
        pytest.approx(found.equal)
    )


def moments() -> TokenMoments:
    tokens = 15
    parts = {"full": [0, 1, 2, 3], "0:0": [0, 1], "0:1": [2]}
    drawn = {
        name: sgld(random_quadratic(BASE + tokens, 4, kept), CONFIG, seed=i)
        for i, (name, kept) in enumerate(parts.items())
    }
    return TokenMoments.of([token_shard(drawn)], "plain")


def test_the_two_variances_are_of_one_kind_of_chains_each() -> None:
    found = moments()
    unrestricted, own = variances(found, 1)
    # Chi depends on the unrestricted chains through their mean alone, times the mean of g.
    mean_g = found.moments.mean_x[1].mean()
    full = found.moments.mean_y[found.full]
    assert unrestricted == pytest.approx(mean_g**2 * full.var(0, ddof=1) / len(full), rel=1e-9)
    # Together they are nearly the jackknife over both at once: chains are independent.
    both = estimate_tokens(found)["chi_se"].values[1] ** 2
    assert unrestricted.sum() + own.sum() == pytest.approx(both.sum(), rel=0.5)


def test_chains_that_agree_have_no_noise() -> None:
    found = moments()
    held = found.moments
    for array in (held.mean_x, held.mean_y, held.comoment):
        array[1] = array[1, :1]
    unrestricted, own = variances(found, 1)
    assert own.max() < 1e-20 < unrestricted.min()
    replicates = np.stack(
        [found.parts(1, [c for c in range(6) if c != left])["chi"] for left in range(6)]
    )
    assert jackknife_se(replicates) ** 2 == pytest.approx(unrestricted, rel=1e-6)
