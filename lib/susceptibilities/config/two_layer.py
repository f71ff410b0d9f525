"""Settings of the two-layer model's susceptibilities."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from ..evaluation import Evaluation
from ..posterior import SamplerConfig
from ..spectral_config import SpectralConfig
from ..tokens import probe_positions
from .parts import Checkpoint, Part, listed
from .sources import ModelConfig


class PerTokenConfig(Part):
    """Per-token susceptibilities: every token of some contexts, at few checkpoints."""

    checkpoints: list[Checkpoint] = Field(default=["last"], min_length=1)
    """Checkpoints at which they are measured."""
    control_checkpoints: list[Checkpoint] = Field(default=["last"])
    """Checkpoints at which the n_beta = 0 control is run."""
    contexts: int = Field(ge=2)
    """Contexts of every probe; all their tokens are evaluated."""
    sampler: SamplerConfig
    shards: PositiveInt = 1
    """Jobs that the components of a checkpoint are dealt to."""
    spectral: SpectralConfig | None = None
    """The covariance part without sampling, at the last of the checkpoints; none if left out."""


class TwoLayerConfig(Part):
    """Everything about the two-layer model's susceptibilities."""

    model: ModelConfig
    checkpoints: list[NonNegativeInt] = Field(min_length=2)
    """Training steps at which susceptibilities are measured."""
    context: int = Field(ge=2)
    """Tokens of a context, the beginning token included."""
    base_contexts: PositiveInt
    """n: contexts of the training distribution on which losses are measured."""
    sgld_contexts: PositiveInt = 2000
    """Contexts that minibatches are drawn from."""
    delta_h: float = Field(gt=0, le=1)
    seed: NonNegativeInt = 0
    sampler: SamplerConfig
    evaluation: Evaluation = Evaluation()
    """How losses along the chains are evaluated, the per-token ones too."""
    control_checkpoints: list[Checkpoint] = Field(default=["last"])
    """Checkpoints at which the n_beta = 0 control is run."""
    per_token: PerTokenConfig

    @field_validator("checkpoints")
    @classmethod
    def _ordered(cls, steps: list[int]) -> list[int]:
        if sorted(set(steps)) != steps:
            raise ValueError("the steps must rise, each once")
        return steps

    @model_validator(mode="after")
    def _consistent(self) -> TwoLayerConfig:
        if not len(probe_positions(self.base_contexts, self.delta_h)):
            raise ValueError(
                f"base_contexts * delta_h must be 1 at least, so that a probe has a place in the "
                f"mixture; found {self.base_contexts} * {self.delta_h}"
            )
        if self.sampler.batch > self.sgld_contexts:
            raise ValueError(
                f"sampler.batch ({self.sampler.batch}) must not exceed sgld_contexts "
                f"({self.sgld_contexts})"
            )
        per_token = self.per_token
        for key, steps in (
            ("control_checkpoints", self.control_checkpoints),
            ("per_token.checkpoints", per_token.checkpoints),
            ("per_token.control_checkpoints", per_token.control_checkpoints),
        ):
            if unknown := set(steps) - set(self.checkpoints) - {"last"}:
                raise ValueError(
                    f"{key} has {listed(unknown)}, which checkpoints has not; allowed: last, "
                    f"{listed(self.checkpoints)}"
                )
        for key, sampler in (("sampler", self.sampler), ("per_token.sampler", per_token.sampler)):
            if self.evaluation.control_variate != "none" and sampler.method != "sgld":
                raise ValueError(
                    f"evaluation.control_variate: {self.evaluation.control_variate!r} needs "
                    f"{key}.method: sgld, whose mean drift is zero; found {sampler.method!r}. "
                    "Allowed with it: none"
                )
        if per_token.sampler.batch > self.sgld_contexts:
            raise ValueError(
                f"per_token.sampler.batch ({per_token.sampler.batch}) must not exceed "
                f"sgld_contexts ({self.sgld_contexts})"
            )
        if per_token.spectral and (
            problems := per_token.spectral.problems(
                self.base_contexts,
                self.sgld_contexts,
                per_token.contexts,
                per_token.sampler.method,
            )
        ):
            raise ValueError("; ".join(f"per_token.spectral: {text}" for text in problems))
        return self

    def steps(self, checkpoints: list[Checkpoint]) -> list[int]:
        """Checkpoints with ``last`` as a number."""
        last = self.checkpoints[-1]
        return sorted({last if s == "last" else s for s in checkpoints})
