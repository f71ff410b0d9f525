"""Exit with 1 when a verdict of comparison.csv is `fails` or `differs`, and say which."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from susceptibilities.comparison import read_failing
from susceptibilities.console import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparison", type=Path, required=True, help="comparison.csv of a run")
    path: Path = parser.parse_args().comparison
    failing = read_failing(path)
    for row in failing:
        print(f"{row['verdict']}: {row['id']} ({row['paper']} {row['where']}): {row['what']}")
        print(f"    {row['reason']}")
    if failing:
        print(f"{len(failing)} of the papers' claims did not reproduce; see {path}")
        sys.exit(1)
    print(f"no claim fails or differs in {path}")


if __name__ == "__main__":
    run(main)
