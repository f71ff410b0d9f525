"""How the reliability of each part grows with draws, and how many would give one half.

The reliability is the correlation over tokens of estimates from disjoint chains. It is measured
for one chain against one, two against two and so on (`per_token.reliability_table`). If chains
are independent, Spearman and Brown's formula gives that of m chains from that of one. Beyond what
was measured the formula is an extrapolation: to more chains of the same length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from susceptibilities.jackknife import Array, Estimate, pseudo_values
from susceptibilities.naming import head_of
from susceptibilities.reliability import spearman_brown, times_to
from susceptibilities.response_matrix import REMAINDER, RESPONSE_FORMS, Mask, Response

HALF = 0.5


def chain_reliability(single: Array, blocks: NDArray[np.int64]) -> tuple[Array, Array]:
    """Reliability of one chain's estimate: the mean correlation over tokens of two chains.

    Args:
        single: estimates from single chains, (chain, head, token).
        blocks: (token,).

    Returns:
        Value and standard error of every head, then of their mean, (head + 1,). The error is the
        jackknife over chains (all pairs with that chain left out) and over blocks of contexts.
    """
    chains, heads = single.shape[:2]

    def pairs(keep: Mask) -> Array:
        found = np.empty((heads, chains, chains))
        for head in range(heads):
            with np.errstate(invalid="ignore", divide="ignore"):
                found[head] = np.corrcoef(single[:, head, keep])
        return found

    def mean(correlations: Array, kept: Sequence[int]) -> Array:
        chosen = correlations[:, kept][:, :, kept]
        above = np.triu_indices(len(kept), 1)
        each = chosen[:, above[0], above[1]].mean(1)
        return np.append(each, each.mean())

    every = list(range(chains))
    whole = pairs(np.ones(single.shape[-1], dtype=bool))
    value = mean(whole, every)
    squares = np.zeros(heads + 1)
    if chains > 2:
        left = np.stack([mean(whole, [c for c in every if c != out]) for out in every])
        squares += (chains - 1) / chains * np.square(left - left.mean(0)).sum(0)
    numbers = np.unique(blocks)
    rest = np.stack([mean(pairs(blocks != b), every) for b in numbers])
    squares += (len(numbers) - 1) / len(numbers) * np.square(rest - rest.mean(0)).sum(0)
    return value, np.sqrt(squares)


def groups_of(heads: tuple[str, ...]) -> dict[str, list[int]]:
    """Columns of the heads of each layer."""
    layers = sorted({(head_of(head) or (-1,))[0] for head in heads})
    return {
        f"layer {n}": [i for i, head in enumerate(heads) if (head_of(head) or (-1,))[0] == n]
        for n in layers
    }


def reliability_tables(
    response: Response, measured: pl.DataFrame, draws: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Growth of the reliability with draws, and the draws that would give one half.

    Args:
        measured: reliability.parquet of the run.
        draws: kept draws a chain.

    Returns:
        ``reliability`` (group, form, chains, draws, value, se over contexts, predicted: from one
        chain by Spearman and Brown) and ``half`` (group, form, one_chain and its se, low, high
        over chains and contexts; draws to reach `HALF`, and the least and most that the interval
        allows, infinite where it includes no signal; the same in words).
    """
    growth, half = [], []
    for group, places in groups_of(response.heads).items():
        names = [response.heads[i] for i in places]
        for form in RESPONSE_FORMS:
            single = pseudo_values(
                response.value[form][places], response.replicates[form][:, places]
            )
            values, errors = chain_reliability(single, response.blocks)
            if form == REMAINDER:
                # Not among the measured forms: the first-order estimate of one chain.
                rows = [(1, draws, float(values[-1]), float(errors[-1]))]
            else:
                rows = averaged(measured, names, form)
            one = rows[0][2]
            estimate = Estimate(one, float(errors[-1]), response.df)
            low, high = estimate.interval()
            for chains, kept, value, se in rows:
                growth.append(
                    {
                        "group": group,
                        "form": form,
                        "chains": chains,
                        "draws": kept,
                        "value": value,
                        "se": se,
                        "predicted": spearman_brown(one, chains),
                    }
                )
            found = {
                "one_chain": one,
                "chain_draws": float(draws),
                "draws": draws * times_to(HALF, one),
                "draws_low": draws * times_to(HALF, min(high, 1.0)),
                "draws_high": draws * times_to(HALF, low),
            }
            half.append(
                {
                    "group": group,
                    "form": form,
                    **found,
                    "statement": statement(found),
                    "se": estimate.se,
                    "low": low,
                    "high": high,
                    "first_order": float(values[-1]),
                    "measured_chains": rows[-1][0],
                }
            )
    return pl.DataFrame(growth), pl.DataFrame(half)


def statement(found: Mapping[str, float]) -> str:
    """The draws to reach one half in words, with the 95 % interval."""
    one, least, most = (found[name] for name in ("one_chain", "draws_low", "draws_high"))
    if not math.isfinite(most):
        known = f"; 0.5 at over {rounded(least)} draws" if math.isfinite(least) else ""
        return f"no clear signal{known}"
    if one >= HALF:
        return f"above 0.5 with one chain of {found['chain_draws']:.0f} draws"
    return f"0.5 at {rounded(found['draws'])} draws (95 %: {rounded(least)} to {rounded(most)})"


def rounded(value: float) -> str:
    """12345 -> 12,000: two significant digits."""
    if value < 10:
        return f"{value:.1f}"
    digits = max(0, math.floor(math.log10(value)) - 1)
    return f"{round(value / 10**digits) * 10**digits:,.0f}"


def averaged(
    measured: pl.DataFrame, heads: list[str], form: str
) -> list[tuple[int, int, float, float]]:
    """(chains, draws, mean reliability over heads, its error over contexts), by chains.

    The errors of heads are those of the same contexts: they are averaged, not reduced.
    """
    chosen = measured.filter((pl.col("form") == form) & pl.col("component").is_in(heads))
    table = (
        chosen.group_by("chains")
        .agg(pl.col("draws").first(), pl.col("reliability").mean(), pl.col("se").mean())
        .sort("chains")
    )
    return [(int(c), int(d), float(r), float(s)) for c, d, r, s in table.iter_rows()]
