"""The embedded corpus: fetching, hashes, extraction into a folder. No network is used."""

from __future__ import annotations

import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from susceptibilities.corpora import (
    CorpusError,
    PackageCorpus,
    build_package_corpus,
    domains,
    packages,
    read_checked,
)
from susceptibilities.corpora.extract import EXTRACTORS
from susceptibilities.corpora.packages import Source, fetch_release
from susceptibilities.store import file_sha256, read_json

DEFINITION = Path(__file__).parents[2] / "config" / "corpora" / "packages.yaml"
LONG = "A sentence of the text that is long enough. " * 12


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Source]:
    """A wheel of three text files in the downloads folder, and its definition."""

    def make(files: dict[str, str] | None = None, **changes: object) -> Source:
        path = tmp_path / "downloads" / "prose-1.0.whl"
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in (files or {"prose/b.txt": LONG + "b", "prose/a.txt": LONG}).items():
                wheel.writestr(name, text)
        settings = {
            "package": "prose",
            "version": "1.0",
            "sha256": file_sha256(path),
            "extract": "plain",
            "files": ["prose/*.txt"],
        }
        return Source.model_validate({**settings, **changes})

    return make


def corpus(*sources: Source, **settings: object) -> PackageCorpus:
    domain = {"stands_in_for": "freelaw", "description": "prose", **settings}
    return PackageCorpus.model_validate(
        {"seed": 0, "domains": {"prose": {**domain, "sources": [s.model_dump() for s in sources]}}}
    )


def texts(folder: Path, domain: str = "prose") -> list[str]:
    return [document.text for document in read_checked(folder, domain)]


def test_a_package_corpus(release: Callable[..., Source], tmp_path: Path) -> None:
    files = {
        "prose/b.txt": LONG + "b",
        "prose/a.txt": LONG + "a",
        "prose/tests/c.txt": LONG + "c",
        "prose/short.txt": "too short",
        "prose/twice.txt": LONG + "a",
        "other.txt": LONG + "d",
    }
    source = release(files, exclude=["*/tests/*"])
    out = tmp_path / "corpus"
    build_package_corpus(corpus(source), out, tmp_path / "downloads")
    # Sorted by name; plumbing, exclusions and the repeated text are left out.
    assert texts(out) == [LONG + "a\n", LONG + "b\n"]
    entry = read_json(out / "manifest.json")["domains"]["prose"]
    assert entry["stands_in_for"] == "freelaw"
    assert entry["sources"] == [{"package": "prose", "version": "1.0", "sha256": source.sha256}]


def test_a_size_limit_keeps_every_split(release: Callable[..., Source], tmp_path: Path) -> None:
    source = release({f"prose/{i:04d}.txt": f"{LONG}{i}" for i in range(400)})
    limited = corpus(source, max_bytes=400 * len(LONG) // 2)
    build_package_corpus(limited, tmp_path / "half", tmp_path / "downloads")
    build_package_corpus(corpus(source), tmp_path / "all", tmp_path / "downloads")
    kept = list(read_checked(tmp_path / "half", "prose"))
    assert set(texts(tmp_path / "half")) < set(texts(tmp_path / "all"))
    assert 160 < len(kept) < 240
    assert 0.4 < sum(document.position for document in kept) / len(kept) < 0.6


def test_a_domain_without_text(release: Callable[..., Source], tmp_path: Path) -> None:
    nothing = corpus(release(files={"prose/a.txt": "short"}))
    with pytest.raises(CorpusError, match="domain 'prose' has no documents"):
        build_package_corpus(nothing, tmp_path / "corpus", tmp_path / "downloads")
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_an_altered_release(release: Callable[..., Source], tmp_path: Path, damage: str) -> None:
    source, path = release(), tmp_path / "downloads" / "prose-1.0.whl"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else data.replace(b"A", b"B", 1))
    found = file_sha256(path)
    expected = f"prose==1.0 is altered: expected sha256 {source.sha256}, found {found}"
    with pytest.raises(CorpusError, match=re.escape(expected)):
        build_package_corpus(corpus(source), tmp_path / "corpus", tmp_path / "downloads")
    # The next run fetches it again instead of stopping here for ever.
    assert not path.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


def pretend_pip(monkeypatch: pytest.MonkeyPatch, wheel: bytes | None, error: str = "") -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if wheel is not None:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "prose-1.0-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, int(wheel is None), "", error)

    monkeypatch.setattr(packages.subprocess, "run", run)


def test_a_fetched_release_is_kept(
    release: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, kept = release(), tmp_path / "downloads" / "prose-1.0.whl"
    data = kept.read_bytes()
    kept.unlink()
    pretend_pip(monkeypatch, data)
    assert fetch_release(source, kept.parent) == kept
    assert kept.read_bytes() == data
    pretend_pip(monkeypatch, None)
    assert fetch_release(source, kept.parent) == kept
    assert list(kept.parent.iterdir()) == [kept]


def test_a_fetched_release_with_another_hash_is_not_kept(
    release: Callable[..., Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, kept = release(sha256="0" * 64), tmp_path / "downloads" / "prose-1.0.whl"
    data = kept.read_bytes()
    kept.unlink()
    pretend_pip(monkeypatch, data)
    with pytest.raises(CorpusError, match=r"expected sha256 0{64}, found"):
        fetch_release(source, kept.parent)
    assert list(kept.parent.iterdir()) == []


def test_a_release_that_does_not_exist(
    tmp_path: Path, release: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = release(version="9.9")
    pretend_pip(monkeypatch, None, "ERROR: none\nERROR: No matching distribution for prose==9.9\n")
    with pytest.raises(CorpusError, match=r"prose==9\.9: ERROR: No matching distribution"):
        fetch_release(source, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_no_network(
    tmp_path: Path, release: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pip itself, sent to a port where nobody answers."""
    for name in list(os.environ):
        if name.upper().startswith("PIP_") or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    source = release(version="9.9")
    with pytest.raises(CorpusError, match=r"prose==9\.9: no connection to the package index"):
        build_package_corpus(corpus(source), tmp_path / "corpus", tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "corpus").exists()


def test_the_shipped_definition() -> None:
    shipped = PackageCorpus.model_validate(yaml.safe_load(DEFINITION.read_text()))
    assert len(shipped.domains) >= 8
    assert len({d.stands_in_for for d in shipped.domains.values()}) == len(shipped.domains)
    for domain in shipped.domains.values():
        assert bool(domain.sources) != bool(domain.generate_bytes)
        for source in domain.sources:
            assert source.extract in EXTRACTORS
            assert len(source.sha256) == 64


def test_generated_questions_as_a_domain(tmp_path: Path) -> None:
    generated = PackageCorpus.model_validate(
        {
            "seed": 1,
            "domains": {
                "sums": {
                    "stands_in_for": "dm_mathematics",
                    "description": "questions",
                    "generate_bytes": 20_000,
                }
            },
        }
    )
    build_package_corpus(generated, tmp_path / "corpus", tmp_path / "downloads")
    assert domains(tmp_path / "corpus") == ["sums"]
    assert sum(map(len, texts(tmp_path / "corpus", "sums"))) >= 20_000
