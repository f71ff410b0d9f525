"""Sampling a checkpoint: what is stored, resuming to the bit, and clear failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from susceptibilities.components import component
from susceptibilities.evaluation import BUDGET, Evaluation
from susceptibilities.losses import PlainLosses
from susceptibilities.models.attention_only import AttentionOnly, AttentionOnlyConfig
from susceptibilities.posterior import SamplerConfig
from susceptibilities.sampling import Texts, load_losses, sample_checkpoint
from susceptibilities.store import open_zarr
from susceptibilities.tables import estimate_run
from susceptibilities.tokens import mix

SHAPE = AttentionOnlyConfig(n_layers=2, n_heads=2, d_model=8, d_head=4, n_ctx=6, d_vocab=40)
SAMPLER = SamplerConfig(
    n_beta=10,
    localization=50,
    step_size=1e-3,
    chains=4,
    burn_in=2,
    draws=3,
    thinning=2,
    batch=2,
)
NAMES = ["full", "0:0", "0:1", "1:0", "1:1"]


def small_model() -> AttentionOnly:
    model = AttentionOnly(SHAPE)
    model.initialise(torch.Generator().manual_seed(0), sinusoids=True)
    return model.eval()


def texts() -> Texts:
    rng = np.random.default_rng(0)

    def contexts(count: int) -> np.ndarray:
        return rng.integers(0, SHAPE.d_vocab, (count, SHAPE.n_ctx)).astype(np.uint16)

    return Texts(contexts(20), {"a": contexts(20), "b": contexts(20)}, contexts(12), 0.1)


def sample(
    out: Path, names: list[str] = NAMES, sampler: SamplerConfig = SAMPLER, **changes
) -> Path:
    settings = dict(seed=3, step=7, model_hash="m", device=torch.device("cpu"), report=print)
    settings.update(changes)
    sample_checkpoint(small_model(), names, texts(), sampler, out=out, **settings)
    return out


def contents(path: Path) -> dict[str, bytes]:
    return {str(name): value.values.tobytes() for name, value in open_zarr(path).variables.items()}


def test_the_store_holds_losses_relative_to_w_star(tmp_path: Path) -> None:
    data = load_losses(sample(tmp_path / "s.zarr"))
    text = texts()
    assert list(data["component"].values) == NAMES
    assert data["base_shift"].shape == (5, 4, 3, 20)
    assert data["probe_shift"].shape == (5, 4, 3, 2, 2)
    assert data["probe_context"].values.tolist() == [9, 19]
    assert data["trace"].shape == (5, 4, 8)
    # The probe columns are those contexts that the mixture of Algorithm 1 takes from the probe.
    model = small_model()
    part = component("full", SHAPE, dict(model.named_parameters()))
    plain = PlainLosses(model, part)
    for number, probe in enumerate(text.probes.values()):
        mixed = torch.from_numpy(mix(text.base, probe, 0.1).astype(np.int64))
        losses = plain.losses(plain.w_star[None], plain.prepare(mixed))[0].mean(-1).numpy()
        stored = data["base_star"].values.copy()
        stored[[9, 19]] = data["probe_star"].values[number]
        assert np.allclose(stored, losses, atol=1e-5)
    # The first step of every chain is at w*: its trace is zero.
    assert np.abs(data["trace"].values[:, :, 0]).max() < 1e-5
    assert data.attrs["sampler"]["n_beta"] == 10
    assert "nats" in data["base_shift"].attrs["units"]


def test_the_control_variate_is_stored_beside_the_losses(tmp_path: Path) -> None:
    plain = load_losses(sample(tmp_path / "plain.zarr"))
    assert not any("control" in str(name) for name in plain)
    evaluation = Evaluation(control_variate="linear")
    data = load_losses(sample(tmp_path / "s.zarr", evaluation=evaluation))
    assert data["base_control"].dims == ("component", "chain", "base_context")
    assert data["probe_control"].dims == ("component", "chain", "probe", "probe_context")
    assert np.abs(data["base_control"].values).min() > 0
    for name in plain.data_vars:
        np.testing.assert_allclose(plain[name], data[name], rtol=1e-4, atol=1e-7)
    assert data.attrs["evaluation"] == evaluation.model_dump()
    assert data.attrs["precision"] == ["float32"] * len(NAMES)
    assert [set(s) for s in data.attrs["seconds"]] == [{"sampling", "draws", "control"}] * 5
    assert all(variable.attrs["units"] for variable in data.data_vars.values())


def test_the_precision_is_measured_and_chosen_by_component(tmp_path: Path) -> None:
    narrow = Evaluation(precision="bfloat16")
    data = load_losses(sample(tmp_path / "s.zarr", evaluation=narrow))
    error, chosen = data["precision_error"].values, data.attrs["precision"]
    assert error.shape == (len(NAMES),) and np.isfinite(error).all()
    assert chosen == ["bfloat16" if e <= BUDGET else "float32" for e in error]
    exact = load_losses(sample(tmp_path / "exact.zarr"))
    for place, name in enumerate(chosen):
        difference = data["base_shift"][place] - exact["base_shift"][place]
        size = float(np.sqrt(np.square(exact["base_shift"][place]).mean()))
        assert float(np.abs(difference).max()) <= (0 if name == "float32" else 0.05 * size)


def test_tables_of_a_run(tmp_path: Path) -> None:
    paths = [sample(tmp_path / f"step_{step}.zarr", step=step) for step in (7, 9)]
    control = sample(tmp_path / "c.zarr", sampler=SAMPLER.model_copy(update={"n_beta": 0.0}))
    tables = estimate_run(paths, [control])
    assert len(tables["susceptibility"]) == 2 * 5 * 2 * 4
    assert len(tables["replicates"]) == 4 * len(tables["susceptibility"])
    assert len(tables["health"]) == 3 * 5 * 4
    assert set(tables["parts"]["form"]) == {"chi", "covariance", "rank_one", "mean_shift"}
    assert tables["susceptibility"]["se"].is_finite().all()
    assert (tables["susceptibility"]["se"] >= tables["susceptibility"]["se_chain"]).all()
    assert tables["llc"].height == 10


def test_a_part_is_kept_only_for_the_same_settings(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    with pytest.raises(ValueError, match="no component"):
        sample(out, names=["full", "9:9"])
    lines: list[str] = []
    sample(out, names=["full"], report=lines.append, seed=4)
    assert not any("kept" in line for line in lines)
    first = contents(out)
    sample(out, names=["full"], report=lines.append)
    assert contents(out)["base_shift"] != first["base_shift"]


def test_a_step_size_that_diverges_is_an_error_and_leaves_no_store(tmp_path: Path) -> None:
    wild = SAMPLER.model_copy(update={"step_size": 1e6})
    out = tmp_path / "s.zarr"
    with pytest.raises(ValueError, match=r"all 4 chains diverged .* lower step_size"):
        sample(out, names=["0:0"], sampler=wild)
    assert not out.exists()


def test_chains_do_not_depend_on_which_components_are_sampled(tmp_path: Path) -> None:
    alone = load_losses(sample(tmp_path / "a.zarr", names=["1:0"]))
    among = load_losses(sample(tmp_path / "b.zarr"))
    assert np.array_equal(
        alone["base_shift"].sel(component="1:0"), among["base_shift"].sel(component="1:0")
    )


def test_the_unrestricted_chains_can_have_more_draws(tmp_path: Path) -> None:
    """Each component's draws are those of a run in which all have as many."""
    more = {"draws": 5}
    uneven = SAMPLER.model_copy(update={"unrestricted_draws": 5})
    linear = Evaluation(control_variate="linear")
    paths = [
        sample(tmp_path / f"step_{i}.zarr", sampler=settings, evaluation=linear)
        for i, settings in enumerate((uneven, SAMPLER, SAMPLER.model_copy(update=more)))
    ]
    found, short, long = (load_losses(path) for path in paths)
    assert found["draws"].values.tolist() == [5, 3, 3, 3, 3]
    for name, own in found.data_vars.items():
        if "component" not in own.dims:
            continue
        heads = own[1:].isel({axis: slice(short.sizes[axis]) for axis in own.dims[1:]})
        assert np.array_equal(own[0], long[name][0], equal_nan=True)
        assert np.array_equal(heads, short[name][1:], equal_nan=True)
    tables, expected, all_long = (estimate_run([path], []) for path in paths)
    assert len(tables["traces"]) == 4 * (2 + 2 * 5) + 4 * 4 * (2 + 2 * 3)
    for name in ("susceptibility", "llc", "health", "traces"):
        for reference, mine in (
            (expected, pl.col("component") != "full"),
            (all_long, pl.col("component") == "full"),
        ):
            kept = tables[name].filter(mine)
            if name == "susceptibility":
                # Chi itself has the unrestricted chains' mean in it.
                own = pl.col("form").is_in(["covariance", "mean_shift"])
                kept, other = kept.filter(own), reference[name].filter(mine & own)
            else:
                other = reference[name].filter(mine)
            assert_frame_equal(kept, other, rel_tol=1e-9, abs_tol=1e-15)
    chi, whole = (
        t["susceptibility"].filter(form="rank_one", component="full")["value"]
        for t in (tables, all_long)
    )
    assert chi.to_list() == pytest.approx(whole.to_list(), rel=1e-9)
