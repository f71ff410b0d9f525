"""Settings of the spectral estimator of the covariance part (`spectral`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt


class SpectralConfig(BaseModel):
    """What is computed; n_beta, localization and step size are the sampler's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    components: list[str] | Literal["all"] = "all"
    """Components it is computed for; ``all``: every head."""
    law: Literal["posterior", "sgld"] = "sgld"
    """Covariance of the posterior, or of SGLD with the sampler's step size."""
    steps: PositiveInt = 32
    """Lanczos steps: Hessian-vector products of a loss set."""
    pairs: PositiveInt = 24
    """Eigenpairs that are used, those of the largest |lambda| S^2; at most ``steps``."""
    scale: PositiveFloat = 6**0.5
    """Step of the second differences, in the posterior's standard deviations along each u_k."""
    sets: Annotated[int, Field(ge=4, multiple_of=2)] = 4
    """Disjoint loss sets: half of them base contexts, half of them the minibatches', which share
    no document. Their scatter is the error."""
    contexts: PositiveInt = 24
    """Contexts of a loss set."""
    gradient_contexts: NonNegativeInt = 0
    """For a second estimate of the linear term, since the gradient of a few contexts is mostly
    their own: so many contexts for a set of the minibatches' contexts; a set of base contexts
    then has its share of all of them. 0: none."""
    token_contexts: PositiveInt = 6
    """Contexts of every probe whose tokens are evaluated."""
    probes: NonNegativeInt = 2
    """Random directions a loss set, for what the pairs leave out. 0: not measured."""
    averaged: NonNegativeInt = 1
    """Random displacements of a loss set, each with its negative, over which derivatives are
    averaged, in place of those at one point. 0: not measured."""
    averaged_pairs: PositiveInt = 8
    """Pairs whose curvature is averaged, those of the largest |lambda| S^2."""

    def problems(
        self, base_contexts: int, sgld_contexts: int, token_contexts: int, method: str
    ) -> list[str]:
        """What does not fit the run's other settings, in words."""
        found = []
        half = self.sets // 2
        if half * self.contexts > base_contexts:
            found.append(
                f"half of the sets need {half} * {self.contexts} contexts (sets / 2 * contexts); "
                f"base_contexts are {base_contexts}"
            )
        if (each := max(self.contexts, self.gradient_contexts)) * half > sgld_contexts:
            found.append(
                f"the other half need {half} * {each} contexts (sets / 2 * the larger of contexts "
                f"and gradient_contexts); sgld_contexts are {sgld_contexts}"
            )
        if self.token_contexts > token_contexts:
            found.append(
                f"token_contexts ({self.token_contexts}) must not exceed contexts "
                f"({token_contexts})"
            )
        if self.law == "sgld" and method != "sgld":
            found.append(
                f"law 'sgld' needs the sampler's method to be sgld, found {method!r}, whose "
                "stationary covariance has no closed form; use law 'posterior'"
            )
        return found

    def names(self, sampled: Sequence[str], known: Sequence[str]) -> list[str]:
        """The components it is computed for.

        Args:
            sampled: what ``all`` means; ``known``: all that the model has.

        Raises:
            ValueError: one of them is not there.
        """
        chosen = list(sampled) if self.components == "all" else self.components
        if unknown := [name for name in chosen if name not in known]:
            raise ValueError(
                f"components has {', '.join(unknown)}, which the model has not; allowed: all, or "
                f"some of {', '.join(known)}"
            )
        return chosen
