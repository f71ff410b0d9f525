"""The page and the tables on estimators: where the control variate is used, what an error costs.

Nothing is estimated here, and no number or verdict is written in the template: sentences are
chosen by what the tables say.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import polars as pl

from susceptibilities.console import run
from susceptibilities.control_variate import CHECKED, CONTROLLED, LEVEL, PLAIN, combined_p
from susceptibilities.efficiency import efficiency, typical
from susceptibilities.markup import environment, write_text
from susceptibilities.render import cell, write_table
from susceptibilities.report.numbers import format_count, format_number
from susceptibilities.report.tables import FORMS
from susceptibilities.store import read_json

FOLDER = "estimators/efficiency"
TEMPLATE = "estimators.html.jinja"
TABLES = ("checks", "efficiency", "allocation", "thinning")
LISTED = 25  # components for which it is not used that are named

View = dict[str, Any]


def span(values: pl.Series, digits: int = 2) -> str:
    """Median and range of the finite values, as text."""
    finite = values.filter(values.is_finite())
    if finite.is_empty():
        return ""
    low, middle, high = (finite.quantile(q, "linear") for q in (0.0, 0.5, 1.0))
    text = [f"{v:.{digits}g}" for v in (middle, low, high) if v is not None]
    return text[0] if len(finite) == 1 else f"{text[0]} ({text[1]} to {text[2]})"


_CHECK_TEXTS = ("chains", "group", "used", "ratio", "coefficient", "t")


def checks_frame(checks: pl.DataFrame) -> pl.DataFrame:
    """One row a kind of chains and group of components."""
    checks = checks.filter(pl.col("helps").is_not_null())
    keys = ["source", "control", "group"]
    rows = []
    for values, part in checks.group_by(keys, maintain_order=True):
        t, chains = part["t"].to_numpy(), part["chains"].to_numpy()
        source, control, group = values
        rows.append(
            {
                "chains": f"{source}, n_beta = 0" if control else source,
                "group": group,
                "used": f"{(part['estimator'] == CONTROLLED).sum()} of {len(part)}",
                "ratio": span(part["ratio"]),
                "coefficient": span(part["coefficient"]),
                "t": f"{np.abs(t).max():.2g} of {part['bound'].max():.2g}",
                "rms_t": float(part["rms_t"].median()),  # type: ignore[arg-type]
                "rms_expected": float(part["rms_expected"].max()),  # type: ignore[arg-type]
                "p": combined_p(t, chains),
            }
        )
    schema = {name: pl.String for name in _CHECK_TEXTS}
    numbers = {name: pl.Float64 for name in ("rms_t", "rms_expected", "p")}
    return pl.DataFrame(rows, schema={**schema, **numbers})


def efficiency_frame(table: pl.DataFrame) -> pl.DataFrame:
    """One row a group and form: both estimators, and their mixture if the run has one."""
    names = [name for name in (PLAIN, CONTROLLED, CHECKED) if name in table["estimator"]]
    if CHECKED in names:
        one, other = (table.filter(pl.col("estimator") == n)["se"] for n in (CHECKED, CONTROLLED))
        if (one == other).all():
            names.remove(CHECKED)
    rows = []
    keys = ["group", "form"]
    for (group, form), part in table.group_by(keys, maintain_order=True):
        each = {name: part.filter(pl.col("estimator") == name) for name in names}
        row: View = {"group": group, "form": FORMS[str(form)]}
        se = {n: typical(p["se"].to_numpy()) for n, p in each.items()}
        work = {n: float(p["work"].sum()) for n, p in each.items()}
        for name, found in each.items():
            mean = float(found["reliability"].mean())  # type: ignore[arg-type]
            row |= {f"se_{name}": se[name], f"reliability_{name}": mean, f"work_{name}": work[name]}
        if CONTROLLED in each:
            last = names[-1]
            row["difference"] = typical(each[last]["difference"].to_numpy())
            row["efficiency"] = efficiency(se[last], work[last], se[PLAIN], work[PLAIN])
        rows.append(row)
    return pl.DataFrame(rows)


def thinning_frame(table: pl.DataFrame) -> pl.DataFrame:
    """The table of thinning with errors and intervals as text."""
    rows = []
    for r in table.iter_rows(named=True):
        rows.append(
            {
                "group": r["group"],
                "source": r["source"],
                "observable": r["observable"],
                "correlation": format_number(r["correlation"], r["correlation_se"])
                if np.isfinite(r["correlation_se"])
                else format_number(r["correlation"]),
                "relaxation": f"{r['relaxation']:.2g}"
                f" ({r['relaxation_low']:.2g} to {r['relaxation_high']:.2g})",
                "draw_cost": r["draw_cost"],
                "thinning": r["thinning"],
                "best": f"{r['best']} ({r['best_low']} to {r['best_high']})",
                "used": r["used"],
                "every": r["every"],
            }
        )
    return pl.DataFrame(rows)


def allocation_frame(table: pl.DataFrame) -> pl.DataFrame:
    """One row a layer: the share of the noise that all components have in common."""
    groups = table.group_by("group", maintain_order=True)
    rows = [{"group": group, "share": span(part["share"])} for (group,), part in groups]
    return pl.DataFrame(rows, schema={"group": pl.String, "share": pl.String})


LABELS = {
    "estimators": {
        "chains": "Chains",
        "group": "Components",
        "used": "Used for",
        "ratio": "Variance, plain over corrected",
        "coefficient": "Coefficient",
        "t": "Largest |t|, of its bound",
        "rms_t": "t of single entries",
        "rms_expected": "expected",
        "p": "p, all together",
    },
    "standard_errors": {
        "group": "Components",
        "form": "Part",
        "se_plain": "Standard error, plain",
        "se_control_variate": "with control variate",
        "se_checked": "as used",
        "reliability_plain": "Reliability, plain",
        "reliability_control_variate": "with control variate",
        "reliability_checked": "as used",
        "work_plain": "Work, plain",
        "work_control_variate": "with control variate",
        "difference": "Difference, in plain errors",
        "efficiency": "Precision per work, over plain",
    },
    "allocation": {
        "group": "Components",
        "share": "Share of E_full[dL] in the variance of chi",
    },
    "thinning": {
        "group": "Components",
        "source": "Chains",
        "observable": "Of",
        "correlation": "Correlation of neighbors",
        "relaxation": "Relaxation, steps",
        "draw_cost": "A draw costs, in gradients",
        "thinning": "Steps between draws",
        "best": "Best",
        "used": "Precision per work, of the best",
        "every": "with every step evaluated",
    },
}
WRITTEN_OUT = {
    "estimators": ["used", "ratio", "coefficient", "t"],
    "standard_errors": [],
    "allocation": ["share"],
    "thinning": ["correlation", "relaxation", "best"],
}


def not_used(checks: pl.DataFrame) -> Iterator[View]:
    """Components whose check turned the control variate down, with the reason."""
    keys = ["source", "control", "step"]
    for values, part in checks.group_by(keys, maintain_order=True):
        source, control, step = values
        where = f"{source}{', n_beta = 0' if control else ''}, step {step}"
        sound = part.filter(pl.col("t").abs() < pl.col("bound"))
        p = combined_p(sound["t"].to_numpy(), sound["chains"].to_numpy()) if len(sound) else 1.0
        if p < LEVEL:
            why = f"their variates are not zero, all together (p = {p:.1g})"
            yield {"where": f"{where}, all components", "why": why}
        for row in part.filter(~pl.col("helps")).iter_rows(named=True):
            reasons = []
            if not row["ratio"] > 1:
                reasons.append(f"the variance is not smaller (ratio {row['ratio']:.2g})")
            if not abs(row["t"]) < row["bound"]:
                reasons.append(f"its mean is not zero (t = {row['t']:.2g} of {row['bound']:.2g})")
            if reasons:
                yield {"where": f"{where}, {row['component']}", "why": " and ".join(reasons)}


def facts_view(tables: Mapping[str, pl.DataFrame]) -> View:
    """What chooses the sentences, of the per-token chains where nothing else is said."""
    checks = tables["checks"].filter(~pl.col("control"))
    controlled = bool(tables["checks"]["helps"].is_not_null().any())
    of_component = tables["efficiency"].unique("component")
    found: View = {
        "controlled": controlled,
        "measured": bool(of_component["measured"].all()),
        "narrow": int((of_component["precision"] == "bfloat16").sum()),
        "evaluated": len(of_component),
    }
    if not controlled:
        return found
    means = checks.filter(pl.col("helps").is_not_null())
    token = means.filter(pl.col("source") == "per-token")
    used = token.filter(pl.col("estimator") == CONTROLLED)
    by = {
        (name, form): tables["efficiency"].filter(
            (pl.col("estimator") == name) & (pl.col("form") == form)
        )
        for name in (PLAIN, CHECKED)
        for form in FORMS
    }
    work = [float(by[name, "chi"]["work"].sum()) for name in (PLAIN, CHECKED)]
    precision = {form: span(by[CHECKED, form]["efficiency"]) for form in FORMS}
    everything = tables["checks"].filter(pl.col("helps").is_not_null())
    turned_down = list(not_used(everything))
    return (
        found
        | {
            "components": len(token),
            "used": len(used),
            "all_used": int((means["estimator"] == CONTROLLED).sum()),
            "all": len(means),
            "ratio": span(used["ratio"]) if len(used) else "",
            "more_work": work[1] / work[0] - 1,
            "efficiency": precision,
            "bound": float(token["bound"].max()),  # type: ignore[arg-type]
            "chains": int(token["chains"].max()),  # type: ignore[arg-type]
            "p": combined_p(token["t"].to_numpy(), token["chains"].to_numpy()),
            "level": LEVEL,
            "turned_down": turned_down[:LISTED],
            "more": max(0, len(turned_down) - LISTED),
        }
    )


def lead(facts: View) -> str:
    """The first sentence above the table of checks."""
    if not facts["controlled"]:
        return (
            "These chains were sampled without a control variate "
            "(two_layer.evaluation.control_variate: none): every estimate is the plain one"
        )
    if not facts["used"]:
        return (
            f"Checked for {facts['components']} components of the per-token chains, and used for "
            "none"
        )
    return (
        f"Used for the means of {facts['used']} of {facts['components']} components of the "
        f"per-token chains: their variance over chains is smaller by a factor of {facts['ratio']}"
        f", for {facts['more_work']:.0%} more work"
    )


def thinning_lead(table: pl.DataFrame) -> str:
    """The first sentence above the table of thinning."""
    if table.is_empty():
        return "Too few draws a chain to tell how fast they fall out of step"
    return (
        f"The thinning of this run reaches {span(table['used'])} of the precision per unit of work "
        f"of the best one; evaluating every step would reach {span(table['every'])}"
    )


def allocation_lead(table: pl.DataFrame) -> str:
    """The first sentence above the table of shares."""
    present, best, used, equal = (table[n][0] for n in ("present", "best", "used", "equal"))
    return (
        f"The precision of chi per unit of work is greatest with {best:.2g} draws of the "
        f"unrestricted chains for one of every head; the {present:.2g} of this run reach "
        f"{used:.0%} of it, and as many as of a head would reach {equal:.0%}"
    )


def captions(facts: View, tables: Mapping[str, pl.DataFrame]) -> dict[str, str]:
    """Lead sentence of every table."""
    unit = "seconds of work" if facts["measured"] else "token evaluations"
    work = f"Standard errors of a typical token, and what they cost in {unit}"
    if facts["controlled"]:
        work += (
            ": the control variate multiplies the precision per unit of work by "
            f"{facts['efficiency']['chi']} for χ, and by {facts['efficiency']['covariance']} for "
            "its covariance part"
        )
    return {
        "estimators": lead(facts),
        "standard_errors": work,
        "allocation": allocation_lead(tables["allocation"]),
        "thinning": thinning_lead(tables["thinning"]),
    }


def shown(frame: pl.DataFrame, name: str, caption: str) -> View:
    """A table as the template takes it: only the columns that there are."""
    labels = {key: label for key, label in LABELS[name].items() if key in frame.columns}
    right = [
        place
        for place, key in enumerate(labels)
        if frame.schema[key].is_numeric() or key in WRITTEN_OUT[name]
    ]
    rows = [[cell(value) for value in row] for row in frame.select(*labels).iter_rows()]
    return {"caption": caption, "head": list(labels.values()), "rows": rows, "numbers": right}


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
        "estimators": checks_frame(tables["checks"]),
        "standard_errors": efficiency_frame(tables["efficiency"]),
        "allocation": allocation_frame(tables["allocation"]),
        "thinning": thinning_frame(tables["thinning"]),
    }
    facts = facts_view(tables)
    titles = captions(facts, tables)
    for name, frame in frames.items():
        if frame.is_empty():
            frame = pl.DataFrame({"none": ["none"]})
            write_table(results / "tables" / name, frame, {"none": "Rows"}, titles[name])
            continue
        labels = {key: label for key, label in LABELS[name].items() if key in frame.columns}
        numbers = [key for key in WRITTEN_OUT[name] if key in labels]
        write_table(results / "tables" / name, frame, labels, titles[name], numbers)
    config = read_json(results / "config.json")
    template = page_environment().get_template(TEMPLATE)
    page = template.render(
        scale=config["scale"],
        model=read_json(results / "model" / "model.json")["label"],
        sampler=config["two_layer"]["per_token"]["sampler"],
        evaluation=config["two_layer"]["evaluation"],
        facts=facts,
        tables={name: shown(f, name, titles[name]) for name, f in frames.items() if len(f)},
        tokens=format_count(tables["efficiency"]["tokens"].max()),  # type: ignore[arg-type]
    )
    write_text(results / "pages" / "estimators.html", page)


if __name__ == "__main__":
    run(main)
