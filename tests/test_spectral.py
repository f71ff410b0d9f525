"""The covariance part without sampling noise: exact where it is known, and against sampling."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from quadratic import Quadratic, random_quadratic
from susceptibilities.components import component, component_names
from susceptibilities.hessian import ExactLossSet, LossSet, loss_set
from susceptibilities.losses import ComponentLosses, PlainLosses, component_losses
from susceptibilities.models.attention_only import AttentionOnly, AttentionOnlyConfig
from susceptibilities.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from susceptibilities.models.shapes import Shape, new_model
from susceptibilities.models.transformer import Transformer
from susceptibilities.posterior import Sampler, SamplerConfig
from susceptibilities.spectral import (
    Neighborhood,
    Terms,
    displaced_mean,
    loss_spectrum,
    spectral_terms,
)
from susceptibilities.spectral_config import SpectralConfig
from susceptibilities.spectral_errors import averaged_terms, remainder, shared_variance
from susceptibilities.spectrum import Law, lanczos

BASE, TOKENS, SIZE = 20, 6, 5
CONFIG = SamplerConfig(
    n_beta=8,
    localization=10,
    step_size=0.05,
    chains=4,
    burn_in=100,
    draws=60,
    thinning=2,
    batch=BASE,
)
PROBES = 400
ALL = SpectralConfig(steps=150, pairs=150)

SHAPES: dict[str, Shape] = {
    "attention_only": AttentionOnlyConfig(
        n_layers=2, n_heads=2, d_model=8, d_head=4, n_ctx=6, d_vocab=11
    ),
    "gpt_neox": GPTNeoXConfig(
        n_layers=2, n_heads=2, d_model=8, d_head=4, n_ctx=6, d_vocab=11, d_mlp=7, rotary_pct=0.5
    ),
}
# One of each kind, and both layers: what is above a component differs.
CASES = [
    (kind, name)
    for kind, shape in SHAPES.items()
    for name in (*component_names(shape), "full")
    if not name.endswith(":0") or name == "mlp:0"
]


@cache
def small_model(kind: str) -> Transformer:
    """In float64, with biases and LayerNorms off their initial values too."""
    model, rng = new_model(SHAPES[kind]), torch.Generator().manual_seed(0)
    if isinstance(model, AttentionOnly):
        model.initialise(rng, sinusoids=True)
    else:
        assert isinstance(model, GPTNeoX)
        model.initialise(rng)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    return model.double().eval()


def of(name: str = "1:1", kind: str = "attention_only") -> tuple[ComponentLosses, Tensor, Tensor]:
    """A component's losses, a loss set and tokens."""
    model = small_model(kind)
    losses = component_losses(model, component(name, SHAPES[kind], dict(model.named_parameters())))
    rng = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, SHAPES[kind].d_vocab, (22, SHAPES[kind].n_ctx), generator=rng)
    return losses, tokens[:12], tokens[12:]


def plain(losses: ComponentLosses, kind: str) -> PlainLosses:
    return PlainLosses(small_model(kind), losses.component)


def terms_of(
    losses: ComponentLosses,
    base: Tensor,
    tokens: Tensor,
    law: Law,
    config: SpectralConfig = ALL,
) -> Terms:
    gradient, spectrum = loss_spectrum(loss_set(losses, base), losses.w_star, config.steps)
    return spectral_terms(spectrum, gradient, losses, losses.prepare(tokens), law, config)


def oracle(kept: list[int]) -> tuple[Quadratic, Tensor, Tensor]:
    rows = torch.arange(BASE + TOKENS)[:, None]
    return random_quadratic(BASE + TOKENS, SIZE, kept), rows[:BASE], rows[BASE:]


def expected(model: Quadratic, law: str) -> dict[str, np.ndarray]:
    """What the closed form gives for the tokens."""
    base, tokens = np.arange(BASE), np.arange(BASE, BASE + TOKENS)
    mean, cov = model.stationary(base.tolist(), CONFIG)
    if law == "posterior":
        h = model.h[:BASE].mean(0).numpy()
        cov = np.linalg.inv(CONFIG.n_beta * h + CONFIG.localization * np.eye(len(h)))
    variance = model.covariance(base, base, mean, cov).mean()
    covariance = -(model.covariance(base, tokens, mean, cov) - variance)
    return {
        "covariance": covariance,
        "shift": model.expectation(tokens, mean, cov),
        "mean_loss": model.expectation(base, mean, cov).mean(),
    }


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4], [1, 2], [3]])
@pytest.mark.parametrize("law", ["posterior", "sgld"])
def test_exact_on_the_quadratic_oracle(kept: list[int], law: str) -> None:
    model, base, tokens = oracle(kept)
    terms = terms_of(model, base, tokens, Law.of(CONFIG, law))
    truth = expected(model, law)
    np.testing.assert_allclose(terms.covariance, truth["covariance"], rtol=1e-6, atol=1e-12)
    assert terms.mean_loss == pytest.approx(truth["mean_loss"], rel=1e-6)
    spread = 0.5 * terms.law.variance(terms.eigenvalues) @ terms.curvature
    np.testing.assert_allclose(terms.shift + spread, truth["shift"], rtol=1e-6, atol=1e-12)
    # A quadratic's curvature is the same at every step and everywhere.
    loss, prepared = loss_set(model, base), model.prepare(tokens)
    gradient = loss.gradient(model.w_star)
    averaged = averaged_terms(terms, gradient, loss, loss, model, prepared, len(kept), draws=2)
    np.testing.assert_allclose(averaged.linear, np.stack([terms.linear] * 2), rtol=1e-6)
    np.testing.assert_allclose(averaged.quadratic, np.stack([terms.quadratic] * 2), rtol=1e-6)
    np.testing.assert_allclose(averaged.own, terms.eigenvalues, rtol=1e-6)
    assert averaged.variance == pytest.approx(terms.variance, rel=1e-6)
    assert averaged.evaluations == 4 * (2 * len(kept) + 3)
    assert terms.evaluations == 2 * len(terms.pairs) + 3


def test_the_gradient_may_lie_outside_the_span() -> None:
    """Few Lanczos steps from another gradient: what lies outside is taken as flat."""
    model, base, tokens = oracle([0, 1, 2, 3, 4])
    flat = replace(model, square=0 * model.square)
    law = Law.of(CONFIG, "posterior")
    gradient = loss_set(flat, base[:7]).gradient(flat.w_star)
    start = torch.tensor([1.0, 2, 0, 0, 0]).double()
    spectrum = lanczos(lambda v: 0 * v, start, 2)
    terms = spectral_terms(spectrum, gradient, flat, flat.prepare(tokens), law, ALL)
    other = loss_set(flat, base).gradient(flat.w_star)
    terms = terms.with_gradient(other, flat, flat.prepare(tokens))
    truth = expected(flat, "posterior")
    np.testing.assert_allclose(terms.covariance, truth["covariance"], rtol=1e-6, atol=1e-12)
    assert terms.mean_loss == pytest.approx(truth["mean_loss"], rel=1e-9)
    mean = model.stationary(list(range(BASE)), CONFIG)[0]
    full = terms_of(model, base, tokens, law)
    assert full.distance == pytest.approx(np.linalg.norm(mean), rel=1e-9)
    found = displaced_mean(full.spectrum, law, loss_set(model, base).gradient(model.w_star))
    np.testing.assert_allclose(found, mean, rtol=1e-9)


def test_the_pairs_left_out_are_what_the_remainder_estimates() -> None:
    """Many random directions; n_beta lambda far below gamma, as the remainder assumes."""
    model, base, tokens = oracle([0, 1, 2, 3, 4])
    law = Law(1e-3, 10.0)
    loss, prepared = loss_set(model, base), model.prepare(tokens)
    whole = terms_of(model, base, tokens, law)
    part = terms_of(model, base, tokens, law, SpectralConfig(steps=5, pairs=2))
    found = remainder(part, torch.zeros(SIZE).double(), loss, model, prepared, probes=PROBES)
    error = found.quadratic.std(0) / np.sqrt(PROBES)
    missing = whole.quadratic - part.quadratic
    assert (np.abs(found.quadratic.mean(0) - missing) < 4 * error + 1e-3 * np.abs(missing)).all()
    assert np.abs(found.completed(part) - whole.covariance).max() < (
        4 * error.max() + 4 * found.variance.std() / np.sqrt(PROBES) + 1e-3 * missing.max()
    )
    value, se = shared_variance(found.quadratic, np.arange(PROBES))
    assert abs(value - missing.var()) < 4 * se + 2e-3 * missing.var()
    spread = 0.5 * law.variance(whole.eigenvalues) @ whole.curvature
    kept = 0.5 * law.variance(part.eigenvalues) @ part.curvature
    rest = whole.mean_loss - part.mean_loss
    assert abs(found.loss.mean() - rest) < 4 * found.loss.std() / np.sqrt(PROBES) + 1e-3 * rest
    error = found.spread.std(0) / np.sqrt(PROBES)
    assert (np.abs(found.spread.mean(0) - (spread - kept)) < 4 * error + 1e-3 * spread).all()
    # Nothing is left out where all pairs are used.
    nothing = remainder(whole, torch.zeros(SIZE).double(), loss, model, prepared, probes=3)
    assert not nothing.quadratic.any() and not nothing.loss.any() and not nothing.evaluations


def test_variance_that_estimates_share_is_measured_without_their_noise() -> None:
    rng = np.random.default_rng(0)
    signal, groups = rng.normal(size=500), np.repeat(np.arange(200), 2)
    own = 2 * rng.normal(size=(200, 500))[groups]  # noise of a group, common to its estimates
    values = signal + own + 3 * rng.normal(size=(400, 500))
    value, se = shared_variance(values, groups)
    assert abs(value - signal.var()) < 4 * se and se < 0.1
    assert shared_variance(values[:4], groups[:4])[0] == pytest.approx(value, abs=2)
    with pytest.raises(ValueError, match="2 groups"):
        shared_variance(values[:2], groups[:2])


def test_lanczos_finds_all_pairs_also_where_the_start_misses_some() -> None:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    values = np.array([5.0, 5.0, 3.0, -2.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0, -0.1, 2.0])
    matrix = torch.from_numpy(basis @ np.diag(values) @ basis.T)
    for start in (torch.from_numpy(basis[:, 2] + basis[:, 3]), torch.zeros(12).double()):
        found = lanczos(lambda v: matrix @ v, start, 30)
        np.testing.assert_allclose(np.sort(found.values), np.sort(values), atol=1e-10)
        identity = (found.vectors @ found.vectors.T).numpy()
        np.testing.assert_allclose(identity, np.eye(12), atol=1e-12)
        inside, outside = found.coordinates(start)
        np.testing.assert_allclose(found.combine(inside), start, atol=1e-10)
        assert outside.norm() < 1e-12
    narrow = lanczos(lambda v: matrix.float() @ v, torch.ones(12), 12)
    np.testing.assert_allclose(np.sort(narrow.values), np.sort(values), atol=1e-5)
    few = lanczos(lambda v: matrix @ v, torch.from_numpy(rng.normal(size=12)), 5)
    exact = (matrix @ few.vectors.T).T - torch.from_numpy(few.values)[:, None] * few.vectors
    np.testing.assert_allclose(exact.norm(dim=1), few.residuals, rtol=1e-8, atol=1e-10)
    vector = torch.from_numpy(rng.normal(size=12))
    whole = lanczos(lambda v: matrix @ v, vector, 12)
    root = whole.apply(lambda x: np.sqrt(6 + x), vector)
    applied = torch.from_numpy(basis @ np.diag(np.sqrt(6 + values)) @ basis.T) @ vector
    np.testing.assert_allclose(root, applied, atol=1e-9)


def hessian_of(losses: PlainLosses, tokens: Tensor) -> Tensor:
    """Entry by entry, through the plain model."""

    def mean(weights: Tensor) -> Tensor:
        return losses.token_losses(weights, tokens).mean()

    # Not torch.func's, which batches second derivatives: those of layer_norm in its weight come
    # out wrong then (torch 2.13).
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.as_tensor(torch.autograd.functional.hessian(mean, losses.w_star))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_pairs_gradient_and_terms_of_every_component_are_autograds(kind: str, name: str) -> None:
    losses, base, tokens = of(name, kind)
    star, oracle_losses = losses.w_star, plain(losses, kind)
    loss = loss_set(losses, base)
    assert isinstance(loss, ExactLossSet)
    hessian = hessian_of(oracle_losses, base)
    vector = torch.randn(len(star), generator=torch.Generator().manual_seed(1)).double()
    np.testing.assert_allclose(loss.product(star, vector), hessian @ vector, atol=1e-11)
    # What needs no more than a gradient: the same up to the step's square.
    differences = LossSet(oracle_losses, base, step=1e-4).product(star, vector)
    np.testing.assert_allclose(differences, hessian @ vector, atol=1e-5)

    gradient, spectrum = loss_spectrum(loss, star, min(len(star), ALL.pairs))
    values, vectors = np.linalg.eigh(hessian.numpy())
    order = np.argsort(-np.abs(values))
    np.testing.assert_allclose(spectrum.values[:6], values[order][:6], rtol=1e-7, atol=1e-10)
    _, exact_gradient = oracle_losses.loss_and_gradient(
        star[None], oracle_losses.prepare(base), torch.arange(12)[None]
    )
    np.testing.assert_allclose(gradient, exact_gradient[0], atol=1e-12)

    if len(star) > ALL.pairs:
        return
    # So flat around w* that the losses are quadratics: the closed form with explicit Hessians.
    law = Law(1e4, 1e7)
    terms = spectral_terms(spectrum, gradient, losses, losses.prepare(tokens), law, ALL)
    covariance = vectors / (law.localization + law.n_beta * values) @ vectors.T
    mean = -law.n_beta * covariance @ exact_gradient[0].numpy()
    slope = exact_gradient[0].numpy() + hessian.numpy() @ mean
    for row in (0, 7):
        one = hessian_of(oracle_losses, tokens[row : row + 1]).numpy()
        own = oracle_losses.loss_and_gradient(
            star[None], oracle_losses.prepare(tokens), torch.tensor([[row]])
        )[1][0].numpy()
        linear = slope @ covariance @ (own + one @ mean)
        quadratic = 0.5 * np.trace(hessian.numpy() @ covariance @ one @ covariance)
        found = slice(row * 5, row * 5 + 5)
        assert terms.linear[found].mean() == pytest.approx(linear, rel=1e-4, abs=1e-12)
        assert terms.quadratic[found].mean() == pytest.approx(quadratic, rel=2e-2, abs=1e-16)


def test_differences_of_token_losses_are_the_derivatives() -> None:
    losses, _, tokens = of()
    rng = torch.Generator().manual_seed(7)
    direction = torch.randn(2, len(losses.w_star), generator=rng, dtype=torch.float64)
    direction /= direction.norm(dim=1, keepdim=True)
    center = 0.05 * direction[1]
    around = Neighborhood(losses, losses.prepare(tokens), center)
    found = around.differences(direction[:1], np.array([3e-3]))
    at, oracle_losses = losses.w_star + center, plain(losses, "attention_only")
    for token in (0, 7, 23):

        def one(weights: Tensor, token=token) -> Tensor:
            return oracle_losses.token_losses(weights, tokens).flatten()[token]

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            slope = torch.func.grad(one)(at)
            product = torch.autograd.functional.hvp(one, at, direction[0])[1]
        assert found.second[0, token] == pytest.approx(
            float(direction[0] @ torch.as_tensor(product)), abs=3e-5
        )
        assert found.first[0, token] == pytest.approx(float(slope @ direction[0]), abs=1e-5)
        assert found.shift[token] == pytest.approx(float(one(at) - one(losses.w_star)), abs=1e-12)


def sampled(
    losses: ComponentLosses, base: Tensor, tokens: Tensor, config: SamplerConfig
) -> tuple[np.ndarray, np.ndarray]:
    """-Cov(L_n, l_i - L_n) of full-batch chains, and its standard error over chains."""
    pool, evaluated = losses.prepare(base), losses.prepare(torch.cat([base, tokens]))

    def gradient(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        everything = torch.arange(len(base)).expand(len(weights), -1)
        return losses.loss_and_gradient(weights, pool, everything)

    run = Sampler(gradient, losses.w_star, len(base), config, 0, "spectral")
    run.advance(config.draws)
    values = torch.stack([losses.shifts(draws, evaluated) for draws in run.draws])
    g = values[:, :, : len(base)].mean((2, 3))
    y = values[:, :, len(base) :].flatten(2) - g[..., None]
    y, g = y - y.mean((0, 1)), g - g.mean()
    chains = -(g[..., None] * y).mean(1)  # (chain, token)
    return chains.mean(0).numpy(), (chains.std(0) / len(chains) ** 0.5).numpy()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("attention_only", "1:1"), ("attention_only", "unembed"), ("gpt_neox", "mlp:0")],
)
def test_agrees_with_long_chains_of_sgld(kind: str, name: str) -> None:
    """Both terms together, in float64, where discretization widens the law by a seventh: 2,000
    draws, whose standard error is an eighth of a typical value."""
    losses, base, tokens = of(name, kind)
    config = SamplerConfig(
        n_beta=1000,
        localization=3000,
        step_size=1 / 6000,
        chains=200,
        burn_in=20,
        draws=10,
        thinning=4,
        batch=len(base),
    )
    terms = terms_of(losses, base, tokens, Law.of(config, "sgld"))
    value, se = sampled(losses, base, tokens, config)
    assert np.sqrt(np.square(se).mean()) < 0.15 * value.std()
    assert (np.abs(value - terms.covariance) < 4.5 * se).all()
    # The errors of the tokens are not independent, so their mean square scatters.
    assert 0.1 < np.square((value - terms.covariance) / se).mean() < 2.5
    assert np.corrcoef(value, terms.covariance)[0, 1] > 0.95
    # Without the widening by the step it is not the same.
    narrow = terms_of(losses, base, tokens, Law.of(config, "posterior"))
    assert (
        np.square((value - narrow.covariance) / se).mean()
        > np.square((value - terms.covariance) / se).mean()
    )


def drawn(
    terms: Terms, losses: ComponentLosses, base: Tensor, tokens: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Losses at ``count`` draws of the Gaussian, and at their mirror images about the mean:
    L_n (2, draw), tokens (2, draw, token)."""
    rng = torch.Generator().manual_seed(3)
    normal = torch.randn(count, len(losses.w_star), generator=rng, dtype=torch.float64)
    spread = torch.from_numpy(np.sqrt(terms.law.variance(terms.spectrum.values)))
    moves = (normal * spread) @ terms.spectrum.vectors
    prepared = losses.prepare(torch.cat([base, tokens]))
    gradient = loss_set(losses, base).gradient(losses.w_star)
    center = losses.w_star + displaced_mean(terms.spectrum, terms.law, gradient)
    both = torch.cat([center + moves, center - moves]).split(1000)
    values = torch.cat([losses.shifts(some, prepared) for some in both]).unflatten(0, (2, -1))
    return values[:, :, : len(base)].mean((2, 3)), values[:, :, len(base) :].flatten(2)


def covariance(g: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Cov(g, y) of independent draws and its standard error, (token,)."""
    products = (g - g.mean())[:, None] * (y - y.mean(0))
    return products.mean(0).numpy(), (products.std(0) / len(products) ** 0.5).numpy()


def test_the_quadratic_term_agrees_with_draws_of_the_gaussian() -> None:
    """A draw's mean with its mirror image has no linear term, which would hide it."""
    losses, base, tokens = of()
    terms = terms_of(losses, base, tokens, Law(1000.0, 10_000.0))
    g, y = drawn(terms, losses, base, tokens, 8000)
    value, se = covariance(g.mean(0), y.mean(0))
    assert (np.abs(value - terms.quadratic) < 4 * se).all()
    assert np.corrcoef(value, terms.quadratic)[0, 1] > 0.9


def test_averaged_derivatives_carry_further_than_those_at_one_point() -> None:
    """Displacements at which the MLP's losses are no quadratics: the error is still there, but
    smaller."""
    losses, base, tokens = of("mlp:0", "gpt_neox")
    law, prepared = Law(10.0, 100.0), losses.prepare(tokens)
    terms = terms_of(losses, base, tokens, law)
    g, y = drawn(terms, losses, base, tokens, 4000)
    value, se = covariance(g[0], y[0])
    gradient, loss = loss_set(losses, base).gradient(losses.w_star), loss_set(losses, base)
    found = averaged_terms(terms, gradient, loss, loss, losses, prepared, 40, draws=4)
    rest = terms.quadratic - terms.weights[:40] @ terms.curvature[:40]
    averaged = (found.linear + found.quadratic).mean(0) + rest
    point = terms.linear + terms.quadratic
    error = [np.square(value - estimate).mean() for estimate in (point, averaged)]
    assert error[0] > 9 * np.square(se).mean() and error[1] < 0.5 * error[0]


def test_where_there_is_no_gaussian_it_says_so() -> None:
    losses, base, tokens = of()
    with pytest.raises(ValueError, match="raise localization"):
        terms_of(losses, base, tokens, Law(1000.0, 10.0))
    with pytest.raises(ValueError, match="lower step_size"):
        terms_of(losses, base, tokens, Law(10.0, 1000.0, 5e-3))
    with pytest.raises(ValueError, match="not known in closed form"):
        Law.of(CONFIG.model_copy(update={"method": "rmsprop"}), "sgld")


def test_a_larger_set_gives_the_gradient_alone() -> None:
    losses, base, tokens = of()
    law, prepared = Law(300.0, 3000.0), losses.prepare(tokens)
    own = terms_of(losses, base[:6], tokens, law)
    gradient = loss_set(losses, base, keep=False).gradient(losses.w_star)
    found = own.with_gradient(gradient, losses, prepared)
    np.testing.assert_array_equal(found.quadratic, own.quadratic)
    start = spectral_terms(own.spectrum, gradient, losses, prepared, law, ALL)
    np.testing.assert_allclose(found.linear, start.linear, rtol=1e-9)
    np.testing.assert_allclose(found.shift, start.shift, rtol=1e-9, atol=1e-14)
    assert found.variance == pytest.approx(start.variance, rel=1e-9)
    assert found.evaluations == own.evaluations + 3
    assert np.corrcoef(found.linear, own.linear)[0, 1] < 0.99
