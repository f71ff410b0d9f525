"""Diagnostics on processes whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from susceptibilities.diagnostics import (
    autocorrelation,
    effective_sample_size,
    split_rhat,
    unhealthy,
)


def autoregressive(rho: float, chains: int, steps: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = np.empty((chains, steps))
    x[:, 0] = rng.normal(size=chains)
    for t in range(1, steps):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=chains)
    return x


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_effective_sample_size_of_an_autoregression(rho: float) -> None:
    x = autoregressive(rho, 4, 20_000)
    exact = x.size * (1 - rho) / (1 + rho)
    assert effective_sample_size(x) == pytest.approx(exact, rel=0.15)
    assert autocorrelation(x)[:4] == pytest.approx(rho ** np.arange(4), abs=0.03)


def test_rhat_is_one_for_agreeing_chains_and_large_for_others() -> None:
    x = autoregressive(0.0, 4, 1000)
    assert split_rhat(x) == pytest.approx(1.0, abs=0.01)
    assert split_rhat(x + np.array([[0], [0], [0], [3]])) > 1.5
    # A common drift shows because each chain is split.
    assert split_rhat(x + np.linspace(0, 3, 1000)) > 1.2


def test_constant_or_short_traces_have_no_diagnostic() -> None:
    assert np.isnan(split_rhat(np.zeros((4, 10))))
    assert np.isnan(split_rhat(np.zeros((4, 3))))
    assert np.isnan(effective_sample_size(np.zeros((4, 10))))


def test_unhealthy_chains_are_named() -> None:
    died, distance = np.array([-1, 5, -1]), np.array([[1.0], [1.0], [9.0]])
    first, second, third = unhealthy(died, distance, size=100, localization=100.0)
    assert first == ""
    assert second == "diverged at step 5"
    assert third.startswith("left the neighbourhood: |w - w*| = 9")


def test_prior_draws_are_healthy() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 10, 1000):
        norm = np.linalg.norm(rng.normal(size=(50, 100, size)), axis=-1) / np.sqrt(300)
        assert not any(unhealthy(np.full(50, -1), norm, size, 300.0))
