"""What the page shows, from saved tables: rows of its tables, facts that choose its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from susceptibilities.categories import TITLES
from susceptibilities.claims import Claim, Published
from susceptibilities.comparison import why_not_comparable
from susceptibilities.findings import NAMES
from susceptibilities.naming import head_of
from susceptibilities.report.numbers import format_number, format_published
from susceptibilities.visible import visible

ALL = "all heads"
STANDARD = "standardized"
PARTS = ("rank_one", "mean_shift", "covariance")
LABELS = {
    "chi": "χ, published form",
    **{part: NAMES[part] for part in PARTS},
    "remainder": "χ without the rank-one part",
}

Tables = Mapping[str, pl.DataFrame]
View = dict[str, Any]


def chosen(table: pl.DataFrame, **values: object) -> pl.DataFrame:
    """Rows with these values."""
    return table.filter(*(pl.col(name) == value for name, value in values.items()))


def one(table: pl.DataFrame, **values: object) -> dict[str, Any]:
    """The one row with these values."""
    return chosen(table, **values).row(0, named=True)


def pair(row: Mapping[str, Any], name: str = "value") -> str:
    """ "value ± se" of a row; without the error where it is rounding alone."""
    if row["se"] < 1e-12 * abs(row[name]):
        return format_number(round(row[name], 12), 0.0)
    return format_number(row[name], row["se"])


def side(row: Mapping[str, Any], bound: float) -> str:
    """On which side of a bound the 95 % interval lies: above, below or unclear."""
    if row["low"] > bound:
        return "above"
    return "below" if row["high"] < bound else "unclear"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> View:
    """A table whose first ``words`` columns are words, the others numbers."""
    return {
        "caption": caption,
        "head": list(head),
        "rows": [list(row) for row in rows],
        "numbers": list(range(words, len(head))),
    }


def sources(control: bool) -> list[tuple[str, str]]:
    return [("run", ""), *([("control", "n_beta = 0")] if control else [])]


SETTINGS = {
    "baker2025.C3.n_beta": ("inverse temperature n_beta", "n_beta"),
    "baker2025.C3.gamma": ("localization γ", "localization"),
    "baker2025.C3.epsilon": ("SGLD step size", "step_size"),
    "baker2025.C3.chains": ("chains", "chains"),
    "baker2025.C3.per_token_draws": ("draws a chain", "draws"),
    "baker2025.C3.per_token_batch": ("batch of contexts", "batch"),
    "baker2025.C2.contexts": ("contexts a domain", "contexts"),
}


def settings_view(
    config: Mapping[str, Any],
    model: Mapping[str, Any],
    manifest: Mapping[str, Any],
    papers: Published,
    results: Path,
) -> View:
    """The model, the text, and the settings beside those of the paper."""
    two_layer = config["two_layer"]
    per_token = two_layer["per_token"]
    here = {**per_token["sampler"], "contexts": per_token["contexts"]}
    printed = {c.id: c for paper in papers.papers for c in paper.claims if c.kind == "setting"}
    rows = []
    for claim, (label, key) in SETTINGS.items():
        if claim in printed and key in here:
            published = ", ".join(format_published(printed[claim].value, "=="))
            rows.append((label, format_number(float(here[key])), published))
    return {
        "model": model["label"],
        "corpus": config["corpus"]["name"],
        "domains": len(manifest["domains"]),
        "step": max(per_token["checkpoints"]),
        "why_other": why_not_comparable(config, "two-layer", papers),
        "scale": config["scale"],
        "folder": results.name,
        "table": table("Settings of this run, and of Baker et al. C.2 and C.3",
                       ("", "here", "published"), rows),
    }  # fmt: skip


def sizes_view(tables: Tables, config: Mapping[str, Any], control: bool) -> View:
    """Sizes, agreement between heads and between chains; how far the loss rises."""
    rows = []
    groups = sorted(tables["half"]["group"].unique().to_list())
    for source, label in sources(control):
        for form in ("chi", *PARTS):
            agreement = one(
                chosen(tables["uniform"], source=source, scope=ALL, form=form, scaling=STANDARD),
                quantity="mean correlation between heads",
            )
            chains = [
                format_number(r["one_chain"], r["se"])
                for g in groups
                for r in [one(tables["half"], source=source, group=g, form=form)]
            ]
            size = one(tables["sizes"], source=source, form=form, component=ALL)
            name = f"{LABELS[form]}{f' ({label})' if label else ''}"
            rows.append((name, pair(size), pair(agreement), *chains))
    llc = tables["llc"].filter(pl.col("step") == pl.col("step").max())
    n_beta = float(config["two_layer"]["sampler"]["n_beta"])
    rises = {r["component"]: (r["llc"] / n_beta, r["se"] / n_beta) for r in llc.to_dicts()}
    heads = {name: rise for name, rise in rises.items() if head_of(name)}
    least, most = (end(heads, key=lambda name: heads[name][0]) for end in (min, max))
    return {
        "table": table(
            "Size: standard deviation over tokens, root mean square over heads. Heads: mean "
            "correlation over tokens of two heads. Chains: correlation over tokens of two single "
            "chains of the same head, mean over a layer's heads. ± standard error over chains "
            "and contexts",
            ("", "size", "heads", *(f"chains, {g}" for g in groups)),
            rows,
        ),
        "rise_full": format_number(*rises["full"]),
        "rise_heads": [
            f"{format_number(*heads[name])} ({name})" for name in (least, most)
        ],
    }  # fmt: skip


SHARES = {"baker2025v2.pca_pooled": ALL, "baker2025v3.pca_layer0": "layer 0"}
SHARES |= {"baker2025v3.pca_layer1": "layer 1"}


def construction_view(tables: Tables, papers: Published, control: bool) -> View:
    """PC1 of chi beside what the rank-one part alone makes, and the published shares."""
    printed = {scope: papers.claims()[claim][1] for claim, scope in SHARES.items()}
    quantities = tables["construction"]["quantity"].unique(maintain_order=True).to_list()
    rows = []
    scopes = tables["construction"]["scope"].unique(maintain_order=True).to_list()
    for scope in scopes:
        for source, label in sources(control):
            found = chosen(tables["construction"], source=source, scope=scope)
            found = chosen(found, scaling=STANDARD)
            made = one(
                chosen(tables["made_of"], source=source, scope=scope, scaling=STANDARD),
                part="rank_one",
                pc=1,
            )
            published = first_printed(printed.get(scope)) if source == "run" else ""
            rows.append(
                (
                    f"{scope}{f' ({label})' if label else ''}",
                    *(pair(one(found, quantity=q)) for q in quantities),
                    pair(made),
                    published,
                )
            )
    head = (
        *("heads", "share of PC1", "share along the rank-one direction", "cosine, loadings"),
        *("correlation, scores", "rank-one part of PC1", "published share"),
    )
    centered = one(
        chosen(tables["variance"], source="run", scope=ALL, scaling="centered"), form="chi", pc=1
    )
    return {
        "table": table(
            "PC1 of χ, columns standardized. Rank-one part of PC1: cov(score of the part, score) "
            "/ var(score), which adds to one over the three parts and is above one where another "
            "part works against it",
            head,
            rows,
        ),
        "centered": pair(centered, "share"),
    }


def first_printed(claim: Claim | None) -> str:
    if claim is None or not isinstance(claim.value, list):
        return ""
    return str(claim.value[0]) + (" (second-hand)" if claim.trust == "second-hand" else "")


def remainder_view(tables: Tables, control: bool) -> View:
    """PCA of chi without its rank-one part, and of its parts, beside the control's."""
    variance = chosen(tables["variance"], scaling=STANDARD, scope=ALL)
    heads = int(variance["pc"].max())  # type: ignore[arg-type]
    rows = []
    for source, label in sources(control):
        for form in ("chi", "remainder", "mean_shift", "covariance"):
            found = chosen(variance, source=source, form=form).head(3)
            shares = [
                pair(r, "share") + ("" if r["identified"] else " *")
                for r in found.iter_rows(named=True)
            ]
            cosine = one(
                chosen(tables["uniform"], source=source, scope=ALL, form=form, scaling=STANDARD),
                quantity="cosine to the uniform vector",
            )
            name = f"{LABELS[form]}{f' ({label})' if label else ''}"
            rows.append((name, *shares, *[""] * (3 - len(shares)), pair(cosine)))
    loadings = []
    roles = chosen(tables["by_role"], source="run", scope=ALL, scaling=STANDARD)
    for form in ("chi", "remainder"):
        own = chosen(roles, form=form)
        groups = own.select("layer", "role", "heads").unique(maintain_order=True).sort("layer")
        for layer, role, count in groups.iter_rows():
            each = chosen(own, layer=layer, role=role).sort("pc")
            name = f"layer {layer}, {role} ({count} head{'s' if count > 1 else ''})"
            values = [pair(r) for r in each.iter_rows(named=True)]
            loadings.append((LABELS[form], name, *values))
    pcs = sorted(roles["pc"].unique().to_list())
    return {
        "table": table(
            "Shares of variance, all heads, columns standardized. * not separated from a "
            f"neighbor within the errors. Noise alone, equal in all heads, gives 1/{heads} each",
            ("", "PC1", "PC2", "PC3", "cosine of PC1 to the uniform vector"),
            rows,
        ),
        "even": f"{1 / heads:.4f}",
        "roles": table(
            "Mean loading of the heads of each role. PC1 is turned to be positive on average, "
            "PC2 on previous-token and induction heads",
            ("", "heads", *(f"PC{pc}" for pc in pcs)),
            loadings,
            words=2,
        ),
    }


def ends_view(tables: Tables) -> View:
    """The most frequent tokens at both ends of each component, and clear enrichments."""
    rows = []
    run = chosen(tables["ends"], source="run")
    for form in ("chi", "remainder"):
        for pc in sorted(run["pc"].unique().to_list()):
            for end in ("top", "bottom"):
                found = chosen(run, form=form, pc=pc, end=end).sort("rank")
                names = [f"{visible(r['text'])} ({r['times']:.1f}×)" for r in found.to_dicts()]
                rows.append((LABELS[form], f"PC{pc}, {end} 5 %", " · ".join(names)))
    return {
        "table": table(
            "Most frequent tokens at the ends of each component, and in brackets how many times "
            "as frequent as among all tokens",
            ("", "end", "tokens"),
            rows,
            words=3,
        ),
        "words": [
            {"form": LABELS[form], "pc": pc, "end": end, **clear_categories(tables, form, pc, end)}
            for form in ("chi", "remainder")
            for pc in (1, 2)
            for end in ("top", "bottom")
        ],
    }


def clear_categories(tables: Tables, form: str, pc: int, end: str) -> View:
    """Categories whose whole interval lies on one side of no enrichment, strongest first."""
    found = chosen(tables["enrichment"], source="run", form=form, pc=pc, end=end, tails="pooled")
    more = found.filter(pl.col("low") > 0).sort("value", descending=True)
    fewer = found.filter(pl.col("high") < 0).sort("value")
    return {
        "more": [f"{TITLES[r['category']]} ({2 ** r['value']:.1f}×)" for r in more.to_dicts()],
        "fewer": [f"{TITLES[r['category']]} ({2 ** r['value']:.1f}×)" for r in fewer.to_dicts()],
    }


def induction_view(tables: Tables) -> View:
    """The sign of the induction heads where they predict, in every form."""
    found = tables["induction"]
    if found.is_empty():
        return {"heads": []}
    quantities = found["quantity"].unique(maintain_order=True).to_list()
    rows = []
    for head in found["head"].unique(maintain_order=True).to_list():
        for source, label in (("run", ""), ("control", "n_beta = 0")):
            for form in ("chi", *PARTS):
                own = chosen(found, head=head, source=source, form=form)
                if own.is_empty():
                    continue
                name = f"{head}: {LABELS[form]}{f' ({label})' if label else ''}"
                rows.append((name, *(pair(one(own, quantity=q)) for q in quantities)))
    decisive = {
        form: side(one(chosen(found, source="run", form=form), quantity=quantities[0]), 0.0)
        for form in ("chi", *PARTS)
    }
    return {
        "heads": found["head"].unique(maintain_order=True).to_list(),
        "n": int(found["n"].max()),  # type: ignore[arg-type]
        "sides": decisive,
        "table": table(
            "In standard deviations of the form over all tokens",
            ("head", *(q.removesuffix(", in standard deviations") for q in quantities)),
            rows,
        ),
    }


def reliability_view(tables: Tables, control: bool) -> View:
    """Measured reliabilities, Spearman and Brown's, and the draws to reach one half."""
    rows = []
    for source, label in sources(control):
        for form in ("chi", *PARTS):
            for found in chosen(tables["half"], source=source, form=form).iter_rows(named=True):
                growth = chosen(
                    tables["reliability"], source=source, form=form, group=found["group"]
                )
                last = growth.sort("chains").row(-1, named=True)
                name = f"{LABELS[form]}{f' ({label})' if label else ''}"
                rows.append(
                    (
                        name,
                        found["group"],
                        found["statement"],
                        format_number(found["one_chain"], found["se"]),
                        f"{pair(last)} ({last['draws']} draws)",
                        format_number(last["predicted"]),
                    )
                )
    view = table(
        "Reliability over chains. One chain: ± over chains and contexts. Several: ± over "
        "contexts. Predicted: from one chain, by Spearman and Brown",
        ("", "heads", "one half", "one chain", "several chains", "predicted"),
        rows,
        words=3,
    )
    return {"table": view}
