"""Influence functions against closed forms, and the section's tables on planted traces."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from quadratic import Quadratic, random_quadratic
from susceptibilities.chains import Chains
from susceptibilities.claims import load_declared, load_measured, load_published
from susceptibilities.estimators import susceptibility_parts
from susceptibilities.influence import (
    BAKER,
    CORRELATION,
    POST,
    CrossMoments,
    influence,
    loss_traces,
    merge_all,
    stream_moments,
)
from susceptibilities.moments import Moments
from susceptibilities.moments import merge_all as merge_moments
from susceptibilities.posterior import SamplerConfig
from susceptibilities.store import write_json

ROOT = Path(__file__).parents[1]
CONTEXTS, SIZE = 12, 4
EVERY = np.arange(CONTEXTS)
FIELDS = ("count", "mean_x", "mean_y", "square_x", "square_y", "comoment")
CONFIG = SamplerConfig(
    n_beta=8, localization=20, step_size=0.02, chains=6, burn_in=40, draws=40, thinning=4, batch=12
)


def chains_of(
    config: SamplerConfig = CONFIG, model: Quadratic | None = None, seed: int = 0
) -> Chains:
    """Chains of the quadratic model on full batches; a context has one token."""
    model = model or random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    prepared = model.prepare(torch.arange(CONTEXTS)[:, None])
    pool_star = torch.zeros(CONTEXTS, dtype=torch.float64)
    return Chains(model, prepared, prepared, pool_star, config, seed, "full")


def traces_of(config: SamplerConfig = CONFIG, seed: int = 0) -> NDArray[np.float64]:
    return loss_traces(chains_of(config, seed=seed))["shift"].values


def closed_form(model: Quadratic, mean: NDArray, cov: NDArray) -> NDArray:
    """Cov(l_i, l_j) = g_i' S g_j + 1/2 tr(H_i S H_j S) for all pairs, g at the mean."""
    b, h = model.b.numpy(), model.h.numpy()
    slopes = b + h @ mean
    curved = h @ cov
    return slopes @ cov @ slopes.T + 0.5 * np.einsum("ipq,jqp->ij", curved, curved)


@pytest.fixture(scope="module")
def traces() -> NDArray[np.float64]:
    return traces_of()


@pytest.fixture(scope="module")
def experiments() -> NDArray[np.float64]:
    """Traces of independent experiments: (experiment, chain, draw, context)."""
    count = 100
    many = traces_of(CONFIG.model_copy(update={"chains": CONFIG.chains * count}))
    return many.reshape(count, CONFIG.chains, *many.shape[1:])


def test_the_closed_form_is_the_covariance_of_gaussian_draws():
    model = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    mean, cov = model.stationary(list(range(CONTEXTS)), CONFIG)
    exact = closed_form(model, mean, cov)
    weights = np.random.default_rng(0).multivariate_normal(mean, cov, 200_000)
    losses = model.losses(torch.from_numpy(weights), model.prepare(torch.arange(CONTEXTS)[:, None]))
    found = np.cov(losses[..., 0].numpy().T)
    size = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    # Correlations of products of Gaussians: errors of some 1 / sqrt(200,000).
    np.testing.assert_allclose(found / size, exact / size, atol=0.012)
    rows = np.stack([model.covariance(EVERY[[i]], EVERY, mean, cov) for i in EVERY])
    np.testing.assert_allclose(rows, exact, rtol=1e-12)


def test_estimates_agree_with_the_closed_form_and_errors_cover_it(experiments):
    model = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    truth = -closed_form(model, *model.stationary(list(range(CONTEXTS)), CONFIG))
    found = [influence(CrossMoments.of(x, x)) for x in experiments]
    values = np.stack([f.value for f in found])
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    pairs = np.triu_indices(CONTEXTS)
    # The finite-sample bias of a covariance is its variance-of-the-mean: under 1 % here.
    beyond = np.abs(values.mean(0) - truth) - 0.01 * np.abs(truth).max()
    assert (beyond[pairs] < 4 * error[pairs]).all()
    quantile = stats.t.ppf(0.975, CONFIG.chains - 1)
    covered = np.stack([np.abs(f.value - truth) < quantile * f.se for f in found])
    assert 0.90 < covered[:, *pairs].mean() < 0.975
    # Mean squared standard error = variance of the estimates.
    ratio = np.stack([f.se for f in found])[:, *pairs] ** 2 / values[:, *pairs].var(0, ddof=1)
    assert ratio.mean() == pytest.approx(1, abs=0.15)


def test_within_chains_is_smaller_by_the_draws_of_a_chain():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 5, 300))

    def variance(values: NDArray[np.float64], pooling: str) -> float:
        found = influence(CrossMoments.of(values, values), pooling=pooling)  # type: ignore[arg-type]
        return float(-np.diag(found.value).mean())

    assert variance(x, "pooled") == pytest.approx(1 - 1 / 100, rel=0.03)
    assert variance(x, "within") == pytest.approx(1 - 1 / 5, rel=0.03)
    # Offsets between chains count in one and not in the other.
    shifted = x + rng.normal(size=(20, 1, 300))
    assert variance(shifted, "pooled") == pytest.approx(0.8 + (0.2 + 1) * 0.95, rel=0.05)
    assert variance(shifted, "within") == pytest.approx(variance(x, "within"), rel=1e-12)


def test_within_is_the_covariance_with_every_chains_mean_removed(traces):
    own = traces - traces.mean(1, keepdims=True)
    expected = -np.einsum("cdi,cdj->ij", own, own) / own[..., 0].size
    found = influence(CrossMoments.of(traces, traces), pooling="within").value
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_large_n_beta_gives_the_classical_influence_function():
    """The gap to -g_i' H^-1 g_j / n_beta shrinks as 1 / n_beta, with gamma fixed."""
    model = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    b, h = model.b.numpy(), model.h.numpy()
    hessian = h.mean(0)
    minimum = -np.linalg.solve(hessian, b.mean(0))
    slopes = b + h @ minimum
    classical = -slopes @ np.linalg.solve(hessian, slopes.T)

    def gap(n_beta: float) -> float:
        precision = n_beta * hessian + 1e-3 * np.eye(SIZE)
        mean = -np.linalg.solve(precision, n_beta * b.mean(0))
        exact = -closed_form(model, mean, np.linalg.inv(precision))
        return float(np.abs(n_beta * exact - classical).max() / np.abs(classical).max())

    gaps = [gap(n) for n in (1e2, 1e3, 1e4, 1e5)]
    assert gaps[-1] < 1e-3
    np.testing.assert_allclose(np.divide(gaps[:-1], gaps[1:]), 10, rtol=0.35)

    # And chains find it: a step in proportion to 1 / n_beta, small enough for its own bias.
    n_beta = 1e5
    config = CONFIG.model_copy(
        update={
            "n_beta": n_beta,
            "localization": 1e-3,
            "step_size": 0.1 / n_beta,
            "burn_in": 400,
            "chains": 30,
            "thinning": 20,
        }
    )
    x = loss_traces(chains_of(config, model))["shift"].values
    found = influence(CrossMoments.of(x, x))
    off = np.abs(n_beta * found.value - classical)
    # 4 errors, and the 4 % by which this step widens the posterior at most.
    assert (off < 4 * n_beta * found.se + 0.04 * np.abs(classical).max()).all()


def test_without_loss_influence_is_a_product_of_gradients():
    """n_beta = 0: the mean is w*, S = 1 / gamma, so only slopes and curvatures at w* are left."""
    config = CONFIG.model_copy(update={"n_beta": 0.0, "chains": 100})
    model = random_quadratic(CONTEXTS, SIZE, list(range(SIZE)))
    x = loss_traces(chains_of(config, model))["shift"].values
    scale = config.step_size / (1 - (1 - 0.5 * config.step_size * config.localization) ** 2)
    flat = model.h.flatten(1).numpy()
    exact = -(scale * model.b.numpy() @ model.b.numpy().T + 0.5 * scale**2 * flat @ flat.T)
    found = influence(CrossMoments.of(x, x))
    assert (np.abs(found.value - exact) < 5 * found.se).mean() > 0.98


def test_mean_influence_of_the_training_samples_is_the_susceptibility_of_the_loss(traces):
    """By linearity, on the same draws: chi with observable L_n, of eq. 41's covariance part."""
    chi = influence(CrossMoments.of(traces, traces)).value
    observed = traces.mean(-1)

    def covariance_part(difference: NDArray[np.float64]) -> NDArray[np.float64]:
        moments = Moments.of(observed, difference)
        pooled = merge_moments(moments[c] for c in range(len(traces)))
        return susceptibility_parts(pooled, pooled.mean_y)["covariance"]

    np.testing.assert_allclose(chi.mean(0), covariance_part(traces), rtol=1e-9)
    # A per-token susceptibility perturbs by l_j - L_n: the mean over j comes off.
    centered = covariance_part(traces - observed[..., None])
    np.testing.assert_allclose(chi.mean(0) - chi.mean(), centered, rtol=1e-9, atol=1e-15)


def test_influence_is_symmetric_and_minus_it_positive_semidefinite(traces):
    for pooling in ("pooled", "within"):
        value = influence(CrossMoments.of(traces, traces), pooling=pooling).value
        np.testing.assert_allclose(value, value.T, rtol=1e-12, atol=1e-18)
        lowest = np.linalg.eigvalsh(-value).min()
        assert lowest > -1e-12 * np.abs(value).max()
    for chain in CrossMoments.of(traces, traces).covariance:
        assert np.linalg.eigvalsh(chain).min() > -1e-12 * np.abs(chain).max()


def test_conventions(traces):
    moments = CrossMoments.of(traces, traces)
    whole = np.cov(traces.reshape(-1, CONTEXTS).T, ddof=0)
    baker, post = influence(moments, BAKER), influence(moments, POST, beta=0.25)
    np.testing.assert_allclose(baker.value, -whole, rtol=1e-10)
    np.testing.assert_allclose(post.value, 0.25 * whole, rtol=1e-10)
    np.testing.assert_allclose(post.se, 0.25 * baker.se, rtol=1e-10)
    correlation = influence(moments, CORRELATION).value
    np.testing.assert_allclose(correlation, np.corrcoef(traces.reshape(-1, CONTEXTS).T), rtol=1e-9)
    still = np.concatenate([traces, np.ones_like(traces[..., :1])], -1)
    value = influence(CrossMoments.of(still, still), CORRELATION).value
    assert (value[-1] == 0).all() and np.isfinite(value).all()


@settings(deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_merged_moments_are_those_of_the_union(seed: int, sizes: list[int]):
    rng = np.random.default_rng(seed)
    x = 5 + rng.normal(size=(2, sum(sizes), 3))
    y = -3 + rng.normal(size=(2, sum(sizes), 4))
    cuts = np.cumsum(sizes)[:-1]
    parts = [
        CrossMoments.of(a, b)
        for a, b in zip(np.split(x, cuts, axis=1), np.split(y, cuts, axis=1), strict=True)
    ]
    rng.shuffle(parts)
    merged, whole = merge_all(parts), CrossMoments.of(x, y)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), atol=1e-9)


def test_streaming_is_the_same_as_stored_traces(traces):
    first, second = np.array([0, 3, 5]), np.array([1, 3, 7, 11])
    stored = CrossMoments.of(traces[..., first], traces[..., second])
    streamed = stream_moments(chains_of(), first, second)
    for name in FIELDS:
        np.testing.assert_allclose(
            getattr(streamed, name), getattr(stored, name), rtol=1e-9, atol=1e-12
        )
    assert streamed.comoment.shape == (CONFIG.chains, 3, 4)


def test_chains_may_be_restricted_to_a_component():
    """Weights outside the component stay: their part of the closed form is gone."""
    kept = [1, 2]
    model = random_quadratic(CONTEXTS, SIZE, kept)
    config = CONFIG.model_copy(update={"chains": 100})
    x = loss_traces(chains_of(config, model))["shift"].values
    found = influence(CrossMoments.of(x, x))
    truth = -closed_form(model, *model.stationary(list(range(CONTEXTS)), config))
    assert (np.abs(found.value - truth) < 5 * found.se).mean() > 0.98


def test_one_chain_is_refused(traces):
    with pytest.raises(ValueError, match="needs 2 chains, found 1"):
        influence(CrossMoments.of(traces[:1], traces[:1]))


# ---- the section: its tables on planted traces, its contexts, its figure ----


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(ROOT / "experiments/baker2025/s5_influence_functions"))
section = load("experiments/baker2025/s5_influence_functions/influence_pairs.py")
sampling = load("experiments/baker2025/s5_influence_functions/influence_sample.py")
DOMAINS = ("a", "b", "c", "d")
PERIOD = 6


def planted_tokens(domains: tuple[str, ...] = DOMAINS) -> pl.DataFrame:
    """Two contexts a domain, and three sequences of six tokens that come twice."""
    rng = np.random.default_rng(0)
    rows = []
    for name in (*domains, section.REPEATS):
        for context in range(3 if name == section.REPEATS else 2):
            tokens = rng.integers(1, 4, 2 * PERIOD)
            if name == section.REPEATS:
                half = 10 + rng.permutation(PERIOD)
                tokens = np.concatenate([half, half])
            for position, token in enumerate(tokens, 1):
                late = name == section.REPEATS and position > PERIOD
                rows.append((name, context, position, int(token), 3.0 if late else 5.0))
    columns = ["domain", "context", "position", "token", "loss"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def planted_traces(
    tokens: pl.DataFrame, of_token: float, of_domain: float, chains: int = 6, draws: int = 60
) -> NDArray[np.float64]:
    """Losses with a factor for every predicted token and one for every domain; the variance of
    each token's loss is 1."""
    rng = np.random.default_rng(1)
    shape = (chains, draws, 1)

    def factor(column: str) -> NDArray[np.float64]:
        values = tokens[column].to_list()
        drawn = {value: rng.normal(size=shape) for value in dict.fromkeys(values)}
        return np.concatenate([drawn[value] for value in values], -1)

    rest = 1 - of_token - of_domain
    noise = rng.normal(size=(chains, draws, len(tokens)))
    parts = ((of_token, factor("token")), (of_domain, factor("domain")), (rest, noise))
    return sum((np.sqrt(share) * values for share, values in parts), np.zeros(()))


@pytest.fixture(scope="module")
def tables() -> dict[str, pl.DataFrame]:
    tokens = planted_tokens()
    runs = {
        "posterior": planted_traces(tokens, 0.4, 0.2),
        "control": planted_traces(tokens, 0.4, 0.0),
    }
    return section.tables(tokens, runs)


def value_of(table: pl.DataFrame, run: str, kind: str, **other: str) -> tuple[float, float]:
    row = table.filter(pl.col("run") == run, pl.col("kind") == kind, form="correlation", **other)
    assert len(row) == 1
    return row["value"].item(), row["se"].item()


@pytest.mark.parametrize(
    ("kind", "posterior", "control"),
    [
        ("same context, same token", 0.6, 0.4),
        ("same domain, same token", 0.6, 0.4),
        ("other domain, same token", 0.4, 0.4),
        ("same context, other token", 0.2, 0.0),
        ("same domain, other token", 0.2, 0.0),
        ("other domain, other token", 0.0, 0.0),
        ("copies of a token", 0.6, 0.4),
        ("second copy", 0.2, 0.0),
    ],
)
def test_planted_correlations_are_found_within_their_errors(tables, kind, posterior, control):
    for run, truth in (("posterior", posterior), ("control", control)):
        value, se = value_of(tables["pairs"], run, kind)
        assert 0 < se < 0.1
        assert abs(value - truth) < 4 * se + 0.01, (run, kind)
    value, _ = value_of(tables["pairs"], "posterior - control", kind)
    assert value == pytest.approx(
        value_of(tables["pairs"], "posterior", kind)[0]
        - value_of(tables["pairs"], "control", kind)[0]
    )


def test_differences_contexts_and_reliability_of_planted_traces(tables):
    value, se = value_of(tables["differences"], "posterior", "same domain", minus="other domain")
    assert value == pytest.approx(0.2, abs=4 * se)
    assert value / se > 3
    value, se = value_of(tables["differences"], "control", "same domain", minus="other domain")
    assert abs(value) < 4 * se
    contexts = tables["contexts"].filter(pl.col("run") == "posterior")
    same = contexts.filter(pl.col("domain") == pl.col("other_domain"))["value"].mean()
    other = contexts.filter(pl.col("domain") != pl.col("other_domain"))["value"].mean()
    assert same - other > 0.15
    assert len(contexts) == (2 * len(DOMAINS) + 3) ** 2
    rows = tables["reliability"].filter(pl.col("pairs") == "tokens", pl.col("run") == "posterior")
    assert rows["draws"].to_list() == [60, 120, 180]
    found = rows["reliability"].to_list()
    assert found == sorted(found) and found[-1] > 0.8
    gain = tables["chains"].filter(pl.col("run") == "posterior").row(0, named=True)
    assert gain["gain_star"] == 2.0
    assert abs(gain["gain"] - 2.0) < 5 * gain["gain_se"]


def test_noise_has_no_reliability_and_no_difference():
    tokens = planted_tokens()
    traces = planted_traces(tokens, 0.0, 0.0, draws=4)
    found = section.tables(tokens, {"posterior": traces, "control": traces})
    rows = found["reliability"]
    assert (rows.filter(pl.col("pairs") == "tokens")["reliability"].abs() < 0.1).all()
    value, _ = value_of(found["pairs"], "posterior - control", "same context")
    assert value == 0
    value, se = value_of(found["differences"], "posterior", "same context", minus="other domain")
    assert abs(value) < 4 * se


def test_pair_means_are_means_over_pairs():
    tokens = planted_tokens()
    matrix = np.random.default_rng(2).normal(size=(len(tokens),) * 2)
    matrix = matrix + matrix.T
    domain, context = tokens["domain"].to_numpy(), tokens["context"].to_numpy()
    wanted = (domain[:, None] == domain) & (context[:, None] != context)
    wanted &= domain[:, None] != section.REPEATS
    pairs = section.kinds_of_pairs(tokens)["same domain"]
    means = pairs.means(matrix)
    assert means[0] == pytest.approx(matrix[wanted].mean())
    without = wanted & (domain[:, None] != "b")
    assert means[1 + DOMAINS.index("b")] == pytest.approx(matrix[without].mean())
    one, two = matrix, matrix**2
    r = section.correlation_by_unit([pairs], one, two)
    assert r[0] == pytest.approx(np.corrcoef(one[wanted], two[wanted])[0, 1])
    assert r[1] == pytest.approx(
        np.corrcoef(*(m[wanted & (domain[:, None] != "a")] for m in (one, two)))[0, 1]
    )


def test_contexts_are_the_domains_and_sequences_that_repeat(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("base", "probe.b", "probe.a", "probe.mixture"):
        rows = rng.integers(1, 50, (5, 32)).astype(np.uint16)
        rows[:, 0] = 0
        np.save(tmp_path / f"{name}.npy", rows)
    chosen = sampling.chosen_contexts(tmp_path, 0)
    assert list(chosen) == ["a", "b", sampling.REPEATS]
    assert [c.shape for c in chosen.values()] == [(2, 31), (2, 31), (4, 31)]
    repeats = chosen[sampling.REPEATS]
    np.testing.assert_array_equal(repeats[:, 1:16], repeats[:, 16:])
    np.testing.assert_array_equal(chosen["a"], np.load(tmp_path / "probe.a.npy")[:2, :31])


def test_the_figure_draws_the_tables(tables):
    sys.path.insert(0, str(ROOT / "figures"))
    import common
    import influence_functions as figures

    run = common.Run("two-layer-10d", {}, {})
    figure, drawn = figures.draw(tables, run)
    written = "\n".join(t.get_text() for t in figure.findobj(figures.plt.Text))
    assert "two-layer-10d" in written and "repeated" in written
    expected = tables["contexts"].filter(pl.col("run") == "posterior")["value"].to_numpy()
    np.testing.assert_array_equal(drawn["posterior"].ravel(), expected)
    value, se = value_of(tables["pairs"], "posterior", "other domain, same token")
    assert figures.number(value, se) in written
    assert "NaN" not in written and "nan" not in written
    figures.plt.close(figure)
    # One domain: some kinds of pairs do not exist.
    tokens = planted_tokens(("a",))
    traces = planted_traces(tokens, 0.4, 0.0)
    few = section.tables(tokens, {"posterior": traces, "control": traces})
    assert "other domain" not in few["pairs"]["kind"].to_list()
    figures.plt.close(figures.draw(few, run)[0])


def test_the_section_has_no_claims_and_its_empty_file_is_read(tmp_path):
    write_json(tmp_path / section.FOLDER / "measured.json", {})
    published = load_published(ROOT / "published")
    declared = load_declared(ROOT / "experiments", published)
    assert section.FOLDER not in declared
    assert load_measured(tmp_path, published, declared) == {}
