"""Directions in weight space along which the noise of an estimate is linear, chain by chain.

To first order a loss along a chain is its gradient at w* times w - w*, so most of the noise of
its mean is that of the chain's mean weights. SGLD's stationary law knows what that mean should
be: its mean drift is zero, n_beta E[grad L] + localization E[w - w*] = 0, whatever the loss. So

    a = mean over draws of (w - w*) + (n_beta / localization) * mean gradient

has expectation zero, and the derivative of a loss along it can be subtracted from the loss's
mean. For covariances with an observable g, where the posterior is a Gaussian of variance s2,
Stein's identity Cov(g, w) = s2 E[grad g] makes b = Cov_draws(g, w) - s2 * mean gradient do the
same, up to the sample's own bias.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .posterior import Sampler


class Directions:
    """Sums over the draws, and the directions made of them; all in float64.

    Weights are counted from w*, from which they are hardly farther than they vary, so sums of
    products lose nothing. ``linear``: keep what b needs.
    """

    def __init__(self, chains: int, w_star: Float[Tensor, " size"], linear: bool) -> None:
        self.w_star = w_star

        def zeros(size: int) -> Tensor:
            return torch.zeros(chains, size, dtype=torch.float64, device=w_star.device)

        self.sums = {"moved": zeros(len(w_star))}
        if linear:
            self.sums |= {"square": zeros(1), "product": zeros(len(w_star))}

    def add(self, weights: Float[Tensor, "chain draw size"]) -> None:
        """Some draws, before anything is evaluated of them."""
        for draw in weights.unbind(1):
            moved = (draw - self.w_star).double()
            self.sums["moved"] += moved
            if "square" in self.sums:
                self.sums["square"] += moved.square().sum(-1, keepdim=True)

    def add_products(
        self, weights: Float[Tensor, "chain draw size"], g: Float[Tensor, "chain draw"]
    ) -> None:
        """The same draws once more, with their observable."""
        if "product" in self.sums:
            for draw, observed in zip(weights.unbind(1), g.double().unbind(1), strict=True):
                self.sums["product"] += observed[:, None] * (draw - self.w_star)

    def a(self, run: Sampler) -> Float[Tensor, "chain size"]:
        """Of the mean; all draws must have been added."""
        c = run.config
        return self.sums["moved"] / c.draws + (c.n_beta / c.localization) * run.mean_gradient

    def b(self, run: Sampler, g: Float[Tensor, "chain draw"]) -> Float[Tensor, "chain size"]:
        """Of the covariance; all draws must have been added, and all products."""
        draws = run.config.draws
        mean = self.sums["moved"] / draws
        covariance = self.sums["product"] / draws - g.mean(1, keepdim=True) * mean
        square = self.sums["square"] / draws - mean.square().sum(-1, keepdim=True)
        # One variance for all chains and weights; chains that diverged say nothing about it.
        sound = (run.trace.died < 0).to(square.device)
        variance = square[sound].mean() / len(self.w_star)
        return covariance - variance * run.mean_gradient
