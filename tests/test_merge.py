"""Merged shards are the unsharded estimate; what does not belong together is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import xarray as xr

from planted_shards import (
    COMPONENTS,
    NAMES,
    blocks_of,
    planted_moments,
    table_of,
    take,
    write,
)
from susceptibilities.control_variate import Estimator
from susceptibilities.estimators import FORMS
from susceptibilities.matrix import TOKENS, SusceptibilityMatrix
from susceptibilities.merge import ESTIMATOR, merge_shards
from susceptibilities.models import GPTNeoX
from susceptibilities.store import open_zarr
from susceptibilities.token_estimates import TokenMoments, estimate_tokens
from susceptibilities.token_sampling import TokenTexts, sample_tokens, token_table
from test_token_sampling import LINEAR, NEOX, SAMPLER, small_neox, token_texts

GROUPS = [NAMES[i::3] for i in range(3)]
CUTS = (300, 310, 720)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 256 rows, so that blocks are cut and chunks are of two blocks."""
    monkeypatch.setattr("susceptibilities.matrix._CHUNK", 1)


def merged(
    data: xr.Dataset, folder: Path, groups=GROUPS, cuts=CUTS, **settings
) -> SusceptibilityMatrix:
    paths, tables = blocks_of(data, folder, groups, cuts)
    merge_shards(paths, tables, folder / "out", COMPONENTS, "planted", **settings)
    return SusceptibilityMatrix.open(folder / "out")


def expected(data: xr.Dataset, estimator: Estimator) -> xr.Dataset:
    """The estimate of the whole, without the column of the unrestricted chains."""
    return estimate_tokens(TokenMoments.of([data], estimator)).isel(component=slice(1, None))


@pytest.mark.parametrize("control", [False, True])
def test_without_control_variate_the_same_bits_as_the_unsharded_estimate(
    tmp_path: Path, control: bool
) -> None:
    data = planted_moments(720, control=control)
    matrix, whole = merged(data, tmp_path, estimator="plain"), expected(data, "plain")
    assert matrix.components == tuple(COMPONENTS) and matrix.shape == (720, 8)
    assert matrix.data.attrs["estimator"] == ["plain"] * 8
    for form in FORMS:
        for name in (form, f"{form}_se"):
            assert np.array_equal(matrix.load(name), whole[name].values.T.astype(np.float32)), name
    assert {a.attrs["units"] for a in matrix.data.data_vars.values()} == {"nats squared"}


@pytest.mark.parametrize("estimator", ["control_variate", "checked"])
def test_the_control_variate_is_chosen_over_all_blocks(
    tmp_path: Path, estimator: Estimator
) -> None:
    data = planted_moments(720)
    matrix, whole = merged(data, tmp_path, estimator=estimator), expected(data, estimator)
    assert matrix.data.attrs["estimator"] == whole.attrs["estimator"][1:]
    if estimator == "checked":
        assert set(matrix.data.attrs["estimator"]) == {"plain", "control_variate"}
    for form in FORMS:
        for name in (form, f"{form}_se"):
            # Sums over tokens in another order, and rounding to single precision.
            np.testing.assert_allclose(matrix.load(name), whole[name].values.T, rtol=1e-5)
    table = pl.read_parquet(matrix.folder / ESTIMATOR)
    reference = TokenMoments.of([data], estimator).estimator_table()
    assert table["component"].to_list() == NAMES
    for name in ("ratio", "coefficient", "t", "rms_t"):
        np.testing.assert_allclose(table[name], reference[name], rtol=1e-9)


def test_one_block_has_the_same_bits_with_the_control_variate_too(tmp_path: Path) -> None:
    data = planted_moments(200)
    matrix, whole = merged(data, tmp_path, cuts=[200]), expected(data, "checked")
    for name in ("chi", "mean_shift_se"):
        assert np.array_equal(matrix.load(name), whole[name].values.T.astype(np.float32))


def test_halves_are_the_estimates_from_every_other_healthy_chain(tmp_path: Path) -> None:
    data = planted_moments(300, control=False, chains=5)
    data["died"].values[2, 0] = 3
    matrix = merged(data, tmp_path, cuts=[300])
    # Healthy chains in turn: of most components 0 2 4 and 1 3, of the third 1 3 and 2 4.
    chains = np.tile([[0, 2, 4], [1, 3, 3]], (len(NAMES), 1, 1))
    chains[2] = [[1, 3, 3], [2, 4, 4]]
    for half in range(2):
        kept = np.zeros(data["died"].shape, dtype=bool)
        np.put_along_axis(kept, chains[:, half], True, axis=1)
        reduced = data.copy(deep=True)
        reduced["died"].values[~kept] = 1
        for form in FORMS:
            whole = expected(reduced, "plain")[form].values.T
            np.testing.assert_allclose(matrix.load(f"{form}_half")[half], whole, rtol=1e-6)


def test_rows_are_read_in_order_some_at_a_time(tmp_path: Path) -> None:
    matrix = merged(planted_moments(720), tmp_path)
    blocks = list(matrix.blocks("mean_shift"))
    assert [len(b) for b in blocks] == [256, 256, 208] and blocks[0].dtype == np.float64
    assert np.array_equal(np.concatenate(blocks), matrix.load("mean_shift"))
    versions = np.concatenate(list(matrix.versions("chi", "chi_half")), 1)
    assert versions.shape == (3, 720, 8)
    assert np.array_equal(versions[1:], matrix.load("chi_half"))


def test_the_table_is_aligned(tmp_path: Path) -> None:
    data = planted_moments(720)
    matrix = merged(data, tmp_path)
    tokens = matrix.tokens()
    assert tokens["index"].to_list() == list(range(720))
    assert tokens.drop("index").equals(table_of(data).collect().drop("index"))
    assert matrix.data.attrs["block_tokens"] == [300, 10, 410]
    tokens.with_columns(loss=-pl.col("loss")).write_parquet(matrix.folder / TOKENS)
    with pytest.raises(ValueError, match="not the table of this matrix"):
        matrix.tokens()
    tokens.head(5).write_parquet(matrix.folder / TOKENS)
    with pytest.raises(ValueError, match="720 rows and its token table 5"):
        SusceptibilityMatrix.open(matrix.folder)
    with pytest.raises(FileNotFoundError, match="no susceptibility matrix"):
        SusceptibilityMatrix.open(tmp_path)


@pytest.fixture
def shards(tmp_path: Path) -> tuple[xr.Dataset, list[list[Path]], list[pl.LazyFrame]]:
    data = planted_moments(40)
    return data, *blocks_of(data, tmp_path, GROUPS, (20, 40))


def refused(paths, tables, out: Path, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        merge_shards(paths, tables, out, COMPONENTS, "planted")
    assert not out.exists() and not list(out.parent.glob(f".{out.name}.*"))


def test_missing_and_duplicate_shards_are_named(tmp_path: Path, shards) -> None:
    _, paths, tables = shards
    out = tmp_path / "out"
    refused(
        [paths[0], paths[1][:2]], tables, out, r"block 1: no shard holds 0:0, 1:0, unembed; found 6"
    )
    refused(
        [[*paths[0], paths[0][1]], paths[1]], tables, out, r"component embed is in .*0\.1\.zarr"
    )
    refused([paths[0], paths[0]], tables, out, r"blocks 0 and 1 hold the same tokens: .*0\.0\.zarr")
    gone = [[*paths[0][:2], tmp_path / "no.zarr"], paths[1]]
    refused(gone, tables, out, r"block 0: no shard .*no\.zarr", FileNotFoundError)
    refused(paths, tables[:1], out, "one token table a block")
    with pytest.raises(ValueError, match=r"holds component 1:1, which is not among the 7"):
        merge_shards(paths, tables, out, [c for c in COMPONENTS if c != "1:1"], "planted")


def test_shards_of_other_runs_are_refused(tmp_path: Path, shards) -> None:
    data, paths, tables = shards
    out = tmp_path / "out"
    rows = slice(20, 40)

    def replaced(name: str, shard: xr.Dataset) -> list[list[Path]]:
        return [paths[0], [write(shard, tmp_path / f"{name}.zarr"), *paths[1][1:]]]

    foreign = take(data, GROUPS[0], rows, 1).assign_attrs(identity="other", seed=1)
    refused(replaced("a", foreign), tables, out, r"block 1: .*different runs: seed differ")
    foreign = take(data, GROUPS[0], rows, 1).assign_attrs(identity="other")
    refused(replaced("b", foreign), tables, out, r"model or text differ")

    def other_block(name: str, change) -> list[list[Path]]:
        made = []
        for number, names in enumerate(GROUPS):
            shard = take(data, names, rows, 1).copy(deep=True)
            change(shard)
            made.append(write(shard, tmp_path / f"{name}.{number}.zarr"))
        return [paths[0], made]

    def another_run(shard: xr.Dataset) -> None:
        shard.attrs |= {"run": "other", "sampler": {"n_beta": 3.0}}

    def another_model(shard: xr.Dataset) -> None:
        shard.attrs["run"] = "other"

    def old(shard: xr.Dataset) -> None:
        del shard.attrs["run"]

    def other_draws(shard: xr.Dataset) -> None:
        shard["mean_g"].values *= 1.01

    def lost_chain(shard: xr.Dataset) -> None:
        shard["died"].values[0, 1] = 2

    def damaged(shard: xr.Dataset) -> None:
        shard["comoment"].values[1, 2, 3] = np.nan

    refused(other_block("c", another_run), tables, out, "different runs: sampler differ")
    refused(other_block("d", another_model), tables, out, "model, base or pool differ")
    refused(other_block("e", old), tables, out, "do not say which run")
    refused(other_block("f", other_draws), tables, out, "full has other chains in block 1")
    refused(other_block("g", lost_chain), tables, out, "healthy differs")
    refused(other_block("h", damaged), tables, out, r"1 of 20 tokens have a chi that is not finite")


def test_tables_of_other_tokens_are_refused(tmp_path: Path, shards) -> None:
    _, paths, (one, two) = shards
    out = tmp_path / "out"
    refused(paths, [two, one], out, "20 of 20 losses at w. in its table are not")
    refused(paths, [one, two.head(19)], out, "20 tokens, its table 19 rows")
    again = two.with_columns(context=pl.col("context") - 1)
    refused(paths, [one, again], out, r"context 0 of a is in the tables of blocks \[0, 1\]")


def test_rounding_of_another_device_is_not_another_run(tmp_path: Path, shards) -> None:
    data, paths, tables = shards
    made = []
    for number, names in enumerate(GROUPS):
        shard = take(data, names, slice(20, 40), 1).copy(deep=True)
        shard["mean_g"].values *= 1 + 1e-6
        made.append(write(shard, tmp_path / f"x.{number}.zarr"))
    merge_shards([paths[0], made], tables, tmp_path / "out", COMPONENTS, "planted")
    matrix = SusceptibilityMatrix.open(tmp_path / "out")
    np.testing.assert_allclose(matrix.load(), expected(data, "checked")["chi"].values.T, rtol=1e-3)


def peak(folder: Path, tokens: int, blocks: int) -> int:
    """Bytes that merging takes at its peak."""
    data = planted_moments(tokens, control=True)
    cuts = [tokens * (n + 1) // blocks // 20 * 20 for n in range(blocks - 1)] + [tokens]
    paths, tables = blocks_of(data, folder, GROUPS, cuts)
    del data
    tracemalloc.start()
    merge_shards(paths, tables, folder / "out", COMPONENTS, "planted")
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_tokens(tmp_path: Path) -> None:
    peak(tmp_path / "warm", 512, 2)  # what is imported and cached on first use
    few, many = peak(tmp_path / "few", 512, 2), peak(tmp_path / "many", 4096, 2)
    # How many chunks are read at a time varies; the moments of one whole block would be 3 MB.
    assert many < few + 8e5 < 2.5e6, (few, many)


def test_sampled_blocks_and_groups_are_one_sampled_run(tmp_path: Path) -> None:
    """The whole way, from a model of the class of Pythia."""
    texts, strings = token_texts(), [f"<{i}>" for i in range(NEOX.d_vocab)]
    model: GPTNeoX = small_neox()

    def sampled(name: str, names: list[str], start: int, stop: int) -> Path:
        probes = {p: contexts[start:stop] for p, contexts in texts.probes.items()}
        out = tmp_path / f"{name}.zarr"
        some = TokenTexts(texts.base, probes, texts.pool)
        cpu = torch.device("cpu")
        sample_tokens(model, names, some, SAMPLER, 3, 7, "m", out, cpu, evaluation=LINEAR)
        return out

    names = ["full", "mlp:0", "unembed"]
    whole = TokenMoments.of([open_zarr(sampled("whole", names, 0, 3)).load()])
    spans = [(0, 1), (1, 3)]
    blocks = [[sampled(f"{a}.{i}", names[i::2], a, b) for i in range(2)] for a, b in spans]
    tables = [
        token_table(
            {p: c[a:b] for p, c in texts.probes.items()},
            strings,
            open_zarr(paths[0])["star"].values,
            first=a,
        ).lazy()
        for (a, b), paths in zip(spans, blocks, strict=True)
    ]
    merge_shards(blocks, tables, tmp_path / "out", names[1:], "small")
    matrix = SusceptibilityMatrix.open(tmp_path / "out")
    tokens = matrix.tokens()
    # Blocks go one after another, and probes within a block.
    order = tokens.select("probe", "context", "position").with_columns(
        place=pl.struct(
            pl.col("probe"), pl.col("context"), pl.col("position")
        ).rank("ordinal").cast(pl.Int64) - 1
    )["place"].to_numpy()  # fmt: skip
    chi = estimate_tokens(whole)
    assert matrix.data.attrs["estimator"] == list(whole.estimators[1:])
    for form in FORMS:
        np.testing.assert_allclose(
            matrix.load(form), chi[form].values[1:].T[order], rtol=1e-3, atol=1e-7
        )
    for row, probe, context, position in tokens.select(
        "token", "probe", "context", "position"
    ).iter_rows():
        assert texts.probes[probe][context, position] == row
