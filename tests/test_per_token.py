"""Per-token susceptibilities, on the quadratic model where they are known exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import xarray as xr
from scipy import stats

from per_token_results import planted
from quadratic import random_quadratic
from susceptibilities.chains import Chains
from susceptibilities.control_variate import Estimator
from susceptibilities.estimators import FORMS, mixture_differences, susceptibility_parts
from susceptibilities.influence import loss_traces
from susceptibilities.moments import Moments, merge_all
from susceptibilities.per_token import (
    ESTIMATOR,
    load_per_token,
    reliability_table,
    save_tokens,
)
from susceptibilities.posterior import SamplerConfig
from susceptibilities.token_estimates import TokenMoments, estimate_tokens
from susceptibilities.token_sampling import token_moments

BASE, TOKENS = 20, 6
ROWS = BASE + TOKENS
PARTS = {"full": [0, 1, 2, 3, 4], "0:0": [1, 2], "1:0": [3]}
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


def chains_of(name: str, config: SamplerConfig, seed: int = 0) -> Chains:
    model = random_quadratic(ROWS, 5, PARTS[name])
    rows = torch.arange(ROWS)[:, None]
    star = torch.zeros(BASE, dtype=torch.float64)
    pool = model.prepare(rows[:BASE])
    return Chains(model, model.prepare(rows), pool, star, config, seed, name, BASE, "linear")


def shard(names: list[str], config: SamplerConfig = CONFIG, seed: int = 0) -> xr.Dataset:
    """A shard of the quadratic model, every "token" one of its contexts."""
    parts = [token_moments(chains_of(name, config, seed)) for name in names]
    data = xr.concat(parts, "component")
    data.attrs = {
        "identity": f"{seed}",
        "component": names,
        "step": 7,
        "n_beta": config.n_beta,
        "localization": config.localization,
        "draws": config.draws,
    }
    return data


def traces() -> dict[str, np.ndarray]:
    """Losses of every context along the chains of `shard`, (chain, draw, context)."""
    return {name: loss_traces(chains_of(name, CONFIG))["shift"].values for name in PARTS}


def estimates(shards: list[xr.Dataset], estimator: Estimator = "plain") -> xr.Dataset:
    return estimate_tokens(TokenMoments.of(shards, estimator))


def exact() -> dict[str, np.ndarray]:
    """Exact parts (component, token) of SGLD's stationary law."""
    base, tokens = np.arange(BASE), np.arange(BASE, ROWS)
    g, dl, covariance = [], [], []
    for kept in PARTS.values():
        model = random_quadratic(ROWS, 5, kept)
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


@pytest.mark.parametrize("estimator", ["plain", "control_variate"])
def test_agrees_with_the_closed_form_and_errors_cover_it(estimator: Estimator) -> None:
    truth = exact()
    groups = 60
    many = shard(list(PARTS), CONFIG.model_copy(update={"chains": 4 * groups}))
    found = [
        estimates([many.isel(chain=slice(4 * i, 4 * i + 4))], estimator) for i in range(groups)
    ]
    quantile = stats.t.ppf(0.975, 3)
    for form in FORMS:
        values = np.stack([data[form].values for data in found])
        error = values.std(0, ddof=1) / np.sqrt(groups)
        # Parts are products of means over finite chains; chi's factors come from different ones.
        bias = (0.02 if form == "chi" else 0.06) * np.abs(truth[form]).max(1, keepdims=True)
        assert (np.abs(values.mean(0) - truth[form]) < 4 * error + bias)[1:].all(), form
        se = np.stack([data[f"{form}_se"].values for data in found])
        covered = (np.abs(values - truth[form]) < quantile * se)[:, 1:].mean()
        assert 0.88 < covered < 0.985, (form, covered)


def test_equation_of_c2_literally() -> None:
    """The formula as the appendix prints it, on stored traces of the same chains."""
    data = estimates([shard(list(PARTS))])
    trace = traces()
    own, full = trace["0:0"], trace["full"]
    g, other = own[..., :BASE].mean(-1), full[..., :BASE].mean(-1)
    for token in range(TOKENS):
        first = (g * (g - own[..., BASE + token])).mean()
        second = g.mean() * (other - full[..., BASE + token]).mean()
        assert data["chi"].values[1, token] == pytest.approx(first - second, rel=1e-9)


def test_the_mean_over_a_probe_times_delta_h_is_the_datasets_chi() -> None:
    """Exactly so, once the replaced rows' own susceptibilities are taken away (eq. 42)."""
    positions = np.array([9, 19])
    delta_h = len(positions) / BASE
    trace = traces()

    def chi(y: dict[str, np.ndarray]) -> np.ndarray:
        moments = {
            name: Moments.of(
                trace[name][..., :BASE].mean(-1).ravel(), value.reshape(-1, value.shape[-1])
            )
            for name, value in y.items()
        }
        return susceptibility_parts(moments["0:0"], moments["full"].mean_y)["chi"]

    # Every row as a token, the base rows too; a probe of two of them.
    per_token = chi({n: t - t[..., :BASE].mean(-1, keepdims=True) for n, t in trace.items()})
    mixed = {
        n: mixture_differences(t[..., :BASE], t[..., None, BASE : BASE + 2], positions)[1]
        for n, t in trace.items()
    }
    expected = delta_h * (per_token[BASE : BASE + 2].mean() - per_token[positions].mean())
    assert chi(mixed)[0] == pytest.approx(expected, rel=1e-9)


def test_shards_merge_to_the_whole_and_replicates_leave_one_chain_out() -> None:
    whole = estimates([shard(list(PARTS))])
    merged = estimates([shard(["1:0"]), shard(["0:0", "full"])])
    assert merged.attrs["component"] == ["full", "0:0", "1:0"]
    for form in FORMS:
        assert np.array_equal(merged[form].values, whole[form].values)
        expected = estimates([shard(list(PARTS)).isel(chain=[0, 1, 3])])[form].values
        np.testing.assert_allclose(whole[f"{form}_replicate"].values[2], expected, rtol=1e-5)
    parts = sum((whole[form].values for form in FORMS[1:]), np.zeros(()))
    np.testing.assert_allclose(whole["chi"].values, parts, rtol=1e-12)


def test_a_lost_chain_does_not_count_and_wrong_shards_are_refused() -> None:
    data = shard(list(PARTS))
    data["died"].values[1, 3] = 5
    data["mean_shift"].values[1, 3] = np.nan
    found = estimates([data])
    assert np.isfinite(found["chi"].values).all()
    reduced = TokenMoments.of([shard(list(PARTS))], "plain")
    own = merge_all(reduced.moments[1, chain] for chain in range(3))
    full = merge_all(reduced.moments[0, chain] for chain in range(4))
    expected = susceptibility_parts(own, full.mean_y)["chi"]
    np.testing.assert_allclose(found["chi"].values[1], expected, rtol=1e-10)
    data["died"].values[1] = 5
    with pytest.raises(ValueError, match=r"component 0:0: 0 healthy chains, 2 needed"):
        TokenMoments.of([data])
    with pytest.raises(ValueError, match="different runs"):
        TokenMoments.of([shard(["full"]), shard(["0:0"], seed=1)])
    with pytest.raises(ValueError, match="every component once"):
        TokenMoments.of([shard(["0:0"])])


def table(count: int) -> pl.DataFrame:
    return pl.DataFrame({"probe": ["a"] * count, "context": range(count)})


def test_reliability_is_the_correlation_of_halves_and_grows_as_it_should() -> None:
    """Independent noise in every chain: Spearman and Brown's formula holds."""
    rng = np.random.default_rng(0)
    chains, tokens, draws = 8, 4000, 10
    signal = rng.normal(size=tokens)
    data = shard(["full", "0:0"], CONFIG.model_copy(update={"chains": chains}))
    data = data.isel(token=np.zeros(tokens, dtype=int)).copy(deep=True)
    data.attrs["draws"] = draws
    data = data.drop_vars([name for name in data.data_vars if "control" in str(name)])
    data["mean_g"].values[:] = 1.0
    data["comoment"].values[:] = 0.0
    data["mean_shift"].values[0] = 0.0
    noise = 2.0 * rng.normal(size=(chains, tokens))
    data["mean_shift"].values[1] = signal + noise
    found = reliability_table(TokenMoments.of([data]), table(tokens), seed=0)
    found = found.filter((pl.col("component") == "0:0") & (pl.col("form") == "mean_shift"))
    assert found["chains"].to_list() == [1, 2, 3, 4]
    assert found["draws"].to_list() == [10, 20, 30, 40]
    for m, value, se in zip(found["chains"], found["reliability"], found["se"], strict=True):
        assert abs(value - m / (m + 4.0)) < 4 * max(se, 0.004)
        assert 0.003 < se < 0.03


def test_saved_and_read_again(tmp_path: Path) -> None:
    results = planted(tmp_path / "results" / "mini", contexts=4, length=8)
    data = load_per_token(results)
    assert (data.chains, data.n_beta) == (6, 30.0) and load_per_token(
        results, control=True
    ).n_beta == 0
    assert data.components[0] == "full" and len(data.heads) == 16 and "mixture" in data.probes
    for probe in data.probes:
        rows = data.tokens.filter(data.where(probe))
        ids = data.context_ids(results, probe)
        assert np.array_equal(ids[:, 1:].ravel(), rows["token"].to_numpy())
    with pytest.raises(FileNotFoundError, match="no per-token susceptibilities"):
        load_per_token(results, step=1)
    folder = results / "per_token" / "step_000001"
    count = len(shard(["full"])["token"])
    moments = TokenMoments.of([shard(list(PARTS))])
    save_tokens(folder, moments, table(count), seed=0)
    again = load_per_token(results, step=1)
    assert again.value["chi"].shape == (3, count) and again.chains == 4
    assert np.array_equal(again.of("1:0", "covariance")[0], again.value["covariance"][2])
    assert np.isfinite(again.se["chi"]).all()
    assert again.estimators == moments.estimators
    checks = pl.read_parquet(folder / ESTIMATOR)
    assert checks["component"].to_list() == [*again.components]
    assert checks["estimator"].to_list() == list(moments.estimators)
    assert checks["t"].is_finite().all() and checks["ratio"].is_finite().all()


def test_either_estimator_by_name_from_the_moments(tmp_path: Path) -> None:
    results = planted(tmp_path / "results" / "mini", contexts=4, length=8)
    folder = results / "per_token" / "step_000001"
    shards = [shard(["full", "1:0"]), shard(["0:0"])]
    moments = TokenMoments.of(shards)
    save_tokens(folder, moments, table(len(shards[0]["token"])), seed=0)
    with pytest.raises(FileNotFoundError, match=r"no moments\.\*\.zarr in .*step_000001"):
        load_per_token(results, step=1, estimator="plain")
    for number, data in enumerate(shards):
        path = folder / f"moments.{number}.zarr"
        data.to_zarr(path, zarr_format=3, consolidated=False)
    values = {}
    for name in ("plain", "control_variate"):
        found = load_per_token(results, step=1, estimator=name)
        assert found.components == ("full", "0:0", "1:0") and set(found.estimators) == {name}
        np.testing.assert_array_equal(found.value["chi"], estimates(shards, name)["chi"].values)
        values[name] = found.value["mean_shift"]
    assert (values["plain"] != values["control_variate"]).all()
    # A planted run has no control variates: what is saved is plain.
    assert load_per_token(results, estimator="plain").estimators == ("plain",) * 17
    with pytest.raises(FileNotFoundError, match="another estimator needs"):
        load_per_token(results, estimator="control_variate")
