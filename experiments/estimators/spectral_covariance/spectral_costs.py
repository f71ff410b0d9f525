"""What the spectral estimate costs beside chains: here, and counted for the Pythia models."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from beside import AVERAGED, Beside

from susceptibilities.components import component_names
from susceptibilities.jackknife import Array, Estimate, pseudo_values
from susceptibilities.loss_sets import POSTERIOR
from susceptibilities.models.gpt_neox import PYTHIA
from susceptibilities.planning.ground_truth import ground_truth_run
from susceptibilities.planning.rates import published_rates
from susceptibilities.planning.tables import Options, totals_of
from susceptibilities.planning.work import components_of
from susceptibilities.reliability import times_to
from susceptibilities.spectral_config import SpectralConfig
from susceptibilities.spectral_cost import Counts, basis_bytes, spectral_seconds

HALF = 0.5
MODELS = ("14m", "1.4b")
# Second differences in bfloat16 cost a few percent of the quadratic term.
DEVICE, PRECISION = "h200", "tf32"
HOUR = 3600.0

Rows = list[dict[str, Any]]


def cost_rows(one: Beside, measured: pl.DataFrame) -> Rows:
    """Processor time for a reliability of one half, and what a unit costs.

    For the run's own L_n the spectral estimate has no noise but that of its random displacements
    and directions: one pass over the base contexts' sets. The chains' draws are extrapolated, once
    from the measured agreement of chains, once from the size of the spectral estimate: if that is
    right, a chain's estimate holds so much variance over tokens that is not noise.
    """
    table = measured.filter(pl.col("component") == one.name)

    def found(term: str, between: str, units: int) -> Estimate:
        row = table.filter(
            (pl.col("term") == term) & (pl.col("between") == between) & (pl.col("units") == units)
        ).row(0, named=True)
        return Estimate(row["value"], row["se"], len(np.unique(one.blocks)) - 1)

    chains = found("sampled", "chains", one.draws)
    low, high = chains.interval()
    single = pseudo_values(one.sampled[POSTERIOR], one.left_out[POSTERIOR])
    signal = one.of_base(one.best).mean(0)
    pure = _noise_agreement(one)
    known = float(signal.var()) * (pure if np.isfinite(pure) else 1.0)
    expected = min(1.0, known / float(single.var(1).mean()))
    draw, each = one.draw_seconds(), one.set_seconds()
    base = int((one.source == "base").sum())
    whole = base * one.set_seconds(source="base")
    linear = base * one.set_seconds(["gradient"], "base")
    if AVERAGED in one.sets:
        linear += base * _averaged_share(one) * one.set_seconds(["averaged"], "base")
    other = found("covariance", "sets of other documents", 1)
    other_low, other_high = other.interval()

    def row(estimator: str, target: str, unit: str, **values: Any) -> dict[str, Any]:
        return {
            "component": one.name,
            "estimator": estimator,
            "target": target,
            "unit": unit,
            "reliability": float("nan"),
            "reliability_se": float("nan"),
            "half": float("nan"),
            "half_low": float("nan"),
            "half_high": float("nan"),
            **values,
        }

    times = one.draws * draw
    return [
        row(
            "sampling, from its agreement",
            "the run's L_n",
            f"chain of {one.draws} draws",
            seconds=times,
            reliability=chains.value,
            reliability_se=chains.se,
            half=times * times_to(HALF, chains.value),
            half_low=times * times_to(HALF, min(high, 1.0)),
            half_high=times * times_to(HALF, low),
        ),
        row(
            "sampling, from the spectral size",
            "the run's L_n",
            f"chain of {one.draws} draws",
            seconds=times,
            reliability=expected,
            half=times * times_to(HALF, expected),
        ),
        *(
            [
                row(
                    "linear term alone",
                    "the run's L_n",
                    "one pass",
                    seconds=linear,
                    reliability=float(np.corrcoef(signal, _linear_of(one))[0, 1]) ** 2,
                )
            ]
            if "wide_linear" in one.data
            else []
        ),
        row(
            "spectral",
            "the run's L_n",
            f"one pass, {base} loss sets",
            seconds=whole,
            reliability=pure,
        ),
        row(
            "spectral",
            "another L_n",
            "loss set",
            seconds=each,
            reliability=other.value,
            reliability_se=other.se,
            half=each * times_to(HALF, other.value),
            half_low=each * times_to(HALF, min(other_high, 1.0)),
            half_high=each * times_to(HALF, other_low),
        ),
    ]


def _linear_of(one: Beside) -> Array:
    if AVERAGED in one.sets:
        return one.of_base(one.data["averaged_linear"].mean("draw").values).mean(0)
    return one.of_base(one.data.sel(run=POSTERIOR)["wide_linear"].values).mean(0)


def _averaged_share(one: Beside) -> float:
    """Share of the evaluations at displacements that the linear term needs."""
    return 2 / (2 * one.data.sizes["averaged_pair"] + 3)


def _noise_agreement(one: Beside) -> float:
    """Correlation of the pass with another one from other random displacements and directions.

    From the scatter of the sets' own draws; 1 where nothing random is in it, and no number where
    there is one draw only, whose scatter is not known.
    """
    noise = 0.0
    for name in ("averaged_linear", "averaged_quadratic", "rest_quadratic"):
        if name not in one.data or (name != "rest_quadratic" and AVERAGED not in one.sets):
            continue
        draws = one.of_base(one.data[name].values)
        if draws.shape[1] < 2:
            return float("nan")
        noise += float(draws.var(1, ddof=1).mean()) / (draws.shape[0] * draws.shape[1])
    total = float(one.of_base(one.best).mean(0).var())
    return max(0.0, 1.0 - noise / total)


def scaling_rows(config: SpectralConfig) -> Rows:
    """What the estimate would cost for Pythia models on one GPU, by kind of component, and the
    papers' chains, as the planner has them."""
    rows: Rows = []
    counts = Counts.of(config)
    for model in MODELS:
        shape, paper = PYTHIA[model], ground_truth_run(model)
        rates = published_rates(DEVICE, shape, PRECISION)
        planner = Options(DEVICE, PRECISION).planner(paper, rates)
        _, _, totals = totals_of(planner, 1.0)
        parts = components_of(shape, component_names(shape))
        size = {"contexts": paper.probes, "length": paper.context, "rates": rates}
        for kind in ("head", "mlp", "embed", "unembed"):
            chosen = [part for part in parts if part.kind == kind]
            each = [spectral_seconds(part, shape, config, **size) for part in chosen]
            products, evaluations = np.sum(each, 0) / HOUR
            rows.append(
                {
                    "model": f"pythia-{model}",
                    "kind": kind,
                    "components": len(chosen),
                    "weights": chosen[0].size,
                    "products": counts.products * config.sets,
                    "product_tokens": config.contexts * paper.context,
                    "evaluations": counts.evaluations * config.sets,
                    "tokens": paper.tokens,
                    "basis": basis_bytes(chosen[0], config),
                    "product_hours": float(products),
                    "evaluation_hours": float(evaluations),
                    "chains_sampling_hours": totals.sampling / HOUR,
                    "chains_evaluation_hours": totals.evaluation / HOUR,
                    "rates": rates.source,
                    "device": rates.device,
                    "precision": PRECISION,
                }
            )
    return rows
