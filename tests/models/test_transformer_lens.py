"""The model against TransformerLens's HookedTransformer, the class the papers trained.

The reference was written by tests/data/make_transformer_lens_reference.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from susceptibilities.components import component
from susceptibilities.models import (
    AttentionOnly,
    AttentionOnlyConfig,
    parameter_count,
    token_losses,
)
from susceptibilities.models.loading import build_model, read_published

SHIPPED = Path(__file__).parents[1] / "data" / "transformer_lens_reference.safetensors"
FILES = [SHIPPED]
# A second file, too large for the repository, can be put in; see the script that makes it.
if "TRANSFORMER_LENS_REFERENCE" in os.environ:
    FILES.append(Path(os.environ["TRANSFORMER_LENS_REFERENCE"]))
PUBLISHED_SHAPE = AttentionOnlyConfig(
    n_layers=2, n_heads=8, d_model=256, d_head=32, n_ctx=1024, d_vocab=5000
)


def read(path: Path) -> tuple[AttentionOnlyConfig, dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        shape = AttentionOnlyConfig(**json.loads(file.metadata()["shape"]))
        return shape, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def weights(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("weight/"): v for k, v in tensors.items() if k.startswith("weight/")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_logits_and_losses_equal_transformer_lens(path: Path, tmp_path: Path) -> None:
    shape, tensors = read(path)
    # By the way that published files take: a .pth with two constants among the weights.
    torch.save(weights(tensors), tmp_path / "checkpoint.pth")
    model = build_model(shape, read_published(tmp_path / "checkpoint.pth", "file"), "file")
    with torch.inference_mode():
        logits = model(tensors["tokens"])
    torch.testing.assert_close(logits, tensors["logits"], atol=1e-5, rtol=1e-5)
    losses = token_losses(logits, tensors["tokens"])
    torch.testing.assert_close(losses, tensors["losses"], atol=1e-5, rtol=1e-5)


def test_every_parameter_but_the_key_bias_matters() -> None:
    """The equality would not notice a parameter that has no effect."""
    shape, tensors = read(SHIPPED)
    state = {k: v for k, v in weights(tensors).items() if not k.endswith(("mask", "IGNORE"))}
    reference = tensors["logits"].log_softmax(-1)
    with torch.inference_mode():
        for name in state:
            changed = {**state, name: state[name].roll(1, -1) + 0.3}
            logits = build_model(shape, changed, "file")(tensors["tokens"])
            difference = (logits.log_softmax(-1) - reference).abs().max()
            # A bias of the keys adds the same to all scores of a row: softmax removes it.
            assert (difference > 1e-3) != name.endswith("b_K"), name


def test_size_of_the_published_model() -> None:
    with torch.device("meta"):
        parameters = dict(AttentionOnly(PUBLISHED_SHAPE).named_parameters())
    assert parameter_count(PUBLISHED_SHAPE) == 3_355_016
    assert component("1:6", PUBLISHED_SHAPE, parameters).size == 32_768 + 96
