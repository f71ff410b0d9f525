"""What section 4.3 claims of susceptibility and ablation: measured.json, sensitivity.parquet.

A correlation is negligible when its 95 % interval lies within the bound, and does so even when
corrected for noise in the susceptibility (divided by the square root of its reliability, the
largest correlation that the noise allows): an estimate of pure noise correlates with nothing,
and shows nothing. Where an interval lies beyond the bound without that correction, the claim
fails; anything else is undecided.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from susceptibilities.console import run
from susceptibilities.cubes import FORMS, PARTS
from susceptibilities.findings import (
    NAMES,
    SENSITIVITY_SCHEMA,
    Finding,
    carried_by,
    conventions,
    entry,
    guards,
    sensitivity_rows,
)
from susceptibilities.jackknife import Condition, Estimate, decide, met
from susceptibilities.store import atomic_path, read_json, write_json
from susceptibilities.subsets import absent, place_of
from susceptibilities.tokens import CONTROL_PROBE

FOLDER = "baker2025/s4_3_ablations"
PATTERN = "baker2025.fig7.ablation_corr"
NUMBERS = "baker2025v3.ablation_corr"
PAIR = "susceptibility-ablation"
WITH_LOSS = "susceptibility-loss"
HEADS = ("0:0", "1:2")
SUBSETS = ("github", "dm_mathematics")
# Set before any correlation was seen: less than 1 % of the variance shared.
BOUND = 0.1


@dataclass(frozen=True)
class Tables:
    """The rows that the claims are about.

    Attributes:
        correlations: Pearson r of susceptibility with ablation delta and with loss.
        ceilings: the largest that noise allows.
        domains: the corpus manifest's entries by name.
        roles: head -> role.
    """

    correlations: pl.DataFrame
    ceilings: pl.DataFrame
    domains: Mapping[str, Any]
    roles: Mapping[str, str]

    def estimates(
        self, form: str, control: bool = False, pair: str = PAIR
    ) -> dict[tuple[str, str], Estimate]:
        """(head, probe) -> r, where it is defined."""
        rows = self.correlations.filter(
            (pl.col("pair") == pair)
            & (pl.col("form") == form)
            & (pl.col("control") == control)
            & pl.col("value").is_not_null()
            & pl.col("se").is_not_null()
        )
        return {
            (r["head"], r["probe"]): Estimate(r["value"], r["se"], r["df"])
            for r in rows.iter_rows(named=True)
        }

    def noise(self, form: str, column: str, control: bool = False) -> dict[str, float]:
        """Head -> a column of the ceilings; 0 where it is undefined."""
        rows = self.ceilings.filter((pl.col("form") == form) & (pl.col("control") == control))
        return {r["head"]: r[column] or 0.0 for r in rows.iter_rows(named=True)}


def pairs(tables: Tables) -> dict[str, tuple[str, str]] | str:
    """Name -> (head, probe) of the four pairs of Figure 7, or why there are not four."""
    found = {}
    for head in HEADS:
        for subset in SUBSETS:
            place = place_of(subset, tables.domains)
            if place is None:
                return absent(subset)
            if (head, place.probe) not in tables.estimates("chi"):
                return f"no correlation of head {head} on {place}"
            found[f"{head} on {place}"] = (head, place.probe)
    return found


def conditions(names: Mapping[str, Any]) -> list[Condition]:
    return [c for n in names for c in (Condition(n, ">", -BOUND), Condition(n, "<", BOUND))]


def find(tables: Tables, form: str, control: bool = False) -> Finding:
    """The claim on one form: all four correlations negligible."""
    wanted = pairs(tables)
    if isinstance(wanted, str):
        return Finding(None, None, 0, None, note=f"Not tested: {wanted}.")
    known = tables.estimates(form, control)
    if any(key not in known for key in wanted.values()):
        return Finding(None, None, 0, None, note="Not tested: a correlation is undefined.")
    estimates = {name: known[key] for name, key in wanted.items()}
    ceiling = tables.noise(form, "ceiling", control)
    bounds = conditions(estimates)
    verdict = decide(estimates, bounds)
    if verdict and not all(
        max(abs(end) for end in estimates[name].interval()) < BOUND * ceiling[head]
        for name, (head, _) in wanted.items()
    ):
        verdict = None
    largest = max(estimates.values(), key=lambda e: abs(e.value))
    tokens = dict(tables.correlations.select("probe", "tokens").unique().iter_rows())
    spelled = "; ".join(
        f"{n} {e.value:.3f} ± {e.se:.3f} (noise allows {ceiling[wanted[n][0]]:.2f})"
        for n, e in estimates.items()
    )
    values = {n: e.value for n, e in estimates.items()}
    return Finding(
        largest.value,
        largest.se,
        sum(tokens[p] for p in {key[1] for key in wanted.values()}),
        verdict,
        met(values, bounds),
        f"{spelled}.",
    )


def overall(tables: Tables, form: str, control: bool = False, pair: str = PAIR) -> str:
    """How many heads and domains have a correlation beyond the bound, and the largest."""
    found = {
        key: e
        for key, e in tables.estimates(form, control, pair).items()
        if key[1] != CONTROL_PROBE
    }
    if not found:
        return "undefined"
    ends = [e.interval() for e in found.values()]
    beyond = sum(low > BOUND or high < -BOUND for low, high in ends)
    (head, probe), most = max(found.items(), key=lambda item: abs(item[1].value))
    return f"{beyond} of {len(found)}, largest {most.value:.2f} ± {most.se:.2f} ({head}, {probe})"


def everywhere(tables: Tables) -> str:
    """The same over all heads and domains: chi, its parts, the control, and with the loss."""
    spelled = [f"{NAMES[form]} {overall(tables, form)}" for form in FORMS]
    if tables.correlations["control"].any():
        spelled.append(f"n_beta = 0 control {overall(tables, 'chi', control=True)}")
    spelled.append(f"published form with the loss {overall(tables, 'chi', pair=WITH_LOSS)}")
    return f"Beyond ±{BOUND} by their interval, of all heads and domains: {'; '.join(spelled)}."


def cautions(tables: Tables) -> list[str]:
    """Warnings that belong to both claims."""
    wanted = pairs(tables)
    if isinstance(wanted, str):
        return []
    measured = tables.noise("chi", "measured")
    without = tables.estimates("chi", control=True)
    control = [
        f"{without[k].value:.3f} ± {without[k].se:.3f}" for k in wanted.values() if k in without
    ]
    roles = " and ".join(f"{head} ({tables.roles.get(head, 'role unknown')})" for head in HEADS)
    return [
        f"Heads by the paper's labels, here {roles}; heads of one label need not correspond "
        "between models.",
        *([f"The same without any loss (n_beta = 0): {', '.join(control)}."] if control else []),
        everywhere(tables),
        *guards(find(tables, "chi", control=True).met, min(measured[h] for h in HEADS)),
    ]


def turned(finding: Finding, factor: float) -> Finding:
    """The finding with the convention's factor, of which a correlation keeps the sign alone."""
    if finding.value is None or factor > 0:
        return finding
    return replace(finding, value=-finding.value)


def carriers(found: Mapping[str, Finding]) -> str:
    """Parts that have the claim by themselves; where chi fails, those that fail too."""
    if found["chi"].holds is not False:
        return carried_by(found)
    names = [NAMES[part] for part in PARTS if found[part].holds is False]
    return f"fails by {', '.join(names) if names else 'no part alone'}"


def numbers(tables: Tables) -> dict[str, Any]:
    """The four correlations as published, in the order of the published list."""
    statistic = (
        f"Pearson r of susceptibility and ablation delta over all tokens; {HEADS[0]} on "
        f"{SUBSETS[0]} and {SUBSETS[1]}, then {HEADS[1]} on both, or on what stands in for them"
    )
    blank = {"statistic": statistic, "bound": "", "carried_by": ""}
    wanted = pairs(tables)
    if isinstance(wanted, str):
        return {"value": None, "se": None, "n": 0, "note": f"Not measured: {wanted}.", **blank}
    found = {form: tables.estimates(form) for form in FORMS}
    four = [found["chi"][key] for key in wanted.values()]
    parts = "; ".join(
        f"{NAMES[form]} "
        + ", ".join(
            f"{found[form][key].value:.3f}" if key in found[form] else "undefined"
            for key in wanted.values()
        )
        for form in FORMS[1:]
    )
    return {
        "value": [e.value for e in four],
        "se": [e.se for e in four],
        "n": find(tables, "chi").n,
        "note": f"Parts: {parts}.",
        **blank,
    }


def claims(tables: Tables, n_beta: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Entries of measured.json and rows of sensitivity.parquet."""
    found = {form: find(tables, form) for form in FORMS}
    measured = {
        PATTERN: entry(
            found,
            "Pearson r of susceptibility and ablation delta over all tokens, the largest by size "
            f"of {' and '.join(HEADS)} on {' and '.join(SUBSETS)} or what stands in for them",
            f"|r| < {BOUND} for all four, the 95 % intervals inside it; also after division by "
            "the square root of the reliability",
            cautions(tables),
            carried=carriers(found),
        ),
        NUMBERS: numbers(tables),
    }
    rows = sensitivity_rows(
        PATTERN, {c.name: turned(found[c.form], c.factor) for c in conventions(n_beta)}
    )
    return measured, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    correlations = pl.read_parquet(results / FOLDER / "correlations.parquet")
    tables = Tables(
        correlations.filter(pl.col("statistic") == "pearson", pl.col("form").is_not_null()),
        pl.read_parquet(results / FOLDER / "ceilings.parquet"),
        read_json(results / "tokens" / "manifest.json")["domains"],
        dict(zip(final["head"], final["role"], strict=True)),
    )
    settings = read_json(results / "config.json")["two_layer"]["per_token"]
    measured, rows = claims(tables, settings["sampler"]["n_beta"])
    with atomic_path(results / FOLDER / "sensitivity.parquet") as path:
        pl.DataFrame(rows, schema=SENSITIVITY_SCHEMA).write_parquet(path)
    write_json(results / FOLDER / "measured.json", measured)
    for claim, found in measured.items():
        print(f"{claim}: value {found['value']}, holds {found.get('holds')}")


if __name__ == "__main__":
    run(main)
