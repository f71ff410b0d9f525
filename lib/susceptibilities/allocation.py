"""How draws are best shared out between the unrestricted chains and those of the components.

Chi has E_full[dL] in it, one vector over tokens from the unrestricted chains, which all components
share, and E_C[g], E_C[dL] and Cov_C of its own. With variances A / D_full and B / D of these two
(summed over components and tokens), D_full and D draws, and costs a and b of one more draw of the
unrestricted chains and of every component, the variance for a given cost is least (Neyman 1934) at

    D_full / D = sqrt(A b / (B a))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .jackknife import jackknife_se
from .moments import Array
from .token_estimates import TokenMoments


@dataclass(frozen=True)
class Allocation:
    """Variances, draws and costs of the unrestricted chains and of the components'.

    Attributes:
        unrestricted_variance, own_variance: of chi, summed over components and tokens, from the
            noise of either.
        unrestricted_draws, own_draws: draws of a chain.
        unrestricted_cost, own_cost: work of one more draw of each unrestricted chain, and of each
            chain of every component.
    """

    unrestricted_variance: float
    own_variance: float
    unrestricted_draws: int
    own_draws: int
    unrestricted_cost: float
    own_cost: float

    @property
    def best(self) -> float:
        """Draws of the unrestricted chains for one of each component, at least cost."""
        unrestricted, own = self._variances
        return float(np.sqrt(unrestricted * self.own_cost / (own * self.unrestricted_cost)))

    @property
    def used(self) -> float:
        """Precision per unit of work of the present draws, relative to the best."""
        unrestricted, own = self._variances
        least = np.sqrt(unrestricted * self.unrestricted_cost) + np.sqrt(own * self.own_cost)
        work = self.unrestricted_draws * self.unrestricted_cost + self.own_draws * self.own_cost
        return float(least**2 / (work * (self.unrestricted_variance + self.own_variance)))

    @property
    def equal(self) -> float:
        """The same of as many draws of the unrestricted chains as of the components'."""
        unrestricted, own = self._variances
        least = np.sqrt(unrestricted * self.unrestricted_cost) + np.sqrt(own * self.own_cost)
        work = self.unrestricted_cost + self.own_cost
        return float(least**2 / (work * (unrestricted + own)))

    @property
    def _variances(self) -> tuple[float, float]:
        """Of one draw a chain."""
        return (
            self.unrestricted_variance * self.unrestricted_draws,
            self.own_variance * self.own_draws,
        )


def variances(moments: TokenMoments, component: int) -> tuple[Array, Array]:
    """Variance of a component's chi from the unrestricted chains, and from its own, (token,).

    Jackknife over one kind of chains while the other is kept whole.
    """
    chains = range(moments.healthy.shape[1])
    rest = [[c for c in chains if c != left] for left in chains]
    whole = moments.full_mean(chains)
    unrestricted = [
        moments.parts(component, chains, moments.full_mean(kept))["chi"] for kept in rest
    ]
    own = [moments.parts(component, kept, whole)["chi"] for kept in rest]
    return jackknife_se(np.stack(unrestricted)) ** 2, jackknife_se(np.stack(own)) ** 2
