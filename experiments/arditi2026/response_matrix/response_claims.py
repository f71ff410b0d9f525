"""What the papers claim of the response matrix, measured: measured.json, sensitivity.parquet.

Numbers are shares of variance. A pattern is a set of quantities with a stated bound each: it
holds when the 95 % interval (Student t, over chains and contexts) of every quantity lies within
its bound, fails when one lies beyond, and is undecided otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import induction
import meaning
import numpy as np
import polars as pl

from response_matrix import FOLDER, roles_of, sources
from susceptibilities.categories import category_table
from susceptibilities.console import run
from susceptibilities.cubes import FORMS, PARTS
from susceptibilities.findings import (
    NAMES,
    SENSITIVITY_SCHEMA,
    Finding,
    conventions,
    entry,
    guards,
    sensitivity_rows,
)
from susceptibilities.jackknife import Array, Estimate, decide, met
from susceptibilities.per_token import ABLATION, RELIABILITY, PerToken, folder_of
from susceptibilities.response_matrix import Response, measure_pca, part_shares, response_of
from susceptibilities.store import atomic_path, read_json, write_json
from susceptibilities.token_errors import measure_array

COMPARED = 3  # components whose shares are published
POOLED = ("baker2025v2.pca_pooled", "arditi2026.pca")
LAYERS = {"baker2025v3.pca_layer0": 0, "baker2025v3.pca_layer1": 1}
MEANING = "arditi2026.pc_meaning"
INDUCTION = "arditi2026.induction_sign"
CENTERED = "columns centered, not standardized"
WITH_MIXTURE = "with the tokens of the training distribution"


@dataclass(frozen=True)
class Shares:
    """Shares of the first components with errors, and the tokens that they were measured on."""

    value: list[float]
    se: list[float]
    n: int

    @property
    def first(self) -> Finding:
        return Finding(self.value[0], self.se[0], self.n, None)

    def __str__(self) -> str:
        # Without the error where it is rounding alone.
        return ", ".join(
            f"{v:.3f} ± {s:.1g}" if s > 1e-12 else f"{v:.3g}"
            for v, s in zip(np.round(self.value, 12), self.se, strict=True)
        )


def shares(response: Response, form: str, standardize: bool = True) -> Shares:
    """Shares of the first components of one form; they do not depend on a factor."""
    values = response.value[form]
    found = measure_pca(values, response.replicates[form], response.blocks, standardize)
    return Shares(
        found.pca.share[:COMPARED].tolist(), found.share_se[:COMPARED].tolist(), values.shape[1]
    )


def shares_claim(
    response: Response, whole: Response, control: Response | None, reliability: float | None
) -> tuple[dict[str, Any], dict[str, Finding]]:
    """Entry of measured.json for a list of shares, and PC1's share by convention.

    Args:
        response: of the heads and tokens that the claim is about; ``whole`` the same heads with
            the control probe's tokens too.
    """
    if len(response.heads) < COMPARED:
        note = f"needs {COMPARED} heads, found {len(response.heads)}"
        return {"n": 0, "note": note}, {}
    found = {form: shares(response, form) for form in FORMS}
    chi = found["chi"]
    pca = measure_pca(
        response.value["chi"], response.replicates["chi"], response.blocks, anchors=None
    ).pca
    made = {
        part: float(part_shares(pca, response.value["chi"], response.value[part])[1])
        for part in PARTS
    }
    notes = ["Columns standardized: an assumption, the text does not say."]
    if control is not None:
        notes.append(f"n_beta = 0 control: {shares(control, 'chi')}.")
    notes += guards(None, reliability)
    # Last, as in the notes of the other sections.
    notes.append(f"Parts: {'; '.join(f'{NAMES[part]} {found[part]}' for part in PARTS)}.")
    largest = max(made, key=lambda part: abs(made[part]))
    measured = {
        "value": chi.value,
        "se": chi.se,
        "n": chi.n,
        "note": " ".join(notes),
        "statistic": "shares of variance of PC1 to PC3 of the tokens x heads matrix",
        "bound": "",
        "carried_by": f"{NAMES[largest]} ({100 * made[largest]:.1f} % of the variance of PC1)",
    }
    rows = {c.name: found[c.form].first for c in conventions(1.0)}
    rows[CENTERED] = shares(response, "chi", standardize=False).first
    rows[WITH_MIXTURE] = shares(whole, "chi").first
    return measured, rows


def meaning_claim(
    response: Response,
    control: Response | None,
    roles: Mapping[str, str],
    categories: pl.DataFrame,
    domains: Mapping[str, Any],
    n_beta: float,
    reliability: float | None,
) -> tuple[dict[str, Any], dict[str, Finding]]:
    """Entry for what the components mean, and findings by convention."""

    def of(own: Response) -> meaning.Meaning:
        chosen = categories[own.rows]
        ends, starts = (chosen[name].to_numpy() for name in ("word_end", "word_start"))
        return meaning.Meaning.of(own, roles, ends, starts, domains)

    if len(response.heads) < COMPARED:
        return {"n": 0, "note": f"needs {COMPARED} heads, found {len(response.heads)}"}, {}
    mine = of(response)
    variants = conventions(n_beta)
    # Of the parts more components are searched; of a factor only the sign matters.
    results = {
        (form, sign): meaning.results(mine, form, sign, meaning.SEARCHED)
        for form, sign in sorted(
            {(form, 1.0) for form in FORMS} | {(c.form, float(np.sign(c.factor))) for c in variants}
        )
    }
    done = {key: meaning.finding(mine, found) for key, found in results.items()}
    caution = None
    if control is not None:
        own = of(control)
        caution = meaning.finding(own, meaning.results(own, "chi")).met
    measured = entry(
        {form: done[form, 1.0] for form in FORMS},
        "PC1's cosine to the uniform vector (1: all heads load alike), with the quantities of "
        "the note for all three components; roles are this model's own",
        meaning.bound(mine.tests),
        guards(caution, reliability),
        carried=meaning.carriers(mine, {part: results[part, 1.0] for part in PARTS}),
    )
    return measured, {c.name: done[c.form, float(np.sign(c.factor))] for c in variants}


def induction_claim(
    data: PerToken,
    control: PerToken | None,
    cases: list[induction.Case],
    n_beta: float,
    reliability: Mapping[str, float],
) -> tuple[dict[str, Any], dict[str, Finding], pl.DataFrame]:
    """Entry for the sign of the induction heads, findings by convention, and all quantities.

    Where there are several heads, the statistic is that of the one that it holds for least.
    """
    response, other = response_of(data), response_of(control) if control else None
    table = []

    def estimates(own: Response, case: induction.Case, form: str) -> dict[str, Estimate]:
        place = own.heads.index(case.head)

        def statistic(values: Array, keep: np.ndarray) -> Array:
            return induction.quantities(case, values, keep)

        value, se = measure_array(
            statistic, own.value[form][place], own.replicates[form][:, place], own.blocks
        )
        return {
            name: Estimate(float(v), float(s), own.df)
            for name, v, s in zip(induction.QUANTITIES, value, se, strict=True)
        }

    def finding(own: Response, form: str, factor: float, source: str = "run") -> Finding:
        found = {case.head: estimates(own, case, form) for case in cases}
        if factor == 1.0:
            for case in cases:
                for name, e in found[case.head].items():
                    low, high = e.interval()
                    table.append(
                        {
                            "source": source,
                            "head": case.head,
                            "form": form,
                            "quantity": name,
                            "value": e.value,
                            "se": e.se,
                            "low": low,
                            "high": high,
                            "n": int(case.predicted.sum()),
                        }
                    )
        # The statistic is in standard deviations: of a factor only the sign remains.
        sign = float(np.sign(factor))
        turned = {
            head: {q: Estimate(sign * e.value, e.se, e.df) for q, e in quantities.items()}
            for head, quantities in found.items()
        }
        head = max(turned, key=lambda name: turned[name][induction.DIFFERENCE].value)
        values = {q: e.value for q, e in turned[head].items()}
        chosen = turned[head][induction.DIFFERENCE]
        spelled = "; ".join(f"{q} {e.value:.2f} ± {e.se:.1g}" for q, e in turned[head].items())
        n = next(int(case.predicted.sum()) for case in cases if case.head == head)
        defined = not np.isnan(list(values.values())).any()
        return Finding(
            chosen.value if defined else None,
            chosen.se if defined else None,
            n,
            decide(turned[head], induction.CONDITIONS) if defined else None,
            met(values, induction.CONDITIONS) if defined else None,
            f"{head}: {spelled}.",
        )

    variants = conventions(n_beta)
    done = {
        key: finding(response, *key)
        for key in sorted({(form, 1.0) for form in FORMS} | {(c.form, c.factor) for c in variants})
    }
    caution = None
    if other is not None:
        caution = {form: finding(other, form, 1.0, "control") for form in FORMS}["chi"].met
    worst = min((reliability.get(case.head, float("nan")) for case in cases), default=None)
    measured = entry(
        {form: done[form, 1.0] for form in FORMS},
        "mean of chi of the induction head over the tokens that it predicts (they complete a "
        "bigram seen before, and zero-ablating the head raises their loss), minus that of tokens "
        "that complete none, matched by predicted token and domain, in standard deviations of "
        "chi over all tokens",
        "; ".join(map(str, induction.CONDITIONS)),
        guards(caution, worst),
    )
    return measured, {c.name: done[c.form, c.factor] for c in variants}, pl.DataFrame(table)


def cases_of(
    data: PerToken, response: Response, results: Path, roles: Mapping[str, str], pattern: np.ndarray
) -> list[induction.Case]:
    """One case an induction head, on the tokens of the response."""
    deltas = pl.read_parquet(folder_of(results, data.step) / ABLATION)[response.rows]
    tokens = data.tokens[response.rows]
    return [
        induction.case(
            head,
            pattern[response.rows],
            deltas[head].to_numpy(),
            tokens["token"].to_numpy(),
            response.probes,
            tokens["loss"].to_numpy(),
        )
        for head in response.heads
        if roles.get(head) == "induction"
    ]


def reliabilities(results: Path, step: int) -> dict[str, float]:
    """Reliability of chi between halves of the chains, by component."""
    table = pl.read_parquet(folder_of(results, step) / RELIABILITY)
    half = table.filter((pl.col("form") == "chi") & (pl.col("chains") == pl.col("chains").max()))
    return dict(zip(half["component"], half["reliability"], strict=True))


def mean_of(values: Mapping[str, float], heads: tuple[str, ...]) -> float:
    return float(np.mean([values[head] for head in heads]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    found = sources(results)
    data, control = found["run"], found.get("control")
    roles = roles_of(results)
    categories = category_table(data, results)
    domains = read_json(results / "tokens" / "manifest.json")["domains"]
    response, whole = response_of(data), response_of(data, control_probe=True)
    without_loss = response_of(control) if control else None
    reliability = reliabilities(results, data.step)
    overall = mean_of(reliability, response.heads)

    measured: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []

    def add(claim: str, item: dict[str, Any], variants: Mapping[str, Finding]) -> None:
        measured[claim] = item
        rows.extend(sensitivity_rows(claim, variants))

    pooled = shares_claim(response, whole, without_loss, overall)
    for claim in POOLED:
        add(claim, *pooled)
    for claim, number in LAYERS.items():
        layers = [own.layer(number) if own else None for own in (response, whole, without_loss)]
        mine, all_tokens, other = layers
        assert mine is not None and all_tokens is not None
        add(claim, *shares_claim(mine, all_tokens, other, mean_of(reliability, mine.heads)))
    add(
        MEANING,
        *meaning_claim(response, without_loss, roles, categories, domains, data.n_beta, overall),
    )
    pattern = categories["induction"].to_numpy()
    cases = cases_of(data, response, results, roles, pattern)
    table = pl.DataFrame(schema=induction.SCHEMA)
    if cases:
        item, variants, table = induction_claim(data, control, cases, data.n_beta, reliability)
        add(INDUCTION, item, variants)
    else:
        measured[INDUCTION] = {"n": 0, "note": "Not tested: the model has no induction head."}
    with atomic_path(results / FOLDER / "induction.parquet") as path:
        table.write_parquet(path)
    with atomic_path(results / FOLDER / "sensitivity.parquet") as path:
        pl.DataFrame(rows, schema=SENSITIVITY_SCHEMA).write_parquet(path)
    write_json(results / FOLDER / "measured.json", measured)
    for claim, item in measured.items():
        print(f"{claim}: value {item.get('value')}, holds {item.get('holds')}")


if __name__ == "__main__":
    run(main)
