"""From a measured value to a verdict. Pure functions: no files.

The words:

- ``holds`` / ``fails`` / ``undecided``: an exact statement or a pattern. ``undecided``: the
  uncertainty spans both.
- ``match`` / ``differs`` / ``undecided`` / ``known mismatch``: a number, and only where model
  and data are the paper's.
- ``not comparable``: a number from another model or other text; shown all the same.
- ``too small``: a pattern or number at scale smoke, whose sizes prove the wiring and decide
  nothing.
- ``not run``: no rule of this run regenerates it, or its text or model lacks what it needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .claims import Bound, Claim, Declared, Measured, Relation, leaves

Verdict = Literal[
    "holds",
    "match",
    "fails",
    "differs",
    "undecided",
    "known mismatch",
    "not comparable",
    "too small",
    "not run",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FAILING: tuple[Verdict, ...] = ("fails", "differs")

STANDARD_ERRORS = 3.0
DEFAULT_BOUND = {"~": 0.25}  # share of the published value; others: OTHER_BOUND
OTHER_BOUND = 0.10


@dataclass(frozen=True)
class Judgement:
    """A verdict and the sentence that says why."""

    verdict: Verdict
    reason: str


def bound_of(published: float, relation: Relation, declared: Bound | None) -> float:
    """The largest difference that still counts as the same number, in the value's unit."""
    if declared is not None and declared.absolute is not None:
        return declared.absolute
    share = declared.relative if declared is not None else None
    if share is None:
        share = DEFAULT_BOUND.get(relation, OTHER_BOUND)
    return share * abs(published)


def rounding_se(printed: str) -> float:
    """Standard error of a printed value from its last digit: half a unit over sqrt(3)."""
    mantissa, _, exponent = printed.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 0.5 * 10.0 ** (int(exponent or 0) - decimals) / math.sqrt(3)


def compare_number(
    value: float, se: float | None, printed: str, relation: Relation, bound: float
) -> Judgement:
    """Verdict on one regenerated number beside a published one.

    ``==`` and ``~``: a match needs |difference| <= 3 combined standard errors (the
    regenerated one and the published value's rounding) and |difference| <= bound, and an
    estimate sharp enough to have shown a difference of that size (3 se <= bound), so that
    noise cannot pass. A difference beyond 3 combined standard errors differs. Anything
    between is undecided.

    ``<``, ``<=``, ``>``: the estimate must lie on the claimed side by 3 standard errors; on
    the other side by 3 it differs; between, it is undecided. The bound plays no part.
    """
    published = float(printed)
    if se is None:
        return Judgement("undecided", "the regenerated value has no standard error")
    if relation in ("<", "<=", ">"):
        return _compare_side(value, se, published, relation)
    difference = abs(value - published)
    combined = math.hypot(se, rounding_se(printed))
    if difference > STANDARD_ERRORS * combined:
        return Judgement(
            "differs", f"differs by {difference:.2g}, {difference / combined:.1f} standard errors"
        )
    if STANDARD_ERRORS * se > bound:
        return Judgement(
            "undecided", f"too noisy to match: 3 se = {3 * se:.2g} exceeds the bound {bound:.2g}"
        )
    if difference > bound:
        return Judgement(
            "undecided", f"differs by {difference:.2g}, over the bound {bound:.2g}, within 3 se"
        )
    return Judgement(
        "match", f"differs by {difference:.2g}, within 3 se and within the bound {bound:.2g}"
    )


def _compare_side(value: float, se: float, published: float, relation: Relation) -> Judgement:
    margin = value - published if relation == ">" else published - value
    side = f"{'above' if value > published else 'below'} {published:g} by {abs(margin):.2g}"
    if abs(margin) < STANDARD_ERRORS * se:
        return Judgement("undecided", f"{side}, less than 3 se")
    if margin > 0 or (margin == 0 and relation == "<="):
        return Judgement("match", f"{side}, the side that the paper reports")
    return Judgement("differs", f"{side}; the paper reports {relation} {published:g}")


def judge(
    claim: Claim,
    measured: Measured | None,
    declared: Declared | None,
    *,
    not_comparable: str,
    decides: bool,
    not_run: str,
) -> Judgement:
    """Verdict on one claim.

    Args:
        not_comparable: why this run's numbers are not to be held against the paper's (another
            model, other text); empty where model and data are the paper's.
        decides: the run's sizes allow a verdict (false at scale smoke).
        not_run: why there may be no measured value.

    Raises:
        ValueError: published and regenerated values have different shapes, or a published
            value is zero and no absolute bound is declared.
    """
    if measured is None:
        return Judgement("not run", not_run)
    if measured.n == 0:
        return Judgement("not run", measured.note)
    if claim.kind == "exact" or (claim.kind == "pattern" and decides):
        stated = f"{measured.statistic}; bound: {measured.bound}"
        if measured.holds is None:
            return Judgement("undecided", stated)
        return Judgement("holds" if measured.holds else "fails", stated)
    if not decides:
        return Judgement("too small", "this scale proves the wiring; its sizes decide nothing")
    if not_comparable:
        return Judgement("not comparable", not_comparable)
    judgement = _judge_values(claim, measured, declared.bound if declared else None)
    if judgement.verdict == "differs" and declared is not None and declared.known_mismatch:
        return Judgement("known mismatch", f"{declared.known_mismatch} ({judgement.reason})")
    return judgement


def _judge_values(claim: Claim, measured: Measured, bound: Bound | None) -> Judgement:
    """Verdict on a number or a list of them: the worst of its parts."""
    if claim.value is None:
        return Judgement("not comparable", "the published value is not given as a number")
    if shape(claim.value) != shape(measured.value):
        raise ValueError(
            f"{claim.id}: the published value has shape {shape(claim.value)}, the regenerated "
            f"one {shape(measured.value)}"
        )
    printed = leaves(claim.value)
    values = leaves(measured.value)
    errors = [None] * len(values) if measured.se is None else leaves(measured.se)
    if len(errors) != len(values):
        raise ValueError(f"{claim.id}: {len(values)} values, but {len(errors)} standard errors")
    judgements = []
    for text, value, se in zip(printed, values, errors, strict=True):
        allowed = bound_of(float(text), claim.relation, bound)
        if allowed == 0 and claim.relation in ("==", "~"):
            raise ValueError(
                f"{claim.id}: the published value is 0, so a share of it is no bound: declare "
                "`bound: {absolute: ...}` in the section's claims.yaml"
            )
        judgements.append(compare_number(value, se, text, claim.relation, allowed))
    order: tuple[Verdict, ...] = ("differs", "undecided", "match")
    worst = min(judgements, key=lambda judgement: order.index(judgement.verdict))
    if len(judgements) == 1:
        return worst
    place = judgements.index(worst) + 1
    if worst.verdict == "match":
        return Judgement("match", f"all {len(judgements)} values within 3 se and within the bound")
    return Judgement(worst.verdict, f"value {place} of {len(judgements)}: {worst.reason}")


def shape(value: object) -> tuple[object, ...]:
    """Nested lengths of a list; () for a scalar."""
    return tuple(shape(item) for item in value) if isinstance(value, list) else ()
