"""The direction in weight space along which the noise of a chain's means is linear.

To first order a loss along a chain is its gradient at w* times w - w*, so most of the noise of
its mean is that of the chain's mean weights. SGLD's stationary law knows what that mean should
be: its mean drift is zero, n_beta E[grad L] + localization E[w - w*] = 0, whatever the loss. So

    a = mean over draws of (w - w*) + (n_beta / localization) * mean gradient

has expectation zero, and the derivative of a loss along it can be subtracted from the loss's
mean. Covariances with an observable g have no such direction here: that of Stein's identity,
Cov(g, w) - s^2 * mean gradient, has expectation zero only if g's gradient is that of the
minibatches' contexts, and the base contexts have another, so it would be biased; the covariance
has an estimator of its own (`spectral`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .posterior import Sampler


class Direction:
    """The sum over draws of w - w*, (chain, size), in float64, and the direction a made of it."""

    def __init__(self, chains: int, w_star: Float[Tensor, " size"]) -> None:
        self.w_star = w_star
        self.total = torch.zeros(chains, len(w_star), dtype=torch.float64, device=w_star.device)

    def add(self, weights: Float[Tensor, "chain draw size"]) -> None:
        """Some draws."""
        for draw in weights.unbind(1):
            self.total += (draw - self.w_star).double()

    def a(self, run: Sampler) -> Float[Tensor, "chain size"]:
        """All draws must have been added."""
        c = run.config
        return self.total / c.draws + (c.n_beta / c.localization) * run.mean_gradient
