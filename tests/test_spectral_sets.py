"""The spectral estimate of a checkpoint: what is stored, resuming to the bit, loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import xarray as xr

from susceptibilities import spectral_sets as module
from susceptibilities.components import component
from susceptibilities.config import ConfigError, load_scale
from susceptibilities.hessian import loss_set
from susceptibilities.loss_sets import CONTROL, POSTERIOR, STAGES
from susceptibilities.losses import component_losses
from susceptibilities.models.gpt_neox import PYTHIA, GPTNeoX, GPTNeoXConfig
from susceptibilities.per_token import TOKENS, folder_of
from susceptibilities.planning.rates import published_rates
from susceptibilities.planning.work import components_of
from susceptibilities.posterior import SamplerConfig
from susceptibilities.reliability import agreement, spearman_brown, times_to
from susceptibilities.response_matrix import response_of, response_pca
from susceptibilities.spectral import loss_spectrum, spectral_terms
from susceptibilities.spectral_config import SpectralConfig
from susceptibilities.spectral_cost import Counts, basis_bytes, spectral_seconds
from susceptibilities.spectral_results import covariance, load_sets, load_spectral, read_sets
from susceptibilities.spectral_sets import spectral_sets
from susceptibilities.spectrum import Law
from susceptibilities.store import write_json
from susceptibilities.token_sampling import TokenTexts, token_table

SHAPE = GPTNeoXConfig(
    n_layers=2, n_heads=2, d_model=8, n_ctx=6, d_vocab=30, d_mlp=12, rotary_pct=0.5
)
SAMPLER = SamplerConfig(
    n_beta=30, localization=300, step_size=1e-3, chains=4, burn_in=2, draws=3, batch=2
)
CONFIG = SpectralConfig(
    steps=9,
    pairs=6,
    sets=4,
    contexts=5,
    gradient_contexts=12,
    token_contexts=3,
    probes=2,
    averaged=2,
    averaged_pairs=4,
)
NAMES = ["0:1", "mlp:1"]
STEP = 7


def model() -> GPTNeoX:
    made = GPTNeoX(SHAPE)
    made.initialise(torch.Generator().manual_seed(0))
    return made.double().eval()


def texts() -> TokenTexts:
    rng = np.random.default_rng(0)

    def contexts(count: int) -> np.ndarray:
        return rng.integers(0, SHAPE.d_vocab, (count, SHAPE.n_ctx)).astype(np.uint16)

    return TokenTexts(contexts(21), {"a": contexts(3), "b": contexts(3)}, contexts(30))


def measure(out: Path, **changes) -> Path:
    settings = dict(
        names=NAMES,
        sampler=SAMPLER,
        config=CONFIG,
        control=True,
        seed=1,
        step=STEP,
        model_hash="m",
        device=torch.device("cpu"),
        report=lambda text: None,
    )
    settings.update(changes)
    spectral_sets(model(), texts=texts(), out=out, **settings)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with two shards of spectral estimates."""
    results = tmp_path_factory.mktemp("results")
    folder = folder_of(results, STEP)
    folder.mkdir(parents=True)
    for shard, name in enumerate(NAMES):
        measure(folder / f"spectral.{shard}.zarr", names=[name])
    probes = {name: np.concatenate([rows, rows]) for name, rows in texts().probes.items()}
    size = sum(rows[:, 1:].size for rows in probes.values())
    strings = [str(number) for number in range(SHAPE.d_vocab)]
    token_table(probes, strings, np.ones(size)).write_parquet(folder / TOKENS)
    write_json(results / "config.json", {"two_layer": {"per_token": {"checkpoints": [STEP]}}})
    return results


def test_stored_is_what_the_estimator_gives(run: Path) -> None:
    """One set, recomputed from its parts; and every set is of the contexts it should be."""
    data = load_sets(run)
    assert list(data["source"].values) == ["base", "pool"] * 2
    made, text = model(), texts()
    losses = component_losses(made, component("mlp:1", SHAPE, dict(made.named_parameters())))
    evaluated = np.concatenate(list(text.probes.values())).astype(np.int64)
    tokens = losses.prepare(torch.from_numpy(evaluated))
    # The second base set: the second half of the base, rounded up before it.
    for number, few, wide in ((2, text.base[11:16], text.base[11:]), (3, *[text.pool[12:]] * 2)):
        few, wide = (torch.from_numpy(x.astype(np.int64)) for x in (few[:5], wide[:12]))
        one = data.sel(component="mlp:1").isel(set=number)
        gradient, spectrum = loss_spectrum(loss_set(losses, few), losses.w_star, CONFIG.steps)
        np.testing.assert_allclose(one["eigenvalue"], spectrum.values, rtol=1e-6, atol=1e-12)
        for name, n_beta in ((POSTERIOR, 30.0), (CONTROL, 0.0)):
            law = Law(n_beta, 300.0, 1e-3)
            terms = spectral_terms(spectrum, gradient, losses, tokens, law, CONFIG)
            here = one.sel(run=name)
            np.testing.assert_allclose(here["linear"], terms.linear, rtol=1e-8)
            np.testing.assert_allclose(here["quadratic"], terms.quadratic, rtol=1e-5)
            assert float(here["variance"]) == pytest.approx(terms.variance, rel=1e-6)
            larger = terms.with_gradient(
                loss_set(losses, wide).gradient(losses.w_star), losses, tokens
            )
            np.testing.assert_allclose(here["wide_linear"], larger.linear, rtol=1e-8)
            value = covariance(data, name, "point", wide=True, completed=False)[1, number]
            np.testing.assert_allclose(value, larger.covariance, rtol=1e-5, atol=1e-16)
            value = covariance(data, name, "point", wide=False, completed=False)[1, number]
            np.testing.assert_allclose(value, terms.covariance, rtol=1e-5, atol=1e-16)
        assert not float(one.sel(run=CONTROL)["distance"])


def test_the_pairs_left_out_are_added(run: Path) -> None:
    data = load_sets(run)
    bare, whole = (covariance(data, completed=c) for c in (False, True))
    rest = data["rest_quadratic"].mean("probe") - data["rest_variance"].mean("probe")
    np.testing.assert_allclose(bare - rest.values, whole)
    np.testing.assert_array_equal(covariance(data), whole)


def test_counts_are_those_of_the_run(run: Path) -> None:
    data = load_sets(run)
    spent = data["evaluations"].isel(component=0, set=0)
    assert int(spent.drop_sel(stage="control").sum()) == Counts.of(CONFIG).evaluations
    assert set(STAGES) == set(data["stage"].values)
    assert bool((data["seconds"].sel(stage="products") > 0).all())
    assert Counts.of(CONFIG).products == 9 + 2
    none = CONFIG.model_copy(update={"averaged": 0, "probes": 0, "gradient_contexts": 0})
    assert Counts.of(none) == Counts(products=9, gradients=5 + 5, evaluations=15)


def test_without_what_is_optional(tmp_path: Path) -> None:
    few = CONFIG.model_copy(update={"averaged": 0, "probes": 0, "gradient_contexts": 0})
    data = read_sets([measure(tmp_path / "x.zarr", config=few, names=["0:1"], control=False)])
    assert int(data["evaluations"].isel(component=0, set=0).sum()) == Counts.of(few).evaluations
    assert list(data.attrs["run"]) == [POSTERIOR]
    point = (data["linear"] + data["quadratic"] - data["variance"]).isel(run=0)
    np.testing.assert_allclose(covariance(data), -point.transpose("component", "set", "token"))
    with pytest.raises(ValueError, match="averaged above 0"):
        covariance(data, derivatives="averaged")


def test_averaged_derivatives_take_the_place_of_those_at_a_point(run: Path) -> None:
    data = load_sets(run)
    averaged, point = (covariance(data, derivatives=d) for d in ("averaged", "point"))
    np.testing.assert_array_equal(covariance(data), averaged)
    np.testing.assert_array_equal(covariance(data, CONTROL), covariance(data, CONTROL, "point"))
    chosen = data.sel(run=POSTERIOR)
    moved = (data["averaged_linear"] + data["averaged_quadratic"]).mean("draw")
    expected = moved - data["here"] - chosen["wide_linear"]
    found = (point - averaged) - (point - averaged).mean(-1, keepdims=True)
    wanted = (expected - expected.mean("token")).values
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-14)
    # Weights of order one, displaced by 0.3 in all: nearly quadratics.
    for one, other in zip(averaged.reshape(8, -1), point.reshape(8, -1), strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.9


def test_loaded_as_per_token_susceptibilities(run: Path) -> None:
    """Sets stand where chains stand, and an analysis of chains runs on them."""
    found = load_spectral(run)
    assert found.components == tuple(NAMES) and found.chains == 4 and found.step == STEP
    assert len(found.tokens) == found.value["chi"].shape[1] == 2 * 3 * 5
    assert found.tokens["context"].max() == 2
    sets = covariance(load_sets(run))
    np.testing.assert_allclose(found.value["covariance"], sets.mean(1))
    without = np.delete(sets, 1, 1).mean(1)
    np.testing.assert_allclose(found.replicates["chi"][1], without, rtol=1e-6)
    np.testing.assert_allclose(found.se["chi"], sets.std(1, ddof=1) / 2)
    assert not found.value["rank_one"].any() and not found.value["mean_shift"].any()
    control = load_spectral(run, control=True)
    assert control.n_beta == 0 and not np.allclose(control.value["chi"], found.value["chi"])
    response = response_of(found)
    assert response.heads == ("0:1",) and response.df == 2
    pca = response_pca(response.value["covariance"], standardize=False)
    assert pca.variance[0] == pytest.approx(found.value["chi"][0].var(ddof=1))


def test_no_estimates(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="snakemake spectral"):
        load_spectral(tmp_path, step=3)
    folder = folder_of(tmp_path, STEP)
    folder.mkdir(parents=True)
    measure(folder / "spectral.0.zarr", names=["0:1"], control=False)
    with pytest.raises(FileNotFoundError, match="control_checkpoints"):
        load_spectral(tmp_path, control=True, step=STEP)
    one, other = (measure(tmp_path / f"{seed}.zarr", names=["0:1"], seed=seed) for seed in (1, 2))
    with pytest.raises(ValueError, match="different runs"):
        read_sets([one, other])
    with pytest.raises(ValueError, match="once"):
        read_sets([one, one])


def test_goes_on_after_every_loss_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_sets([measure(tmp_path / "whole.zarr")])
    written = module.write_part
    left = 5

    def fail_after_some(part: xr.Dataset, path: Path) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        written(part, path)

    monkeypatch.setattr(module, "write_part", fail_after_some)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "x.zarr")
    parts = tmp_path / ".x.zarr.parts"
    assert len(list(parts.glob("*.zarr"))) == 5
    # One of them is damaged: it alone is made again.
    damaged = sorted(parts.glob("*.zarr"))[0]
    next(path for path in damaged.glob("*/c/**/*") if path.is_file()).write_bytes(b"x")
    left, told = -1, []
    measure(tmp_path / "x.zarr", report=told.append)
    assert sum("kept" in text for text in told) == 4
    assert sum("made again" in text for text in told) == 1
    found = read_sets([tmp_path / "x.zarr"])
    xr.testing.assert_identical(
        found.drop_vars("seconds").drop_attrs(), whole.drop_vars("seconds").drop_attrs()
    )
    assert not parts.exists()


def test_settings_that_do_not_fit() -> None:
    fits = dict(base_contexts=10, sgld_contexts=24, token_contexts=3, method="sgld")
    assert not CONFIG.problems(**fits)
    for change, words in (
        ({"base_contexts": 9}, "half of the sets need 2 \\* 5"),
        ({"sgld_contexts": 23}, "the other half need 2 \\* 12"),
        ({"token_contexts": 2}, "token_contexts"),
        ({"method": "rmsprop"}, "law 'posterior'"),
    ):
        (problem,) = CONFIG.problems(**{**fits, **change})
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(problem)
    assert CONFIG.names(["0:0"], ["0:0", "embed"]) == ["0:0"]
    some = CONFIG.model_copy(update={"components": ["embed", "9:9"]})
    with pytest.raises(ValueError, match="9:9, which the model has not; allowed: all"):
        some.names(["0:0"], ["0:0", "embed"])
    with pytest.raises(ValueError, match="multiple of 2"):
        SpectralConfig(sets=5)


def test_the_scale_file_names_the_problem(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    text = (root / "config/smoke.yaml").read_text()
    assert load_scale("smoke", root=root).two_layer.per_token.spectral is not None
    for old, new, words in (
        ("contexts: 6, gradient", "contexts: 11, gradient", "per_token.spectral: half"),
        ('["0:2", "1:2"]', '["0:2", "7:2"]', "per_token.spectral: components has 7:2"),
    ):
        assert old in text
        file = tmp_path / "own.yaml"
        file.write_text(text.replace(old, new).replace("scale: smoke", "scale: own"))
        with pytest.raises(ConfigError, match=words):
            load_scale("own", str(file), root=root)


def test_reliability_of_one_estimate_of_several() -> None:
    rng = np.random.default_rng(0)
    signal, blocks = rng.normal(size=4000), np.arange(4000) % 10
    noise = rng.normal(size=(6, 4000)) * 3**0.5  # reliability 1 / (1 + 3)
    value, se = agreement(signal + noise, blocks)
    assert abs(value - 0.25) < 4 * se and 0.002 < se < 0.03
    # Estimates of a group share noise, which only pairs of other groups leave out.
    shared = np.repeat(noise[:3], 2, 0) / 2**0.5 + rng.normal(size=(6, 4000)) * 1.5**0.5
    groups = [0, 0, 1, 1, 2, 2]
    value, se = agreement(signal + shared, blocks, groups)
    assert abs(value - 0.25) < 4 * se
    assert agreement(signal + shared, blocks)[0] > value + 4 * se
    assert spearman_brown(0.25, 3.0) == pytest.approx(0.5)
    assert times_to(0.5, 0.25) == pytest.approx(3.0) and times_to(0.5, -0.1) == np.inf
    with pytest.raises(ValueError, match="different groups"):
        agreement(signal + noise, blocks, [0] * 6)


def test_cost_for_larger_models() -> None:
    """Evaluations go with the tokens, products with the loss sets; later layers cost less."""
    shape = PYTHIA["1.4b"]
    rates = published_rates("h200", shape, "tf32", folder=Path("none"))
    first, last, embed = components_of(shape, ["0:0", "23:0", "embed"])
    products, evaluations = spectral_seconds(first, shape, CONFIG, 100, 1024, rates)
    more = spectral_seconds(first, shape, CONFIG, 200, 1024, rates)
    assert more[0] == pytest.approx(products) and more[1] == pytest.approx(2 * evaluations)
    sets = CONFIG.model_copy(update={"sets": 8})
    more = spectral_seconds(first, shape, sets, 100, 1024, rates)
    assert more == pytest.approx((2 * products, 2 * evaluations))
    assert sum(spectral_seconds(last, shape, CONFIG, 100, 1024, rates)) < 0.6 * (
        products + evaluations
    )
    assert basis_bytes(embed, CONFIG) == 2 * 9 * 4 * 50304 * 2048


def test_table_of_tokens_has_the_order_of_the_estimates(run: Path) -> None:
    found = load_spectral(run)
    assert found.tokens["index"].to_list() == list(range(len(found.tokens)))
    expected = np.concatenate([rows[:, 1:].ravel() for rows in texts().probes.values()])
    np.testing.assert_array_equal(found.tokens["token"], expected)
    assert isinstance(found.tokens, pl.DataFrame)
