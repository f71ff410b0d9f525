"""Draws first, then blocks of tokens: exact whatever the blocks; the control variate's law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from quadratic import Quadratic, random_quadratic
from susceptibilities import chains as module
from susceptibilities.blocks import memory_limits
from susceptibilities.chains import Chains
from susceptibilities.evaluation import BUDGET, Evaluation, precision_error
from susceptibilities.losses import Prepared
from susceptibilities.posterior import SamplerConfig
from susceptibilities.sampling import sample_component
from susceptibilities.token_sampling import token_moments

CONTEXTS, BASE, SIZE = 23, 9, 4
CONFIG = SamplerConfig(
    n_beta=8, localization=20, step_size=0.02, chains=3, burn_in=40, draws=7, thinning=4, batch=5
)


def chains_of(
    model: Quadratic | None = None,
    config: SamplerConfig = CONFIG,
    control: str = "linear",
    pool: int = BASE,
    **other: object,
) -> Chains:
    model = model or random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    tokens = torch.arange(len(model.linear))[:, None]
    return Chains(
        model,
        model.prepare(tokens),
        model.prepare(tokens[:pool]),
        torch.zeros(pool, dtype=torch.float64),
        config,
        0,
        "test",
        BASE,
        control,  # type: ignore[arg-type]
        **other,  # type: ignore[arg-type]
    )


def flat(model: Quadratic) -> Quadratic:
    """The same slopes without curvature."""
    return Quadratic(model.linear, torch.zeros_like(model.square), model.kept)


def gather(chains: Chains) -> dict[str, NDArray]:
    """All blocks together: shift (chain, draw, context), control (chain, context)."""
    c, contexts = chains.sampler, len(chains.evaluated.tokens)
    found = {
        "shift": np.zeros((c.chains, c.draws, contexts)),
        "control": np.zeros((c.chains, contexts)),
    }
    for block in chains.blocks():
        found["shift"][:, block.draws, block.rows] = block.shift[..., 0]
        if block.control is not None:
            found["control"][:, block.rows] = block.control[..., 0]
    return found


def limit(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    """Hold less at a time than a CPU allows."""
    limits = replace(memory_limits("cpu"), **sizes)
    monkeypatch.setattr(module, "memory_limits", lambda device: limits)


def test_shifts_are_the_losses_of_the_draws_that_the_sampler_keeps() -> None:
    chains = chains_of()
    shift = gather(chains)["shift"]
    losses = chains.losses.shifts(chains.run.draws.flatten(0, 1), chains.evaluated)
    assert chains.run.draws.shape == (3, 7, SIZE)
    np.testing.assert_allclose(shift, losses.view(3, 7, CONTEXTS), rtol=1e-13)
    np.testing.assert_allclose(chains.g, shift[..., :BASE].mean(-1), rtol=1e-12)


@pytest.mark.parametrize(("held", "contexts"), [(7, 1), (3, 4), (1, 23), (2, 1)])
def test_blocks_and_groups_of_draws_change_nothing(
    monkeypatch: pytest.MonkeyPatch, held: int, contexts: int
) -> None:
    whole, whole_tokens = sample_component(chains_of()), token_moments(chains_of())
    # Beside the draws a chain has two weight vectors for the control variate.
    losses = contexts * 3 * (held + 2) * 2 * 8
    limit(monkeypatch, draws=held * 3 * SIZE * 8, losses=losses)
    chains = chains_of()
    sizes, spans = [], []
    for block in chains.blocks():
        spans.append(block.rows)
        sizes.append(block.shift.shape)
    assert max(shape[1] for shape in sizes) == held
    assert max(shape[2] for shape in sizes) == min(contexts, CONTEXTS - BASE)
    assert all(span.stop <= BASE or span.start >= BASE for span in spans)
    for found, expected in (
        (sample_component(chains_of()), whole),
        (token_moments(chains_of()), whole_tokens),
    ):
        assert set(found) == set(expected)
        for name in found:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12)


def test_no_block_grows_with_the_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, losses=6 * 3 * (7 + 2) * 2 * 8)

    def largest(contexts: int) -> int:
        model = random_quadratic(contexts, SIZE, list(range(SIZE)))
        return max(b.shift.numel() for b in chains_of(model).blocks())

    assert largest(30) == largest(300) == 6 * 3 * 7


def test_the_control_is_the_slope_along_the_direction_of_the_draws() -> None:
    """a from the kept draws by themselves; on a quadratic, the difference is exact."""
    model = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    chains = chains_of(model)
    found = gather(chains)
    moved, gradient = chains.run.draws.numpy(), chains.run.mean_gradient.numpy()
    a = moved.mean(1) + CONFIG.n_beta / CONFIG.localization * gradient
    slopes = model.b.numpy()
    np.testing.assert_allclose(found["control"], a @ slopes.T, rtol=1e-9, atol=1e-12)
    data = token_moments(chains_of(model))
    np.testing.assert_allclose(data["control_g"], found["control"][:, :BASE].mean(-1), rtol=1e-9)
    np.testing.assert_allclose(data["control_shift"], found["control"][:, BASE:], rtol=1e-9)


def test_of_a_linear_loss_all_noise_of_the_mean_is_taken_off() -> None:
    """With full batches E[w - w*] = -(n_beta / localization) b, and nothing else is left."""
    model = flat(random_quadratic(CONTEXTS, SIZE, list(range(SIZE))))
    config = CONFIG.model_copy(update={"batch": BASE, "draws": 2, "burn_in": 0})
    chains = chains_of(model, config)
    found = gather(chains)
    slopes, pool = model.b.numpy(), model.b[:BASE].mean(0).numpy()
    exact = -config.n_beta / config.localization * slopes @ pool
    corrected = found["shift"].mean(1) - found["control"]
    np.testing.assert_allclose(corrected, np.broadcast_to(exact, corrected.shape), atol=1e-12)
    assert np.abs(found["shift"].mean(1) - exact).min(1).max() > 1e-4


class Cubic(Quadratic):
    """Loss b . w + w'Hw / 2 + sum w^3."""

    def shifts(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        return super().shifts(weights, prepared, rows) + weights.pow(3).sum(-1)[:, None, None]


def test_the_control_is_the_odd_part_of_the_loss_over_the_direction_itself() -> None:
    """Higher odd orders are those at w* + a, not those of a step of another length."""
    model = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    chains = chains_of(Cubic(model.linear, model.square, model.kept))
    found = gather(chains)
    moved, gradient = chains.run.draws.numpy(), chains.run.mean_gradient.numpy()
    a = moved.mean(1) + CONFIG.n_beta / CONFIG.localization * gradient
    odd = (a**3).sum(-1, keepdims=True)
    np.testing.assert_allclose(found["control"], a @ model.b.numpy().T + odd, rtol=1e-9, atol=1e-14)
    assert np.abs(odd).min() > 1e-8


class Quartic(Quadratic):
    """Loss b . w + w'Hw / 2 + sum w^4: not a quadratic."""

    def shifts(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        return super().shifts(weights, prepared, rows) + weights.pow(4).sum(-1)[:, None, None]

    def loss_and_gradient(
        self, weights: Tensor, prepared: Prepared, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, gradient = super().loss_and_gradient(weights, prepared, rows)
        return loss + weights.pow(4).sum(-1), gradient + 4 * weights**3


def test_the_direction_has_expectation_zero_whatever_the_loss() -> None:
    """Minibatches, a quartic loss, a large step: under the stationary law E[a] = 0 all the same."""
    model = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    model = Quartic(model.linear, model.square, model.kept)
    config = CONFIG.model_copy(update={"chains": 3000, "burn_in": 60, "localization": 5.0})

    def t_of_mean(config: SamplerConfig) -> NDArray:
        chains = chains_of(model, config)
        chains.run.advance(config.draws)
        assert chains._direction is not None
        chains._direction.add(chains.run.draws)
        a = chains._direction.a(chains.run).numpy()
        return a.mean(0) / (a.std(0, ddof=1) / np.sqrt(len(a)))

    bound = stats.norm.isf(0.001 / SIZE)
    assert np.abs(t_of_mean(config)).max() < bound
    # A chain that has not reached its stationary law is seen.
    early = config.model_copy(update={"burn_in": 0, "draws": 2})
    assert np.abs(t_of_mean(early)).max() > 2 * bound


def test_corrected_means_agree_with_the_closed_form() -> None:
    """Unbiased, with a fraction of the variance; their errors over chains cover the truth."""
    model = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    config = CONFIG.model_copy(update={"chains": 600, "batch": BASE})
    found = gather(chains_of(model, config))
    truth = model.expectation(np.arange(CONTEXTS), *model.stationary(list(range(BASE)), config))
    plain = found["shift"].mean(1)
    corrected = plain - found["control"]
    ratio = plain.var(0).sum() / corrected.var(0).sum()
    assert ratio > 2
    error = corrected.std(0, ddof=1) / np.sqrt(len(corrected))
    assert (np.abs(corrected.mean(0) - truth) < 4 * error).all()
    groups = corrected.reshape(100, 6, CONTEXTS)
    se = groups.std(1, ddof=1) / np.sqrt(6)
    covered = np.abs(groups.mean(1) - truth) < stats.t.ppf(0.95, 5) * se
    assert 0.86 < covered.mean() < 0.94


def test_a_diverged_chain_leaves_the_others_controls_alone() -> None:
    class Broken(Quadratic):
        def loss_and_gradient(
            self, weights: Tensor, prepared: Prepared, rows: Tensor
        ) -> tuple[Tensor, Tensor]:
            loss, gradient = super().loss_and_gradient(weights, prepared, rows)
            gradient[1] = torch.nan
            return loss, gradient

    sound = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    broken = Broken(sound.linear, sound.square, sound.kept)
    found, expected = gather(chains_of(broken)), gather(chains_of(sound))
    for name in ("shift", "control"):
        np.testing.assert_array_equal(found[name][[0, 2]], expected[name][[0, 2]])
        assert np.isfinite(found[name]).all()


class Inexact(Quadratic):
    """Shifts that are off by a common factor."""

    factor = 1.0

    def shifts(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        return self.factor * super().shifts(weights, prepared, rows)


def measured(chains: Chains) -> float:
    """The precision's error, once a block has been evaluated."""
    next(iter(chains.blocks()))
    return chains.precision_error


def test_the_precisions_error_is_in_standard_errors() -> None:
    rng = torch.Generator().manual_seed(5)
    level = torch.randn(400, 1, 1, 5, generator=rng, dtype=torch.float64)
    exact = level + 0.01 * torch.randn(400, 3, 1, 5, generator=rng, dtype=torch.float64)
    # The mean of 400 chains has a standard error of 1 / 20, that of five losses 1 / (20 sqrt 5).
    off = precision_error(exact + 0.01, exact)
    assert off == pytest.approx(0.01 * 20 * 5**0.5, rel=0.15)
    assert precision_error(exact, exact) == 0
    still = torch.ones(4, 2, 1, 5, dtype=torch.float64)
    assert precision_error(1.001 * still, still) == np.inf


@pytest.mark.parametrize(("budgets", "chosen"), [(0.9, "bfloat16"), (1.1, "float32")])
def test_narrow_losses_are_used_where_their_error_is_within_the_budget(
    budgets: float, chosen: str
) -> None:
    exact = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    narrow = Inexact(exact.linear, exact.square, exact.kept)
    # For small errors the measure is in proportion to them.
    narrow.factor = 1 + 1e-6
    error = budgets * BUDGET * 1e-6 / measured(chains_of(exact, narrow=narrow))
    narrow.factor = 1 + error
    chains = chains_of(exact, narrow=narrow)
    found, expected = gather(chains), gather(chains_of(exact))
    assert chains.precision_error == pytest.approx(budgets * BUDGET, rel=0.05)
    assert chains.precision == chosen
    factor = 1 + error if chosen == "bfloat16" else 1
    for name in ("shift", "control"):
        np.testing.assert_allclose(found[name], factor * expected[name], rtol=1e-9, atol=1e-15)
    assert np.isnan(chains_of(exact).precision_error)
    assert chains_of(exact).precision == "float32"


@pytest.mark.parametrize("control", ["none", "linear"])
def test_evaluations_are_counted(control: str) -> None:
    class Counting(Quadratic):
        evaluated = 0

        def shifts(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
            self.evaluated += len(weights) * len(prepared.tokens[rows or slice(None)])
            return super().shifts(weights, prepared, rows)

    model = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    model = Counting(model.linear, model.square, model.kept)
    chains = chains_of(model, control=control)
    for _ in chains.blocks():
        pass
    counted = Evaluation(control_variate=control).count(CONFIG.draws)  # type: ignore[arg-type]
    assert model.evaluated == CONFIG.chains * CONTEXTS * sum(counted.values())
    assert set(chains.seconds) == {"sampling", *counted}
    assert all((chains.seconds[part] > 0) == (number > 0) for part, number in counted.items())


def test_settings_that_cannot_be_exact_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs sampler\.method: sgld"):
        chains_of(config=CONFIG.model_copy(update={"method": "rmsprop"}), control="linear")
    with pytest.raises(ValueError, match="base contexts"):
        token_moments(replace(chains_of(control="none"), base=0))
