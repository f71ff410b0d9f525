"""The claims of section 4.5 and appendix D.9, measured: measured.json and sensitivity.parquet."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from slope_fits import losses_of, resample
from token_findings import (
    CC,
    CODE,
    Find,
    Run,
    Side,
    of_line,
    of_space,
    of_totals,
    space_counts,
    space_share,
    spelled,
)
from token_patterns import CANCELLATION, SPACE_TOP, cancellation, space_top
from token_totals import PUBLISHED_TOKENS

from susceptibilities.console import run as run_script
from susceptibilities.cost import cost_entry
from susceptibilities.cubes import PARTS
from susceptibilities.estimators import FORMS
from susceptibilities.findings import NAMES as WORDS
from susceptibilities.findings import (
    SENSITIVITY_SCHEMA,
    Finding,
    conventions,
    entry,
    guards,
    sensitivity_rows,
)
from susceptibilities.jackknife import Estimate
from susceptibilities.per_token import RELIABILITY, SUSCEPTIBILITY, folder_of, load_per_token
from susceptibilities.store import atomic_path, read_json, write_json

SOURCE = "baker2025/s4_1_dataset_susceptibilities"
FOLDER = "baker2025/s4_5_token_attribution"


@dataclass(frozen=True)
class Claim:
    """How a claim is measured.

    Attributes:
        find: (run, form, factor, control) -> a finding, or one for each number of a list.
        shown: which number of a list stands for it in the parts and the conventions.
        additive: whether the parts' numbers add up to chi's, so that the largest carries it.
    """

    find: Find
    statistic: str
    bound: str = ""
    shown: int = 0
    additive: bool = True

    @property
    def kind(self) -> str:
        return "pattern" if self.bound else "number"


LINE = (
    "of mean per-token against dataset susceptibility at the same checkpoint, every head and "
    "domain; error over chains and contexts of both"
)
TOTAL = f"values of one sign added up, for {PUBLISHED_TOKENS} tokens"
NAMES = {
    "pos": ("positive", f"total positive: {TOTAL}"),
    "neg": ("negative", f"total negative: {TOTAL}"),
    "sum": ("sum", f"total positive plus total negative, for {PUBLISHED_TOKENS} tokens"),
    "scaled": ("scaled_sum", "mean over tokens times delta_h"),
}
PEARSON = Claim(of_line("pearson"), f"Pearson r {LINE}", additive=False)
SLOPE = Claim(of_line("least_squares"), f"least-squares slope {LINE}", additive=False)


def scaled_sums(run: Run, form: str, factor: float, control: bool) -> list[Finding]:
    """0:0 and 0:1 on github-all, 0:0 on cc."""
    code = of_totals(CODE, [("0:0", "scaled_sum"), ("0:1", "scaled_sum")])
    cc = of_totals(CC, [("0:0", "scaled_sum")])
    found = [*code(run, form, factor, control), *cc(run, form, factor, control)]
    if missing := [f for f in found if f.n == 0]:
        return missing[:1]
    return [replace(found[0], note=f"{found[0].note} The last: {found[2].note}"), *found[1:]]


CLAIMS: dict[str, Claim] = {
    "baker2025.fig9.pearson": PEARSON,
    "baker2025.fig9.slope": SLOPE,
    **{
        f"baker2025.tab1.{head.replace(':', '')}.{name}": Claim(
            of_totals(CODE, [(head, column)]), words
        )
        for head in ("0:0", "0:1")
        for name, (column, words) in NAMES.items()
    },
    **{
        f"baker2025.tab1.{head.replace(':', '')}.space_{name}": Claim(
            of_space(head, spread), f"{words} of the values of the space token", additive=not spread
        )
        for head in ("0:0", "0:1")
        for name, spread, words in (("mean", False, "mean"), ("std", True, "standard deviation"))
    },
    **{
        f"baker2025.s45.space_share_{head.replace(':', '')}": Claim(
            space_share(head),
            "negative values on the space token over all negative values",
            additive=False,
        )
        for head in ("0:0", "0:1")
    },
    "baker2025.s45.space_top": Claim(
        space_top,
        "negative total of the space token over the largest of another token, the smaller of the "
        "two heads",
        "; ".join(str(c) for c in SPACE_TOP),
    ),
    "baker2025.tab4.cc": Claim(
        of_totals(CC, [("0:0", column) for column, _ in NAMES.values()]),
        f"total positive, total negative and sum, for {PUBLISHED_TOKENS} tokens, and scaled sum; "
        "the last one for parts and conventions",
        shown=3,
    ),
    "baker2025.tab4.cancellation": Claim(
        cancellation,
        "imbalance, sum / (positive - negative), of 0:0 on the probe nearest to the training "
        "distribution, over the median size of that of the other domains",
        "; ".join(str(c) for c in CANCELLATION),
    ),
    "baker2025v3.fig9.pearson": PEARSON,
    "baker2025v3.fig9.slope": SLOPE,
    "baker2025v3.scaled_sums": Claim(
        scaled_sums,
        "mean over tokens times delta_h: 0:0 and 0:1 on github-all's place, 0:0 on cc's; the "
        "first for parts and conventions",
    ),
}


def of_control(run: Run, claim: Claim) -> tuple[str, bool | None]:
    """What the n_beta = 0 control gives, in words, and whether it meets a pattern."""
    if True not in run.sides:
        return "", None
    found = claim.find(run, "chi", 1.0, True)
    if found[0].n == 0:
        return "", None
    numbers = [
        spelled(Estimate(f.value, f.se if f.se is not None else float("nan"), 1))
        for f in found
        if f.value is not None
    ]
    return f"The n_beta = 0 control gives {', '.join(numbers)}.", found[0].met


def heaviest_part(run: Run) -> str:
    """The part with the largest values, by their mean size over all heads and tokens."""
    data = run.sides[False].data
    heads = [data.components.index(head) for head in data.heads]
    sizes = {part: float(np.abs(data.value[part][heads]).mean()) for part in PARTS}
    return f"{WORDS[max(sizes, key=sizes.__getitem__)]} (largest part)"


def claims(run: Run, n_beta: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Entries of measured.json and rows of sensitivity.parquet."""
    measured: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    variants = conventions(n_beta)
    heaviest = heaviest_part(run)
    for name, claim in CLAIMS.items():
        by_form = {form: claim.find(run, form, 1.0, False) for form in FORMS}
        whole = by_form["chi"]
        shown = {form: found[min(claim.shown, len(found) - 1)] for form, found in by_form.items()}
        notes: list[str] = []
        if whole[0].n:
            words, control_met = of_control(run, claim)
            reliability = min(run.reliability.values(), default=None)
            notes = [words, *guards(control_met, reliability if claim.bound else None)]
        carried = None if claim.additive or not whole[0].n else heaviest
        if claim.bound:
            # Where nothing was put to a test, no part can carry it.
            carried = "" if whole[0].met is None else None
        measured[name] = entry(shown, claim.statistic, claim.bound, notes, claim.kind, carried)
        if len(whole) > 1:
            measured[name] |= {"value": [f.value for f in whole], "se": [f.se for f in whole]}
        under = {v.name: claim.find(run, v.form, v.factor, False) for v in variants}
        rows += sensitivity_rows(
            name, {key: found[min(claim.shown, len(found) - 1)] for key, found in under.items()}
        )
    measured["baker2025.s45.space_counts"] = space_counts(run)
    return measured, rows


def cost(results: Path, run: Run) -> dict[str, Any]:
    """Hours that the per-token run of one checkpoint took, from the benchmarks of its jobs."""
    data = run.sides[False].data
    store = folder_of(results, data.step) / SUSCEPTIBILITY
    device = read_json(store / "zarr.json").get("attributes", {}).get("device", "not recorded")
    return cost_entry(
        (results / "benchmarks").glob(f"per_token_*_{data.step:06d}*.tsv"),
        "hours of all jobs of one checkpoint, added up: sampling and estimates",
        f"on {device}: {len(data.components)} components, {data.chains} chains of {data.draws} "
        f"kept draws, {len(data.tokens)} tokens.",
    )


def load_reliability(folder: Path, heads: Sequence[str]) -> dict[str, float]:
    """Head -> reliability of chi between halves of the chains."""
    table = pl.read_parquet(folder / RELIABILITY).filter(
        (pl.col("form") == "chi") & pl.col("component").is_in(heads)
    )
    half = table.filter(pl.col("chains") == pl.col("chains").max().over("component"))
    return dict(zip(half["component"], half["reliability"], strict=True))


def load_run(results: Path) -> Run:
    """Everything that the claims need, read from the run's files."""
    settings = read_json(results / "config.json")["two_layer"]
    data = load_per_token(results)
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    runs = {False: "susceptibility"}
    if settings["per_token"]["control_checkpoints"]:
        runs[True] = "control"
    sides = {}
    for control, name in runs.items():
        side = data if not control else load_per_token(results, control=True)
        dataset = pl.read_parquet(results / SOURCE / f"{name}.parquet")
        sides[control] = Side(side, dataset, resample(losses_of(results, side.step, control)))
    return Run(
        sides=sides,
        domains=read_json(results / "tokens" / "manifest.json")["domains"],
        roles=dict(zip(final["head"], final["role"], strict=True)),
        reliability=load_reliability(folder_of(results, data.step), ("0:0", "0:1")),
        delta_h=settings["delta_h"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    run = load_run(results)
    measured, rows = claims(run, run.sides[False].data.n_beta)
    measured["baker2025.C2.cost"] = cost(results, run)
    with atomic_path(results / FOLDER / "sensitivity.parquet") as path:
        pl.DataFrame(rows, schema=SENSITIVITY_SCHEMA).write_parquet(path)
    write_json(results / FOLDER / "measured.json", measured)
    for claim, found in measured.items():
        print(f"{claim}: value {found['value']}, holds {found.get('holds')}")


if __name__ == "__main__":
    run_script(main)
