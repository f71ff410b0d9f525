"""Per-token susceptibilities from the moments along the chains: chi, its parts, its errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import NDArray

from .control_variate import Check, Choice, Estimator, estimator_table, names_of, pool
from .estimators import FORMS, susceptibility_parts
from .jackknife import jackknife_se
from .moments import Array, Moments
from .sampled import Sampled, choose
from .store import open_zarr


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
        """Put the shards of `token_sampling.sample_tokens` together, see `Sampled.of`.

        Raises:
            ValueError: as `Sampled.of`; a control variate that is asked for and was not sampled.
        """
        sampled = Sampled.of(shards)
        return cls.chosen(sampled, choose([sampled], estimator))

    @classmethod
    def chosen(cls, sampled: Sampled, choice: Choice) -> TokenMoments:
        """With the control variate as it was chosen."""
        moments, corrected = sampled.moments, None
        if choice.used.any():
            offset = sampled.offset
            assert offset is not None
            corrected = offset.times(choice.coefficient * choice.used[:, None]).off(moments)
        return cls(
            sampled.components,
            moments,
            corrected,
            sampled.healthy,
            choice.check,
            names_of(choice.used),
            sampled.attrs,
        )

    def _pooled(self, component: int, chains: Sequence[int]) -> Moments:
        kept = np.zeros(self.healthy.shape[1], dtype=bool)
        kept[list(chains)] = self.healthy[component, list(chains)]

        def mine(moments: Moments) -> list[Moments]:
            of_component = moments[component].keep(kept)
            return [of_component[chain] for chain in chains]

        corrected = None if self.corrected is None else mine(self.corrected)
        return pool(mine(self.moments), corrected)

    def full_mean(self, chains: Sequence[int]) -> Array:
        """E_full[dL] from some of the unrestricted chains, (token,)."""
        return self._pooled(self.full, chains).mean_y

    def parts(
        self, component: int, chains: Sequence[int], full_mean: Array | None = None
    ) -> dict[str, Array]:
        """Chi and its parts, form -> (token,), from some chains of it and of the full run.

        Args:
            full_mean: `full_mean`, of the same chain numbers by default.
        """
        if full_mean is None:
            full_mean = self.full_mean(chains)
        return susceptibility_parts(self._pooled(component, chains), full_mean)

    def estimator_table(self) -> pl.DataFrame:
        """Which estimator every component's means have, and why."""
        return estimator_table(self.components, self.estimators, self.check)


def estimates(
    moments: TokenMoments,
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Component by component: chi and its parts, form -> (token,), and with one chain number left
    out of the component and of the unrestricted run, form -> (chain, token)."""
    everything = range(moments.healthy.shape[1])
    rest = [[c for c in everything if c != chain] for chain in everything]
    full, full_rest = moments.full_mean(everything), [moments.full_mean(r) for r in rest]
    for place in range(len(moments.components)):
        left_out = [moments.parts(place, r, f) for r, f in zip(rest, full_rest, strict=True)]
        replicates = {form: np.stack([r[form] for r in left_out]) for form in FORMS}
        yield moments.parts(place, everything, full), replicates


def estimate_tokens(moments: TokenMoments) -> xr.Dataset:
    """Chi of every token, its parts, jackknife replicates over chains and standard errors."""
    value, left_out = zip(*estimates(moments), strict=True)
    variables: dict[str, Any] = {}
    for form in FORMS:
        replicates = np.stack([r[form] for r in left_out], 1)  # (chain, component, token)
        variables[form] = (("component", "token"), np.stack([v[form] for v in value]))
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
