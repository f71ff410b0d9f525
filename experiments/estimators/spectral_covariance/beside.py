"""The components of the spectral estimate beside what the chains gave on the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import NDArray

from susceptibilities.efficiency import Costs
from susceptibilities.evaluation import Evaluation
from susceptibilities.jackknife import Array, Estimate
from susceptibilities.loss_sets import CONTROL, POSTERIOR
from susceptibilities.per_token import PerToken, folder_of, load_per_token
from susceptibilities.posterior import SamplerConfig
from susceptibilities.spectral_config import SpectralConfig
from susceptibilities.spectral_results import covariance, load_sets
from susceptibilities.store import read_json
from susceptibilities.token_errors import context_blocks
from susceptibilities.token_estimates import TokenMoments, load_shards

FORM = "covariance"
# What the spectral estimate spends its time on; the control is measured beside it.
OWN_STAGES = ("products", "terms", "gradient", "remainder", "averaged")
# The posterior's estimate with derivatives averaged over it; `POSTERIOR` has them at one point.
AVERAGED = "averaged"


@dataclass(frozen=True)
class Beside:
    """One component: the spectral estimate and the sampled one on the same tokens.

    Attributes:
        data: terms of every set, axes (set, ...).
        sets: covariance part, `POSTERIOR`, `CONTROL` and `AVERAGED` -> (set, token).
        sampled: the chains' estimate, run -> value (token,); ``left_out``: with each chain left
            out, (chain, token).
        costs: of the chains; ``base``: base contexts; ``contexts``: of the tokens.
    """

    name: str
    data: xr.Dataset
    sets: dict[str, Array]
    sampled: dict[str, Array]
    left_out: dict[str, Array]
    blocks: NDArray[np.int64]
    costs: Costs
    mean_loss: Estimate
    base: int
    contexts: int
    config: SpectralConfig

    @property
    def best(self) -> Array:
        """The estimate of the posterior: with averaged derivatives, where they were measured."""
        return self.sets.get(AVERAGED, self.sets[POSTERIOR])

    @property
    def source(self) -> NDArray[np.str_]:
        """Of every loss set."""
        return self.data["source"].values

    def of_base(self, values: Array) -> Array:
        """Those of the base contexts' sets: together they are the run's own L_n."""
        return values[self.source == "base"]

    def set_seconds(self, stages: Sequence[str] = OWN_STAGES, source: str | None = None) -> float:
        """Mean processor time of one loss set, of all or of one source."""
        spent = self.data["seconds"].sel(stage=list(stages)).sum("stage").values
        return float(spent[self.source == source if source else slice(None)].mean())

    def draw_seconds(self) -> float:
        """Processor time of one more draw of a long chain, evaluated on the same tokens."""
        whole = self.costs.tokens
        share = (self.base + self.contexts) * (self._length() / whole)
        return self.costs.draw * share + self._thinning() * self.costs.gradient

    def _length(self) -> float:
        return self.data.sizes["token"] / self.contexts

    def _thinning(self) -> int:
        return int(self.data.attrs["sampler"]["thinning"])

    @property
    def draws(self) -> int:
        """Kept draws a chain."""
        return self.costs.draws


def sizes(values: Array) -> float:
    """Standard deviation over tokens."""
    return float(values.std())


def slope_of(x: Array, y: Array) -> Array:
    """Slope of y on x over tokens, and their correlation."""
    x, y = x - x.mean(), y - y.mean()
    return np.array([x @ y / (x @ x), x @ y / np.sqrt((x @ x) * (y @ y))])


def load(results: Path) -> list[Beside]:
    """All components of the spectral estimate, beside what the chains gave on the same tokens."""
    data = load_sets(results)
    step = int(data.attrs["step"])
    settings = read_json(results / "config.json")["two_layer"]
    config = SpectralConfig.model_validate(data.attrs["spectral"])
    sampled: dict[str, PerToken] = {POSTERIOR: load_per_token(results, False, step)}
    if CONTROL in data.attrs["run"]:
        sampled[CONTROL] = load_per_token(results, True, step)
    keep = (sampled[POSTERIOR].tokens["context"] < config.token_contexts).to_numpy()
    tokens = sampled[POSTERIOR].tokens.filter(pl.lit(keep))
    moments = TokenMoments.of(load_shards(folder_of(results, step)))
    sampler = SamplerConfig.model_validate(moments.attrs["sampler"])
    predicted = settings["context"] - 1
    base = int(settings["base_contexts"])
    evaluated = base * predicted + moments.moments.mean_y.shape[-1]
    found = []
    sets = {run: covariance(data, run, "point") for run in data.attrs["run"]}
    if "averaged_linear" in data:
        sets[AVERAGED] = covariance(data, derivatives="averaged")
    for number, name in enumerate(data.attrs["component"]):
        place = moments.components.index(name)
        rise = moments.moments.mean_x[place][moments.healthy[place]]
        mean_loss = Estimate(
            float(rise.mean()), float(rise.std(ddof=1) / len(rise) ** 0.5), len(rise) - 1
        )
        one = data.isel(component=number)
        one.attrs = data.attrs
        values = {run: part.of(name, FORM) for run, part in sampled.items()}
        found.append(
            Beside(
                name=name,
                data=one,
                sets={run: part[number] for run, part in sets.items()},
                sampled={run: value[keep] for run, (value, _) in values.items()},
                left_out={run: left[:, keep] for run, (_, left) in values.items()},
                blocks=context_blocks(tokens),
                costs=Costs.of(
                    sampler.of(name),
                    Evaluation.model_validate(moments.attrs["evaluation"]),
                    sampler.batch * predicted,
                    evaluated,
                    moments.attrs["seconds"][place],
                ),
                mean_loss=mean_loss,
                base=base,
                contexts=data.sizes["token"] // predicted,
                config=config,
            )
        )
    return found
