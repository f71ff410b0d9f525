"""Losses of the tokens of a few contexts along unrestricted chains, and along the control's."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from influence_kinds import REPEATS

from susceptibilities.console import Progress, run
from susceptibilities.influence import LossTraces
from susceptibilities.losses import token_losses_at
from susceptibilities.models.loading import checkpoint_path, load_checkpoint
from susceptibilities.parts import Job, component_parts, device_name, read_part
from susceptibilities.posterior import SamplerConfig
from susceptibilities.store import atomic_path, file_sha256, fingerprint, read_json
from susceptibilities.structure import repeated_sequences
from susceptibilities.token_sampling import read_probes, token_table
from susceptibilities.tokens import CONTROL_PROBE, Contexts, load_tokenizer, token_strings

FOLDER = "baker2025/s5_influence_functions"
# Contexts of each domain, and sequences that repeat. Every pair of tokens is an influence, so
# contexts are cut: all of them together have some 1,500 tokens.
CONTEXTS = 2
SEQUENCES = 4
LENGTH = 65


def chosen_contexts(tokens: Path, seed: int) -> dict[str, Contexts]:
    """The first contexts of every domain, and random sequences twice in a row, by name."""
    base = np.load(tokens / "base.npy", allow_pickle=False)
    # Odd, as a beginning token and two copies of a sequence are.
    length = min(LENGTH, base.shape[1] - 1 + base.shape[1] % 2)
    found = {
        name: contexts[:, :length]
        for name, contexts in read_probes(tokens, CONTEXTS).items()
        if name != CONTROL_PROBE
    }
    repeats = repeated_sequences(base[:, :length], SEQUENCES, seed).numpy().astype(np.uint16)
    return {**found, REPEATS: repeats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--step", type=int, required=True, help="training step of the checkpoint")
    parser.add_argument("--out", type=Path, help="folder [<results>/" + FOLDER + "]")
    parser.add_argument("--component", default="full", help="whose weights are sampled [full]")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    report = Progress()
    settings = read_json(args.results / "config.json")["two_layer"]
    step, tokens = args.step, args.results / "tokens"
    out: Path = args.out or args.results / FOLDER
    chosen = chosen_contexts(tokens, settings["seed"])
    contexts = np.concatenate(list(chosen.values()))
    pool = np.load(tokens / "sgld.npy", allow_pickle=False)
    model = load_checkpoint(args.model, step)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    star = token_losses_at(model, torch.from_numpy(contexts.astype(np.int64)))
    strings = token_strings(load_tokenizer(args.model))
    losses = star.double().flatten().numpy()
    table = token_table(chosen, strings, losses).rename({"probe": "domain"})
    with atomic_path(out / "tokens.parquet") as path:
        table.write_parquet(path)

    posterior = SamplerConfig.model_validate(settings["sampler"])
    for name, n_beta in (("posterior", posterior.n_beta), ("control", 0.0)):
        sampler = posterior.model_copy(update={"n_beta": n_beta})
        identity = {
            "step": step,
            "model": file_sha256(checkpoint_path(args.model, step)),
            "texts": fingerprint([contexts.tolist(), pool.tolist()]),
            "sampler": sampler.model_dump(),
            "seed": settings["seed"],
        }
        # One label: the control's chains have the same noise, so differences are paired.
        job = Job(
            model, contexts, pool, sampler, settings["seed"], f"step {step} influence", identity
        )
        target = out / f"{name}.zarr"
        with component_parts(job, [args.component], LossTraces, target, device, report) as parts:
            data = read_part(parts[0])
            data["shift"].attrs["units"] = "nats: a token's loss minus its value at w*"
            data.attrs = {**identity, "component": args.component, "device": device_name(device)}
            with atomic_path(target) as path:
                data.to_zarr(path, zarr_format=3, consolidated=False)
    print(f"{len(table)} tokens of {len(contexts)} contexts: {', '.join(chosen)}")


if __name__ == "__main__":
    run(main)
