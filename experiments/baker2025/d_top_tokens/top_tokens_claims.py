"""What Appendix D and section 6 claim of tokens, measured: measured.json, sensitivity.parquet.

Also the tables that the claims rest on: ``table3`` and ``candidates`` (one token's occurrences,
and every token that could have been chosen) and ``polarity`` (means by category of token).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from one_token import (
    CONDITIONS,
    CV,
    DECADES,
    EXPLAINED,
    ROWS,
    Chosen,
    bounds_in_words,
    choose,
    constancy,
    constant_finding,
    decades,
    explained,
    occurrences,
    of_loss,
    others_in_words,
)
from token_polarity import (
    CLAIMED,
    CONTRAST,
    MEAN,
    category_masks,
    conditions,
    estimates,
    polarity_table,
)
from top_ranking import DISTINCT, FOLDER, Inputs, load_inputs

from susceptibilities.console import run
from susceptibilities.estimators import FORMS
from susceptibilities.findings import (
    SENSITIVITY_SCHEMA,
    Finding,
    conventions,
    entry,
    guards,
    sensitivity_rows,
)
from susceptibilities.jackknife import Estimate, decide, jackknife_se, met
from susceptibilities.per_token import RELIABILITY, folder_of
from susceptibilities.store import atomic_path, write_json
from susceptibilities.tokens import CONTROL_PROBE
from susceptibilities.visible import visible

Measured = dict[str, Any]


def spelled(estimate: Estimate, digits: int = 2) -> str:
    return f"{estimate.value:.{digits}g} ± {estimate.se:.1g}"


# ---- Appendix D: the lists ---------------------------------------------------


def agreement(overlap: pl.DataFrame, name: str, form: str, sign: int, column: str) -> Estimate:
    """Mean over heads and domains of a share of the top k, with its error over contexts."""
    rows = overlap.filter(
        (pl.col("run") == name)
        & (pl.col("form") == form)
        & (pl.col("sign") == sign)
        & (pl.col("probe") != CONTROL_PROBE)
    )
    whole = rows.filter(pl.col("left_out").is_null())[column].mean()
    left = rows.drop_nulls("left_out").group_by("left_out").agg(pl.col(column).mean())[column]
    assert isinstance(whole, float)
    return Estimate(whole, float(jackknife_se(left.to_numpy())), len(left) - 1)


def lists_in_words(lists: pl.DataFrame) -> str:
    """The tokens that most heads of a domain list, and how many different ones it has."""
    chosen = lists.filter(
        (pl.col("run") == "posterior")
        & (pl.col("form") == "chi")
        & (pl.col("sign") == 1)
        & (pl.col("probe") != CONTROL_PROBE)
    )
    heads = chosen["component"].n_unique()
    words = []
    for (probe,), rows in chosen.group_by(["probe"], maintain_order=True):
        most = Counter(rows.sort("rank", maintain_order=True)["text"]).most_common(DISTINCT)
        words.append(f"{probe} " + ", ".join(f"{visible(text)} {count}" for text, count in most))
    different = chosen.group_by("probe").agg(pl.col("token").n_unique())["token"].mean()
    return (
        f"Listed by most of the {heads} heads (number of heads): {'; '.join(words)}. "
        f"A domain's {heads} lists of {DISTINCT} hold {different:.1f} different tokens on average."
    )


def top_lists(overlap: pl.DataFrame, lists: pl.DataFrame, inputs: Inputs) -> tuple[Measured, list]:
    """appD.top_tokens: how much of the lists comes back from other chains."""
    variants = conventions(inputs.data.n_beta)
    n = len(inputs.data.heads) * len(inputs.probes)

    def found(form: str, sign: int = 1) -> Finding:
        share = agreement(overlap, "posterior", form, sign, "halves")
        return Finding(share.value, share.se, n, None)

    first = overlap.filter(pl.col("left_out").is_null()).row(0, named=True)
    negative = agreement(overlap, "posterior", "chi", -1, "halves")
    others = agreement(overlap, "posterior", "chi", 1, "heads")
    opposite = {form: agreement(overlap, "posterior", form, 1, "opposite") for form in FORMS}
    notes = [
        f"The lists are in table top_tokens. Here: share of the top {first['k']} of "
        f"{first['tokens']} tokens from one half of the chains that the other half has too; "
        f"{first['chance']:.2f} by chance, and {spelled(opposite['chi'])} are at the other half's "
        "opposite end (noise that differs in size between tokens puts as many there). "
        f"Negative: {spelled(negative)}. "
        f"One half of a head and the other half of another head share {spelled(others)}.",
    ]
    if inputs.control is not None:
        control = agreement(overlap, "posterior", "chi", 1, "control")
        own = agreement(overlap, "control", "chi", 1, "halves")
        notes.append(
            f"One half here and the other half of the n_beta = 0 control, which knows no loss, "
            f"share {spelled(control)}; the control's own halves {spelled(own)}."
        )
    same = ", ".join(
        f"{form.replace('_', '-')} {spelled(agreement(overlap, 'posterior', form, 1, 'chi'))}"
        for form in FORMS[1:]
    )
    notes.append(
        f"Share of chi's top {first['k']} that each part alone has, from all chains: {same}."
    )
    ends = ", ".join(f"{form.replace('_', '-')} {spelled(opposite[form])}" for form in FORMS[1:])
    notes.append(f"Of each part's own top, at the other half's opposite end: {ends}.")
    notes.append(lists_in_words(lists))
    measured = entry(
        {form: found(form) for form in FORMS},
        f"mean over heads and domains of the share of the top {first['k']} positive tokens on "
        "which halves of the chains agree; error over contexts",
        "",
        notes,
        kind="number",
    )
    rows = sensitivity_rows(
        "baker2025.appD.top_tokens",
        {c.name: found(c.form, -1 if c.factor < 0 else 1) for c in variants},
    )
    return measured, rows


# ---- Table 3: one token ------------------------------------------------------


def one_token(inputs: Inputs, chosen: Chosen) -> tuple[dict[str, Measured], list]:
    """tab3.consistency and tab3.rows."""
    names = ("baker2025.tab3.consistency", "baker2025.tab3.rows")
    if chosen.missing:
        untested = Finding(None, None, 0, None, note=f"Not tested: {chosen.missing}.")
        return {
            name: entry({"chi": untested}, CV, "none: not tested", kind=kind)
            for name, kind in zip(names, ("pattern", "number"), strict=True)
        }, []
    data, count = inputs.data, chosen.count
    loss = of_loss(data, chosen, decades(chosen.mask))
    loss_explained = of_loss(data, chosen, explained(data, chosen.probe))
    found = {form: constancy(data, chosen, form) for form in FORMS}
    chi = found["chi"]
    findings = {form: constant_finding(c, loss, count) for form, c in found.items()}
    table = occurrences(inputs, chosen)
    rows = table.head(ROWS)
    reach = np.log10(rows["loss"].to_numpy()).max() - np.log10(rows["loss"].to_numpy()).min()
    notes = [
        f"Token {visible(chosen.text)} on {chosen.probe}, head {chosen.head}: {chosen.rule}. "
        f"{DECADES.capitalize()}: {spelled(loss)}.",
        bounds_in_words(chi, loss),
        f"The errors over chains alone would give a coefficient of {chi.noise_cv:.2g}.",
        f"The {ROWS} rows of the table have a coefficient of {chi.rows_cv:.2g} and losses over "
        f"{reach:.1f} decades; "
        + (
            f"but they are the {ROWS} largest of {count}, and those of {count} normal values of "
            f"the same mean and spread have {chi.normal_rows_cv:.2g}: such rows lie close together "
            "by their choice. "
            if count > ROWS
            else "they are all there are. "
        )
        + "The token, too, was chosen for a large mean, which makes the coefficient smaller. "
        + others_in_words(chosen),
        f"{EXPLAINED} on {chosen.probe}: {spelled(chi.explained)}; of the loss "
        f"{spelled(loss_explained)}.",
    ]
    caution = None
    if inputs.control is not None:
        control = constancy(inputs.control, chosen, "chi")
        caution = constant_finding(control, loss, count).met
        notes.append(
            f"n_beta = 0 control: coefficient {spelled(control.cv)}, identity explains "
            f"{spelled(control.explained)}."
        )
    measured = {
        names[0]: entry(
            findings,
            f"{CV} of one token, and {DECADES}",
            "; ".join(str(c) for c in CONDITIONS),
            [*notes, *guards(caution, reliability(inputs, chosen.head))],
        )
    }
    values = rows.select("loss_before", "loss", "chi").to_numpy()
    errors = rows.select(a=pl.lit(0.0), b=pl.lit(0.0), se="se").to_numpy()
    measured[names[1]] = entry(
        {"chi": Finding(None, None, count, None)},
        "loss of the token before, loss of the token, chi, of the ten occurrences with the "
        "largest chi; the losses are exact, the error of chi is over chains",
        "",
        [f"Token {visible(chosen.text)} on {chosen.probe}, head {chosen.head}: {chosen.rule}."],
        kind="number",
    ) | {"value": values.tolist(), "se": errors.tolist()}
    variants = conventions(data.n_beta)
    # The coefficient of variation knows neither sign nor scale.
    return measured, sensitivity_rows(names[0], {c.name: findings[c.form] for c in variants})


# ---- section 6: kinds of tokens ----------------------------------------------


def polarity_finding(table: pl.DataFrame, name: str, form: str, factor: float = 1.0) -> Finding:
    """Verdict on one form: the mean over heads of every category has the claimed sign."""
    found = estimates(table, name, form, factor=factor)
    present = {category: sign for category, sign in CLAIMED.items() if category in found}
    n = int(table.filter(pl.col("category") == CONTRAST)["n"][0])
    if CONTRAST not in found:
        gone = [category for category in CLAIMED if category not in present]
        return Finding(None, None, 0, None, note=f"Not tested: too few tokens of {gone}.")
    wanted = conditions(present)
    values = {category: e.value for category, e in found.items()}
    words = "; ".join(
        f"{category.replace('_', ' ')} {spelled(found[category])}" for category in present
    )
    return Finding(
        found[CONTRAST].value,
        found[CONTRAST].se,
        n,
        decide(found, wanted),
        met(values, wanted),
        f"Means: {words}.",
    )


def heads_that_agree(table: pl.DataFrame, inputs: Inputs) -> str:
    """For how many heads each category's mean has the claimed sign, and beyond its error."""
    parts = []
    for category, sign in CLAIMED.items():
        agree = sure = 0
        for head in inputs.data.heads:
            found = estimates(table, "posterior", "chi", head)
            if category in found:
                low, high = found[category].interval()
                agree += sign * found[category].value > 0
                sure += (low if sign > 0 else -high) > 0
        parts.append(f"{category.replace('_', ' ')} {agree} ({sure})")
    return (
        f"Of {len(inputs.data.heads)} heads, with the claimed sign (beyond the 95 % error): "
        f"{', '.join(parts)}. The heads share the rank-one part, so they are no independent tests."
    )


def relative_means(table: pl.DataFrame) -> str:
    rows = table.filter(
        (pl.col("run") == "posterior") & (pl.col("form") == "chi") & (pl.col("component") == MEAN)
    )
    found = {row["category"]: row for row in rows.iter_rows(named=True)}
    words = [
        f"{category.replace('_', ' ')} {row['relative']:.2g} ± {row['relative_se']:.1g}"
        for category in CLAIMED
        if (row := found[category])["relative_se"] is not None
    ]
    return f"Relative to the mean over all tokens: {'; '.join(words)}." if words else ""


def signs(table: pl.DataFrame, inputs: Inputs) -> tuple[Measured, list]:
    """s6.polarity."""
    findings = {form: polarity_finding(table, "posterior", form) for form in FORMS}
    caution, notes = None, []
    if findings["chi"].n:
        notes = [relative_means(table), heads_that_agree(table, inputs)]
        if inputs.control is not None:
            control = polarity_finding(table, "control", "chi")
            caution = control.met
            notes.append(f"n_beta = 0 control: contrast {control.value:.2g}. {control.note}")
    measured = entry(
        findings,
        "mean chi of the positive kinds of tokens less that of the negative kinds, mean over heads "
        "in standard deviations over tokens; with the mean of every kind by itself",
        "; ".join(str(c) for c in conditions()),
        [*notes, *guards(caution, reliability(inputs))],
    )
    found = {
        c.name: polarity_finding(table, "posterior", c.form, c.factor)
        for c in conventions(inputs.data.n_beta)
    }
    return measured, sensitivity_rows("baker2025.s6.polarity", found)


def reliability(inputs: Inputs, head: str | None = None) -> float | None:
    """Of chi between halves of the chains: of one head, or the mean over heads."""
    path = folder_of(inputs.results, inputs.data.step) / RELIABILITY
    table = pl.read_parquet(path).filter(
        (pl.col("form") == "chi")
        & pl.col("component").is_in([head] if head else list(inputs.data.heads))
    )
    value = table.filter(pl.col("chains") == table["chains"].max())["reliability"].mean()
    return float(value) if isinstance(value, float) else None


def claims(
    inputs: Inputs, tables: Mapping[str, pl.DataFrame], chosen: Chosen
) -> tuple[dict[str, Measured], list[dict[str, Any]]]:
    """Entries of measured.json and rows of sensitivity.parquet."""
    lists, list_variants = top_lists(tables["overlap"], tables["lists"], inputs)
    constant, constant_variants = one_token(inputs, chosen)
    kinds, kind_variants = signs(tables["polarity"], inputs)
    measured = {
        "baker2025.appD.top_tokens": lists,
        **constant,
        "baker2025.s6.polarity": kinds,
    }
    return measured, [*list_variants, *constant_variants, *kind_variants]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    inputs = load_inputs(results)
    folder = results / FOLDER
    chosen = choose(inputs)
    tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in ("overlap", "lists")}
    tables["polarity"] = polarity_table(inputs, category_masks(inputs))
    tables["table3"] = occurrences(inputs, chosen)
    tables["candidates"] = chosen.candidates
    measured, rows = claims(inputs, tables, chosen)
    for name in ("polarity", "table3", "candidates"):
        with atomic_path(folder / f"{name}.parquet") as path:
            tables[name].write_parquet(path)
    with atomic_path(folder / "sensitivity.parquet") as path:
        pl.DataFrame(rows, schema=SENSITIVITY_SCHEMA).write_parquet(path)
    write_json(folder / "measured.json", measured)
    for claim, found in measured.items():
        print(f"{claim}: value {found['value']}, holds {found.get('holds')}")


if __name__ == "__main__":
    run(main)
