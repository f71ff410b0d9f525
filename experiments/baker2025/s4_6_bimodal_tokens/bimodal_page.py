"""The search for bimodal tokens as a page with contexts of both modes, and the report's tables.

Reads what ``bimodal_search.py`` saved, and computes nothing new.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from bimodal_search import FOLDER, MIN_CONTEXTS, MIN_COUNT
from markupsafe import Markup
from mode_statistics import DISTANCE, KAPPA, LEVEL

from susceptibilities.console import run
from susceptibilities.cubes import FORMS
from susceptibilities.findings import NAMES
from susceptibilities.markup import encodable, environment, write_text
from susceptibilities.render import table_fragment
from susceptibilities.store import atomic_path, read_json
from susceptibilities.visible import printable, visible

TEMPLATE = Path(__file__).with_name("bimodal_search.html.jinja")
BEFORE, AFTER = 64, 32  # characters of a context on either side of the token
LISTED = 30


class Tables(NamedTuple):
    """What the search saved."""

    search: pl.DataFrame
    modes: pl.DataFrame
    typical: pl.DataFrame
    power: pl.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Tables:
        return cls(*(pl.read_parquet(folder / f"{name}.parquet") for name in cls._fields))


def written(value: float | None, error: float | None = None) -> str:
    """A value with its error, with as many digits as fit a narrow column."""
    if value is None:
        return ""
    return minus(f"{value:.2g}" if error is None else f"{value:.2g} ± {error:.1g}")


def counts(search: pl.DataFrame) -> pl.DataFrame:
    """How many tests reject, for chi, its parts and the loss, and in the control."""
    names = {**NAMES, "loss": "loss at w*"}
    rows = []
    for form in (*FORMS, "loss"):
        for control in (False, True):
            mine = search.filter((pl.col("form") == form) & (pl.col("control") == control))
            if not len(mine):
                continue
            passed = mine.filter(pl.col("p_adjusted") <= LEVEL)
            rows.append(
                {
                    "form": names[form],
                    "run": "nβ = 0 control" if control else "posterior",
                    "tests": len(mine),
                    "below": int((mine["p"] <= LEVEL).sum()),
                    "expected": f"at most {LEVEL * len(mine):.0f}",
                    "rejected": len(passed),
                    "tokens": passed.select("probe", "token").n_unique() if len(passed) else 0,
                    "smallest": p_written(float(mine["p"].to_numpy().min())),
                }
            )
    schema = {
        **dict.fromkeys(("form", "run"), pl.String),
        **dict.fromkeys(("tests", "below"), pl.Int64),
        "expected": pl.String,
        **dict.fromkeys(("rejected", "tokens"), pl.Int64),
        "smallest": pl.String,
    }
    return pl.DataFrame(rows, schema=schema)


def counts_table(table: pl.DataFrame) -> str:
    return table_fragment(
        table,
        {
            "form": "Form",
            "run": "Run",
            "tests": "Tests",
            "below": f"p ≤ {LEVEL}",
            "expected": "Expected without any mode",
            "rejected": f"Corrected p ≤ {LEVEL}",
            "tokens": "Tokens and domains of these",
            "smallest": "Smallest p",
        },
        "Dip tests of every frequent token, head and domain; correction by Benjamini and Hochberg "
        "over all tests of a row.",
        numbers=("expected", "smallest"),
    )


# Column of the table -> heading, and how its number is written (none: as it is).
STRONGEST: dict[str, tuple[str, str]] = {
    "rank": ("Rank", ""),
    "token": ("Token", ""),
    "domain": ("Domain", ""),
    "head": ("Head", ""),
    "count": ("Occurrences", ""),
    "effective": ("Worth independent", ".0f"),
    "p": ("Dip test p", "p"),
    "p_adjusted": ("Corrected p", "p"),
    "control_p": ("p at nβ = 0", "p"),
    "lower": ("Lower center", ".2g"),
    "upper": ("Upper center", ".2g"),
    "distance": ("D", ".1f"),
    "kappa": ("κ", ".2f"),
    "gap_rank_one": ("Gap in rank-one part", ".2f"),
    "auc_loss": ("AUC of the loss", ".2f"),
    "verdict": ("Two modes", ""),
}
TEXTS = ("token", "domain", "head", "verdict")


def cell(value: float | None, how: str) -> str:
    """A number as text; nothing where there is none."""
    if how == "p":
        return p_written(value)
    return "" if value is None else minus(format(value, how))


def strongest(modes: pl.DataFrame) -> pl.DataFrame:
    """The first rows of the search, written out."""
    rows = []
    for row in modes.head(LISTED).iter_rows(named=True):
        values = row | {
            "token": visible(row["text"]),
            "domain": row["probe"],
            "head": row["component"],
            "verdict": "shown" if row["two_modes"] else "not shown",
        }
        rows.append(
            {
                name: values[name] if not how else cell(values[name], how)
                for name, (_, how) in STRONGEST.items()
            }
        )
    schema = {name: pl.Int64() if name in ("rank", "count") else pl.String() for name in STRONGEST}
    return pl.DataFrame(rows, schema=schema)


def strongest_table(table: pl.DataFrame) -> str:
    return table_fragment(
        table,
        {name: heading for name, (heading, _) in STRONGEST.items()},
        "The strongest cases of the search: one row a token and domain, for the head with the "
        "smallest p. Centers of the modes in nats². D: their distance; κ: agreement of the "
        "halves of the chains beyond chance. Gap: what the rank-one part adds to the difference "
        "between the modes, in chains that did not assign the occurrences, as a share. AUC: "
        "chance that an occurrence of the upper mode has the larger loss at w*; 0.5 is no "
        "relation.",
        numbers=[name for name in STRONGEST if name not in (*TEXTS, "rank", "count")],
    )


def power_table(power: pl.DataFrame) -> str:
    """What the test could have seen."""
    levels = power["level"].unique().sort(descending=True).to_list()
    rows = [
        {
            "distance": f"{distance:g}",
            "share": f"{100 * share:.0f} %",
            **{
                f"at_{k}": f"{100 * p:.0f} %"
                for k, p in enumerate(mine.sort("level")["power"][::-1])
            },
        }
        for (distance, share), mine in power.group_by(["distance", "share"], maintain_order=True)
    ]
    names = {
        "distance": "Distance D",
        "share": "In the smaller mode",
        **{f"at_{k}": f"Found at p ≤ {p_written(level)}" for k, level in enumerate(levels)},
    }
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String()))
    return table_fragment(
        frame,
        names,
        f"What the test can see: samples of {power['effective'][0]:.0f} independent values, the "
        "median here, from two Gaussian modes. The second level is what a single bimodal token "
        "among all tests would need.",
        numbers=list(names),
    )


def minus(text: str) -> str:
    """A number with a real minus sign, and none before a zero."""
    bare = text.lstrip("-")
    return bare if not bare.strip("0.") else text.replace("-", "−")


def p_written(p: float | None) -> str:
    """0.05, or 4 × 10⁻⁵; what is beyond the table of the dip test is not spelled out."""
    if p is None:
        return ""
    if p < 1e-6:
        return "< 10⁻⁶"
    if p >= 1e-3:
        return f"{p:.2g}"
    digits, power = f"{p:.0e}".split("e-")
    return f"{digits} × 10⁻{str(int(power)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def p_of(p: float) -> str:
    """``= 0.05`` or ``< 10⁻⁶``."""
    text = p_written(p)
    return text if text.startswith("<") else f"= {text}"


def context_of(row: Mapping[str, Any]) -> dict[str, str]:
    """One typical occurrence, with its surroundings cut to fit a line."""
    before, after = row["before"], row["after"]
    return {
        "before": ("…" if len(before) > BEFORE else "") + printable(before[-BEFORE:]),
        "token": visible(row["text"]),
        "after": printable(after[:AFTER]) + ("…" if len(after) > AFTER else ""),
        "value": written(row["value"], row["se"]),
    }


def cases(tables: Tables, titles: Mapping[str, str], roles: Mapping[str, str]) -> list[Any]:
    """The strongest cases with the contexts of both modes."""
    found = []
    for row in tables.modes.iter_rows(named=True):
        mine = tables.typical.filter(pl.col("rank") == row["rank"])
        if not len(mine):
            continue
        role = roles.get(row["component"], "")
        sides = []
        for upper, name in ((False, "lower"), (True, "upper")):
            share = row["share"] if upper else 1 - row["share"]
            contexts = mine.filter(pl.col("upper") == upper)
            sides.append(
                {
                    "name": name,
                    "center": written(row[name], row[f"{name}_se"]),
                    "count": round(share * row["count"]),
                    "rows": [context_of(r) for r in contexts.iter_rows(named=True)],
                }
            )
        found.append(
            {
                "rank": row["rank"],
                "token": visible(row["text"]),
                "where": printable(titles.get(row["probe"], row["probe"])),
                "head": f"{row['component']}, {role}" if role else row["component"],
                "numbers": f"{row['count']} occurrences in {row['contexts']} contexts, worth "
                f"{row['effective']:.0f} independent ones; dip test p {p_of(row['p'])}, "
                f"corrected {p_written(row['p_adjusted'])}; D {written(row['distance'])}; "
                f"κ {written(row['kappa'], row['kappa_se'])}; gap in the rank-one part "
                f"{written(row['gap_rank_one'])}, mean shift {written(row['gap_mean_shift'])}, "
                f"covariance {written(row['gap_covariance'])}; AUC of the loss "
                f"{written(row['auc_loss'])}",
                "sides": sides,
            }
        )
    return found


def page(results: Path, tables: Tables, titles: Mapping[str, str]) -> str:
    """The whole page, self-contained; every text in it is escaped."""
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    roles = dict(zip(final["head"], final["role"], strict=True))
    tests = tables.search.filter((pl.col("form") == "chi") & ~pl.col("control"))
    template = environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    # The fragments are this package's own, with every text in them escaped.
    return template.render(
        model=encodable(read_json(results / "model" / "model.json")["label"]),
        tokens=len(tables.modes),
        passed=int(tables.modes["two_modes"].sum()),
        tests=len(tests),
        least=MIN_COUNT,
        contexts=MIN_CONTEXTS,
        level=LEVEL,
        distance=DISTANCE,
        kappa=KAPPA,
        counts=Markup(counts_table(counts(tables.search))),
        strongest=Markup(strongest_table(strongest(tables.modes))),
        power=Markup(power_table(tables.power)) if len(tables.power) else "",
        cases=cases(tables, titles, roles),
    )


def titles_of(results: Path) -> dict[str, str]:
    """Probe -> its name with the subset of the Pile whose place it takes."""
    found = {}
    for probe, about in read_json(results / "tokens" / "manifest.json")["domains"].items():
        subset = about.get("stands_in_for")
        found[probe] = f"{probe} (for {subset})" if subset and subset != probe else probe
    return found


def write_table(results: Path, name: str, table: pl.DataFrame, html: str) -> None:
    """A table of the report: all columns as CSV, the chosen ones as HTML."""
    with atomic_path(results / "tables" / f"{name}.csv") as path:
        table.write_csv(path)
    write_text(results / "tables" / f"{name}.html", html)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    tables = Tables.read(results / FOLDER)
    titles = titles_of(results)
    found = counts(tables.search)
    write_table(results, "bimodal_tests", found, counts_table(found))
    listed = strongest_table(strongest(tables.modes))
    write_table(results, "bimodal_search", tables.modes, listed)
    write_text(results / "pages" / "bimodal_search.html", page(results, tables, titles))


if __name__ == "__main__":
    run(main)
