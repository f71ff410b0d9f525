"""The covariance part of per-token susceptibilities without sampling: one shard of components."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from susceptibilities.components import component_names, head_names
from susceptibilities.console import Progress, run
from susceptibilities.models.loading import checkpoint_path, load_checkpoint
from susceptibilities.posterior import SamplerConfig
from susceptibilities.spectral_config import SpectralConfig
from susceptibilities.spectral_sets import spectral_sets
from susceptibilities.store import file_sha256, read_json
from susceptibilities.token_sampling import TokenTexts, read_probes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="validated config.json")
    parser.add_argument("--step", type=int, required=True, help="training step of the checkpoint")
    parser.add_argument("--shard", type=int, required=True, help="number of the shard, from 0")
    parser.add_argument("--shards", type=int, required=True, help="number of shards")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of token arrays")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--out", type=Path, required=True, help="Zarr store to write")
    parser.add_argument("--control", action="store_true", help="also for n_beta = 0")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    settings = read_json(args.config)["two_layer"]
    per_token = settings["per_token"]
    config = SpectralConfig.model_validate(per_token["spectral"])
    texts = TokenTexts(
        np.load(args.tokens / "base.npy"),
        read_probes(args.tokens, config.token_contexts),
        np.load(args.tokens / "sgld.npy"),
    )
    model = load_checkpoint(args.model, args.step)
    known = [*component_names(model.config), "full"]
    # Dealt, not cut: a layer's heads cost alike, and every shard gets some of each layer.
    names = config.names(head_names(model.config), known)[args.shard :: args.shards]
    spectral_sets(
        model,
        names,
        texts,
        SamplerConfig.model_validate(per_token["sampler"]),
        config,
        args.control,
        settings["seed"],
        args.step,
        file_sha256(checkpoint_path(args.model, args.step)),
        args.out,
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        Progress(),
    )


if __name__ == "__main__":
    run(main)
