"""How the susceptibilities of tokens depend on the length of the context before them.

Every statistic here is a function of token values (..., token) and of which tokens to keep, as
`susceptibilities.token_errors` wants it. Tokens lie in the order probe, context, position, with
the same number of contexts in every probe and whole contexts kept or left out together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from susceptibilities.jackknife import Array, pseudo_values
from susceptibilities.token_errors import Statistic, measure_array
from susceptibilities.tokens import CONTROL_PROBE

Mask = NDArray[np.bool_]

# Bins per doubling of the length: lengths 1, 2, 3, 4-5, 6-7, 8-10, 11-15, 16-22, ...
BINS_PER_DOUBLING = 2


@dataclass(frozen=True)
class Bins:
    """Bins of context lengths, half a doubling each; every length lies in one.

    Attributes:
        low, high: first and last length of every bin, both inside.
        of: bin of every length from 1 on, (length,).
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    of: NDArray[np.int64]

    @classmethod
    def up_to(cls, longest: int) -> Bins:
        steps = np.arange(BINS_PER_DOUBLING * int(np.ceil(np.log2(longest + 1))) + 1)
        low = np.unique(np.rint(2.0 ** (steps / BINS_PER_DOUBLING)).astype(np.int64))
        low = low[low <= longest]
        high = np.append(low[1:] - 1, longest)
        return cls(low, high, np.searchsorted(low, np.arange(1, longest + 1), side="right") - 1)

    @property
    def center(self) -> Array:
        """Geometric mean of the first and the last length of every bin."""
        return np.sqrt(self.low * self.high.astype(np.float64))

    def average(self, values: Array) -> Array:
        """(..., length) -> (..., bin): plain means over the lengths of each bin."""
        weights = (self.of == np.arange(len(self.low))[:, None]).astype(np.float64)
        return values @ (weights / weights.sum(1, keepdims=True)).T


@dataclass(frozen=True)
class Layout:
    """The tokens of a run as (probe, context, length).

    Attributes:
        probes: names, in order; ``domains`` their places without the control probe.
    """

    probes: tuple[str, ...]
    contexts: int
    lengths: int

    @classmethod
    def of(cls, tokens: pl.DataFrame) -> Layout:
        """Raises ValueError where the tokens are not whole contexts in order."""
        probes = tuple(str(p) for p in tokens["probe"].unique(maintain_order=True))
        lengths = int(tokens["position"].max())  # type: ignore[arg-type]
        contexts, rest = divmod(len(tokens), len(probes) * lengths)
        expected = np.tile(np.arange(1, lengths + 1), len(probes) * contexts)
        if rest or not np.array_equal(tokens["position"].to_numpy(), expected):
            raise ValueError(
                f"expected positions 1 to {lengths} in every context, and as many contexts in "
                f"each of {len(probes)} probes; found {len(tokens)} tokens in another order: "
                "build the per-token susceptibilities again"
            )
        return cls(probes, contexts, lengths)

    @property
    def domains(self) -> list[int]:
        return [i for i, name in enumerate(self.probes) if name != CONTROL_PROBE]

    @property
    def bins(self) -> Bins:
        return Bins.up_to(self.lengths)

    def grid(self, values: Array, keep: Mask) -> Array:
        """(..., token) -> (..., probe, context kept, length)."""
        shape = (len(self.probes), self.contexts, self.lengths)
        kept = keep.reshape(shape)[0, :, 0]
        return values.reshape(*values.shape[:-1], *shape)[..., kept, :]

    def means(self, values: Array, keep: Mask) -> Array:
        """Mean over contexts at every length, (..., probe, length)."""
        return self.grid(values, keep).mean(-2)

    def variances(self, values: Array, keep: Mask) -> Array:
        """Variance over contexts at every length, (..., probe, length)."""
        return self.grid(values, keep).var(-2, ddof=1)

    def with_pool(self, values: Array) -> Array:
        """(..., probe, x) -> (..., probe + 1, x): the mean over domains comes last."""
        return np.concatenate([values, values[..., self.domains, :].mean(-2, keepdims=True)], -2)


def rise_weights(lengths: int) -> Array:
    """Weights of lengths 1, 2, ... that give the rise of a mean over the whole context.

    The least-squares slope against the binary logarithm of the length, every token of the same
    weight, times the number of doublings from the shortest to the longest.
    """
    octaves = np.log2(np.arange(1, lengths + 1))
    centered = octaves - octaves.mean()
    return centered / np.square(centered).sum() * octaves[-1]


def quarter_weights(lengths: int) -> Array:
    """Weights of lengths that give the mean of the last quarter minus that of the first."""
    size = max(lengths // 4, 1)
    weights = np.zeros(lengths)
    weights[:size] -= 1 / size
    weights[-size:] += 1 / size
    return weights


def spread(layout: Layout, values: Array, keep: Mask) -> Array:
    """Standard deviation over the tokens of the domains, means of domains left in, (...,)."""
    inside = layout.grid(values, keep)[..., layout.domains, :, :]
    return inside.std((-3, -2, -1), ddof=1)


def rises(layout: Layout, values: Array, keep: Mask, how: str) -> Array:
    """Rise of every head, mean over domains: (head,).

    Args:
        how: "rise" in units of the standard deviation over tokens that heads have on average
            (root mean square); "quarters", last quarter minus first in the same unit; "own",
            the rise in units of each head's own standard deviation.
    """
    means = layout.means(values, keep)[..., layout.domains, :].mean(-2)
    weights = (quarter_weights if how == "quarters" else rise_weights)(layout.lengths)
    own = spread(layout, values, keep)
    unit = own if how == "own" else np.sqrt(np.square(own).mean())
    return means @ weights / unit


def signal_product(by_chain: Array, products: Array) -> Array:
    """Mean over pairs of different chains of a product of what they give.

    Noise is independent between chains, so it adds nothing on average, while the product of an
    estimate with itself has the noise's variance on top.

    Args:
        by_chain: the product of the sum over chains with itself, (...).
        products: products of each chain with itself, (chain, ...).
    """
    count = len(products)
    return (by_chain - products.sum(0)) / (count * (count - 1))


def signal_variances(layout: Layout, chains: Array, keep: Mask) -> Array:
    """`Layout.variances` without the sampling noise, from values (chain, token).

    Returns:
        Shape (probe, length). May be negative where there is less signal than noise.
    """
    total = layout.variances(chains.sum(0), keep)
    return signal_product(total, layout.variances(chains, keep))


def plain_variances(layout: Layout, values: Array, keep: Mask) -> Array:
    """Variance over tokens of one length and domain, mean over both: (head, token) -> (head,)."""
    return layout.variances(values, keep)[..., layout.domains, :].mean((-2, -1))


def clean_variances(layout: Layout, chains: Array, keep: Mask) -> Array:
    """The same without sampling noise, from values by chain: (chain, head, token) -> (head,)."""
    # Head by head: all at once would need the memory of all chains.
    heads = range(chains.shape[1])
    each = [signal_variances(layout, chains[:, i], keep)[layout.domains] for i in heads]
    return np.stack(each).mean((-2, -1))


def shared_curve(layout: Layout, chains: Array, keep: Mask) -> Array:
    """How much of the heads' curves is one curve times a number a head: [share, trace].

    A curve is the mean at each bin of lengths in each domain, minus the domain's mean, over the
    head's standard deviation over tokens, so that large heads do not decide. The Gram matrix of
    the heads' curves is taken between different chains; its largest eigenvalue over its trace is
    the share (1: all curves are multiples of one; a little more can come out where other
    eigenvalues are noise). Where the trace is not clear of zero the share means nothing.

    Args:
        chains: (chain, head, token).
    """
    curves = layout.bins.average(layout.means(chains, keep)[..., layout.domains, :])
    curves = curves - curves.mean(-1, keepdims=True)
    curves = curves / spread(layout, chains.mean(0), keep)[:, None, None]
    flat = curves.reshape(*curves.shape[:2], -1)
    total = flat.sum(0)
    gram = signal_product(total @ total.T, flat @ flat.swapaxes(1, 2))
    trace = float(np.trace(gram))
    return np.array([float(np.linalg.eigvalsh(gram)[-1]) / trace if trace else np.nan, trace])


def without_one(chains: Array) -> Iterator[Array]:
    """The values by chain, (chain, ...), without each chain in turn."""
    for chain in range(len(chains)):
        yield np.delete(chains, chain, 0)


def measure_signal(
    statistic: Statistic, values: Array, replicates: Array, blocks: NDArray[np.int64]
) -> tuple[Array, Array]:
    """`measure_array` of a statistic that multiplies what different chains give.

    Args:
        statistic: takes values by chain, (chain, ..., token).
        values: (..., token); ``replicates`` (chain, ..., token).

    Returns:
        Value and standard error. With two chains the error is NaN: without one there is no pair.
    """
    chains = pseudo_values(values, replicates)
    if len(chains) > 2:
        # One at a time: all at once would be the square of the number of chains in memory.
        return measure_array(statistic, chains, without_one(chains), blocks)  # type: ignore[arg-type]
    value = np.asarray(statistic(chains, np.ones(chains.shape[-1], dtype=bool)), dtype=np.float64)
    return value, np.full_like(value, np.nan)
