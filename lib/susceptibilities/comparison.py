"""The comparison: one row for every claim of the papers, and its CSV file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .claims import (
    InputError,
    Measured,
    Number,
    Printed,
    Published,
    load_declared,
    load_measured,
    load_published,
    target_of,
)
from .store import atomic_path
from .verdicts import FAILING, Verdict, judge

# Scales whose sizes prove the wiring only.
UNDECIDING_SCALES = ("smoke",)


@dataclass(frozen=True)
class Row:
    """One claim of the papers beside what this run regenerated. The fields are CSV columns."""

    id: str
    paper: str
    where: str
    what: str
    kind: str
    published: Printed | None
    relation: str
    regenerated: Number | None
    se: Number | None
    n: int | float | None
    verdict: Verdict
    reason: str
    target: str


@dataclass(frozen=True)
class Comparison:
    """Everything that the report needs to know about the claims."""

    published: Published
    rows: tuple[Row, ...]
    measured: Mapping[str, Measured]
    notes: Mapping[str, str]  # claim id -> note of the section's claims.yaml
    folders: Mapping[str, str]  # claim id -> section folder

    @property
    def failing(self) -> tuple[Row, ...]:
        """Rows that make `check` fail."""
        return tuple(row for row in self.rows if row.verdict in FAILING)


def why_not_comparable(config: Mapping[str, Any], needs: str, published: Published) -> str:
    """Why numbers of this run are not to be held against the paper's; empty where they are.

    They are where the claim's model and the corpus both come from the hub and are the ones
    that ``published/sections.yaml`` names.

    Args:
        config: the resolved scale file.
        needs: the claim's ``needs``; a claim that names no model is held to the first one.
    """
    models = published.sections.models
    paper_model = models.get(needs) or next(iter(models.values()))
    role: Any = config
    for part in paper_model.role.split("."):
        role = role.get(part) if isinstance(role, Mapping) else None
    model = role.get("model", {}) if isinstance(role, Mapping) else {}
    corpus = config.get("corpus", {})
    papers_model = model.get("kind") == "hub" and model.get("repo") in paper_model.repos
    papers_text = corpus.get("kind") == "hub" and all(
        any(fnmatchcase(source["repo"], pattern) for pattern in published.sections.corpora)
        for source in (corpus["train"], *corpus["domains"].values())
    )
    if papers_model and papers_text:
        return ""
    if papers_model:
        return "the text is not the paper's"
    return "the model is not the paper's" if papers_text else "another model and other text"


def compare(
    results: Path, experiments: Path, published_folder: Path, config: Mapping[str, Any]
) -> Comparison:
    """Hold every regenerated value against the published one.

    Args:
        results: folder of one scale; ``<paper>/<section>/measured.json`` below it.
        experiments: folder with ``<paper>/<section>/claims.yaml``.
        published_folder: folder with the papers' values and sections.yaml.
        config: the resolved scale file (``config.json`` of the results).

    Raises:
        InputError: any of the files is wrong; the message names it.
    """
    published = load_published(published_folder)
    declared = load_declared(experiments, published)
    measured = load_measured(results, published, declared)
    owner = {claim: folder for folder, claims in declared.items() for claim in claims}
    decides = config.get("scale") not in UNDECIDING_SCALES
    rows, notes, folders = [], {}, {}
    for claim_id, (paper, claim) in published.claims().items():
        folder = owner.get(claim_id) or published.sections.folder_of(paper.paper, claim)
        target = target_of(folder)
        entry = measured.get(claim_id)
        declaration = declared.get(folder, {}).get(claim_id)
        try:
            judgement = judge(
                claim,
                entry,
                declaration,
                not_comparable=why_not_comparable(config, claim.needs, published),
                decides=decides,
                not_run=_not_run(target, claim_id in owner, folder in declared),
            )
        except ValueError as error:
            raise InputError(f"{results / folder / 'measured.json'}: {error}") from error
        folders[claim_id] = folder
        if declaration is not None and declaration.note:
            notes[claim_id] = declaration.note
        rows.append(
            Row(
                id=claim_id,
                paper=paper.paper,
                where=claim.where,
                what=claim.what,
                kind=claim.kind,
                published=claim.value,
                relation=claim.relation if claim.value is not None else "",
                regenerated=entry.value if entry else None,
                se=entry.se if entry else None,
                n=entry.n if entry else None,
                verdict=judgement.verdict,
                reason=judgement.reason,
                target=target,
            )
        )
    return Comparison(published, tuple(rows), measured, notes, folders)


def _not_run(target: str, owned: bool, built: bool) -> str:
    if owned:
        return f"`snakemake -c2 {target}` regenerates it"
    if built:
        return f"section {target} does not regenerate it yet"
    return f"section {target} is not built yet" if target else "no section regenerates it"


COLUMNS = tuple(field.name for field in fields(Row))


def write_csv(rows: tuple[Row, ...], path: Path) -> None:
    """Write comparison.csv; lists as JSON, published numbers as they were printed."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_cell(getattr(row, name), name) for name in COLUMNS])


def _cell(value: Any, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        text = json.dumps(value)
        # Printed numbers are kept as text; in the list they stand as numbers.
        return text.replace('"', "") if column == "published" else text
    return str(value)


def read_failing(path: Path) -> list[dict[str, str]]:
    """Rows of a comparison.csv whose verdict makes `check` fail.

    Raises:
        InputError: no such file, or columns other than those of a comparison.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; `snakemake -c2 compare` writes it")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(f"{path}: expected the columns {COLUMNS}, found {reader.fieldnames}")
        return [row for row in reader if row["verdict"] in FAILING]
