"""The way to compute a component's losses, and losses at the model's own weights."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..components import Component
from ..models.transformer import Transformer
from .interface import ComponentLosses, Precision
from .logits import linear_losses
from .plain import PlainLosses
from .stacked import EmbedLosses, HeadLosses, MLPLosses, StackedLosses
from .whole import FullLosses, UnembedLosses

_KINDS: dict[str, type[StackedLosses]] = {
    "head": HeadLosses,
    "mlp": MLPLosses,
    "embed": EmbedLosses,
    "unembed": UnembedLosses,
    "full": FullLosses,
}
# Contexts taken through the model at a time.
_CONTEXTS = 8


def component_losses(
    model: Transformer, part: Component, precision: Precision = "float32", plain: bool = False
) -> ComponentLosses:
    """The fastest evaluation for this component, or the ``plain`` one, which is its oracle.

    ``precision`` is that of the product that changes the logits; all else is float32. Heads of
    the last layer, whose product is small, and the unrestricted chain keep float32.
    """
    return PlainLosses(model, part) if plain else _KINDS[part.kind](model, part, precision)


@torch.no_grad()
def token_losses_at(
    model: Transformer, tokens: Int[Tensor, "context position"], block: int = _CONTEXTS
) -> Float[Tensor, "context position-1"]:
    """Loss of every token after the first at the model's own weights."""
    parts = []
    for rows in tokens.split(block):
        final = model.final(model.residual(rows)[:, :-1]).flatten(0, 1)
        losses = linear_losses(final, *model.unembedding(), rows[:, 1:].flatten())
        parts.append(losses.view(len(rows), -1))
    return torch.cat(parts)


def context_losses(
    model: Transformer, tokens: Int[Tensor, "context position"], block: int = _CONTEXTS
) -> Float[Tensor, " context"]:
    """Mean loss per token of every context at the model's own weights."""
    return token_losses_at(model, tokens, block).mean(-1)
