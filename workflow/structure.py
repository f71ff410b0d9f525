"""Score the heads and the loss on repeated sequences at every checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from susceptibilities.config import ScaleConfig
from susceptibilities.console import Progress, run
from susceptibilities.models.loading import load_checkpoint
from susceptibilities.store import atomic_path, read_json
from susceptibilities.structure import (
    head_scores,
    heads_table,
    repeat_losses,
    repeated_sequences,
    repeats_table,
)

SEQUENCES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="validated config.json")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of token arrays")
    parser.add_argument("--out-dir", type=Path, required=True)
    arguments = parser.parse_args()
    settings = ScaleConfig.model_validate(read_json(arguments.config)).two_layer
    report = Progress()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = np.load(arguments.tokens / "base.npy")
    text = torch.from_numpy(base[:SEQUENCES].astype(np.int64)).to(device)
    repeats = repeated_sequences(base, SEQUENCES, settings.seed).to(device)
    scores, losses = {}, {}
    for step in settings.checkpoints:
        model = load_checkpoint(arguments.model, step).to(device)
        scores[step] = head_scores(model, text, repeats)
        losses[step] = repeat_losses(model, repeats)
        mean = losses[step][0]
        half = len(mean) // 2
        report(
            f"step {step}: best prefix matching {scores[step].prefix_matching.max():.3f}, "
            f"previous token {scores[step].previous_token.max():.3f}; loss of a random sequence "
            f"{mean[:half].mean():.2f}, of its repetition {mean[half:].mean():.2f}"
        )
    for name, table in (("heads", heads_table(scores)), ("repeats", repeats_table(losses))):
        with atomic_path(arguments.out_dir / f"{name}.parquet") as temporary:
            table.write_parquet(temporary)


if __name__ == "__main__":
    run(main)
