"""Run one path of a case in this process, and write what it cost and what it found.

    python benchmarks/measure.py FOLDER PATH

`compare.py` starts it, once for every path, so that each has a memory of its own. FOLDER holds
``case.json`` and ``tokens.npy``; FOLDER/PATH gets the samples, ``chi.npz`` and ``result.json``.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import machine
import peer
from cases import Case
from susceptibilities import parts
from susceptibilities.control_variate import Estimator
from susceptibilities.evaluation import Evaluation
from susceptibilities.losses import ComponentLosses, component_losses
from susceptibilities.posterior import SamplerConfig
from susceptibilities.store import open_zarr, write_json
from susceptibilities.token_estimates import TokenMoments, estimate_tokens
from susceptibilities.token_sampling import sample_tokens

DEVINTERP, PLAIN, FAST = "devinterp", "plain", "fast"
NARROW, VARIATE, ALLOCATED = "bfloat16", "variate", "allocated"
# Settings of this project's paths; the plain one differs by its losses.
EVALUATIONS = {
    PLAIN: Evaluation(),
    FAST: Evaluation(),
    NARROW: Evaluation(precision="bfloat16"),
    VARIATE: Evaluation(control_variate="linear"),
    ALLOCATED: Evaluation(control_variate="linear"),
}
PATHS = (DEVINTERP, *EVALUATIONS)
RESULT, CHI, STORE = "result.json", "chi.npz", "moments.zarr"


def sampler_of(case: Case, path: str) -> SamplerConfig:
    """The case's settings; with half the draws of a head, and four times those of the unrestricted
    chains, where draws are put where the noise of chi is."""
    draws = case.sampler.draws
    changed = {"draws": max(1, draws // 2), "unrestricted_draws": 4 * draws}
    return case.sampler.model_copy(update=changed if path == ALLOCATED else {})


class Stopwatch:
    """Seconds of processor time by phase; a phase within another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, list[float]] = {}
        self._running: list[str] = []
        self._last = time.process_time()

    def _charge(self) -> None:
        now = time.process_time()
        if self._running:
            phase = self._running[-1]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as ``name``."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def keep(self, owner: Any, method: str, name: str) -> None:
        """Keep the time of every call of ``owner.method``, whatever it is counted as."""
        original = getattr(owner, method)

        def kept(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                self.calls.setdefault(name, []).append(time.process_time() - start)

        setattr(owner, method, kept)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count every call of ``owner.method`` as ``name``."""
        original = getattr(owner, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return original(*args, **kwargs)

        setattr(owner, method, counted)


def _watch_ours(watch: Stopwatch, plain: bool) -> None:
    """Count what losses do; with ``plain``, give the chains the oracle's."""

    def made(*args: Any, **kwargs: Any) -> ComponentLosses:
        losses = component_losses(*args, **kwargs, plain=plain)
        watch.watch(losses, "prepare", "what all draws share")
        watch.watch(losses, "shifts", "evaluation")
        watch.watch(losses, "loss_and_gradient", "gradient")
        return losses

    parts.component_losses = made


def _watch_peer(watch: Stopwatch) -> None:
    """Count what devinterp's functions do, by their names."""
    from devinterp.optim import SGMCMC  # type: ignore[import-not-found]
    from devinterp.slt import (  # type: ignore[import-not-found]
        lm_loss,
        observables,
        sampling,
        susceptibilities,
        writing,
    )

    watch.watch(observables.Observable, "compute_loss", "evaluation")
    # The forward pass of a step finds it here; observables have a name of their own for it.
    watch.watch(lm_loss, "compute_per_token_loss", "gradient")
    watch.watch(lm_loss, "lm_cross_entropy_loss", "log-softmax")
    watch.watch(sampling, "_write_init_loss", "baseline")
    watch.watch(torch, "isfinite", "finiteness of every logit")
    watch.watch(torch.Tensor, "backward", "gradient")
    watch.watch(SGMCMC, "step", "noise and update")
    watch.keep(susceptibilities, "sample", "sampling")
    for method in ("push", "flush_full_buffers", "flush_all_buffers", "wait_for_writes"):
        watch.watch(writing.ZarrWriter, method, "writing")


def _ours(case: Case, path: str, folder: Path, out: Path) -> Callable[[], dict[str, np.ndarray]]:
    model, texts = case.model(), case.texts(folder)

    def call() -> dict[str, np.ndarray]:
        sample_tokens(
            model,
            list(case.components),
            texts,
            sampler_of(case, path),
            case.seed,
            step=0,
            model_hash=case.name,
            out=out / STORE,
            device=torch.device("cpu"),
            report=lambda _: None,
            evaluation=EVALUATIONS[path],
        )
        return _estimates(out, "checked")

    return call


def _estimates(out: Path, estimator: Estimator) -> dict[str, np.ndarray]:
    """Chi (head, token); without each chain, chi and its mean-shift part (chain, head, token)."""
    moments = TokenMoments.of([open_zarr(out / STORE).load()], estimator)
    found = estimate_tokens(moments)
    heads = [i for i, name in enumerate(moments.components) if name != "full"]
    return {
        "chi": found["chi"].values[heads],
        "replicates": found["chi_replicate"].values[:, heads],
        "mean_shift_replicates": found["mean_shift_replicate"].values[:, heads],
    }


def run(case: Case, path: str, folder: Path) -> dict[str, Any]:
    """Cost of one path; see the module."""
    torch.set_num_threads(1)
    out = folder / path
    out.mkdir()
    watch = Stopwatch()
    if path == DEVINTERP:
        call: Callable[[], Any] = peer.run(case, folder, out)
        _watch_peer(watch)
    else:
        call = _ours(case, path, folder, out)
        _watch_ours(watch, plain=path == PLAIN)
    # devinterp collects garbage before and after every chain, and would spend half of a short
    # run looking through the objects that importing libraries made.
    gc.collect()
    gc.freeze()
    before, wall, processor = machine.peak_memory(), time.perf_counter(), time.process_time()
    with watch.phase("all else"):
        returned = call()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    result: dict[str, Any] = {
        "path": path,
        "wall_seconds": wall,
        "processor_seconds": processor,
        "peak_bytes": machine.peak_memory(),
        "before_bytes": before,
        "bytes_written": machine.folder_bytes(out),
        "phase_seconds": watch.seconds,
    }
    if path == DEVINTERP:
        chi, replicates = peer.estimates(case, folder, out)
        found = {"chi": chi, "replicates": replicates}
        each = watch.calls["sampling"]
    else:
        data, found = open_zarr(out / STORE), returned
        each = [sum(seconds.values()) for seconds in data.attrs["seconds"]]
        errors = data.precision_error.values.tolist()
        result["precision"] = data.attrs["precision"]
        result["precision_error"] = [e if np.isfinite(e) else None for e in errors]
        if EVALUATIONS[path].control_variate != "none":
            plain = _estimates(out, "plain")
            found |= {f"plain_{name}": values for name, values in plain.items()}
    result["component_seconds"] = dict(zip(case.components, each, strict=True))
    np.savez(out / CHI, allow_pickle=False, **found)
    write_json(out / RESULT, result)
    return result


def main() -> None:
    folder, path = Path(sys.argv[1]), sys.argv[2]
    case = Case.model_validate_json((folder / "case.json").read_bytes())
    run(case, path, folder)


if __name__ == "__main__":
    main()
