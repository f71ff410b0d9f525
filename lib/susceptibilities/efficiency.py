"""What a standard error costs: work of the chains, precision per unit of it, the best thinning.

A draw is evaluated every ``thinning`` steps. Neighbouring draws are correlated, so evaluating all
of them buys little; taking more steps between them costs gradients. For an observable whose
correlation over k steps is exp(-k / relaxation), the mean of n draws has, for large n, the
variance var / n * coth(k / (2 relaxation)), at the price n (k step + draw): the best k minimises
the product, and solves sinh(x) - x = draw / (step * relaxation) with x = k / relaxation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.optimize import root_scalar

from .evaluation import Evaluation
from .jackknife import jackknife_se
from .moments import Array
from .posterior import SamplerConfig

# Correlations nearer to one cannot be told from it in chains of any length that is run here.
_NEARLY_ONE = 1 - 1e-9


def mean_variance(rho: float, draws: int) -> float:
    """Variance of the mean of ``draws`` values, in units of their own, of correlation rho^lag."""
    lags = np.arange(1, draws)
    return float((1 + 2 * ((1 - lags / draws) * rho**lags).sum()) / draws)


def draw_correlation(
    values: Float[Array, "component chain draw entry"],
    healthy: Bool[NDArray[np.bool_], "component chain"],
) -> tuple[float, float]:
    """Correlation of neighbouring draws, and its standard error (jackknife over chain numbers).

    Products over entries are added up, so that an entry counts as much as it varies; components
    count alike. Deviations are from the mean of all chains of a component, which takes away some
    of the correlation of short chains: this is put right for a correlation that falls
    geometrically with the lag. NaN for fewer than two draws, or where nothing varies.
    """
    chains, draws = values.shape[1:3]
    if draws < 2:
        return float("nan"), float("nan")

    def estimate(kept: NDArray[np.bool_]) -> float:
        ratios = []
        for mine, chosen in zip(values, kept, strict=True):
            centred = mine[chosen] - mine[chosen].mean((0, 1))
            variance = np.square(centred).mean((0, 1)).sum()
            if variance > 0:
                ratios.append((centred[:, 1:] * centred[:, :-1]).mean((0, 1)).sum() / variance)
        if not ratios:
            return float("nan")
        return _without_bias(float(np.mean(ratios)), int(kept.sum(1).min()), draws)

    def without(chain: int) -> NDArray[np.bool_]:
        kept = healthy.copy()
        kept[:, chain] = False
        return kept

    if healthy.sum(1).min() < 3:
        return estimate(healthy), float("nan")
    left_out = np.array([estimate(without(chain)) for chain in range(chains)])
    return estimate(healthy), float(jackknife_se(left_out))


def _without_bias(found: float, chains: int, draws: int) -> float:
    """The correlation whose estimate about the common mean is expected to be ``found``."""

    def expected(rho: float) -> float:
        lost = mean_variance(rho, draws) / chains
        return (rho - lost) / (1 - lost)

    low, high = -0.99, _NEARLY_ONE
    if not expected(low) < found < expected(high):
        return float(np.clip(found, low, high))
    return float(root_scalar(lambda rho: expected(rho) - found, bracket=(low, high)).root)


def relaxation(rho: float, thinning: int) -> float:
    """Steps in which a correlation falls to 1/e, if it is ``rho`` over ``thinning`` steps.

    0 where no correlation is left.
    """
    return 0.0 if not rho > 0 else -thinning / float(np.log(min(rho, _NEARLY_ONE)))


def integrated_time(steps: float, thinning: int) -> float:
    """Draws that are worth one independent draw: coth(thinning / (2 relaxation))."""
    return 1.0 if steps == 0 else float(1 / np.tanh(thinning / (2 * steps)))


def price(steps: float, thinning: int, step_cost: float, draw_cost: float) -> float:
    """Variance times cost of a long chain, in units of the observable's variance.

    Args:
        steps: relaxation time, in steps.
        step_cost: of a step; ``draw_cost``: of keeping and evaluating a draw.
    """
    return integrated_time(steps, thinning) * (thinning * step_cost + draw_cost)


def best_thinning(steps: float, step_cost: float, draw_cost: float) -> int:
    """The number of steps between draws at which `price` is least."""
    if steps == 0 or draw_cost <= 0:
        return 1
    ratio = draw_cost / (step_cost * steps)
    # sinh(x) - x grows faster than x^3 / 6, and than exp(x) / 4 from x = 2.4 on.
    high = min(np.cbrt(6 * ratio), max(2.4, np.log(4 * ratio + 1e-300)))
    ends = (0.0, 1.001 * high + 1e-12)
    x = root_scalar(lambda x: np.sinh(x) - x - ratio, bracket=ends).root
    below = max(1, int(x * steps))
    return min((below, below + 1), key=lambda k: price(steps, k, step_cost, draw_cost))


@dataclass(frozen=True)
class Costs:
    """What the chains of one component cost.

    Attributes:
        chains: number of them; the other counts are those of one chain.
        gradients: gradients of minibatches, see `SamplerConfig.gradients`.
        draws: draws evaluated.
        control: further evaluations for the control variate.
        batch_tokens: predicted tokens of a minibatch; ``tokens``: of an evaluation.
        seconds: measured work of all chains on ``sampling``, ``draws``, ``control``: processor
            time, or time on the clock on a GPU. None where it was not measured.
    """

    chains: int
    gradients: int
    draws: int
    control: int
    batch_tokens: int
    tokens: int
    seconds: Mapping[str, float] | None

    @classmethod
    def of(
        cls,
        sampler: SamplerConfig,
        evaluation: Evaluation,
        batch_tokens: int,
        tokens: int,
        seconds: Mapping[str, float] | None,
    ) -> Costs:
        """Costs of chains with these settings; ``sampler`` is the component's own."""
        return cls(
            chains=sampler.chains,
            gradients=sampler.gradients,
            draws=sampler.draws,
            control=evaluation.count(sampler.draws)["control"],
            batch_tokens=batch_tokens,
            tokens=tokens,
            seconds=seconds,
        )

    def work(self, control: bool) -> float:
        """Seconds of all chains; without a measurement, token evaluations.

        A gradient is then counted as three evaluations of its tokens: one forwards, two back.
        """
        if self.seconds is None:
            evaluations = self.draws + (self.control if control else 0)
            each = 3 * self.gradients * self.batch_tokens + evaluations * self.tokens
            return float(self.chains * each)
        parts = ("sampling", "draws", *(("control",) if control else ()))
        return float(sum(self.seconds[part] for part in parts))

    @property
    def gradient(self) -> float:
        """Work of one gradient of one chain."""
        if self.seconds is None:
            return 3.0 * self.batch_tokens
        return self.seconds["sampling"] / (self.chains * self.gradients)

    @property
    def draw(self) -> float:
        """Work of one draw of one chain: its evaluation."""
        if self.seconds is None:
            return float(self.tokens)
        return self.seconds["draws"] / (self.chains * self.draws)


def thinning_row(rho: float, se: float, thinning: int, costs: Sequence[Costs]) -> dict[str, Any]:
    """What thinning is best for chains of these costs, and what the present one loses.

    Args:
        rho: correlation of draws ``thinning`` steps apart; ``se``: its error.
        costs: of the components of a group; their work is added up.

    Returns:
        ``relaxation`` in steps, with the ends of its interval of one standard error; ``draw_cost``
        in gradients; ``best``, with its own ends; precision per unit of work of every step
        evaluated (``every``) and of the present thinning (``used``), relative to the best.
    """
    step = sum(c.gradient for c in costs)
    draw = sum(c.draw for c in costs)

    def found(correlation: float) -> tuple[float, int]:
        steps = relaxation(correlation, thinning)
        return steps, best_thinning(steps, step, draw)

    margin = se if np.isfinite(se) else 0.0
    (steps, best), low, high = (found(r) for r in (rho, rho - margin, rho + margin))
    least = price(steps, best, step, draw)
    return {
        "correlation": rho,
        "correlation_se": se,
        "relaxation": steps,
        "relaxation_low": low[0],
        "relaxation_high": high[0],
        "draw_cost": draw / step,
        "thinning": thinning,
        "best": best,
        "best_low": low[1],
        "best_high": high[1],
        "every": least / price(steps, 1, step, draw),
        "used": least / price(steps, thinning, step, draw),
    }


def typical(se: Float[Array, " entry"]) -> float:
    """Root mean square of the standard errors of all entries."""
    return float(np.sqrt(np.mean(np.square(se))))


def efficiency(se: float, work: float, plain_se: float, plain_work: float) -> float:
    """1 / (se^2 work) over the plain estimator's: how many times less work for the same error."""
    return plain_se**2 * plain_work / (se**2 * work)
