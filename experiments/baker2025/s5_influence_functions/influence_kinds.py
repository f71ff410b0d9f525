"""Pairs of tokens by kind, and statistics over them with each domain or sequence left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

REPEATS = "repeated sequences"
"""Name of the random sequences that come twice in a row, in the place of a domain's."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of tokens of one kind, each once.

    Attributes:
        first, second: places of the tokens.
        units: what is left out together, for both tokens: domains, or repeated sequences.
        count: number of units.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    units: tuple[NDArray[np.int64], NDArray[np.int64]]
    count: int

    def sums(self, matrix: Array | None = None) -> Array:
        """Sum over the pairs of every two units, or their number, (unit, unit)."""
        cell = self.units[0] * self.count + self.units[1]
        values = None if matrix is None else matrix[self.first, self.second]
        found = np.bincount(cell, values, self.count**2).astype(np.float64)
        return found.reshape(self.count, self.count)

    def means(self, matrix: Array) -> Array:
        """Mean over all pairs, then with each unit left out, (1 + unit,); NaN without a pair."""
        total, size = _without_each(self.sums(matrix)), _without_each(self.sums())
        return np.divide(total, size, out=np.full(len(size), np.nan), where=size > 0)

    @property
    def here(self) -> NDArray[np.int64]:
        """Units that have a pair."""
        return np.unique(np.concatenate(self.units))


def _without_each(cells: Array) -> Array:
    """Sum of all cells, then of all but row and column u for every u."""
    left_out = cells.sum() - cells.sum(0) - cells.sum(1) + np.diag(cells)
    return np.concatenate([[cells.sum()], left_out])


def kinds_of_pairs(tokens: pl.DataFrame) -> dict[str, Pairs]:
    """Pairs of tokens by kind: of text by context, domain and predicted token; of repeated
    sequences by copy. Kinds without a pair (a single domain, say) are left out."""
    domain, context, token, position = (
        tokens[name].to_numpy() for name in ("domain", "context", "token", "position")
    )
    names = tokens["domain"].unique(maintain_order=True).to_list()
    text = domain != REPEATS
    place = np.array([names.index(name) for name in domain])
    units = np.where(text, place, context)
    first, second = np.triu_indices(len(tokens), 1)
    both = text[first] & text[second]
    same_domain = domain[first] == domain[second]
    same_context = same_domain & (context[first] == context[second])
    same_token = token[first] == token[second]
    period = int(position[~text].max()) // 2
    copy = (position > period).astype(int)
    one = same_context & ~text[first]
    early, late = copy[first], copy[second]
    across = one & (early != late)
    again = position[second] - position[first] == period
    masks = {
        "first copy": one & (early == 0) & (late == 0),
        "second copy": one & (early == 1) & (late == 1),
        "copies of a token": across & again,
        "other tokens of both copies": across & ~again & ~same_token,
    }
    for name, mask in (
        ("same context", both & same_context),
        ("same domain", both & same_domain & ~same_context),
        ("other domain", both & ~same_domain),
    ):
        masks |= {
            name: mask,
            f"{name}, same token": mask & same_token,
            f"{name}, other token": mask & ~same_token,
        }
    count = int(units.max()) + 1
    return {
        name: Pairs(first[m], second[m], (units[first[m]], units[second[m]]), count)
        for name, m in masks.items()
        if m.any()
    }


def correlation_by_unit(members: list[Pairs], one: Array, two: Array) -> Array:
    """Pearson r between two matrices over pairs: of all, then with each unit left out."""

    def sums(matrix: Array | None = None) -> Array:
        return _without_each(np.sum([p.sums(matrix) for p in members], 0))

    size = sums()
    products = [one, two, one * one, two * two, one * two]
    with np.errstate(invalid="ignore", divide="ignore"):  # a unit that leaves no pair
        a, b, aa, bb, ab = (sums(m) / size for m in products)
        return (ab - a * b) / np.sqrt((aa - a * a) * (bb - b * b))
