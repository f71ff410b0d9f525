"""A small sweep of the sampler's settings, judged by the criteria of the sampling guide.

Good traces rise above the loss at w*, level off, have no spikes, and chains agree. One
setting must serve all components, so a setting is as good as its worst component.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
import torch

from .chains import Chains
from .components import component
from .diagnostics import autocorrelation, split_rhat, unhealthy
from .losses import component_losses, context_losses
from .models.transformer import Transformer
from .posterior import SamplerConfig
from .sampling import sample_component
from .tokens import Contexts

# Bounds of the criteria; a setting that misses one is named for it in the table.
MAX_RHAT = 1.1
MIN_ACCEPTANCE = 0.25
MAX_TREND = 3.0
MAX_SPIKE = 8.0


def judge(row: dict[str, float]) -> str:
    """Why a setting is not acceptable for a component; an empty string if it is."""
    if row["lost"]:
        return f"{row['lost']:.0f} chains diverged or left the neighbourhood"
    faults = []
    if not row["rhat"] < MAX_RHAT:
        faults.append("chains disagree")
    if not abs(row["trend"]) < MAX_TREND:
        faults.append("not level")
    if not row["acceptance"] > MIN_ACCEPTANCE:
        faults.append("step too large")
    if not row["spike"] < MAX_SPIKE:
        faults.append("spikes")
    if not row["signal"] > 3:
        faults.append("no rise above w*")
    return ", ".join(faults)


def one_at_a_time(
    centre: SamplerConfig, choices: Mapping[str, Sequence[float]]
) -> list[SamplerConfig]:
    """The centre, and every setting that differs from it in one of the choices."""
    found = [centre]
    for name, values in choices.items():
        for value in values:
            other = centre.model_copy(update={name: value})
            if other not in found:
                found.append(other)
    return found


def sweep(
    model: Transformer,
    names: Sequence[str],
    base: Contexts,
    pool: Contexts,
    candidates: Sequence[SamplerConfig],
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> pl.DataFrame:
    """Sample each component with every candidate setting.

    Returns:
        One row a setting and component: ``rise`` of the loss above w* on ``base`` (nats per
        token), ``signal`` = rise over its standard error across chains, ``rhat`` of the
        minibatch losses after burn-in, ``trend`` = change from the third to the last quarter
        of the trace in standard errors, ``spike`` = largest deviation in standard deviations,
        ``lag1`` autocorrelation from draw to draw, ``acceptance``, ``lost`` chains, ``fault``.
    """
    parameters = dict(model.named_parameters())
    evaluated = torch.from_numpy(base.astype(np.int64))
    pool_tokens = torch.from_numpy(pool.astype(np.int64))
    pool_star = context_losses(model, pool_tokens).double()
    rows = []
    for name in names:
        losses = component_losses(model, component(name, model.config, parameters))
        prepared, pool_prepared = losses.prepare(evaluated), losses.prepare(pool_tokens)
        for settings in candidates:
            data = sample_component(
                Chains(losses, prepared, pool_prepared, pool_star, settings, seed, f"sweep {name}")
            )
            reasons = unhealthy(
                data["died"].values,
                data["distance"].values,
                int(data["size"]),
                settings.localization,
            )
            row: dict[str, float | str] = {
                "component": name,
                "step_size": settings.step_size,
                "n_beta": settings.n_beta,
                "localization": settings.localization,
                "lost": float(sum(map(bool, reasons))),
                **_trace_scores(data["trace"].values[:, settings.burn_in :]),
            }
            shift = data["shift"].values.mean(-1)
            mean = shift.mean(1)
            row["rise"] = float(mean.mean())
            row["signal"] = float(mean.mean() / (mean.std(ddof=1) / np.sqrt(len(mean))))
            row["lag1"] = float(autocorrelation(shift)[1])
            row["acceptance"] = float(data["acceptance"].mean())
            row["distance"] = float(data["distance"].mean())
            row["fault"] = judge(row)  # type: ignore[arg-type]
            rows.append(row)
            report(
                f"{name} step {settings.step_size:g} n_beta {settings.n_beta:g} localization "
                f"{settings.localization:g}: {row['fault'] or 'acceptable'}"
            )
    return pl.DataFrame(rows)


def _trace_scores(trace: np.ndarray) -> dict[str, float]:
    quarter = trace.shape[1] // 4
    third, last = trace[:, -2 * quarter : -quarter].mean(1), trace[:, -quarter:].mean(1)
    change = last - third
    error = change.std(ddof=1) / np.sqrt(len(change))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "rhat": split_rhat(trace),
            "trend": float(change.mean() / error),
            "spike": float(np.abs((trace - trace.mean()) / trace.std()).max()),
        }


def summary(table: pl.DataFrame) -> pl.DataFrame:
    """One row a setting: its worst component in every score, acceptable settings first."""
    return (
        table.group_by("step_size", "n_beta", "localization")
        .agg(
            acceptable=(pl.col("fault") == "").sum(),
            components=pl.len(),
            lost=pl.col("lost").sum(),
            rhat=pl.col("rhat").max(),
            trend=pl.col("trend").abs().max(),
            acceptance=pl.col("acceptance").min(),
            lag1=pl.col("lag1").max(),
            signal=pl.col("signal").min(),
            faults=pl.col("fault").filter(pl.col("fault") != "").unique().sort().str.join("; "),
        )
        .sort(["acceptable", "lost", "signal"], descending=[True, False, True])
    )
