"""Zero ablation, against hooks on the model itself."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from susceptibilities.ablation import ablation_deltas
from susceptibilities.components import head_names
from susceptibilities.models.attention_only import token_losses
from test_sampling import SHAPE, small_model


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
