"""The spectral estimate of one loss set, term by term, as it is stored.

All runs (the posterior, and the n_beta = 0 control where it is asked for) share the set's Hessian
and what the pairs leave out; only the Gaussian differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from .hessian import LossSet, loss_set
from .losses import ComponentLosses, Prepared
from .spectral import Terms, loss_spectrum, spectral_terms
from .spectral_config import SpectralConfig
from .spectral_errors import averaged_terms, remainder
from .spectrum import Law
from .token_sampling import TokenTexts
from .tokens import Contexts

POSTERIOR, CONTROL = "posterior", "control"
# Where a loss set's contexts are from.
SOURCES = ("base", "pool")
# What processor time is stated for.
STAGES = ("products", "terms", "control", "gradient", "remainder", "averaged")

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]


@dataclass
class Watch:
    """Processor time, or time on the clock on a GPU, by stage; and evaluations."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    evaluations: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))

    def _now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = self._now()
        yield
        self.seconds[name] += self._now() - begin


@dataclass(frozen=True)
class SetJob:
    """One component and the tokens that are evaluated; `measure` does one loss set.

    Attributes:
        tokens: contexts of the tokens, prepared.
        laws: run -> the Gaussian that is meant, the posterior's first.
    """

    losses: ComponentLosses
    tokens: Prepared
    laws: Mapping[str, Law]
    config: SpectralConfig

    def measure(self, chosen: LossContexts, seed: int) -> xr.Dataset:
        """The estimate of one loss set.

        Args:
            seed: of the random directions.
        """
        c, star = self.config, self.losses.w_star
        watch = Watch(star.device)
        with watch.stage("products"):
            loss = loss_set(self.losses, chosen.contexts)
            gradient, spectrum = loss_spectrum(loss, star, c.steps, seed)
        if chosen.wide is not None:
            with watch.stage("gradient"):
                larger = loss_set(self.losses, chosen.wide, keep=False)
                wide = larger.gradient(star)
        else:
            larger, wide = loss, gradient
        found: dict[str, Terms] = {}
        wider: dict[str, Terms] = {}
        for run, law in self.laws.items():
            control = run == CONTROL
            with watch.stage(stage := "control" if control else "terms"):
                terms = spectral_terms(spectrum, gradient, self.losses, self.tokens, law, c)
            watch.evaluations[stage] += terms.evaluations
            found[run] = terms
            if chosen.wide is not None:
                with watch.stage(stage := "control" if control else "gradient"):
                    wider[run] = terms.with_gradient(wide, self.losses, self.tokens)
                watch.evaluations[stage] += wider[run].evaluations - terms.evaluations
        data = _per_run(found, wider)
        first = (wider or found)[POSTERIOR]
        if c.probes:
            data |= self._rest(first, wide, loss, seed, watch)
        if c.averaged:
            data |= self._averaged(first, wide, loss, larger, seed, watch)
        data["eigenvalue"] = (("step",), spectrum.values)
        data["residual"] = (("step",), spectrum.residuals)
        data["seconds"] = (("stage",), np.array(list(watch.seconds.values())))
        data["evaluations"] = (("stage",), np.array(list(watch.evaluations.values())))
        return xr.Dataset(data)

    def _rest(
        self, terms: Terms, gradient: Tensor, loss: LossSet, seed: int, watch: Watch
    ) -> Variables:
        with watch.stage("remainder"):
            rest = remainder(
                terms, gradient, loss, self.losses, self.tokens, self.config.probes, seed=seed
            )
        watch.evaluations["remainder"] += rest.evaluations
        return {
            "rest_quadratic": (("probe", "token"), rest.quadratic),
            "rest_spread": (("probe", "token"), rest.spread),
            "rest_loss": (("probe",), rest.loss),
            "rest_variance": (("probe",), rest.variance),
        }

    def _averaged(
        self,
        terms: Terms,
        gradient: Tensor,
        loss: LossSet,
        larger: LossSet,
        seed: int,
        watch: Watch,
    ) -> Variables:
        c = self.config
        count = min(c.averaged_pairs, len(terms.pairs))
        with watch.stage("averaged"):
            moved = averaged_terms(
                terms, gradient, loss, larger, self.losses, self.tokens, count, c.averaged, seed
            )
        watch.evaluations["averaged"] += moved.evaluations
        some = terms.weights[:count]
        return {
            "here": (("token",), some @ terms.curvature[:count]),
            "here_variance": ((), np.asarray(some @ terms.eigenvalues[:count])),
            "averaged_quadratic": (("draw", "token"), moved.quadratic),
            "averaged_linear": (("draw", "token"), moved.linear),
            "averaged_variance": ((), np.asarray(moved.variance)),
            "averaged_own": (("averaged_pair",), moved.own),
        }


def _per_run(found: Mapping[str, Terms], wider: Mapping[str, Terms]) -> Variables:
    """What differs from run to run, on an axis ``run``."""

    def stacked(
        terms: Mapping[str, Terms], value: Callable[[Terms], np.ndarray | float]
    ) -> np.ndarray:
        return np.stack([np.asarray(value(t)) for t in terms.values()])

    each: dict[str, tuple[tuple[str, ...], Callable[[Terms], np.ndarray | float]]] = {
        "used": (("pair",), lambda t: t.eigenvalues),
        "linear": (("token",), lambda t: t.linear),
        "quadratic": (("token",), lambda t: t.quadratic),
        "spread": (
            ("token",),
            lambda t: 0.5 * t.law.variance(t.eigenvalues) @ t.curvature,
        ),
        "shift": (("token",), lambda t: t.shift),
        "variance": ((), lambda t: t.variance),
        "pairs_variance": ((), lambda t: t.weights @ t.eigenvalues),
        "mean_loss": ((), lambda t: t.mean_loss),
        "distance": ((), lambda t: t.distance),
        "tail": ((), lambda t: t.tail()),
    }
    data = {name: (("run", *dims), stacked(found, value)) for name, (dims, value) in each.items()}
    if wider:
        for name in ("linear", "variance"):
            dims, value = each[name]
            data[f"wide_{name}"] = (("run", *dims), stacked(wider, value))
    return data


@dataclass(frozen=True)
class LossContexts:
    """Contexts of one loss set, and of the larger one for its gradient."""

    source: str
    contexts: Tensor
    wide: Tensor | None


def loss_contexts(
    texts: TokenTexts, config: SpectralConfig, device: torch.device
) -> list[LossContexts]:
    """The loss sets, from the two sources in turn; the base sets' wide ones make up the base."""
    half = config.sets // 2
    base = np.array_split(texts.base, half)
    each = max(config.contexts, config.gradient_contexts)
    pool = [texts.pool[i * each : (i + 1) * each] for i in range(half)]
    found = []
    for share in range(half):
        for source, whole in zip(SOURCES, (base[share], pool[share]), strict=True):
            few = as_tensor(whole[: config.contexts], device)
            wide = as_tensor(whole, device) if config.gradient_contexts else None
            found.append(LossContexts(source, few, wide))
    return found


def as_tensor(contexts: Contexts, device: torch.device) -> Tensor:
    return torch.from_numpy(contexts.astype(np.int64)).to(device)
