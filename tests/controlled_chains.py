"""SGLD on quadratic losses in plain NumPy, with its control variate, as stores of the samplers.

Context i has loss b_i . w + w' H_i w / 2 and w* = 0, so the derivative of its loss at w* along a
direction is b_i times it, and the stationary law of the chains is a known Gaussian
(`quadratic.Quadratic.stationary`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from quadratic import Quadratic, random_quadratic
from susceptibilities.posterior import SamplerConfig

BASE = 20


@dataclass(frozen=True)
class Drawn:
    """Weights of the kept draws, (chain, draw, P), and the mean gradient, (chain, P)."""

    model: Quadratic
    config: SamplerConfig
    weights: np.ndarray
    mean_gradient: np.ndarray

    @property
    def shift(self) -> np.ndarray:
        """Losses of every context at every draw, (chain, draw, context)."""
        w, b, h = self.weights, self.model.b.numpy(), self.model.h.numpy()
        return w @ b.T + 0.5 * np.einsum("cdp,ipq,cdq->cdi", w, h, w, optimize=True)

    @property
    def direction(self) -> np.ndarray:
        """a of every chain, (chain, P)."""
        ratio = self.config.n_beta / self.config.localization
        return self.weights.mean(1) + ratio * self.mean_gradient

    @property
    def control(self) -> np.ndarray:
        """What the control variate takes off the mean of every loss, (chain, context)."""
        return self.direction @ self.model.b.numpy().T


def sgld(model: Quadratic, config: SamplerConfig, seed: int, stationary: bool = True) -> Drawn:
    """Chains with full-batch gradients of the base contexts.

    Args:
        stationary: begin in the stationary law, so that no burn-in is needed; else at w*.
    """
    rng = np.random.default_rng(seed)
    b, h = model.b[:BASE].mean(0).numpy(), model.h[:BASE].mean(0).numpy()
    weights = np.zeros((config.chains, len(b)))
    if stationary:
        mean, covariance = model.stationary(list(range(BASE)), config)
        weights = rng.multivariate_normal(mean, covariance, config.chains)
    kept, total = [], np.zeros_like(weights)
    for step in range(config.steps):
        gradient = b + weights @ h
        drift = config.n_beta * gradient + config.localization * weights
        noise = rng.normal(size=weights.shape)
        weights = weights - 0.5 * config.step_size * drift + config.step_size**0.5 * noise
        past = step + 1 - config.burn_in
        if past > 0:
            total += gradient
            if past % config.thinning == 0:
                kept.append(weights)
    return Drawn(model, config, np.stack(kept, 1), total / (config.steps - config.burn_in))


def linear(contexts: int, size: int, kept: list[int]) -> Quadratic:
    """Contexts without curvature: the control variate holds all of their noise."""
    model = random_quadratic(contexts, size, kept)
    return Quadratic(model.linear, 0 * model.square, kept)


def _diagnostics(drawn: Drawn) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    distance = np.linalg.norm(drawn.weights, axis=-1)
    return {
        "distance": (("chain", "draw"), distance),
        "acceptance": (("chain", "draw"), np.ones_like(distance)),
        "trace": (("chain", "step"), drawn.shift[..., :BASE].mean(-1)),
        "died": (("chain",), np.full(len(distance), -1)),
        "size": ((), np.int64(drawn.weights.shape[-1])),
        "draws": ((), np.int64(distance.shape[1])),
    }


def token_shard(parts: dict[str, Drawn]) -> xr.Dataset:
    """A store of `token_sampling.sample_tokens`; every context after the base is a token."""
    found = []
    for drawn in parts.values():
        shift, control = drawn.shift, drawn.control
        g, tokens = shift[..., :BASE].mean(-1), shift[..., BASE:]
        deviation = g - g.mean(1, keepdims=True)
        variables = {
            "mean_g": (("chain",), g.mean(1)),
            "square_g": (("chain",), np.square(deviation).sum(1)),
            "mean_shift": (("chain", "token"), tokens.mean(1)),
            "comoment": (
                ("chain", "token"),
                np.einsum("cd,cdi->ci", deviation, tokens - tokens.mean(1, keepdims=True)),
            ),
            "control_g": (("chain",), control[:, :BASE].mean(1)),
            "control_shift": (("chain", "token"), control[:, BASE:]),
            **_diagnostics(drawn),
        }
        found.append(xr.Dataset(variables))
    data = xr.concat(found, "component")
    config = next(iter(parts.values())).config
    count = len(parts)
    data.attrs = {
        "identity": "planted",
        "component": list(parts),
        "step": 7,
        "n_beta": config.n_beta,
        "localization": config.localization,
        "draws": config.draws,
        "sampler": config.model_dump(),
        "evaluation": {"control_variate": "linear"},
        "precision": ["float32"] * count,
        "seconds": [{"sampling": 2.0, "draws": 3.0, "control": 1.0}] * count,
    }
    return data


def loss_store(parts: dict[str, Drawn], positions: np.ndarray, probes: int) -> xr.Dataset:
    """A store of `sampling.sample_checkpoint`; contexts after the base are the probes' rows."""
    found = []
    for drawn in parts.values():
        shift, control = drawn.shift, drawn.control
        chosen = (probes, len(positions))
        found.append(
            xr.Dataset(
                {
                    "base_shift": (("chain", "draw", "base_context"), shift[..., :BASE]),
                    "probe_shift": (
                        ("chain", "draw", "probe", "probe_context"),
                        shift[..., BASE:].reshape(*shift.shape[:2], *chosen),
                    ),
                    "base_control": (("chain", "base_context"), control[:, :BASE]),
                    "probe_control": (
                        ("chain", "probe", "probe_context"),
                        control[:, BASE:].reshape(len(control), *chosen),
                    ),
                    **_diagnostics(drawn),
                }
            )
        )
    data = xr.concat(found, "component").assign_coords(probe_context=positions)
    config = next(iter(parts.values())).config
    data.attrs = {
        "component": list(parts),
        "probe": [f"probe-{number}" for number in range(probes)],
        "step": 7,
        "sampler": config.model_dump(),
    }
    return data
