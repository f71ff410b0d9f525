"""Streamed moments of every token: equal to those of stored chains, shards equal to the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from susceptibilities.components import component
from susceptibilities.losses import PlainLosses, component_losses
from susceptibilities.moments import Moments
from susceptibilities.posterior import Sampler
from susceptibilities.store import fingerprint
from susceptibilities.token_sampling import (
    StreamedMoments,
    TokenTexts,
    read_probes,
    sample_tokens,
    token_table,
)
from test_sampling import NAMES, SAMPLER, SHAPE, small_model


def token_texts() -> TokenTexts:
    rng = np.random.default_rng(0)

    def contexts(count: int) -> np.ndarray:
        return rng.integers(0, SHAPE.d_vocab, (count, SHAPE.n_ctx)).astype(np.uint16)

    return TokenTexts(contexts(8), {"a": contexts(3), "b": contexts(3)}, contexts(12))


def sample(out: Path, names: list[str] = NAMES, seed: int = 3, model_hash: str = "m") -> xr.Dataset:
    device = torch.device("cpu")
    sample_tokens(
        small_model(),
        names,
        token_texts(),
        SAMPLER,
        seed,
        7,
        model_hash,
        out,
        device,
        lambda _: None,
    )
    return xr.open_zarr(out, consolidated=False).load()


@given(st.integers(1, 12), st.integers(0, 10_000))
def test_streaming_equals_stored_traces(draws: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    g, shift = 3 + rng.normal(size=(2, draws)), 100 + rng.normal(size=(2, draws, 5))
    stream = StreamedMoments(2, 5)
    for draw in range(draws):
        stream.add(g[:, draw], shift[:, draw])
    stored, own = Moments.of(g, shift), Moments.of(g, g[..., None])
    for found, expected in (
        (stream.mean_g, stored.mean_x),
        (stream.mean_shift, stored.mean_y),
        (stream.comoment, stored.comoment),
        (stream.square_g, own.comoment[..., 0]),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["full", "0:1", "1:0"])
def test_the_store_equals_traces_along_the_same_chains(tmp_path: Path, name: str) -> None:
    """The same chains run again, every token's loss kept, and by the plain path."""
    data, texts, model = sample(tmp_path / "s.zarr", [name]), token_texts(), small_model()
    part = component(name, SHAPE, dict(model.named_parameters()))
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
    tokens = plain.prepare(torch.from_numpy(texts.evaluated().astype(np.int64)))
    star = plain.losses(plain.w_star[None], tokens)
    trace = torch.stack([plain.losses(d.weights, tokens) - star for d in run.draws()], 1).double()
    g = trace[:, :, :8].mean((2, 3)).numpy()
    stored = Moments.of(g, trace[:, :, 8:].flatten(2).numpy())
    np.testing.assert_allclose(data["mean_g"][0], stored.mean_x, atol=1e-6)
    np.testing.assert_allclose(data["mean_shift"][0], stored.mean_y, atol=3e-6)
    np.testing.assert_allclose(data["comoment"][0], stored.comoment, atol=3e-6)
    np.testing.assert_allclose(data["star"], star[0, 8:].flatten(), atol=1e-5)


def test_shards_hold_what_the_whole_holds(tmp_path: Path) -> None:
    whole = sample(tmp_path / "whole.zarr")
    shards = [sample(tmp_path / f"{i}.zarr", NAMES[i::2]) for i in range(2)]
    for shard in shards:
        places = [NAMES.index(name) for name in shard.attrs["component"]]
        for name in ("mean_g", "square_g", "mean_shift", "comoment", "trace"):
            assert np.array_equal(shard[name], whole[name][places])
        assert shard.attrs["identity"] == whole.attrs["identity"]


def test_identity_names_everything_the_result_depends_on(tmp_path: Path) -> None:
    first = sample(tmp_path / "1.zarr", ["full"])
    for other in (
        sample(tmp_path / "2.zarr", ["full"], seed=4),
        sample(tmp_path / "3.zarr", ["full"], model_hash="other"),
    ):
        assert other.attrs["identity"] != first.attrs["identity"]
    assert first.attrs["identity"] == fingerprint(
        {
            "step": 7,
            "model": "m",
            "texts": token_texts().identity(),
            "sampler": SAMPLER.model_dump(),
            "seed": 3,
            "per_token": True,
        }
    )


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
    for name, contexts in texts.probes.items():
        np.save(tmp_path / f"probe.{name}.npy", contexts)
    read = read_probes(tmp_path, 2)
    assert list(read) == ["a", "b"] and read["a"].shape == (2, 6)
