"""The localised posterior and its samplers: SGLD and RMSProp-preconditioned SGLD.

Target (Baker eq. 27): p(w) ~ exp(-n_beta * L(w) - (localization / 2) |w - w*|^2), with the
weights outside the component fixed at w*. Chains run side by side and share nothing: each has
its own noise and its own order of minibatches, both derived from one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


# Draws of a chain whose acceptance is measured; each costs a gradient more.
TESTED = 4


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
    unrestricted_draws: PositiveInt | None = None
    """Those of an unrestricted chain, ``draws`` by default. Nearly all noise of chi is that of
    E_full[dL], which all components share: more draws there serve every component at once."""
    thinning: PositiveInt = 1
    """Steps from one kept draw to the next."""
    batch: PositiveInt
    """Contexts in a minibatch."""
    decay: float = Field(0.99, gt=0, lt=1)
    """RMSProp: memory of the squared gradient."""
    damping: PositiveFloat = 0.1
    """RMSProp: added to the root of the squared gradient."""
    start: Literal["star", "localization"] = "star"
    """Where chains begin: at w*, or at w* + N(0, 1 / localization), which shortens the burn-in
    where most of the posterior's width is the localization's."""

    @property
    def steps(self) -> int:
        """Steps of a chain."""
        return self.burn_in + self.draws * self.thinning

    @property
    def gradients(self) -> int:
        """Gradients of a chain: one a step, and one for every acceptance that is measured."""
        return self.steps + min(self.draws, TESTED)

    def of(self, component: str) -> SamplerConfig:
        """Settings of the chains of one component."""
        own = self.unrestricted_draws if component == "full" else None
        return self.model_copy(update={"draws": own or self.draws, "unrestricted_draws": None})

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of a store's axes ``draw`` and ``step``: those of the longest chains."""
        longest = max(self.of("full"), self.of(""), key=lambda settings: settings.draws)
        return {"draw": longest.draws, "step": longest.steps}


@dataclass(frozen=True)
class Trace:
    """What the chains leave behind, beside their draws; on the CPU.

    Attributes:
        rows: the minibatch's rows, (chain, step, batch).
        loss: minibatch loss before each step, (chain, step).
        acceptance: probability with which a Metropolis test on the step's own minibatch would
            accept the proposal (MALA), (chain, draw); of the last `TESTED` draws, NaN before.
        distance: |w - w*| of every kept draw, (chain, draw).
        died: step at which a chain's loss or weights stopped being finite, -1 if it did not.
    """

    rows: Tensor
    loss: Tensor
    acceptance: Tensor
    distance: Tensor
    died: Tensor


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
    """Chains of one component, side by side, and the draws that they keep.

    `advance` runs them; a `state` that is put back with `restore` goes on to the same bits.

    Args:
        gradient: minibatch loss and gradient of all chains.
        w_star: the component's weights, (P,).
        pool: number of contexts that minibatches are drawn from.
        label: what is sampled (component and checkpoint); it enters the seeds.
        held: kept draws that are held at a time, all by default; see `draws`.
        mean_gradient: whether the mean gradient is accumulated (two floats a weight and chain).

    Attributes:
        weights: present weights, (chain, P).
        step: number of steps done.
        trace: of the steps done.
    """

    def __init__(
        self,
        gradient: Gradient,
        w_star: Float[Tensor, " size"],
        pool: int,
        config: SamplerConfig,
        seed: int,
        label: str,
        held: int | None = None,
        mean_gradient: bool = True,
    ) -> None:
        self.gradient = gradient
        self.w_star = w_star
        self.config = config
        self.held = min(held or config.draws, config.draws)
        chains, size = config.chains, len(w_star)
        rows = minibatch_rows(pool, config.batch, config.steps, chains, seed, label)
        self.trace = Trace(
            torch.from_numpy(rows),
            torch.full((chains, config.steps), torch.nan, dtype=torch.float64),
            torch.full((chains, config.draws), torch.nan, dtype=torch.float64),
            torch.full((chains, config.draws), torch.nan, dtype=torch.float64),
            torch.full((chains,), -1),
        )
        # Noise is made where the weights are: a seed's chains differ from device to device.
        self._noise = [
            torch.Generator(w_star.device).manual_seed(chain_seed(seed, label, chain, "noise"))
            for chain in range(chains)
        ]
        self.step = 0
        self.weights = w_star.repeat(chains, 1)
        if config.start == "localization":
            self.weights += self._standard_normal() / config.localization**0.5
        self._draws = w_star.new_empty(chains, self.held, size)
        empty = w_star.new_empty(chains, 0)
        self._square = torch.zeros_like(self.weights) if config.method == "rmsprop" else empty
        wide = torch.float64
        self._gradients = torch.zeros_like(self.weights if mean_gradient else empty, dtype=wide)

    @property
    def kept(self) -> int:
        """Draws kept so far, in each chain."""
        return max(0, self.step - self.config.burn_in) // self.config.thinning

    @property
    def draws(self) -> Float[Tensor, "chain draw size"]:
        """The kept draws since the last multiple of ``held``: all of them by default.

        A view: the draws after the next multiple take their place.
        """
        return (
            self._draws[:, : (self.kept - 1) % self.held + 1] if self.kept else self._draws[:, :0]
        )

    @property
    def mean_gradient(self) -> Float[Tensor, "chain size"]:
        """Mean of the minibatch gradients of L over the steps after burn-in, float64."""
        return self._gradients / max(1, self.step - self.config.burn_in)

    def state(self) -> dict[str, Tensor]:
        """Everything that changes as the chains run."""
        steps, kept = self.step, self.kept
        state = {
            "step": torch.tensor(steps),
            "weights": self.weights,
            "draws": self.draws,
            "square": self._square,
            "gradients": self._gradients,
            "loss": self.trace.loss[:, :steps],
            "acceptance": self.trace.acceptance[:, :kept],
            "distance": self.trace.distance[:, :kept],
            "died": self.trace.died,
        }
        for chain, generator in enumerate(self._noise):
            state[f"noise.{chain}"] = generator.get_state()
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put a `state` of the same chains back.

        Raises:
            KeyError, RuntimeError: it is of other chains.
        """
        self.step = int(state["step"])
        self.weights = state["weights"].to(self.w_star.device, copy=True)
        self.draws.copy_(state["draws"])
        self._square.copy_(state["square"])
        self._gradients.copy_(state["gradients"])
        self.trace.loss[:, : self.step] = state["loss"]
        self.trace.acceptance[:, : self.kept] = state["acceptance"]
        self.trace.distance[:, : self.kept] = state["distance"]
        self.trace.died.copy_(state["died"])
        for chain, generator in enumerate(self._noise):
            generator.set_state(state[f"noise.{chain}"])

    def _standard_normal(self) -> Tensor:
        noise = self.w_star.new_empty(len(self._noise), len(self.w_star))
        for row, generator in zip(noise, self._noise, strict=True):
            row.normal_(generator=generator)
        return noise

    def _preconditioner(self, gradient: Tensor) -> Tensor:
        """Diagonal G of the step, (chain, P); one for plain SGLD."""
        if self.config.method == "sgld":
            return torch.ones((), dtype=gradient.dtype, device=gradient.device)
        decay = self.config.decay
        self._square.mul_(decay).addcmul_(gradient, gradient, value=1 - decay)
        return 1.0 / (self._square.sqrt() + self.config.damping)

    def _drift(self, weights: Tensor, gradient: Tensor) -> Tensor:
        """n_beta * gradient + localization * (w - w*): the gradient of the energy."""
        c = self.config
        # In place: of a whole model's chains every new array costs as much as the arithmetic.
        return (weights - self.w_star).mul_(c.localization).add_(gradient, alpha=c.n_beta)

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

    def advance(self, draws: int, after_step: Callable[[], None] = lambda: None) -> None:
        """Run until each chain has kept ``draws`` draws in all.

        A chain whose loss or weights stop being finite is put back to w* and marked in
        ``trace.died``; the others go on untouched.
        """
        while self.kept < min(draws, self.config.draws):
            self._step()
            after_step()

    def _step(self) -> None:
        c, weights, epsilon = self.config, self.weights, self.config.step_size
        rows = self.trace.rows[:, self.step].to(weights.device)
        loss, gradient = self.gradient(weights, rows)
        self.trace.loss[:, self.step] = loss.double().cpu()
        precondition = self._preconditioner(gradient)
        drift = self._drift(weights, gradient)
        proposal = torch.addcmul(weights, drift, precondition, value=-0.5 * epsilon)
        proposal.addcmul_(self._standard_normal(), (epsilon * precondition).sqrt())
        past = self.step + 1 - c.burn_in
        keep = past > 0 and past % c.thinning == 0
        if keep:
            acceptance = torch.full_like(loss, torch.nan)
            if past // c.thinning > c.draws - TESTED:
                state = weights, loss, drift
                acceptance = self._acceptance(state, proposal, precondition, rows)
        sound = torch.isfinite(proposal).all(-1) & torch.isfinite(loss)
        if not bool(sound.all()):
            fresh = ~sound.cpu() & (self.trace.died < 0)
            self.trace.died[fresh] = self.step
            proposal = torch.where(sound[:, None], proposal, self.w_star)
            gradient = torch.where(sound[:, None], gradient, 0.0)
        if past > 0 and self._gradients.numel():
            self._gradients += gradient
        self.weights = proposal
        self.step += 1
        if keep:
            place = self.kept - 1
            self._draws[:, place % self.held] = proposal
            self.trace.acceptance[:, place] = acceptance.double().cpu()
            self.trace.distance[:, place] = (proposal - self.w_star).norm(dim=-1).double().cpu()
