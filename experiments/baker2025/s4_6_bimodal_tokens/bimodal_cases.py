"""The paper's bimodal tokens (4.6, G.1, G.2), measured: tables of the figures, and the claims.

Writes cases.parquet (a row for each case, form and control), case_values.parquet (occurrences,
for the histograms), measured.json and sensitivity.parquet.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from bimodal_search import FOLDER, load_control
from case_findings import (
    BOUND,
    QUANTITIES,
    Measurement,
    finding,
    kinds_sentence,
    measured,
    row,
    where,
)
from mode_statistics import Sample, gap_shares
from numpy.typing import NDArray
from paper_cases import CASES, Found, locate, sample_of

from susceptibilities.bimodality import halves, holm
from susceptibilities.console import run
from susceptibilities.cubes import FORMS
from susceptibilities.findings import (
    NAMES,
    SENSITIVITY_SCHEMA,
    Finding,
    conventions,
    entry,
    guards,
    sensitivity_rows,
)
from susceptibilities.jackknife import Estimate
from susceptibilities.mixture import two_modes
from susceptibilities.occurrences import NO_URL, PART, URL, Texts
from susceptibilities.per_token import RELIABILITY, PerToken, folder_of, load_per_token
from susceptibilities.store import atomic_path, read_json, write_json
from susceptibilities.token_errors import context_blocks, measure
from susceptibilities.visible import visible

CLAIMS = {
    "baker2025.fig11.to_arxiv": "to_arxiv",
    "baker2025.fig11.slash_hackernews": "slash_hackernews",
}
EXAMPLES = "baker2025.s46.examples"
# What the five quoted numbers are of: case, kind of context, and the paper's words.
QUOTED = (
    ("slash_hackernews", URL, "URL slash (4.10)"),
    ("slash_hackernews", URL, "URL slash (2.35)"),
    ("slash_hackernews", NO_URL, "other slash (-2.76)"),
    ("slash_hackernews", NO_URL, "other slash (-3.61)"),
    ("to_github", PART, "`to` within an identifier (-2.17)"),
)

CASES_SCHEMA = {
    "case": pl.String,
    "word": pl.String,
    "component": pl.String,
    "subset": pl.String,
    "probe": pl.String,
    "place": pl.String,
    "spelled": pl.String,
    "reason": pl.String,
    "high": pl.String,
    "low": pl.String,
    "form": pl.String,
    "control": pl.Boolean,
    **dict.fromkeys(("count", "contexts"), pl.Int64),
    **dict.fromkeys(("effective", "dip", "p", "p_adjusted", "mean", "deviation"), pl.Float64),
    **{f"{name}{end}": pl.Float64 for name in QUANTITIES for end in ("", "_se")},
}
VALUES_SCHEMA = {
    "case": pl.String,
    "index": pl.Int64,
    "kind": pl.String,
    **dict.fromkeys((*FORMS, "control"), pl.Float64),
}
Key = tuple[str, float]  # form, factor


@dataclass(frozen=True)
class Run:
    """What the cases are measured on."""

    data: PerToken
    control: PerToken | None
    blocks: NDArray[np.int64]
    domains: Mapping[str, Any]
    roles: Mapping[str, str]
    reliability: pl.DataFrame

    def reliability_of(self, head: str) -> float | None:
        """Of chi of a head, between halves of the chains."""
        rows = self.reliability.filter(
            (pl.col("component") == head) & (pl.col("form") == "chi")
        ).sort("chains")
        return float(rows["reliability"][-1]) if len(rows) else None


def measure_all(
    found: Sequence[Found], data: PerToken, blocks: NDArray[np.int64], form: str, factor: float
) -> dict[str, tuple[Measurement | None, float | None]]:
    """Every case on one form: its measurement, and the p-value corrected over the cases that the
    paper calls bimodal and this run has (other cases: uncorrected)."""
    results = {
        f.case.name: measured(f, sample_of(f, data, blocks, factor), form) if f.enough else None
        for f in found
    }
    family = [f.case.name for f in found if f.judged and f.case.tested and results[f.case.name]]
    raw = {name: m.test.p for name, m in results.items() if m is not None}
    corrected = dict(zip(family, holm([raw[name] for name in family]).tolist(), strict=True))
    return {name: (m, corrected.get(name, raw.get(name))) for name, m in results.items()}


def tables(found: Sequence[Found], run: Run) -> dict[str, pl.DataFrame]:
    """cases and case_values."""
    rows, values = [], []
    for data, control in ((run.data, False), (run.control, True)):
        if data is None:
            continue
        for form in FORMS:
            every = measure_all(found, data, run.blocks, form, 1.0)
            for f in found:
                measurement, p = every[f.case.name]
                rows.append(
                    {
                        "case": f.case.name,
                        "word": f.case.word,
                        "component": f.case.head,
                        "subset": f.case.subset,
                        "probe": f.probe,
                        "place": f.place,
                        "spelled": " ".join(f.spelled),
                        "reason": f.reason,
                        "high": f.case.high,
                        "low": f.case.low,
                        "form": form,
                        "control": control,
                        "p_adjusted": p,
                        **(row(measurement) if measurement else {}),
                    }
                )
    for f in found:
        if not f.enough:
            continue
        sample = sample_of(f, run.data, run.blocks)
        control_values = (
            None if run.control is None else sample_of(f, run.control, run.blocks).values["chi"]
        )
        frame = pl.DataFrame({"index": f.indices, "kind": f.kinds, **sample.values})
        values.append(
            frame.with_columns(
                case=pl.lit(f.case.name),
                control=pl.Series(control_values, dtype=pl.Float64)
                if control_values is not None
                else pl.lit(None, pl.Float64),
            ).select(*VALUES_SCHEMA)
        )
    return {
        "cases": pl.DataFrame(
            [{name: r.get(name) for name in CASES_SCHEMA} for r in rows], schema=CASES_SCHEMA
        ),
        "case_values": pl.concat(values) if values else pl.DataFrame(schema=VALUES_SCHEMA),
    }


def untested(found: Found, note: str) -> dict[str, Finding]:
    """Findings of a case that this run has no text for."""
    named = f"‘{visible(found.case.word)}’, head {found.case.head}: not tested, {found.reason}."
    return {"chi": Finding(None, None, 0, None, note=" ".join(filter(None, (named, note))))}


def gap_sentence(found: Found, sample: Sample) -> str:
    """Which part of chi the modes are in."""
    modes = two_modes(sample.values["chi"])
    split = halves(sample.values["chi"], sample.replicates["chi"], modes)
    shares = gap_shares(sample, split)
    spelled = ", ".join(f"{NAMES[part]} {share:.2f}" for part, share in shares.items())
    return (
        "Of the gap between the modes of chi, in chains that did not assign occurrences to them: "
        f"{spelled}."
    )


def notes_of(found: Found, run: Run, control: bool | None) -> list[str]:
    """What belongs to every verdict on a case."""
    head = found.case.head
    role = run.roles.get(head)
    notes = [
        f"Token {' or '.join(found.spelled)}, {where(found)}: {kinds_sentence(found)}.",
        gap_sentence(found, sample_of(found, run.data, run.blocks)),
    ]
    if role:
        notes.append(f"{head} is the paper's name of the head; in this model its role is {role}.")
    return notes + guards(control, run.reliability_of(head))


def claim(
    found: Sequence[Found], name: str, run: Run, done: Mapping[Key, Mapping[str, Any]]
) -> tuple[dict[Key, Finding], list[str]]:
    """Findings of one case by form and factor, and the notes to go with them."""
    mine = next(f for f in found if f.case.name == name)
    if not mine.judged:
        return {}, []
    findings = {key: finding(mine, *every[name]) for key, every in done.items()}
    caution = None
    if run.control is not None:
        every = measure_all(found, run.control, run.blocks, "chi", 1.0)
        caution = finding(mine, *every[name]).met
    return findings, notes_of(mine, run, caution)


def other_domain(found: Found, run: Run) -> str:
    """What the same token and head show where the paper's subset is absent."""
    if found.place != "other":
        return ""
    measurement, p = measure_all([found], run.data, run.blocks, "chi", 1.0)[found.case.name]
    about = finding(found, measurement, p)
    return (
        f"In {found.probe}, which does not stand in for {found.case.subset} "
        f"({kinds_sentence(found)}): {about.note}"
    )


def median_of(found: Found, run: Run, kind: str, form: str, factor: float) -> Estimate | None:
    """Median susceptibility of the occurrences of one kind."""
    chosen = found.is_kind(kind)
    if not found.judged or not chosen.any():
        return None
    sample = sample_of(found, run.data, run.blocks, factor)

    def statistic(values: NDArray[np.float64], keep: NDArray[np.bool_]) -> float:
        return float(np.median(values[keep & chosen])) if (keep & chosen).any() else np.nan

    return measure(statistic, sample.values[form], sample.replicates[form], sample.blocks)


def examples(found: Sequence[Found], run: Run, form: str, factor: float) -> dict[str, Any]:
    """The counterpart of the quoted values: medians over the contexts of their kind."""
    by_name = {f.case.name: f for f in found}
    estimates = [median_of(by_name[c], run, kind, form, factor) for c, kind, _ in QUOTED]
    spelled = "; ".join(
        f"{what}: {e.value:.3g} ± {e.se:.2g}" if e else f"{what}: none"
        for e, (_, _, what) in zip(estimates, QUOTED, strict=True)
    )
    mine = [by_name[case] for case in dict.fromkeys(case for case, _, _ in QUOTED)]
    reasons = [f"‘{f.case.word}’ on {f.case.subset}, {f.reason}" for f in mine if f.reason]
    counted = {(case, kind): int(by_name[case].is_kind(kind).sum()) for case, kind, _ in QUOTED}
    known = [e for e in estimates if e is not None]
    complete = len(known) == len(QUOTED)
    return {
        "value": [e.value for e in known] if complete else None,
        "se": [e.se for e in known]
        if complete and np.isfinite([e.se for e in known]).all()
        else None,
        "n": sum(counted.values()) if complete else 0,
        "note": f"Medians over contexts of the kind, {NAMES[form]}: {spelled}."
        + (f" Not tested: {'; '.join(reasons)}." if reasons else ""),
    }


def claims(found: Sequence[Found], run: Run) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Entries of measured.json and rows of sensitivity.parquet."""
    variants = conventions(run.data.n_beta)
    wanted = {(form, 1.0) for form in FORMS} | {(c.form, c.factor) for c in variants}
    done = {
        (form, factor): measure_all(found, run.data, run.blocks, form, factor)
        for form, factor in sorted(wanted)
    }
    by_name = {f.case.name: f for f in found}
    result: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name, case in CLAIMS.items():
        findings, notes = claim(found, case, run, done)
        here = by_name[case]
        statistic = (
            f"AUC of `{here.case.word}`, head {here.case.head}: the chance that an occurrence "
            f"of kind '{here.case.high}' has a larger chi than one of kind '{here.case.low}'"
        )
        if not findings:
            missing = untested(here, other_domain(here, run))
            result[name] = entry(missing, statistic, BOUND, guards(None, None))
            rows += sensitivity_rows(name, {c.name: missing["chi"] for c in variants})
            continue
        by_form = {form: findings[form, 1.0] for form in FORMS}
        result[name] = entry(by_form, statistic, BOUND, notes)
        rows += sensitivity_rows(name, {c.name: findings[c.form, c.factor] for c in variants})
    whole = examples(found, run, "chi", 1.0)
    result[EXAMPLES] = whole | {
        "statistic": "median per-token susceptibility (nats squared) of the occurrences of the "
        "kind of each quoted example",
        "bound": "",
        "carried_by": "",
    }
    for variant in variants:
        about = examples(found, run, variant.form, variant.factor)
        first = about["value"][0] if about["value"] else None
        error = about["se"][0] if about["se"] else None
        rows += sensitivity_rows(EXAMPLES, {variant.name: Finding(first, error, 0, None)})
    return result, rows


def load_run(results: Path) -> Run:
    data = load_per_token(results)
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    return Run(
        data,
        load_control(results, data),
        context_blocks(data.tokens),
        read_json(results / "tokens" / "manifest.json")["domains"],
        dict(zip(final["head"], final["role"], strict=True)),
        pl.read_parquet(folder_of(results, data.step) / RELIABILITY),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    run = load_run(results)
    texts = Texts(run.data, results)
    found = [locate(case, run.data, texts, run.domains) for case in CASES]
    for name, table in tables(found, run).items():
        with atomic_path(results / FOLDER / f"{name}.parquet") as path:
            table.write_parquet(path)
    measured_claims, rows = claims(found, run)
    with atomic_path(results / FOLDER / "sensitivity.parquet") as path:
        pl.DataFrame(rows, schema=SENSITIVITY_SCHEMA).write_parquet(path)
    write_json(results / FOLDER / "measured.json", measured_claims)
    for name, about in measured_claims.items():
        print(f"{name}: value {about['value']}, holds {about.get('holds')}")


if __name__ == "__main__":
    run(main)
