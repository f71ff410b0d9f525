"""A run over many components that can be killed at any moment and goes on to the same bits.

Beside the store that it will write, a run keeps a part for every finished component, and the
state of the one on its way, saved about every minute.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from filelock import FileLock, Timeout
from torch import Tensor

from .blocks import memory_limits
from .chains import Chains, Collector
from .components import component
from .evaluation import Evaluation
from .losses import ComponentLosses, Prepared, component_losses, context_losses
from .models.transformer import Transformer
from .posterior import SamplerConfig
from .saver import UNUSABLE, Saver
from .store import atomic_path, fingerprint, open_zarr
from .tokens import Contexts

# Parts that are put into a store together.
_BATCH_BYTES = 1 << 26


@dataclass(frozen=True)
class Job:
    """What the chains of every component of a checkpoint have in common.

    Attributes:
        evaluated: contexts on which losses are measured, (context, position).
        pool: contexts that minibatches are drawn from, likewise.
        label: with seed and component it makes the chains' random numbers.
        identity: everything that the result depends on; a kept part must have the same.
        base: the first so many evaluated contexts are those of the observable.
    """

    model: Transformer
    evaluated: Contexts
    pool: Contexts
    sampler: SamplerConfig
    seed: int
    label: str
    identity: Mapping[str, object]
    base: int = 0
    evaluation: Evaluation = field(default_factory=Evaluation)


class _Maker:
    """Makes the chains of one component after another; neighbours of a layer share activations."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job = job
        self.model = job.model.to(device).eval()
        self.parameters = dict(self.model.named_parameters())
        self.evaluated, self.pool = (
            torch.from_numpy(contexts.astype(np.int64)).to(device)
            for contexts in (job.evaluated, job.pool)
        )
        self.pool_star: Tensor | None = None
        self.prepared: tuple[int | None, Prepared, Prepared] | None = None

    def chains(self, name: str) -> Chains:
        job = self.job
        part = component(name, self.model.config, self.parameters)
        losses = component_losses(self.model, part)
        narrow = None
        if job.evaluation.precision == "bfloat16":
            narrow = component_losses(self.model, part, "bfloat16")
        if self.pool_star is None:
            self.pool_star = context_losses(self.model, self.pool).double()
        if self.prepared is None or self.prepared[0] != losses.depth:
            self.prepared = None  # free the last layer's activations first
            evaluated, pool = (self._prepare(losses, x) for x in (self.evaluated, self.pool))
            self.prepared = (losses.depth, evaluated, pool)
        return Chains(
            losses,
            *self.prepared[1:],
            self.pool_star,
            job.sampler.of(name),
            job.seed,
            f"{job.label} component {name}",
            job.base,
            job.evaluation.control_variate,
            narrow,
        )

    def _prepare(self, losses: ComponentLosses, tokens: Tensor) -> Prepared:
        # The residual stream below the layer and above it; of more contexts than the limit allows
        # they are made again when they are used. Half of it is for either of the two sets.
        size = 2 * tokens.numel() * self.model.config.d_model * losses.w_star.element_size()
        limit = memory_limits(losses.w_star.device).activations // 2
        return losses.prepare(tokens, keep=size <= limit)


def _work(
    maker: _Maker,
    name: str,
    collector_of: Callable[[Chains], Collector],
    saved: Path,
    report: Callable[[str], None],
) -> xr.Dataset:
    """The part of one component, from where an earlier run of it got to."""
    label = f"{maker.job.label}, {name}"

    def begin() -> Saver:
        chains = maker.chains(name)
        return Saver(saved, chains, collector_of(chains))

    saver = begin()
    if saved.exists():
        try:
            saver.load()
            report(f"{label}: goes on at step {saver.chains.run.step}, block {saver.chains.place}")
        except UNUSABLE as error:
            report(f"{label}: starts again, the state in {saved} cannot be used ({error})")
            saver = begin()
    chains, died, c = saver.chains, saver.chains.run.trace.died, maker.job.sampler
    for block in chains.blocks(saver):
        if bool((died >= 0).all()):
            raise ValueError(
                f"{label}: all {len(died)} chains diverged (first at step {int(died.min())}): "
                f"lower step_size (now {c.step_size}) or raise localization "
                f"(now {c.localization})"
            )
        saver.collector.add(block)
    part = saver.collector.dataset()
    part.attrs |= {"precision": chains.precision, "seconds": chains.seconds}
    return part


def _digest(part: xr.Dataset) -> str:
    digest = hashlib.sha256(fingerprint(part.attrs).encode())
    for name, variable in sorted(part.variables.items(), key=lambda item: str(item[0])):
        values = np.ascontiguousarray(variable.values)
        digest.update(f"{name} {variable.dims} {values.dtype} {values.shape} ".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def write_part(part: xr.Dataset, path: Path) -> None:
    """Write what one component gave, with a digest that `read_part` checks."""
    part.attrs["digest"] = _digest(part)
    with atomic_path(path) as temporary:
        part.to_zarr(temporary, zarr_format=3, consolidated=False)


def read_part(path: Path) -> xr.Dataset:
    """Read what one component gave.

    Raises:
        ValueError: it is not what was written.
    """
    # Whatever a damaged file makes the reader raise.
    try:
        part = open_zarr(path).load()
        expected = part.attrs.pop("digest")
        sound = expected == _digest(part)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not sound:
        raise ValueError(f"{path} has not the content that was written")
    return part.drop_encoding()


@contextmanager
def lock_store(out: Path) -> Iterator[None]:
    """Keep other processes from writing the same store.

    Raises:
        RuntimeError: another one does.
    """
    lock = FileLock(out.parent / f".{out.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"another process is writing {out}; wait for it, or stop it") from None
    try:
        yield
    finally:
        # Before the release: afterwards it may be another process's.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def component_parts(
    job: Job,
    names: list[str],
    collector_of: Callable[[Chains], Collector],
    out: Path,
    device: torch.device,
    report: Callable[[str], None],
) -> Iterator[list[Path]]:
    """Run every component's chains into a collector; yield the parts, for `read_part`.

    An interrupted run goes on where it was saved last, and gives the same bits. What is kept is
    used only if everything in the job's identity is the same; a damaged part is made again, alone.
    When the block ends without an error (``out`` is written), the parts are removed.

    Raises:
        ValueError: every chain of a component diverged, or there is no such component.
        RuntimeError: another process is writing the same store.
    """
    folder = out.parent / f".{out.name}.parts"
    folder.mkdir(parents=True, exist_ok=True)
    with lock_store(out):
        # What a killed process was writing.
        for stray in out.parent.glob(f".{out.name}.????????"):
            shutil.rmtree(stray)
        maker = _Maker(job, device)
        done = []
        for name in names:
            key = fingerprint([job.identity, name])
            path, saved = folder / f"{key}.zarr", folder / f"{key}.safetensors"
            done.append(path)
            if path.exists():
                try:
                    read_part(path)
                except ValueError as error:
                    report(f"{job.label}, {name}: made again, {error}")
                else:
                    report(f"{job.label}, {name}: kept from an earlier run")
                    continue
            part = _work(maker, name, collector_of, saved, report)
            write_part(part, path)
            saved.unlink(missing_ok=True)
            rise = float(part["trace"].values[:, job.sampler.burn_in :].mean())
            report(f"{job.label}, {name}: loss rises by {rise:+.2e} above w*")
        yield done
        shutil.rmtree(folder)


def _batches(parts: Iterable[xr.Dataset]) -> Iterator[list[xr.Dataset]]:
    """Parts in order, some together up to a size: appending to a store takes its time."""
    batch: list[xr.Dataset] = []
    for part in parts:
        if batch and sum(p.nbytes for p in batch) + part.nbytes > _BATCH_BYTES:
            yield batch
            batch = []
        batch.append(part)
    yield batch


def _filled_up(part: xr.Dataset, sizes: Mapping[str, int]) -> xr.Dataset:
    missing = {name: size - part.sizes[name] for name, size in sizes.items()}
    widths = {name: (0, count) for name, count in missing.items() if count}
    return part.pad(widths, keep_attrs=True) if widths else part


def _chunking(data: xr.Dataset, chunks: Mapping[str, int]) -> dict[Any, dict[str, Any]]:
    return {
        name: {"chunks": tuple(min(n, chunks.get(str(d), n)) for d, n in variable.sizes.items())}
        for name, variable in data.data_vars.items()
        if set(variable.dims) & set(chunks)
    }


def write_store(
    out: Path,
    parts: Iterable[xr.Dataset],
    shared: xr.Dataset,
    units: Mapping[str, str],
    sizes: Mapping[str, int] | None = None,
    chunks: Mapping[str, int] | None = None,
) -> None:
    """Write the components' parts along a first axis ``component``; few are held at a time.

    Args:
        parts: of the same variables. Their attributes become lists.
        shared: variables, coordinates and attributes of all components together.
        units: of every variable.
        sizes: of axes along which parts differ: what is shorter is filled up with NaN.
        chunks: the most that a chunk of the store has along some axes; arrays with such an axis
            are one chunk along the others.
    """
    own: dict[str, list[object]] = {}
    with atomic_path(out) as temporary:
        for number, batch in enumerate(_batches(_filled_up(part, sizes or {}) for part in parts)):
            for name, value in ((n, v) for part in batch for n, v in part.attrs.items()):
                own.setdefault(str(name), []).append(value)
            plain = [part.drop_attrs() for part in batch]
            data = xr.concat(plain, "component", join="exact", coords="minimal", compat="override")
            for name, variable in data.data_vars.items():
                variable.attrs["units"] = units[str(name)]
            how: dict[str, Any] = {"append_dim": "component"}
            if not number:
                how = {"mode": "w", "encoding": _chunking(data, chunks or {})}
            data.to_zarr(temporary, zarr_format=3, consolidated=False, **how)
        for name, variable in shared.data_vars.items():
            variable.attrs["units"] = units[str(name)]
        shared.attrs |= own
        shared.to_zarr(temporary, zarr_format=3, consolidated=False, mode="a")


def device_name(device: torch.device) -> str:
    """What the work ran on, for the record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return name or device.type
