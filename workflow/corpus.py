"""Bring a corpus to a folder of <domain>.jsonl.gz files with a manifest."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from susceptibilities.console import run
from susceptibilities.corpora.folder import use_folder_corpus
from susceptibilities.corpora.packages import PackageCorpus, build_package_corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=json.loads, required=True, help="`corpus` of a scale, JSON")
    parser.add_argument("--downloads", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    spec = arguments.spec
    if spec["kind"] == "packages":
        definition = yaml.safe_load(Path(spec["definition"]).read_text(encoding="utf-8"))
        corpus = PackageCorpus.model_validate(definition)
        names = corpus.domains if spec["domains"] is None else spec["domains"]
        chosen = {name: corpus.domains[name] for name in names}
        build_package_corpus(
            corpus.model_copy(update={"domains": chosen}), arguments.out, arguments.downloads
        )
    elif spec["kind"] == "folder":
        use_folder_corpus(Path(spec["path"]), arguments.out, spec["field"])
    else:
        # Only this kind needs the `hub` extra.
        from susceptibilities.corpora.hub import HubCorpus, build_hub_corpus

        del spec["kind"], spec["name"]
        build_hub_corpus(HubCorpus.model_validate(spec), arguments.out)


if __name__ == "__main__":
    run(main)
