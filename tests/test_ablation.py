"""Zero ablation, against hooks on the model itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from susceptibilities.ablation import ablation_deltas
from susceptibilities.components import head_names
from susceptibilities.models import token_losses
from test_sampling import SHAPE, small_model
from test_token_sampling import NEOX, small_neox


def test_deltas_equal_those_of_a_hook_that_zeroes_the_head() -> None:
    """The hook zeroes the head's rows of what the output matrix reads."""
    model = small_model()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.b_O.normal_(generator=torch.Generator().manual_seed(1))
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, SHAPE.d_vocab, (7, 6)))
    deltas = ablation_deltas(model, tokens, head_names(SHAPE))
    before = token_losses(model(tokens), tokens)
    for name in head_names(SHAPE):
        layer, head = map(int, name.split(":"))

        def silence(
            module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor, head: int = head
        ) -> Tensor:
            q, k, v = module.project(*args)  # type: ignore[operator]
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return output - mixed[:, head] @ module.W_O[head]  # type: ignore[index]

        handle = model.blocks[layer].attn.register_forward_hook(silence)
        with torch.no_grad():
            expected = token_losses(model(tokens), tokens) - before
        handle.remove()
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(deltas[name], expected, atol=2e-6, rtol=0)


def test_deltas_equal_those_of_a_gpt_neox_whose_head_writes_nothing() -> None:
    """The head's columns of the output matrix, in the model's own state, are set to zero."""
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, NEOX.d_vocab, (7, 6)))
    deltas = ablation_deltas(small_neox(), tokens, head_names(NEOX))
    with torch.no_grad():
        before = token_losses(small_neox()(tokens), tokens)
        for name in head_names(NEOX):
            layer, head = map(int, name.split(":"))
            model = small_neox()
            matrix = dict(model.named_parameters())[
                f"gpt_neox.layers.{layer}.attention.dense.weight"
            ]
            matrix[:, head * NEOX.d_head : (head + 1) * NEOX.d_head] = 0
            expected = token_losses(model(tokens), tokens) - before
            assert expected.abs().max() > 1e-5
            torch.testing.assert_close(deltas[name], expected, atol=2e-6, rtol=0)
