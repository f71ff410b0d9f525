"""How losses along chains are evaluated: what changes cost and noise, but not the estimand."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Precision = Literal["float32", "bfloat16"]
ControlVariate = Literal["none", "linear"]

# bfloat16 serves a component whose `precision_error` is at most this: a twentieth of a standard
# error, which adds 0.1 % to it (1 % where a control variate has divided it by three).
BUDGET = 0.05


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
    """Largest error of chi's ingredients from inexact shifts, in their own standard errors.

    The ingredients, a number a chain each: the mean over draws of the observable g (the mean of
    these losses), of every loss, and the covariance of the two over draws. The error is that of
    the mean over chains, the standard error that over chains, both root mean squares over losses.
    Infinite where there is an error and no scatter to measure it by.
    """

    def ingredients(shift: Tensor) -> list[Tensor]:
        tokens = shift.double().flatten(2)
        g = tokens.mean(-1)
        mean = tokens.mean(1)
        centred = (g - g.mean(1, keepdim=True))[..., None] * (tokens - mean[:, None])
        return [g.mean(1, keepdim=True), mean, centred.mean(1)]

    ratios = []
    for one, other in zip(ingredients(found), ingredients(exact), strict=True):
        error = float((one - other).mean(0).square().mean().sqrt())
        noise = float(other.var(0).mean().sqrt()) / len(other) ** 0.5
        # The covariance of a single draw is zero in both.
        ratios.append(0.0 if error == 0 else error / noise if noise > 0 else float("inf"))
    return max(ratios)
