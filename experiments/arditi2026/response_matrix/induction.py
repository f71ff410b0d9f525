"""The sign of an induction head's susceptibility where it predicts the repeated token.

Where the head predicts: tokens that complete a bigram seen before in the context
(`categories.repeated_bigrams`), and whose loss rises when the head is zero-ablated. They are
compared with tokens that complete none, matched by the predicted token and the domain, so that
neither what is predicted nor where makes the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from susceptibilities.jackknife import Array, Condition
from susceptibilities.response_matrix import Mask

# In standard deviations of the head's susceptibility over all tokens: half of one is what is
# commonly called a medium effect, and is the least that passes for "strongly" here.
STRONG = 0.5
DIFFERENCE = "difference to matched tokens, in standard deviations"
MEAN = "mean where the head predicts, in standard deviations"
CONDITIONS = (Condition(DIFFERENCE, "<", -STRONG), Condition(MEAN, "<", 0.0))
# Reported beside them, without a bound.
ALL_PATTERNS = "mean over all induction patterns, in standard deviations"
BY_LOSS = "difference to tokens of the same domain and decile of loss, in standard deviations"
QUANTITIES = (DIFFERENCE, MEAN, ALL_PATTERNS, BY_LOSS)

SCHEMA = {
    **dict.fromkeys(("source", "head", "form", "quantity"), pl.String),
    **dict.fromkeys(("value", "se", "low", "high"), pl.Float64),
    "n": pl.Int64,
}


@dataclass(frozen=True)
class Case:
    """One induction head and the tokens that decide.

    Attributes:
        predicted: (token,), induction patterns whose loss the head lowers.
        pattern: (token,), all induction patterns.
        strata, by_loss: (token,), numbers of the groups within which tokens are matched: same
            predicted token and domain; same domain and decile of the loss in it.
    """

    head: str
    predicted: Mask
    pattern: Mask
    strata: NDArray[np.int64]
    by_loss: NDArray[np.int64]


def case(
    head: str,
    pattern: Mask,
    delta: Array,
    token: NDArray[np.int64],
    probes: NDArray[np.str_],
    loss: Array,
) -> Case:
    """Args: all (token,); ``delta`` is the loss without the head minus the loss with it."""
    domain = np.unique(probes, return_inverse=True)[1]
    decile = np.zeros(len(loss), dtype=np.int64)
    for number in np.unique(domain):
        chosen = domain == number
        edges = np.quantile(loss[chosen], np.arange(1, 10) / 10)
        decile[chosen] = np.searchsorted(edges, loss[chosen])
    return Case(
        head=head,
        predicted=pattern & (delta > 0),
        pattern=pattern,
        strata=domain * (int(token.max(initial=0)) + 1) + token,
        by_loss=domain * 10 + decile,
    )


def matched_difference(values: Array, chosen: Mask, others: Mask, strata: NDArray) -> float:
    """Mean of the chosen tokens minus that of others of the same stratum.

    Strata count by their chosen tokens; those without any other token are left out. NaN where
    none is left.
    """
    numbers = np.unique(strata, return_inverse=True)[1]
    size = int(numbers.max(initial=-1)) + 1
    count = [np.bincount(numbers[m], minlength=size) for m in (chosen, others)]
    total = [np.bincount(numbers[m], values[m], minlength=size) for m in (chosen, others)]
    both = (count[0] > 0) & (count[1] > 0)
    if not both.any():
        return float("nan")
    difference = total[0][both] / count[0][both] - total[1][both] / count[1][both]
    return float(np.average(difference, weights=count[0][both]))


def quantities(case: Case, values: Array, keep: Mask) -> Array:
    """`QUANTITIES` of one head's values (token,), from the kept tokens."""
    kept = np.asarray(values, dtype=np.float64)[keep]
    predicted, pattern = case.predicted[keep], case.pattern[keep]
    deviation = kept.std()
    if deviation == 0 or not predicted.any():
        return np.full(len(QUANTITIES), np.nan)
    found = [
        matched_difference(kept, predicted, ~pattern, case.strata[keep]),
        kept[predicted].mean(),
        kept[pattern].mean(),
        matched_difference(kept, predicted, ~pattern, case.by_loss[keep]),
    ]
    return np.array(found) / deviation
