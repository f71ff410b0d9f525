"""What the papers claim, what a section regenerates, and what a run measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from .store import read_json

Kind = Literal["exact", "pattern", "number", "setting"]
Relation = Literal["==", "~", "<", ">", "<="]

# A published value is kept as the text that was printed ("4.10" is not "4.1"); lists nest.
Printed = str | list[str | list[str]]
Number = float | list[float | list[float]]

M = TypeVar("M")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class InputError(ValueError):
    """A file that cannot be used; the message names it, what was expected and what was found."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Claim(_Strict):
    """One published statement: where it stands, what it says, and its value if it has one."""

    id: str
    where: str
    what: str
    kind: Kind
    value: Printed | None = None
    relation: Relation = "=="
    unit: str = ""
    needs: str = ""
    note: str = ""
    trust: str = ""

    @model_validator(mode="after")
    def _numeric(self) -> Claim:
        """Only a setting may hold words as its value."""
        if self.kind != "setting" and self.value is not None:
            for text in leaves(self.value):
                if NUMBER.fullmatch(text) is None:
                    raise ValueError(f"value of claim {self.id} is not a number: {text!r}")
        return self


class Paper(_Strict):
    """One file of ``published/``."""

    paper: str
    title: str
    authors: tuple[str, ...]
    arxiv: str = ""
    claims: tuple[Claim, ...]


class PaperModel(_Strict):
    """The model a claim needs: its place in a scale file, and the papers' own hub names."""

    role: str
    repos: tuple[str, ...]


class Section(_Strict):
    """One folder of ``experiments/`` and the published places it regenerates."""

    title: str
    where: dict[str, tuple[str, ...]] = {}
    claims: tuple[str, ...] = ()


class Sections(_Strict):
    """``published/sections.yaml``: order of the papers, their models, places to sections."""

    papers: tuple[str, ...]
    models: dict[str, PaperModel]
    corpora: tuple[str, ...]
    sections: dict[str, Section]

    def folder_of(self, paper: str, claim: Claim) -> str:
        """Folder of the section that regenerates the claim; empty where none is named."""
        for folder, section in self.sections.items():
            if claim.id in section.claims:
                return folder
        for folder, section in self.sections.items():
            if claim.where in section.where.get(paper, ()):
                return folder
        return ""


class Published(_Strict):
    """All papers, in order, and the map from places to sections."""

    papers: tuple[Paper, ...]
    sections: Sections

    def claims(self) -> dict[str, tuple[Paper, Claim]]:
        """Every claim that is not a setting, in the order of the papers."""
        return {
            claim.id: (paper, claim)
            for paper in self.papers
            for claim in paper.claims
            if claim.kind != "setting"
        }


class Bound(_Strict):
    """How far a regenerated number may lie from the published one: one of the two."""

    relative: float | None = Field(default=None, gt=0)
    absolute: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one(self) -> Bound:
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("give either relative or absolute")
        return self


class Declared(_Strict):
    """One entry of a section's claims.yaml: a claim that the section regenerates."""

    id: str
    note: str = ""
    bound: Bound | None = None
    known_mismatch: str = ""


class SectionClaims(_Strict):
    """A section's claims.yaml."""

    claims: tuple[Declared, ...]


class Measured(_Strict):
    """One regenerated claim. ``holds`` is for exact and pattern claims; None is undecided.

    ``n`` counts what the value was measured on. Where it is 0 nothing could be measured in this
    run (a text that the corpus lacks, say), and ``note`` says why.
    """

    model_config = ConfigDict(strict=True)  # true is not 1, and "0.5" is not 0.5

    value: Number | None = None
    se: Number | None = None
    n: int | float | None = None
    note: str = ""
    holds: bool | None = None
    statistic: str = ""
    bound: str = ""
    carried_by: str = ""


def leaves(value: Any) -> list[Any]:
    """The scalars of a nested list, in order."""
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def read_yaml(path: Path) -> Any:
    """Read YAML with every scalar as the text that was written, so no digit is lost."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from error


def parse(kind: type[M], value: Any, path: Path) -> M:
    """Validate a value; the error names the file, the place and what was found there."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{path}: {_describe(error, value)}") from error


def _describe(error: ValidationError, value: Any) -> str:
    lines = []
    for item in error.errors():
        place: list[str] = []
        here: Any = value
        for key in item["loc"]:
            try:
                here = here[key]
            except (KeyError, IndexError, TypeError):
                here = None
            # An entry of a list is easier to find by its id than by its number.
            place.append(str(here["id"]) if isinstance(here, dict) and "id" in here else str(key))
        lines.append(f"{' > '.join(place) or 'top level'}: {item['msg']}")
    return "; ".join(lines)


def load_published(folder: Path) -> Published:
    """Read ``published/``: sections.yaml and every paper's file.

    Raises:
        InputError: a file is missing, has an unknown key or a wrong value, repeats a claim,
            or is not named in sections.yaml.
    """
    sections = parse(Sections, read_yaml(folder / "sections.yaml"), folder / "sections.yaml")
    found = {path.stem for path in folder.glob("*.yaml")} - {"sections"}
    if found != set(sections.papers):
        raise InputError(
            f"{folder / 'sections.yaml'}: papers {sorted(sections.papers)} do not agree with the "
            f"files of the folder, {sorted(found)}: add the missing one or take it out"
        )
    papers = []
    seen: set[str] = set()
    for name in sections.papers:
        path = folder / f"{name}.yaml"
        paper = parse(Paper, read_yaml(path), path)
        if paper.paper != name:
            raise InputError(f"{path}: says `paper: {paper.paper}`, expected {name}")
        for claim in paper.claims:
            if claim.id in seen:
                raise InputError(f"{path}: claim {claim.id} is there twice")
            seen.add(claim.id)
        papers.append(paper)
    return Published(papers=tuple(papers), sections=sections)


def load_declared(experiments: Path, published: Published) -> dict[str, dict[str, Declared]]:
    """Read every ``experiments/<paper>/<section>/claims.yaml``.

    Returns:
        Folder ("<paper>/<section>") to the claims it regenerates, by id.

    Raises:
        InputError: an unknown claim, a setting, or a claim that two sections list.
    """
    known = published.claims()
    owner: dict[str, str] = {}
    result: dict[str, dict[str, Declared]] = {}
    for path in sorted(experiments.glob("*/*/claims.yaml")):
        folder = f"{path.parent.parent.name}/{path.parent.name}"
        section = parse(SectionClaims, read_yaml(path), path)
        for declared in section.claims:
            if declared.id not in known:
                raise InputError(f"{path}: {declared.id} {_unknown(published, declared.id)}")
            if declared.id in owner:
                raise InputError(
                    f"{path}: {declared.id} is also listed by {owner[declared.id]}; "
                    "one section regenerates a claim"
                )
            owner[declared.id] = folder
        result[folder] = {declared.id: declared for declared in section.claims}
    return result


def _unknown(published: Published, claim: str) -> str:
    if any(claim == other.id for paper in published.papers for other in paper.claims):
        return "is a setting, not a claim"
    return "is no claim of published/*.yaml"


def load_measured(
    results: Path, published: Published, declared: Mapping[str, Mapping[str, Declared]]
) -> dict[str, Measured]:
    """Read ``measured.json`` of every section that has run.

    Returns:
        Claim id to what was measured. A section without the file has not run.

    Raises:
        InputError: an id that the section's claims.yaml does not list, a listed id without
            a value, or an entry that does not fit its kind of claim.
    """
    known = published.claims()
    measured: dict[str, Measured] = {}
    for path in sorted(results.glob("*/*/measured.json")):
        folder = f"{path.parent.parent.name}/{path.parent.name}"
        try:
            content = read_json(path)
        except ValueError as error:
            raise InputError(f"{path}: not readable as JSON: {error}") from error
        entries = parse(dict[str, Measured], content, path)
        listed = declared.get(folder, {})
        for claim in entries:
            if claim not in known:
                raise InputError(f"{path}: {claim} {_unknown(published, claim)}")
            if claim not in listed:
                raise InputError(
                    f"{path}: {claim} is not listed in experiments/{folder}/claims.yaml: add it"
                )
            _fits(known[claim][1], entries[claim], path)
        for claim in listed:
            if claim not in entries:
                raise InputError(
                    f"{path}: no entry for {claim}, which experiments/{folder}/claims.yaml lists"
                )
        measured.update(entries)
    return measured


def _fits(claim: Claim, entry: Measured, path: Path) -> None:
    """An entry must have what the verdict on its kind of claim is made from."""
    if entry.n == 0:
        if not entry.note:
            raise InputError(f"{path}: {claim.id} has n = 0; its note must say why")
        return
    if claim.kind == "number":
        if entry.value is None:
            raise InputError(f"{path}: {claim.id} is a number, but the entry has no value")
        if entry.holds is not None:
            raise InputError(f"{path}: {claim.id} is a number; `holds` is for exact and pattern")
    elif "holds" not in entry.model_fields_set:
        raise InputError(
            f"{path}: {claim.id} is {claim.kind}; the entry needs `holds`: true, false or null"
        )
    elif not (entry.statistic and entry.bound):
        raise InputError(f"{path}: {claim.id} needs `statistic` and `bound` in words")


def target_of(folder: str) -> str:
    """Name to type after ``snakemake``: "baker2025/s4_1_dataset…" -> "s4_1", else the folder's."""
    name = folder.rsplit("/", 1)[-1]
    match = re.match(r"(s\d+_\d+)_", name)
    return match.group(1) if match else name
