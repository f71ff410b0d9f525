"""Print what a scale would fetch and compute."""

from __future__ import annotations

import argparse

from susceptibilities.config import load_scale, plan
from susceptibilities.console import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--config-file", help="a scale file of your own")
    arguments = parser.parse_args()
    print(plan(load_scale(arguments.scale, arguments.config_file)))


if __name__ == "__main__":
    run(main)
