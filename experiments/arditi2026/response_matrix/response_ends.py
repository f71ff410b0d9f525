"""What lies at the ends of the first components: categories, and the most frequent tokens."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from susceptibilities.categories import CATEGORIES
from susceptibilities.cubes import Array, long
from susceptibilities.response_matrix import Mask, Response, ResponsePCA, measure_on_pca

TAIL = 0.05  # share of the tokens at each end of a component
ENDS = ("bottom", "top")
TAILS = ("pooled", "within domains")
LISTED = 8  # tokens that are named at each end


def tail_masks(scores: Array, probes: NDArray, within: bool, share: float = TAIL) -> Mask:
    """Tokens at the two ends of one component.

    Args:
        scores: (token,).
        probes: domain of every token; with ``within`` the ends of each domain are taken, so
            that a domain's own mixture of categories makes no difference.

    Returns:
        (2, token), boolean: the lowest and the highest ``share``, at least one token each.
    """
    masks = np.zeros((2, len(scores)), dtype=bool)
    groups = [np.flatnonzero(probes == p) for p in np.unique(probes)] if within else None
    for places in groups or [np.arange(len(scores))]:
        count = max(1, round(share * len(places)))
        ends = (count - 1, len(places) - count)
        order = places[np.argpartition(scores[places], ends)]
        masks[0, order[:count]] = True
        masks[1, order[-count:]] = True
    return masks


def enrichment(tail: Mask, categories: Mask) -> Array:
    """Log2 of a category's share among some tokens over its share among all.

    Half a token is added to every count, so that a category that is absent from the tail has a
    finite value.

    Args:
        tail: (token,); categories: (category, token).

    Returns:
        (category,).
    """
    inside = (categories[:, tail].sum(1) + 0.5) / (tail.sum() + 1.0)
    overall = (categories.sum(1) + 0.5) / (categories.shape[1] + 1.0)
    return np.log2(inside / overall)


def end_tables(
    response: Response,
    form: str,
    pca: ResponsePCA,
    categories: pl.DataFrame,
    tokens: pl.DataFrame,
    first: int,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Enrichment of every category at both ends of the first components, and frequent tokens.

    Args:
        pca: of ``form``, oriented.
        categories, tokens: rows of the response's tokens.

    Returns:
        ``enrichment`` (pc, tails, end, category, value: log2 of the ratio of shares, se, share
        at that end, share of all) and ``ends`` (pc, end, rank, text, count of the tail's tokens,
        times as frequent as among all tokens).
    """
    masks = np.stack([categories[name].to_numpy() for name in CATEGORIES])
    pcs = range(1, min(first, len(pca.variance)) + 1)

    def tails(own: ResponsePCA, values: Array, keep: Mask) -> Mask:
        """(pc, tails, end, token) of the kept tokens."""
        scores = own.scores(values[0])
        probes = response.probes[keep]
        return np.stack(
            [
                [tail_masks(scores[:, pc - 1], probes, within == TAILS[1]) for within in TAILS]
                for pc in pcs
            ]
        )

    def enriched(own: ResponsePCA, values: Array, keep: Mask) -> Array:
        found = tails(own, values, keep)
        kept = masks[:, keep]
        flat = found.reshape(-1, found.shape[-1])
        return np.stack([enrichment(tail, kept) for tail in flat]).reshape(*found.shape[:-1], -1)

    values, replicates = response.stacked((form,))
    value, se = measure_on_pca(enriched, values, replicates, response.blocks, pca)
    whole = tails(pca, values, np.ones(values.shape[-1], dtype=bool))
    inside = np.stack([masks[:, tail].mean(1) for tail in whole.reshape(-1, whole.shape[-1])])
    table = long(
        [("pc", pcs), ("tails", TAILS), ("end", ENDS), ("category", CATEGORIES)],
        value=value,
        se=se,
        share=inside.reshape(value.shape),
        overall=masks.mean(1),
    )
    return table, frequent(whole[:, 0], list(pcs), tokens)


def frequent(tails: Mask, pcs: list[int], tokens: pl.DataFrame) -> pl.DataFrame:
    """The most frequent tokens at both ends of every component, of all domains pooled.

    Args:
        tails: (pc, end, token).
    """
    overall = tokens.group_by("text").agg(everywhere=pl.len())
    rows = []
    for pc, masks in zip(pcs, tails, strict=True):
        for end, mask in zip(ENDS, masks, strict=True):
            counts = (
                tokens.filter(pl.Series(mask))
                .group_by("text")
                .agg(count=pl.len())
                .join(overall, on="text")
                .sort(["count", "text"], descending=[True, False])
                .head(LISTED)
            )
            share = mask.mean()
            rows.append(
                counts.select(
                    pl.lit(pc, pl.Int64).alias("pc"),
                    pl.lit(end).alias("end"),
                    pl.int_range(1, pl.len() + 1).cast(pl.Int64).alias("rank"),
                    "text",
                    pl.col("count").cast(pl.Int64),
                    times=pl.col("count") / pl.col("everywhere") / share,
                )
            )
    return pl.concat(rows)
