"""Every path's chi on the same draws, against the whole model in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import measure
import peer
from cases import Case
from susceptibilities.components import Component
from susceptibilities.estimators import susceptibility_parts
from susceptibilities.losses import ComponentLosses, component_losses
from susceptibilities.models.transformer import Transformer
from susceptibilities.moments import Moments
from susceptibilities.posterior import Sampler
from susceptibilities.store import write_json

RESULT = "same_draws.json"
# Enough for every entry to be made of a mean and a covariance.
_CHAINS, _DRAWS = 2, 3


def _draws(case: Case, part: Component, model: Transformer, pool: Tensor) -> Tensor:
    """Weights (draw, P) of chains of both."""
    losses = component_losses(model, part)
    prepared = losses.prepare(pool)

    def gradient(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return losses.loss_and_gradient(weights, prepared, rows)

    settings = case.sampler.model_copy(update={"chains": _CHAINS, "draws": _DRAWS})
    run = Sampler(
        gradient, losses.w_star, len(pool), settings, case.seed, f"same draws {part.name}"
    )
    run.advance(_DRAWS)
    return run.draws.flatten(0, 1).clone()


def _peer_shifts(model: Transformer, part: Component, draws: Tensor, tokens: Tensor) -> Tensor:
    """Shifts from devinterp's own losses of its own model."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    theirs = peer.as_peer(model)

    def losses(vector: Tensor) -> Tensor:
        return peer.losses_at(theirs, part.substitute(parameters, vector), tokens)

    star = losses(part.read(parameters))
    return torch.stack([losses(vector) - star for vector in draws])


def _chi(shifts: dict[str, Tensor], base: int) -> dict[str, np.ndarray]:
    """Chi (token,) of every component but ``full`` from shifts (draw, context, position)."""
    found = {}
    for name, shift in shifts.items():
        wide = shift.double()
        g = wide[:, :base].mean((1, 2))
        difference = wide[:, base:].flatten(1) - g[:, None]
        found[name] = Moments.of(g.numpy(), difference.numpy())
    full = found.pop("full").mean_y
    return {name: susceptibility_parts(m, full)["chi"] for name, m in found.items()}


def run(case: Case, folder: Path) -> dict[str, dict[str, float]]:
    """Relative differences in chi to float64, by path.

    ``max`` is the largest difference of any entry over the root mean square of its component's
    chi, ``rms`` the root mean square of all; of three heads at the bottom, in the middle and at
    the top of the model.
    """
    torch.set_num_threads(1)
    model, texts = case.model(), case.texts(folder)
    exact = case.model().double()
    tokens = torch.from_numpy(texts.evaluated())
    pool = torch.from_numpy(texts.pool)
    heads = [part for part in case.parts(model) if part.head is not None]
    full = next(part for part in case.parts(model) if part.name == "full")
    parts = [full, *(heads[i] for i in sorted({0, len(heads) // 2, len(heads) - 1}))]
    draws = {part.name: _draws(case, part, model, pool) for part in parts}

    def shifts(part: Component, losses: ComponentLosses) -> Tensor:
        weights = draws[part.name].to(losses.w_star.dtype)
        return losses.shifts(weights, losses.prepare(tokens))

    ways = {
        "float64": lambda part: shifts(part, component_losses(exact, part, plain=True)),
        measure.PLAIN: lambda part: shifts(part, component_losses(model, part, plain=True)),
        measure.FAST: lambda part: shifts(part, component_losses(model, part)),
        measure.NARROW: lambda part: shifts(part, component_losses(model, part, "bfloat16")),
    }
    if peer.installed():
        ways[measure.DEVINTERP] = lambda part: _peer_shifts(model, part, draws[part.name], tokens)
    chi = {
        path: _chi({part.name: way(part) for part in parts}, case.base)
        for path, way in ways.items()
    }
    truth = chi.pop("float64")
    found = {}
    for path, values in chi.items():
        relative = [
            (values[name] - truth[name]) / np.sqrt(np.square(truth[name]).mean()) for name in truth
        ]
        found[path] = {
            "max": float(np.abs(relative).max()),
            "rms": float(np.sqrt(np.square(relative).mean())),
        }
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    case = Case.model_validate_json((folder / "case.json").read_bytes())
    write_json(folder / RESULT, run(case, folder))


if __name__ == "__main__":
    main()
