"""From a checkpoint to losses along chains: every component, every probe, one store.

What is saved is small (a loss per context and draw), so that every estimator, error bar and
convention is a cheap computation afterwards.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from filelock import FileLock, Timeout
from torch import Tensor

from .components import component
from .losses import ComponentLosses, Prepared, component_losses, context_losses
from .models.attention_only import AttentionOnly
from .posterior import Sampler, SamplerConfig
from .store import atomic_path, fingerprint
from .tokens import Contexts, probe_positions

# A minibatch pool up to this size keeps its activations; a larger one recomputes them.
_POOL_BYTES = 1 << 30


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


def _means(losses: Tensor) -> Tensor:
    return losses.double().mean(-1)


@dataclass
class Chains:
    """The chains of one component on their way: what every use of them needs.

    Attributes:
        star: losses of the evaluated contexts at w*, by the same path as those along the chains.
    """

    losses: ComponentLosses
    evaluated: Prepared
    pool: Prepared
    pool_star: Tensor
    sampler: SamplerConfig
    seed: int
    label: str

    def __post_init__(self) -> None:
        def gradient(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return self.losses.loss_and_gradient(weights, self.pool, rows)

        w_star, pool = self.losses.w_star, len(self.pool.tokens)
        self.run = Sampler(gradient, w_star, pool, self.sampler, self.seed, self.label)
        self.star = self.losses.losses(w_star[None], self.evaluated)
        self._acceptance: list[np.ndarray] = []
        self._distance: list[np.ndarray] = []

    def shifts(self) -> Iterator[Tensor]:
        """Losses minus those at w* of every kept draw, (chain, context, position-1).

        Shifted before anything is averaged: the differences are a thousandth of the losses.
        """
        for draw in self.run.draws():
            self._acceptance.append(draw.acceptance.double().cpu().numpy())
            self._distance.append(draw.distance.double().cpu().numpy())
            yield self.losses.losses(draw.weights, self.evaluated) - self.star

    def diagnostics(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """What diagnostics and health need, once all draws are done."""
        baseline = self.pool_star.cpu().numpy()[self.run.trace.rows].mean(-1)
        return {
            "acceptance": (("chain", "draw"), np.stack(self._acceptance, 1)),
            "distance": (("chain", "draw"), np.stack(self._distance, 1)),
            "trace": (("chain", "step"), self.run.trace.loss.numpy() - baseline),
            "died": (("chain",), self.run.trace.died),
            "size": ((), np.int64(self.losses.component.size)),
        }


def sample_component(chains: Chains) -> xr.Dataset:
    """Run the chains of one component; mean shift of every context at every kept draw."""
    shifts = [_means(shift).cpu().numpy() for shift in chains.shifts()]
    shift = (("chain", "draw", "context"), np.stack(shifts, 1))
    return xr.Dataset({"shift": shift, **chains.diagnostics()})


@dataclass(frozen=True)
class Job:
    """What the chains of every component of a checkpoint have in common.

    Attributes:
        evaluated: contexts on which losses are measured, (context, position).
        pool: contexts that minibatches are drawn from, likewise.
        label: with seed and component it makes the chains' random numbers.
        identity: everything that the result depends on; a kept part must have the same.
    """

    model: AttentionOnly
    evaluated: Contexts
    pool: Contexts
    sampler: SamplerConfig
    seed: int
    label: str
    identity: Mapping[str, object]


@contextmanager
def component_parts(
    job: Job,
    names: list[str],
    work: Callable[[Chains], xr.Dataset],
    out: Path,
    device: torch.device,
    report: Callable[[str], None],
) -> Iterator[list[xr.Dataset]]:
    """Yield the ``work`` of every component's chains, kept component by component beside ``out``.

    An interrupted run goes on with the next component, and gives the same bits. A kept part is
    used only if everything in the job's identity is the same. When the block ends without an
    error (``out`` is written), the parts are removed.

    Raises:
        ValueError: every chain of a component diverged.
        RuntimeError: another process is writing the same store.
    """
    model, sampler, label = job.model.to(device).eval(), job.sampler, job.label
    parameters = dict(model.named_parameters())
    parts = out.parent / f".{out.name}.parts"
    parts.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parts.parent / f".{out.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"another process is writing {out}; wait for it, or stop it") from None
    try:
        tokens = torch.from_numpy(job.evaluated.astype(np.int64)).to(device)
        pool_tokens = torch.from_numpy(job.pool.astype(np.int64)).to(device)
        pool_star: Tensor | None = None
        prepared: tuple[int | None, Prepared, Prepared] | None = None
        size = pool_tokens.numel() * model.config.d_model * 8
        done = []
        for name in names:
            path = parts / f"{fingerprint([job.identity, name])}.zarr"
            done.append(path)
            if path.exists():
                report(f"{label}, {name}: kept from an earlier run")
                continue
            losses = component_losses(model, component(name, model.config, parameters))
            if pool_star is None:
                pool_star = context_losses(model, pool_tokens).double()
            if prepared is None or prepared[0] != losses.depth:
                prepared = None  # free the last layer's activations first
                kept_pool = losses.prepare(pool_tokens, keep=size <= _POOL_BYTES)
                prepared = (losses.depth, losses.prepare(tokens), kept_pool)
            chain_label = f"{label} component {name}"
            chains = Chains(losses, *prepared[1:], pool_star, sampler, job.seed, chain_label)
            part = work(chains)
            died = part["died"].values
            if (died >= 0).all():
                raise ValueError(
                    f"{label}, component {name}: all {len(died)} chains diverged (first at "
                    f"step {died.min()}): lower step_size (now {sampler.step_size}) or raise "
                    f"localization (now {sampler.localization})"
                )
            with atomic_path(path) as temporary:
                part.to_zarr(temporary, zarr_format=3, consolidated=False)
            rise = float(part["trace"].values[:, sampler.burn_in :].mean())
            report(f"{label}, {name}: loss rises by {rise:+.2e} above w*")
        yield [xr.open_zarr(path, consolidated=False).load() for path in done]
        shutil.rmtree(parts)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def device_name(device: torch.device) -> str:
    """What the work ran on, for the record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return name or device.type


_UNITS = {
    "shift": "nats per token: mean loss of a context minus its value at w*",
    "star": "nats per token: mean loss of a context at w*",
    "trace": "nats per token: minibatch loss minus the same minibatch's loss at w*",
    "acceptance": "probability of a Metropolis test of the proposal (minibatch energy)",
    "distance": "|w - w*|",
    "died": "step at which a chain stopped being finite, -1 if it did not",
    "size": "number of weights of the component",
}


def sample_checkpoint(
    model: AttentionOnly,
    names: list[str],
    texts: Texts,
    sampler: SamplerConfig,
    seed: int,
    step: int,
    model_hash: str,
    out: Path,
    device: torch.device,
    report: Callable[[str], None] = print,
) -> None:
    """Sample every component of one checkpoint and write the losses to the Zarr store ``out``.

    An interrupted run goes on, see `component_parts`.
    """
    identity = {
        "step": step,
        "model": model_hash,
        "texts": texts.identity(),
        "sampler": sampler.model_dump(),
        "seed": seed,
        "delta_h": texts.delta_h,
    }
    job = Job(model, texts.evaluated(), texts.pool, sampler, seed, f"step {step}", identity)
    with component_parts(job, names, sample_component, out, device, report) as parts:
        data = _merge(model, texts, parts, device)
        # Zarr v3 has no settled string type: names travel as attributes (see load_losses).
        data.attrs = {**identity, "component": names, "probe": list(texts.probes)}
        data.attrs["device"] = device_name(device)
        with atomic_path(out) as temporary:
            data.to_zarr(temporary, zarr_format=3, consolidated=False)


def _merge(
    model: AttentionOnly, texts: Texts, parts: list[xr.Dataset], device: torch.device
) -> xr.Dataset:
    """The components' parts together, contexts split into base and probes."""
    merged = xr.concat(parts, "component", join="exact", coords="minimal", compat="override")
    tokens = torch.from_numpy(texts.evaluated().astype(np.int64)).to(device)
    star = context_losses(model, tokens).double().cpu().numpy()
    count, chosen = len(texts.base), texts.positions
    shape = (len(texts.probes), len(chosen))

    def probe_axes(values: np.ndarray) -> np.ndarray:
        return values[..., count:].reshape(*values.shape[:-1], *shape)

    shift = merged["shift"].values
    lead = ("component", "chain", "draw")
    data = merged.drop_vars("shift").assign(
        base_shift=((*lead, "base_context"), shift[..., :count]),
        probe_shift=((*lead, "probe", "probe_context"), probe_axes(shift)),
        base_star=(("base_context",), star[:count]),
        probe_star=(("probe", "probe_context"), probe_axes(star)),
    )
    data = data.assign_coords(probe_context=chosen)
    for name, variable in data.data_vars.items():
        variable.attrs["units"] = _UNITS[str(name).split("_")[-1]]
    return data


def load_losses(path: Path) -> xr.Dataset:
    """Read a store of `sample_checkpoint`, with component and probe names as coordinates."""
    data = xr.open_zarr(path, consolidated=False).load()
    return data.assign_coords(component=data.attrs["component"], probe=data.attrs["probe"])
