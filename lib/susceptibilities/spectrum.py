"""Leading eigenpairs of a Hessian by Lanczos, and the Gaussian laws that are functions of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .moments import Array
from .posterior import SamplerConfig

# A new basis vector shorter than this power of the precision, relative to the largest so far:
# the space is exhausted.
_BREAKDOWN = 2 / 3


@dataclass(frozen=True)
class Spectrum:
    """Approximate eigenpairs (Ritz pairs) of a Hessian.

    Attributes:
        values: (pair,), nats per squared weight.
        vectors: orthonormal rows, (pair, size).
        residuals: |H u - lambda u|, (pair,); an eigenvalue lies within it of each value.
    """

    values: Array
    vectors: Tensor
    residuals: Array

    def coordinates(self, vector: Tensor) -> tuple[Array, Tensor]:
        """Coordinates of a vector in the basis, (pair,), and what lies outside its span."""
        chosen = vector.to(self.vectors)
        inside = self.vectors @ chosen
        outside = chosen - inside @ self.vectors
        # Once more: of a vector inside the span, rounding leaves a part outside.
        more = self.vectors @ outside
        return (inside + more).double().cpu().numpy(), outside - more @ self.vectors

    def combine(self, coordinates: Array) -> Float[Tensor, " size"]:
        """The vector with these coordinates in the basis."""
        return torch.from_numpy(coordinates).to(self.vectors) @ self.vectors

    def apply(self, function: Callable[[Array], Array], vector: Tensor) -> Tensor:
        """f(H) vector, with f(0) in the place of f outside the span.

        Lanczos starts from the gradient, so it lies in the span, and so does f(H) gradient up
        to the error of conjugate gradients with as many steps.
        """
        inside, outside = self.coordinates(vector)
        return self.combine(inside * function(self.values)) + float(function(np.zeros(1))[0]) * (
            outside
        )

    def chosen(self, pairs: NDArray[np.int64]) -> Tensor:
        """Eigenvectors of some pairs, (pair, size)."""
        return self.vectors[torch.from_numpy(pairs).to(self.vectors.device)]

    def project_out(self, vector: Tensor, pairs: NDArray[np.int64]) -> Tensor:
        """What is left of a vector outside the span of the chosen pairs."""
        chosen = self.chosen(pairs)
        vector = vector.to(chosen)
        return vector - (chosen @ vector) @ chosen


def lanczos(
    product: Callable[[Tensor], Tensor],
    start: Float[Tensor, " size"],
    steps: int,
    seed: int = 0,
) -> Spectrum:
    """Ritz pairs of a symmetric operator after ``steps`` products, largest |value| first.

    Every new vector is orthogonalized twice against all before it. Where the Krylov space of
    ``start`` is exhausted (or ``start`` is zero) a random direction outside it is added, so
    that ``steps`` >= size gives all eigenpairs. Memory: ``steps`` vectors, and as many again at
    the end, in the precision of ``start``.

    Args:
        start: the gradient, see `Spectrum.apply`.
        seed: of the random directions.
    """
    rng = torch.Generator().manual_seed(seed)
    size, kind = len(start), start.dtype
    steps = min(steps, size)
    basis = torch.zeros(steps, size, dtype=kind, device=start.device)
    tridiagonal = np.zeros((steps, steps))
    breakdown = torch.finfo(kind).eps ** _BREAKDOWN

    def orthogonalized(vector: Tensor, count: int) -> Tensor:
        for _ in range(2):
            vector = vector - (basis[:count] @ vector) @ basis[:count]
        return vector

    def fresh(count: int) -> Tensor:
        random = torch.randn(size, generator=rng, dtype=torch.float64).to(start)
        vector = orthogonalized(random / random.norm(), count)
        return vector / vector.norm()

    length = float(start.norm())
    basis[0] = start / length if length > 0 else fresh(0)
    largest, last = 0.0, 0.0
    for step in range(steps):
        image = product(basis[step]).to(kind)
        tridiagonal[step, step] = float(basis[step] @ image)
        rest = orthogonalized(image, step + 1)
        last = float(rest.norm())
        largest = max(largest, float(image.norm()))
        if step + 1 < steps:
            if last > breakdown * largest:
                basis[step + 1] = rest / last
                tridiagonal[step, step + 1] = tridiagonal[step + 1, step] = last
            else:
                basis[step + 1] = fresh(step + 1)
    values, mix = np.linalg.eigh(tridiagonal)
    order = np.argsort(-np.abs(values))
    values, mix = values[order], mix[:, order]
    residuals = np.zeros(steps) if steps == size else last * np.abs(mix[-1])
    vectors = torch.from_numpy(mix.T.copy()).to(basis) @ basis
    return Spectrum(values, vectors, residuals)


@dataclass(frozen=True)
class Law:
    """The Gaussian that a sampler draws from near w*, as a function of the Hessian.

    The posterior itself has precision A = localization + n_beta H. With ``step_size`` it is
    the stationary law of full-batch SGLD on the quadratic, whose covariance solves
    S = (1 - eps A / 2) S (1 - eps A / 2) + eps: S = A^-1 (1 - eps A / 4)^-1. The scatter of
    minibatch gradients, which adds (eps n_beta / 2)^2 times its covariance to the noise eps of
    a step, is left out of both.
    """

    n_beta: float
    localization: float
    step_size: float | None = None

    @classmethod
    def of(cls, sampler: SamplerConfig, kind: str) -> Law:
        """The law that a sampler's settings mean, ``posterior`` or ``sgld``.

        Raises:
            ValueError: SGLD's law is asked for and the sampler is preconditioned.
        """
        if kind == "posterior":
            return cls(sampler.n_beta, sampler.localization)
        if sampler.method != "sgld":
            raise ValueError(
                f"the stationary covariance of {sampler.method!r} is not known in closed form; "
                "use law 'posterior'"
            )
        return cls(sampler.n_beta, sampler.localization, sampler.step_size)

    def precision(self, eigenvalues: Array) -> Array:
        """A for these eigenvalues of the Hessian.

        Raises:
            ValueError: A is not positive (the posterior has no Gaussian there), or SGLD's step
                is too long for it.
        """
        a = self.localization + self.n_beta * np.asarray(eigenvalues, np.float64)
        if (a <= 0).any():
            raise ValueError(
                f"the posterior is no Gaussian near w*: localization {self.localization} + n_beta "
                f"{self.n_beta} * the Hessian's least eigenvalue {np.min(eigenvalues):.4g} must "
                "be positive; raise localization or lower n_beta"
            )
        if self.step_size is not None and (self.step_size * a >= 4).any():
            raise ValueError(
                f"SGLD diverges: step_size {self.step_size} * precision {a.max():.4g} must be "
                "below 4; lower step_size"
            )
        return a

    def variance(self, eigenvalues: Array) -> Array:
        """S for these eigenvalues of the Hessian."""
        a = self.precision(eigenvalues)
        return 1 / a if self.step_size is None else 1 / (a * (1 - self.step_size * a / 4))

    @property
    def flat(self) -> float:
        """S where the loss is flat."""
        return float(self.variance(np.zeros(1))[0])

    def mean(self, eigenvalues: Array) -> Array:
        """-n_beta / A: what the gradient is multiplied by to give the mean."""
        return -self.n_beta / self.precision(eigenvalues)

    def slope(self, eigenvalues: Array) -> Array:
        """localization / A: what the gradient at w* is multiplied by to give that at the mean."""
        return self.localization / self.precision(eigenvalues)
