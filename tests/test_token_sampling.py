"""Moments of every token: equal to those of stored chains, shards equal to the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import xarray as xr
import zarr

from susceptibilities.components import component, component_names
from susceptibilities.evaluation import Evaluation
from susceptibilities.losses import PlainLosses, component_losses
from susceptibilities.models import GPTNeoX, GPTNeoXConfig, Transformer
from susceptibilities.moments import Moments
from susceptibilities.posterior import Sampler
from susceptibilities.store import fingerprint, open_zarr
from susceptibilities.token_estimates import TokenMoments, estimate_tokens
from susceptibilities.token_sampling import TokenTexts, read_probes, sample_tokens, token_table
from test_sampling import NAMES, SAMPLER, SHAPE, small_model


def token_texts() -> TokenTexts:
    rng = np.random.default_rng(0)

    def contexts(count: int) -> np.ndarray:
        return rng.integers(0, SHAPE.d_vocab, (count, SHAPE.n_ctx)).astype(np.uint16)

    return TokenTexts(contexts(8), {"a": contexts(3), "b": contexts(3)}, contexts(12))


def sample(out: Path, names: list[str] = NAMES, **changes) -> xr.Dataset:
    settings = dict(
        model=small_model(),
        seed=3,
        step=7,
        model_hash="m",
        device=torch.device("cpu"),
        report=print,
        sampler=SAMPLER,
    )
    settings.update(changes)
    settings = {"texts": token_texts(), **settings}
    sample_tokens(names=names, out=out, **settings)
    return open_zarr(out).load()


LINEAR = Evaluation(control_variate="linear")
NEOX = GPTNeoXConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=6, d_vocab=40, rotary_pct=0.5)


def small_neox() -> GPTNeoX:
    model = GPTNeoX(NEOX)
    model.initialise(torch.Generator().manual_seed(0))
    return model.eval()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *((small_model, name) for name in ("full", *component_names(SHAPE))),
        *((small_neox, name) for name in ("full", *component_names(NEOX))),
    ],
)
def test_the_store_equals_traces_along_the_same_chains(
    tmp_path: Path, model: Callable[[], Transformer], name: str
) -> None:
    """The same chains run again, every token's loss kept, and by the plain path."""
    data, texts, model = sample(tmp_path / "s.zarr", [name], model=model()), token_texts(), model()
    part = component(name, model.config, dict(model.named_parameters()))
    fast, plain = component_losses(model, part), PlainLosses(model, part)
    pool = fast.prepare(torch.from_numpy(texts.pool.astype(np.int64)))
    run = Sampler(
        lambda weights, rows: fast.loss_and_gradient(weights, pool, rows),
        fast.w_star,
        len(texts.pool),
        SAMPLER,
        3,
        f"step 7 per-token component {name}",
    )
    run.advance(SAMPLER.draws)
    tokens = plain.prepare(torch.from_numpy(texts.evaluated().astype(np.int64)))
    star = plain.star(tokens)
    trace = torch.stack([plain.shifts(weights, tokens) for weights in run.draws]).double()
    g = trace[:, :, :8].mean((2, 3)).numpy()
    stored = Moments.of(g, trace[:, :, 8:].flatten(2).numpy())
    np.testing.assert_allclose(data["mean_g"][0], stored.mean_x, atol=1e-6)
    np.testing.assert_allclose(data["mean_shift"][0], stored.mean_y, atol=3e-6)
    np.testing.assert_allclose(data["comoment"][0], stored.comoment, atol=3e-6)
    np.testing.assert_allclose(data["star"], star[8:].flatten(), atol=1e-5)


def test_the_control_variate_is_stored_beside_the_moments(tmp_path: Path) -> None:
    plain = sample(tmp_path / "plain.zarr")
    data = sample(tmp_path / "linear.zarr", evaluation=Evaluation(control_variate="linear"))
    assert {str(n) for n in data if "control" in str(n)} == {"control_g", "control_shift"}
    assert data["control_g"].dims == ("component", "chain")
    assert data["control_shift"].dims == ("component", "chain", "token")
    for name in plain.data_vars:
        np.testing.assert_allclose(plain[name], data[name], rtol=1e-4, atol=1e-7)
    assert all(variable.attrs["units"] for variable in data.data_vars.values())


def test_shards_hold_what_the_whole_holds(tmp_path: Path) -> None:
    whole = sample(tmp_path / "whole.zarr")
    shards = [sample(tmp_path / f"{i}.zarr", NAMES[i::2]) for i in range(2)]
    for shard in shards:
        places = [NAMES.index(name) for name in shard.attrs["component"]]
        for name in ("mean_g", "square_g", "mean_shift", "comoment", "trace"):
            assert np.array_equal(shard[name], whole[name][places])
        assert shard.attrs["identity"] == whole.attrs["identity"]


def test_the_unrestricted_chains_can_have_more_draws(tmp_path: Path) -> None:
    """Their moments are those of as many draws; shards of either kind are put together."""
    uneven = SAMPLER.model_copy(update={"unrestricted_draws": 5})
    shards = [sample(tmp_path / f"{i}.zarr", NAMES[i::2], sampler=uneven) for i in range(2)]
    long = sample(tmp_path / "long.zarr", ["full"], sampler=SAMPLER.model_copy(update={"draws": 5}))
    short = sample(tmp_path / "short.zarr")
    found = TokenMoments.of(shards)
    for name, mine in (("mean_g", "mean_x"), ("square_g", None), ("mean_shift", None)):
        assert np.array_equal(shards[0][name][0], long[name][0])
        if mine:
            heads = np.concatenate([short[name][i] for i in range(1, 5)])
            assert np.array_equal(getattr(found.moments, mine)[1:].ravel(), heads)
    assert found.moments.count.tolist() == [[5.0] * 4] + [[3.0] * 4] * 4
    chi = estimate_tokens(found)
    assert all(np.isfinite(chi[name]).all() for name in ("chi", "chi_se", "covariance"))


def test_identity_names_everything_the_result_depends_on(tmp_path: Path) -> None:
    first = sample(tmp_path / "1.zarr", ["full"])
    for other in (
        sample(tmp_path / "2.zarr", ["full"], seed=4),
        sample(tmp_path / "3.zarr", ["full"], model_hash="other"),
        sample(tmp_path / "4.zarr", ["full"], evaluation=Evaluation(control_variate="linear")),
    ):
        assert other.attrs["identity"] != first.attrs["identity"]
    assert first.attrs["identity"] == fingerprint(
        {
            "step": 7,
            "model": "m",
            "texts": token_texts().identity(),
            "sampler": SAMPLER.model_dump(),
            "evaluation": Evaluation().model_dump(),
            "seed": 3,
            "per_token": True,
        }
    )


def test_every_component_of_gpt_neox_in_the_order_of_the_model(tmp_path: Path) -> None:
    names = component_names(NEOX)
    shards = [
        sample(tmp_path / f"{i}.zarr", [*names, "full"][i::3], model=small_neox()) for i in range(3)
    ]
    found = TokenMoments.of(shards)
    assert found.components == ("full", *names)
    for shard in shards:
        for place, name in enumerate(shard.attrs["component"]):
            assert np.array_equal(
                found.moments.mean_x[found.components.index(name)], shard["mean_g"][place]
            )
    chi = estimate_tokens(found)
    assert chi["chi"].shape == (9, 30) and chi.attrs["component"] == ["full", *names]
    assert np.isfinite(chi["chi"]).all()


def test_blocks_of_tokens_have_the_same_chains(tmp_path: Path) -> None:
    """To the bit, whatever is evaluated along them; their identity as a run is the same."""
    rng = np.random.default_rng(1)
    kept = token_texts()
    contexts = rng.integers(0, SHAPE.d_vocab, (9, SHAPE.n_ctx)).astype(np.uint16)
    stores = []
    for number, count in enumerate((2, 7)):
        texts = TokenTexts(kept.base, {"a": contexts[:count]}, kept.pool)
        stores.append(sample(tmp_path / f"{number}.zarr", texts=texts, evaluation=LINEAR))
    one, two = stores
    assert one.attrs["run"] == two.attrs["run"] and one.attrs["identity"] != two.attrs["identity"]
    for name in one.data_vars:
        if "token" not in one[name].dims:
            assert np.array_equal(one[name], two[name], equal_nan=True), name
    for name in ("mean_shift", "comoment", "control_shift", "star"):
        # Shapes of blocks of contexts differ, and with them the last bits of a loss.
        np.testing.assert_allclose(one[name], two[name][..., :10], atol=1e-6)
    other = sample(tmp_path / "2.zarr", ["full"], seed=4, evaluation=LINEAR)
    assert other.attrs["run"] != one.attrs["run"]


def test_a_part_of_the_tokens_can_be_read_by_itself(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("susceptibilities.token_sampling.CHUNK", 8)
    sample(tmp_path / "s.zarr")
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    for name in ("mean_shift", "comoment"):
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert (array.shape, array.chunks) == ((5, 4, 30), (5, 4, 8))


def test_every_row_of_the_table_names_its_token(tmp_path: Path) -> None:
    texts = token_texts()
    strings = [f"<{number}>" for number in range(SHAPE.d_vocab)]
    losses = np.arange(2 * 3 * 5, dtype=np.float64)
    table = token_table(texts.probes, strings, losses)
    assert table["index"].to_list() == list(range(30))
    for row in table.iter_rows(named=True):
        token = int(texts.probes[row["probe"]][row["context"], row["position"]])
        assert (row["token"], row["text"]) == (token, f"<{token}>")
        assert row["loss"] == row["index"]
    assert table.filter(pl.col("probe") == "b")["index"].min() == 15
    later = token_table(texts.probes, strings, losses, first=3)
    assert later["context"].to_list() == [c + 3 for c in table["context"]]
    assert later.drop("context").equals(table.drop("context"))
    for name, contexts in texts.probes.items():
        np.save(tmp_path / f"probe.{name}.npy", contexts)
    read = read_probes(tmp_path, 2)
    assert list(read) == ["a", "b"] and read["a"].shape == (2, 6)
