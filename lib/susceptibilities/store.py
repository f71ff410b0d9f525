"""Files: written whole or not at all, and hashed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place if the block succeeds.

    Works for files and folders (Zarr stores). On any error the temporary is removed and an
    earlier ``path`` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = scratch / path.name
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            # A folder cannot replace a folder in one call: move the old one aside first.
            old = scratch / "old"
            os.rename(path, old)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def open_zarr(path: Path) -> xr.Dataset:
    """Open a Zarr store; its arrays are read when they are used, or by ``.load()``.

    Snakemake leaves a timestamp in the folders that its rules make; Zarr's warning of that one
    file is silenced, and no other.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Object at \.snakemake_timestamp ", UserWarning)
        return xr.open_zarr(path, consolidated=False)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, sorted and indented, atomically. NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """A short hash of any JSON-serialisable value: the same settings, the same string."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
