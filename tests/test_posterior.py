"""The samplers against posteriors known in closed form or by quadrature."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor

from susceptibilities.posterior import (
    TESTED,
    Sampler,
    SamplerConfig,
    chain_seed,
    minibatch_rows,
)

ROOTS = torch.tensor([0.0, 1.0, 5.0, 50.0], dtype=torch.float64)


def quadratic(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * (ROOTS * weights * weights).sum(-1), ROOTS * weights


def config(**changes: object) -> SamplerConfig:
    settings = dict(
        n_beta=10,
        localization=20,
        step_size=2e-3,
        chains=300,
        burn_in=200,
        draws=20,
        thinning=20,
        batch=1,
    )
    return SamplerConfig.model_validate({**settings, **changes})


def sampler_of(
    gradient=quadratic, size: int = 4, settings: SamplerConfig | None = None, label: str = "test"
) -> Sampler:
    """Chains that have run to their end."""
    settings = settings or config()
    sampler = Sampler(gradient, torch.zeros(size, dtype=torch.float64), 4, settings, 0, label)
    sampler.advance(settings.draws)
    return sampler


def sample(gradient, size: int, settings: SamplerConfig, label: str = "test") -> Tensor:
    """The kept draws, (draw, chain, P)."""
    return sampler_of(gradient, size, settings, label).draws.transpose(0, 1)


def test_sgld_variance_is_the_discretised_one() -> None:
    c = config()
    variance = sample(quadratic, 4, c).var((0, 1))
    keep = 1 - 0.5 * c.step_size * (c.n_beta * ROOTS + c.localization)
    exact = c.step_size / (1 - keep**2)
    # 6000 draws, at worst three times correlated: four standard errors of a variance.
    assert torch.allclose(variance, exact, rtol=4 * (2 / 2000) ** 0.5)


def test_rmsprop_samples_the_same_posterior_for_small_steps() -> None:
    c = config(method="rmsprop", damping=1.0, step_size=4e-3, burn_in=600)
    variance = sample(quadratic, 4, c).var((0, 1))
    exact = 1 / (c.n_beta * ROOTS + c.localization)
    # The drift of the preconditioner is left out (as in the papers): a few percent.
    assert torch.allclose(variance, exact, rtol=0.25)


def test_without_temperature_only_the_localisation_is_left() -> None:
    c = config(n_beta=0)
    variance = sample(quadratic, 4, c).var((0, 1))
    keep = 1 - 0.5 * c.step_size * c.localization
    assert torch.allclose(
        variance, torch.full((4,), c.step_size / (1 - keep**2)).double(), rtol=0.15
    )


def test_acceptance_approaches_one_with_the_step() -> None:
    def acceptance(step_size: float) -> float:
        c = config(step_size=step_size, burn_in=20, draws=10)
        return sampler_of(settings=c).trace.acceptance.nanmean().item()

    large, middle, small = acceptance(8e-3), acceptance(2e-3), acceptance(2e-4)
    assert large < middle < small
    assert small > 0.99


def learning_coefficient(loss, size: int, n_beta: float, step_size: float, steps: int) -> float:
    """n_beta * E[L] with a weak localisation (gamma = 1)."""

    def gradient(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        leaf = weights.clone().requires_grad_()
        value = loss(leaf)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    c = config(
        n_beta=n_beta,
        localization=1.0,
        step_size=step_size,
        chains=300,
        burn_in=steps,
        draws=10,
        thinning=50,
    )
    draws = sample(gradient, size, c)
    return n_beta * loss(draws.reshape(-1, size)).mean().item()


def expected(loss, size: int, n_beta: float) -> float:
    """The same expectation by quadrature on a grid."""
    axis = np.linspace(-5, 5, 801)
    grid = np.stack(np.meshgrid(*[axis] * size, indexing="ij"), -1).reshape(-1, size)
    values = loss(torch.from_numpy(grid)).numpy()
    weight = np.exp(-n_beta * values - 0.5 * (grid**2).sum(-1))
    return float(n_beta * (weight * values).sum() / weight.sum())


@pytest.mark.parametrize(
    ("power", "coefficient"),
    [(2, 1 / 2), (4, 1 / 4)],
    ids=["regular", "degenerate"],
)
def test_learning_coefficient_of_one_weight(power: int, coefficient: float) -> None:
    """L = w^(2k) has learning coefficient 1 / (2k)."""

    def density(w: float, moment: int) -> float:
        return (1000 * w**power) ** moment * np.exp(-1000 * w**power - 0.5 * w * w)

    limit = integrate.quad(density, -4, 4, args=(1,), points=[0])[0]
    limit /= integrate.quad(density, -4, 4, args=(0,), points=[0])[0]
    assert limit == pytest.approx(coefficient, rel=0.03)
    found = learning_coefficient(lambda w: w[:, 0] ** power, 1, 1000, 4e-5, 1000)
    assert found == pytest.approx(limit, rel=0.1)


def test_learning_coefficient_of_a_normal_crossing() -> None:
    """L = (w1 w2)^2: coefficient 1/2 with multiplicity 2, so the limit is reached slowly."""

    def loss(w: Tensor) -> Tensor:
        return (w[:, 0] * w[:, 1]) ** 2

    found = learning_coefficient(loss, 2, 100, 2e-4, 1500)
    exact = expected(loss, 2, 100)
    assert exact < 0.5
    assert found == pytest.approx(exact, rel=0.12)


def test_learning_coefficient_of_reduced_rank_regression() -> None:
    """L = (ab - 1)^2, one weight into one and out: rank one, coefficient 1/2 (Aoyagi 2005)."""

    def loss(w: Tensor) -> Tensor:
        # w* = 0 stands for a = b = 1.
        return ((w[:, 0] + 1) * (w[:, 1] + 1) - 1) ** 2

    found = learning_coefficient(loss, 2, 100, 2e-4, 1500)
    exact = expected(loss, 2, 100)
    assert exact == pytest.approx(0.5, rel=0.05)
    assert found == pytest.approx(exact, rel=0.12)


def test_chains_are_independent_and_reproducible() -> None:
    c = config(chains=3, burn_in=3, draws=2, thinning=1)
    first, again = sample(quadratic, 4, c, "0:1"), sample(quadratic, 4, c, "0:1")
    assert torch.equal(first, again)
    other = sample(quadratic, 4, c, "0:2")
    rows = torch.cat([first[-1], other[-1]])
    assert len(torch.unique(rows, dim=0)) == 6
    # A chain does not depend on how many run beside it.
    fewer = sample(quadratic, 4, config(chains=2, burn_in=3, draws=2, thinning=1), "0:1")
    assert torch.allclose(fewer, first[:, :2], rtol=0, atol=0)


def noisy_quadratic(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A quadratic whose slope depends on the minibatch."""
    slope = rows.double().mean(1, keepdim=True) - 1.5
    loss, gradient = quadratic(weights, rows)
    return loss + (slope * weights).sum(-1), gradient + slope


SHORT = dict(chains=3, burn_in=5, draws=4, thinning=3, batch=2)


def test_the_mean_gradient_is_that_of_the_steps_after_burn_in() -> None:
    seen: list[Tensor] = []

    def recorded(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = noisy_quadratic(weights, rows)
        seen.append(gradient)
        return loss, gradient

    c = config(**SHORT)
    sampler = sampler_of(recorded, settings=c)
    # At the last kept draws the proposal's gradient is taken too, for the acceptance.
    steps, places = [], iter(seen)
    for step in range(1, c.steps + 1):
        steps.append(next(places))
        draw, rest = divmod(step - c.burn_in, c.thinning)
        if draw > c.draws - TESTED and rest == 0 and draw > 0:
            next(places)
    expected = torch.stack(steps[c.burn_in :]).mean(0)
    torch.testing.assert_close(sampler.mean_gradient, expected, rtol=1e-12, atol=1e-12)


def test_chains_may_start_from_the_localisation() -> None:
    c = config(start="localization", n_beta=0, burn_in=0, draws=1, thinning=1, chains=2000)
    centre = torch.full((4,), 7.0, dtype=torch.float64)
    sampler = Sampler(quadratic, centre, 4, c, 0, "start")
    first = sampler.weights - centre
    assert first.mean().abs() < 4 * (1 / c.localization / first.numel()) ** 0.5
    # Four standard errors of a variance of 8000 numbers.
    assert first.var().item() == pytest.approx(1 / c.localization, rel=4 * (2 / 8000) ** 0.5)
    # Without a loss that is the stationary law: one step leaves it where it is.
    sampler.advance(1)
    after = (sampler.draws[:, 0] - centre).var().item()
    assert after == pytest.approx(1 / c.localization, rel=4 * (2 / 8000) ** 0.5 + 0.02)
    assert torch.equal(Sampler(quadratic, centre, 4, config(chains=2), 0, "x").weights[0], centre)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 17),
    st.sampled_from(["sgld", "rmsprop"]),
    st.sampled_from(["star", "localization"]),
    st.integers(1, 4),
)
def test_a_restored_sampler_goes_on_to_the_same_bits(
    stop: int, method: str, start: str, held: int
) -> None:
    c = config(**SHORT, method=method, start=start)

    def fresh() -> Sampler:
        w_star = torch.zeros(4, dtype=torch.float64)
        return Sampler(noisy_quadratic, w_star, 8, c, 0, "x", held=held)

    class Stop(Exception):
        pass

    whole, killed, resumed = fresh(), fresh(), fresh()
    whole.advance(c.draws)

    def until() -> None:
        if killed.step >= stop:
            raise Stop

    with contextlib.suppress(Stop):
        killed.advance(c.draws, until)
    state = {name: value.clone() for name, value in killed.state().items()}
    resumed.restore(state)
    resumed.advance(c.draws)
    assert torch.equal(resumed.draws, whole.draws)
    assert torch.equal(resumed.weights, whole.weights)
    assert torch.equal(resumed.mean_gradient, whole.mean_gradient)
    for name in ("rows", "loss", "acceptance", "distance", "died"):
        assert torch.equal(getattr(resumed.trace, name), getattr(whole.trace, name)), name


def test_draws_held_in_groups_are_the_same_draws() -> None:
    c = config(**SHORT)
    whole = sampler_of(noisy_quadratic, settings=c)
    sampler = Sampler(noisy_quadratic, torch.zeros(4).double(), 4, c, 0, "test", held=3)
    assert sampler.draws.shape == (3, 0, 4)
    sampler.advance(3)
    assert torch.equal(sampler.draws, whole.draws[:, :3])
    sampler.advance(4)
    assert torch.equal(sampler.draws, whole.draws[:, 3:])


def test_minibatches_are_passes_over_the_pool() -> None:
    rows = minibatch_rows(10, 5, 4, 3, 0, "x")
    assert rows.shape == (3, 4, 5)
    for chain in rows:
        assert sorted(chain[:2].ravel()) == sorted(chain[2:].ravel()) == list(range(10))
    assert not np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows, minibatch_rows(10, 5, 4, 3, 0, "y"))
    with pytest.raises(ValueError, match="needs a pool of as many, found 10"):
        minibatch_rows(10, 11, 1, 1, 0, "x")


def test_a_diverging_chain_is_marked_and_the_others_go_on() -> None:
    def gradient(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        loss, slope = quadratic(weights, rows)
        loss[1] = torch.nan
        return loss, slope

    c = config(chains=3, burn_in=2, draws=2, thinning=1)
    sampler = sampler_of(gradient, settings=c, label="x")
    assert sampler.trace.died.tolist() == [-1, 0, -1]
    assert torch.equal(sampler.draws[[0, 2]], sampler_of(settings=c, label="x").draws[[0, 2]])
    assert torch.isfinite(sampler.draws).all()
    assert torch.isfinite(sampler.mean_gradient).all()


def test_seeds_differ_by_every_label() -> None:
    seeds = {
        chain_seed(s, "c", chain, kind) for s in range(3) for chain in range(3) for kind in "ab"
    }
    assert len(seeds) == 18


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="step_size"):
        config(step_size=0)
    with pytest.raises(ValueError, match="chains"):
        config(chains=1)
    assert config().steps == 600


def test_settings_of_a_component() -> None:
    settings = SamplerConfig(
        n_beta=1,
        localization=1,
        step_size=1e-3,
        chains=2,
        burn_in=3,
        draws=6,
        unrestricted_draws=9,
        thinning=2,
        batch=1,
    )
    full, head = settings.of("full"), settings.of("0:1")
    assert (full.draws, head.draws) == (9, 6) and full.of("full") == full
    assert settings.sizes == {"draw": 9, "step": full.steps} and full.steps == head.steps + 6
    assert head.gradients == head.steps + TESTED
    assert settings.model_copy(update={"unrestricted_draws": 2}).sizes["draw"] == 6
