"""Bayesian influence functions: susceptibilities whose observable and perturbation are samples.

Multiply the posterior by exp(-h l_i(w)), l_i the loss of one sample, and take as observable the
loss l_j of another. The susceptibility is then the influence of i on j,

    chi = d E[l_j] / dh at h = 0  =  -Cov(l_i, l_j)                         (Baker eq. 49)

Three conventions are in use, see `Convention`: this one; the influence function of the post's
appendix, -d E[l_j] / d epsilon with exp(-beta epsilon l_i), which is +beta Cov(l_i, l_j) with
beta = n_beta / n; and the correlation of the two losses, which devinterp computes by default.

A sample is a token in its context, or anything else whose loss is recorded along the chains. By
linearity the mean influence of the n samples behind L_n is the susceptibility with observable
L_n: minus Cov(L_n, l_j). Nothing is centered here: a perturbation of the data distribution, as
in a per-token susceptibility, has l_j - L_n in the place of l_j.

For a quadratic loss and Cov(w) = S, with g the gradients at the mean and H the Hessians,

    Cov(l_i, l_j) = g_i' S g_j + 1/2 tr(H_i S H_j S);

where n_beta H outweighs the localization, S = (n_beta H)^-1, and n_beta chi tends to the
classical influence function -g_i' H^-1 g_j. Where the localization gamma outweighs n_beta H,
S = 1 / gamma: chi is then a product of gradients, whatever the loss landscape. Only the
difference to the n_beta = 0 control is about the landscape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from .chains import Block, Chains, collect
from .estimators import MIN_CHAINS
from .jackknife import jackknife_se
from .moments import Array

Pooling = Literal["pooled", "within"]


class Convention(BaseModel):
    """How an influence is written; the default is Baker eq. 49."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sign: Literal["minus", "plus"] = "minus"
    """Minus: what more of sample i does to the loss of j; negative where it lowers it."""
    scale: Literal["none", "beta", "deviations"] = "none"
    """``beta``: times n_beta / n. ``deviations``: over both standard deviations, a correlation."""

    def apply(self, moments: CrossMoments, beta: float = 1.0) -> Array:
        """Influence (..., N, M) in this convention; ``beta`` is n_beta / n."""
        value = moments.correlation if self.scale == "deviations" else moments.covariance
        size = beta if self.scale == "beta" else 1.0
        return (size if self.sign == "plus" else -size) * value


BAKER = Convention()
POST = Convention(sign="plus", scale="beta")
CORRELATION = Convention(sign="plus", scale="deviations")


@dataclass(frozen=True)
class CrossMoments:
    """Moments of N observables x with M observables y over a set of draws; they merge like
    `moments.Moments`, so no trace has to be kept.

    Attributes:
        count: number of draws, of the shape of the leading axes (...).
        mean_x: (..., N); mean_y: (..., M).
        square_x, square_y: sums over draws of squared deviations, (..., N) and (..., M).
        comoment: sum over draws of (x - mean_x)(y - mean_y), (..., N, M).
    """

    count: Array
    mean_x: Array
    mean_y: Array
    square_x: Array
    square_y: Array
    comoment: Array

    @classmethod
    def of(
        cls, x: Float[ArrayLike, "*lead draw n"], y: Float[ArrayLike, "*lead draw m"]
    ) -> CrossMoments:
        """Moments over the draw axis, the last but one of both."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        mean_x, mean_y = x.mean(-2), y.mean(-2)
        dx, dy = x - mean_x[..., None, :], y - mean_y[..., None, :]
        return cls(
            np.full(x.shape[:-2], float(x.shape[-2])),
            mean_x,
            mean_y,
            np.square(dx).sum(-2),
            np.square(dy).sum(-2),
            dx.swapaxes(-1, -2) @ dy,
        )

    def merge(self, other: CrossMoments) -> CrossMoments:
        """Moments of both sets of draws together, about their common mean."""
        count = self.count + other.count
        share = (other.count / count)[..., None]
        weight = self.count[..., None] * share
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        return CrossMoments(
            count,
            self.mean_x + share * dx,
            self.mean_y + share * dy,
            self.square_x + other.square_x + weight * dx**2,
            self.square_y + other.square_y + weight * dy**2,
            self.comoment + other.comoment + (weight * dx)[..., None] * dy[..., None, :],
        )

    def __getitem__(self, key: Any) -> CrossMoments:
        """Index the leading axes."""
        return CrossMoments(*(getattr(self, field.name)[key] for field in fields(self)))

    @property
    def centered(self) -> CrossMoments:
        """The same with every set's own means set to zero: merging then leaves them out."""
        zero_x, zero_y = np.zeros_like(self.mean_x), np.zeros_like(self.mean_y)
        return CrossMoments(self.count, zero_x, zero_y, self.square_x, self.square_y, self.comoment)

    @property
    def covariance(self) -> Array:
        """Cov(x, y) with 1 / r, the normalization of Baker eq. 39, (..., N, M)."""
        return self.comoment / self.count[..., None, None]

    @property
    def correlation(self) -> Array:
        """Pearson correlation, (..., N, M); 0 where an observable does not vary."""
        size = np.sqrt(self.square_x[..., :, None] * self.square_y[..., None, :])
        return np.divide(self.comoment, size, out=np.zeros_like(self.comoment), where=size > 0)


def merge_all(parts: Iterable[CrossMoments]) -> CrossMoments:
    """Merge any number of moments."""
    return reduce(CrossMoments.merge, parts)


@dataclass(frozen=True)
class Influence:
    """Influence of N samples on M others.

    Attributes:
        value, se: (N, M); the error is a jackknife over chains.
        replicates: (chain, N, M), each with one chain left out.
    """

    value: Array
    replicates: Array

    @property
    def se(self) -> Array:
        return jackknife_se(self.replicates)


def influence(
    moments: CrossMoments,
    convention: Convention = BAKER,
    beta: float = 1.0,
    pooling: Pooling = "pooled",
) -> Influence:
    """Influence with its replicates from the moments of every chain.

    Args:
        moments: one leading axis, the healthy chains.
        beta: n_beta / n, for the convention of that scale.
        pooling: ``pooled`` takes deviations from the mean of all chains together, as all other
            estimates here; ``within`` from each chain's own mean, which leaves out what differs
            from chain to chain, and is too small by a factor 1 - 1 / (independent draws a chain).

    Raises:
        ValueError: fewer than two chains.
    """
    chains = len(moments.count)
    if chains < MIN_CHAINS:
        raise ValueError(f"an influence with its error needs {MIN_CHAINS} chains, found {chains}")
    if pooling == "within":
        moments = moments.centered
    everything = range(chains)
    left_out = [
        convention.apply(merge_all(moments[c] for c in everything if c != chain), beta)
        for chain in everything
    ]
    whole = merge_all(moments[chain] for chain in everything)
    return Influence(convention.apply(whole, beta), np.stack(left_out))


class LossTraces:
    """Losses of chosen tokens, less those at w*, at every kept draw; a `chains.Collector`.

    Args:
        tokens: places in the flattened losses of the evaluated contexts, context *
            (positions - 1) + position - 1; all of them by default. What is kept is chains *
            draws * tokens numbers, so they must be few.
    """

    def __init__(self, chains: Chains, tokens: NDArray[np.int64] | None = None) -> None:
        self.chains = chains
        contexts, length = chains.evaluated.tokens.shape
        self._positions = length - 1
        self._tokens = np.arange(contexts * self._positions) if tokens is None else tokens
        shape = (chains.sampler.chains, chains.sampler.draws, len(self._tokens))
        kind = str(chains.losses.w_star.dtype).removeprefix("torch.")
        self.arrays: dict[str, NDArray[Any]] = {"shift": np.zeros(shape, kind)}

    def add(self, block: Block) -> None:
        if block.shift is None:
            return
        first, last = (self._positions * row for row in (block.rows.start, block.rows.stop))
        here = np.flatnonzero((self._tokens >= first) & (self._tokens < last))
        chosen = torch.from_numpy(self._tokens[here] - first).to(block.shift.device)
        values = block.shift.flatten(2)[..., chosen].cpu().numpy()
        self.arrays["shift"][:, block.draws, here] = values

    def dataset(self) -> xr.Dataset:
        traces = (("chain", "draw", "token"), self.arrays["shift"])
        return xr.Dataset({"shift": traces, **self.chains.diagnostics()})


def loss_traces(chains: Chains) -> xr.Dataset:
    """Run the chains; traces of all evaluated tokens, which must be few, and diagnostics."""
    return collect(chains, LossTraces(chains))


def stream_moments(
    chains: Chains, first: NDArray[np.int64], second: NDArray[np.int64]
) -> CrossMoments:
    """Run the chains; moments of the losses of two sets of tokens along every chain.

    Args:
        first, second: places of the tokens, as in `LossTraces`; only theirs are kept.

    Returns:
        One leading axis, the chains; unhealthy ones are in it.
    """
    both = LossTraces(chains, np.concatenate([first, second]))
    traces = collect(chains, both)["shift"].values
    return CrossMoments.of(traces[..., : len(first)], traces[..., len(first) :])
