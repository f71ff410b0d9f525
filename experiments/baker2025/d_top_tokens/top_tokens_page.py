"""The lists of Appendix D: a page of every head's top tokens; and the report's tables.

Reads what ``rank_tokens.py`` and ``top_tokens_claims.py`` saved, and computes nothing new.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from top_ranking import FOLDER, SIGNS
from top_token_tables import (
    SIGN_NAMES,
    lists_table,
    polarity_table,
    power_of,
    rows_table,
    unit_of,
    written,
)

from susceptibilities.console import run
from susceptibilities.cubes import PARTS
from susceptibilities.findings import NAMES
from susceptibilities.markup import encodable, environment, write_text
from susceptibilities.store import atomic_path, read_json
from susceptibilities.tokens import CONTROL_PROBE
from susceptibilities.visible import visible

TEMPLATE = Path(__file__).with_name("top_tokens.html.jinja")


class Tables(NamedTuple):
    """What the earlier steps saved."""

    top: pl.DataFrame
    lists: pl.DataFrame
    overlap: pl.DataFrame
    polarity: pl.DataFrame
    table3: pl.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Tables:
        return cls(*(pl.read_parquet(folder / f"{name}.parquet") for name in cls._fields))


def write_table(results: Path, name: str, table: pl.DataFrame, html: str) -> None:
    """A table of the report: all columns as CSV, the chosen ones as HTML."""
    with atomic_path(results / "tables" / f"{name}.csv") as path:
        table.write_csv(path)
    write_text(results / "tables" / f"{name}.html", html)


# ---- the page ----------------------------------------------------------------


def listed(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """The distinct tokens of one list, each after the last two tokens of its context."""
    return [
        {"before": [visible(t) for t in row["before"]], "token": visible(row["text"])}
        for row in rows.sort("rank").iter_rows(named=True)
    ]


def occurrence_rows(rows: pl.DataFrame, power: int) -> list[dict[str, Any]]:
    return [
        {
            "rank": row["rank"],
            "before": [visible(t) for t in row["before"]],
            "token": visible(row["text"]),
            "value": written(row["value"], power),
            "se": f"{row['se'] / 10.0**power:.1f}",
            "parts": [written(row[part], power) for part in reversed(PARTS)],
            "control": written(row["control"], power),
            "loss": f"{row['loss']:.2f}",
            "kept": f"{100 * row['kept']:.0f} %",
        }
        for row in rows.sort("rank").iter_rows(named=True)
    ]


def page_sections(
    tables: Tables, roles: dict[str, str], titles: dict[str, str], power: int
) -> list[dict[str, Any]]:
    """One section a domain: the lists of all heads, then each head's occurrences."""
    lists = {
        (str(p), str(c), int(s)): rows
        for (p, c, s), rows in tables.lists.filter(
            (pl.col("run") == "posterior") & (pl.col("form") == "chi")
        ).group_by(["probe", "component", "sign"])
    }
    top = {
        (str(p), str(c), int(s)): rows
        for (p, c, s), rows in tables.top.group_by(["probe", "component", "sign"])
    }
    agreed = {
        (row["probe"], row["component"], row["sign"]): row
        for row in tables.overlap.filter(
            (pl.col("run") == "posterior")
            & (pl.col("form") == "chi")
            & pl.col("left_out").is_null()
        ).iter_rows(named=True)
    }
    sections = []
    for probe in tables.top["probe"].unique(maintain_order=True):
        heads = []
        for head in tables.top["component"].unique(maintain_order=True):
            sides = [
                {
                    "name": SIGN_NAMES[sign],
                    "list": listed(lists[probe, head, sign]),
                    "distinct": lists[probe, head, sign]["distinct"][0],
                    "agreed": f"{100 * agreed[probe, head, sign]['halves']:.0f} %",
                    "rows": occurrence_rows(top[probe, head, sign], power),
                }
                for sign in SIGNS
            ]
            heads.append({"name": head, "role": roles.get(head, ""), "sides": sides})
        row = agreed[probe, heads[0]["name"], 1]
        sections.append(
            {
                "anchor": f"domain-{len(sections) + 1}",
                "title": titles.get(probe, probe),
                "heads": heads,
                "k": row["k"],
                "tokens": row["tokens"],
                "chance": f"{100 * row['chance']:.0f} %",
            }
        )
    return sections


def page(results: Path, tables: Tables, titles: dict[str, str]) -> str:
    """The whole page, self-contained; every text in it is escaped."""
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    roles = dict(zip(final["head"], final["role"], strict=True))
    power = power_of(tables.top["value"])
    template = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        model=encodable(read_json(results / "model" / "model.json")["label"]),
        sections=page_sections(tables, roles, titles, power),
        unit=unit_of(power),
        parts=[NAMES[part] for part in reversed(PARTS)],
        control=tables.top["control"].is_not_null().any(),
        shown=tables.top["rank"].max(),
    )


def titles_of(results: Path, probes: Sequence[str]) -> dict[str, str]:
    """Probe -> its name with the subset of the Pile whose place it takes."""
    domains = read_json(results / "tokens" / "manifest.json")["domains"]
    found = {}
    for probe in probes:
        subset = domains.get(probe, {}).get("stands_in_for")
        found[probe] = f"{probe} (for {subset})" if subset and subset != probe else probe
    return found | {CONTROL_PROBE: f"{CONTROL_PROBE} (the training distribution)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    tables = Tables.read(results / FOLDER)
    titles = titles_of(results, tables.top["probe"].unique(maintain_order=True).to_list())
    write_table(results, "top_tokens", *lists_table(tables.lists, tables.overlap, titles))
    write_table(results, "table3", *rows_table(tables.table3))
    write_table(results, "polarity", *polarity_table(tables.polarity))
    write_text(results / "pages" / "top_tokens.html", page(results, tables, titles))


if __name__ == "__main__":
    run(main)
