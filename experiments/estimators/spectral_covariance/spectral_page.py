"""The table and the page of the spectral estimate: saved tables as text.

Nothing is estimated here, and no number or verdict is written in the template: sentences are
chosen by what the tables say.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import polars as pl

from susceptibilities.console import run
from susceptibilities.markup import environment, write_text
from susceptibilities.render import cell, write_table
from susceptibilities.report.numbers import format_count, format_number
from susceptibilities.store import read_json

FOLDER = "estimators/spectral_covariance"
TEMPLATE = "spectral.html.jinja"
TABLES = (*("terms", "reliability", "cost", "agreement", "control", "departure", "scaling"),)
GIVEN, OTHER = "the run's L_n", "another L_n"
ESTIMATES = {
    "averaged": "spectral, averaged derivatives",
    "posterior": "spectral, derivatives at one point",
    "control": "control, n_beta = 0",
}

View = dict[str, Any]


def seconds(value: float) -> str:
    """1234.5 -> "1,200 s": two significant digits."""
    if not math.isfinite(value):
        return "no bound"
    places = 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{round(value, places):,.{max(0, places)}f} s"


def pair(value: float | None, se: float | None) -> str:
    """ "value ± se", or the value where there is no error."""
    if value is None or not math.isfinite(value):
        return ""
    return format_number(value, se if se is not None and math.isfinite(se) else None)


def row_of(table: pl.DataFrame, **values: str) -> View | None:
    """The row with these values, or None."""
    chosen = table.filter(pl.all_horizontal(pl.col(k) == v for k, v in values.items()))
    return chosen.row(0, named=True) if len(chosen) else None


def half(row: View) -> str:
    """Time for a reliability of one half with its interval, in words."""
    low, high = row["half_low"], row["half_high"]
    if not math.isfinite(row["half"]):
        return f"over {seconds(low)}" if math.isfinite(low) else "no signal"
    if not math.isfinite(low):
        return seconds(row["half"])
    top = f"to {seconds(high)}" if math.isfinite(high) else "or more"
    return f"{seconds(row['half'])} ({seconds(low)} {top})"


def headline_frame(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """One row a component: what a reliability of one half costs."""
    cost, rows = tables["cost"], []
    for name in cost["component"].unique(maintain_order=True):
        sampled = row_of(cost, component=name, estimator="sampling, from its agreement")
        size = row_of(cost, component=name, estimator="sampling, from the spectral size")
        one = row_of(cost, component=name, estimator="spectral", target=GIVEN)
        linear = row_of(cost, component=name, estimator="linear term alone")
        other = row_of(cost, component=name, estimator="spectral", target=OTHER)
        assert sampled and size and one and other
        fit = row_of(tables["agreement"], component=name, estimate="averaged") or row_of(
            tables["agreement"], component=name, estimate="posterior"
        )
        assert fit
        known = f", reliability {one['reliability']:.2f}" if one["reliability"] > 0 else ""
        rows.append(
            {
                "component": name,
                "sampled": half(sampled),
                "sampled_size": seconds(size["half"]),
                "spectral": f"{seconds(one['seconds'])}{known}",
                "linear": f"{seconds(linear['seconds'])}, {linear['reliability']:.0%}"
                if linear
                else "",
                "other": pair(other["reliability"], other["reliability_se"]),
                "other_half": half(other),
                "slope": pair(fit["slope"], fit["slope_se"]),
            }
        )
    return pl.DataFrame(rows)


def reliability_frame(table: pl.DataFrame) -> pl.DataFrame:
    """One row a component and term: sets of other documents, of the same source."""
    rows = []
    keys = ["component", "term"]
    for (component, term), part in table.group_by(keys, maintain_order=True):
        found = {}
        for row in part.iter_rows(named=True):
            found.setdefault(row["between"], []).append(pair(row["value"], row["se"]))
        if "chains" in found:
            continue
        other = found["sets of other documents"]
        rows.append(
            {
                "component": component,
                "term": term,
                "other": other[0],
                "halves": other[1],
                "same": found["sets of the same source"][0],
            }
        )
    return pl.DataFrame(rows)


def terms_frame(table: pl.DataFrame) -> pl.DataFrame:
    """The posterior's terms, with the spectrum."""
    chosen = table.filter(pl.col("run") == "posterior")
    rows = []
    for row in chosen.iter_rows(named=True):
        rows.append(
            {
                "component": row["component"],
                "linear": row["linear"],
                "quadratic": row["quadratic"],
                "rest": pair(row.get("rest"), row.get("rest_se")),
                "largest": row["largest"],
                "relative": f"{row['relative']:.1%}",
                "tail": f"{row['tail']:.0%}",
            }
        )
    return pl.DataFrame(rows)


def agreement_frame(table: pl.DataFrame) -> pl.DataFrame:
    """The sampled estimate on the spectral ones."""
    rows = []
    for row in table.iter_rows(named=True):
        rows.append(
            {
                "component": row["component"],
                "estimate": ESTIMATES[row["estimate"]],
                "slope": pair(row["slope"], row["slope_se"]),
                "correlation": pair(row["correlation"], row["correlation_se"]),
                "possible": row["possible"],
            }
        )
    return pl.DataFrame(rows)


def departure_frame(table: pl.DataFrame) -> pl.DataFrame:
    """How the terms change where the posterior goes, and the mean loss."""
    rows = []
    for row in table.iter_rows(named=True):
        entry = {"component": row["component"]}
        for term in ("linear", "quadratic"):
            if f"{term}_slope" in row:
                entry[f"{term}_slope"] = pair(row[f"{term}_slope"], row[f"{term}_slope_se"])
                entry[f"{term}_correlation"] = f"{row[f'{term}_correlation']:.2f}"
        if "curvature" in row:
            entry["curvature"] = f"{row['curvature']:.2f}"
        if "predicted" in row:
            entry["predicted"] = pair(row["predicted"], row["predicted_se"])
            entry["chains"] = pair(row["chains"], row["chains_se"])
        rows.append(entry)
    return pl.DataFrame(rows)


def scaling_frame(table: pl.DataFrame) -> pl.DataFrame:
    """Pythia models: hours by kind of component."""
    return table.select(
        "model",
        "kind",
        "components",
        "products",
        "evaluations",
        basis=pl.col("basis") / 1e9,
        product_hours=pl.col("product_hours"),
        evaluation_hours=pl.col("evaluation_hours"),
    )


LABELS = {
    "headline": {
        "component": "Component",
        "sampled": "Sampling, for 0.5: from the chains’ agreement",
        "sampled_size": "from the spectral size",
        "spectral": "Spectral, one pass",
        "linear": "its linear term alone",
        "other": "Reliability of a loss set on other documents",
        "other_half": "for 0.5",
        "slope": "Sampled on spectral, slope",
    },
    "reliability": {
        "component": "Component",
        "term": "Term",
        "other": "A set and one of other documents",
        "halves": "half of the sets and the other half",
        "same": "A set and one of the same source",
    },
    "terms": {
        "component": "Component",
        "linear": "Linear",
        "quadratic": "Pairs used",
        "rest": "Other pairs",
        "largest": "Largest eigenvalue",
        "relative": "n_beta · it / γ",
        "tail": "Last quarter of the pairs",
    },
    "agreement": {
        "component": "Component",
        "estimate": "Of",
        "slope": "Slope",
        "correlation": "Correlation",
        "possible": "possible",
    },
    "departure": {
        "component": "Component",
        "linear_slope": "Linear term, averaged on point",
        "linear_correlation": "correlation",
        "quadratic_slope": "First pairs, averaged on point",
        "quadratic_correlation": "correlation",
        "curvature": "Curvature of L_n along them",
        "predicted": "Rise of L_n, predicted",
        "chains": "along the chains",
    },
    "scaling": {
        "model": "Model",
        "kind": "Components",
        "components": "Number",
        "products": "Products of each",
        "evaluations": "Evaluations of each",
        "basis": "Basis, GB",
        "product_hours": "Products, hours",
        "evaluation_hours": "Evaluations, hours",
    },
}
# Columns of text that are numbers written out.
NUMBERS = {
    "headline": ["sampled", "sampled_size", "spectral", "linear", "other", "other_half", "slope"],
    "reliability": ["other", "halves", "same"],
    "terms": ["rest", "relative", "tail"],
    "agreement": ["slope", "correlation"],
    "departure": [
        *("linear_slope", "linear_correlation", "quadratic_slope", "quadratic_correlation"),
        *("curvature", "predicted", "chains"),
    ],
    "scaling": [],
}


def held(table: pl.DataFrame) -> list[View]:
    """The term of each component on which two halves of the sets agree best."""
    table = table.filter(pl.col("between") == "sets of other documents")
    last = table.filter(pl.col("units") == pl.col("units").max())
    found = []
    for name in last["component"].unique(maintain_order=True):
        part = last.filter(pl.col("component") == name)
        whole = part.filter(pl.col("term") == "covariance").row(0, named=True)
        best = part.sort("value").row(-1, named=True)
        found.append(
            {
                "name": name,
                "whole": f"{whole['value']:.2f}",
                "term": best["term"],
                "value": f"{best['value']:.2f}",
            }
        )
    return found


def facts_view(tables: Mapping[str, pl.DataFrame]) -> View:
    """What chooses the sentences."""
    cost, scaling, fits = tables["cost"], tables["scaling"], tables["agreement"]
    given = cost.filter((pl.col("estimator") == "spectral") & (pl.col("target") == GIVEN))
    size = cost.filter(pl.col("estimator") == "sampling, from the spectral size")
    linear = cost.filter(pl.col("estimator") == "linear term alone")
    large = scaling.filter(pl.col("model") == scaling["model"][-1])
    chains = large.row(0, named=True)
    hours = {n: float(large[f"{n}_hours"].sum()) for n in ("product", "evaluation")}
    hours["chains"] = chains["chains_sampling_hours"] + chains["chains_evaluation_hours"]
    best = "averaged" if "averaged" in fits["estimate"] else "posterior"
    slopes = fits.filter(pl.col("estimate") == best)
    first = tables["terms"].filter(pl.col("run") == "posterior")
    return {
        "components": given["component"].to_list(),
        "ratio": [
            {"name": name, "ratio": f"{a / b:.2g}"}
            for name, a, b in zip(given["component"], size["half"], given["seconds"], strict=True)
        ],
        "linear": [
            {
                "name": row["component"],
                "share": f"{row['reliability']:.0%}",
                "time": seconds(row["seconds"]),
            }
            for row in linear.iter_rows(named=True)
        ],
        "held": held(tables["reliability"]),
        "control": [
            {
                "name": row["component"],
                "correlation": f"{row['correlation']:.4f}",
                "difference": f"{row['difference']:.0%}",
            }
            for row in tables["control"].iter_rows(named=True)
        ],
        "relative": f"{first['relative'].max():.2g}",
        "averaged": best == "averaged",
        "apart": [
            {"name": row["component"], "slope": pair(row["slope"], row["slope_se"])}
            for row in slopes.iter_rows(named=True)
        ],
        "agrees": bool(((slopes["slope"] - 1).abs() < 2 * slopes["slope_se"]).all()),
        "hours": {name: format_count(round(value)) for name, value in hours.items()},
        **{name: chains[name] for name in ("model", "device", "precision", "rates")},
        "tokens": format_count(chains["tokens"]),
    }


def caption(name: str, facts: View) -> str:
    """The lead sentence of a table."""
    if name == "headline":
        ratios = ", ".join(f"{entry['name']}: {entry['ratio']}" for entry in facts["ratio"])
        return (
            "Processor time for a reliability of 0.5 of the covariance part. Extrapolated chains "
            f"take so many times as long as one spectral pass (from the spectral size): {ratios}"
        )
    return {
        "reliability": "Reliability: correlation over tokens between loss sets, term by term",
        "terms": "Sizes of the terms (standard deviation over tokens, nats²), and the spectrum",
        "agreement": "The sampled estimate against the spectral one of the same L_n",
        "departure": "How the terms change when derivatives are averaged over the posterior",
        "scaling": f"What the settings of this run would cost for {facts['tokens']} tokens on one "
        f"{facts['device']}",
    }[name]


def shown(frame: pl.DataFrame, name: str, title: str) -> View:
    """A table as the template takes it: only the columns that there are."""
    labels = {key: label for key, label in LABELS[name].items() if key in frame.columns}
    right = [
        place
        for place, key in enumerate(labels)
        if frame.schema[key].is_numeric() or key in NUMBERS[name]
    ]
    rows = [[cell(value) for value in row] for row in frame.select(*labels).iter_rows()]
    return {"caption": title, "head": list(labels.values()), "rows": rows, "numbers": right}


def page_environment() -> jinja2.Environment:
    """The package's templates, and those beside this script."""
    result = environment()
    assert result.loader is not None
    beside = jinja2.FileSystemLoader(Path(__file__).parent)
    result.loader = jinja2.ChoiceLoader([beside, result.loader])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    tables = {n: pl.read_parquet(results / FOLDER / f"{n}.parquet") for n in TABLES}
    frames = {
        "headline": headline_frame(tables),
        "reliability": reliability_frame(tables["reliability"]),
        "terms": terms_frame(tables["terms"]),
        "agreement": agreement_frame(tables["agreement"]),
        "departure": departure_frame(tables["departure"]),
        "scaling": scaling_frame(tables["scaling"]),
    }
    facts = facts_view(tables)
    titles = {name: caption(name, facts) for name in frames}
    head = frames["headline"]
    numbers = NUMBERS["headline"]
    write_table(
        results / "tables" / "spectral", head, LABELS["headline"], titles["headline"], numbers
    )
    config = read_json(results / "config.json")
    per_token = config["two_layer"]["per_token"]
    page = (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            scale=config["scale"],
            model=read_json(results / "model" / "model.json")["label"],
            sampler=per_token["sampler"],
            spectral=per_token["spectral"],
            facts=facts,
            tables={name: shown(f, name, titles[name]) for name, f in frames.items()},
        )
    )
    write_text(results / "pages" / "spectral.html", page)


if __name__ == "__main__":
    run(main)
