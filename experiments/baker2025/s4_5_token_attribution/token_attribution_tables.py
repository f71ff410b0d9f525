"""Tables 1 and 4 and the tokens that make gaps between heads, as CSV and HTML."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from token_totals import PUBLISHED_TOKENS, SPACE

from susceptibilities.console import run
from susceptibilities.cubes import CONTROL_PROBE
from susceptibilities.markup import write_text
from susceptibilities.render import table_fragment
from susceptibilities.report.numbers import format_number
from susceptibilities.store import atomic_path, read_json
from susceptibilities.subsets import absent, place_of
from susceptibilities.visible import visible

FOLDER = "baker2025/s4_5_token_attribution"
PAIR, CODE, CC = ("0:0", "0:1"), "github-all", "pile-cc"
FORMS = {
    "chi": "published",
    "rank_one": "rank-one",
    "mean_shift": "mean shift",
    "covariance": "covariance",
}
CONTROL = "n_beta = 0 control"
LISTED = 4  # tokens of each gap beside the space
NUMBERS = {
    "positive": "Total positive",
    "negative": "Total negative",
    "sum": "Sum",
    "scaled_sum": "Scaled sum",
}


def with_error(row: Mapping[str, Any], name: str) -> str:
    """A value with its error, as text; nothing where it was not measured."""
    value = row.get(name)
    return "" if value is None else format_number(value, row.get(f"{name}_se"))


def share(value: float, se: float | None = None) -> str:
    """A share as a percentage."""
    text = f"{100 * value:.1f} %" if se is None else f"{100 * value:.1f} ± {100 * se:.1f} %"
    return text.replace("-", "−")


def form_name(row: Mapping[str, Any]) -> str:
    return CONTROL if row["control"] else FORMS[row["form"]]


def named(domains: Mapping[str, Any], probe: str) -> str:
    """A probe's name with the subset whose place it takes."""
    subset = domains.get(probe, {}).get("stands_in_for")
    return f"{probe} (for {subset})" if subset and subset != probe else probe


def write(
    results: Path,
    name: str,
    frame: pl.DataFrame,
    shown: Sequence[Mapping[str, str]],
    labels: Mapping[str, str],
    words: Sequence[str],
    caption: str,
) -> None:
    """Save ``frame`` as CSV and the rows ``shown``, written out, as HTML.

    Args:
        words: columns of ``shown`` that are not numbers.
    """
    folder = results / "tables"
    with atomic_path(folder / f"{name}.csv") as path:
        frame.write_csv(path)
    text = pl.DataFrame(list(shown), schema=dict.fromkeys(labels, pl.String))
    numbers = [label for label in labels if label not in words]
    write_text(folder / f"{name}.html", table_fragment(text, labels, caption, numbers))
    print(f"{name}: {len(text)} rows")


def table1(results: Path, totals: pl.DataFrame, domains: Mapping[str, Any]) -> None:
    """Totals and the space token of two heads on github-all, in every form and the control."""
    place = place_of(CODE, domains)
    probe = place.probe if place else ""
    order = {form: i for i, form in enumerate(FORMS)}
    frame = totals.filter(
        (pl.col("probe") == probe)
        & pl.col("component").is_in(PAIR)
        & (~pl.col("control") | (pl.col("form") == "chi"))
    ).sort("control", pl.col("form").replace_strict(order, default=0), "component")
    shown = [
        {
            "head": row["component"],
            "form": form_name(row),
            **{name: with_error(row, name) for name in NUMBERS},
            "dataset": with_error(row, "dataset"),
            "space_mean": with_error(row, "space_mean"),
            "space_std": with_error(row, "space_std"),
            "noise": f"±{format_number(round(row['noise']))}",
        }
        for row in frame.iter_rows(named=True)
    ]
    labels = {
        "form": "Form",
        "head": "Head",
        **NUMBERS,
        "dataset": "χ of section 4.1",
        "space_mean": "Mean of the space token",
        "space_std": "Its standard deviation",
        "noise": "Total if noise alone",
    }
    if place is None:
        caption = f"Nothing to show: {absent(CODE)}."
    else:
        sizes = [f"{frame[name].max():,}" for name in ("tokens", "spaces")]
        caption = (
            f"Two heads on {place}: {sizes[0]} tokens, {sizes[1]} of them the space; totals for "
            f"{PUBLISHED_TOKENS:,} tokens"
        )
    write(results, "table1", frame, shown, labels, ["form", "head"], caption)


def table4(results: Path, totals: pl.DataFrame, domains: Mapping[str, Any]) -> None:
    """Totals of 0:0 on github-all and cc, and for comparison on every other probe."""
    code, cc = place_of(CODE, domains), place_of(CC, domains)
    near = cc.probe if cc else CONTROL_PROBE
    first = [p for p in (code.probe if code else None, near) if p is not None]
    order = {probe: i for i, probe in enumerate(first)}
    forms = {form: i for i, form in enumerate(FORMS)}
    mine = pl.col("component") == PAIR[0]
    # Everything in the published form, and the paper's two rows in the other forms.
    chosen = (pl.col("form") == "chi") & ~pl.col("control") | (
        pl.col("probe").is_in(first) & (~pl.col("control") | (pl.col("form") == "chi"))
    )
    frame = totals.filter(mine & chosen).sort(
        "control",
        pl.col("form").replace_strict(forms, default=0),
        pl.col("probe").replace_strict(order, default=len(order)),
        "probe",
    )
    shown = [
        {
            "form": form_name(row),
            "probe": named(domains, row["probe"])
            + (" (like the training text)" if row["probe"] == CONTROL_PROBE else ""),
            **{name: with_error(row, name) for name in NUMBERS},
            "imbalance": with_error(row, "imbalance"),
            "noise": f"±{format_number(round(row['noise']))}",
        }
        for row in frame.iter_rows(named=True)
    ]
    labels = {
        "form": "Form",
        "probe": "Domain",
        **NUMBERS,
        "imbalance": "Sum / (positive − negative)",
        "noise": "Total if noise alone",
    }
    caption = f"Head {PAIR[0]}; totals for {PUBLISHED_TOKENS:,} tokens"
    write(results, "table4", frame, shown, labels, ["form", "probe"], caption)


GAP_NAMES = {
    "paper": "the paper's pair",
    "clearest": "largest in standard errors",
    "largest": "largest in size",
}
WHOLE = {
    "gap": "all",
    "positive_gap": "positive values",
    "negative_gap": "negative values",
    "rank_one_gap": "rank-one part",
    "mean_shift_gap": "mean-shift part",
    "control_gap": CONTROL,
}


def gap_rows(
    gap: Mapping[str, Any], tokens: pl.DataFrame, domains: Mapping[str, Any]
) -> list[dict[str, str]]:
    """A gap as a whole and in parts, then the tokens with the largest parts of it."""
    pair = (
        f"{gap['head_a']} − {gap['head_b']} on {named(domains, gap['probe'])}, "
        f"{GAP_NAMES[gap['gap_name']]}, p = {gap['p']:.2g}"
    )
    found = [
        {"token": words, "part": with_error(gap, key), "share": share(gap[key] / gap["gap"])}
        for key, words in WHOLE.items()
        if gap[key] is not None
    ]
    for row in tokens.iter_rows(named=True):
        found.append(
            {
                "token": visible(row["text"]),
                "count": format_number(row["count"]),
                "mean_a": f"{row['mean_a']:.3g}".replace("-", "−"),
                "mean_b": f"{row['mean_b']:.3g}".replace("-", "−"),
                "part": with_error(row, "gap"),
                "share": share(row["share"], row["share_se"]),
                "side": share(row["share_of_side"]),
                "frequency": share(row["frequency"]),
            }
        )
    return [{"gap": pair if i == 0 else "", **row} for i, row in enumerate(found)]


def gap_tokens(
    results: Path, gaps: pl.DataFrame, tokens: pl.DataFrame, domains: Mapping[str, Any]
) -> None:
    """Which tokens make each gap: those with the largest parts of it, and the space."""
    rank = pl.col("gap").rank("ordinal", descending=True).over("gap_name")
    frame = tokens.with_columns(rank=rank).filter(
        (pl.col("rank") <= LISTED) | (pl.col("text") == SPACE)
    )
    labels = {
        "gap": "Heads a − b",
        "token": "Of what",
        "count": "Seen",
        "mean_a": "Mean, a",
        "mean_b": "Mean, b",
        "part": "Part of the gap",
        "share": "Share of it",
        "side": "Of the larger side",
        "frequency": "Share of the tokens",
    }
    shown = []
    for gap in gaps.iter_rows(named=True):
        mine = frame.filter(pl.col("gap_name") == gap["gap_name"]).sort("rank")
        shown += [{**dict.fromkeys(labels, ""), **row} for row in gap_rows(gap, mine, domains)]
    caption = (
        f"Sums and parts for {PUBLISHED_TOKENS:,} tokens. p of the largest gaps: corrected for "
        "all pairs and domains. Larger side: the gap of the positive or of the negative values"
    )
    write(results, "gap_tokens", frame, shown, labels, ["gap", "token"], caption)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    domains = read_json(results / "tokens" / "manifest.json")["domains"]
    saved = {
        name: pl.read_parquet(results / FOLDER / f"{name}.parquet")
        for name in ("totals", "points", "gaps", "gap_tokens")
    }
    keys = ["probe", "component", "form", "control"]
    dataset = saved["points"].select(*keys, "dataset", "dataset_se")
    totals = saved["totals"].join(dataset, on=keys, how="left")
    table1(results, totals, domains)
    table4(results, totals, domains)
    gap_tokens(results, saved["gaps"], saved["gap_tokens"], domains)


if __name__ == "__main__":
    run(main)
