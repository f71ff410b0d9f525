"""The page's facts, which choose its sentences, and where each published pattern lives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from page_views import ALL, LABELS, PARTS, STANDARD, Tables, View, chosen, one, pair, side, table

from susceptibilities.claims import Published
from susceptibilities.findings import NAMES
from susceptibilities.report.numbers import format_measured, format_number

CAUTION = "Caution: the n_beta = 0 control"


def claims_view(measured: Mapping[str, tuple[str, Mapping[str, Any]]], papers: Published) -> View:
    """Every claim that was measured on the parts, with the part that carries it."""
    rows, absent = [], 0
    for name, (_, claim) in papers.claims().items():
        if name not in measured:
            continue
        _, entry = measured[name]
        if entry.get("n") == 0 or not entry.get("carried_by"):
            absent += entry.get("n") == 0
            continue
        verdict = "number"
        if claim.kind != "number":
            verdict = {True: "holds", False: "fails", None: "undecided"}[entry.get("holds")]
        note = entry.get("note", "")
        rows.append(
            {
                "id": name,
                "what": claim.what,
                "where": claim.where,
                "verdict": verdict,
                "value": "; ".join(format_measured(entry.get("value"), entry.get("se"))),
                "carried": entry["carried_by"],
                "parts": note.rpartition("Parts: ")[2].rstrip(".") if "Parts: " in note else "",
                "control": CAUTION in note,
            }
        )
    held = [row for row in rows if row["verdict"] == "holds"]
    return {
        "rows": rows,
        "absent": absent,
        "held": len(held),
        "held_by": [
            (LABELS[part], sum(NAMES[part] in row["carried"] for row in held)) for part in PARTS
        ],
        "alone": sum("no part alone" in row["carried"] for row in held),
        "cautioned": sum(row["control"] for row in held),
    }


def facts_view(tables: Tables, control: bool) -> View:
    """The facts that choose the sentences of the page."""
    standard = {"source": "run", "scope": ALL, "scaling": STANDARD}
    built = chosen(tables["construction"], **standard)
    share = one(built, quantity="PC1's share")
    made = one(chosen(tables["made_of"], **standard), part="rank_one", pc=1)
    heads = one(
        chosen(tables["uniform"], **standard),
        form="chi",
        quantity="mean correlation between heads",
    )
    half = chosen(tables["half"], source="run")
    chains = one(half, form="rank_one", group=half["group"][0])
    variance = chosen(tables["variance"], **standard)
    rest = one(variance, form="remainder", pc=1)
    sizes = {
        form: one(tables["sizes"], source="run", form=form, component=ALL)
        for form in ("chi", *PARTS)
    }
    largest = max(PARTS, key=lambda part: sizes[part]["value"])
    facts: View = {
        "share": pair(share),
        "share_percent": share["value"],
        "made": pair(made),
        "made_side": side(made, 0.5),
        "others_pc": {
            pc: {
                part: side(
                    one(chosen(tables["made_of"], **standard), part=part, pc=pc), 0.5
                )
                for part in PARTS
            }
            for pc in (2, 3)
            if chosen(tables["made_of"], **standard, pc=pc).height
        },
        "heads_agree": pair(heads),
        "chains_agree": format_number(chains["one_chain"], chains["se"]),
        "agree_more": heads["low"] > chains["high"],
        "rest_share": pair(rest, "share"),
        "rest_identified": rest["identified"],
        "rest_cosine": pair(
            one(chosen(tables["uniform"], **standard), form="remainder",
                quantity="cosine to the uniform vector")
        ),
        "largest": LABELS[largest],
        "ratios": [
            (LABELS[part], f"{sizes[part]['value'] / sizes['chi']['value']:.2g}")
            for part in PARTS
        ],
        "halves": [
            (LABELS[form], [(r["group"], r["statement"]) for r in
                            chosen(half, form=form).iter_rows(named=True)])
            for form in PARTS
        ],
    }  # fmt: skip
    if control:
        other = {**standard, "source": "control"}
        found = one(chosen(tables["construction"], **other), quantity="PC1's share")
        facts["control_share"] = pair(found)
        facts["control_high"] = found["low"] > 0.5
    return facts


def beside_view(tables: Tables) -> View:
    """How the run stands to its n_beta = 0 control."""
    found = tables["beside_control"]
    quantities = found["quantity"].unique(maintain_order=True).to_list()
    rows = [
        (LABELS[form], *(pair(one(found, form=form, quantity=q)) for q in quantities))
        for form in ("chi", *PARTS)
    ]
    correlation, ratio, deviations = (
        one(found, form="chi", quantity=quantity) for quantity in quantities
    )
    return {
        "chi": pair(correlation),
        "ratio": pair(ratio),
        "deviations": pair(deviations),
        "paired": deviations["value"] > 0.5,
        "alike": correlation["value"] - 3 * correlation["se"] > 0.9
        and abs(ratio["value"] - 1.0) < 0.1,
        "table": table(
            "The run beside its n_beta = 0 control, mean over heads. The last column says how far "
            "the chains of both drew the same random numbers",
            ("", *quantities),
            rows,
        ),
    }
