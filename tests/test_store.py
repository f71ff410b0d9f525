"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr

from susceptibilities.store import (
    atomic_path,
    file_sha256,
    fingerprint,
    open_zarr,
    read_json,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    for name in ("first", "second"):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [child.name for child in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    # The published SHA-256 of "abc".
    assert file_sha256(path).startswith("ba7816bf8f01cfea")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        allowed = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_nothing_behind(small_disk: Path) -> None:
    path = small_disk / "out.json"
    write_json(path, {"kept": 1})
    with pytest.raises(OSError, match="No space left") as caught:
        write_json(path, {"large": "x" * 1_000_000})
    assert caught.value.errno == errno.ENOSPC
    assert read_json(path) == {"kept": 1}
    assert list(small_disk.iterdir()) == [path]


def test_a_store_with_snakemakes_timestamp_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    xr.Dataset({"x": ("i", [1.0, 2.0])}).to_zarr(path, zarr_format=3, consolidated=False)
    (path / ".snakemake_timestamp").touch()
    assert open_zarr(path).load()["x"].values.tolist() == [1.0, 2.0]
    # Any other stranger is still warned of.
    (path / "stranger").touch()
    with pytest.warns(UserWarning, match="stranger"):
        open_zarr(path)
