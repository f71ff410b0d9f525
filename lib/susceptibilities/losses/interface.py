"""What every way to compute a component's losses offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from ..components import Component

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Prepared:
    """Contexts with what does not depend on the weights of one layer's components.

    Attributes:
        tokens: (context, position).
        below: residual stream before the layer, (context, position, d_model).
        above: residual stream after the layer at w*, same shape.

    ``below`` and ``above`` are None where nothing is kept (the component has no layer, or the
    contexts are too many): what is needed is then computed for the rows that are asked for.
    """

    tokens: Tensor
    below: Tensor | None = None
    above: Tensor | None = None


class ComponentLosses(Protocol):
    """Per-token losses of a model in which one component has other weights.

    Attributes:
        component: the component whose weights are given.
        w_star: its trained weights, (P,).
    """

    component: Component
    w_star: Tensor

    @property
    def depth(self) -> int | None:
        """The layer whose `Prepared` this component uses; None where there is none."""
        ...

    def prepare(self, tokens: Int[Tensor, "context position"], keep: bool = True) -> Prepared:
        """Compute once what the component's weights cannot change.

        The result serves every component of the same ``depth``. With ``keep=False`` nothing is
        stored.
        """
        ...

    def star(
        self, prepared: Prepared, rows: slice | None = None
    ) -> Float[Tensor, "context position-1"]:
        """Losses at w*, nats; of all contexts or of some."""
        ...

    def shifts(
        self, weights: Float[Tensor, "draw size"], prepared: Prepared, rows: slice | None = None
    ) -> Float[Tensor, "draw context position-1"]:
        """Losses minus those at w* of every weight vector on the same contexts."""
        ...

    def losses(
        self, weights: Float[Tensor, "draw size"], prepared: Prepared, rows: slice | None = None
    ) -> Float[Tensor, "draw context position-1"]:
        """Losses of every weight vector on the same contexts."""
        ...

    def loss_and_gradient(
        self,
        weights: Float[Tensor, "chain size"],
        prepared: Prepared,
        rows: Int[Tensor, "chain batch"],
    ) -> tuple[Float[Tensor, " chain"], Float[Tensor, "chain size"]]:
        """Mean loss per token and its gradient, each chain on its own rows of the contexts."""
        ...
