"""From a checkpoint to the spectral estimate of every loss set: one part each, one store.

An interrupted run goes on with the next loss set.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from .blocks import memory_limits
from .components import component
from .loss_sets import CONTROL, POSTERIOR, STAGES, SetJob, as_tensor, loss_contexts
from .losses import component_losses
from .models.transformer import Transformer
from .parts import device_name, lock_store, read_part, write_part, write_store
from .posterior import SamplerConfig, chain_seed
from .spectral_config import SpectralConfig
from .spectrum import Law
from .store import fingerprint
from .token_sampling import TokenTexts

_UNITS = {
    "eigenvalue": "nats per squared weight",
    "residual": "nats per squared weight: |H u - lambda u|",
    "used": "nats per squared weight: eigenvalues of the pairs that are used",
    "linear": "nats squared: s' S g of every token",
    "quadratic": "nats squared: 1/2 tr(H S H' S) of every token, over the pairs that are used",
    "spread": "nats: 1/2 tr(H' S) of every token, over the pairs that are used",
    "shift": "nats: a token's loss at the Gaussian's mean minus its value at w*",
    "variance": "nats squared: variance of L_n, over the pairs that are used",
    "pairs_variance": "nats squared: the part of variance of the pairs",
    "mean_loss": "nats per token: mean of L_n minus its value at w*, over the pairs that are used",
    "distance": "|m|, of the Gaussian's mean from w*",
    "tail": "size of what the last quarter of the pairs adds, over that of all",
    "wide_linear": "nats squared: the linear term with the gradient of more contexts",
    "wide_variance": "nats squared: variance of L_n with that gradient",
    "rest_quadratic": "nats squared: estimates of what the other pairs add to the quadratic term",
    "rest_spread": "nats: the same of spread",
    "rest_loss": "nats per token: the same of mean_loss",
    "rest_variance": "nats squared: the same of variance",
    "here": "nats squared: the part of quadratic of the first pairs",
    "here_variance": "nats squared: the same of variance",
    "averaged_quadratic": "nats squared: here, derivatives at random displacements",
    "averaged_linear": "nats squared: the linear term, derivatives at random displacements",
    "averaged_variance": "nats squared: variance of L_n of these two terms",
    "averaged_own": "nats per squared weight: curvature of L_n along the first pairs, there",
    "seconds": "seconds of processor time (of the clock on a GPU)",
    "evaluations": "weight vectors at which all tokens were evaluated",
}


def spectral_sets(
    model: Transformer,
    names: list[str],
    texts: TokenTexts,
    sampler: SamplerConfig,
    config: SpectralConfig,
    control: bool,
    seed: int,
    step: int,
    model_hash: str,
    out: Path,
    device: torch.device,
    report: Callable[[str], None] = print,
) -> None:
    """Estimate some components of one checkpoint and write every loss set's terms to ``out``.

    A run may be split into shards of components; `spectral_results.load_sets` puts them together.

    Args:
        texts: ``probes`` are those whose tokens are evaluated.
        control: also for n_beta = 0.

    Raises:
        ValueError: the posterior has no Gaussian near w* (see `spectrum.Law`), or there is no
            such component.
        RuntimeError: another process is writing the same store.
    """
    identity = {
        "step": step,
        "model": model_hash,
        "texts": texts.identity(),
        "sampler": sampler.model_dump(),
        "spectral": config.model_dump(exclude={"components"}),
        "control": control,
        "seed": seed,
    }
    laws = {POSTERIOR: Law.of(sampler, config.law)}
    if control:
        laws[CONTROL] = Law.of(sampler.model_copy(update={"n_beta": 0.0}), config.law)
    model = model.to(device).eval()
    parameters = dict(model.named_parameters())
    tokens = as_tensor(np.concatenate(list(texts.probes.values())), device)
    sets = loss_contexts(texts, config, device)
    folder = out.parent / f".{out.name}.parts"
    folder.mkdir(parents=True, exist_ok=True)
    with lock_store(out):
        done: list[list[Path]] = []
        for name in names:
            part = component(name, model.config, parameters)
            losses = component_losses(model, part)
            size = 2 * tokens.numel() * model.config.d_model * losses.w_star.element_size()
            limit = memory_limits(device).activations // 2
            job: SetJob | None = None
            paths = []
            for number, contexts in enumerate(sets):
                label = f"step {step}, {name}, loss set {number}"
                path = folder / f"{fingerprint([identity, name, number])}.zarr"
                paths.append(path)
                if _kept(path, label, report):
                    continue
                prepared = job.tokens if job else losses.prepare(tokens, size <= limit)
                job = SetJob(losses, prepared, laws, config)
                found = job.measure(contexts, chain_seed(seed, label, "spectral"))
                write_part(found, path)
                values, spent = found["eigenvalue"].values, float(found["seconds"].sum())
                report(f"{label}: eigenvalues {values[0]:.3g} to {values[-1]:.1g}, {spent:.0f} s")
            done.append(paths)
        attributes = {
            "identity": fingerprint(identity),
            "component": names,
            "run": list(laws),
            "source": [chosen.source for chosen in sets],
            "stage": list(STAGES),
            "probe": list(texts.probes),
            "step": step,
            "n_beta": sampler.n_beta,
            "localization": sampler.localization,
            "sampler": sampler.model_dump(),
            "spectral": config.model_dump(),
            "seed": seed,
            "device": device_name(device),
        }
        parts = (_joined([read_part(path) for path in paths]) for paths in done)
        write_store(out, parts, xr.Dataset(attrs=attributes), _UNITS)
        shutil.rmtree(folder)


def _kept(path: Path, label: str, report: Callable[[str], None]) -> bool:
    """Whether an earlier run left this part, sound."""
    if not path.exists():
        return False
    try:
        read_part(path)
    except ValueError as error:
        report(f"{label}: made again, {error}")
        return False
    report(f"{label}: kept from an earlier run")
    return True


def _joined(sets: list[xr.Dataset]) -> xr.Dataset:
    """The loss sets of a component on a first axis ``set``."""
    return xr.concat(sets, "set", join="exact", coords="minimal", compat="override")
