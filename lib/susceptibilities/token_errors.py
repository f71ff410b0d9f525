"""Errors of statistics over tokens: from the chains, and from which contexts were read.

Tokens of one context are not independent, so whole contexts are left out together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from .jackknife import Array, Estimate, jackknife_se

BLOCKS = 10

# Values (..., token) and which tokens to keep (token,) -> a number or an array.
Statistic = Callable[[Array, NDArray[np.bool_]], ArrayLike]


def context_blocks(tokens: pl.DataFrame, count: int = BLOCKS) -> NDArray[np.int64]:
    """Block of every token: the contexts of every probe dealt to ``count`` blocks in turn.

    Args:
        tokens: a token table, see `per_token.PerToken`.

    Returns:
        Shape (token,), from 0; fewer blocks where a probe has fewer contexts.
    """
    order = tokens.select(pl.col("context").rank("dense").over("probe") - 1).to_series()
    least = tokens.group_by("probe").agg(pl.col("context").n_unique())["context"].min()
    assert isinstance(least, int)
    return order.to_numpy().astype(np.int64) % min(count, least)


def context_numbers(tokens: pl.DataFrame) -> NDArray[np.int64]:
    """Number of every token's context among all contexts of all probes, from 0; shape (token,)."""
    order = pl.struct("probe", "context").rank("dense") - 1
    return tokens.select(order).to_series().to_numpy().astype(np.int64)


def measure_array(
    statistic: Statistic, values: Array, replicates: Array, blocks: NDArray[np.int64]
) -> tuple[Array, Array]:
    """A statistic of token values and its standard error.

    Args:
        values: (..., token); ``replicates`` the same with one chain left out, (chain, ..., token).
        blocks: block of every token, from `context_blocks`.

    Returns:
        Value and standard error, both of the statistic's shape. The error is that of the
        jackknife over chains and that over blocks of contexts, added in squares.
    """
    everything = np.ones(values.shape[-1], dtype=bool)
    value = np.asarray(statistic(values, everything), dtype=np.float64)
    by_chain = np.stack([np.asarray(statistic(r, everything)) for r in replicates])
    numbers = np.unique(blocks)
    by_block = np.stack([np.asarray(statistic(values, blocks != b)) for b in numbers])
    return value, np.hypot(jackknife_se(by_chain), jackknife_se(by_block))


def measure(
    statistic: Statistic, values: Array, replicates: Array, blocks: NDArray[np.int64]
) -> Estimate:
    """`measure_array` of a statistic that is one number.

    The degrees of freedom are those of the smaller of the two jackknives.
    """
    value, se = measure_array(statistic, values, replicates, blocks)
    df = min(len(replicates), len(np.unique(blocks))) - 1
    return Estimate(float(value), float(se), df)
