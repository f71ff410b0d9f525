"""What is planned: chains of some components of one checkpoint, and what they are evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..evaluation import ControlVariate, Evaluation
from ..models.shapes import Shape
from ..posterior import SamplerConfig

_DOUBLE = 8


class PlanError(ValueError):
    """A run that cannot be: the message says what does not fit, and what to change."""


@dataclass(frozen=True)
class Run:
    """Chains of some components of one checkpoint, and what they are evaluated on.

    Attributes:
        context: tokens of a context.
        base: contexts of the observable; ``probes``: the other contexts that are evaluated.
        pool: contexts that minibatches are drawn from.
        per_token: every token's moments are stored; otherwise every context's mean along the
            chains.
    """

    shape: Shape
    names: Sequence[str]
    context: int
    base: int
    probes: int
    pool: int
    sampler: SamplerConfig
    control_variate: ControlVariate = "none"
    per_token: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.context <= self.shape.n_ctx:
            raise PlanError(
                f"a context of {self.context} tokens; expected 2 to {self.shape.n_ctx}, the "
                "context of the model"
            )
        if min(self.base, self.probes, self.pool) < 1:
            raise PlanError(
                f"base, probe and minibatch contexts: expected one of each at least, found "
                f"{self.base}, {self.probes} and {self.pool}"
            )

    @property
    def contexts(self) -> int:
        """All evaluated contexts."""
        return self.base + self.probes

    @property
    def tokens(self) -> int:
        """Tokens that get a susceptibility each, or whose contexts do."""
        return self.probes * (self.context - 1)

    @property
    def controls(self) -> int:
        """Evaluations a chain for the control variate."""
        return Evaluation(control_variate=self.control_variate).count(0)["control"]

    @property
    def disk(self) -> int:
        """Bytes of one component's results, before compression."""
        chains, sizes = self.sampler.chains, self.sampler.sizes
        trace = chains * sizes["step"] * _DOUBLE
        if not self.per_token:
            arrays = sizes["draw"] + (self.controls > 0)
            return chains * self.contexts * arrays * _DOUBLE + trace
        return chains * self.tokens * (2 + (self.controls > 0)) * _DOUBLE + trace
