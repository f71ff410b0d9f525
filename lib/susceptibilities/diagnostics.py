"""Sampler diagnostics: split R-hat, effective sample size, autocorrelation, chain health."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Array = NDArray[np.float64]

# A chain this many times farther from w* than the localisation alone would let it go has left
# the neighbourhood. Where the loss is locally convex, localization * |w - w*|^2 is at most a
# chi-squared variable with P degrees of freedom, whose root hardly ever exceeds sqrt(P) + 4.
ESCAPE = 2.0


def split_rhat(traces: Float[Array, "chain step"]) -> float:
    """Split R-hat (Gelman et al. 2013): 1 when chains, and their halves, agree.

    NaN for fewer than four steps or traces without variance.
    """
    half = traces.shape[1] // 2
    if half < 2:
        return float("nan")
    halves = np.concatenate([traces[:, :half], traces[:, half : 2 * half]])
    within = halves.var(1, ddof=1).mean()
    between = half * halves.mean(1).var(ddof=1)
    if not within > 0:
        return float("nan")
    return float(np.sqrt((half - 1) / half + between / (within * half)))


def autocorrelation(traces: Float[Array, "chain step"]) -> Float[Array, " lag"]:
    """Autocorrelation of the pooled chains at every lag, about the chains' common mean."""
    centred = traces - traces.mean()
    steps = traces.shape[1]
    size = 2 * steps
    spectrum = np.abs(np.fft.rfft(centred, size)) ** 2
    covariance = np.fft.irfft(spectrum, size)[:, :steps].mean(0) / steps
    if not covariance[0] > 0:
        return np.full(steps, np.nan)
    return covariance / covariance[0]


def effective_sample_size(traces: Float[Array, "chain step"]) -> float:
    """Number of independent draws worth the same, by Geyer's initial positive sequence."""
    chains, steps = traces.shape
    rho = autocorrelation(traces)
    if not np.isfinite(rho[0]):
        return float("nan")
    pairs = rho[: steps // 2 * 2].reshape(-1, 2).sum(1)
    negative = np.flatnonzero(pairs <= 0)
    stop = negative[0] if len(negative) else len(pairs)
    monotone = np.minimum.accumulate(pairs[:stop])
    time = max(2 * monotone.sum() - 1, 1.0 / steps)
    return float(min(chains * steps / time, chains * steps * np.log10(max(chains * steps, 10))))


def unhealthy(
    died: NDArray[np.int64],
    distance: Float[Array, "chain draw"],
    size: int,
    localization: float,
) -> list[str]:
    """Why each chain must be left out; an empty string for a healthy one.

    Draws that a chain does not have are NaN in ``distance``.
    """
    bound = ESCAPE * (np.sqrt(size) + 4) / np.sqrt(localization)
    reasons = []
    for chain, step in enumerate(died):
        farthest = float(np.fmax.reduce(distance[chain]))
        if step >= 0:
            reasons.append(f"diverged at step {step}")
        elif farthest > bound:
            reasons.append(f"left the neighbourhood: |w - w*| = {farthest:.3g} > {bound:.3g}")
        else:
            reasons.append("")
    return reasons
