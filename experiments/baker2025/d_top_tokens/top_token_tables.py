"""The report's tables: lists of tokens, Table 3 and polarity; how their numbers are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from token_polarity import CLAIMED, CONTRAST, MEAN

from susceptibilities.categories import TITLES
from susceptibilities.cubes import PARTS
from susceptibilities.findings import NAMES
from susceptibilities.render import table_fragment
from susceptibilities.visible import visible

SIGN_NAMES = {1: "positive", -1: "negative"}
ROWS = 10
# Tokens named in a line of the table of lists, in the order of how many heads list them.
NAMED = 8
SHARES = ("halves", "opposite", "heads", "control", "chance")

# A table as a frame (all of it, for CSV) and as HTML (what is shown).
Made = tuple[pl.DataFrame, str]


def plus_minus(value: str, se: str, digits: int = 2) -> pl.Expr:
    """A column of "value ± se" as text; empty where there is no value."""

    def written(row: dict[str, float | None]) -> str:
        if row[value] is None:
            return ""
        tail = "" if row[se] is None else f" ± {row[se]:.{digits}f}"
        return f"{row[value]:+.{digits}f}{tail}".replace("-", "−")

    return pl.struct(value, se).map_elements(written, return_dtype=pl.String)


def power_of(values: pl.Series) -> int:
    """The power of ten in whose units the largest |value| has two digits before the point."""
    largest = values.abs().max()
    assert largest is None or isinstance(largest, float)
    return int(np.floor(np.log10(largest))) - 1 if largest else 0


def written(value: float | None, power: int, digits: int = 1) -> str:
    """A value in units of 10^power, with its sign."""
    if value is None:
        return ""
    text = f"{value / 10.0**power:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def loss_text(loss: float) -> str:
    """Two decimals as in the paper, or the first digit of what would be 0.00."""
    return f"{loss:.2f}" if loss >= 0.005 else f"{loss:.0e}"


def unit_of(power: int) -> str:
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits} nats²" if power else "nats²"


def most_listed(lists: pl.DataFrame, probe: str, sign: int) -> str:
    """Tokens by how many heads have them in their list of three."""
    chosen = lists.filter(
        (pl.col("run") == "posterior")
        & (pl.col("form") == "chi")
        & (pl.col("probe") == probe)
        & (pl.col("sign") == sign)
    )
    counts = Counter(visible(text) for text in chosen.sort("rank", maintain_order=True)["text"])
    named = [f"{text}×{count}" for text, count in counts.most_common(NAMED)]
    more = len(counts) - len(named)
    return "  ·  ".join([*named, *([f"{more} more"] if more > 0 else [])])


def lists_table(lists: pl.DataFrame, overlap: pl.DataFrame, titles: Mapping[str, str]) -> Made:
    """CSV: the lists of every head; HTML: a line a domain and sign."""
    joined = pl.col("text").map_elements(visible, return_dtype=pl.String)
    csv = (
        lists.sort("run", "form", "probe", "component", "sign", "rank")
        .group_by("run", "form", "probe", "component", "sign", maintain_order=True)
        .agg(
            joined.str.join("   ").alias("tokens"),
            pl.col("k").first(),
            pl.col("distinct").first(),
        )
        .join(
            overlap.filter(pl.col("left_out").is_null()).select(
                "run",
                "form",
                "probe",
                "component",
                "sign",
                "halves",
                "opposite",
                "heads",
                "control",
                "chance",
            ),
            on=["run", "form", "probe", "component", "sign"],
        )
    )
    means = (
        overlap.filter(
            pl.col("left_out").is_null()
            & (pl.col("run") == "posterior")
            & (pl.col("form") == "chi")
        )
        .group_by("probe", "sign", maintain_order=True)
        .agg(pl.col(*SHARES).mean())
    )
    rows = [
        {
            "domain": titles.get(row["probe"], row["probe"]),
            "sign": SIGN_NAMES[row["sign"]],
            "tokens": most_listed(lists, row["probe"], row["sign"]),
            **{name: None if row[name] is None else f"{row[name]:.2f}" for name in SHARES},
        }
        for row in means.sort("probe", "sign", descending=[False, True]).iter_rows(named=True)
    ]
    shown = pl.DataFrame(rows, infer_schema_length=None)
    labels = {
        "domain": "Domain",
        "sign": "Susceptibility",
        "tokens": "Tokens in the heads’ lists of three, × number of heads",
        "halves": "Shared by halves of the chains",
        "heads": "by halves of two heads",
        "control": "by a half and one of the n_beta = 0 control",
        "opposite": "At the other half’s opposite end",
        "chance": "By chance",
    }
    k = lists["k"].max()
    caption = (
        f"Top tokens of the heads: distinct tokens among the {k} most positive or negative, "
        "and the share of those that comes back; the lists of every head are on page top_tokens"
    )
    html = table_fragment(shown, labels, caption, SHARES)
    return csv, html


def rows_table(table: pl.DataFrame) -> Made:
    """Table 3: ten occurrences of one token."""
    if table.is_empty():
        return table, table_fragment(
            pl.DataFrame({"rank": []}, schema={"rank": pl.Int64}), {"rank": "Index"}, "Table 3"
        )
    power = power_of(table["chi"])
    rows = []
    for row in table.head(ROWS).iter_rows(named=True):
        error = f" ± {row['se'] / 10.0**power:.1f}"
        rows.append(
            {
                "rank": row["rank"],
                "before": visible(row["text_before"]),
                "token": visible(row["text"]),
                "loss_before": loss_text(row["loss_before"]),
                "loss": loss_text(row["loss"]),
                "chi": written(row["chi"], power) + error,
                **{name: written(row[name], power) for name in (*PARTS, "control")},
            }
        )
    labels = {
        "rank": "Index",
        "before": "Token before",
        "token": "Token",
        "loss_before": "Loss of the token before",
        "loss": "Loss of the token",
        "chi": "χ",
        **{part: NAMES[part] for part in reversed(PARTS)},
        "control": "χ, n_beta = 0",
    }
    which = f"the {ROWS} largest of {len(table)}" if len(table) > ROWS else f"all {len(table)}"
    caption = (
        f"Loss and susceptibility of one token on {table['probe'][0]}, head "
        f"{table['component'][0]}: {which} occurrences; susceptibilities in {unit_of(power)}, "
        "losses in nats"
    )
    numbers = [name for name in labels if name not in ("rank", "before", "token")]
    return table, table_fragment(pl.DataFrame(rows), labels, caption, numbers)


def polarity_table(table: pl.DataFrame) -> Made:
    """Means by category; mean over heads for every form and the control, and heads that agree."""
    rows = []
    kinds = table["category"].unique(maintain_order=True).to_list()
    # What the paper speaks of first.
    for category in [*CLAIMED, *(kind for kind in kinds if kind not in CLAIMED)]:
        own = table.filter(pl.col("category") == category)
        sign = CLAIMED.get(category, 0)
        heads = own.filter(
            (pl.col("run") == "posterior")
            & (pl.col("form") == "chi")
            & (pl.col("component") != MEAN)
        )
        row: dict[str, Any] = {
            "category": TITLES.get(category, category),
            "claimed": {1: "positive", -1: "negative", 0: ""}[sign],
            "n": None if category == CONTRAST else own["n"][0],
            "agree": f"{int((sign * heads['mean'] > 0).sum())} of {len(heads)}" if sign else "",
        }
        cases = [("posterior", form) for form in ("chi", *reversed(PARTS))] + [("control", "chi")]
        for name, form in cases:
            chosen = own.filter(
                (pl.col("run") == name) & (pl.col("form") == form) & (pl.col("component") == MEAN)
            ).select(
                mean=plus_minus("mean", "mean_se"), relative=plus_minus("relative", "relative_se")
            )
            key = "control" if name == "control" else form
            row[key] = chosen["mean"][0] if len(chosen) else ""
            if key == "chi":
                row["relative"] = chosen["relative"][0] if category != CONTRAST else ""
        rows.append(row)
    labels = {
        "category": "Kind of token",
        "n": "Tokens",
        "claimed": "Paper",
        "chi": "χ",
        "relative": "χ, relative to all tokens",
        "agree": "Heads with that sign",
        **{part: NAMES[part] for part in reversed(PARTS)},
        "control": "χ, n_beta = 0",
    }
    numbers = ("chi", "relative", *PARTS, "control")
    caption = (
        "Mean susceptibility by kind of token over all domains, in standard deviations over their "
        "tokens, mean over heads; ± one standard error over chains and contexts"
    )
    shown = pl.DataFrame(rows, infer_schema_length=None)
    return table, table_fragment(shown, labels, caption, numbers)
