"""Bring the model's checkpoints to a model folder (check, fetch or train) and describe them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from susceptibilities.console import Progress, run
from susceptibilities.contexts import CorpusContexts
from susceptibilities.corpora.documents import TRAINING, read_checked
from susceptibilities.models.loading import (
    ModelError,
    ModelFolder,
    available_steps,
    checkpoint_path,
    fetch_hub_model,
    load_checkpoint,
    load_config,
)
from susceptibilities.models.shapes import Shape
from susceptibilities.store import atomic_path, file_sha256, read_json, write_json
from susceptibilities.tokens import in_split, load_tokenizer, train_tokenizer
from susceptibilities.training import TrainingConfig, train

_HELD_OUT = 64
_SHAPE: TypeAdapter[Shape] = TypeAdapter(Shape)


def fetch(spec: dict[str, Any], steps: list[int], folder: Path, report: Progress) -> None:
    """Fetch the checkpoints that are wanted, unless they are all there."""
    have = available_steps(folder)
    if set(steps) <= set(have) and load_config(folder).source.get("hub") == spec["repo"]:
        report(f"{folder}: already fetched")
        return
    shape = _SHAPE.validate_python(spec["shape"])
    # A run with other checkpoints keeps those that another scale needs.
    wanted = sorted({*steps, *have})
    fetch_hub_model(spec["repo"], spec["tokenizer"], shape, wanted, folder, report=report)


def train_here(spec: dict[str, Any], corpus: Path, folder: Path, report: Progress) -> None:
    """Train tokenizer and model on the corpus's training split; an interrupted run goes on."""
    shape = _SHAPE.validate_python(spec["shape"])
    settings = TrainingConfig.model_validate(spec["training"])
    identity = {**spec, "corpus": file_sha256(corpus / "manifest.json")}
    done, vocabulary = folder / "training.json", folder / "tokenizer.json"
    if done.exists():
        if read_json(done) != identity:
            raise ModelError(
                f"{folder} holds a model trained with other settings or text: give this one "
                "another name, or delete the folder"
            )
        report(f"{folder}: already trained")
        return
    if not vocabulary.exists():
        manifest = read_json(corpus / "manifest.json")
        names = [TRAINING] if manifest.get("training") else sorted(manifest["domains"])
        texts = (
            document.text
            for name in names
            for document in read_checked(corpus, name)
            if in_split(document, "train")
        )
        tokenizer = train_tokenizer(texts, shape.d_vocab)
        with atomic_path(vocabulary) as temporary:
            tokenizer.save(str(temporary))
    contexts = CorpusContexts(
        corpus, load_tokenizer(vocabulary), shape.n_ctx, settings.seed, report
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held_out = contexts.distribution("base", _HELD_OUT)
    train(shape, settings, contexts.everything("train"), held_out, folder, device, report)
    source = {"corpus": corpus.name, "training": settings.model_dump(mode="json")}
    config = ModelFolder(label=spec["name"], shape=shape, source=source)
    write_json(folder / "config.json", config.model_dump(mode="json"))
    write_json(done, identity)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--settings", default="two_layer", help="the config's part, dotted")
    parser.add_argument("--corpus", type=Path, required=True, help="corpus folder, to train on")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--out", type=Path, required=True, help="description to write")
    arguments = parser.parse_args()
    settings = read_json(arguments.config)
    for part in arguments.settings.split("."):
        settings = settings[part]
    spec, folder = settings["model"], arguments.model
    steps = settings["checkpoints"] if "checkpoints" in settings else [settings["checkpoint"]]
    report = Progress()
    if spec["kind"] == "hub":
        fetch(spec, steps, folder, report)
    elif spec["kind"] == "train":
        train_here(spec, arguments.corpus, folder, report)
        steps = available_steps(folder)
    config, size = load_config(folder), load_tokenizer(folder).get_vocab_size()
    if size > config.shape.d_vocab:
        raise ModelError(
            f"{folder}: tokenizer.json has {size} tokens, the model {config.shape.d_vocab}: "
            "it is another model's tokenizer"
        )
    for step in steps:
        load_checkpoint(folder, step)
    report(f"{config.label}: {len(steps)} checkpoints are whole and of the model's shape")
    write_json(
        arguments.out,
        {
            "label": config.label,
            "path": folder.as_posix(),
            "kind": spec["kind"],
            "shape": config.shape.model_dump(),
            "source": config.source,
            "steps": steps,
            "sha256": {str(step): file_sha256(checkpoint_path(folder, step)) for step in steps},
            "tokenizer_sha256": file_sha256(folder / "tokenizer.json"),
        },
    )


if __name__ == "__main__":
    run(main)
