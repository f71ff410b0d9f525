"""Stores of `token_sampling.sample_tokens` with invented moments of any number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import xarray as xr

from susceptibilities.components import component_names
from susceptibilities.models import GPTNeoXConfig

SHAPE = GPTNeoXConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=6, d_vocab=40, rotary_pct=0.5)
COMPONENTS = component_names(SHAPE)
NAMES = ["full", *COMPONENTS]
LENGTH = 10


def planted_moments(
    tokens: int, names: Sequence[str] = NAMES, chains: int = 4, control: bool = True, seed: int = 0
) -> xr.Dataset:
    """Components as given; the control variate holds noise, and is biased for a third of them."""
    rng = np.random.default_rng(seed)
    shape = (len(names), chains, tokens)
    mean_g = 0.1 + 0.01 * rng.normal(size=shape[:2])
    noise = rng.normal(size=shape)
    off = 0.5 * rng.normal(size=shape)
    shift = rng.normal(size=(len(names), 1, tokens)) + 0.3 * noise + off
    bias = 1.0 * (np.arange(len(names))[:, None] % 3 == 1)
    variables = {
        "mean_g": (("component", "chain"), mean_g),
        "square_g": (("component", "chain"), 1e-3 * rng.uniform(1, 2, shape[:2])),
        "mean_shift": (("component", "chain", "token"), shift),
        "comoment": (("component", "chain", "token"), 1e-3 * rng.normal(size=shape)),
        "distance": (("component", "chain", "draw"), np.ones((*shape[:2], 5))),
        "died": (("component", "chain"), np.full(shape[:2], -1)),
        "size": (("component",), np.full(len(names), 100)),
        "draws": (("component",), np.full(len(names), 5)),
        "star": (("token",), rng.uniform(0, 9, tokens)),
    }
    if control:
        of_g = bias + 1e-3 * rng.normal(size=shape[:2])
        variables["control_g"] = (("component", "chain"), of_g)
        variables["control_shift"] = (("component", "chain", "token"), off)
    attributes = {
        "identity": "planted",
        "run": "planted run",
        "component": list(names),
        "step": 7,
        "n_beta": 10.0,
        "localization": 50.0,
        "draws": 5,
        "sampler": {"n_beta": 10.0},
        "evaluation": {"control_variate": "linear" if control else "none"},
        "seed": seed,
        "device": "cpu",
    }
    return xr.Dataset(variables, attrs=attributes)


def take(data: xr.Dataset, names: Sequence[str], rows: slice, block: int) -> xr.Dataset:
    """A shard of it: some components, some tokens."""
    places = [data.attrs["component"].index(name) for name in names]
    return data.isel(component=places, token=rows).assign_attrs(
        component=list(names), identity=f"planted {block}"
    )


def write(data: xr.Dataset, path: Path, chunk: int = 256) -> Path:
    chunks = {
        name: {"chunks": (*v.shape[:-1], min(chunk, v.shape[-1]))}
        for name, v in data.data_vars.items()
        if "token" in v.dims
    }
    data.to_zarr(path, zarr_format=3, consolidated=False, encoding=chunks)
    return path


def table_of(data: xr.Dataset, rows: slice = slice(None)) -> pl.LazyFrame:
    """A token table: contexts of `LENGTH` tokens, two probes in turn."""
    star = data["star"].values
    index = np.arange(len(star))
    context = index // LENGTH
    columns = {
        "index": index,
        "probe": np.where(context % 2, "b", "a"),
        "context": context // 2,
        "position": index % LENGTH + 1,
        "token": index % 17,
        "text": [f"<{i % 17}>" for i in index],
        "loss": star,
    }
    return pl.DataFrame({name: values[rows] for name, values in columns.items()}).lazy()


def blocks_of(
    data: xr.Dataset, folder: Path, groups: Sequence[Sequence[str]], cuts: Sequence[int]
) -> tuple[list[list[Path]], list[pl.LazyFrame]]:
    """Shards of component groups times blocks of tokens that end at ``cuts``, and their tables."""
    folder.mkdir(exist_ok=True)
    paths, tables = [], []
    for block, (start, stop) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True)):
        rows = slice(start, stop)
        paths.append(
            [
                write(take(data, names, rows, block), folder / f"{block}.{number}.zarr")
                for number, names in enumerate(groups)
            ]
        )
        tables.append(table_of(data, rows))
    return paths, tables
