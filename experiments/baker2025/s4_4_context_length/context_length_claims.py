"""What section 4.4 and appendix G claim of context length: measured.json, sensitivity.parquet.

A claim is a set of quantities of the heads, each with a bound that was stated before anything was
measured. It holds when the 95 % interval (Student t) of every quantity lies within its bound and
no regrouping of the heads does as well by chance (p <= 0.05); it fails when an interval lies
beyond; anything else is undecided.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from length_curves import FOLDER, head_values, heads_of, sources
from length_statistics import (
    Layout,
    clean_variances,
    measure_signal,
    plain_variances,
    rise_weights,
    rises,
)

from susceptibilities.console import run
from susceptibilities.cubes import FORMS
from susceptibilities.findings import (
    SENSITIVITY_SCHEMA,
    Finding,
    conventions,
    entry,
    guards,
    sensitivity_rows,
)
from susceptibilities.jackknife import (
    Array,
    Condition,
    Estimate,
    decide,
    met,
    permutation_p,
    pseudo_values,
)
from susceptibilities.naming import HEAD_PATTERN
from susceptibilities.per_token import PerToken
from susceptibilities.store import atomic_path, write_json
from susceptibilities.token_errors import context_blocks, measure_array
from susceptibilities.trajectories import Roles

LEVEL = 0.05
GROWTH = "baker2025.fig33.context_length"
VARIANCE = "baker2025.fig34.variance"

RISE = "rise of layer-1 multigram heads"
EXCESS = "that rise less twice the mean |rise| of layer-0 heads"
GROWTH_CONDITIONS = (Condition(RISE, ">", 0.0), Condition(EXCESS, ">", 0.0))
# A description in a note, no bound of a claim.
ONE_CURVE = 0.9
HIGHER = "variance of layer-1 heads but one induction head minus that of layer-0 heads"
VARIANCE_CONDITIONS = (Condition(HIGHER, ">", 0.0),)


@dataclass(frozen=True)
class Groups:
    """Places of heads by layer and by this model's own roles."""

    first: list[int]
    multigram: list[int]
    induction: list[int]
    last: list[int]

    @classmethod
    def of(cls, heads: Sequence[str], roles: Mapping[str, str]) -> Groups:
        own = Roles.of(heads, roles)
        first = heads[0].split(":")[0]
        return cls(
            [i for i, head in enumerate(heads) if head.split(":")[0] == first],
            list(own.multigram),
            list(own.induction),
            list(own.last),
        )

    @property
    def untested(self) -> str:
        """Why nothing can be tested, or empty."""
        if set(self.first) & set(self.last):
            return "the model has one layer"
        if len(self.multigram) < 2 or len(self.first) < 2:
            return "needs two heads in the first layer and two multigram heads in the last"
        return ""


@dataclass(frozen=True)
class Data:
    """The per-token susceptibilities of the run or its control, ready to be measured."""

    tokens: PerToken
    layout: Layout
    blocks: np.ndarray
    groups: Groups

    @classmethod
    def of(cls, tokens: PerToken, roles: Mapping[str, str]) -> Data:
        groups = Groups.of(heads_of(tokens), roles)
        return cls(tokens, Layout.of(tokens.tokens), context_blocks(tokens.tokens), groups)

    @property
    def df(self) -> int:
        """Degrees of freedom of the errors: those of the smaller jackknife."""
        return min(self.tokens.chains, len(np.unique(self.blocks))) - 1

    @property
    def size(self) -> int:
        """Tokens of the domains."""
        return len(self.layout.domains) * self.layout.contexts * self.layout.lengths


def growth_quantities(rise: Array, groups: Groups) -> Array:
    """[RISE, EXCESS] from the rises of all heads."""
    grown = rise[groups.multigram].mean()
    return np.array([grown, grown - 2 * np.abs(rise[groups.first]).mean()])


def growth(data: Data, form: str, factor: float = 1.0, how: str = "rise") -> Finding:
    """Figure 33's claim on one form times a factor."""
    if data.groups.untested:
        return Finding(None, None, 0, None, note=f"Not tested: {data.groups.untested}.")
    values, replicates = head_values(data.tokens, form)

    def statistic(values: Array, keep: np.ndarray) -> Array:
        rise = rises(data.layout, values, keep, how)
        return np.concatenate([growth_quantities(rise, data.groups), rise])

    value, se = measure_array(statistic, factor * values, factor * replicates, data.blocks)
    rise, rise_se = value[2:], se[2:]
    p = permutation_p(-rise[data.groups.multigram], -rise[data.groups.first])
    clear = rise - Estimate(0.0, 1.0, data.df).interval()[1] * rise_se > 0
    note = (
        f"Layer-0 heads: mean |rise| {np.abs(rise[data.groups.first]).mean():.2g}. Clear of zero "
        f"and positive: {clear[data.groups.multigram].sum()} of {len(data.groups.multigram)} "
        f"layer-1 multigram and {clear[data.groups.first].sum()} of {len(data.groups.first)} "
        "layer-0 heads."
    )
    return _finding(data, GROWTH_CONDITIONS, value[:2], se[:2], p, note)


def compared(variances: Array, groups: Groups) -> list[int]:
    """The last layer's heads but the induction head of the lowest variance, if there is one."""
    left_out = min(groups.induction, key=lambda i: variances[i], default=None)
    return [i for i in groups.last if i != left_out]


def variance(data: Data, form: str, corrected: bool = True) -> Finding:
    """Figure 34's claim on one form; ``corrected``: without the sampling noise."""
    if data.groups.untested:
        return Finding(None, None, 0, None, note=f"Not tested: {data.groups.untested}.")
    layout, groups = data.layout, data.groups
    values, replicates = head_values(data.tokens, form)
    everything = np.ones(values.shape[-1], dtype=bool)
    variances = plain_variances(layout, values, everything)
    # The noise stays in the unit, so that nothing is ever divided by almost nothing.
    unit = float(variances.mean())
    if corrected:
        variances = clean_variances(layout, pseudo_values(values, replicates), everything)
    chosen = compared(variances, groups)

    def difference(variances: Array) -> Array:
        return (variances[chosen].mean() - variances[groups.first].mean()) / unit

    if corrected:
        value, se = measure_signal(
            lambda chains, keep: difference(clean_variances(layout, chains, keep)),
            values,
            replicates,
            data.blocks,
        )
    else:
        value, se = measure_array(
            lambda values, keep: difference(plain_variances(layout, values, keep)),
            values,
            replicates,
            data.blocks,
        )
    p = permutation_p(variances[groups.first], variances[chosen])
    names = heads_of(data.tokens)
    left = [names[i] for i in groups.last if i not in chosen]
    note = (
        f"Mean variance: layer 1 {variances[chosen].mean():.2g}, "
        f"layer 0 {variances[groups.first].mean():.2g} nats⁴; "
        f"{int((variances[chosen] > variances[groups.first].max()).sum())} of {len(chosen)} "
        "layer-1 heads above every layer-0 head; left out: "
        f"{', '.join(left) or 'none (no induction head)'}."
    )
    return _finding(data, VARIANCE_CONDITIONS, value[None], se[None], p, note)


def scale_note(data: Data) -> str:
    """How far the variance of chi is that of the rank-one part, head by head (values alone)."""
    everything = np.ones(len(data.tokens.tokens), dtype=bool)
    chi, shared = (
        clean_variances(data.layout, pseudo_values(*head_values(data.tokens, form)), everything)
        for form in ("chi", "rank_one")
    )
    ratio = chi / shared
    return (
        "Variance of χ over that of its rank-one part, which is one token vector times a number a "
        f"head: {ratio.min():.2f} to {ratio.max():.2f} among all heads."
    )


def _finding(
    data: Data,
    conditions: Sequence[Condition],
    value: Array,
    se: Array,
    p: float,
    note: str,
) -> Finding:
    estimates = {
        c.quantity: Estimate(float(v), float(s), data.df)
        for c, v, s in zip(conditions, value, se, strict=True)
    }
    # Two chains give no error of a product over chains, and without an error no verdict.
    verdict = decide(estimates, conditions) if np.isfinite(se).all() else None
    if verdict and p > LEVEL:
        verdict = None
    spelled = "; ".join(f"{q} {e.value:.3g} ± {e.se:.2g}" for q, e in estimates.items())
    alone = met({q: e.value for q, e in estimates.items()}, conditions) and p <= LEVEL
    return Finding(
        float(value[0]),
        float(se[0]),
        data.size,
        verdict,
        alone,
        f"{spelled}. Permutation p = {p:.3g} over regroupings of the heads. {note}",
    )


STATEMENTS: dict[str, tuple[str, tuple[Condition, ...]]] = {
    GROWTH: (
        "rise of mean χ over the context (least-squares slope against log2 of the length, times "
        "its doublings), mean over domains and over the layer-1 multigram heads, in units of the "
        "root-mean-square standard deviation of χ over tokens; roles are this model's own",
        GROWTH_CONDITIONS,
    ),
    VARIANCE: (
        "variance of χ over tokens of the same length and domain, averaged over lengths and "
        "domains, sampling noise subtracted: mean of the layer-1 heads but the induction head of "
        "the lowest variance, minus mean of the layer-0 heads, over the mean variance of all heads",
        VARIANCE_CONDITIONS,
    ),
}


def growth_notes(data: Data, shared: pl.DataFrame) -> list[str]:
    """What the picture does not show: the same in each head's own unit, and the shared curve."""
    if data.groups.untested:
        return []
    own = growth(data, "chi", how="own")
    share = shared.filter((pl.col("source") == "run") & (pl.col("form") == "chi"))
    layout = data.layout
    values, _ = head_values(data.tokens, "chi")
    everything = np.ones(values.shape[-1], dtype=bool)
    rise = layout.means(values, everything)[..., layout.domains, :] @ rise_weights(layout.lengths)
    grown = rise[data.groups.multigram].mean(0)
    larger = grown > 2 * np.abs(rise[data.groups.first]).mean(0)
    note = (
        f"In units of each head's own standard deviation: {own.note} By domain (values alone): "
        f"both conditions in {int((larger & (grown > 0)).sum())} of {len(layout.domains)}."
    )
    one = share.row(0, named=True)
    if one["share"] is None:
        return [note, "The curves of χ are not clear of noise."]
    meaning = (
        "heads differ in scale rather than in shape"
        if one["share"] > ONE_CURVE
        else "heads differ in shape"
    )
    return [
        note,
        f"One curve times a number a head makes {one['share']:.3f} ± {one['se']:.1g} of all heads' "
        f"curves of χ: {meaning}.",
    ]


def agreement_note(run_data: Data, control: Data) -> str:
    """How alike the run and its control are, token by token (values alone).

    They share their random numbers, so sampling noise is shared too and does not hide a likeness.
    """
    one, two = (head_values(data.tokens, "chi")[0] for data in (run_data, control))
    if one.shape != two.shape:
        return ""
    found = [np.corrcoef(a, b)[0, 1] for a, b in zip(one, two, strict=True)]
    return (
        "Over tokens, χ of run and control, sampled with the same random numbers, correlate "
        f"{np.mean(found):.3f} (mean over heads)."
    )


def claims(
    tokens: Mapping[str, PerToken],
    roles: Mapping[str, str],
    shared: pl.DataFrame,
    reliability: float | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Entries of measured.json and rows of sensitivity.parquet.

    Args:
        tokens: "run" and, where there is one, "control".
    """
    data = {source: Data.of(one, roles) for source, one in tokens.items()}
    run_data = data["run"]
    variants = conventions(run_data.tokens.n_beta)
    measured: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    tests: dict[str, Callable[[Data, str, float], Finding]] = {
        GROWTH: growth,
        # A variance does not change with the sign, nor relative to others with the scale.
        VARIANCE: lambda data, form, _factor: variance(data, form),
    }
    others = {
        GROWTH: {
            "last minus first quarter of the context": growth(run_data, "chi", how="quarters"),
            "in units of each head's own standard deviation": growth(run_data, "chi", how="own"),
        },
        VARIANCE: {"sampling noise not subtracted": variance(run_data, "chi", corrected=False)},
    }
    for claim, test in tests.items():
        statistic, conditions = STATEMENTS[claim]
        found = {form: test(run_data, form, 1.0) for form in FORMS}
        notes = growth_notes(run_data, shared) if claim == GROWTH else []
        if claim == VARIANCE and not run_data.groups.untested:
            left_in = others[claim]["sampling noise not subtracted"]
            notes += [scale_note(run_data), f"With the noise left in: {left_in.note}"]
        caution = None
        if "control" in data:
            control = test(data["control"], "chi", 1.0)
            caution = control.met
            notes.append(f"Control at n_beta = 0: {control.note}")
            notes.append(agreement_note(run_data, data["control"]))
        measured[claim] = entry(
            found,
            statistic,
            "; ".join(str(c) for c in conditions) + f"; permutation p <= {LEVEL}",
            [*notes, *guards(caution, reliability)],
        )
        by_variant = {c.name: test(run_data, c.form, c.factor) for c in variants}
        rows += sensitivity_rows(claim, by_variant | others[claim])
    return measured, rows


def mean_reliability(table: pl.DataFrame) -> float | None:
    """Reliability of chi between halves of the chains, mean over heads."""
    heads = table.filter((pl.col("form") == "chi") & pl.col("component").str.contains(HEAD_PATTERN))
    half = heads.filter(pl.col("chains") == pl.col("chains").max())
    found = half["reliability"].mean()
    return float(found) if isinstance(found, float) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    data = sources(results)
    step = data["run"].step
    reliability = pl.read_parquet(results / f"per_token/step_{step:06d}/reliability.parquet")
    measured, rows = claims(
        data,
        dict(zip(final["head"], final["role"], strict=True)),
        pl.read_parquet(results / FOLDER / "shared.parquet"),
        mean_reliability(reliability),
    )
    write_json(results / FOLDER / "measured.json", measured)
    with atomic_path(results / FOLDER / "sensitivity.parquet") as path:
        pl.DataFrame(rows, schema=SENSITIVITY_SCHEMA).write_parquet(path)
    for claim, found in measured.items():
        print(f"{claim}: {found['value']}, holds: {found['holds']}")


if __name__ == "__main__":
    run(main)
