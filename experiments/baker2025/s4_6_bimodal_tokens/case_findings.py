"""A case of the paper measured on one form of the susceptibility, and its verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from mode_statistics import (
    DISTANCE,
    KAPPA,
    LEVEL,
    Sample,
    auc_with_error,
    kappa_with_error,
    modes_with_errors,
)
from paper_cases import Found

from susceptibilities.bimodality import DipTest, halves, power
from susceptibilities.findings import Finding
from susceptibilities.jackknife import Condition, Estimate, all_hold, met
from susceptibilities.mixture import two_modes

# Chance that an occurrence of the kind in the upper mode has the larger value: 0.5 if the modes
# have nothing to do with the kinds.
AUC = 0.8
QUANTITIES = {
    "auc": "AUC of the kinds of context",
    "distance": "Ashman's D of the modes",
    "lower": "center of the lower mode",
    "upper": "center of the upper mode",
    "kappa": "kappa of the two halves of the chains",
}
CONDITIONS = (
    Condition(QUANTITIES["auc"], ">", AUC),
    Condition(QUANTITIES["distance"], ">", DISTANCE),
    Condition(QUANTITIES["lower"], "<", 0.0),
    Condition(QUANTITIES["upper"], ">", 0.0),
    Condition(QUANTITIES["kappa"], ">", KAPPA),
)
BOUND = (
    f"dip test p <= {LEVEL} (Holm over the paper's cases that this run has); "
    + "; ".join(str(c) for c in CONDITIONS)
    + "; each by its 95 % interval"
)
# With fewer occurrences of a kind the AUC is not given.
MIN_KIND = 5
# A dip test that does not reject speaks against two modes only if it would have found modes that
# are this far apart, the smaller with this share, in four of five samples.
CLEAR, MINOR, POWER = 4.0, 0.3, 0.8


@dataclass(frozen=True)
class Measurement:
    """Everything measured of one case on one form.

    Attributes:
        estimates: by the short names of `QUANTITIES`; without "auc" where a kind is too rare.
    """

    test: DipTest
    estimates: dict[str, Estimate]
    mean: float
    deviation: float


def measured(found: Found, sample: Sample, form: str) -> Measurement | None:
    """Measure a case; None where nothing could be, or where the values do not vary."""
    if not found.enough or not sample.varies(form):
        return None
    values = sample.values[form]
    test = sample.test(form)
    modes = two_modes(values, size=max(test.effective, 2.0))
    estimates = modes_with_errors(sample, form, modes)
    split = halves(values, sample.replicates[form], modes)
    estimates["kappa"] = kappa_with_error(sample, split)
    high, low = found.is_kind(found.case.high), found.is_kind(found.case.low)
    if found.case.of and min(high.sum(), low.sum()) >= MIN_KIND:
        both = high | low
        pair = Sample(
            sample.indices[both],
            sample.contexts[both],
            sample.blocks[both],
            {form: values[both]},
            {form: sample.replicates[form][:, both]},
        )
        estimates["auc"] = auc_with_error(pair, form, high[both])
    return Measurement(test, estimates, float(values.mean()), float(values.std(ddof=1)))


@cache
def _power(size: int) -> float:
    return power(size, CLEAR, MINOR, LEVEL)


def verdict_of_p(p: float, effective: float) -> bool | None:
    """True when the dip test rejects; False when it does not and would have; else None."""
    if p <= LEVEL:
        return True
    return False if _power(int(effective)) >= POWER else None


def verdict(condition: Condition, estimate: Estimate | None) -> bool | None:
    """`Condition.verdict`, undecided where there is no estimate or no error."""
    if estimate is None or not math.isfinite(estimate.se + estimate.value):
        return None
    return condition.verdict(estimate)


def finding(found: Found, measurement: Measurement | None, p: float | None) -> Finding:
    """The claim that a case is bimodal as the paper says, on one form.

    Args:
        p: of the dip test, corrected for the number of cases.
    """
    if measurement is None or p is None:
        return Finding(None, None, 0, None)
    by_name = {QUANTITIES[k]: e for k, e in measurement.estimates.items()}
    verdicts = [
        verdict_of_p(p, measurement.test.effective),
        *(verdict(c, by_name.get(c.quantity)) for c in CONDITIONS),
    ]
    values = {name: e.value for name, e in by_name.items()}
    known = len(values) == len(CONDITIONS) and all(map(math.isfinite, values.values()))
    spelled = "; ".join(f"{name} {e.value:.3g} ± {e.se:.2g}" for name, e in by_name.items())
    headline = measurement.estimates.get("auc")
    return Finding(
        headline.value if headline else None,
        headline.se if headline else None,
        measurement.test.count,
        all_hold(verdicts),
        p <= LEVEL and known and met(values, CONDITIONS),
        f"Dip test p = {p:.2g} (before Holm {measurement.test.p:.2g}), {measurement.test.count} "
        f"occurrences in {measurement.test.contexts} contexts, worth "
        f"{measurement.test.effective:.0f} independent ones. {spelled[:1].upper()}{spelled[1:]}.",
    )


def row(measurement: Measurement) -> dict[str, Any]:
    """The numbers of cases.parquet."""
    test = measurement.test
    result: dict[str, Any] = {
        "count": test.count,
        "contexts": test.contexts,
        "effective": test.effective,
        "dip": test.dip,
        "p": test.p,
        "mean": measurement.mean,
        "deviation": measurement.deviation,
    }
    for name in QUANTITIES:
        estimate = measurement.estimates.get(name)
        result[name] = None if estimate is None else estimate.value
        result[f"{name}_se"] = None if estimate is None else estimate.se
    return result


def kinds_sentence(found: Found) -> str:
    """How many occurrences are of which kind."""
    names, counts = np.unique(found.kinds, return_counts=True)
    return ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))


def where(found: Found) -> str:
    """The domain in words."""
    return f"{found.probe} (for {found.case.subset})" if found.place == "stand-in" else found.probe
