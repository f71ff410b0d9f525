"""Hours of a run from its benchmark files."""

from __future__ import annotations

from pathlib import Path

import pytest

from susceptibilities.cost import cost_entry


def test_hours_add_up_and_the_control_does_not_count(tmp_path: Path) -> None:
    for name, seconds in (
        ("sample_000080", 1800),
        ("sample_000400", 5400),
        ("sample_1.control", 9),
    ):
        (tmp_path / f"{name}.tsv").write_text(f"s\th:m:s\n{seconds}\t0:0:0\n")
    found = cost_entry(tmp_path.glob("sample_*.tsv"), "hours", "on a machine.")
    assert found["value"] == pytest.approx(2.0) and found["n"] == 2
    assert found["note"] == "2 jobs, on a machine."


def test_without_files_it_is_not_measured(tmp_path: Path) -> None:
    found = cost_entry(tmp_path.glob("*.tsv"), "hours", "on a machine.")
    assert found["value"] is None and found["n"] == 0 and "no benchmark files" in found["note"]
