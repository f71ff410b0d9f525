"""Zero ablation of attention heads: what a token's loss gains when a head writes nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .components import component
from .losses import component_losses
from .models.attention_only import AttentionOnly


def ablation_deltas(
    model: AttentionOnly, tokens: Int[Tensor, "context position"], heads: Iterable[str]
) -> dict[str, Float[Tensor, "context position-1"]]:
    """Loss after zero ablation minus loss before, of every token after the first (Baker 4.3).

    A head whose rows of the output matrix are zero writes nothing; the layer's output bias
    belongs to no head and stays.

    Returns:
        Head -> deltas in nats; positive where the head helps.
    """
    parameters = dict(model.named_parameters())
    deltas = {}
    for name in heads:
        losses = component_losses(model, component(name, model.config, parameters))
        silent = losses.w_star.clone()
        pieces = losses.component.split(silent)  # views
        next(v for k, v in pieces.items() if k.endswith("W_O")).zero_()
        both = losses.losses(torch.stack([losses.w_star, silent]), losses.prepare(tokens))
        deltas[name] = both[1] - both[0]
    return deltas
