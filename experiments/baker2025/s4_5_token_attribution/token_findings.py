"""The numbers of section 4.5 and appendix D.9, each as a function from a run to its findings.

Numbers here, patterns in `token_patterns`. All have errors over chains and over contexts; totals
are for as many tokens as the paper's samples have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from slope_fits import Points, Resampled, fit, interval_of, noise_shares, points
from token_totals import (
    PUBLISHED_TOKENS,
    TOTALS,
    Sample,
    noise_total,
    sample,
    space_with_errors,
    sums_by_token,
    totals_with_errors,
)

from susceptibilities.cubes import CONTROL_PROBE, Array
from susceptibilities.findings import Finding
from susceptibilities.jackknife import Estimate
from susceptibilities.per_token import PerToken
from susceptibilities.report.numbers import format_number
from susceptibilities.subsets import Place, absent, place_of
from susceptibilities.token_errors import measure

HEADS = ("0:0", "0:1")
CODE, CC = "github-all", "pile-cc"


@dataclass(frozen=True)
class Side:
    """The sampled run, or its n_beta = 0 control.

    Attributes:
        dataset: susceptibilities of section 4.1, maybe not at this checkpoint.
        resampled: theirs at this checkpoint, with parts of the data left out, where kept.
    """

    data: PerToken
    dataset: pl.DataFrame
    resampled: Resampled | None


@dataclass(frozen=True, eq=False)
class Run:
    """What the claims are about: ``sides[False]``, and the control ``sides[True]`` if there is one.

    Attributes:
        reliability: head -> reliability of chi between halves of the chains.
    """

    sides: Mapping[bool, Side]
    domains: Mapping[str, Any]
    roles: Mapping[str, str]
    reliability: Mapping[str, float]
    delta_h: float

    def place(self, subset: str) -> Place | None:
        """The domain in a subset's place; for cc, else the training distribution itself."""
        found = place_of(subset, self.domains)
        if found is None and subset == CC and CONTROL_PROBE in self.sides[False].data.probes:
            return Place(CONTROL_PROBE, CC)
        return found

    def sample(
        self, subset: str, heads: Sequence[str], form: str, factor: float, control: bool
    ) -> Sample:
        """Tokens of the domain in a subset's place; `lacks` says whether there is one."""
        place = self.place(subset)
        assert place is not None
        return sample(self.sides[control].data, place.probe, tuple(heads), form, factor)

    def lacks(self, subset: str, heads: Sequence[str]) -> str:
        """Why nothing can be measured for a subset and heads; empty where it can."""
        if self.place(subset) is None:
            return absent(subset)
        missing = [h for h in heads if h not in self.sides[False].data.heads]
        return f"the model has no head {missing[0]}" if missing else ""

    def named(self, subset: str, heads: Sequence[str]) -> str:
        """What was measured in the place of the paper's domain and heads, in words."""
        place = self.place(subset)
        roles = " and ".join(f"{h} is a {self.roles.get(h, 'unknown')} head" for h in heads)
        where = (
            f"{place.probe}, a second sample of the training distribution, as there is no {CC}"
            if place is not None and place.probe == CONTROL_PROBE
            else str(place)
        )
        return (
            f"Measured on {where}. In this model {roles}; heads of one label need not correspond "
            "between models."
        )


# A claim: (run, form, factor, control) -> finding. Lists of numbers have one finding each.
Find = Callable[[Run, str, float, bool], list[Finding]]


def untested(reason: str) -> list[Finding]:
    return [Finding(None, None, 0, None, note=f"Not measured: {reason}.")]


def number(e: Estimate, n: int, note: str = "") -> Finding:
    return Finding(float(e.value), float(e.se), n, None, note=note)


def spelled(e: Estimate) -> str:
    return format_number(e.value, e.se if np.isfinite(e.se) else None)


# ---- Figure 9 ----------------------------------------------------------------------------------


@cache
def lines(run: Run, form: str, control: bool) -> tuple[Points, dict[str, Estimate]] | None:
    """The points of one form and their lines; None without dataset susceptibilities there."""
    side = run.sides[control]
    if side.dataset.is_empty() or side.data.step not in side.dataset["step"]:
        return None
    p = points(side.data, side.dataset, side.resampled, form)
    return p, fit(p)


def of_line(statistic: str) -> Find:
    """A statistic of the line through the points of every head and dataset."""

    def find(run: Run, form: str, factor: float, control: bool) -> list[Finding]:
        # Both axes take the convention's factor, which cancels.
        measured = lines(run, form, control)
        if measured is None:
            return untested("no dataset susceptibilities at that checkpoint")
        p, found = measured
        x_noise, y_noise = noise_shares(p)
        low, high = interval_of(statistic, found)
        note = (
            f"95 % interval {low:.3g} to {high:.3g}. Theory: slope {1 / run.delta_h:g}. Slopes: "
            f"least squares {spelled(found['least_squares'])}, with errors in both axes (Deming) "
            f"{spelled(found['deming'])}, of x on y {spelled(found['reverse'])}. Of the variance "
            f"over points, {x_noise:.0%} of the dataset susceptibilities' and {y_noise:.0%} of "
            "the means' is error."
        )
        return [number(found[statistic], int(p.fitted.sum()) * len(p.heads), note)]

    return find


# ---- Tables 1 and 4 ----------------------------------------------------------------------------


def of_totals(subset: str, wanted: Sequence[tuple[str, str]]) -> Find:
    """Totals of heads on a subset: ``wanted`` are (head, name in `TOTALS`)."""
    heads = tuple(dict.fromkeys(head for head, _ in wanted))

    def find(run: Run, form: str, factor: float, control: bool) -> list[Finding]:
        if reason := run.lacks(subset, heads):
            return untested(reason)
        s = run.sample(subset, heads, form, factor, control)
        value, se = totals_with_errors(s, run.delta_h)
        noise = ", ".join(
            f"{head} ±{format_number(round(float(v)))}"
            for head, v in zip(heads, noise_total(s.se), strict=True)
        )
        note = (
            f"{run.named(subset, heads)} Mean over {s.tokens} tokens times {PUBLISHED_TOKENS}. "
            f"Totals of values that are noise alone: {noise}."
        )
        return [
            number(Estimate(value[heads.index(h), i], se[heads.index(h), i], s.df), s.tokens, note)
            for h, name in wanted
            for i in [TOTALS.index(name)]
        ]

    return find


def of_space(head: str, spread: bool) -> Find:
    """Mean or standard deviation of the space token's values."""

    def find(run: Run, form: str, factor: float, control: bool) -> list[Finding]:
        if reason := run.lacks(CODE, [head]):
            return untested(reason)
        s = run.sample(CODE, [head], form, factor, control)
        space = s.is_space
        count = int(space.sum())
        if not count:
            return untested(f"no space token among {s.tokens} tokens of {run.place(CODE)}")
        value, se = space_with_errors(s)
        found = Estimate(value[0, int(spread)], se[0, int(spread)], s.df)
        note = (
            f"{run.named(CODE, [head])} {count} space tokens among {s.tokens}; root mean square "
            f"of the errors of their values {np.sqrt(np.mean(s.se[0, space] ** 2)):.2g}."
        )
        return [number(found, count, note)]

    return find


# ---- the space token ---------------------------------------------------------------------------


def negative_by_token(s: Sample) -> tuple[Callable[[Array, NDArray[np.bool_]], Array], list[int]]:
    """A statistic giving totals of negative values by distinct token, and the space's places."""
    distinct, codes = np.unique(s.ids, return_inverse=True)
    space = [i for i, token in enumerate(distinct) if s.is_space[s.ids == token].any()]

    def statistic(values: Array, keep: NDArray[np.bool_]) -> Array:
        return sums_by_token(np.minimum(values, 0.0), keep, codes)

    return statistic, space


def space_share(head: str) -> Find:
    """Share of a head's total negative susceptibility that the space token carries."""

    def find(run: Run, form: str, factor: float, control: bool) -> list[Finding]:
        if reason := run.lacks(CODE, [head]):
            return untested(reason)
        s = run.sample(CODE, [head], form, factor, control)
        negative, space = negative_by_token(s)

        def share(values: Array, keep: NDArray[np.bool_]) -> float:
            sums = negative(values, keep)[0]
            return float(sums[space].sum() / sums.sum()) if sums.sum() < 0 else 0.0

        blank = np.array([not text.strip() for text in s.texts])
        sums = np.minimum(s.values[0], 0.0)
        white = float(sums[blank].sum() / sums.sum()) if sums.sum() < 0 else 0.0
        note = (
            f"{run.named(CODE, [head])} The space token is {s.is_space.mean():.1%} of "
            f"{s.tokens} tokens. All tokens of white space alone together: {white:.1%} of the "
            f"negative total, {blank.mean():.1%} of the tokens."
        )
        return [number(measure(share, s.values, s.replicates, s.blocks), s.tokens, note)]

    return find


def space_counts(run: Run) -> dict[str, Any]:
    """How often the space token occurs; a count of tokens, no form of chi enters."""
    data = run.sides[False].data
    found: dict[str, Estimate] = {}
    missing = []
    for subset in (CODE, "freelaw", "hackernews"):
        place = place_of(subset, run.domains)
        if place is None:
            missing.append(subset)
            continue
        s = sample(data, place.probe, data.heads[:1])
        # The text does not depend on chains: every "replicate" is the same.
        ones = s.is_space[None].astype(np.float64)
        repeated = np.broadcast_to(ones, s.replicates.shape)

        def count(values: Array, keep: NDArray[np.bool_]) -> float:
            return float(PUBLISHED_TOKENS * values[0, keep].mean())

        found[str(place)] = measure(count, ones, repeated, s.blocks)
    words = "; ".join(f"{name} {spelled(e)}" for name, e in found.items())
    result: dict[str, Any] = {
        "value": [e.value for e in found.values()],
        "se": [e.se for e in found.values()],
        "n": sum(int(data.where(name.split(" ")[0]).sum()) for name in found),
        "note": f"Space tokens in {PUBLISHED_TOKENS}: {words}.",
        "statistic": f"share of the space token times {PUBLISHED_TOKENS}, in {CODE}, freelaw, "
        "hackernews; error over blocks of contexts",
        "bound": "",
    }
    if missing:
        why = f"Not compared: {'; '.join(absent(subset) for subset in missing)}. "
        result |= {"value": None, "se": None, "n": 0, "note": why + result["note"]}
    return result
