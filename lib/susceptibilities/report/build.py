"""Assemble the report: read what a run saved, render one page, copy its figures."""

from __future__ import annotations

import re
import shutil
import struct
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from pydantic import BaseModel, ConfigDict

from ..claims import InputError, parse, read_yaml, target_of
from ..comparison import UNDECIDING_SCALES, Comparison, Row
from ..markup import environment as templates
from ..store import atomic_path, read_json
from ..verdicts import VERDICTS
from . import provenance, tables
from .embedded import load_fragment
from .numbers import format_count, format_measured, format_published
from .traces import HEIGHT, WIDTH, trace_panels

MAIN_SECTION = "baker2025/s4_1_dataset_susceptibilities"
PARTS_PAGE = "what_chi_is_made_of"  # linked where the report speaks of it
LONG_NOTE = 260  # characters; a longer note of the comparison is folded
SHOWN_FIGURES = 6  # of a section; the others are in a closed list below them

MEANINGS = {
    "holds": "the statement holds, by its stated statistic and bound",
    "match": "the number agrees within 3 standard errors and within the declared bound",
    "fails": "the statement does not hold",
    "differs": "the number differs by more than 3 standard errors",
    "undecided": "the uncertainty spans both answers",
    "known mismatch": "the number differs, for a reason that is written down",
    "not comparable": "another model or other text than the paper's",
    "too small": "this scale proves the wiring only; its sizes decide nothing",
    "not run": "no rule of this run regenerates it, or its text lacks what it needs",
}

# Figures of the model itself, which belong to no section.
MODEL_FIGURES = {
    "training": "Training: loss by step.",
    "structure": "Structural scores of every head by checkpoint, and the loss on repeated text.",
}


class FigureText(BaseModel):
    """One entry of a section's figures.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    caption: str
    paper_shows: str = ""


@dataclass(frozen=True)
class Figure:
    """An entry of the page: a picture, a table, a page of its own, or more than one of these.

    Attributes:
        source: the picture; ``table``: a table, to be embedded, and ``csv``: the same as a file;
            ``page``: an HTML page to link. None where the run has not made it.
    """

    name: str
    title: str
    caption: str
    paper_shows: str
    source: Path | None
    size: tuple[int, int]
    claims: tuple[Row, ...]
    table: Markup | None = None
    csv: Path | None = None
    page: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Folder of the report -> the file that is copied there."""
        found = {"figures": self.source, "tables": self.csv, "pages": self.page}
        return {folder: path for folder, path in found.items() if path is not None}


@dataclass(frozen=True)
class SectionView:
    """A section that has figures or regenerated claims."""

    anchor: str
    title: str
    folder: str
    figures: tuple[Figure, ...]
    more: tuple[Figure, ...]


def load_config(results: Path, scale: str) -> dict[str, Any]:
    """Read the resolved scale file of a run.

    Raises:
        InputError: it is missing, or is that of another scale.
    """
    path = results / "config.json"
    if not path.exists():
        raise InputError(f"{path}: no such file; expected the resolved settings of the run")
    config = read_json(path)
    if not isinstance(config, dict) or config.get("scale") != scale:
        found = config.get("scale") if isinstance(config, dict) else type(config).__name__
        raise InputError(f"{path}: expected scale {scale}, found {found}")
    return config


def write_report(
    results: Path, experiments: Path, root: Path, config: Mapping[str, Any], comparison: Comparison
) -> Path:
    """Write ``report/index.html``, and below it figures/, tables/ and pages/.

    Args:
        results: folder of one scale.
        experiments: folder with ``<paper>/<section>/figures.yaml``.
        root: the repository, for its commit and CITATION.cff.

    Returns:
        Path of the page.
    """
    sections = load_sections(results, experiments, comparison)
    model_figures = [
        _figure(results, FigureText(name=name, caption=caption), ())
        for name, caption in MODEL_FIGURES.items()
    ]
    model_figures = [figure for figure in model_figures if figure.source]
    page = render(results, root, config, comparison, sections, model_figures)
    with atomic_path(results / "report") as folder:
        folder.mkdir()
        (folder / "index.html").write_text(page, encoding="utf-8")
        drawn = [*model_figures, *(f for s in sections for f in (*s.figures, *s.more))]
        for figure in drawn:
            for kind, path in figure.files.items():
                (folder / kind).mkdir(exist_ok=True)
                shutil.copyfile(path, folder / kind / path.name)
    return results / "report" / "index.html"


def load_sections(results: Path, experiments: Path, comparison: Comparison) -> list[SectionView]:
    """The sections with a figures.yaml, in the order of sections.yaml, then by name."""
    known = list(comparison.published.sections.sections)
    found = {
        f"{p.parent.parent.name}/{p.parent.name}": p for p in experiments.glob("*/*/figures.yaml")
    }
    order = sorted(
        found, key=lambda name: (known.index(name) if name in known else len(known), name)
    )
    views = []
    for folder in order:
        texts = parse(list[FigureText], read_yaml(found[folder]), found[folder])
        paper = folder.partition("/")[0]
        figures = tuple(
            _figure(results, text, _claims_of(text.name, paper, comparison.rows)) for text in texts
        )
        section = comparison.published.sections.sections.get(folder)
        views.append(
            SectionView(
                anchor=target_of(folder),
                title=section.title if section else folder,
                folder=folder,
                figures=figures[:SHOWN_FIGURES],
                more=figures[SHOWN_FIGURES:],
            )
        )
    return views


def _figure(results: Path, text: FigureText, claims: tuple[Row, ...]) -> Figure:
    def made(folder: str, suffix: str) -> Path | None:
        path = results / folder / f"{text.name}{suffix}"
        return path if path.exists() else None

    number = re.fullmatch(r"(fig|table)(\d+)", text.name)
    kind = {"fig": "Figure", "table": "Table"}
    title = f"{kind[number[1]]} {number[2]}" if number else text.name.replace("_", " ").capitalize()
    picture, table = made("figures", ".png"), made("tables", ".html")
    return Figure(
        name=text.name,
        title=title,
        caption=text.caption,
        paper_shows=text.paper_shows,
        source=picture,
        size=png_size(picture) if picture else (0, 0),
        claims=claims,
        table=load_fragment(table) if table else None,
        csv=made("tables", ".csv"),
        page=made("pages", ".html"),
    )


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG in pixels, from its header."""
    with path.open("rb") as file:
        header = file.read(24)
    if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n":
        raise InputError(f"{path}: not a PNG file; delete it and draw the figure again")
    width, height = struct.unpack(">II", header[16:])
    return width, height


def _claims_of(name: str, paper: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The claims whose place names the figure: "Figs 3-5" names fig3, fig4 and fig5."""
    return tuple(row for row in rows if row.paper == paper and name in figures_named(row.where))


def figures_named(where: str) -> set[str]:
    """Names of the figures and tables that a claim's place names."""
    names = set()
    pattern = r"\b(Fig|Table)s?\.? (\d+)(?:\s*[-\N{EN DASH}]\s*(\d+))?"
    for kind, first, last in re.findall(pattern, where):
        prefix = kind.lower()
        names |= {f"{prefix}{n}" for n in range(int(first), int(last or first) + 1)}
    return names


def render(
    results: Path,
    root: Path,
    config: Mapping[str, Any],
    comparison: Comparison,
    sections: list[SectionView],
    model_figures: list[Figure],
) -> str:
    """The page as HTML. All text from files is escaped by the templates."""
    model = _optional(results / "model" / "model.json")
    manifest = _optional(results / "tokens" / "manifest.json")
    citation = provenance.load_citation(root / "CITATION.cff")
    facts = provenance.provenance(results, root, config, model, manifest)
    main = results / MAIN_SECTION
    counts = {name: sum(row.verdict == name for row in comparison.rows) for name in VERDICTS}
    two_layer = config.get("two_layer", {})
    corpus = config.get("corpus", {})
    traced, panels = trace_panels(main, two_layer.get("sampler", {}).get("burn_in", 0))
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            scale=config["scale"],
            wiring_only=config["scale"] in UNDECIDING_SCALES,
            model=model.get("label") or two_layer.get("model", {}).get("repo") or "not recorded",
            corpus=corpus.get("name", "not recorded"),
            papers_model=_is_papers(two_layer.get("model", {}), comparison, "two_layer"),
            checkpoints=two_layer.get("checkpoints", []),
            sampler=two_layer.get("sampler", {}),
            papers=[
                (paper, [row for row in comparison.rows if row.paper == paper.paper])
                for paper in comparison.published.papers
            ],
            claims=comparison.published.claims(),
            measured=comparison.measured,
            notes=comparison.notes,
            anchors={section.anchor for section in sections},
            counts={name: count for name, count in counts.items() if count},
            meanings=MEANINGS,
            sections=sections,
            parts=tables.parts_table(main),
            parts_page=any(
                f.name == PARTS_PAGE and f.page for s in sections for f in s.figures + s.more
            ),
            parts_sentence=tables.parts_sentence(main),
            forms=tables.FORMS,
            carried=[
                (row, comparison.measured[row.id].carried_by)
                for row in comparison.rows
                if row.id in comparison.measured and comparison.measured[row.id].carried_by
            ],
            health=tables.health_tables(main),
            traced=traced,
            panels=panels,
            box=(WIDTH, HEIGHT),
            controls=tables.control_tables(main),
            sensitivity=tables.sensitivity_table(results),
            data=tables.data_table(manifest),
            structure=tables.structure_table(results),
            model_figures=model_figures,
            facts=facts,
            wall_times=provenance.wall_times(results),
            citation=provenance.bibtex(citation, facts),
            references=provenance.references(citation),
        )
    )


def _is_papers(model: Mapping[str, Any], comparison: Comparison, role: str) -> bool:
    """Whether the role's model is one of the paper's own."""
    repos = [
        repo
        for paper_model in comparison.published.sections.models.values()
        if paper_model.role == role
        for repo in paper_model.repos
    ]
    return model.get("kind") == "hub" and model.get("repo") in repos


def _optional(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def environment() -> jinja2.Environment:
    """The templates of the package, with the filters that the report uses."""
    result = templates()
    result.filters["code"] = code_spans
    result.filters["lead"] = lead
    result.filters["published"] = format_published
    result.filters["measured"] = format_measured
    result.filters["count"] = format_count
    return result


def code_spans(text: str) -> Markup:
    """Escape the text and set what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def lead(note: str) -> str:
    """What a reader sees of a note before opening it: its beginning, and every caution in it.

    The same as the note where that is short.
    """
    if len(note) <= LONG_NOTE:
        return note
    sentences = re.split(r"(?<=[.:!?])\s+(?=[A-Z])", note)
    first = textwrap.shorten(sentences[0], LONG_NOTE // 2, placeholder=" …")
    cautions = re.findall(r"Caution: [^.]*(?:\.\d[^.]*)*\.", note)
    return " ".join(dict.fromkeys([first, *cautions]))
