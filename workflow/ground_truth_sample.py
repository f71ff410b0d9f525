"""Sample some components of a GPT-NeoX model: moments of every token's loss, one Zarr store."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from susceptibilities.components import component_names
from susceptibilities.console import Progress, run
from susceptibilities.evaluation import Evaluation
from susceptibilities.models.loading import checkpoint_path, load_checkpoint
from susceptibilities.posterior import SamplerConfig
from susceptibilities.store import file_sha256, read_json
from susceptibilities.token_sampling import TokenTexts, read_probes, sample_tokens
from susceptibilities.tokens import CONTROL_PROBE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="validated config.json")
    parser.add_argument("--role", required=True, help="which of the models")
    parser.add_argument("--shard", type=int, required=True, help="number of the shard, from 0")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of token arrays")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--out", type=Path, required=True, help="Zarr store to write")
    parser.add_argument("--control", action="store_true", help="n_beta = 0")
    args = parser.parse_args()

    torch.set_num_threads(1)
    settings = read_json(args.config)["ground_truth"]
    own = settings["models"][args.role]
    sampler = SamplerConfig.model_validate(own["sampler"])
    if args.control:
        sampler = sampler.model_copy(update={"n_beta": 0.0})
    # Uniformly over domains; the control probe is no domain.
    probes = read_probes(args.tokens, settings["contexts"])
    texts = TokenTexts(
        np.load(args.tokens / "base.npy"),
        {name: contexts for name, contexts in probes.items() if name != CONTROL_PROBE},
        np.load(args.tokens / "sgld.npy"),
    )
    model = load_checkpoint(args.model, own["checkpoint"])
    # Dealt, not cut: a layer's heads cost alike, and every shard gets some of each layer.
    names = ["full", *component_names(model.config)][args.shard :: own["shards"]]
    sample_tokens(
        model,
        names,
        texts,
        sampler,
        settings["seed"],
        own["checkpoint"],
        file_sha256(checkpoint_path(args.model, own["checkpoint"])),
        args.out,
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        Progress(),
        Evaluation.model_validate(settings["evaluation"]),
    )


if __name__ == "__main__":
    run(main)
