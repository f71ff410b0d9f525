"""Zero-ablate every head of a checkpoint: the change of every token's loss, one Parquet table."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import torch

from susceptibilities.ablation import ablation_deltas
from susceptibilities.components import head_names
from susceptibilities.console import run
from susceptibilities.models.loading import load_checkpoint
from susceptibilities.store import atomic_path, read_json
from susceptibilities.token_sampling import read_probes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="validated config.json")
    parser.add_argument("--step", type=int, required=True, help="training step of the checkpoint")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of token arrays")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    per_token = read_json(args.config)["two_layer"]["per_token"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_checkpoint(args.model, args.step).to(device).eval()
    probes = read_probes(args.tokens, per_token["contexts"])
    contexts = np.concatenate(list(probes.values())).astype(np.int64)
    deltas = ablation_deltas(model, torch.from_numpy(contexts).to(device), head_names(model.config))
    columns = {name: delta.flatten().float().cpu().numpy() for name, delta in deltas.items()}
    count = len(next(iter(columns.values())))
    with atomic_path(args.out) as path:
        pl.DataFrame({"index": np.arange(count), **columns}).write_parquet(path)


if __name__ == "__main__":
    run(main)
