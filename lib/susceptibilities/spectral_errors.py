"""Errors of the spectral estimator: loss sets, the spectrum's tail, and what is no quadratic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .hessian import LossSet
from .jackknife import jackknife_se
from .losses import ComponentLosses, Prepared
from .moments import Array
from .spectral import Neighborhood, Terms, displaced_mean, gaussian_draws, steepest


@dataclass(frozen=True)
class Remainder:
    """What the pairs left out add, from random directions orthogonal to those that are used.

    Attributes:
        quadratic: unbiased estimates of the rest of 1/2 tr(H S H_i S), (probe, token).
        spread: the same of the rest of 1/2 tr(H_i S): with it and the used pairs' share,
            `Terms.shift` becomes E[l_i] - l_i(w*).
        loss: the same of the rest of 1/2 tr(H S), (probe,): with it `Terms.mean_loss` becomes
            E[L_n] - L_n(w*). Against the same mean along chains it is the cheapest check that
            the losses are quadratics where the chains go.
        variance: the same of the rest of 1/2 tr(H S H S), (probe,).
        evaluations: weight vectors at which all tokens were evaluated.
    """

    quadratic: Array
    spread: Array
    loss: Array
    variance: Array
    evaluations: int

    def completed(self, terms: Terms) -> Array:
        """The covariance part with the mean estimate of the rest added, (token,).

        The used pairs carry the large eigenvalues, the rest are thousands of small ones. Their
        sum need not be small (`shared_variance`): where it is not, this is the better estimate,
        given enough probes.
        """
        return terms.covariance - (self.quadratic.mean(0) - self.variance.mean())


def remainder(
    terms: Terms,
    gradient: Tensor,
    loss: LossSet,
    losses: ComponentLosses,
    tokens: Prepared,
    probes: int = 8,
    scale: float = 0.25,
    seed: int = 0,
) -> Remainder:
    """Hutchinson estimates of what lies outside the pairs that are used.

    Outside them n_beta lambda is taken to be small beside gamma: S = S(0). With z of random
    signs there and y = S(0)^2 H z, the estimate is z' H_i y / 2, from second differences along
    z + y and z - y. A product of H and six evaluations a probe.

    Args:
        gradient: of L_n at w*; differences are taken around the mean that it gives.
        scale: length of the displacements over sqrt(size * S(0)), the posterior's own.
    """
    spectrum, flat, star = terms.spectrum, terms.law.flat, losses.w_star
    if len(terms.pairs) >= len(star):
        nothing = np.zeros((probes, len(terms.shift)))
        return Remainder(nothing, nothing, np.zeros(probes), np.zeros(probes), 0)
    rng = torch.Generator().manual_seed(seed)
    directions, ratios, losses_, variances = [], [], [], []
    for _ in range(probes):
        signs = torch.randint(0, 2, (len(star),), generator=rng).to(star) * 2 - 1
        z = spectrum.project_out(signs, terms.pairs)
        image = spectrum.project_out(loss.product(star, z), terms.pairs)
        y = flat**2 * image
        ratio = float(z.norm() / y.norm())
        directions += [z, z + ratio * y, z - ratio * y]
        ratios.append(ratio)
        losses_.append(0.5 * flat * float(z.double() @ image.double()))
        variances.append(0.5 * float(image.double() @ y.double()))
    moves = torch.stack(directions)
    steps = scale * (len(star) * flat) ** 0.5 / moves.norm(dim=1).double().cpu().numpy()
    near = Neighborhood(losses, tokens, displaced_mean(spectrum, terms.law, gradient))
    second = near.differences(moves, steps).second.reshape(probes, 3, -1)
    own, plus, minus = second[:, 0], second[:, 1], second[:, 2]
    return Remainder(
        quadratic=(plus - minus) / (8 * np.array(ratios)[:, None]),
        spread=0.5 * flat * own,
        loss=np.array(losses_),
        variance=np.array(variances),
        evaluations=near.evaluations,
    )


def shared_variance(values: Array, groups: NDArray[np.int64]) -> tuple[float, float]:
    """Variance over tokens of what estimates with independent noise have in common.

    From covariances between estimates of different groups, so that noise does not add to it;
    it can come out negative. The error is a jackknife over groups.

    Args:
        values: (estimate, token).
        groups: number of each estimate's group, (estimate,): estimates of one group (probes of
            one loss set, say) are not independent and are not compared.
    """
    centered = values - values.mean(1, keepdims=True)
    cross = centered @ centered.T / centered.shape[1]
    other = groups[:, None] != groups[None, :]
    numbers = np.unique(groups)
    if len(numbers) < 2:
        raise ValueError(f"shared variance needs 2 groups of estimates, found {len(numbers)}")

    def mean(kept: NDArray[np.bool_]) -> float:
        return float(cross[np.ix_(kept, kept)][other[np.ix_(kept, kept)]].mean())

    value = mean(np.ones(len(groups), dtype=bool))
    if len(numbers) < 3:
        return value, float("nan")
    left_out = np.array([mean(groups != number) for number in numbers])
    return value, float(jackknife_se(left_out))


@dataclass(frozen=True)
class Averaged:
    """Terms with derivatives at random displacements of the Gaussian, each with its negative.

    Where the losses are quadratics they are those at the mean, and the averages here are what the
    Hermite expansion asks for where they are not. L_n and the tokens have displacements of their
    own, so that products of their averages are without bias.

    Attributes:
        quadratic: 1/2 tr(H S H_i S) over the first pairs, (draw, token).
        linear: s' S g_i, (draw, token).
        own: u_k' H u_k of L_n, (pair,).
        variance: Cov(L_n, L_n), over the same pairs.
        evaluations: weight vectors at which all tokens were evaluated.
    """

    quadratic: Array
    linear: Array
    own: Array
    variance: float
    evaluations: int


def averaged_terms(
    terms: Terms,
    gradient: Tensor,
    loss: LossSet,
    wide: LossSet,
    losses: ComponentLosses,
    tokens: Prepared,
    pairs: int,
    draws: int,
    seed: int = 0,
) -> Averaged:
    """Both terms with derivatives averaged over the Gaussian.

    The pairs stay those at w*: eigenvectors of the mean Hessian would be others, so what it has
    between two of them is left out.

    Args:
        gradient: of L_n at w*, the one in ``terms``, for the mean m.
        loss: contexts on which the curvature of L_n is measured; ``wide``: its gradient.
        pairs: number of pairs, of the largest |lambda| S^2.
        draws: displacements for the tokens, and as many for L_n.
    """
    law, spectrum, star = terms.law, terms.spectrum, losses.w_star
    mean = displaced_mean(spectrum, law, gradient)
    chosen = terms.pairs[:pairs]
    used, variance = spectrum.chosen(chosen), law.variance(spectrum.values[chosen])
    moves = gaussian_draws(spectrum, terms.pairs, law, 2 * draws, seed)
    steps = np.sqrt(variance)

    around = [mean + sign * move for move in moves[draws:] for sign in (1.0, -1.0)]
    slopes = [wide.gradient((star + point).to(star.dtype)) for point in around]
    slope = torch.stack(slopes).mean(0)
    near = [Neighborhood(losses, loss.prepared, point) for point in around]
    own = np.mean([n.differences(used, steps).second.mean(1) for n in near], 0)

    along, length = steepest(spectrum, law, slope)
    directions = torch.cat([used, along[None]])
    curvature, linear, spent = [], [], 0
    for move in moves[:draws]:
        near = [Neighborhood(losses, tokens, mean + sign * move) for sign in (1.0, -1.0)]
        found = [n.differences(directions, np.append(steps, length)) for n in near]
        curvature.append(np.mean([f.second[:-1] for f in found], 0))
        linear.append(np.mean([f.first[-1] for f in found], 0))
        spent += sum(n.evaluations for n in near)
    weights = 0.5 * own * variance**2
    return Averaged(
        quadratic=np.stack([weights @ part for part in curvature]),
        linear=np.stack(linear),
        own=own,
        variance=float(slope.to(along) @ along) + float(weights @ own),
        evaluations=spent,
    )
