"""Chi, its parts, the LLC and their standard errors against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from quadratic import Quadratic, random_quadratic
from susceptibilities.chains import Chains
from susceptibilities.control_variate import Estimator
from susceptibilities.estimators import (
    Convention,
    Estimate,
    data_blocks,
    estimate_checkpoint,
    mixture_differences,
)
from susceptibilities.posterior import SamplerConfig
from susceptibilities.sampling import sample_component

BASE, PROBES, CHOSEN = 20, 2, np.array([9, 19])
CONTEXTS = BASE + PROBES * len(CHOSEN)
CONFIG = SamplerConfig(
    n_beta=8,
    localization=20,
    step_size=0.02,
    chains=4,
    burn_in=40,
    draws=60,
    thinning=2,
    batch=BASE,
)
PARTS = {"full": [0, 1, 2, 3, 4], "0:0": [1, 2]}


def run(seed: int, config: SamplerConfig = CONFIG, control: bool = False) -> xr.Dataset:
    """A loss store of the quadratic model, as `sample_checkpoint` would write it."""
    parts = []
    tokens = torch.arange(CONTEXTS)[:, None]
    for name, kept in PARTS.items():
        model = random_quadratic(CONTEXTS, 5, kept)
        pool_star = torch.zeros(BASE, dtype=torch.float64)
        parts.append(
            sample_component(
                Chains(
                    model,
                    model.prepare(tokens),
                    model.prepare(tokens[:BASE]),
                    pool_star,
                    config,
                    seed,
                    name,
                    BASE,
                    "mean" if control else "none",
                )
            )
        )
    data = xr.concat(parts, "component")
    for name in ("shift", "control") if control else ("shift",):
        values, lead = data[name].values, data[name].dims[:-1]
        probe = values[..., BASE:].reshape(*values.shape[:-1], PROBES, len(CHOSEN))
        data[f"base_{name}"] = ((*lead, "base_context"), values[..., :BASE])
        data[f"probe_{name}"] = ((*lead, "probe", "probe_context"), probe)
    data = data.assign_coords(probe_context=CHOSEN)
    data.attrs = {
        "component": list(PARTS),
        "probe": ["a", "b"],
        "step": 0,
        "sampler": config.model_dump(),
    }
    return data


def experiments(count: int, estimator: Estimator = "plain") -> list[Estimate]:
    """Independent experiments of four chains each: chains of one long row, in groups."""
    many = run(0, CONFIG.model_copy(update={"chains": 4 * count}), estimator != "plain")
    groups = [many.isel(chain=slice(4 * i, 4 * i + 4)) for i in range(count)]
    return [estimate_checkpoint(group, estimator) for group in groups]


def exact(config: SamplerConfig = CONFIG) -> dict[str, np.ndarray]:
    """Exact parts (component, probe) and mean g (component,) of SGLD's stationary law."""
    base, probe_rows = np.arange(BASE), np.arange(BASE, CONTEXTS).reshape(PROBES, -1)

    def differences(values: np.ndarray) -> np.ndarray:
        return np.array([(values[r].sum() - values[CHOSEN].sum()) / BASE for r in probe_rows])

    found: dict[str, list] = {"mean_g": [], "covariance": [], "mean_d": []}
    for kept in PARTS.values():
        model = random_quadratic(CONTEXTS, 5, kept)
        mean, cov = model.stationary(list(base), config)
        every = np.arange(CONTEXTS)
        found["mean_g"].append(model.expectation(base, mean, cov).mean())
        found["mean_d"].append(differences(model.expectation(every, mean, cov)))
        found["covariance"].append(-differences(model.covariance(base, every, mean, cov)))
    out = {name: np.array(values) for name, values in found.items()}
    g = out["mean_g"][:, None]
    out["rank_one"], out["mean_shift"] = g * out["mean_d"][0], -g * out["mean_d"]
    out["chi"] = out["covariance"] + out["rank_one"] + out["mean_shift"]
    return out


@pytest.mark.parametrize("estimator", ["plain", "control_variate"])
def test_expectations_agree_with_the_closed_form_and_errors_cover_it(estimator: Estimator) -> None:
    truth = exact()
    estimates = experiments(150, estimator)
    quantile = stats.t.ppf(0.975, CONFIG.chains - 1)
    for form in ("chi", "covariance", "rank_one", "mean_shift"):
        values = np.stack([e.value[form] for e in estimates])
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        # The parts carry the known bias of products of means from finite chains; chi's second
        # factor comes from other chains, so chi itself has none for a restricted component.
        bias = 0.02 * np.abs(truth[form]) if form == "chi" else 0.06 * np.abs(truth[form])
        assert (np.abs(values.mean(0) - truth[form]) < 4 * error + bias)[1].all(), form
        se = np.stack([e.se_chain[form] for e in estimates])
        covered = (np.abs(values - truth[form]) < quantile * se)[:, 1].mean()
        assert 0.90 < covered < 0.985, (form, covered)


@pytest.mark.parametrize("estimator", ["plain", "control_variate"])
def test_learning_coefficient_of_the_quadratic(estimator: Estimator) -> None:
    truth = CONFIG.n_beta * exact()["mean_g"]
    llc = np.stack([e.llc for e in experiments(40, estimator)])
    assert (np.abs(llc.mean(0) - truth) < 4 * llc.std(0) / np.sqrt(40) + 0.01 * truth).all()


def test_parts_add_up_and_conventions_differ_as_named() -> None:
    estimate = estimate_checkpoint(run(0))
    parts = estimate.value
    assert np.allclose(
        parts["chi"], parts["covariance"] + parts["rank_one"] + parts["mean_shift"], rtol=1e-12
    )
    assert np.array_equal(Convention().apply(parts, 8), parts["chi"])
    assert np.array_equal(Convention(sign="plus").apply(parts, 8), -parts["chi"])
    assert np.array_equal(Convention(scale="n_beta").apply(parts, 8), 8 * parts["chi"])
    same = Convention(second_factor="same_chain").apply(parts, 8)
    assert np.array_equal(same, parts["covariance"])
    # For the unrestricted component both factors are the same chains.
    assert np.allclose(parts["chi"][0], parts["covariance"][0], rtol=1e-9)


def test_equation_41_literally() -> None:
    losses = run(3)
    base, probe = losses["base_shift"].values, losses["probe_shift"].values
    mixed = base.copy()
    mixed[..., CHOSEN] = probe[..., 0, :]
    g, d = base.mean(-1), mixed.mean(-1) - base.mean(-1)
    chi = -(g[1] * d[1]).mean() + g[1].mean() * d[0].mean()
    assert estimate_checkpoint(losses).value["chi"][1, 0] == pytest.approx(chi, rel=1e-10)


def test_a_probe_that_is_the_training_set_has_no_susceptibility() -> None:
    losses = run(1)
    same = losses["base_shift"].values[..., CHOSEN]
    losses["probe_shift"].values[..., 0, :] = same
    estimate = estimate_checkpoint(losses)
    for form in estimate.value:
        assert np.abs(estimate.value[form][:, 0]).max() < 1e-15
        assert estimate.se_chain[form][:, 0].max() < 1e-15


def test_an_unhealthy_chain_is_left_out_and_too_few_are_an_error() -> None:
    losses = run(2)
    clean = estimate_checkpoint(losses.isel(chain=[0, 1, 2]))
    losses["died"].values[:, 3] = 7
    losses["base_shift"].values[:, 3] = np.nan
    estimate = estimate_checkpoint(losses)
    assert estimate.chains.tolist() == [3, 3]
    assert np.allclose(estimate.value["chi"], clean.value["chi"], rtol=1e-12)
    losses["died"].values[1, :3] = 7
    with pytest.raises(ValueError, match=r"component 0:0: 0 healthy chains, 2 needed; diverged"):
        estimate_checkpoint(losses)


def test_blocks_hold_one_replaced_row_each() -> None:
    blocks = data_blocks(25, np.array([9, 19]))
    assert blocks.tolist() == [0] * 10 + [1] * 15
    rng = np.random.default_rng(0)
    base, probe = rng.normal(size=(3, 25)), rng.normal(size=(3, 2, 2))
    g, d = mixture_differences(base, probe, np.array([9, 19]), (blocks != 1).astype(float))
    assert np.allclose(g, base[:, :10].mean(-1))
    assert np.allclose(d, (probe[..., 0] - base[:, None, 9]) / 10)


def test_data_error_covers_new_texts() -> None:
    """The block jackknife's error is the scatter over independent sets of contexts."""
    rng = np.random.default_rng(0)
    positions = np.arange(9, 200, 10)
    values, errors = [], []
    for _ in range(200):
        base, probe = rng.normal(size=(1, 200)), 1 + rng.normal(size=(1, 1, 20))
        blocks = data_blocks(200, positions)
        left_out = [
            mixture_differences(base, probe, positions, (blocks != b).astype(float))[1][0, 0]
            for b in range(20)
        ]
        errors.append(np.sqrt(19 * np.var(left_out)))
        values.append(mixture_differences(base, probe, positions)[1][0, 0])
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.12)


def test_full_is_required() -> None:
    losses = run(0).isel(component=[1])
    losses.attrs["component"] = ["0:0"]
    with pytest.raises(ValueError, match="unrestricted"):
        estimate_checkpoint(losses)


def test_quadratic_gradient_is_the_derivative() -> None:
    model: Quadratic = random_quadratic(6, 4, [0, 1, 2, 3])
    prepared = model.prepare(torch.arange(6)[:, None])
    w = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    loss, gradient = model.loss_and_gradient(w, prepared, torch.arange(6)[None])
    assert torch.allclose(torch.autograd.grad(loss.sum(), w)[0], gradient)
