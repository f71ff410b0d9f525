"""Corpora of a few lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Write texts as ``<domain>.jsonl.gz`` into a folder and return the file's path."""

    def writer(domain: str, texts: list[str], field: str = "text", folder: str = "text") -> Path:
        path = tmp_path / folder / f"{domain}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        lines = "".join(json.dumps({field: text}) + "\n" for text in texts)
        path.write_bytes(gzip.compress(lines.encode()))
        return path

    return writer
