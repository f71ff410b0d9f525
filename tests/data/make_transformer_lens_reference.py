"""Write transformer_lens_reference.safetensors: a model's weights, tokens, logits and losses.

TransformerLens 4.0 removed HookedTransformer, the class that the published checkpoints are
weights of, so the reference is kept as a file. It was made with transformer-lens 3.9.0 and
torch 2.13.0, in an environment of its own:

    pip install "transformer-lens==3.9.0" "torch==2.13.0"
    cd tests/data
    python make_transformer_lens_reference.py transformer_lens_reference.safetensors

With ``--published-shape`` the model has the shape of the published two-layer checkpoints
(13 MB of weights, not kept in the repository); `tests/models/test_transformer_lens.py` reads
such a file from the path in the environment variable TRANSFORMER_LENS_REFERENCE.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import warnings

import torch
from safetensors.torch import save_file
from transformer_lens import (  # pyright: ignore[reportMissingImports]
    HookedTransformer,
    HookedTransformerConfig,
)

SMALL = {"d_model": 12, "n_heads": 3, "d_head": 5, "n_ctx": 11, "d_vocab": 23}
PUBLISHED = {"d_model": 256, "n_heads": 8, "d_head": 32, "n_ctx": 1024, "d_vocab": 5000}


def main() -> None:
    """Build the model with random values in every parameter, run it, and save all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--published-shape", action="store_true")
    arguments = parser.parse_args()
    shape = {"n_layers": 2, **(PUBLISHED if arguments.published_shape else SMALL)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(
            HookedTransformerConfig(
                **shape,
                attn_only=True,
                normalization_type="LN",
                positional_embedding_type="shortformer",
                device="cpu",
            )
        )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        # Nothing at its neutral value: a LayerNorm weight of 1 or a bias of 0 would hide a
        # mistake in how it is used. Wide enough that the attention is far from even.
        spread = 1.5 / shape["d_model"] ** 0.5 if ".W_" in name else 0.4
        noise = torch.randn(parameter.shape, generator=generator) * spread
        parameter.data = noise + 1.0 if name.endswith(".w") else noise
    rows = 2 if arguments.published_shape else 4
    tokens = torch.randint(shape["d_vocab"], (rows, shape["n_ctx"]), generator=generator)
    with torch.no_grad():
        logits = model(tokens, return_type="logits")
        losses = model(tokens, return_type="loss", loss_per_token=True)
    versions = {name: importlib.metadata.version(name) for name in ("transformer-lens", "torch")}
    save_file(
        {
            **{f"weight/{name}": value.contiguous() for name, value in model.state_dict().items()},
            "tokens": tokens,
            "logits": logits,
            "losses": losses,
        },
        arguments.out,
        {"shape": json.dumps(shape), "versions": json.dumps(versions)},
    )


if __name__ == "__main__":
    main()
