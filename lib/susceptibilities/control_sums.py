"""Sums over entries from which a control variate is fitted and checked.

An entry is a token or a context. The sums of two sets of entries add up, so the choice of an
estimator (`control_variate`) can be made over more entries than are ever held together: first
`ProductSums`, which give the coefficients, then, with these, `VarianceSums`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from .moments import Array

Healthy = Bool[NDArray[np.bool_], "component chain"]


def student_t(values: Array) -> Array:
    """Student's t of the mean over chains, the first axis, being zero."""
    count = len(values)
    mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(count)
    # A variate that is the same number in all chains is zero, or surely is not.
    still = np.where(mean == 0, 0.0, np.inf)
    return np.divide(mean, error, out=still, where=error > 0)


def _centred(products: Array, chosen: NDArray[np.bool_]) -> float:
    """Sum over the chosen chains of products of deviations from their mean."""
    block = products[np.ix_(chosen, chosen)]
    return float(np.trace(block) - block.sum() / len(block))


@dataclass(frozen=True)
class ProductSums:
    """Sums over entries of products of two chains' numbers, zero where a chain does not count.

    Attributes:
        both: of control and value, (component, chain, chain).
        own: of control and control, likewise.
    """

    both: Array
    own: Array
    healthy: Healthy

    @classmethod
    def of(
        cls,
        values: Float[Array, "component chain entry"],
        control: Float[Array, "component chain entry"],
        healthy: Healthy,
    ) -> ProductSums:
        shape = (*healthy.shape, healthy.shape[1])
        both, own = np.zeros(shape), np.zeros(shape)
        for place, mine in enumerate(healthy):
            off, at = control[place][mine], np.ix_(mine, mine)
            both[place][at] = off @ values[place][mine].T
            own[place][at] = off @ off.T
        return cls(both, own, healthy)

    def __add__(self, other: ProductSums) -> ProductSums:
        return ProductSums(self.both + other.both, self.own + other.own, self.healthy)

    def coefficients(self) -> Float[Array, "component chain"]:
        """What the variate of each chain is multiplied by: least squares on the other chains.

        One number for all entries. One, its value for a linear loss, where fewer than two other
        chains are left or their variates are the same.
        """
        found = np.ones(self.healthy.shape)
        for place, mine in enumerate(self.healthy):
            for chain in np.flatnonzero(mine):
                rest = mine.copy()
                rest[chain] = False
                square = _centred(self.own[place], rest) if rest.sum() >= 2 else 0.0
                if square > 0:
                    found[place, chain] = _centred(self.both[place], rest) / square
        return found


@dataclass(frozen=True)
class VarianceSums:
    """Sums over entries of variances over chains, without and with the control variate.

    Attributes:
        coefficient: what the variate is multiplied by, (component, chain).
        plain, corrected: of the variance of the mean over chains, (component,).
        plain_without, corrected_without: of the variance over all chains but one, with 1 / r,
            (component, chain); zero for a chain that does not count.
        square_t: of the square of `student_t` of the variate, (component,).
        entries: how many.
    """

    healthy: Healthy
    coefficient: Array
    plain: Array
    corrected: Array
    plain_without: Array
    corrected_without: Array
    square_t: Array
    entries: int

    @classmethod
    def of(
        cls,
        values: Float[Array, "component chain entry"],
        control: Float[Array, "component chain entry"],
        healthy: Healthy,
        coefficient: Float[Array, "component chain"],
    ) -> VarianceSums:
        """
        Raises:
            ValueError: a component with fewer than two healthy chains.
        """
        chains = healthy.sum(1)
        if chains.min() < 2:
            raise ValueError(
                f"a variance over chains needs 2 healthy chains, found {chains.min()} for "
                f"component number {int(chains.argmin())}"
            )
        sums = np.zeros((2, len(healthy)))
        without = np.zeros((2, *healthy.shape))
        square_t = np.zeros(len(healthy))
        for place, mine in enumerate(healthy):
            before, off = values[place][mine], control[place][mine]
            after = before - coefficient[place][mine][:, None] * off
            count = len(before)
            for kind, numbers in enumerate((before, after)):
                sums[kind, place] = numbers.var(0, ddof=1).sum() / count
                for number, chain in enumerate(np.flatnonzero(mine)):
                    rest = np.arange(count) != number
                    without[kind, place, chain] = numbers[rest].var(0).sum()
            square_t[place] = np.sum(student_t(off) ** 2)
        return cls(
            healthy,
            coefficient,
            sums[0],
            sums[1],
            without[0],
            without[1],
            square_t,
            values.shape[-1],
        )

    def __add__(self, other: VarianceSums) -> VarianceSums:
        return VarianceSums(
            self.healthy,
            self.coefficient,
            self.plain + other.plain,
            self.corrected + other.corrected,
            self.plain_without + other.plain_without,
            self.corrected_without + other.corrected_without,
            self.square_t + other.square_t,
            self.entries + other.entries,
        )
