"""Joint trajectory PCA of the published form of the susceptibility and of each of its parts."""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from susceptibilities.console import run
from susceptibilities.cubes import FORMS
from susceptibilities.store import atomic_path
from susceptibilities.trajectories import analyse

SOURCE = "baker2025/s4_1_dataset_susceptibilities"
FOLDER = "baker2025/s4_2_trajectory_pca"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    susceptibility = pl.read_parquet(results / SOURCE / "susceptibility.parquet")
    replicates = pl.read_parquet(results / SOURCE / "replicates.parquet")
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    roles = dict(zip(final["head"], final["role"], strict=True))
    found = [analyse(susceptibility, replicates, roles, form).tables(form) for form in FORMS]
    for name in found[0]:
        with atomic_path(results / FOLDER / f"{name}.parquet") as path:
            pl.concat(tables[name] for tables in found).write_parquet(path)
    for form, tables in zip(FORMS, found, strict=True):
        top = tables["variance"].head(3)
        print(f"{form}: shares of PC1-PC3", [round(s, 4) for s in top["share"].to_list()])


if __name__ == "__main__":
    run(main)
