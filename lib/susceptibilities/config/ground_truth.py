"""Settings of the ground-truth susceptibilities of GPT-NeoX models (Gordon et al., section 1)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ..evaluation import Evaluation
from ..posterior import SamplerConfig
from .parts import Checkpoint, Part
from .sources import ModelConfig

# The two models, by the place that they take: Pythia-14M's and Pythia-1.4B's in the papers.
Role = Literal["pythia-small", "pythia-large"]


class GroundTruthModelConfig(Part):
    """One model, and how its chains are run."""

    model: ModelConfig
    checkpoint: Checkpoint = "last"
    """Training step; ``last`` needs a folder, or a model that is trained here."""
    sampler: SamplerConfig
    shards: PositiveInt = 1
    """Jobs that the components are dealt to."""
    control: bool = True
    """Whether the n_beta = 0 baseline is run."""


class GroundTruthConfig(Part):
    """The raw susceptibility matrix of each model: tokens by components."""

    models: dict[Role, GroundTruthModelConfig] = Field(min_length=1)
    context: int = Field(ge=2)
    """Tokens of a context, the beginning token included."""
    contexts: int = Field(ge=2)
    """Contexts of every domain: tokens are sampled uniformly over domains. All are evaluated."""
    base_contexts: PositiveInt
    """n: contexts of the training distribution on which L_n is measured."""
    sgld_contexts: PositiveInt = 2000
    """Contexts that minibatches are drawn from."""
    seed: NonNegativeInt = 0
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _consistent(self) -> GroundTruthConfig:
        for role, settings in self.models.items():
            sampler = settings.sampler
            if sampler.batch > self.sgld_contexts:
                raise ValueError(
                    f"models.{role}.sampler.batch ({sampler.batch}) must not exceed sgld_contexts "
                    f"({self.sgld_contexts})"
                )
            if self.evaluation.control_variate != "none" and sampler.method != "sgld":
                raise ValueError(
                    f"evaluation.control_variate: {self.evaluation.control_variate!r} needs "
                    f"models.{role}.sampler.method: sgld, whose mean drift is zero; found "
                    f"{sampler.method!r}. Allowed with it: none"
                )
        return self
