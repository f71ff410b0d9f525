"""The page "what a susceptibility is made of": saved tables as text, tables and figures.

Nothing is estimated here, and no number or verdict is written in the template: sentences are
chosen by what the tables say.
"""

from __future__ import annotations

import argparse
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup
from page_facts import beside_view, claims_view, facts_view
from page_views import (
    construction_view,
    ends_view,
    induction_view,
    reliability_view,
    remainder_view,
    settings_view,
    sizes_view,
)

from susceptibilities.claims import load_published
from susceptibilities.console import run
from susceptibilities.markup import environment, write_text
from susceptibilities.report.numbers import format_number
from susceptibilities.store import read_json

FOLDER = "arditi2026/response_matrix"
SECTION_41 = "baker2025/s4_1_dataset_susceptibilities"
TEMPLATE = "what_chi_is_made_of.html.jinja"
TABLES = (
    *("variance", "made_of", "construction", "uniform", "by_role", "enrichment", "ends", "sizes"),
    *("reliability", "half", "induction", "beside_control"),
)
FIGURES = ("parts_of_chi", "response_pca", "pc_categories", "reliability_by_draws")


def load_tables(results: Path) -> dict[str, pl.DataFrame]:
    found = {name: pl.read_parquet(results / FOLDER / f"{name}.parquet") for name in TABLES}
    return {**found, "llc": pl.read_parquet(results / SECTION_41 / "llc.parquet")}


def measured_of(results: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Claim -> (section's folder, entry) of every section that has run."""
    found = {}
    for path in sorted(results.glob("*/*/measured.json")):
        folder = f"{path.parent.parent.name}/{path.parent.name}"
        for claim, entry in read_json(path).items():
            found[claim] = (folder, entry)
    return found


def pictures(results: Path) -> dict[str, str]:
    """Figure -> data URL, so that the page is one file."""
    return {
        name: "data:image/png;base64,"
        + b64encode((results / "figures" / f"{name}.png").read_bytes()).decode("ascii")
        for name in FIGURES
    }


def page_environment() -> jinja2.Environment:
    """The package's templates, and those beside this script."""
    result = environment()
    assert result.loader is not None
    beside = jinja2.FileSystemLoader(Path(__file__).parent)
    result.loader = jinja2.ChoiceLoader([beside, result.loader])
    result.filters["number"] = lambda pair: Markup.escape(format_number(*pair))
    result.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    result.filters["listed"] = listed
    return result


def listed(words: Iterable[str]) -> str:
    """ "a, b and c"."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def views(results: Path, published: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    tables = load_tables(results)
    config = read_json(results / "config.json")
    papers = load_published(published)
    model = read_json(results / "model" / "model.json")
    manifest = read_json(results / "tokens" / "manifest.json")
    control = bool((tables["variance"]["source"] == "control").any())
    return {
        "control": control,
        "settings": settings_view(config, model, manifest, papers, results),
        "sizes": sizes_view(tables, config, control),
        "construction": construction_view(tables, papers, control),
        "remainder": remainder_view(tables, control),
        "ends": ends_view(tables),
        "induction": induction_view(tables),
        "reliability": reliability_view(tables, control),
        "claims": claims_view(measured_of(results), papers),
        "facts": facts_view(tables, control),
        "beside": beside_view(tables) if control else {},
    }


def render(shown: Mapping[str, Any], images: Mapping[str, str]) -> str:
    return page_environment().get_template(TEMPLATE).render(**shown, images=images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    parser.add_argument("--published", type=Path, default=Path("published"))
    parser.add_argument("--out", type=Path, help="[<results>/pages/what_chi_is_made_of.html]")
    given = parser.parse_args()
    results: Path = given.results
    out = given.out or results / "pages" / "what_chi_is_made_of.html"
    write_text(out, render(views(results, given.published), pictures(results)))


if __name__ == "__main__":
    run(main)
