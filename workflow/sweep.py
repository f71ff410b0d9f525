"""Sweep the sampler's settings on one checkpoint and write the table the choice rests on."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import torch

from susceptibilities.console import Progress, run
from susceptibilities.models.loading import load_checkpoint
from susceptibilities.posterior import SamplerConfig
from susceptibilities.store import atomic_path, read_json
from susceptibilities.sweep import one_at_a_time, summary, sweep

# The sampling guide's ranges, one setting at a time about the scale's own.
CHOICES = {
    "step_size": (1e-4, 3e-4, 1e-3, 3e-3),
    "n_beta": (0.0, 30.0, 300.0, 3000.0),
    "localization": (100.0, 300.0, 1000.0),
}


def markdown(table: pl.DataFrame) -> str:
    """The table as Markdown, three significant digits."""
    lines = [
        "| " + " | ".join(table.columns) + " |",
        "|" + " --- |" * table.width,
    ]
    for row in table.iter_rows():
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--components", nargs="+", required=True)
    parser.add_argument("--out-dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    sampler = SamplerConfig.model_validate(read_json(args.config)["two_layer"]["sampler"])
    table = sweep(
        load_checkpoint(args.model, args.step),
        args.components,
        np.load(args.tokens / "base.npy")[:24],
        np.load(args.tokens / "sgld.npy"),
        one_at_a_time(
            sampler.model_copy(update={"burn_in": 40, "draws": 10, "thinning": 6}), CHOICES
        ),
        report=Progress(),
    )
    args.out_dir.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.out_dir / "sweep.parquet") as temporary:
        table.write_parquet(temporary)
    with atomic_path(args.out_dir / "sweep.md") as temporary:
        temporary.write_text(markdown(summary(table)))


if __name__ == "__main__":
    run(main)
