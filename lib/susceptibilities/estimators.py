"""Susceptibilities and local learning coefficients from losses along chains.

With g = L_n(w) - L_n(w*) and dL = L_n^{dh}(w) - L_n(w), both measured from their values at
w*, Baker eq. 41 with chains of the component (C) and unrestricted ones (full) is

    chi = -(E_C[g dL] - E_C[g] E_full[dL])
        = -Cov_C(g, dL)  +  E_C[g] E_full[dL]  -  E_C[g] E_C[dL]
           covariance        rank_one             mean_shift

Measuring dL from w* changes none of the estimates of chi (a constant in dL cancels in eq. 41);
it fixes what the second and third part mean. The means may be those of the control variate
(`control_variate`); the covariance is the plain one all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .control_variate import (
    CONTROLLED,
    Check,
    Estimator,
    Offset,
    check,
    coefficients,
    names_of,
    pool,
)
from .diagnostics import unhealthy
from .jackknife import jackknife_se
from .moments import Array, Moments

FORMS = ("chi", "covariance", "rank_one", "mean_shift")
MIN_CHAINS = 2


class Convention(BaseModel):
    """How chi is written; the papers and peers differ, the defaults are Baker eq. 41."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    second_factor: Literal["full", "same_chain"] = "full"
    """Chains of the second factor of eq. 41: unrestricted, or the component's own."""
    scale: Literal["none", "n_beta"] = "none"
    """Whether chi is multiplied by n_beta (the derivative itself, not divided by n_beta)."""
    sign: Literal["minus", "plus"] = "minus"
    """Whether chi is minus the covariance, or the covariance."""

    @property
    def form(self) -> str:
        """Which of `FORMS` this convention reads."""
        return "chi" if self.second_factor == "full" else "covariance"

    def factor(self, n_beta: float) -> float:
        """What that form is multiplied by."""
        size = n_beta if self.scale == "n_beta" else 1.0
        return -size if self.sign == "plus" else size

    def apply(self, parts: dict[str, Array], n_beta: float) -> Array:
        """Chi in this convention from the parts of `susceptibility_parts`."""
        return self.factor(n_beta) * parts[self.form]


def susceptibility_parts(restricted: Moments, full_mean: Array) -> dict[str, Array]:
    """Chi of eq. 41 and its three parts, each as it adds to chi.

    Args:
        restricted: moments of (g, dL) over the component's chains, leading axes (...), K probes.
        full_mean: E_full[dL] over the unrestricted chains, broadcastable to (..., K).
    """
    mean_g = restricted.mean_x[..., None]
    parts = {
        "covariance": -restricted.covariance,
        "rank_one": mean_g * full_mean,
        "mean_shift": -mean_g * restricted.mean_y,
    }
    return {"chi": sum(parts.values(), np.zeros(())), **parts}


@dataclass(frozen=True)
class Estimate:
    """Estimates of one checkpoint.

    Attributes:
        value: form -> (component, probe).
        replicates: form -> (replicate, component, probe), each with one chain number left out
            of every component and of the unrestricted run.
        se_chain: form -> jackknife standard error over chains.
        block_replicates: form -> (block, component, probe), each with one block of contexts left
            out of the base sample and of every probe.
        se_data: form -> jackknife standard error over blocks of contexts.
        chains: healthy chains of each component, (component,).
        llc, llc_se: local learning coefficient n_beta * E_C[g], (component,).
        estimators: of every component, ``plain`` or ``control_variate``.
        check: what was found of the control variate; None without one.
    """

    value: dict[str, Array]
    replicates: dict[str, Array]
    se_chain: dict[str, Array]
    block_replicates: dict[str, Array]
    se_data: dict[str, Array]
    chains: NDArray[np.int64]
    llc: Array
    llc_se: Array
    estimators: tuple[str, ...]
    check: Check | None


def mixture_differences(
    base_shift: Float[Array, "*lead base_context"],
    probe_shift: Float[Array, "*lead probe probe_context"],
    positions: NDArray[np.int64],
    weights: Float[Array, " base_context"] | None = None,
) -> tuple[Array, Array]:
    """g (*lead) and dL (*lead, probe) of Algorithm 1's mixtures.

    Row ``positions[j]`` of the base is replaced by the probe's j-th context, so
    dL = (sum of probe rows - sum of the rows they replace) / n. ``weights`` (1 or 0) drops
    contexts, and with a base row the probe row in its place.
    """
    kept = np.ones(base_shift.shape[-1]) if weights is None else weights
    total = kept.sum()
    g = base_shift @ kept / total
    replaced = base_shift[..., positions] @ kept[positions]
    mixed = probe_shift @ kept[positions]
    return g, (mixed - replaced[..., None]) / total


def healthy_chains(losses: xr.Dataset) -> tuple[NDArray[np.bool_], list[list[str]]]:
    """Which chains count, (component, chain), and why the others do not."""
    localization = float(losses.attrs["sampler"]["localization"])
    reasons = [
        unhealthy(died, distance, int(size), localization)
        for died, distance, size in zip(
            losses["died"].values, losses["distance"].values, losses["size"].values, strict=True
        )
    ]
    return np.array([[not reason for reason in row] for row in reasons]), reasons


def _estimate(
    moments: Moments, offset: Offset | None, healthy: NDArray[np.bool_], full: int
) -> dict[str, Array]:
    """Parts (component, probe) from the moments of (g, dL) of every component and chain.

    Args:
        offset: what the control variate takes off the means, zero where it is not used.
        healthy: the chains that count.
    """
    chains = range(healthy.shape[1])
    kept = moments.keep(healthy)
    corrected = None
    if offset is not None:
        moved = offset.off(moments).keep(healthy)
        corrected = [moved[:, chain] for chain in chains]
    pooled = pool([kept[:, chain] for chain in chains], corrected)
    parts = susceptibility_parts(pooled, pooled.mean_y[full])
    parts["mean_g"] = pooled.mean_x
    return parts


def check_losses(losses: xr.Dataset, healthy: NDArray[np.bool_]) -> tuple[Check, Array] | None:
    """The check of a store's control variate, and its coefficients (component, chain).

    On the mean loss of every context. None where the store has no control variate.
    """
    if "base_control" not in losses:
        return None

    def contexts(kind: str) -> Array:
        base, probe = losses[f"base_{kind}"].values, losses[f"probe_{kind}"].values
        return np.concatenate([base, probe.reshape(*probe.shape[:-2], -1)], -1)

    draws = losses["draws"].values
    means = np.stack([x[:, :n].mean(1) for x, n in zip(contexts("shift"), draws, strict=True)])
    control = contexts("control")
    times = coefficients(means, control, healthy)
    return check(means, control, losses["base_control"].values.mean(-1), healthy, times), times


def data_blocks(count: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Block number of every base context: each block holds one replaced row."""
    return np.minimum(np.searchsorted(positions, np.arange(count)), len(positions) - 1)


def estimate_checkpoint(losses: xr.Dataset, estimator: Estimator = "checked") -> Estimate:
    """Susceptibilities of all components and probes, their parts and errors, and the LLCs.

    Args:
        losses: a store of `sampling.sample_checkpoint`; it must hold the ``full`` component.
        estimator: of the means over chains; by default, of every component, that which its check
            says is better.

    Raises:
        ValueError: ``full`` is missing, a component has fewer than two healthy chains, or a
            control variate is asked for that was not sampled.
    """
    names = list(losses.attrs["component"])
    if "full" not in names:
        raise ValueError("the unrestricted chain ('full') is needed for eq. 41 and is missing")
    full = names.index("full")
    healthy, reasons = healthy_chains(losses)
    counts = healthy.sum(1)
    if (counts < MIN_CHAINS).any():
        worst = int(counts.argmin())
        raise ValueError(
            f"step {losses.attrs['step']}, component {names[worst]}: {counts[worst]} healthy "
            f"chains, {MIN_CHAINS} needed; {'; '.join(filter(None, reasons[worst]))}. Lower "
            "step_size, raise localization, or run more chains"
        )
    found = check_losses(losses, healthy)
    if found is None and estimator == CONTROLLED:
        raise ValueError(
            f"step {losses.attrs['step']}: the chains were sampled without a control variate; set "
            "two_layer.evaluation.control_variate: linear, and sample again"
        )
    times, used = np.zeros(healthy.shape), np.zeros(len(names), dtype=bool)
    if found is not None:
        used = found[0].chosen(estimator)
        times = found[1] * used[:, None]
    base, probe = losses["base_shift"].values, losses["probe_shift"].values
    draws = losses["draws"].values
    positions = losses["probe_context"].values

    def of_contexts(weights: Array | None = None) -> tuple[Moments, Offset | None]:
        values = zip(*mixture_differences(base, probe, positions, weights), draws, strict=True)
        moments = Moments.stack([Moments.of(g[:, :n], dl[:, :n]) for g, dl, n in values])
        if not used.any():
            return moments, None
        control = losses["base_control"].values, losses["probe_control"].values
        offset = Offset(*mixture_differences(*control, positions, weights))
        return moments, offset.times(times)

    moments, offset = of_contexts()
    parts = _estimate(moments, offset, healthy, full)

    def without_chain(chain: int) -> dict[str, Array]:
        kept = healthy.copy()
        kept[:, chain] = False
        return _estimate(moments, offset, kept, full)

    blocks = data_blocks(base.shape[-1], positions)

    def without_block(block: int) -> dict[str, Array]:
        rest = (blocks != block).astype(np.float64)
        return _estimate(*of_contexts(rest), healthy, full)

    by_chain = [without_chain(chain) for chain in range(healthy.shape[1])]
    by_block = [without_block(block) for block in range(len(positions))]
    kept_forms = (*FORMS, "mean_g")
    replicates = {form: np.stack([p[form] for p in by_chain]) for form in kept_forms}
    left_out = {form: np.stack([p[form] for p in by_block]) for form in kept_forms}
    n_beta = float(losses.attrs["sampler"]["n_beta"])
    llc_variance = jackknife_se(replicates["mean_g"]) ** 2 + jackknife_se(left_out["mean_g"]) ** 2
    return Estimate(
        value={form: parts[form] for form in FORMS},
        replicates={form: replicates[form] for form in FORMS},
        se_chain={form: jackknife_se(replicates[form]) for form in FORMS},
        block_replicates={form: left_out[form] for form in FORMS},
        se_data={form: jackknife_se(left_out[form]) for form in FORMS},
        chains=counts,
        llc=n_beta * parts["mean_g"],
        llc_se=n_beta * np.sqrt(llc_variance),
        estimators=names_of(used),
        check=None if found is None else found[0],
    )
