"""The covariance part of per-token susceptibilities without sampling noise.

Near w* the localized posterior of a component is a Gaussian of precision
A = gamma + n_beta H, H the Hessian of L_n on a stated loss set, and mean m = -n_beta A^-1 g, g
the gradient of L_n at w*. For losses that are quadratics under it, with covariance S,

    Cov(L_n, l_i) = s' S g_i + 1/2 tr(H S H_i S),

s = g + H m = gamma A^-1 g and g_i the slopes at w* + m. With eigenpairs (lambda_k, u_k) of H and
S's eigenvalues S_k (`spectrum.Law`) the second term is 1/2 sum_k lambda_k S_k^2 u_k' H_i u_k. Each
u_k' H_i u_k, for all tokens at once, is a second difference of their losses along u_k: two
evaluations. The first term is one directional derivative, along S s.

Cov(L_n, l_i) is the start of the Hermite expansion of the covariance under a Gaussian, whose
coefficients are *means over the Gaussian* of derivatives. Along u_k itself that mean is taken
care of: a second difference with step sqrt(6) standard deviations equals the mean of the second
derivative up to sixth derivatives. In all other directions `spectral_errors.averaged_terms` takes
it, at random displacements; near a minimum the gradient is small and its mean over the posterior
need not be like it, so the linear term is the first to depart.

Range of validity:

- gamma + n_beta lambda > 0 for every eigenvalue (`spectrum.Law` refuses otherwise).
- Losses that are nearly quadratics in the displacements the posterior makes *in all directions
  together*, about sqrt(size / gamma); with averaged derivatives, a Gaussian posterior is enough.
  E[L_n] against the chains' (`spectral_errors.Remainder.loss`) is a cheap first look.
- The same out to the mean m, where slopes and curvatures of the tokens are taken: H is that at
  w*, so the gradient there is to be small (a trained model).
- Enough pairs: `Terms.tail` and `spectral_errors.remainder`.
- A loss set that stands for the distribution: disjoint ones of other documents give the error.
  The linear term needs more contexts than the quadratic one (`Terms.with_gradient`).
- Compared with chains: those that sample this law. Short ones start at w* and have not spread
  along the flat directions, and minibatch noise widens them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .hessian import LossSet
from .losses import ComponentLosses, Prepared
from .moments import Array
from .spectral_config import SpectralConfig
from .spectrum import Law, Spectrum, lanczos

# Bytes of the weight vectors evaluated together.
_STACK = 1 << 28


@dataclass(frozen=True)
class Differences:
    """Token losses around a point, by central differences along some directions v.

    Attributes:
        shift: losses at the point minus those at w*, (token,).
        first: g_i' v, (direction, token).
        second: v' H_i v, (direction, token).
    """

    shift: Array
    first: Array
    second: Array


class Neighborhood:
    """Token losses around a point of a component's weights, minus those at w*.

    Attributes:
        evaluations: weight vectors that were evaluated so far.

    Args:
        prepared: the contexts of the tokens, as ``losses.prepare`` returns them.
        center: displacement of the point from w*, (size,).
    """

    def __init__(self, losses: ComponentLosses, prepared: Prepared, center: Tensor) -> None:
        self.losses, self.prepared = losses, prepared
        self._center = losses.w_star.double() + center.double()
        self.evaluations = 0

    def at(self, moves: Float[Tensor, "move size"]) -> Array:
        """Losses at displacements from the center, (move, token)."""
        star, found = self.losses.w_star, []
        for some in moves.split(max(2, _STACK // (moves.shape[1] * moves.element_size()))):
            weights = (self._center + some).to(star.dtype)
            values = self.losses.shifts(weights, self.prepared)
            found.append(values.flatten(1).double().cpu().numpy())
        self.evaluations += len(moves)
        return np.concatenate(found)

    def differences(self, directions: Float[Tensor, "direction size"], steps: Array) -> Differences:
        """First and second derivatives of every token's loss along every direction.

        Args:
            steps: what each direction is multiplied by. Rounding leaves an error in ``second``
                of about 4e-16 (float64) or 2e-7 (float32) times the loss over its square.
        """
        moves = torch.from_numpy(steps).to(directions)[:, None] * directions
        values = self.at(torch.cat([torch.zeros_like(moves[:1]), moves, -moves]))
        shift, (plus, minus) = values[0], np.split(values[1:], 2)
        first = (plus - minus) / (2 * steps[:, None])
        return Differences(shift, first, (plus + minus - 2 * shift) / steps[:, None] ** 2)


@dataclass(frozen=True)
class Terms:
    """The estimate of one loss set, term by term.

    Attributes:
        law: the Gaussian that is meant.
        spectrum: of the loss set's Hessian.
        pairs: which of its pairs are used, those of the largest |lambda| S^2 first, (pair,).
        slope: coordinates of the gradient of L_n in the spectrum's basis, (step,), and the
            square of its length ``outside`` that basis.
        curvature: u_k' H_i u_k, (pair, token).
        linear: s' S g_i, (token,).
        shift: l_i at the Gaussian's mean minus l_i at w*, (token,).
        evaluations: weight vectors at which all tokens were evaluated.
    """

    law: Law
    spectrum: Spectrum
    pairs: NDArray[np.int64]
    slope: Array
    outside: float
    curvature: Array
    linear: Array
    shift: Array
    evaluations: int

    @property
    def eigenvalues(self) -> Array:
        """Of the pairs that are used."""
        return self.spectrum.values[self.pairs]

    @property
    def weights(self) -> Array:
        """lambda_k S_k^2 / 2, (pair,)."""
        return 0.5 * self.eigenvalues * self.law.variance(self.eigenvalues) ** 2

    @property
    def quadratic(self) -> Array:
        """1/2 tr(H S H_i S) over the pairs that are used, (token,)."""
        return self.weights @ self.curvature

    @property
    def variance(self) -> float:
        """Cov(L_n, L_n), over the same pairs: the constant that makes l_i into l_i - L_n."""
        values, law = self.spectrum.values, self.law
        inside = np.sum((law.slope(values) * self.slope) ** 2 * law.variance(values))
        return float(inside + self.outside * law.flat + self.weights @ self.eigenvalues)

    @property
    def covariance(self) -> Array:
        """The covariance part as it adds to chi, -Cov(L_n, l_i - L_n), (token,)."""
        return -(self.linear + self.quadratic - self.variance)

    @property
    def mean_loss(self) -> float:
        """E[L_n] - L_n(w*) over the pairs that are used (the mean's displacement: all)."""
        values, c, law = self.spectrum.values, self.slope, self.law
        m = law.mean(values) * c
        flat = float(law.mean(np.zeros(1))[0]) * self.outside
        spread = 0.5 * np.sum(self.eigenvalues * law.variance(self.eigenvalues))
        return float(np.sum(c * m + 0.5 * values * m**2) + flat + spread)

    @property
    def distance(self) -> float:
        """|m|, how far the Gaussian's mean is from w*."""
        inside = np.sum((self.law.mean(self.spectrum.values) * self.slope) ** 2)
        flat = float(self.law.mean(np.zeros(1))[0]) ** 2 * self.outside
        return float(np.sqrt(inside + flat))

    def tail(self) -> float:
        """Size (standard deviation over tokens) of what the last quarter of the pairs adds,
        over that of the whole quadratic term.

        Small tails say nothing of the thousands of small eigenvalues that Lanczos does not
        separate: `spectral_errors.remainder` measures what those add together.
        """
        last = len(self.pairs) - len(self.pairs) // 4
        return float((self.weights[last:] @ self.curvature[last:]).std() / self.quadratic.std())

    def departure(self, other: Array) -> tuple[float, float]:
        """How the quadratic term differs with the first pairs' curvatures measured otherwise.

        Args:
            other: (pair, token), of as many pairs as are compared.

        Returns:
            Pearson correlation over tokens, and the standard deviation of the difference over
            that of the term.
        """
        some = self.weights[: len(other)]
        own, found = some @ self.curvature[: len(other)], some @ other
        return float(np.corrcoef(found, own)[0, 1]), float((found - own).std() / own.std())

    def with_gradient(
        self,
        gradient: Float[Tensor, " size"],
        losses: ComponentLosses,
        tokens: Prepared,
    ) -> Terms:
        """The same with another gradient of L_n, of a larger set of contexts.

        Near a minimum the gradient on a few contexts is mostly their own, and the linear term
        with it. One more context there costs one gradient; in the loss set, one product a
        Lanczos step. H stays that of the loss set.
        """
        none = np.zeros(0, np.int64)
        other = _terms(self.spectrum, gradient, losses, tokens, self.law, none, 1.0)
        spent = self.evaluations + other.evaluations
        return replace(other, pairs=self.pairs, curvature=self.curvature, evaluations=spent)


def displaced_mean(spectrum: Spectrum, law: Law, gradient: Tensor) -> Float[Tensor, " size"]:
    """m = -n_beta A^-1 g."""
    return spectrum.apply(law.mean, gradient)


def steepest(spectrum: Spectrum, law: Law, slope: Tensor) -> tuple[Float[Tensor, " size"], float]:
    """S s, along which the linear term is the derivative, and the step of its difference.

    The step is one standard deviation: the same displacement as the posterior's.

    Args:
        slope: s, mean of the gradient of L_n over the Gaussian.
    """
    along = spectrum.apply(law.variance, slope)
    norm, largest = float(along.norm()), float(law.variance(spectrum.values).max())
    return along, largest**0.5 / norm if norm > 0 else 1.0


def leading_pairs(spectrum: Spectrum, law: Law, count: int) -> NDArray[np.int64]:
    """The pairs of the largest |lambda| S^2, those first."""
    sizes = np.abs(spectrum.values) * law.variance(spectrum.values) ** 2
    return np.argsort(-sizes, kind="stable")[:count]


def loss_spectrum(
    loss: LossSet, star: Float[Tensor, " size"], steps: int, seed: int = 0
) -> tuple[Float[Tensor, " size"], Spectrum]:
    """Gradient of L_n at w* (float64) and pairs of its Hessian, by ``steps`` Lanczos steps."""
    gradient = loss.gradient(star)
    return gradient, lanczos(lambda v: loss.product(star, v), gradient.to(star.dtype), steps, seed)


def spectral_terms(
    spectrum: Spectrum,
    gradient: Float[Tensor, " size"],
    losses: ComponentLosses,
    tokens: Prepared,
    law: Law,
    config: SpectralConfig,
) -> Terms:
    """The estimate of one loss set for every token of some contexts.

    Args:
        spectrum, gradient: of L_n, from `loss_spectrum`: it makes the posterior, and its
            covariance with the tokens is taken.
        tokens: contexts of the tokens, as ``losses.prepare`` returns them.

    Raises:
        ValueError: the posterior has no Gaussian near w*, see `Law.precision`.
    """
    pairs = leading_pairs(spectrum, law, config.pairs)
    return _terms(spectrum, gradient, losses, tokens, law, pairs, config.scale)


def _terms(
    spectrum: Spectrum,
    gradient: Tensor,
    losses: ComponentLosses,
    tokens: Prepared,
    law: Law,
    pairs: NDArray[np.int64],
    scale: float,
) -> Terms:
    """All terms with the chosen pairs, differences taken in one go."""
    variance = law.variance(spectrum.values[pairs])
    slope = spectrum.apply(law.slope, gradient)
    along, length = steepest(spectrum, law, slope)
    directions = torch.cat([spectrum.chosen(pairs), along[None]])
    near = Neighborhood(losses, tokens, displaced_mean(spectrum, law, gradient))
    steps = np.append(scale * np.sqrt(variance), length)
    found = near.differences(directions, steps)
    coordinates, outside = spectrum.coordinates(gradient)
    return Terms(
        law=law,
        spectrum=spectrum,
        pairs=pairs,
        slope=coordinates,
        outside=float(outside.double().square().sum()),
        curvature=found.second[:-1],
        linear=found.first[-1],
        shift=found.shift,
        evaluations=near.evaluations,
    )


def gaussian_draws(
    spectrum: Spectrum, pairs: NDArray[np.int64], law: Law, draws: int, seed: int = 0
) -> Float[Tensor, "draw size"]:
    """Displacements from the mean, drawn from the Gaussian; S(0) outside the given pairs."""
    flat, used = law.flat**0.5, spectrum.chosen(pairs)
    stretch = np.sqrt(law.variance(spectrum.values[pairs])) - flat
    rng = torch.Generator().manual_seed(seed)
    normal = torch.randn(draws, used.shape[1], generator=rng, dtype=torch.float64).to(used)
    return flat * normal + (normal @ used.T * torch.from_numpy(stretch).to(used)) @ used
