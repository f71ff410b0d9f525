"""Per-token susceptibilities added up: by sign, by token, and between two heads.

Totals are means over the tokens of a probe times the size of the paper's samples, so that
runs of any size are in one unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from susceptibilities.cubes import Array
from susceptibilities.jackknife import Estimate
from susceptibilities.per_token import PerToken
from susceptibilities.token_errors import context_blocks, measure_array

# Baker C.2: 160 contexts of 1023 predicted tokens a dataset.
PUBLISHED_TOKENS = 163_680
SPACE = " "
TOTALS = ("positive", "negative", "sum", "scaled_sum", "imbalance")


@dataclass(frozen=True)
class Sample:
    """The tokens of one probe, with one form of the susceptibility of some heads.

    Attributes:
        values: (head, token); ``se`` the same, over chains.
        replicates: (chain, head, token).
        blocks: block of contexts of every token, (token,).
        ids, texts: of every token, length token.
    """

    heads: tuple[str, ...]
    values: Array
    replicates: Array
    se: Array
    blocks: NDArray[np.int64]
    ids: NDArray[np.int64]
    texts: list[str]

    @property
    def tokens(self) -> int:
        """Tokens in the sample."""
        return self.values.shape[-1]

    @property
    def df(self) -> int:
        """Degrees of freedom of an error: those of the smaller of the two jackknives."""
        return min(len(self.replicates), len(np.unique(self.blocks))) - 1

    @property
    def is_space(self) -> NDArray[np.bool_]:
        """Which tokens are the space by itself, (token,)."""
        return np.array([text == SPACE for text in self.texts])

    def of(self, head: str) -> Sample:
        """The same tokens with one head only."""
        place = self.heads.index(head)
        one = [place]
        return Sample(
            (head,),
            self.values[one],
            self.replicates[:, one],
            self.se[one],
            self.blocks,
            self.ids,
            self.texts,
        )


def sample(
    data: PerToken, probe: str, heads: tuple[str, ...], form: str = "chi", factor: float = 1.0
) -> Sample:
    """The tokens of a probe; values times ``factor``."""
    chosen = data.where(probe)
    places = [data.components.index(head) for head in heads]
    tokens = data.tokens.filter(chosen)
    return Sample(
        heads,
        factor * data.value[form][places][:, chosen],
        factor * data.replicates[form][:, places][:, :, chosen].astype(np.float64),
        abs(factor) * data.se[form][places][:, chosen],
        context_blocks(data.tokens)[chosen],
        tokens["token"].to_numpy(),
        tokens["text"].to_list(),
    )


def totals(values: Array, keep: NDArray[np.bool_], delta_h: float) -> Array:
    """`TOTALS` of token values, (..., token) -> (..., 5).

    The scaled sum is eq. 45's estimate of the dataset susceptibility; the imbalance is the sum
    over what it would be if nothing cancelled, within [-1, 1].
    """
    kept = values[..., keep]
    positive = np.maximum(kept, 0.0).mean(-1)
    negative = np.minimum(kept, 0.0).mean(-1)
    both, mass = positive + negative, positive - negative
    imbalance = np.divide(both, mass, out=np.zeros_like(both), where=mass > 0)
    return np.stack(
        [
            PUBLISHED_TOKENS * positive,
            PUBLISHED_TOKENS * negative,
            PUBLISHED_TOKENS * both,
            delta_h * both,
            imbalance,
        ],
        -1,
    )


def space_moments(values: Array, keep: NDArray[np.bool_], space: NDArray[np.bool_]) -> Array:
    """Mean and standard deviation of the space token's values, (..., token) -> (..., 2).

    NaN where there is none.
    """
    kept = values[..., keep & space]
    if not kept.shape[-1]:
        return np.full((*values.shape[:-1], 2), np.nan)
    return np.stack([kept.mean(-1), kept.std(-1)], -1)


def space_with_errors(s: Sample) -> tuple[Array, Array]:
    """`space_moments` and their standard errors, each (head, 2)."""
    space = s.is_space
    return measure_array(lambda v, k: space_moments(v, k, space), s.values, s.replicates, s.blocks)


def noise_total(se: Array) -> Array:
    """The total of either sign that noise alone would give: (..., token) -> (...).

    A normal error of size s about zero is positive by s / sqrt(2 pi) on average, and negative by
    as much, whether or not errors of different tokens are correlated. Above zero it adds less.
    """
    return PUBLISHED_TOKENS * se.mean(-1) / np.sqrt(2 * np.pi)


def totals_with_errors(s: Sample, delta_h: float) -> tuple[Array, Array]:
    """`TOTALS` and their standard errors, each (head, 5)."""
    return measure_array(lambda v, k: totals(v, k, delta_h), s.values, s.replicates, s.blocks)


def sums_by_token(values: Array, keep: NDArray[np.bool_], codes: NDArray[np.int64]) -> Array:
    """Values (head, token) added up over the occurrences of each distinct token.

    Args:
        codes: number of the distinct token at every place, from 0, (token,).

    Returns:
        Shape (head, distinct token), for `PUBLISHED_TOKENS` tokens.
    """
    count = int(codes.max()) + 1
    scale = PUBLISHED_TOKENS / keep.sum()
    return scale * np.stack([np.bincount(codes[keep], row[keep], count) for row in values])


def by_token(s: Sample) -> pl.DataFrame:
    """What each distinct token contributes to the difference of two heads.

    Args:
        s: a sample with two heads, a and b.

    Returns:
        One row a distinct token: ``token``, ``text``, ``count`` in the sample; ``mean_a``,
        ``mean_b`` over its occurrences; ``negative_a``, ``negative_b``, its part of their
        totals of negative values; ``gap``, its part of sum(a) - sum(b); ``share``, that over
        the whole. Errors in ``<name>_se``; ``noise_<a|b>``: its part of the negative total if
        its values were noise alone.
    """
    distinct, first, codes, counts = np.unique(
        s.ids, return_index=True, return_inverse=True, return_counts=True
    )

    def parts(values: Array, keep: NDArray[np.bool_]) -> Array:
        """(5, distinct token): negative totals of a and b, the gap, its share, 1 where seen."""
        negative = sums_by_token(np.minimum(values, 0.0), keep, codes)
        gap = sums_by_token(values[:1] - values[1:], keep, codes)
        return np.concatenate([negative, gap, gap / gap.sum()])

    value, se = measure_array(parts, s.values, s.replicates, s.blocks)
    everything = np.ones(s.tokens, dtype=bool)
    noise = sums_by_token(s.se / np.sqrt(2 * np.pi), everything, codes)
    frequency = PUBLISHED_TOKENS * counts / s.tokens
    mean = sums_by_token(s.values, everything, codes) / frequency
    names = ("negative_a", "negative_b", "gap", "share")
    return pl.DataFrame(
        {
            "token": distinct,
            "text": [s.texts[i] for i in first],
            "count": counts,
            "mean_a": mean[0],
            "mean_b": mean[1],
            **{name: value[i] for i, name in enumerate(names)},
            **{f"{name}_se": se[i] for i, name in enumerate(names)},
            "noise_a": noise[0],
            "noise_b": noise[1],
        }
    ).sort("gap", descending=True)


@dataclass(frozen=True)
class Gap:
    """A difference of two heads' sums on one probe.

    Attributes:
        sum: sum(a) - sum(b), for `PUBLISHED_TOKENS` tokens.
        p: two-sided p of no difference, of this pair and probe alone.
    """

    probe: str
    a: str
    b: str
    sum: Estimate
    p: float

    @property
    def ratio(self) -> float:
        """Size of the gap in standard errors."""
        return abs(self.sum.value) / self.sum.se if self.sum.se > 0 else 0.0


def all_gaps(data: PerToken, probes: tuple[str, ...]) -> list[Gap]:
    """The gap of every pair of heads on every probe, a being the head with the larger sum."""
    pairs = list(combinations(range(len(data.heads)), 2))
    one, two = np.array(pairs).T
    found = []
    for probe in probes:
        s = sample(data, probe, data.heads)

        def difference(values: Array, keep: NDArray[np.bool_]) -> Array:
            total = PUBLISHED_TOKENS * values[:, keep].mean(-1)
            return total[one] - total[two]

        value, se = measure_array(difference, s.values, s.replicates, s.blocks)
        for (i, j), v, e in zip(pairs, value, se, strict=True):
            p = float(2 * stats.t.sf(abs(v) / e, s.df)) if e > 0 else 1.0
            i, j = (i, j) if v >= 0 else (j, i)
            gap = Estimate(float(abs(v)), float(e), s.df)
            found.append(Gap(probe, data.heads[i], data.heads[j], gap, p))
    return found
