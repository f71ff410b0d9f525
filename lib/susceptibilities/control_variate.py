"""The linear control variate of means over chains: what it is, whether it helps, how it is used.

Along the stationary law of SGLD the mean drift is zero: n_beta E[grad L] + localization E[w - w*]
= 0, whatever the loss. So the direction

    a_c = mean over draws of (w - w*) + (n_beta / localization) * mean gradient of chain c

has expectation zero, and so has the change of any loss that is linear in the weights from w* to
w* + a_c. Of any other loss the odd part of that change is taken, (loss(w* + a_c) - loss(w* - a_c))
/ 2: beside the noise linear in the weights it holds odd higher orders, whose expectation is zero
as far as the law of a_c, which is made of the injected noise, is symmetric. It is subtracted from
the mean of that loss over chain c, times a coefficient: one where losses are linear, less where
they bend, one number for all tokens, fitted on the other chains, so that the expectation stays
zero. A chain that has not reached its stationary law has another expectation, so the variate is
checked, component by component, before it is used.

A covariance within a chain does not change when a mean is moved, and keeps its noise; `directions`
says why it has no variate of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import stats

from .control_sums import ProductSums, VarianceSums, student_t
from .jackknife import jackknife_se
from .moments import Array, Moments, merge_all

# How means over chains are estimated: as they are, with the control variate, or with it for the
# components for which the check says that it helps.
Estimator = Literal["plain", "control_variate", "checked"]
PLAIN: Literal["plain"] = "plain"
CONTROLLED: Literal["control_variate"] = "control_variate"
CHECKED: Literal["checked"] = "checked"

# Probability with which the check turns down at least one component of an unbiased run.
LEVEL = 0.01


@dataclass(frozen=True)
class Check:
    """Whether a control variate helps, by component; all arrays are (component,).

    Attributes:
        chains: healthy chains.
        plain, corrected: sum over entries of the variance of the mean over chains, without and
            with the control variate.
        ratio: ``plain / corrected``; ``ratio_factor``: one standard error of it, as a factor
            (jackknife over chains of its logarithm; NaN below three chains).
        coefficient: mean over chains of what the variate is multiplied by.
        t: of the hypothesis that the variate of the observable has mean zero, chains - 1 degrees
            of freedom; ``bound``: what |t| must not exceed.
        rms_t: root mean square over entries of the same t; ``rms_expected``: that of unbiased
            Gaussian variates, infinite below four chains. Entries are correlated, so it is shown
            and decides nothing.
    """

    chains: NDArray[np.int64]
    plain: Array
    corrected: Array
    ratio: Array
    ratio_factor: Array
    coefficient: Array
    t: Array
    bound: Array
    rms_t: Array
    rms_expected: Array

    @property
    def helps(self) -> NDArray[np.bool_]:
        """The corrected variance is smaller, and no bias is seen, in it or in all together."""
        sound = np.abs(self.t) < self.bound
        together = not sound.any() or combined_p(self.t[sound], self.chains[sound]) >= LEVEL
        return (self.corrected < self.plain) & sound & together

    def chosen(self, estimator: Estimator) -> NDArray[np.bool_]:
        """Components for which the control variate is used."""
        if estimator == CHECKED:
            return self.helps
        return np.full(len(self.t), estimator == CONTROLLED)

    @property
    def combined_p(self) -> float:
        """See `combined_p`, of all components."""
        return combined_p(self.t, self.chains)

    def row(self, place: int) -> dict[str, Any]:
        """One component's numbers, for a table."""
        names = [name for name in ESTIMATOR_SCHEMA if hasattr(self, name) and name != "helps"]
        return {
            **{n: getattr(self, n)[place].item() for n in names},
            "helps": bool(self.helps[place]),
        }


def combined_p(t: Array, chains: NDArray[np.int64]) -> float:
    """Probability of values of t as large as these without any bias (Fisher's method).

    A bias that all components share shows here before it shows in one of them.

    Args:
        t, chains: of independent components, (component,).
    """
    p = 2 * stats.t.sf(np.abs(t), chains - 1)
    return float(stats.chi2.sf(-2 * np.log(np.maximum(p, 1e-300)).sum(), 2 * len(p)))


def coefficients(
    values: Float[Array, "component chain entry"],
    control: Float[Array, "component chain entry"],
    healthy: Bool[NDArray[np.bool_], "component chain"],
) -> Float[Array, "component chain"]:
    """What the variate of each chain is multiplied by, see `ProductSums.coefficients`."""
    return ProductSums.of(values, control, healthy).coefficients()


def check(
    values: Float[Array, "component chain entry"],
    control: Float[Array, "component chain entry"],
    observable: Float[Array, "component chain"],
    healthy: Bool[NDArray[np.bool_], "component chain"],
    coefficient: Float[Array, "component chain"] | None = None,
) -> Check:
    """Compare the means over chains with and without their control variate.

    Args:
        values: an estimate of every entry (a token, a context) from every chain.
        control: what the control variate takes off it.
        observable: what it takes off the observable, the loss on the base contexts.
        healthy: chains that count.
        coefficient: what it is multiplied by; one by default. The t are those of the variate as
            it is.

    Raises:
        ValueError: a component with fewer than two healthy chains.
    """
    times = np.ones(healthy.shape) if coefficient is None else coefficient
    return check_sums(VarianceSums.of(values, control, healthy, times), observable)


def check_sums(sums: VarianceSums, observable: Float[Array, "component chain"]) -> Check:
    """`check`, from sums over all entries."""
    chains = sums.healthy.sum(1)
    rows: list[tuple[float, ...]] = []
    for place, mine in enumerate(sums.healthy):
        df = int(chains[place]) - 1
        rows.append(
            (
                _ratio_factor(sums.plain_without[place][mine], sums.corrected_without[place][mine]),
                sums.coefficient[place][mine].mean(),
                float(student_t(observable[place][mine])),
                float(stats.t.isf(LEVEL / 2 / len(chains), df)),
                float(np.sqrt(sums.square_t[place] / sums.entries)),
                float(np.sqrt(df / (df - 2))) if df > 2 else np.inf,
            )
        )
    factor, mean, t, bound, rms_t, rms_expected = np.array(rows).T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sums.plain / sums.corrected
    return Check(
        chains, sums.plain, sums.corrected, ratio, factor, mean, t, bound, rms_t, rms_expected
    )


def _ratio_factor(before: Array, after: Array) -> float:
    """exp of the jackknife error of the logarithm of the variance ratio; (left-out chain,) each."""
    if len(before) < 3:
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(before / after)
    if not np.isfinite(logs).all():
        return float("nan")
    return float(np.exp(jackknife_se(logs)))


@dataclass(frozen=True)
class Choice:
    """How the control variate is used, decided once over all entries.

    Attributes:
        coefficient: what it is multiplied by, (component, chain).
        used: for which components, (component,).
        check: what was found of it; None where the chains have none.
    """

    coefficient: Array
    used: NDArray[np.bool_]
    check: Check | None

    @classmethod
    def none(cls, components: int, chains: int) -> Choice:
        """No control variate."""
        return cls(np.zeros((components, chains)), np.zeros(components, dtype=bool), None)

    @classmethod
    def of(cls, sums: VarianceSums, observable: Array, estimator: Estimator) -> Choice:
        """As the estimator says; arguments as for `check_sums`."""
        found = check_sums(sums, observable)
        return cls(sums.coefficient, found.chosen(estimator), found)


@dataclass(frozen=True)
class Offset:
    """What the control variate takes off the means of each chain.

    Attributes:
        x: (...); y: (..., K), as in `Moments`.
    """

    x: Array
    y: Array

    def times(self, factor: Array) -> Offset:
        """Multiplied by ``factor``, which has the shape of x; zero where that is zero."""
        used = factor != 0
        return Offset(
            np.where(used, factor * self.x, 0.0),
            np.where(used[..., None], factor[..., None] * self.y, 0.0),
        )

    def off(self, moments: Moments) -> Moments:
        """The moments with corrected means; those about the mean do not change."""
        return Moments(
            moments.count, moments.mean_x - self.x, moments.mean_y - self.y, moments.comoment
        )


def pool(plain: Sequence[Moments], corrected: Sequence[Moments] | None = None) -> Moments:
    """Moments of all chains together, from those of every chain.

    Args:
        plain: of every chain, an empty one (count 0) where it is left out.
        corrected: the same with means corrected by the control variate (`Offset.off`), or None.

    The covariance is that about the plain means: about the corrected ones it would lose what the
    chains' means tell of it, and lose more the fewer draws a chain has. E[xy] = Cov + E[x] E[y]
    has no bias if the means are plain, too. With corrected means it has that of a pooled
    covariance, which is too small by itself over the number of independent draws in all chains.
    (To add that back, the scatter that the correction took away over chains - 1, would be exact
    and would raise the covariance's error by a third at four chains.)
    """
    whole = merge_all(plain)
    if corrected is None:
        return whole
    means = merge_all(corrected)
    return Moments(whole.count, means.mean_x, means.mean_y, whole.comoment)


def names_of(used: NDArray[np.bool_]) -> tuple[str, ...]:
    """The estimator of every component, by name."""
    return tuple(CONTROLLED if u else PLAIN for u in used)


ESTIMATOR_SCHEMA = {
    "component": pl.String,
    "estimator": pl.String,
    "chains": pl.Int64,
    "ratio": pl.Float64,
    "ratio_factor": pl.Float64,
    "coefficient": pl.Float64,
    "t": pl.Float64,
    "bound": pl.Float64,
    "rms_t": pl.Float64,
    "rms_expected": pl.Float64,
    "helps": pl.Boolean,
}


def estimator_table(
    components: Sequence[str], used: Sequence[str], found: Check | None
) -> pl.DataFrame:
    """One row a component: the estimator used, and what the check found (null without one)."""
    rows = [
        {
            "component": name,
            "estimator": used[place],
            **({} if found is None else found.row(place)),
        }
        for place, name in enumerate(components)
    ]
    return pl.DataFrame(rows, schema=ESTIMATOR_SCHEMA)
