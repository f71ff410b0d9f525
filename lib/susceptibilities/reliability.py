"""Reliability: how well estimates with independent noise agree over tokens, and what more of it
costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .jackknife import Array, jackknife_se

# A number, or one for every column.
Number = TypeVar("Number", float, Array)


def spearman_brown(reliability: Number, times: float) -> Number:
    """Reliability of an estimate from ``times`` as many chains."""
    return times * reliability / (1.0 + (times - 1.0) * reliability)


def times_to(target: float, reliability: float) -> float:
    """How many times as many chains give a reliability; infinite where there is no signal."""
    if reliability <= 0.0:
        return float("inf")
    return target * (1.0 - reliability) / (reliability * (1.0 - target))


def agreement(
    estimates: Array, blocks: NDArray[np.int64], groups: Sequence[object] | None = None
) -> tuple[float, float]:
    """Mean correlation over tokens of two estimates: the reliability of one.

    Args:
        estimates: (estimate, token).
        blocks: block of contexts of every token, (token,).
        groups: of every estimate; only pairs of different groups count. All by default.

    Returns:
        Value and standard error: of the jackknife over estimates, where pairs are left without
        one, and that over blocks, added in squares.

    Raises:
        ValueError: no pair is left.
    """
    count = len(estimates)
    labels = list(range(count)) if groups is None else list(groups)
    pairs = [(i, j) for i in range(count) for j in range(i) if labels[i] != labels[j]]
    if not pairs:
        raise ValueError(f"agreement needs two estimates of different groups, found {labels}")

    def mean(values: Array, chosen: list[tuple[int, int]]) -> float:
        r = np.atleast_2d(np.corrcoef(values))
        return float(np.mean([r[pair] for pair in chosen]))

    value, square = mean(estimates, pairs), 0.0
    without = [[p for p in pairs if i not in p] for i in range(count)]
    if all(without):
        rest = [mean(estimates, kept) for kept in without]
        square += float(jackknife_se(np.array(rest))) ** 2
    numbers = np.unique(blocks)
    if len(numbers) > 1:
        rest = [mean(estimates[:, blocks != b], pairs) for b in numbers]
        square += float(jackknife_se(np.array(rest))) ** 2
    return value, square**0.5
