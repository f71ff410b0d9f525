"""The spectral estimates of a run: loss sets as replicates, in the place of chains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import xarray as xr

from .estimators import FORMS
from .jackknife import jackknife_se
from .loss_sets import CONTROL, POSTERIOR
from .moments import Array
from .per_token import TOKENS, PerToken, folder_of
from .store import open_zarr, read_json

STORE = "spectral"
Derivatives = Literal["averaged", "point"]


def read_sets(paths: Iterable[Path]) -> xr.Dataset:
    """Shards of `spectral_sets.spectral_sets`, put together along ``component``.

    Coordinates ``component``, ``run``, ``source`` (of every set) and ``stage`` are names.

    Raises:
        ValueError: shards of different runs, or a component twice.
    """
    shards = [open_zarr(path).load() for path in paths]
    first = shards[0].attrs
    if any(shard.attrs["identity"] != first["identity"] for shard in shards):
        raise ValueError("spectral shards of different runs: model, text or settings differ")
    names = [name for shard in shards for name in shard.attrs["component"]]
    if len(set(names)) < len(names):
        raise ValueError(f"spectral shards must hold every component once; found {names}")
    data = xr.concat(
        [shard.drop_attrs() for shard in shards],
        "component",
        join="exact",
        coords="minimal",
        compat="override",
    )
    data.attrs = {**first, "component": names}
    return data.assign_coords(
        component=names,
        run=list(first["run"]),
        source=("set", list(first["source"])),
        stage=list(first["stage"]),
    )


def load_sets(results: Path, step: int | None = None) -> xr.Dataset:
    """The loss sets' terms of one checkpoint, see `read_sets`.

    Args:
        results: folder of one scale.
        step: training step of the checkpoint; the last per-token one by default.

    Raises:
        FileNotFoundError: the run has none.
    """
    folder = folder_of(results, _step(results, step))
    paths = sorted(folder.glob(f"{STORE}.*.zarr"))
    if not paths:
        raise FileNotFoundError(
            f"no {STORE}.*.zarr in {folder}: build them with `snakemake spectral`, with "
            "two_layer.per_token.spectral in the scale file"
        )
    return read_sets(paths)


def _step(results: Path, step: int | None) -> int:
    if step is not None:
        return step
    return max(read_json(results / "config.json")["two_layer"]["per_token"]["checkpoints"])


def covariance(
    data: xr.Dataset,
    run: str = POSTERIOR,
    derivatives: Derivatives | None = None,
    wide: bool | None = None,
    completed: bool | None = None,
) -> Array:
    """The covariance part of every loss set, -Cov(L_n, l_i - L_n), (component, set, token).

    Args:
        derivatives: ``averaged`` over random displacements of the Gaussian (of the linear term and
            of the first pairs), or at one ``point``, its mean. By default averaged where that was
            measured, which the control is not.
        wide: with the gradient of the larger sets; by default where there are any. Averaged ones
            always are.
        completed: with the mean estimate of what the pairs leave out; by default where it was
            measured. Without, the estimate has less noise and lacks thousands of small pairs.

    Raises:
        ValueError: averaged derivatives are asked for where there are none.
    """
    chosen = data.sel(run=run)
    measured = "averaged_linear" in data and run == POSTERIOR
    if derivatives == "averaged" and not measured:
        raise ValueError(
            f"no averaged derivatives of {run}: they are measured of {POSTERIOR} alone, and only "
            "with averaged above 0 in two_layer.per_token.spectral"
        )
    if derivatives == "averaged" or (derivatives is None and measured):
        linear = data["averaged_linear"].mean("draw")
        quadratic = chosen["quadratic"] - data["here"] + data["averaged_quadratic"].mean("draw")
        variance = chosen["pairs_variance"] - data["here_variance"] + data["averaged_variance"]
    else:
        larger = "wide_linear" in data if wide is None else wide
        linear = chosen["wide_linear" if larger else "linear"]
        variance = chosen["wide_variance" if larger else "variance"]
        quadratic = chosen["quadratic"]
    value = linear + quadratic - variance
    if "rest_quadratic" in data if completed is None else completed:
        value = value + data["rest_quadratic"].mean("probe") - data["rest_variance"].mean("probe")
    return -value.transpose("component", "set", "token").values


def load_spectral(
    results: Path,
    control: bool = False,
    step: int | None = None,
    derivatives: Derivatives | None = None,
    wide: bool | None = None,
    completed: bool | None = None,
) -> PerToken:
    """The spectral estimate as per-token susceptibilities, loss sets in the place of chains.

    Only the covariance part is estimated: the convention ``second_factor = same_chain``, in which
    chi is its covariance part and the two others are zero. Values are means over sets; tokens are
    those of the first contexts of every probe.

    Args:
        control: for n_beta = 0.
        derivatives, wide, completed: which estimator, see `covariance`.

    Raises:
        FileNotFoundError: the run has no such estimates.
    """
    step = _step(results, step)
    data = load_sets(results, step)
    run = CONTROL if control else POSTERIOR
    if run not in data.attrs["run"]:
        raise FileNotFoundError(
            f"no n_beta = 0 control among the spectral estimates of step {step}: add the step to "
            "two_layer.per_token.control_checkpoints"
        )
    sets = covariance(data, run, derivatives, wide, completed)
    count = sets.shape[1]
    value = sets.mean(1)
    replicates = ((count * value[:, None] - sets) / (count - 1)).swapaxes(0, 1)
    nothing = ("rank_one", "mean_shift")
    values = {form: 0 * value if form in nothing else value for form in FORMS}
    left_out = {form: 0 * replicates if form in nothing else replicates for form in FORMS}
    tokens = pl.read_parquet(folder_of(results, step) / TOKENS)
    tokens = tokens.filter(pl.col("context") < data.attrs["spectral"]["token_contexts"])
    return PerToken(
        tokens=tokens.with_columns(pl.Series("index", np.arange(len(tokens)))),
        components=tuple(data.attrs["component"]),
        value=values,
        se={form: jackknife_se(part) for form, part in left_out.items()},
        replicates={form: part.astype(np.float32) for form, part in left_out.items()},
        step=step,
        n_beta=0.0 if control else float(data.attrs["n_beta"]),
        draws=1,
        estimators=("spectral",) * len(data.attrs["component"]),
    )
