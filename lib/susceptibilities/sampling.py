"""From a checkpoint to losses along chains: every component, every probe, one store.

What is saved is small (a loss per context and draw), so that every estimator, error bar and
convention is a cheap computation afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from .chains import Block, Chains, collect
from .evaluation import Evaluation
from .losses import context_losses
from .models.transformer import Transformer
from .parts import Job, component_parts, device_name, read_part, write_store
from .posterior import SamplerConfig
from .store import fingerprint, open_zarr
from .tokens import Contexts, probe_positions


@dataclass(frozen=True)
class Texts:
    """Token contexts of a run, each of shape (context, position).

    Attributes:
        base: n contexts of the training distribution, on which L_n is measured.
        probes: for every probe the n contexts that Algorithm 1 mixes in.
        pool: contexts that minibatches are drawn from.
        delta_h: mixture fraction.
    """

    base: Contexts
    probes: Mapping[str, Contexts]
    pool: Contexts
    delta_h: float

    @property
    def positions(self) -> np.ndarray:
        """Rows of ``base`` that a mixture replaces by its probe's (Algorithm 1)."""
        return probe_positions(len(self.base), self.delta_h)

    def evaluated(self) -> Contexts:
        """Base contexts, then every probe's contexts at the replaced rows, in one array."""
        return np.concatenate([self.base, *(p[self.positions] for p in self.probes.values())])

    def identity(self) -> str:
        """Hash of every token."""
        arrays = {"base": self.base, "pool": self.pool, **self.probes}
        return fingerprint(
            {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in arrays.items()}
        )


class ContextMeans:
    """Mean shift of every context at every kept draw, and its control; a `chains.Collector`."""

    def __init__(self, chains: Chains) -> None:
        self.chains = chains
        c, contexts = chains.sampler, len(chains.evaluated.tokens)
        self.arrays: dict[str, NDArray[np.float64]] = {
            "shift": np.zeros((c.chains, c.draws, contexts))
        }
        if chains.control_variate != "none":
            self.arrays["control"] = np.zeros((c.chains, contexts))

    def add(self, block: Block) -> None:
        means = block.shift.double().mean(-1).cpu().numpy()
        self.arrays["shift"][:, block.draws, block.rows] = means
        if block.control is not None:
            self.arrays["control"][:, block.rows] = block.control.mean(-1).cpu().numpy()

    def dataset(self) -> xr.Dataset:
        variables = {
            name: (("chain", "draw", "context") if name == "shift" else ("chain", "context"), array)
            for name, array in self.arrays.items()
        }
        return xr.Dataset({**variables, **self.chains.diagnostics()})


def sample_component(chains: Chains) -> xr.Dataset:
    """Run the chains of one component; mean shift of every context at every kept draw."""
    return collect(chains, ContextMeans(chains))


DIAGNOSTIC_UNITS = {
    "trace": "nats per token: minibatch loss minus the same minibatch's loss at w*",
    "acceptance": "probability of a Metropolis test of the proposal (minibatch energy)",
    "distance": "|w - w*|",
    "died": "step at which a chain stopped being finite, -1 if it did not",
    "size": "number of weights of the component",
    "draws": "number of kept draws of a chain",
    "precision_error": "error of bfloat16 in standard errors, NaN where not measured",
}
_UNITS = {
    "shift": "nats per token: mean loss of a context minus its value at w*",
    "star": "nats per token: mean loss of a context at w*",
    "control": "nats per token: what the control variate takes off the shift's mean over draws",
}


def sample_checkpoint(
    model: Transformer,
    names: list[str],
    texts: Texts,
    sampler: SamplerConfig,
    seed: int,
    step: int,
    model_hash: str,
    out: Path,
    device: torch.device,
    report: Callable[[str], None] = print,
    evaluation: Evaluation | None = None,
) -> None:
    """Sample every component of one checkpoint and write the losses to the Zarr store ``out``.

    An interrupted run goes on, see `parts.component_parts`.
    """
    evaluation = evaluation or Evaluation()
    identity = {
        "step": step,
        "model": model_hash,
        "texts": texts.identity(),
        "sampler": sampler.model_dump(),
        "evaluation": evaluation.model_dump(),
        "seed": seed,
        "delta_h": texts.delta_h,
    }
    base, chosen = len(texts.base), texts.positions
    contexts = texts.evaluated()
    job = Job(
        model, contexts, texts.pool, sampler, seed, f"step {step}", identity, base, evaluation
    )

    def split(values: xr.Dataset) -> xr.Dataset:
        """Contexts as those of the base and those of the probes."""
        found = values.drop_dims("context")
        for name, variable in values.data_vars.items():
            if "context" in variable.dims:
                *lead, _ = variable.dims
                shape = (*variable.shape[:-1], len(texts.probes), len(chosen))
                array = variable.values
                found[f"base_{name}"] = ((*lead, "base_context"), array[..., :base])
                found[f"probe_{name}"] = (
                    (*lead, "probe", "probe_context"),
                    array[..., base:].reshape(shape),
                )
        return found

    with component_parts(job, names, ContextMeans, out, device, report) as parts:
        tokens = torch.from_numpy(contexts.astype(np.int64)).to(device)
        star = context_losses(model, tokens).double().cpu().numpy()
        shared = split(xr.Dataset({"star": (("context",), star)}))
        shared = shared.assign_coords(probe_context=chosen)
        # Zarr v3 has no settled string type: names travel as attributes (see load_losses).
        shared.attrs = {**identity, "component": names, "probe": list(texts.probes)}
        shared.attrs["device"] = device_name(device)
        units = {f"{kind}_{name}": u for kind in ("base", "probe") for name, u in _UNITS.items()}
        each = (split(read_part(path)) for path in parts)
        write_store(out, each, shared, {**units, **DIAGNOSTIC_UNITS}, sampler.sizes)


def load_losses(path: Path) -> xr.Dataset:
    """Read a store of `sample_checkpoint`, with component and probe names as coordinates.

    Beyond a component's own number of ``draws`` its arrays are NaN.
    """
    data = open_zarr(path).load()
    return data.assign_coords(component=data.attrs["component"], probe=data.attrs["probe"])
