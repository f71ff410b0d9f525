"""Tables of a run: the estimates of all checkpoints as Polars frames, ready for Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import xarray as xr

from .control_variate import Estimator, estimator_table
from .diagnostics import autocorrelation, effective_sample_size, split_rhat
from .estimators import FORMS, Estimate, estimate_checkpoint, healthy_chains
from .jackknife import split_reliability
from .naming import head_of
from .pca import joint_pca
from .posterior import SamplerConfig
from .sampling import load_losses
from .tokens import CONTROL_PROBE


def _long(estimate: Estimate, losses: xr.Dataset) -> tuple[pl.DataFrame, pl.DataFrame]:
    names, probes = losses.attrs["component"], losses.attrs["probe"]
    step = int(losses.attrs["step"])
    shape = (len(names), len(probes))
    keys = {
        "step": np.full(shape, step).ravel(),
        "probe": np.broadcast_to(np.array(probes), shape).ravel(),
        "component": np.broadcast_to(np.array(names)[:, None], shape).ravel(),
    }
    chains = np.broadcast_to(estimate.chains[:, None], shape).ravel()
    estimators = np.broadcast_to(np.array(estimate.estimators)[:, None], shape).ravel()
    values, replicates = [], []
    for form in FORMS:
        se_chain, se_data = estimate.se_chain[form], estimate.se_data[form]
        values.append(
            pl.DataFrame(keys).with_columns(
                form=pl.lit(form),
                value=estimate.value[form].ravel(),
                se=np.hypot(se_chain, se_data).ravel(),
                se_chain=se_chain.ravel(),
                se_data=se_data.ravel(),
                n_chains=chains,
                estimator=estimators,
            )
        )
        for number, replicate in enumerate(estimate.replicates[form]):
            replicates.append(
                pl.DataFrame(keys).with_columns(
                    form=pl.lit(form),
                    replicate=pl.lit(number, pl.Int64),
                    value=replicate.ravel(),
                )
            )
    return pl.concat(values), pl.concat(replicates)


def _health(losses: xr.Dataset, control: bool) -> pl.DataFrame:
    """One row a component and chain; R-hat, ESS and lag-1 are of all its healthy chains."""
    healthy, reasons = healthy_chains(losses)
    sampler = SamplerConfig.model_validate(losses.attrs["sampler"])
    base = losses["base_shift"].values.mean(-1)
    rows = []
    for i, name in enumerate(losses.attrs["component"]):
        own = sampler.of(name)
        traces = losses["trace"].values[i][healthy[i], own.burn_in : own.steps]
        rises, distances = (
            values[i, :, : own.draws] for values in (base, losses["distance"].values)
        )
        draws = rises[healthy[i]]
        shared = {
            "rhat": split_rhat(traces),
            "ess": effective_sample_size(draws),
            "lag1": float(autocorrelation(draws)[1]) if draws.shape[1] > 1 else float("nan"),
        }
        for chain, reason in enumerate(reasons[i]):
            rows.append(
                {
                    "step": int(losses.attrs["step"]),
                    "component": name,
                    "chain": chain,
                    "control": control,
                    **shared,
                    "acceptance": float(np.nanmean(losses["acceptance"].values[i, chain])),
                    "distance": float(distances[chain].mean()),
                    "rise": float(rises[chain].mean()),
                    "healthy": not reason,
                    "reason": reason,
                }
            )
    return pl.DataFrame(rows)


def _traces(losses: xr.Dataset) -> pl.DataFrame:
    sampler = SamplerConfig.model_validate(losses.attrs["sampler"])
    frames = []
    for name, values in zip(losses.attrs["component"], losses["trace"].values, strict=True):
        own = values[:, : sampler.of(name).steps]
        chain, t = np.indices(own.shape).reshape(2, -1)
        columns = {"chain": chain, "t": t, "loss": own.ravel()}
        step = pl.lit(int(losses.attrs["step"]), pl.Int64).alias("step")
        frames.append(pl.DataFrame(columns).select(step, pl.lit(name).alias("component"), *columns))
    return pl.concat(frames)


def parts_table(stores: Sequence[xr.Dataset], estimates: Sequence[Estimate]) -> pl.DataFrame:
    """How large each part of chi is, how reliable over chains, and its first PC's share.

    Sizes are standard deviations over checkpoints, heads and probes (the control probe left
    out); the reliability is the correlation between estimates from disjoint halves of the
    chains; the share is that of the first component of the joint PCA.
    """
    heads = [i for i, c in enumerate(stores[0].attrs["component"]) if head_of(c)]
    probes = [i for i, p in enumerate(stores[0].attrs["probe"]) if p != CONTROL_PROBE]
    rows = []
    for form in FORMS:
        # (step, [replicate,] component, probe) -> ([replicate,] probe, step, head)
        values = np.stack([e.value[form][heads][:, probes] for e in estimates])
        left_out = np.stack([e.replicates[form][:, heads][:, :, probes] for e in estimates])
        values, left_out = values.transpose(2, 0, 1), left_out.transpose(1, 3, 0, 2)
        reliability, error = split_reliability(values, left_out)
        rows.append(
            {
                "form": form,
                "size": float(values.std()),
                "reliability": reliability,
                "reliability_se": error,
                "pc1_share": float(joint_pca(values).share[0]),
            }
        )
    return pl.DataFrame(rows)


def _estimators(losses: xr.Dataset, estimate: Estimate, control: bool) -> pl.DataFrame:
    """Which estimator every component's means have, and what the check found."""
    table = estimator_table(losses.attrs["component"], estimate.estimators, estimate.check)
    step = pl.lit(int(losses.attrs["step"]), pl.Int64)
    return table.select(step.alias("step"), pl.lit(control).alias("control"), *table.columns)


def estimate_run(
    paths: Sequence[Path], control_paths: Sequence[Path], estimator: Estimator = "checked"
) -> dict[str, pl.DataFrame]:
    """All tables of a run from its loss stores.

    Args:
        estimator: of the means over chains, see `control_variate`.

    Returns:
        ``susceptibility``, ``replicates``, ``llc``, ``health``, ``traces``, ``parts``,
        ``estimator``, and for the n_beta = 0 stores ``control`` and ``control_parts`` (empty
        without any).
    """
    names = ("susceptibility", "replicates", "llc", "health", "traces", "estimator", "control")
    tables: dict[str, list[pl.DataFrame]] = {name: [] for name in names}
    stores = [load_losses(path) for path in sorted(paths)]
    controls = [load_losses(path) for path in sorted(control_paths)]
    estimates = [estimate_checkpoint(losses, estimator) for losses in stores]
    control_estimates = [estimate_checkpoint(losses, estimator) for losses in controls]
    for losses, estimate in zip(stores, estimates, strict=True):
        values, replicates = _long(estimate, losses)
        tables["susceptibility"].append(values)
        tables["replicates"].append(replicates)
        tables["llc"].append(
            pl.DataFrame(
                {
                    "step": np.full(len(estimate.llc), int(losses.attrs["step"])),
                    "component": losses.attrs["component"],
                    "llc": estimate.llc,
                    "se": estimate.llc_se,
                    "n_chains": estimate.chains,
                    "estimator": estimate.estimators,
                }
            )
        )
        tables["estimator"].append(_estimators(losses, estimate, control=False))
        tables["health"].append(_health(losses, control=False))
        tables["traces"].append(_traces(losses))
    for losses, estimate in zip(controls, control_estimates, strict=True):
        tables["control"].append(_long(estimate, losses)[0])
        tables["estimator"].append(_estimators(losses, estimate, control=True))
        tables["health"].append(_health(losses, control=True))
    frames = {name: pl.concat(parts) if parts else pl.DataFrame() for name, parts in tables.items()}
    frames["parts"] = parts_table(stores, estimates)
    frames["control_parts"] = (
        parts_table(controls, control_estimates) if controls else pl.DataFrame()
    )
    return frames
