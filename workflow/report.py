"""Hold a run beside the papers: comparison.csv and the report."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from susceptibilities.comparison import compare, write_csv
from susceptibilities.console import run
from susceptibilities.report import load_config, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    parser.add_argument("--scale", required=True, help="name of the scale")
    parser.add_argument("--experiments", type=Path, default=Path("experiments"))
    parser.add_argument("--published", type=Path, default=Path("published"))
    parser.add_argument("--root", type=Path, default=Path("."), help="the repository")
    args = parser.parse_args()
    config = load_config(args.results, args.scale)
    comparison = compare(args.results, args.experiments, args.published, config)
    page = write_report(args.results, args.experiments, args.root, config, comparison)
    write_csv(comparison.rows, args.results / "comparison.csv")
    counts = Counter(row.verdict for row in comparison.rows)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    print(page)


if __name__ == "__main__":
    run(main)
