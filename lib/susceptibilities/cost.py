"""What a run cost, as an entry of measured.json, from the benchmark files that Snakemake writes."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def cost_entry(files: Iterable[Path], statistic: str, what: str) -> dict[str, Any]:
    """Hours of all jobs together, one job after the other.

    Args:
        files: benchmark files, one a job; the n_beta = 0 control's are left out.
        statistic: what is added up.
        what: what the jobs ran, and on which device; goes into the note.
    """
    seconds = []
    for path in sorted(files):
        if ".control" not in path.name:
            with path.open(encoding="utf-8", newline="") as file:
                seconds += [float(row["s"]) for row in csv.DictReader(file, delimiter="\t")]
    if not seconds:
        note = "Not measured: the run has no benchmark files of these rules."
        return {"value": None, "n": 0, "note": note, "statistic": statistic, "bound": ""}
    return {
        "value": sum(seconds) / 3600,
        "n": len(seconds),
        "note": f"{len(seconds)} jobs, {what}",
        "statistic": statistic,
        "bound": "",
    }
