"""Where a run comes from: code, versions, device, seeds, data, weights, time; how to cite it."""

from __future__ import annotations

import csv
import json
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from ..claims import InputError
from ..store import fingerprint
from .numbers import format_seconds
from .tables import Table

PACKAGES = ("torch", "numpy", "polars", "xarray", "zarr", "tokenizers", "safetensors", "snakemake")


def git_state(root: Path) -> tuple[str, bool | None]:
    """Commit of the checkout and whether tracked files differ from it; ("", None) without git."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "", None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def versions() -> dict[str, str]:
    """Version of Python, of this package and of those that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("susceptibilities", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def sampled_on(results: Path) -> dict[str, set[str]]:
    """Values of ``device`` and ``seed`` among the attributes of the saved losses."""
    found: dict[str, set[str]] = {"device": set(), "seed": set()}
    for path in sorted(results.glob("losses/*.zarr/zarr.json")):
        attributes = json.loads(path.read_text(encoding="utf-8")).get("attributes", {})
        for name, values in found.items():
            if name in attributes:
                values.add(str(attributes[name]))
    return found


def seeds(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting of the scale named ``seed``, with its place."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from seeds(value, f"{prefix}{key}.")
        elif key == "seed":
            yield f"{prefix}{key}", str(value)


def wall_times(results: Path) -> Table | None:
    """Wall time, largest memory and number of jobs of each rule, from the benchmark files."""
    rules: dict[str, list[tuple[float, float]]] = {}
    folder = results / "benchmarks"
    for path in sorted(folder.rglob("*.tsv")):
        # "sample_000080.control.tsv" and "sample/000080.tsv" are both jobs of the rule `sample`.
        rule = re.sub(r"(_\d+)?(\..*)?$", "", path.relative_to(folder).parts[0], count=1)
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                rules.setdefault(rule, []).append(
                    (_float(row.get("s")), _float(row.get("max_rss")))
                )
    if not rules:
        return None
    total = sum(seconds for jobs in rules.values() for seconds, _ in jobs)
    order = sorted(rules.items(), key=lambda item: -sum(seconds for seconds, _ in item[1]))
    rows = [
        (
            rule,
            str(len(jobs)),
            format_seconds(sum(seconds for seconds, _ in jobs)),
            f"{peak:.0f} MB" if (peak := max(memory for _, memory in jobs)) else "",
        )
        for rule, jobs in order
    ]
    rows.append(("all", str(sum(map(len, rules.values()))), format_seconds(total), ""))
    return Table("Time of each rule", ("Rule", "Jobs", "Wall time", "Largest memory"), rows)


def _float(text: str | None) -> float:
    """A benchmark's number; Snakemake writes NA or - where it could not measure."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def load_citation(path: Path) -> dict[str, Any]:
    """Read CITATION.cff; {} where there is none."""
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def references(citation: Mapping[str, Any]) -> list[dict[str, str]]:
    """Title, authors, year and link of each reference of CITATION.cff."""
    found = []
    for entry in citation.get("references", []):
        link = _link(entry)
        found.append(
            {
                "title": str(entry.get("title", "")),
                "authors": ", ".join(people(entry)),
                "year": str(entry.get("year") or entry.get("date-released") or ""),
                # Only web addresses become links.
                "link": link if link.startswith(("https://", "http://")) else "",
            }
        )
    return found


def _link(entry: Mapping[str, Any]) -> str:
    if entry.get("url") or entry.get("doi"):
        return entry.get("url") or f"https://doi.org/{entry['doi']}"
    for identifier in entry.get("identifiers", []):
        kind, _, number = str(identifier.get("value")).partition(":")
        if kind.lower() == "arxiv":
            return f"https://arxiv.org/abs/{number}"
    return ""


def people(entry: Mapping[str, Any]) -> list[str]:
    """Names of the authors of a CFF entry."""
    return [
        author.get("name")
        or " ".join(
            filter(
                None,
                (author.get(part) for part in ("given-names", "name-particle", "family-names")),
            )
        )
        for author in entry.get("authors", [])
    ]


def provenance(
    results: Path,
    root: Path,
    config: Mapping[str, Any],
    model: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> dict[str, str]:
    """What a reader needs to make the run again, as label -> text."""
    commit, dirty = git_state(root)
    found = versions()
    sampled = sampled_on(results)
    state = {True: " with uncommitted changes", False: "", None: ""}[dirty]
    return {
        "Commit": f"{commit}{state}" if commit else "not a git checkout",
        "susceptibilities": found.pop("susceptibilities"),
        "Versions": ", ".join(f"{name} {version}" for name, version in found.items()),
        "Machine": f"{platform.system()} {platform.machine()}",
        "Sampled on": ", ".join(sorted(sampled["device"])) or "not recorded",
        "Seeds": ", ".join(f"{name} = {value}" for name, value in seeds(config)) or "none set",
        "Settings": f"scale {config.get('scale')}, fingerprint {fingerprint(config)}",
        "Text": f"{config.get('corpus', {}).get('name')}, fingerprint {data_hash(manifest)}",
        "Model": f"{model.get('label', 'not recorded')}, fingerprint {model_hash(model)}",
        "Report written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def data_hash(manifest: Mapping[str, Any]) -> str:
    """One hash for all domains' text."""
    return fingerprint(manifest) if manifest else "not recorded"


def model_hash(model: Mapping[str, Any]) -> str:
    """One hash for all checkpoints."""
    return fingerprint(model["sha256"]) if model.get("sha256") else "not recorded"


def bibtex(citation: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """A BibTeX entry for this run of the software."""
    fields = {
        "title": f"{{{citation.get('title', 'susceptibilities')}}}",
        "author": " and ".join(people(citation)) or "{The authors of susceptibilities}",
        "year": facts["Report written"][:4],
        "version": facts["susceptibilities"],
        "url": citation.get("repository-code") or citation.get("url") or "",
        "note": "; ".join(
            f"{name.lower()}: {facts[name]}" for name in ("Commit", "Settings", "Model", "Text")
        ),
    }
    lines = [
        f"  {name} = {{{value if name == 'url' else _plain(value)}}},"
        for name, value in fields.items()
        if value
    ]
    return "@software{susceptibilities_run,\n" + "\n".join(lines) + "\n}"


def _plain(text: str) -> str:
    """Characters that end or start something in TeX, made harmless."""
    for character in "%&#_$":
        text = text.replace(character, f"\\{character}")
    return text
