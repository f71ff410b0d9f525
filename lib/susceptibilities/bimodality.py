"""Is the distribution of a token's susceptibilities bimodal, and do other chains agree?

Three questions, each with its own measure:

1. Is the sample other than unimodal? Hartigan's dip, with a p-value that allows for occurrences
   in one context being alike (`dip_test`).
2. Where are the two modes, and how far apart? A mixture of two components, Ashman's D, and the
   gain over one component (`two_modes`).
3. Are they a property of the tokens, or of the chains that happened to be drawn? Both halves of
   the chains must put an occurrence in the same mode (`agreement`). Noise that is independent
   from token to token can only blur modes; but noise of a few chains is common to like contexts,
   and can make two modes by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .dip import dip, p_value
from .jackknife import pseudo_values
from .mixture import Array, Mask, Modes, fit_modes

# Counts in this many equal parts of the sample say how alike the values of one context are.
_PARTS = 8
# Ways to halve the chains that are averaged over; more do not change the mean.
_HALVINGS = 20


@dataclass(frozen=True)
class DipTest:
    """The dip test of one sample.

    Attributes:
        count: occurrences.
        contexts: contexts that they are from.
        effective: as many independent values would vary as much; at most ``count``.
        dip: Hartigan's dip.
        p: probability of such a dip in ``effective`` independent uniform values.
    """

    count: int
    contexts: int
    effective: float
    dip: float
    p: float


def design_effect(values: Array, contexts: NDArray[np.integer]) -> float:
    """How much more the sample varies than one of independent values would, at least 1.

    The dip compares counts within intervals. So the ratio is that of the variances of the counts
    in eight equal parts of the sample: between contexts, over that of independent draws; the
    mean of the eight.

    Args:
        values: (n,).
        contexts: (n,), any labels.
    """
    _, group = np.unique(contexts, return_inverse=True)
    sizes = np.bincount(group)
    if len(sizes) < 2:
        return float(len(values))
    edges = np.quantile(values, np.arange(1, _PARTS) / _PARTS)
    part = np.searchsorted(edges, values, side="left")
    counts = np.bincount(group * _PARTS + part, minlength=len(sizes) * _PARTS)
    counts = counts.reshape(len(sizes), _PARTS).astype(np.float64)
    share = counts.sum(0) / len(values)
    inside = (share > 0) & (share < 1)
    if not inside.any():
        return float(len(values))
    excess = np.square(counts - share * sizes[:, None]).sum(0)
    ratio = excess[inside] / (len(values) * share[inside] * (1 - share[inside]))
    return max(1.0, float(ratio.mean()) * len(sizes) / (len(sizes) - 1))


def dip_test(values: Array, contexts: NDArray[np.integer]) -> DipTest:
    """Hartigan's dip test of unimodality; occurrences in one context may be alike.

    The p-value is that of ``n / design_effect`` independent values. With uniform values (the
    hardest case) correlated within contexts from 0 to 0.95, 3 to 12 a context and 24 to 160
    contexts, it is below 5 % in at most 5 % of samples.
    """
    size = len(values) / design_effect(values, contexts)
    found = dip(values)
    return DipTest(len(values), len(np.unique(contexts)), size, found, p_value(found, size))


def holm(p: Sequence[float]) -> Array:
    """Holm's adjusted p-values: a set at 5 % has one false rejection in at most 5 % of cases."""
    raw = np.asarray(p, dtype=np.float64)
    order = np.argsort(raw)
    steps = raw[order] * np.arange(len(raw), 0, -1)
    adjusted = np.empty(len(raw))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> Array:
    """Adjusted p-values: of those at 5 % or less, 5 % are expected to be false."""
    raw = np.asarray(p, dtype=np.float64)
    return stats.false_discovery_control(raw) if len(raw) else raw


def power(size: float, distance: float, share: float, level: float, draws: int = 400) -> float:
    """Chance that the dip test rejects at ``level`` when there are two Gaussian modes.

    Args:
        size: effective number of occurrences.
        distance: Ashman's D of the two modes.
        share: of occurrences in the smaller mode.
    """
    count = int(size)
    if count < 1:
        return 0.0
    rng = np.random.default_rng(0)
    minor = rng.random((draws, count)) < share
    samples = rng.normal(size=(draws, count)) + distance * minor
    return float(np.mean([p_value(dip(sample), count) <= level for sample in samples]))


@dataclass(frozen=True)
class Halves:
    """Every occurrence put in a mode by either half of the chains, for each way to halve them.

    Attributes:
        upper: (way, half, occurrence), whether it is in the upper mode.
        groups: (way, half, chain), which chains made it.
    """

    upper: Mask
    groups: Mask

    def agreement(self, keep: Mask | None = None) -> tuple[float, float]:
        """Share of occurrences that both halves put in the same mode, and that share by chance.

        Chance is that of two assignments with the same sizes of modes and nothing in common.
        """
        upper = self.upper if keep is None else self.upper[..., keep]
        same = (upper[:, 0] == upper[:, 1]).mean()
        sizes = upper.mean(-1)
        chance = np.mean(sizes.prod(1) + (1 - sizes).prod(1))
        return float(same), float(chance)

    def kappa(self, keep: Mask | None = None) -> float:
        """Agreement beyond chance, as a share of what is possible: 0 is chance, 1 is perfect."""
        same, chance = self.agreement(keep)
        return (same - chance) / (1 - chance) if chance < 1 else 0.0

    def gap(self, per_chain: Array) -> float:
        """Mean of the upper mode minus mean of the lower, in chains that did not assign them.

        Args:
            per_chain: (chain, occurrence), pseudo-values of chi or of one of its parts.
        """
        found = []
        for way in range(len(self.upper)):
            for half in (0, 1):
                upper = self.upper[way, half]
                if upper.all() or not upper.any():
                    continue
                other = per_chain[self.groups[way, 1 - half]].mean(0)
                found.append(other[upper].mean() - other[~upper].mean())
        return float(np.mean(found)) if found else 0.0


def halves(values: Array, replicates: Array, modes: Modes) -> Halves:
    """Fit the modes in both halves of the chains, for all (at most 20) ways to halve them.

    Args:
        values: (n,); ``replicates`` the same with one chain left out, (chain, n).
        modes: of the values, where the fits start.
    """
    per_chain = pseudo_values(values, replicates)
    chains = len(per_chain)
    ways = [
        chosen
        for chosen in combinations(range(chains), chains // 2)
        # Of an even number of chains every way would otherwise come twice.
        if chains % 2 or 0 in chosen
    ]
    if len(ways) > _HALVINGS:
        places = np.linspace(0, len(ways) - 1, _HALVINGS).round().astype(int)
        ways = [ways[place] for place in places]
    groups = np.zeros((len(ways), 2, chains), dtype=bool)
    for way, chosen in enumerate(ways):
        groups[way, 0, list(chosen)] = True
        groups[way, 1] = ~groups[way, 0]
    sides = groups.reshape(-1, chains)
    samples = sides @ per_chain / sides.sum(1, keepdims=True)
    found = [
        fit.is_upper(sample) for fit, sample in zip(fit_modes(samples, modes), samples, strict=True)
    ]
    return Halves(np.stack(found).reshape(len(ways), 2, -1), groups)


def auc(scores: Array, positive: Mask) -> float:
    """Chance that a positive scores higher than a negative (ties count half); NaN without both."""
    above, below = int(positive.sum()), int((~positive).sum())
    if not (above and below):
        return math.nan
    ranks = stats.rankdata(scores)
    return float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))
