"""How losses along chains are evaluated: what changes cost and noise, but not the estimand."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Precision = Literal["float32", "bfloat16"]
ControlVariate = Literal["none", "linear"]

# bfloat16 serves a component whose `precision_error` is at most this.
BUDGET = 0.005


class Evaluation(BaseModel):
    """Settings of the evaluation; the same for every component and checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    precision: Precision = "float32"
    """Of the largest matrix products. bfloat16 is used for a component only where its measured
    error is within `BUDGET`."""
    control_variate: ControlVariate = "none"
    """``linear`` takes the noise that is linear in the weights off the means of the losses, for
    two evaluations more a chain; see `susceptibilities.control_variate`."""

    def count(self, draws: int) -> dict[str, int]:
        """Evaluations of every token that a chain costs: of its draws, and of its controls."""
        return {"draws": draws, "control": {"none": 0, "linear": 2}[self.control_variate]}


def precision_error(
    found: Float[Tensor, "chain draw context position"],
    exact: Float[Tensor, "chain draw context position"],
) -> float:
    """Largest relative error (root mean square) of chi's ingredients from inexact shifts.

    The ingredients: the shifts themselves; their mean g over tokens; their mean over draws; their
    covariance with g over draws.
    """

    def ingredients(shift: Tensor) -> list[Tensor]:
        tokens = shift.double().flatten(2)
        g = tokens.mean(-1)
        mean = tokens.mean(1)
        centred = (g - g.mean(1, keepdim=True))[..., None] * (tokens - mean[:, None])
        return [tokens, g, mean, centred.mean(1)]

    errors = []
    for one, other in zip(ingredients(found), ingredients(exact), strict=True):
        size = other.square().mean().sqrt()
        # What does not vary at all (the covariance of a single draw) has no error either.
        errors.append(float((one - other).square().mean().sqrt() / size) if size > 0 else 0.0)
    return max(errors)
