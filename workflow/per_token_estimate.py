"""Put the shards of a checkpoint together: chi of every token, its errors, its reliability."""

from __future__ import annotations

import argparse
from pathlib import Path

from susceptibilities.console import Progress, run
from susceptibilities.control_variate import CONTROLLED
from susceptibilities.per_token import save_tokens
from susceptibilities.store import open_zarr, read_json
from susceptibilities.token_estimates import TokenMoments
from susceptibilities.token_sampling import read_probes, token_table
from susceptibilities.tokens import load_tokenizer, token_strings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="validated config.json")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of token arrays")
    parser.add_argument("--model", type=Path, required=True, help="model folder (its tokenizer)")
    parser.add_argument("--shards", type=Path, required=True, nargs="+", help="Zarr stores")
    args = parser.parse_args()
    settings = read_json(args.config)["two_layer"]
    shards = [open_zarr(path).load() for path in args.shards]
    probes = read_probes(args.tokens, settings["per_token"]["contexts"])
    strings = token_strings(load_tokenizer(args.model))
    tokens = token_table(probes, strings, shards[0]["star"].values)
    moments = TokenMoments.of(shards)
    save_tokens(args.shards[0].parent, moments, tokens, settings["seed"])
    used = moments.estimators.count(CONTROLLED)
    Progress()(
        f"{len(tokens)} tokens x {len(moments.components)} components, "
        f"{used} with the control variate"
    )


if __name__ == "__main__":
    run(main)
