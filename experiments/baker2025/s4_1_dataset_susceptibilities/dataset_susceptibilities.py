"""Dataset susceptibilities of every component, probe and checkpoint, with their errors."""

from __future__ import annotations

import argparse
from pathlib import Path

from susceptibilities.console import run
from susceptibilities.store import atomic_path
from susceptibilities.tables import estimate_run

FOLDER = "baker2025/s4_1_dataset_susceptibilities"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    parser.add_argument("--losses", type=Path, nargs="+", required=True, help="Zarr stores")
    parser.add_argument("--controls", type=Path, nargs="*", default=[], help="n_beta = 0 stores")
    arguments = parser.parse_args()
    for name, table in estimate_run(arguments.losses, arguments.controls).items():
        with atomic_path(arguments.results / FOLDER / f"{name}.parquet") as path:
            table.write_parquet(path)
        print(f"{name}: {len(table)} rows")


if __name__ == "__main__":
    run(main)
