"""The localised posterior and its samplers: SGLD and RMSProp-preconditioned SGLD.

Target (Baker eq. 27): p(w) ~ exp(-n_beta * L(w) - (localization / 2) |w - w*|^2), with the
weights outside the component fixed at w*. Chains run side by side and share nothing: each has
its own noise and its own order of minibatches, both derived from one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from .store import fingerprint

# Minibatch loss and gradient of every chain: weights (C, P), rows (C, B) -> (C,), (C, P).
Gradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SamplerConfig(BaseModel):
    """Settings of the sampler; the same for every component and checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: Literal["sgld", "rmsprop"] = "sgld"
    n_beta: NonNegativeFloat
    """Inverse temperature n * beta; 0 is the negative control."""
    localization: PositiveFloat
    """gamma of eq. 27."""
    step_size: PositiveFloat
    """epsilon, in the convention drift = epsilon / 2, noise = sqrt(epsilon)."""
    chains: PositiveInt = Field(ge=2)
    burn_in: int = Field(ge=0)
    """Steps before the first draw's interval begins."""
    draws: PositiveInt
    """Draws kept a chain."""
    thinning: PositiveInt = 1
    """Steps from one kept draw to the next."""
    batch: PositiveInt
    """Contexts in a minibatch."""
    decay: float = Field(0.99, gt=0, lt=1)
    """RMSProp: memory of the squared gradient."""
    damping: PositiveFloat = 0.1
    """RMSProp: added to the root of the squared gradient."""

    @property
    def steps(self) -> int:
        """Steps of a chain."""
        return self.burn_in + self.draws * self.thinning


@dataclass(frozen=True)
class Draw:
    """The state of all chains at a kept draw.

    Attributes:
        index: number of the draw, from 0.
        weights: (chain, P).
        acceptance: probability with which a Metropolis test on the step's own minibatch would
            accept the next proposal (MALA), (chain,).
        distance: |w - w*|, (chain,).
    """

    index: int
    weights: Tensor
    acceptance: Tensor
    distance: Tensor


@dataclass
class Trace:
    """What every step leaves behind.

    Attributes:
        loss: minibatch loss before each step, (chain, step).
        rows: the minibatch's rows, (chain, step, batch).
        died: step at which a chain's loss or weights stopped being finite, -1 if it did not.
    """

    loss: Tensor
    rows: NDArray[np.int64]
    died: NDArray[np.int64]


def chain_seed(seed: int, *labels: object) -> int:
    """A seed of its own for every (run, component, chain, purpose)."""
    return int(fingerprint([seed, *labels])[:15], 16)


def minibatch_rows(
    pool: int, batch: int, steps: int, chains: int, seed: int, label: str
) -> Int[NDArray[np.int64], "chain step batch"]:
    """Rows of every chain's minibatches: passes over the pool, each in a new order."""
    if batch > pool:
        raise ValueError(f"a minibatch of {batch} contexts needs a pool of as many, found {pool}")
    orders = np.empty((chains, steps, batch), np.int64)
    for chain in range(chains):
        rng = np.random.default_rng(chain_seed(seed, label, chain, "rows"))
        needed = steps * batch
        passes = [rng.permutation(pool) for _ in range(-(-needed // pool))]
        orders[chain] = np.concatenate(passes)[:needed].reshape(steps, batch)
    return orders


class Sampler:
    """Chains of one component; iterate over `draws`, then read `trace`.

    Args:
        gradient: minibatch loss and gradient of all chains.
        w_star: the component's weights, (P,).
        pool: number of contexts that minibatches are drawn from.
        label: what is sampled (component and checkpoint); it enters the seeds.
    """

    def __init__(
        self,
        gradient: Gradient,
        w_star: Float[Tensor, " size"],
        pool: int,
        config: SamplerConfig,
        seed: int,
        label: str,
    ) -> None:
        self.gradient = gradient
        self.w_star = w_star
        self.config = config
        chains = config.chains
        rows = minibatch_rows(pool, config.batch, config.steps, chains, seed, label)
        self.trace = Trace(
            torch.full((chains, config.steps), torch.nan, dtype=torch.float64),
            rows,
            np.full(chains, -1, np.int64),
        )
        self._rows = torch.from_numpy(rows).to(w_star.device)
        # Noise is made on the CPU, so that the same seed gives the same chain on any device.
        self._noise = [
            torch.Generator().manual_seed(chain_seed(seed, label, chain, "noise"))
            for chain in range(chains)
        ]
        self._square = torch.zeros(chains, len(w_star), dtype=w_star.dtype, device=w_star.device)

    def _standard_normal(self) -> Tensor:
        size = len(self.w_star)
        noise = [torch.randn(size, generator=g, dtype=self.w_star.dtype) for g in self._noise]
        return torch.stack(noise).to(self.w_star.device)

    def _preconditioner(self, gradient: Tensor) -> Tensor:
        """Diagonal G of the step, (chain, P); ones for plain SGLD."""
        if self.config.method == "sgld":
            return torch.ones((), dtype=gradient.dtype, device=gradient.device)
        decay = self.config.decay
        self._square.mul_(decay).addcmul_(gradient, gradient, value=1 - decay)
        return 1.0 / (self._square.sqrt() + self.config.damping)

    def _drift(self, weights: Tensor, gradient: Tensor) -> Tensor:
        """n_beta * gradient + localization * (w - w*): the gradient of the energy."""
        c = self.config
        return c.n_beta * gradient + c.localization * (weights - self.w_star)

    def _energy(self, weights: Tensor, loss: Tensor) -> Tensor:
        c = self.config
        square = (weights - self.w_star).square().sum(-1)
        return c.n_beta * loss + 0.5 * c.localization * square

    def _acceptance(
        self,
        before: tuple[Tensor, Tensor, Tensor],
        proposal: Tensor,
        precondition: Tensor,
        rows: Tensor,
    ) -> Tensor:
        """min(1, exp(...)) of the Metropolis-adjusted step with this minibatch's energy."""
        weights, loss, drift = before
        epsilon = self.config.step_size
        new_loss, new_gradient = self.gradient(proposal, rows)
        new_drift = self._drift(proposal, new_gradient)

        def log_density(x: Tensor, start: Tensor, slope: Tensor) -> Tensor:
            residual = x - start + 0.5 * epsilon * precondition * slope
            return -(residual.square() / precondition).sum(-1) / (2 * epsilon)

        forward = log_density(proposal, weights, drift)
        backward = log_density(weights, proposal, new_drift)
        ratio = self._energy(weights, loss) - self._energy(proposal, new_loss) + backward - forward
        return ratio.clamp(max=0.0).exp()

    def draws(self) -> Iterator[Draw]:
        """Run the chains and yield each kept draw.

        A chain whose loss or weights stop being finite is put back to w* and marked in
        ``trace.died``; the others go on untouched.
        """
        c = self.config
        weights = self.w_star.repeat(c.chains, 1)
        epsilon = c.step_size
        for step in range(c.steps):
            rows = self._rows[:, step]
            loss, gradient = self.gradient(weights, rows)
            self.trace.loss[:, step] = loss.double().cpu()
            precondition = self._preconditioner(gradient)
            drift = self._drift(weights, gradient)
            noise = self._standard_normal()
            proposal = weights - 0.5 * epsilon * precondition * drift
            proposal = proposal + (epsilon * precondition).sqrt() * noise
            past = step + 1 - c.burn_in
            keep = past > 0 and past % c.thinning == 0
            if keep:
                acceptance = self._acceptance((weights, loss, drift), proposal, precondition, rows)
            sound = torch.isfinite(proposal).all(-1) & torch.isfinite(loss)
            if not bool(sound.all()):
                fresh = (~sound).cpu().numpy() & (self.trace.died < 0)
                self.trace.died[fresh] = step
                proposal = torch.where(sound[:, None], proposal, self.w_star)
            weights = proposal
            if keep:
                yield Draw(
                    past // c.thinning - 1,
                    weights,
                    acceptance,
                    (weights - self.w_star).norm(dim=-1),
                )
