"""Section 6: which kinds of tokens have negative, and which have positive susceptibilities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray
from top_ranking import Inputs

from susceptibilities.categories import CATEGORIES, category_table
from susceptibilities.cubes import PARTS
from susceptibilities.jackknife import Array, Condition, Estimate
from susceptibilities.per_token import PerToken
from susceptibilities.token_errors import Statistic, context_blocks, measure_array
from susceptibilities.tokens import CONTROL_PROBE

# What the paper says of each category: its sign.
CLAIMED = {"spacing": -1, "newline": -1, "word_start": -1, "word_end": 1, "right_bracket": 1}
CONTRAST = "contrast"
ALL = "all tokens"
MEAN = "mean of heads"  # every head's chi in units of its standard deviation over tokens
STATISTICS = ("mean", "relative", "negative")


def category_masks(inputs: Inputs) -> dict[str, NDArray[np.bool_]]:
    """Category -> (token,), on the domains; tokens of the control probe are in none."""
    table = category_table(inputs.data, inputs.results)
    domain = (inputs.data.tokens["probe"] != CONTROL_PROBE).to_numpy()
    return {name: table[name].to_numpy() & domain for name in CATEGORIES} | {ALL: domain}


def category_means(masks: Mapping[str, NDArray[np.bool_]]) -> Statistic:
    """Means by category, in standard deviations over all tokens of a domain.

    Returns:
        A statistic of values (head, token), of shape (statistic, category, head + 1); the last
        "head" is the mean of the heads. The statistics are the mean, the mean less that over all
        tokens, and the share of tokens with a negative value; the category after the last is the
        contrast, the mean over the positive categories less that over the negative ones.
    """
    names = list(masks)
    stacked = np.stack([masks[name] for name in names])
    plus = [names.index(name) for name, sign in CLAIMED.items() if sign > 0]
    minus = [names.index(name) for name, sign in CLAIMED.items() if sign < 0]

    def statistic(values: Array, keep: NDArray[np.bool_]) -> Array:
        domain = masks[ALL] & keep
        weights = (stacked & keep).astype(np.float64)
        with np.errstate(invalid="ignore"):  # a category without tokens has no mean
            weights /= weights.sum(1, keepdims=True)
        scaled = np.where(keep, values, 0.0) / values[:, domain].std(1, keepdims=True)
        mean = weights @ scaled.T
        negative = weights @ (scaled < 0).T.astype(np.float64)
        contrast = mean[plus].mean(0) - mean[minus].mean(0)
        mean = np.vstack([mean, contrast])
        relative = mean - mean[names.index(ALL)]
        relative[-1] = contrast
        negative = np.vstack([negative, np.full(len(values), np.nan)])
        found = np.stack([mean, relative, negative])
        return np.concatenate([found, found.mean(-1, keepdims=True)], -1)

    return statistic


def polarity(
    source: PerToken, form: str, masks: Mapping[str, NDArray[np.bool_]]
) -> tuple[Array, Array]:
    """`category_means` of one form with standard errors over chains and contexts."""
    places = [source.components.index(head) for head in source.heads]
    return measure_array(
        category_means(masks),
        source.value[form][places],
        source.replicates[form][:, places].astype(np.float64),
        context_blocks(source.tokens),
    )


def polarity_table(inputs: Inputs, masks: Mapping[str, NDArray[np.bool_]]) -> pl.DataFrame:
    """Long table: run, form, component, category, n, and every statistic with its error."""
    names = [*masks, CONTRAST]
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    contrast = sum(counts[name] for name in CLAIMED)
    rows = []
    cases = [("posterior", form) for form in ("chi", *PARTS)]
    if inputs.control is not None:
        cases.append(("control", "chi"))
    for run, form in cases:
        source = inputs.runs[run]
        value, se = polarity(source, form, masks)
        for c, category in enumerate(names):
            for h, component in enumerate((*source.heads, MEAN)):
                row = {
                    "run": run,
                    "form": form,
                    "component": component,
                    "category": category,
                    "claimed": CLAIMED.get(category, 0),
                    "n": counts.get(category, contrast),
                    "df": min(source.chains, 10) - 1,
                }
                for s, name in enumerate(STATISTICS):
                    row[name] = float(value[s, c, h])
                    row[f"{name}_se"] = float(se[s, c, h])
                rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(
        pl.col(pl.Float64).fill_nan(None)
    )


def conditions(categories: Mapping[str, int] = CLAIMED) -> tuple[Condition, ...]:
    """The claimed sign of every category's mean over heads, and of the contrast."""
    return (
        Condition(CONTRAST, ">", 0.0),
        *(Condition(name, ">" if sign > 0 else "<", 0.0) for name, sign in categories.items()),
    )


def estimates(
    table: pl.DataFrame, run: str, form: str, component: str = MEAN, factor: float = 1.0
) -> dict[str, Estimate]:
    """Category -> mean with its error, for one component; empty categories are left out."""
    rows = table.filter(
        (pl.col("run") == run) & (pl.col("form") == form) & (pl.col("component") == component)
    ).drop_nulls("mean")
    return {
        row["category"]: Estimate(factor * row["mean"], row["mean_se"], row["df"])
        for row in rows.iter_rows(named=True)
        if row["mean_se"] is not None
    }
