"""What the spectral estimate costs, by counting: products, evaluations, memory.

A Hessian-vector product on a context counts as so many gradients; an evaluation is one weight
vector on all tokens. `planning.work` counts operations and `planning.rates` makes time of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .components import Component
from .hessian import KEPT_BYTES, kept_bytes
from .models.shapes import Shape
from .planning.rates import Rates
from .planning.work import evaluation, gradient, shared
from .spectral_config import SpectralConfig

# Gradients that a product takes on the same contexts, with what products share kept: 1.1 for a
# head of the last of two layers, 2.2 for one of the first, on one CPU core. Not kept, the model
# is gone through with a graph each time: about two gradients more.
PRODUCT, RECOMPUTED = 2.2, 2.0
_FLOAT = 4


@dataclass(frozen=True)
class Counts:
    """What one loss set of one component takes, without a control.

    Attributes:
        products: Hessian-vector products, each on all contexts of the loss set.
        gradients: contexts whose gradient is taken (of a set of minibatches' contexts).
        evaluations: weight vectors at which all tokens are evaluated.
    """

    products: int
    gradients: int
    evaluations: int

    @classmethod
    def of(cls, config: SpectralConfig) -> Counts:
        """Counts that follow from the settings."""
        c = config
        averaged = 2 * c.averaged
        # A linear term takes its center and both ends, a pair two more.
        moved = averaged * (2 * min(c.averaged_pairs, c.pairs) + 3)
        wide = 3 if c.gradient_contexts else 0
        rest = 6 * c.probes + 1 if c.probes else 0
        return cls(
            products=c.steps + c.probes,
            gradients=c.contexts + (1 + averaged) * (c.gradient_contexts or c.contexts),
            evaluations=2 * c.pairs + 3 + wide + rest + moved,
        )


def basis_bytes(part: Component, config: SpectralConfig) -> int:
    """Memory of the Lanczos basis and of the pairs that are made of it."""
    return 2 * config.steps * part.size * _FLOAT


def spectral_seconds(
    part: Component,
    shape: Shape,
    config: SpectralConfig,
    contexts: int,
    length: int,
    rates: Rates,
    device: str = "cuda",
) -> tuple[float, float]:
    """Time of all loss sets of a component on products, and on evaluations.

    Args:
        contexts: whose tokens are evaluated, of ``length`` tokens each, as are the loss sets'.
    """
    counts = Counts.of(config)
    one = rates.seconds("gradient", gradient(part, shape, 1, 1, length))
    kept = kept_bytes(config.contexts * (length - 1), shape.d_model, shape.d_vocab)
    product = PRODUCT if kept <= KEPT_BYTES[device] else PRODUCT + RECOMPUTED
    differentiated = product * counts.products * config.contexts + counts.gradients
    each = evaluation(part, shape, counts.evaluations, 1, length) + shared(part, shape, 1, length)
    evaluated = rates.seconds("evaluation", each) * contexts
    return config.sets * differentiated * one, config.sets * evaluated
