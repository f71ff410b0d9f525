"""One claim measured on every form of the susceptibility, and what is reported of it.

Every claim is tested on the published form, chi, and by the same statistic on each of its three
parts, so that a reader sees which of them makes it true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from .cubes import PARTS
from .estimators import Convention

NAMES = {
    "chi": "published form",
    "covariance": "covariance",
    "rank_one": "rank-one",
    "mean_shift": "mean shift",
}

# Below this, half of the chains does not reproduce what the other half gives.
RELIABLE = 0.5

SENSITIVITY_SCHEMA = {
    "claim": pl.String,
    "convention": pl.String,
    "value": pl.Float64,
    "se": pl.Float64,
    "holds": pl.String,
}


@dataclass(frozen=True)
class Finding:
    """A claim's statistic on one form.

    Attributes:
        holds: the verdict, with the error taken into account; None is undecided.
        met: whether the values alone meet the conditions; None where nothing was tested.
    """

    value: float | None
    se: float | None
    n: int
    holds: bool | None
    met: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Variant:
    """A variant of eq. (41): which form, times which factor."""

    name: str
    form: str
    factor: float


def conventions(n_beta: float) -> list[Variant]:
    """The published convention and the variants that the papers print or that peers use."""
    named = {
        "second_factor=full, sign=minus, scale=none (published)": Convention(),
        "second_factor=same_chain (the covariance alone)": Convention(second_factor="same_chain"),
        "sign=plus": Convention(sign="plus"),
        "scale=n_beta": Convention(scale="n_beta"),
    }
    return [
        *(Variant(name, c.form, c.factor(n_beta)) for name, c in named.items()),
        Variant("rank-one part alone", "rank_one", 1.0),
        Variant("mean-shift part alone", "mean_shift", 1.0),
    ]


def carried_by(findings: Mapping[str, Finding]) -> str:
    """Names of the parts on which the claim holds by itself.

    Where no form was put to a test (a plain number), the part with the largest value.
    """
    parts = {part: findings[part] for part in PARTS if part in findings}
    if not parts:
        return ""
    if any(f.holds is not None or f.met is not None for f in findings.values()):
        names = [NAMES[part] for part, found in parts.items() if found.holds]
        return ", ".join(names) if names else "no part alone"
    sizes = {part: abs(f.value) for part, f in parts.items() if f.value is not None}
    return f"{NAMES[max(sizes, key=sizes.__getitem__)]} (largest part)" if sizes else ""


def entry(
    findings: Mapping[str, Finding],
    statistic: str,
    bound: str,
    notes: Sequence[str] = (),
    kind: str = "pattern",
    carried: str | None = None,
) -> dict[str, Any]:
    """The claim's entry of measured.json, from its findings by form ("chi" must be there).

    Args:
        carried: which parts carry the claim; by default, `carried_by` of the findings.
    """
    chi = findings["chi"]
    spelled = [
        f"{NAMES[form]} {_number(finding)}"
        for form, finding in findings.items()
        if form != "chi" and finding.value is not None
    ]
    parts = [f"Parts: {'; '.join(spelled)}."] if spelled else []
    result: dict[str, Any] = {
        "value": _finite(chi.value),
        "se": _finite(chi.se),
        "n": chi.n,
        "note": " ".join(text for text in (chi.note, *notes, *parts) if text),
        "statistic": statistic,
        "bound": bound,
        "carried_by": carried_by(findings) if carried is None else carried,
    }
    if kind != "number":
        result["holds"] = chi.holds
    return result


def guards(control: bool | None, reliability: float | None) -> list[str]:
    """Warnings that belong to a verdict.

    Args:
        control: whether the n_beta = 0 control, which knows no loss, meets the claim too.
        reliability: of the published form, between halves of the chains.
    """
    found = []
    if control:
        found.append(
            "Caution: the n_beta = 0 control, sampled without any loss, meets the same conditions."
        )
    if reliability is not None and not reliability >= RELIABLE:
        found.append(
            f"Caution: reliability of chi between halves of the chains is {reliability:.2f}, "
            f"below {RELIABLE}."
        )
    return found


def sensitivity_rows(claim: str, found: Mapping[str, Finding]) -> list[dict[str, Any]]:
    """Rows of sensitivity.parquet from findings by name of convention.

    ``holds`` is "holds", "fails", "undecided", or empty where nothing was put to a test.
    """
    return [
        {
            "claim": claim,
            "convention": name,
            "value": _finite(f.value),
            "se": _finite(f.se),
            "holds": _verdict(f),
        }
        for name, f in found.items()
    ]


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _verdict(finding: Finding) -> str:
    if finding.holds is None and finding.met is None:
        return ""
    return {True: "holds", False: "fails", None: "undecided"}[finding.holds]


def _number(finding: Finding) -> str:
    if finding.value is None:
        return "untested"
    error = "" if finding.se is None else f" ± {finding.se:.1g}"
    word = _verdict(finding)
    return f"{finding.value:.2g}{error}" + (f" ({word})" if word else "")
