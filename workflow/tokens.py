"""Cut a corpus into the token contexts of a run: base, sampler's pool, probes."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from susceptibilities.console import Progress, run
from susceptibilities.contexts import CorpusContexts
from susceptibilities.store import atomic_path, file_sha256, read_json, write_json
from susceptibilities.tokens import CONTROL_PROBE, Contexts, load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--settings", default="two_layer", help="the config's part")
    parser.add_argument("--corpus", type=Path, required=True, help="corpus folder")
    parser.add_argument("--model", type=Path, required=True, help="model folder (its tokenizer)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    settings = read_json(arguments.config)[arguments.settings]
    rows, tokenizer = settings["base_contexts"], arguments.model / "tokenizer.json"
    if arguments.settings == "two_layer":
        probe_rows, samplers = max(rows, settings["per_token"]["contexts"]), [settings["sampler"]]
    else:
        probe_rows = settings["contexts"]
        samplers = [model["sampler"] for model in settings["models"].values()]
    corpus = CorpusContexts(
        arguments.corpus,
        load_tokenizer(tokenizer),
        settings["context"],
        settings["seed"],
        Progress(),
    )
    arrays: dict[str, Contexts] = {
        f"probe.{domain}": corpus.domain(domain, "probe", probe_rows) for domain in corpus.entries
    }
    # The control: its susceptibility must be zero within its error.
    arrays[f"probe.{CONTROL_PROBE}"] = corpus.distribution("probe", probe_rows)
    arrays["base"] = corpus.distribution("base", rows)
    # A small corpus has fewer contexts than the cap; a minibatch is the least that will do.
    arrays["sgld"] = corpus.distribution(
        "sgld", max(s["batch"] for s in samplers), most=settings["sgld_contexts"]
    )
    for name, array in arrays.items():
        with atomic_path(arguments.out / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)
    write_json(
        arguments.out / "manifest.json",
        {
            "corpus": str(arguments.corpus),
            "context": settings["context"],
            "tokenizer_sha256": file_sha256(tokenizer),
            "domains": {
                name: {**entry, "contexts": corpus.counts[name]}
                for name, entry in corpus.entries.items()
            },
            "arrays": {
                name: {
                    "contexts": len(array),
                    "tokens": array.size,
                    "sha256": file_sha256(arguments.out / f"{name}.npy"),
                }
                for name, array in arrays.items()
            },
        },
    )


if __name__ == "__main__":
    run(main)
