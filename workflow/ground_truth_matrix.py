"""Put the shards of a model's components together: the matrix of tokens by components."""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import TypeAdapter

from susceptibilities.components import component_names
from susceptibilities.console import Progress, run
from susceptibilities.control_variate import CONTROLLED
from susceptibilities.matrix import SusceptibilityMatrix
from susceptibilities.merge import merge_shards
from susceptibilities.models.shapes import Shape
from susceptibilities.store import open_zarr, read_json
from susceptibilities.token_sampling import read_probes, token_table
from susceptibilities.tokens import CONTROL_PROBE, load_tokenizer, token_strings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="validated config.json")
    parser.add_argument("--model", type=Path, required=True, help="the model's description")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of token arrays")
    parser.add_argument("--shards", type=Path, required=True, nargs="+", help="Zarr stores")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    settings, model = read_json(args.config)["ground_truth"], read_json(args.model)
    probes = read_probes(args.tokens, settings["contexts"])
    domains = {name: found for name, found in probes.items() if name != CONTROL_PROBE}
    strings = token_strings(load_tokenizer(Path(model["path"])))
    star = open_zarr(args.shards[0])["star"].values
    merge_shards(
        [args.shards],
        [token_table(domains, strings, star).lazy()],
        args.out,
        component_names(TypeAdapter(Shape).validate_python(model["shape"])),
        model["label"],
    )
    matrix = SusceptibilityMatrix.open(args.out)
    used = matrix.data.attrs["estimator"].count(CONTROLLED)
    Progress()(
        f"{matrix.shape[0]} tokens x {matrix.shape[1]} components, {used} with the control variate"
    )


if __name__ == "__main__":
    run(main)
