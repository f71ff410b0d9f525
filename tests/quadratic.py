"""A model whose posterior is known: every context's loss is a quadratic in the weights.

Context i has loss c_i + b_i . w + w' H_i w / 2 with w* = 0. The chains' stationary law is a
Gaussian, also with the discretisation of SGLD, so every estimate has an exact value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from susceptibilities.components import Component, Slice
from susceptibilities.losses import Prepared
from susceptibilities.posterior import SamplerConfig


@dataclass
class Quadratic:
    """Context losses as a `ComponentLosses` restricted to the coordinates ``kept``.

    Attributes:
        linear: (context, P); square: (context, P, P), symmetric.
    """

    linear: Tensor
    square: Tensor
    kept: list[int]

    def __post_init__(self) -> None:
        self.b = self.linear[:, self.kept]
        self.h = self.square[:, self.kept][:, :, self.kept]
        size = len(self.kept)
        self.component = Component("quadratic", (Slice("w", (), (size,)),))
        self.w_star = torch.zeros(size, dtype=self.linear.dtype)
        self.depth = None

    def prepare(self, tokens: Tensor, keep: bool = True) -> Prepared:
        """Tokens are context numbers, shape (context, 1); each context has one loss."""
        return Prepared(tokens[:, :1].expand(-1, 2))

    def shifts(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        contexts = prepared.tokens[rows or slice(None), 0]
        values = weights @ self.b[contexts].T
        values = values + 0.5 * torch.einsum("sp,cpq,sq->sc", weights, self.h[contexts], weights)
        return values[..., None]

    def star(self, prepared: Prepared, rows: slice | None = None) -> Tensor:
        """Losses at w* = 0 are zero."""
        return torch.zeros_like(prepared.tokens[rows or slice(None), 1:], dtype=self.w_star.dtype)

    def losses(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        return self.star(prepared, rows) + self.shifts(weights, prepared, rows)

    def loss_and_gradient(
        self, weights: Tensor, prepared: Prepared, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        chosen = prepared.tokens[rows, 0]
        b, h = self.b[chosen].mean(1), self.h[chosen].mean(1)
        hw = torch.einsum("spq,sq->sp", h, weights)
        return (weights * (b + 0.5 * hw)).sum(-1), b + hw

    def stationary(self, pool: list[int], config: SamplerConfig) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of SGLD's stationary law with full-batch gradients."""
        b, h = self.b[pool].mean(0).numpy(), self.h[pool].mean(0).numpy()
        eye = np.eye(len(b))
        precision = config.n_beta * h + config.localization * eye
        step = eye - 0.5 * config.step_size * precision
        mean = -np.linalg.solve(precision, config.n_beta * b)
        return mean, config.step_size * np.linalg.inv(eye - step @ step)

    def expectation(self, rows: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
        """E[loss of each context] under N(mean, cov)."""
        b, h = self.b[rows].numpy(), self.h[rows].numpy()
        return b @ mean + 0.5 * (h @ mean) @ mean + 0.5 * np.einsum("cpq,qp->c", h, cov)

    def covariance(
        self, first: np.ndarray, rows: np.ndarray, mean: np.ndarray, cov: np.ndarray
    ) -> np.ndarray:
        """Cov(mean loss over ``first``, loss of each context of ``rows``)."""
        b, h = self.b[first].mean(0).numpy(), self.h[first].mean(0).numpy()
        d, m = self.b[rows].numpy(), self.h[rows].numpy()
        slope, slopes = h @ mean + b, m @ mean + d
        hs = h @ cov
        return slopes @ cov @ slope + 0.5 * np.einsum("pq,cqr,rp->c", hs, m, cov)


def random_quadratic(contexts: int, size: int, kept: list[int], seed: int = 0) -> Quadratic:
    """Convex contexts with slopes of order one."""
    rng = torch.Generator().manual_seed(seed)
    roots = torch.randn(contexts, size, size, generator=rng, dtype=torch.float64) / size**0.5
    linear = 0.3 * torch.randn(contexts, size, generator=rng, dtype=torch.float64)
    return Quadratic(linear, roots @ roots.transpose(1, 2), kept)
