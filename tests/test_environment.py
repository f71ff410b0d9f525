"""The three descriptions of the environment agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
# Conda's names of packages that have another name there.
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base", "snakemake": "snakemake-minimal"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_environment_has_the_same_bounds() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert "Untested" in (ROOT / "environment.yml").read_text()
    conda = {}
    for entry in environment["dependencies"]:
        if isinstance(entry, str):
            name, _, bounds = entry.partition(" ")
            conda[normal(name)] = SpecifierSet(bounds)
    assert conda.pop("python") == SpecifierSet(project()["requires-python"])
    required = [Requirement(text) for text in project()["dependencies"]]
    assert conda == {normal(CONDA.get(r.name, r.name)): r.specifier for r in required}


def test_constraints_are_exact_and_within_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {}
    for line in lines:
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9][0-9a-z.]*)", line)
            assert match, f"not a plain pin: {line}"
            pinned[normal(match[1])] = match[2]
    optional = project()["optional-dependencies"].values()
    for text in (*project()["dependencies"], *(t for extra in optional for t in extra)):
        requirement = Requirement(text)
        # A peer of the benchmarks is pinned by its extra; the tests' environment has none.
        if requirement.name not in ("susceptibilities", "devinterp"):
            version = pinned[normal(requirement.name)]
            assert requirement.specifier.contains(version), f"{text} does not allow {version}"


def test_citation_names_the_published_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    cited = [
        [
            f"{a['given-names']} {a.get('name-particle', '')} {a['family-names']}".replace(
                "  ", " "
            )
            for a in reference["authors"]
        ]
        for reference in citation["references"]
    ]
    for name in ("baker2025", "gordon2026", "murfet2026", "arditi2026"):
        paper = yaml.safe_load((ROOT / f"published/{name}.yaml").read_text())
        assert paper["authors"] in cited
        titles = [r["title"] for r in citation["references"]]
        assert any(paper["title"].startswith(title) for title in titles)
