"""The control variate: exact where it must be, unbiased, and turned down where it is not."""

from __future__ import annotations

from functools import cache, reduce
from operator import add

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from controlled_chains import BASE, Drawn, linear, loss_store, sgld, token_shard
from quadratic import Quadratic, random_quadratic
from susceptibilities.control_sums import ProductSums, VarianceSums
from susceptibilities.control_variate import (
    CONTROLLED,
    LEVEL,
    PLAIN,
    Check,
    Choice,
    Offset,
    check,
    coefficients,
    estimator_table,
    pool,
)
from susceptibilities.estimators import FORMS, estimate_checkpoint
from susceptibilities.moments import Moments, merge_all
from susceptibilities.posterior import SamplerConfig
from susceptibilities.token_estimates import TokenMoments, estimate_tokens

TOKENS = 6
PARTS = {"full": [0, 1, 2, 3, 4], "0:0": [1, 2], "1:0": [3]}
CONFIG = SamplerConfig(
    n_beta=8,
    localization=40,
    step_size=0.01,
    chains=4,
    burn_in=0,
    draws=8,
    thinning=2,
    batch=BASE,
)
GROUPS = 150


def drawn(
    config: SamplerConfig, seed: int = 0, make: type | object = random_quadratic, **how: bool
) -> dict[str, Drawn]:
    models: dict[str, Quadratic] = {
        name: make(BASE + TOKENS, 5, kept)  # type: ignore[operator]
        for name, kept in PARTS.items()
    }
    return {
        name: sgld(model, config, seed=100 * seed + place, **how)
        for place, (name, model) in enumerate(models.items())
    }


@cache
def many() -> xr.Dataset:
    """Independent experiments of four chains each, one after another."""
    config = CONFIG.model_copy(update={"chains": 4 * GROUPS})
    return token_shard(drawn(config))


def groups(data: xr.Dataset) -> list[xr.Dataset]:
    return [data.isel(chain=slice(4 * i, 4 * i + 4)) for i in range(GROUPS)]


def exact() -> dict[str, np.ndarray]:
    """Exact parts (component, token) of SGLD's stationary law."""
    base, tokens = np.arange(BASE), np.arange(BASE, BASE + TOKENS)
    g, dl, covariance = [], [], []
    for kept in PARTS.values():
        model = random_quadratic(BASE + TOKENS, 5, kept)
        law = model.stationary(base.tolist(), CONFIG)
        g.append(model.expectation(base, *law).mean())
        dl.append(model.expectation(tokens, *law) - g[-1])
        variance = model.covariance(base, base, *law).mean()
        covariance.append(-(model.covariance(base, tokens, *law) - variance))
    mean_g, mean_dl = np.array(g)[:, None], np.array(dl)
    parts = {
        "covariance": np.array(covariance),
        "rank_one": mean_g * mean_dl[0],
        "mean_shift": -mean_g * mean_dl,
    }
    return {"chi": sum(parts.values(), np.zeros(())), **parts}


def test_a_linear_loss_has_no_noise_left() -> None:
    """Corrected means are -(n_beta / localization) b_i . b, chain by chain; whatever the start."""
    for stationary in (True, False):
        parts = drawn(CONFIG, make=linear, stationary=stationary)
        found = TokenMoments.of([token_shard(parts)], CONTROLLED)
        assert found.corrected is not None
        for place, made in enumerate(parts.values()):
            b = made.model.b.numpy()
            expected = -CONFIG.n_beta / CONFIG.localization * b @ b[:BASE].mean(0)
            g = expected[:BASE].mean()
            np.testing.assert_allclose(found.corrected.mean_x[place], g, rtol=1e-10)
            np.testing.assert_allclose(
                found.corrected.mean_y[place],
                np.tile(expected[BASE:] - g, (4, 1)),
                rtol=1e-9,
                atol=1e-12,
            )
        assert (found.check.ratio > 1e15).all()


def test_unbiased_with_errors_that_cover_and_less_noise() -> None:
    truth = exact()
    quantile = stats.t.ppf(0.975, 3)
    spread = {}
    for estimator in (PLAIN, CONTROLLED):
        found = [estimate_tokens(TokenMoments.of([g], estimator)) for g in groups(many())]
        for form in FORMS:
            values = np.stack([data[form].values for data in found])
            error = values.std(0, ddof=1) / np.sqrt(GROUPS)
            spread[estimator, form] = np.square(values.std(0, ddof=1)[1:]).sum()
            if form == "chi":  # the parts are products of means over finite chains
                assert (np.abs(values.mean(0) - truth[form]) < 4 * error)[1:].all(), estimator
            se = np.stack([data[f"{form}_se"].values for data in found])
            if form in ("chi", "mean_shift"):
                covered = (np.abs(values - truth[form]) < quantile * se)[:, 1:].mean()
                assert 0.88 < covered < 0.985, (estimator, form, covered)
    assert spread[PLAIN, "mean_shift"] > 4 * spread[CONTROLLED, "mean_shift"]
    assert spread[PLAIN, "rank_one"] > 4 * spread[CONTROLLED, "rank_one"]
    assert spread[PLAIN, "chi"] > 2 * spread[CONTROLLED, "chi"]


def test_the_ratio_is_that_of_the_scatter_over_experiments() -> None:
    made = [TokenMoments.of([g], CONTROLLED) for g in groups(many())]
    found = [m.check for m in made]
    plain = np.concatenate([m.moments.mean_y for m in made], 1).var(1).sum(1)
    corrected = np.concatenate([m.corrected.mean_y for m in made if m.corrected], 1).var(1).sum(1)
    for name, expected in (("plain", plain), ("corrected", corrected)):
        mean = np.mean([getattr(c, name) for c in found], 0)
        np.testing.assert_allclose(mean, expected / 4, rtol=0.12)
    # One factor of its own error either way holds the ratio about two times in three.
    logs = np.log([c.ratio for c in found]) - np.log(plain / corrected)
    inside = np.abs(logs) < np.log([c.ratio_factor for c in found])
    assert 0.45 < inside.mean() < 0.95


def test_coefficients_are_least_squares_on_the_other_chains() -> None:
    rng = np.random.default_rng(0)
    control = rng.normal(size=(2, 5, 40))
    values = 0.6 * control + 0.3 * rng.normal(size=control.shape) + 2.0
    healthy = np.ones((2, 5), dtype=bool)
    healthy[1, 3] = False
    values[1, 3] = control[1, 3] = np.nan
    found = coefficients(values, control, healthy)
    for place, chain in ((0, 2), (1, 0)):
        rest = [c for c in np.flatnonzero(healthy[place]) if c != chain]
        x, y = (a[place][rest] - a[place][rest].mean(0) for a in (control, values))
        slope = np.linalg.lstsq(x.ravel()[:, None], y.ravel())[0][0]
        assert found[place, chain] == pytest.approx(slope, rel=1e-10)
    assert np.abs(found[0] - 0.6).max() < 0.2
    changed = values.copy()
    changed[0, 2] = 7.0  # a chain's own values do not enter
    assert coefficients(changed, control, healthy)[0, 2] == found[0, 2]
    np.testing.assert_array_equal(coefficients(values[:, :2], control[:, :2], healthy[:, :2]), 1)
    np.testing.assert_array_equal(coefficients(values, 0 * control, healthy), 1)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 1000))
def test_the_choice_does_not_depend_on_how_entries_are_divided(sizes: list[int], seed: int) -> None:
    """`check` of all entries at once is the oracle; one chain has no numbers at all."""
    rng, total = np.random.default_rng(seed), sum(sizes)
    control = rng.normal(size=(3, 5, total))
    values = rng.uniform(-1, 1, (3, 1, 1)) * control + rng.normal(size=control.shape) + 5.0
    healthy = np.ones((3, 5), dtype=bool)
    healthy[1, 3] = False
    values[1, 3] = control[1, 3] = np.nan
    observable = rng.normal(size=(3, 5))
    parts = [slice(end - size, end) for size, end in zip(sizes, np.cumsum(sizes), strict=True)]

    def entries(part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return values[..., part], control[..., part], healthy

    times = reduce(add, (ProductSums.of(*entries(part)) for part in parts)).coefficients()
    np.testing.assert_allclose(times, coefficients(*entries(slice(None))), rtol=1e-7, atol=1e-9)
    sums = reduce(add, (VarianceSums.of(*entries(part), times) for part in parts))
    found, expected = (
        Choice.of(sums, observable, "checked"),
        check(values, control, observable, healthy, times),
    )
    assert found.check is not None and np.array_equal(found.used, expected.helps)
    for name, value in vars(expected).items():
        np.testing.assert_allclose(getattr(found.check, name), value, rtol=1e-9, err_msg=name)


def test_a_loss_that_bends_the_other_way_gets_a_smaller_coefficient() -> None:
    """With coefficient one this variate doubles the noise; with the fitted one it helps."""
    data = groups(many())[0].copy(deep=True)
    for name in ("control_shift", "control_g"):
        data[name].values[:] *= 3.0
    plain = TokenMoments.of([groups(many())[0]], CONTROLLED)
    found = TokenMoments.of([data])
    assert found.estimators == (CONTROLLED,) * 3
    np.testing.assert_allclose(3 * found.check.coefficient, plain.check.coefficient, rtol=1e-10)
    np.testing.assert_allclose(found.check.t, plain.check.t, rtol=1e-10)


def test_a_bias_that_all_components_share_is_seen_in_all_together() -> None:
    rng = np.random.default_rng(0)
    control = rng.normal(size=(12, 6, 50))
    values = control + 0.1 * rng.normal(size=control.shape)
    observable = control.mean(-1)
    healthy = np.ones((12, 6), dtype=bool)
    assert check(values, control, observable, healthy).helps.all()
    shared = observable + 0.9 * observable.std()
    found = check(values, control, shared, healthy)
    assert (np.abs(found.t) < found.bound).all(), "none is beyond its own bound"
    assert found.combined_p < LEVEL and not found.helps.any()
    # One component that is beyond its own bound takes no other with it.
    observable[3] += 100.0
    assert check(values, control, observable, healthy).helps.tolist() == [
        place != 3 for place in range(12)
    ]


def test_an_unbiased_variate_passes_as_often_as_stated() -> None:
    """t over chains of the observable's variate, for chains in their stationary law."""
    found = [TokenMoments.of([g]).check for g in groups(many())]
    t = np.stack([c.t for c in found])
    assert stats.kstest(t.ravel(), stats.t(3).cdf).pvalue > 1e-3
    assert np.allclose(found[0].bound, stats.t.isf(LEVEL / 6, 3))
    sound = [(np.abs(c.t) < c.bound).all() and c.combined_p >= LEVEL for c in found]
    assert np.mean(sound) > 0.95
    assert np.mean([c.helps.all() for c in found]) > 0.85, "nearly always less noise, too"
    p = [c.combined_p for c in found]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_a_biased_variate_is_turned_down_and_a_noisy_one() -> None:
    data = groups(many())[0].copy(deep=True)
    data["control_g"].values[1] += 5.0  # of 0:0: far from zero in every chain
    found = TokenMoments.of([data])
    assert found.estimators == (CONTROLLED, PLAIN, CONTROLLED)
    assert not found.check.helps[1] and abs(found.check.t[1]) > 10
    plain = estimate_tokens(TokenMoments.of([data], PLAIN))
    chosen = estimate_tokens(found)
    np.testing.assert_array_equal(chosen["mean_shift"].values[1], plain["mean_shift"].values[1])
    assert (chosen["mean_shift"].values[2] != plain["mean_shift"].values[2]).all()
    # E_full is corrected, so the rank-one part of 0:0 is another all the same.
    assert (chosen["rank_one"].values[1] != plain["rank_one"].values[1]).all()

    rng = np.random.default_rng(0)
    noisy = groups(many())[0].copy(deep=True)
    for name in ("control_shift", "control_g"):
        noisy[name].values[:] = 3 * rng.normal(size=noisy[name].shape)
    assert TokenMoments.of([noisy]).estimators == (PLAIN,) * 3
    assert TokenMoments.of([noisy], CONTROLLED).estimators == (CONTROLLED,) * 3


def test_without_a_variate_nothing_changes_and_asking_for_it_is_an_error() -> None:
    data = groups(many())[0]
    bare = data.drop_vars([str(name) for name in data.data_vars if "control" in str(name)])
    found, plain = TokenMoments.of([bare]), TokenMoments.of([data], PLAIN)
    assert found.check is None and found.estimators == (PLAIN,) * 3
    for form in FORMS:
        np.testing.assert_array_equal(estimate_tokens(found)[form], estimate_tokens(plain)[form])
    assert found.estimator_table()["helps"].null_count() == 3
    with pytest.raises(ValueError, match="sampled without a control variate; set two_layer"):
        TokenMoments.of([bare], CONTROLLED)


def test_pooled_moments_have_the_plain_covariance_and_the_corrected_means() -> None:
    """E[xy]: without bias from plain means; with corrected ones, that of the pooled covariance."""
    rng = np.random.default_rng(0)
    runs, chains, draws = 20_000, 3, 2
    noise = rng.normal(size=(2, runs, chains, draws))
    x, y = 0.5 + noise[0], 0.3 + 0.8 * noise[0] + 0.6 * noise[1]
    # All of the noise that x and y share is taken off their means.
    offset = Offset(x.mean(-1) - 0.5, 0.8 * (x.mean(-1) - 0.5)[..., None])
    plain = Moments.of(x, y[..., None])
    kept = [plain[:, chain] for chain in range(chains)]
    moved = [offset.off(plain)[:, chain] for chain in range(chains)]
    lost = {False: 0.0, True: 0.8 / (chains * draws)}
    for corrected, pooled in ((False, pool(kept)), (True, pool(kept, moved))):
        product = (pooled.covariance + pooled.mean_x[:, None] * pooled.mean_y)[:, 0]
        error = product.std() / np.sqrt(runs)
        assert abs(product.mean() - (0.8 + 0.5 * 0.3 - lost[corrected])) < 4 * error
    np.testing.assert_array_equal(pool(kept, moved).comoment, pool(kept).comoment)
    np.testing.assert_allclose(pool(kept, moved).mean_x, 0.5, rtol=1e-12)
    # About the corrected means it would lose half, as from a chain of two draws.
    naive = merge_all(moved).covariance[:, 0]
    assert abs(naive.mean() - 0.8 * (1 - 1 / draws)) < 0.01


POSITIONS = np.array([6, 13, 19])


def test_dataset_susceptibilities_with_the_variate() -> None:
    """The LLC against its closed form; a replicate without a block is that of fewer contexts."""
    config = CONFIG.model_copy(update={"chains": 4 * GROUPS})
    many_losses = loss_store(drawn(config), POSITIONS, probes=2)
    found = {
        name: [estimate_checkpoint(group, name) for group in groups(many_losses)]
        for name in (PLAIN, CONTROLLED)
    }
    truth = []
    for kept in PARTS.values():
        model = random_quadratic(BASE + TOKENS, 5, kept)
        law = model.stationary(list(range(BASE)), CONFIG)
        truth.append(CONFIG.n_beta * model.expectation(np.arange(BASE), *law).mean())
    scatter = {}
    for name, estimates in found.items():
        llc = np.stack([e.llc for e in estimates])
        assert (np.abs(llc.mean(0) - truth) < 4 * llc.std(0) / np.sqrt(GROUPS)).all(), name
        scatter[name] = np.stack([e.value["chi"] for e in estimates])[:, 1:]
    difference = scatter[PLAIN] - scatter[CONTROLLED]
    error = difference.std(0) / np.sqrt(GROUPS)
    assert (np.abs(difference.mean(0)) < 4 * error).all(), "the estimand is the same"
    assert (scatter[PLAIN].var(0).sum() / scatter[CONTROLLED].var(0).sum()) > 2

    one = groups(many_losses)[0]
    estimate = estimate_checkpoint(one)
    assert estimate.check is not None and estimate.estimators == (CONTROLLED,) * 3
    fewer = one.isel(base_context=slice(0, 14), probe_context=[0, 1])
    for name, tolerance in ((PLAIN, 1e-12), (CONTROLLED, 0.1)):  # coefficients of fewer contexts
        whole, part = (estimate_checkpoint(losses, name) for losses in (one, fewer))
        for form in FORMS:
            size = tolerance * np.abs(part.value[form]).max()
            np.testing.assert_allclose(
                whole.block_replicates[form][2], part.value[form], rtol=0, atol=size
            )
    bare = one.drop_vars(["base_control", "probe_control"])
    assert estimate_checkpoint(bare).check is None
    with pytest.raises(ValueError, match="sampled without a control variate; set two_layer"):
        estimate_checkpoint(bare, CONTROLLED)


def test_a_lost_chain_does_not_count() -> None:
    data = groups(many())[0].copy(deep=True)
    data["died"].values[1, 2] = 3
    for name in ("mean_shift", "control_shift", "comoment"):
        data[name].values[1, 2] = np.nan
    for name in ("mean_g", "control_g", "square_g"):
        data[name].values[1, 2] = np.nan
    found = TokenMoments.of([data])
    assert np.isfinite(estimate_tokens(found)["chi"].values).all()
    assert found.check.chains.tolist() == [4, 3, 4]
    three = check(
        *(
            data[name].values[1:2][:, [0, 1, 3]]
            for name in ("mean_shift", "control_shift", "control_g")
        ),
        np.ones((1, 3), dtype=bool),
    )
    assert np.isfinite(three.ratio_factor).all() and np.isinf(three.rms_expected).all()


def test_two_chains_are_needed_and_the_table_says_what_was_found() -> None:
    rng = np.random.default_rng(0)
    values, control = rng.normal(size=(2, 1, 5, 7))
    with pytest.raises(ValueError, match="2 healthy chains, found 1 for component number 0"):
        check(values, control, control.mean(-1), np.eye(1, 5, dtype=bool))
    found: Check = check(values, 0.5 * values, 0.5 * values.mean(-1), np.ones((1, 5), dtype=bool))
    assert found.ratio[0] == pytest.approx(4.0)
    assert found.ratio_factor[0] == pytest.approx(1.0)
    table = estimator_table(["0:0"], [CONTROLLED], found)
    assert table.row(0, named=True)["ratio"] == pytest.approx(4.0)
    assert table.row(0, named=True)["helps"] is bool(found.helps[0])
