"""Zero ablation of attention heads: what a token's loss gains when a head writes nothing."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float, Int
from torch import Tensor

from .components import component
from .losses import component_losses
from .models.transformer import Transformer

# A head's output matrix, in the models that there are.
_OUTPUTS = ("attn.W_O", "attention.dense.weight")


def ablation_deltas(
    model: Transformer, tokens: Int[Tensor, "context position"], heads: Iterable[str]
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
        next(v for k, v in pieces.items() if k.endswith(_OUTPUTS)).zero_()
        prepared = losses.prepare(tokens, keep=False)  # they are used once
        deltas[name] = losses.shifts(silent[None], prepared)[0]
    return deltas
