"""What section 4.1 claims, measured: measured.json and sensitivity.parquet."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from susceptibilities.console import run
from susceptibilities.cost import cost_entry
from susceptibilities.cubes import CONTROL_PROBE, FORMS
from susceptibilities.findings import (
    SENSITIVITY_SCHEMA,
    Finding,
    conventions,
    entry,
    guards,
    sensitivity_rows,
)
from susceptibilities.jackknife import Estimate, all_hold
from susceptibilities.naming import head_of
from susceptibilities.store import atomic_path, read_json, write_json
from susceptibilities.subsets import absent, place_of
from susceptibilities.tokens import mix, probe_positions

FOLDER = "baker2025/s4_1_dataset_susceptibilities"
LEVEL = 0.05


@dataclass(frozen=True)
class Run:
    """What the claims are about.

    Attributes:
        table: susceptibility.parquet; `control` likewise for n_beta = 0.
        domains: the corpus manifest's entries by name.
        roles: head -> role.
        probe_rows: probe contexts in the mixture, floor(n * delta_h).
    """

    table: pl.DataFrame
    control: pl.DataFrame
    domains: Mapping[str, Any]
    roles: Mapping[str, str]
    probe_rows: int
    n_beta: float

    @property
    def last(self) -> int:
        return int(self.table["step"].max())  # type: ignore[arg-type]


def is_head() -> pl.Expr:
    """Rows of attention heads."""
    return pl.col("component").str.contains(r"^\d+:\d+$")


def of_heads(table: pl.DataFrame, probe: str, step: int, form: str) -> dict[str, Estimate]:
    """Estimates of every head on one probe at one step; errors have C - 1 degrees of freedom."""
    rows = table.filter(
        (pl.col("probe") == probe) & (pl.col("step") == step) & (pl.col("form") == form) & is_head()
    )
    found = {
        str(r["component"]): Estimate(r["value"], r["se"], max(1, r["n_chains"] - 1))
        for r in rows.iter_rows(named=True)
    }
    return dict(sorted(found.items(), key=lambda item: head_of(item[0]) or (0, 0)))


def signs(heads: Mapping[str, Estimate], factor: float) -> dict[str, bool | None]:
    """Head -> positive (True), negative (False) or within its error of zero (None)."""
    found: dict[str, bool | None] = {}
    for name, e in heads.items():
        low, high = sorted(factor * end for end in e.interval())
        found[name] = True if low > 0 else False if high < 0 else None
    return found


def most_positive(found: Mapping[str, bool | None]) -> bool | None:
    """Whether more than half are positive: decided only by heads clear of zero."""
    positive = sum(s is True for s in found.values())
    negative = sum(s is False for s in found.values())
    if 2 * positive > len(found):
        return True
    return False if 2 * negative >= len(found) else None


def any_negative(found: Mapping[str, bool | None]) -> bool | None:
    """Whether one at least is negative."""
    if any(s is False for s in found.values()):
        return True
    return False if all(s is True for s in found.values()) else None


def share_positive(heads: Mapping[str, Estimate], factor: float) -> float:
    return float(np.mean([factor * e.value > 0 for e in heads.values()]))


# ---- one function a claim: (run, table, form, factor) -> Finding -------------------------------


def signs_claim(run: Run, table: pl.DataFrame, form: str, factor: float, step: int) -> Finding:
    """Most heads positive on github and freelaw; a previous-token head negative on github."""
    places = [place_of(s, run.domains) for s in ("github", "freelaw")]
    missing = [s for s, p in zip(("github", "freelaw"), places, strict=True) if p is None]
    if missing:
        return Finding(None, None, 0, None, note=f"Not tested: {absent(missing[0])}.")
    code, law = (of_heads(table, p.probe, step, form) for p in places if p is not None)
    previous = {h: e for h, e in code.items() if run.roles.get(h) == "previous-token"}
    verdict = all_hold(
        [
            most_positive(signs(code, factor)),
            most_positive(signs(law, factor)),
            any_negative(signs(previous, factor)) if previous else None,
        ]
    )
    shares = share_positive(code, factor), share_positive(law, factor)
    lowest = min((factor * e.value for e in previous.values()), default=math.nan)
    counted = [list(signs(heads, factor).values()) for heads in (code, law)]
    note = (
        f"{places[0]}: {counted[0].count(True)} heads positive, {counted[0].count(False)} "
        f"negative, {counted[0].count(None)} within their error of zero; {places[1]}: "
        f"{counted[1].count(True)}, {counted[1].count(False)}, {counted[1].count(None)}. "
    )
    note += (
        f"Lowest previous-token head on {places[0]}: {lowest:.2g}."
        if previous
        else "No head has the role of 0:1 (previous-token), so the exception is not tested."
    )
    met = min(shares) > 0.5 and lowest < 0
    return Finding(min(shares), None, len(code) + len(law), verdict, met, note)


def hackernews_claim(run: Run, table: pl.DataFrame, form: str, factor: float, step: int) -> Finding:
    """Every head negative on hackernews."""
    place = place_of("hackernews", run.domains)
    if place is None:
        return Finding(None, None, 0, None, note=f"Not tested: {absent('hackernews')}.")
    heads = of_heads(table, place.probe, step, form)
    found = list(signs(heads, factor).values())
    verdict = False if True in found else (True if set(found) == {False} else None)
    share = 1.0 - share_positive(heads, factor)
    return Finding(share, None, len(heads), verdict, share == 1.0, f"Measured on {place}.")


def head_value(run: Run, head: str) -> Callable[..., Finding]:
    """chi of one head, by the paper's label, on github-all."""

    def find(_: Run, table: pl.DataFrame, form: str, factor: float, step: int) -> Finding:
        place = place_of("github-all", run.domains)
        if place is None:
            return Finding(None, None, 0, None, note=f"Not measured: {absent('github-all')}.")
        found = of_heads(table, place.probe, step, form).get(head)
        if found is None:
            return Finding(None, None, 0, None, note=f"The model has no head {head}.")
        role = run.roles.get(head, "unknown")
        note = (
            f"Measured on {place} at step {step}; in this model {head} is a {role} head, "
            "and heads of one label need not correspond between models."
        )
        return Finding(
            factor * found.value, abs(factor) * found.se, int(found.df) + 1, None, note=note
        )

    return find


def p_values(rows: pl.DataFrame, probe_rows: int) -> np.ndarray:
    """Two-sided p of each value being zero; Welch-Satterthwaite degrees of freedom.

    The error has two sources: chains (C - 1 degrees of freedom) and the finite sample of
    contexts, of which only the probe's rows in the mixture differ from the base's.
    """
    chain, data = rows["se_chain"].to_numpy(), rows["se_data"].to_numpy()
    chain_df = np.maximum(rows["n_chains"].to_numpy() - 1, 1)
    weight = chain**4 / chain_df + data**4 / max(probe_rows - 1, 1)
    df = np.divide((chain**2 + data**2) ** 2, weight, out=np.ones_like(weight), where=weight > 0)
    se = rows["se"].to_numpy()
    z = np.divide(rows["value"].to_numpy(), se, out=np.zeros_like(se), where=se > 0)
    return 2.0 * stats.t.sf(np.abs(z), df)


def zero_claim(run: Run, table: pl.DataFrame, form: str, factor: float) -> Finding:
    """chi of the control probe is zero within its error, over all heads and steps."""
    rows = table.filter((pl.col("form") == form) & is_head())
    control = rows.filter(pl.col("probe") == CONTROL_PROBE)
    if not len(control):
        return Finding(None, None, 0, None, note=f"The run has no probe '{CONTROL_PROBE}'.")
    smallest = float(min(1.0, len(control) * p_values(control, run.probe_rows).min()))
    z = float((control["value"] / control["se"]).abs().max())  # type: ignore[arg-type]
    error = float(np.sqrt(np.mean(control["se"].to_numpy() ** 2)))
    others = rows.filter(pl.col("probe") != CONTROL_PROBE)
    size = float(np.sqrt(np.mean(others["value"].to_numpy() ** 2)))
    verdict: bool | None = smallest >= LEVEL
    # An error as large as the effect would pass any probe as zero.
    if verdict and error >= size:
        verdict = None
    note = (
        f"Corrected p of the largest: {smallest:.2g}. Root mean square of its standard errors "
        f"{error * abs(factor):.2g}, of chi on the other probes {size * abs(factor):.2g}."
    )
    return Finding(z, None, len(control), verdict, smallest >= LEVEL, note)


def identity_claim(base: np.ndarray, delta_h: float) -> dict[str, Any]:
    """Algorithm 1 on the run's own base contexts: mixing them with themselves changes nothing."""
    changed = int((mix(base, base, delta_h) != base).any(axis=1).sum())
    placed = len(probe_positions(len(base), delta_h))
    expected = math.floor(len(base) * delta_h + 1e-9)
    return entry(
        {"chi": Finding(changed, 0.0, len(base), changed == 0 and placed == expected)},
        "contexts that change when the base sample is mixed with itself",
        "0",
        [f"delta_h = {delta_h}: {placed} of {len(base)} places would be a probe's."],
    )


def lemma1_claim() -> dict[str, Any]:
    """(1/(n beta)) d<phi>/dh at h = 0 equals -Cov[phi, dL], on a quadratic loss.

    Loss L(w) = w'Hw/2, perturbation dL(w) = a'w + w'Kw/2, prior gamma |w|^2 / 2. The posterior at
    h is Gaussian with precision P = gamma + n_beta (H + hK) and mean -n_beta h P^-1 a. With
    phi = L, <phi>_h is known in closed form, and so is the covariance at h = 0,
    tr(H S K S) / 2 with S = P^-1.
    """
    rng = np.random.default_rng(0)
    size, gamma, n_beta, step = 6, 3.0, 30.0, 1e-4
    root, other = rng.normal(size=(2, size, size))
    hessian, bend, slope = root @ root.T / size, (other + other.T) / 2, rng.normal(size=size)

    def expectation(h: float) -> float:
        s = np.linalg.inv(gamma * np.eye(size) + n_beta * (hessian + h * bend))
        mean = -n_beta * h * s @ slope
        return float(0.5 * np.trace(hessian @ s) + 0.5 * mean @ hessian @ mean)

    # Central difference, with the error of order step^2 removed.
    once, half = ((expectation(d) - expectation(-d)) / (2 * d) for d in (step, step / 2))
    derivative = (4 * half - once) / 3 / n_beta
    s0 = np.linalg.inv(gamma * np.eye(size) + n_beta * hessian)
    covariance = 0.5 * float(np.trace(hessian @ s0 @ bend @ s0))
    difference = abs(derivative + covariance) / abs(covariance)
    return entry(
        {"chi": Finding(difference, 0.0, 1, difference < 1e-6)},
        "relative difference of the two sides on a quadratic loss in 6 dimensions, where both "
        "are known in closed form",
        "< 1e-6",
    )


STATISTICS = {
    "baker2025.s41.signs": (
        "share of heads with positive chi at the last checkpoint, the smaller of the two domains; "
        "verdict from heads whose 95 % interval excludes zero",
        "more than half of the heads on both, and a previous-token head negative on github's",
    ),
    "baker2025.s41.hackernews": (
        "share of heads with negative chi at the last checkpoint; verdict from 95 % intervals",
        "all heads",
    ),
    "baker2025.s41.github_00": ("chi of 0:0 at the last checkpoint", ""),
    "baker2025.s41.github_01": ("chi of 0:1 at the last checkpoint", ""),
    "baker2025.def.zero": (
        "largest |chi| / se of the control probe over heads and checkpoints",
        f"Bonferroni-corrected p >= {LEVEL}, and errors smaller than chi on the other probes",
    ),
}
AT_LAST = (
    "baker2025.s41.signs",
    "baker2025.s41.hackernews",
    "baker2025.s41.github_00",
    "baker2025.s41.github_01",
)
NUMBERS = ("baker2025.s41.github_00", "baker2025.s41.github_01")


def claims(run: Run, reliability: float | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Entries of measured.json and rows of sensitivity.parquet."""
    find: dict[str, Callable[..., Finding]] = {
        "baker2025.s41.signs": signs_claim,
        "baker2025.s41.hackernews": hackernews_claim,
        "baker2025.s41.github_00": head_value(run, "0:0"),
        "baker2025.s41.github_01": head_value(run, "0:1"),
    }
    control_steps = run.control["step"].unique().to_list() if len(run.control) else []
    measured: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for claim in STATISTICS:

        def on(form: str, factor: float, claim: str = claim) -> Finding:
            if claim == "baker2025.def.zero":
                return zero_claim(run, run.table, form, factor)
            return find[claim](run, run.table, form, factor, run.last)

        control = None
        if claim in AT_LAST and run.last in control_steps:
            control = find[claim](run, run.control, "chi", 1.0, run.last).met
        kind = "number" if claim in NUMBERS else "pattern"
        measured[claim] = entry(
            {form: on(form, 1.0) for form in FORMS},
            *STATISTICS[claim],
            guards(control, reliability if claim in AT_LAST else None),
            kind,
        )
        rows += sensitivity_rows(
            claim, {c.name: on(c.form, c.factor) for c in conventions(run.n_beta)}
        )
    return measured, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    folder = results / FOLDER
    settings = read_json(results / "config.json")["two_layer"]
    base = np.load(results / "tokens" / "base.npy", allow_pickle=False)
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    parts = pl.read_parquet(folder / "parts.parquet")
    run = Run(
        table=pl.read_parquet(folder / "susceptibility.parquet"),
        control=pl.read_parquet(folder / "control.parquet"),
        domains=read_json(results / "tokens" / "manifest.json")["domains"],
        roles=dict(zip(final["head"], final["role"], strict=True)),
        probe_rows=len(probe_positions(len(base), settings["delta_h"])),
        n_beta=settings["sampler"]["n_beta"],
    )
    chi = parts.filter(pl.col("form") == "chi")["reliability"]
    measured, rows = claims(run, chi.item() if len(chi) else None)
    measured["baker2025.alg1.identity"] = identity_claim(base, settings["delta_h"])
    measured["arditi2026.lemma1"] = lemma1_claim()
    sampler = settings["sampler"]
    measured["baker2025.C1.cost"] = cost_entry(
        (results / "benchmarks").glob("sample_*.tsv"),
        "hours of all jobs, added up: the chains of every checkpoint and their losses",
        f"one a checkpoint: all components, {sampler['chains']} chains of {sampler['draws']} kept "
        f"draws, {len(run.domains) + 1} probes. The device is in the section on provenance.",
    )
    with atomic_path(folder / "sensitivity.parquet") as path:
        pl.DataFrame(rows, schema=SENSITIVITY_SCHEMA).write_parquet(path)
    write_json(folder / "measured.json", measured)
    for claim, found in measured.items():
        print(f"{claim}: value {found['value']}, holds {found.get('holds')}")


if __name__ == "__main__":
    run(main)
