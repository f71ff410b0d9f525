"""Errors over chains, and three-valued verdicts from them.

A replicate is an estimate with one chain left out. Whatever is computed from the estimate is
computed from every replicate too; the scatter of the results is the error of the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def jackknife_se(replicates: Array) -> Array:
    """Standard error from leave-one-out replicates: se^2 = (C-1)/C sum_c (x_c - mean)^2.

    Args:
        replicates: shape (C, ...), replicate c without chain c.

    Returns:
        Shape (...).
    """
    count = len(replicates)
    if count < 2:
        raise ValueError(f"a jackknife needs at least 2 chains, found {count}")
    return np.sqrt((count - 1) / count * np.square(replicates - replicates.mean(0)).sum(0))


def pseudo_values(estimate: Array, replicates: Array) -> Array:
    """What each chain gives by itself, C x - (C - 1) x_c, (C, ...).

    The mean over a set of chains estimates the value from these alone: exactly for a mean over
    chains, to first order for the products of means that chi is made of.

    Args:
        estimate: (...); ``replicates``: (C, ...), replicate c without chain c.
    """
    chains = len(replicates)
    return chains * estimate - (chains - 1) * np.asarray(replicates, dtype=np.float64)


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and the degrees of freedom of that error."""

    value: float
    se: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided Student-t interval."""
        half = float(stats.t.ppf(0.5 + level / 2, self.df)) * self.se
        return self.value - half, self.value + half


def estimate(reference: float, replicates: Sequence[float]) -> Estimate:
    """The reference value with its jackknife error over C chains (C - 1 degrees of freedom)."""
    se = float(jackknife_se(np.asarray(replicates, dtype=np.float64)))
    return Estimate(float(reference), se, len(replicates) - 1)


@dataclass(frozen=True)
class Condition:
    """A stated bound on a named quantity, one side of it."""

    quantity: str
    relation: Literal[">", "<"]
    value: float

    def __str__(self) -> str:
        return f"{self.quantity} {self.relation} {self.value:.3g}"

    def met(self, value: float) -> bool:
        return value > self.value if self.relation == ">" else value < self.value

    def verdict(self, estimate: Estimate) -> bool | None:
        """True or False when the 95 % interval lies on one side of the bound, else None."""
        sides = {self.met(end) for end in estimate.interval()}
        return sides.pop() if len(sides) == 1 else None


def all_hold(verdicts: Iterable[bool | None]) -> bool | None:
    """Holds if all hold; fails if one fails; undecided otherwise."""
    values = set(verdicts)
    if False in values:
        return False
    return None if None in values else True


def decide(estimates: Mapping[str, Estimate], conditions: Sequence[Condition]) -> bool | None:
    """The verdict of several conditions together."""
    return all_hold(c.verdict(estimates[c.quantity]) for c in conditions)


def met(values: Mapping[str, float], conditions: Sequence[Condition]) -> bool:
    """Whether the values themselves, errors aside, meet all conditions."""
    return all(c.met(values[c.quantity]) for c in conditions)


def permutation_p(a: Array, b: Array) -> float:
    """Share of all regroupings whose mean(a) - mean(b) is at most the observed (one-sided)."""
    pooled = np.concatenate([a, b])
    total, size = pooled.sum(), len(a)
    sums = np.array([pooled[list(c)].sum() for c in combinations(range(len(pooled)), size)])
    # mean(a) - mean(b) grows with sum(a) for a fixed total, so comparing sums is enough.
    return float(np.mean(sums <= a.sum() + 1e-12 * max(1.0, abs(total))))


def split_reliability(estimate: Array, replicates: Array) -> tuple[float, float]:
    """Correlation of the estimates from disjoint halves of the chains.

    The estimate of a set of chains is the mean of their `pseudo_values`. Correlations are taken
    over (probe, head) at each step, averaged over steps and over all ways to halve the chains.
    No Spearman-Brown correction: it is the reliability of one half.

    Args:
        estimate: (probe, step, head).
        replicates: (C, probe, step, head).

    Returns:
        Reliability and its standard error (a jackknife over probes).
    """
    chains = len(replicates)
    pseudo = pseudo_values(estimate, replicates)

    def mean_correlation(values: Array) -> float:
        found = []
        for chosen in combinations(range(chains), chains // 2):
            # Of an even number of chains every split would otherwise come twice.
            if chains % 2 == 0 and 0 not in chosen:
                continue
            rest = [c for c in range(chains) if c not in chosen]
            for step in range(values.shape[2]):
                one = values[list(chosen), :, step].mean(0).ravel()
                two = values[rest, :, step].mean(0).ravel()
                if one.std() > 0 and two.std() > 0:
                    found.append(np.corrcoef(one, two)[0, 1])
        return float(np.mean(found)) if found else float("nan")

    probes = pseudo.shape[1]
    left_out = [mean_correlation(np.delete(pseudo, p, 1)) for p in range(probes)]
    error = float(jackknife_se(np.array(left_out))) if probes > 2 else float("nan")
    return mean_correlation(pseudo), error
