"""What sections 4.2 and 6.1 claim of the joint PCA, measured: measured.json, sensitivity.parquet.

A pattern is a set of quantities of one component with a stated bound each. It holds when the
95 % interval (Student t over chains, from the jackknife) of every quantity lies within its bound
and no regrouping of the heads does as well by chance (p <= 0.05); it fails when an interval lies
beyond; anything else is undecided, and so is everything about a component whose variance is not
separated from a neighbor's. Where the paper says "strongly" or "large", the bound is half
of what an even spread over all heads (or probes) would give.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from susceptibilities.console import run
from susceptibilities.cubes import FORMS, PARTS, Axes
from susceptibilities.findings import (
    NAMES,
    SENSITIVITY_SCHEMA,
    Finding,
    conventions,
    entry,
    guards,
    sensitivity_rows,
)
from susceptibilities.jackknife import (
    Condition,
    Estimate,
    decide,
    estimate,
    met,
    permutation_p,
)
from susceptibilities.pca import JointPCA, orient, part_shares
from susceptibilities.store import atomic_path, read_json, write_json
from susceptibilities.subsets import absent, place_of
from susceptibilities.trajectories import Analysis, Roles, analyse, control_pca

SOURCE = "baker2025/s4_1_dataset_susceptibilities"
FOLDER = "baker2025/s4_2_trajectory_pca"
LEVEL = 0.05
# Components in which a pattern is looked for when it is not where the paper has it.
SEARCHED = 6
DIFFERENCE = "difference of mean loadings"
TOP3 = Condition("share of the first three components", ">", 0.98)


@dataclass(frozen=True)
class Test:
    """A pattern of one component, ready to be measured on a PCA.

    Attributes:
        anchor: heads and the sign of their mean loading, which fix the component's sign.
        measure: loadings (head,) and contributions (probe,) -> quantities by name.
        conditions: bounds on the quantities; the first quantity is the value reported.
        chance: loadings -> one-sided permutation p, where heads are compared with heads.
        skipped: why nothing can be tested, or empty.
    """

    anchor: tuple[Sequence[int], int]
    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    conditions: tuple[Condition, ...]
    chance: Callable[[np.ndarray], float] | None = None
    skipped: str = ""


def untested(reason: str) -> Test:
    return Test(((), 1), lambda _loadings, _contributions: {}, (), skipped=reason)


def uniform_mode(heads: int) -> Test:
    """All loadings of one sign and similar size: near the vector of equal entries."""

    def measure(loadings: np.ndarray, _: np.ndarray) -> dict[str, float]:
        return {
            "cosine to the uniform vector": float(loadings.sum() / np.sqrt(heads)),
            "smallest loading": float(loadings.min()),
        }

    conditions = (
        Condition("cosine to the uniform vector", ">", 0.9),
        Condition("smallest loading", ">", 0.0),
    )
    return Test((range(heads), 1), measure, conditions)


def picks_multigram(roles: Roles, heads: int) -> Test:
    """Positive on the previous-token heads, negative on the last layer's multigram heads."""
    others = roles.others(roles.multigram)
    if not (roles.previous and len(roles.multigram) >= 2 and others):
        return untested(
            "needs a previous-token head in the first layer, and two multigram heads and one "
            "other head in the last"
        )
    strong = 0.5 / np.sqrt(heads)
    group, rest = list(roles.multigram), list(others)

    def measure(loadings: np.ndarray, _: np.ndarray) -> dict[str, float]:
        return {
            DIFFERENCE: float(loadings[group].mean() - loadings[rest].mean()),
            "mean loading of previous-token heads": float(loadings[list(roles.previous)].mean()),
            "mean loading of last-layer multigram heads": float(loadings[group].mean()),
        }

    conditions = (
        Condition(DIFFERENCE, "<", 0.0),
        Condition("mean loading of previous-token heads", ">", strong),
        Condition("mean loading of last-layer multigram heads", "<", -strong),
    )
    return Test(
        (roles.previous, 1), measure, conditions, lambda v: permutation_p(v[group], v[rest])
    )


def picks_induction(roles: Roles, heads: int) -> Test:
    """Negative on the induction heads, and more so than on the other heads of their layer."""
    others = roles.others(roles.induction)
    if not (roles.induction and len(others) >= 2):
        return untested("needs an induction head and two other heads in the last layer")
    strong = 0.5 / np.sqrt(heads)
    group, rest = list(roles.induction), list(others)

    def measure(loadings: np.ndarray, _: np.ndarray) -> dict[str, float]:
        found = {
            DIFFERENCE: float(loadings[group].mean() - loadings[rest].mean()),
            "mean loading of induction heads": float(loadings[group].mean()),
        }
        if roles.current:
            name = "mean loading of current-token heads"
            found[name] = float(loadings[list(roles.current)].mean())
        return found

    conditions = [
        Condition(DIFFERENCE, "<", 0.0),
        Condition("mean loading of induction heads", "<", -strong),
    ]
    if roles.current:
        conditions.append(Condition("mean loading of current-token heads", ">", 0.0))
    return Test(
        (roles.induction, -1),
        measure,
        tuple(conditions),
        lambda v: permutation_p(v[group], v[rest]),
    )


def datasets(
    wanted: Mapping[str, tuple[str, bool]],
    axes: Axes,
    domains: Mapping[str, Any],
    anchor: tuple[Sequence[int], int],
) -> Test:
    """Signs of the contributions of some subsets.

    Args:
        wanted: subset -> (">" or "<", whether the contribution must be large).
    """
    places = {subset: place_of(subset, domains) for subset in wanted}
    gone = [s for s, place in places.items() if place is None or place.probe not in axes.probes]
    if gone:
        return untested(absent(gone[0]))
    if not anchor[0]:
        return untested("the model has no head of the role that fixes the component's sign")
    columns = {str(p): axes.probes.index(p.probe) for p in places.values() if p is not None}
    strong = 0.5 / np.sqrt(len(axes.probes))
    conditions = [
        Condition(str(place), relation, (strong if relation == ">" else -strong) if large else 0.0)  # type: ignore[arg-type]
        for place, (relation, large) in zip(places.values(), wanted.values(), strict=True)
    ]

    def measure(_: np.ndarray, contributions: np.ndarray) -> dict[str, float]:
        return {name: float(contributions[i]) for name, i in columns.items()}

    return Test(anchor, measure, tuple(conditions))


@dataclass(frozen=True)
class Claim:
    """A claim on one component (from 0), as a test made for a model's roles and domains."""

    pc: int
    statistic: str
    make: Callable[[Axes, Roles, Mapping[str, Any]], Test]


CLAIMS: dict[str, Claim] = {
    "baker2025.fig6.pc1_uniform": Claim(
        0,
        "cosine between PC1's loadings and the vector of equal loadings (1: exactly uniform); "
        "PC1 turned to be positive on average",
        lambda axes, _roles, _domains: uniform_mode(len(axes.heads)),
    ),
    "baker2025.fig6.pc2_loadings": Claim(
        1,
        "difference of mean loadings on PC2, last-layer multigram heads minus the "
        "other last-layer heads; roles are this model's own, PC2 turned to be positive on its "
        "previous-token heads",
        lambda axes, roles, _domains: picks_multigram(roles, len(axes.heads)),
    ),
    "baker2025.fig6.pc3_loadings": Claim(
        2,
        "difference of mean loadings on PC3, induction heads minus the other "
        "last-layer heads; roles are this model's own, PC3 turned to be negative on its induction "
        "heads",
        lambda axes, roles, _domains: picks_induction(roles, len(axes.heads)),
    ),
    "baker2025.fig12.pc2_datasets": Claim(
        1,
        "contributions to PC2 (scores averaged over checkpoints, unit norm); first the domain in "
        "the place of wikipedia_en; PC2 turned to be positive on the previous-token heads",
        lambda axes, roles, domains: datasets(
            {"wikipedia_en": (">", False), "github": ("<", True), "dm_mathematics": ("<", True)},
            axes,
            domains,
            (roles.previous, 1),
        ),
    ),
    "baker2025.fig12.pc3_datasets": Claim(
        2,
        "contributions to PC3 (scores averaged over checkpoints, unit norm); first the domain in "
        "the place of dm_mathematics; PC3 turned to be negative on the induction heads",
        lambda axes, roles, domains: datasets(
            {"dm_mathematics": (">", True), "stackexchange": ("<", False)},
            axes,
            domains,
            (roles.induction, -1),
        ),
    ),
}


def measured_on(test: Test, pca: JointPCA, pc: int, sign: float) -> dict[str, float]:
    return test.measure(sign * pca.loadings[:, pc], sign * pca.contributions[:, pc])


def sign_of(test: Test, pca: JointPCA, pc: int) -> float:
    """+1 or -1: how the component must be turned for the test's anchor."""
    turned = orient(pca, {pc: test.anchor})
    return 1.0 if np.array_equal(turned.loadings[:, pc], pca.loadings[:, pc]) else -1.0


def point(test: Test, pca: JointPCA, pc: int) -> bool | None:
    """Whether the values alone, errors aside, meet the test on one component."""
    if test.skipped or pc >= pca.loadings.shape[1]:
        return None
    sign = sign_of(test, pca, pc)
    likely = test.chance is not None and test.chance(sign * pca.loadings[:, pc]) > LEVEL
    return met(measured_on(test, pca, pc, sign), test.conditions) and not likely


def find(test: Test, analysis: Analysis, pc: int) -> Finding:
    """Measure a test on one component with its errors over chains."""
    if test.skipped:
        return Finding(None, None, 0, None, note=f"Not tested: {test.skipped}.")
    found = analysis.found
    if pc >= found.pca.loadings.shape[1]:
        return Finding(None, None, 0, None, note=f"Not tested: there is no PC{pc + 1}.")
    sign = sign_of(test, found.pca, pc)
    values = measured_on(test, found.pca, pc, sign)
    repeated = [measured_on(test, r, pc, sign) for r in found.replicates]
    estimates = {q: estimate(v, [r[q] for r in repeated]) for q, v in values.items()}
    verdict = decide(estimates, test.conditions)
    notes = ["; ".join(f"{q} {e.value:.3g} ± {e.se:.2g}" for q, e in estimates.items()) + "."]
    if test.chance is not None:
        p = test.chance(sign * found.pca.loadings[:, pc])
        notes.append(f"Permutation p = {p:.3f}.")
        if verdict and p > LEVEL:
            verdict = None
    if not found.identified[pc]:
        # Any rotation within the pair is as good a component as this one.
        notes.append(f"PC{pc + 1} is not separated from a neighbor within the errors.")
        verdict = None
    name = test.conditions[0].quantity
    return Finding(
        values[name],
        estimates[name].se,
        len(found.replicates),
        verdict,
        point(test, found.pca, pc),
        " ".join(notes),
    )


def elsewhere(test: Test, analysis: Analysis, pc: int) -> str:
    """Which other components have the pattern, errors aside."""
    count = min(SEARCHED, analysis.found.pca.loadings.shape[1])
    others = [k for k in range(count) if k != pc and point(test, analysis.found.pca, k)]
    if not others:
        return ""
    names = ", ".join(f"PC{k + 1}" for k in others)
    return f"Of PC1-PC{count}, {names} also meets the conditions (values alone)."


def carriers(test: Test, analyses: Mapping[str, Analysis], pc: int) -> str:
    """Parts on which the claim holds by themselves.

    A part without a uniform mode has the same pattern in an earlier component, so it is looked
    for in the first ones, and named.
    """
    if test.skipped:
        return ""
    names = []
    for part in PARTS:
        count = min(SEARCHED, analyses[part].found.pca.loadings.shape[1])
        order = sorted(range(count), key=lambda k: (k != pc, k))
        places = [k for k in order if find(test, analyses[part], k).holds]
        if places:
            where = "" if places[0] == pc else f" (its PC{places[0] + 1})"
            names.append(NAMES[part] + where)
    return ", ".join(names) if names else "no part alone"


def made_of(analysis: Analysis, pc: int) -> str:
    """Which parts the variance of a component of chi is made of."""
    if pc >= analysis.found.pca.loadings.shape[1]:
        return ""
    shares = {part: part_shares(analysis.found.pca, v)[pc] for part, v in analysis.parts.items()}
    spelled = ", ".join(
        f"{NAMES[part]} {round(share, 2) + 0.0:.2f}" for part, share in shares.items()
    )
    return f"Of the variance of PC{pc + 1} of chi: {spelled}."


def top3(analysis: Analysis) -> Finding:
    """Variance explained by the first three components, and whether it exceeds the published."""
    shares = analysis.found.pca.share[:3]
    se = float(analysis.found.cumulative_se[len(shares) - 1])
    chains = len(analysis.found.replicates)
    share = Estimate(float(shares.sum()), se, chains - 1)
    return Finding(share.value, se, chains, TOP3.verdict(share), TOP3.met(share.value))


def claims(
    susceptibility: pl.DataFrame,
    replicates: pl.DataFrame,
    control: pl.DataFrame,
    roles: Mapping[str, str],
    domains: Mapping[str, Any],
    n_beta: float,
    reliability: float | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Entries of measured.json and rows of sensitivity.parquet."""
    variants = conventions(n_beta)
    wanted = {(form, 1.0) for form in FORMS} | {(c.form, c.factor) for c in variants}
    done = {
        (form, factor): analyse(susceptibility, replicates, roles, form, factor)
        for form, factor in sorted(wanted)
    }
    without_loss = control_pca(control, roles)
    measured: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name, claim in CLAIMS.items():
        tests = {key: claim.make(a.axes, a.roles, domains) for key, a in done.items()}
        found = {key: find(tests[key], a, claim.pc) for key, a in done.items()}
        test = tests["chi", 1.0]
        caution = None
        if without_loss is not None and not test.skipped:
            axes, pca = without_loss
            own = claim.make(axes, Roles.of(axes.heads, roles), domains)
            caution = point(own, pca, claim.pc)
        other = "" if test.skipped else elsewhere(test, done["chi", 1.0], claim.pc)
        bound = "; ".join(str(c) for c in test.conditions) or "none: not tested"
        if test.chance is not None:
            bound += f"; permutation p <= {LEVEL}"
        measured[name] = entry(
            {form: found[form, 1.0] for form in FORMS},
            claim.statistic,
            bound,
            [other, made_of(done["chi", 1.0], claim.pc), *guards(caution, reliability)],
            carried=carriers(test, {part: done[part, 1.0] for part in PARTS}, claim.pc),
        )
        rows += sensitivity_rows(name, {c.name: found[c.form, c.factor] for c in variants})
    name = "baker2025.fig13.top3"
    measured[name] = entry(
        {form: top3(done[form, 1.0]) for form in FORMS},
        "share of variance of the first three components of the standardized matrix",
        "",
        guards(None, reliability),
        kind="number",
    )
    rows += sensitivity_rows(name, {c.name: top3(done[c.form, c.factor]) for c in variants})
    return measured, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    parts = pl.read_parquet(results / SOURCE / "parts.parquet")
    chi = parts.filter(pl.col("form") == "chi")["reliability"]
    measured, rows = claims(
        pl.read_parquet(results / SOURCE / "susceptibility.parquet"),
        pl.read_parquet(results / SOURCE / "replicates.parquet"),
        pl.read_parquet(results / SOURCE / "control.parquet"),
        dict(zip(final["head"], final["role"], strict=True)),
        read_json(results / "tokens" / "manifest.json")["domains"],
        read_json(results / "config.json")["two_layer"]["sampler"]["n_beta"],
        chi.item() if len(chi) else None,
    )
    with atomic_path(results / FOLDER / "sensitivity.parquet") as path:
        pl.DataFrame(rows, schema=SENSITIVITY_SCHEMA).write_parquet(path)
    write_json(results / FOLDER / "measured.json", measured)
    for claim, found in measured.items():
        print(f"{claim}: value {found['value']}, holds {found.get('holds')}")


if __name__ == "__main__":
    run(main)
