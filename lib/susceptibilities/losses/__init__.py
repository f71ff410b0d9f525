"""Per-token losses, and their gradients, of a model with one component's weights replaced."""

from .choose import component_losses, context_losses, token_losses_at
from .interface import ComponentLosses, Precision, Prepared
from .logits import linear_loss_sum, linear_losses
from .plain import PlainLosses

__all__ = [
    "ComponentLosses",
    "PlainLosses",
    "Precision",
    "Prepared",
    "component_losses",
    "context_losses",
    "linear_loss_sum",
    "linear_losses",
    "token_losses_at",
]
