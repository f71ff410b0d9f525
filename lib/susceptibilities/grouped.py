"""A jackknife over groups of rows that are never held together.

Moments of the rows of every group are kept apart; merged with one group left out, they are what a
pass over the rest of the rows would give. Rows are tokens, groups are blocks of contexts
(`token_errors.context_blocks`), since tokens of one context are not independent. What depends on
the rows through these moments has an error without another pass over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

from .jackknife import Estimate, jackknife_se
from .moments import Array


class Mergeable(Protocol):
    """Moments of a set of rows."""

    def merge(self, other: Self, /) -> Self:
        """Of both sets together."""
        ...


M = TypeVar("M", bound=Mergeable)


@dataclass(frozen=True)
class Grouped(Generic[M]):
    """Moments of the rows of every group; at least two groups."""

    groups: tuple[M, ...]

    @classmethod
    def over(
        cls,
        of: Callable[[Array], M],
        blocks: Iterable[Float[Array, "*lead row column"]],
        groups: Int[NDArray[np.int64], " row"],
    ) -> Grouped[M]:
        """Go through all rows once.

        Args:
            of: moments of some rows.
            blocks: the rows in order, some at a time; any axes may be before that of the rows.
            groups: of every row.

        Raises:
            ValueError: another number of rows than ``groups``, or fewer than two groups.
        """
        held: dict[int, M] = {}
        first = 0
        for block in blocks:
            mine = groups[first : first + block.shape[-2]]
            first += block.shape[-2]
            if first > len(groups):
                break
            for group in np.unique(mine).tolist():
                part = of(block[..., mine == group, :])
                held[group] = held[group].merge(part) if group in held else part
        if first != len(groups):
            raise ValueError(
                f"expected {len(groups)} rows, as there are groups, found "
                f"{'more' if first > len(groups) else first}"
            )
        if len(held) < 2:
            raise ValueError(f"a jackknife needs at least 2 groups of contexts, found {len(held)}")
        return cls(tuple(held[group] for group in sorted(held)))

    @cached_property
    def whole(self) -> M:
        """Of all rows."""
        return reduce(lambda a, b: a.merge(b), self.groups)

    @cached_property
    def left_out(self) -> tuple[M, ...]:
        """Of all rows but those of one group, by group."""
        count = range(len(self.groups))
        return tuple(
            reduce(lambda a, b: a.merge(b), (self.groups[k] for k in count if k != gone))
            for gone in count
        )

    def jackknife(self, statistic: Callable[[M], ArrayLike]) -> tuple[Array, Array]:
        """Value of a statistic and its standard error, both of the statistic's shape."""
        value = np.asarray(statistic(self.whole), np.float64)
        return value, jackknife_se(np.stack([np.asarray(statistic(m)) for m in self.left_out]))

    def estimate(self, statistic: Callable[[M], float]) -> Estimate:
        """`jackknife` of one number; groups - 1 degrees of freedom."""
        value, se = self.jackknife(statistic)
        return Estimate(float(value), float(se), len(self.groups) - 1)
