"""Per-token susceptibilities from the moments along the chains: chi, its parts, its errors.

With a control variate (`control_variate`), every chain has beside its moments what is to be taken
off its means, and it is used for the components for which the check says that it helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import NDArray

from .control_variate import (
    CONTROLLED,
    Check,
    Estimator,
    Offset,
    check,
    coefficients,
    estimator_table,
    names_of,
    pool,
)
from .cubes import head_of
from .diagnostics import unhealthy
from .estimators import FORMS, MIN_CHAINS, susceptibility_parts
from .jackknife import jackknife_se
from .moments import Array, Moments
from .store import open_zarr

# Attributes of a shard that are lists of its components, and not of the run.
_OF_COMPONENTS = ("component", "precision", "seconds")


def load_shards(folder: Path) -> list[xr.Dataset]:
    """The moments of one checkpoint's chains, as `token_sampling.sample_tokens` wrote them.

    Raises:
        FileNotFoundError: the folder has none.
    """
    paths = sorted(folder.glob("moments.*.zarr"))
    if not paths:
        raise FileNotFoundError(
            f"no moments.*.zarr in {folder}, which another estimator needs: build them with "
            "`snakemake per_token`"
        )
    return [open_zarr(path).load() for path in paths]


@dataclass(frozen=True)
class TokenMoments:
    """Moments of (g, s) along every chain, read from the shards of one checkpoint.

    Attributes:
        moments: leading axes (component, chain), K tokens; y is s - g, that is dL of a token.
        corrected: the same with the means that the control variate gives, where it is used; None
            where it is not used at all.
        healthy: which chains count, (component, chain).
        check: what was found of the control variate; None without one.
        estimators: of every component, which one its means have.
    """

    components: tuple[str, ...]
    moments: Moments
    corrected: Moments | None
    healthy: NDArray[np.bool_]
    check: Check | None
    estimators: tuple[str, ...]
    attrs: dict[str, Any]

    @property
    def full(self) -> int:
        """Place of the unrestricted chains among the components."""
        return self.components.index("full")

    @classmethod
    def of(cls, shards: Iterable[xr.Dataset], estimator: Estimator = "checked") -> TokenMoments:
        """Put the shards of `token_sampling.sample_tokens` together: ``full``, then the heads.

        Raises:
            ValueError: shards of different runs, a component twice, the unrestricted chains
                missing, a component with fewer than two healthy chains, or a control variate that
                is asked for and was not sampled.
        """
        parts = list(shards)
        attrs = [{k: v for k, v in p.attrs.items() if k not in _OF_COMPONENTS} for p in parts]
        if any(a["identity"] != attrs[0]["identity"] for a in attrs):
            raise ValueError("shards of different runs: model, text or settings differ; resample")
        names = tuple(name for p in parts for name in p.attrs["component"])
        if len(set(names)) < len(names) or "full" not in names:
            raise ValueError(
                f"shards must hold every component once, 'full' among them; found {names}"
            )

        order = sorted(range(len(names)), key=lambda i: head_of(names[i]) or (-1, 0))
        names = tuple(names[i] for i in order)

        def joined(name: str) -> Array:
            return np.concatenate([p[name].values for p in parts])[order]

        # Cov(g, s - g) = Cov(g, s) - Var(g)
        mean_g = joined("mean_g")
        moments = Moments(
            np.broadcast_to(joined("draws").astype(np.float64)[:, None], mean_g.shape),
            mean_g,
            joined("mean_shift") - mean_g[..., None],
            joined("comoment") - joined("square_g")[..., None],
        )
        healthy = _healthy(names, joined, attrs[0])
        for key in _OF_COMPONENTS:
            listed = [value for p in parts for value in p.attrs.get(key, [])]
            if len(listed) == len(names):
                attrs[0][key] = [listed[i] for i in order]

        corrected, found, used = None, None, np.zeros(len(names), dtype=bool)
        if "control_shift" in parts[0]:
            control_g = joined("control_g")
            offset = Offset(control_g, joined("control_shift") - control_g[..., None])
            times = coefficients(moments.mean_y, offset.y, healthy)
            found = check(moments.mean_y, offset.y, control_g, healthy, times)
            used = found.chosen(estimator)
            if used.any():
                corrected = offset.times(times * used[:, None]).off(moments)
        elif estimator == CONTROLLED:
            raise ValueError(
                f"step {attrs[0]['step']}: the chains were sampled without a control variate; set "
                "two_layer.evaluation.control_variate: linear, and sample again"
            )
        return cls(names, moments, corrected, healthy, found, names_of(used), attrs[0])

    def parts(
        self, component: int, chains: Sequence[int], unrestricted: Sequence[int] | None = None
    ) -> dict[str, Array]:
        """Chi and its parts, form -> (token,), from some chains of it and of the full run.

        Args:
            unrestricted: chains of the full run; the same by default.
        """

        def pooled(place: int, chains: Sequence[int]) -> Moments:
            def mine(moments: Moments) -> list[Moments]:
                of_component = moments[place].keep(self.healthy[place])
                return [of_component[chain] for chain in chains]

            corrected = None if self.corrected is None else mine(self.corrected)
            return pool(mine(self.moments), corrected)

        full = pooled(self.full, chains if unrestricted is None else unrestricted)
        return susceptibility_parts(pooled(component, chains), full.mean_y)

    def estimator_table(self) -> pl.DataFrame:
        """Which estimator every component's means have, and why."""
        return estimator_table(self.components, self.estimators, self.check)


def _healthy(
    names: Sequence[str], joined: Callable[[str], Array], attrs: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """Which chains count, (component, chain); every component must have enough."""
    reasons = [
        unhealthy(died, distance, int(size), float(attrs["localization"]))
        for died, distance, size in zip(
            joined("died"), joined("distance"), joined("size"), strict=True
        )
    ]
    healthy = np.array([[not reason for reason in row] for row in reasons])
    if (counts := healthy.sum(1)).min() < MIN_CHAINS:
        worst = int(counts.argmin())
        raise ValueError(
            f"step {attrs['step']}, component {names[worst]}: {counts[worst]} healthy "
            f"chains, {MIN_CHAINS} needed; {'; '.join(filter(None, reasons[worst]))}"
        )
    return healthy


def estimate_tokens(moments: TokenMoments) -> xr.Dataset:
    """Chi of every token, its parts, jackknife replicates over chains and standard errors."""
    chains = moments.healthy.shape[1]
    everything = range(chains)
    value: dict[str, list[Array]] = {form: [] for form in FORMS}
    left_out: dict[str, list[Array]] = {form: [] for form in FORMS}
    for place in range(len(moments.components)):
        whole = moments.parts(place, everything)
        rest = [moments.parts(place, [c for c in everything if c != chain]) for chain in everything]
        for form in FORMS:
            value[form].append(whole[form])
            left_out[form].append(np.stack([r[form] for r in rest]))
    variables: dict[str, Any] = {}
    for form in FORMS:
        replicates = np.stack(left_out[form], 1)  # (chain, component, token)
        variables[form] = (("component", "token"), np.stack(value[form]))
        variables[f"{form}_se"] = (("component", "token"), jackknife_se(replicates))
        variables[f"{form}_replicate"] = (
            ("chain", "component", "token"),
            replicates.astype(np.float32),
        )
    data = xr.Dataset(variables)
    for variable in data.data_vars.values():
        variable.attrs["units"] = "nats squared"
    data.attrs = {**moments.attrs, "estimator": list(moments.estimators)}
    return data
