"""A folder of the user's own ``<domain>.jsonl.gz`` files, checked and brought to one form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..store import atomic_path, file_sha256
from .documents import (
    SUFFIX,
    TRAINING,
    CorpusError,
    domains,
    read_domain,
    write_domain,
    write_manifest,
)


def use_folder_corpus(path: Path, out: Path, field: str = "text") -> None:
    """Read every ``<domain>.jsonl.gz`` of ``path`` once and write the corpus folder ``out``.

    ``field`` names the text in each JSON line. A ``_training.jsonl.gz`` is taken as the
    training distribution; without one it is all domains together. Where the folder has a
    manifest with the files' sha256, they are held against it. A domain is its own
    ``stands_in_for``: name it like a Pile subset to see it beside that subset's published
    values. ``out`` appears whole or not at all; ``path`` is only read.

    Raises:
        CorpusError: no such folder, no such files, or a file that is damaged, empty, not
            UTF-8, without the field, or not the one the manifest promises.
    """
    if not path.is_dir():
        raise CorpusError(
            f"corpus folder {path} does not exist: expected a folder of <domain>{SUFFIX} files"
        )
    if out.resolve() == path.resolve():
        raise CorpusError(f"corpus folder {path} would overwrite itself; write to another folder")
    promised = _promised_hashes(path)
    names = domains(path)
    missing = sorted(set(promised) - set(names) - {TRAINING})
    if missing:
        raise CorpusError(
            f"{path}: the manifest names {', '.join(missing)}, but there is no "
            f"{missing[0]}{SUFFIX}; fetch it, or remove it from the manifest"
        )
    entries: dict[str, dict[str, object]] = {}
    training = None
    with atomic_path(out) as folder:
        for name in [*names, *([TRAINING] if (path / (TRAINING + SUFFIX)).exists() else [])]:
            source = path / (name + SUFFIX)
            found = file_sha256(source)
            if promised.get(name, found) != found:
                raise CorpusError(
                    f"{source} is altered: its manifest promises sha256 {promised[name]}, found "
                    f"{found}; fetch it again, or correct the manifest"
                )
            entry = write_domain(folder, name, read_domain(path, name, field))
            entry["sources"] = [{"file": source.name, "sha256": found}]
            if name == TRAINING:
                training = entry
            else:
                entry["stands_in_for"] = name
                entries[name] = entry
            print(f"{name}: {entry['documents']} documents, {entry['bytes']} bytes", flush=True)
        write_manifest(folder, "folder", entries, training)


def _promised_hashes(path: Path) -> dict[str, str]:
    """The sha256 of each domain's file, from ``{domain: {"sha256": ...}}`` in a manifest."""
    for file in (path / "manifest.json", path / "MANIFEST.json"):
        if file.exists():
            break
    else:
        return {}
    try:
        manifest: Any = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorpusError(f"{file} is not JSON ({error}); repair it or remove it") from error
    if isinstance(manifest, dict) and isinstance(manifest.get("domains"), dict):
        manifest = manifest["domains"]
    if not isinstance(manifest, dict):
        return {}
    return {
        name: entry["sha256"]
        for name, entry in manifest.items()
        if isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
    }
