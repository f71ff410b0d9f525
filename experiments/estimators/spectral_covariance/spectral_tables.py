"""The spectral estimate beside the sampled one: terms, reliability, cost, agreement, as tables.

Two questions are kept apart. *The run's L_n*: its contexts are given, and only the estimator can
err; that is what chains estimate, whose reliability is measured over chains. *Another L_n*: the
same on contexts of other documents, which is what a statement on the model is about; that is
measured between loss sets.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from beside import AVERAGED, Beside, load, sizes, slope_of
from spectral_costs import Rows, cost_rows, scaling_rows

from susceptibilities.console import Progress, run
from susceptibilities.jackknife import jackknife_se, pseudo_values
from susceptibilities.loss_sets import CONTROL, POSTERIOR
from susceptibilities.reliability import agreement
from susceptibilities.spectral_errors import shared_variance
from susceptibilities.store import atomic_path

FOLDER = "estimators/spectral_covariance"
CONTROL_COLUMNS = {
    "component": pl.String,
    **dict.fromkeys(("correlation", "slope", "difference"), pl.Float64),
}


def term_rows(one: Beside) -> Rows:
    """Sizes of the terms, of the mean over loss sets; what the pairs leave out; the spectrum."""
    rows = []
    for name in one.data["run"].values:
        chosen = one.data.sel(run=name)
        linear = chosen["wide_linear" if "wide_linear" in chosen else "linear"].values
        used = chosen["used"].values
        relative = one.data.attrs["n_beta"] / one.data.attrs["localization"] * used[:, 0]
        row: dict[str, Any] = {
            "component": one.name,
            "run": name,
            "size": sizes(one.sets[name].mean(0)),
            "linear": sizes(linear.mean(0)),
            "own_linear": sizes(chosen["linear"].values.mean(0)),
            "quadratic": sizes(chosen["quadratic"].values.mean(0)),
            "largest": float(used[:, 0].mean()),
            "smallest": float(used[:, -1].mean()),
            "relative": float(relative.mean()),
            "tail": float(chosen["tail"].mean()),
            "distance": float(chosen["distance"].mean()),
        }
        if "rest_quadratic" in one.data:
            rest = one.data["rest_quadratic"].values
            groups = np.repeat(np.arange(len(rest)), rest.shape[1])
            variance, se = shared_variance(rest.reshape(len(groups), -1), groups)
            pairs = chosen["quadratic"].values
            own, _ = shared_variance(pairs, np.arange(len(pairs)))
            size = max(variance, 0.0) ** 0.5
            row |= {
                "rest": size,
                "rest_se": se / (2 * size) if size else float("nan"),
                "pairs": max(own, 0.0) ** 0.5,
            }
        rows.append(row)
    return rows


def reliability_rows(one: Beside) -> Rows:
    """How well loss sets agree, term by term, and chains."""
    chosen = one.data.sel(run=POSTERIOR)
    terms = {"covariance": one.best}
    if AVERAGED in one.sets:
        terms["covariance, derivatives at a point"] = one.sets[POSTERIOR]
        terms["linear"] = one.data["averaged_linear"].mean("draw").values
        terms["first pairs"] = one.data["averaged_quadratic"].mean("draw").values
    if "wide_linear" in chosen:
        terms["linear, at a point"] = chosen["wide_linear"].values
    terms["linear, at a point, own gradient"] = chosen["linear"].values
    terms["pairs, at a point"] = chosen["quadratic"].values
    if "rest_quadratic" in one.data:
        terms["rest"] = one.data["rest_quadratic"].mean("probe").values
    source = one.source
    rows: Rows = []

    def add(term: str, between: str, units: int, found: tuple[float, float]) -> None:
        rows.append(
            {
                "component": one.name,
                "term": term,
                "between": between,
                "units": units,
                "value": found[0],
                "se": found[1],
            }
        )

    for term, values in terms.items():
        add(term, "sets of other documents", 1, agreement(values, one.blocks, list(source)))
        within = [agreement(values[source == s], one.blocks) for s in np.unique(source)]
        add(term, "sets of the same source", 1, tuple(np.mean(within, 0)))
        halves = np.stack([values[source == s].mean(0) for s in np.unique(source)])
        add(term, "sets of other documents", len(source) // 2, agreement(halves, one.blocks))
    single = pseudo_values(one.sampled[POSTERIOR], one.left_out[POSTERIOR])
    add("sampled", "chains", one.draws, agreement(single, one.blocks))
    half = len(single) // 2
    pair = np.stack([single[:half].mean(0), single[half : 2 * half].mean(0)])
    add("sampled", "chains", half * one.draws, agreement(pair, one.blocks))
    return rows


def agreement_rows(one: Beside) -> Rows:
    """The sampled estimate against the spectral ones of the same L_n: slope and correlation.

    Errors: jackknives over chains, over loss sets and over blocks of contexts, added in squares.
    """
    rows = []
    for name, estimate in one.sets.items():
        of_chains = CONTROL if name == CONTROL else POSTERIOR
        values, left_out = one.sampled[of_chains], one.left_out[of_chains]
        sets = one.of_base(estimate)
        x, count = sets.mean(0), len(sets)
        whole = slope_of(x, values)
        kept = [one.blocks != b for b in np.unique(one.blocks)]
        replicates = [
            [slope_of(x, left) for left in left_out],
            [slope_of((count * x - out) / (count - 1), values) for out in sets],
            [slope_of(x[k], values[k]) for k in kept],
        ]
        errors = np.sqrt(sum(np.square(jackknife_se(np.array(r))) for r in replicates))
        rows.append(
            {
                "component": one.name,
                "estimate": name,
                "slope": float(whole[0]),
                "slope_se": float(errors[0]),
                "correlation": float(whole[1]),
                "correlation_se": float(errors[1]),
                # What the correlation would be at slope one, for the noise that the chains have.
                "possible": sizes(x) / sizes(values),
                "sampled": sizes(values),
                "spectral": sizes(x),
            }
        )
    return rows


def control_rows(one: Beside) -> Rows:
    """What the loss does to the estimate: the n_beta = 0 control against the posterior."""
    if CONTROL not in one.sets:
        return []
    posterior, control = one.sets[POSTERIOR].mean(0), one.sets[CONTROL].mean(0)
    slope, r = slope_of(posterior, control)
    return [
        {
            "component": one.name,
            "correlation": float(r),
            "slope": float(slope),
            "difference": sizes(posterior - control) / sizes(posterior),
        }
    ]


def departure_rows(one: Beside) -> Rows:
    """How far the losses are from quadratics where the posterior goes, term by term.

    ``slope``: of a term with averaged derivatives on the same with derivatives at one point;
    ``new``: size of what it has beside, without the draws' noise, over the size of the term at a
    point. ``curvature``: that of L_n along the first pairs, averaged over at one point.
    ``predicted``: E[L_n] - L_n(w*) of the Gaussian, beside the chains'.
    """
    row: dict[str, Any] = {"component": one.name}
    if AVERAGED in one.sets:
        chosen = one.data.sel(run=POSTERIOR)
        terms = {
            "linear": chosen["wide_linear" if "wide_linear" in chosen else "linear"].values,
            "quadratic": one.data["here"].values,
        }
        for term, point in terms.items():
            averaged = one.data[f"averaged_{term}"].values.mean(1)
            slope, r = slope_of(point.mean(0), averaged.mean(0))
            variance, _ = shared_variance(averaged - slope * point, np.arange(len(point)))
            left_out = [
                slope_of(np.delete(point, i, 0).mean(0), np.delete(averaged, i, 0).mean(0))[0]
                for i in range(len(point))
            ]
            row |= {
                f"{term}_slope": float(slope),
                f"{term}_slope_se": float(jackknife_se(np.array(left_out))),
                f"{term}_correlation": float(r),
                f"{term}_new": max(variance, 0.0) ** 0.5 / sizes(point.mean(0)),
            }
        own, used = one.data["averaged_own"].values, chosen["used"].values
        row["curvature"] = float(own.sum() / used[:, : own.shape[1]].sum())
    if "rest_loss" in one.data:
        loss = one.data["mean_loss"].sel(run=POSTERIOR).values
        sets = one.of_base(loss + one.data["rest_loss"].mean("probe").values)
        row |= {
            "predicted": float(sets.mean()),
            "predicted_se": float(sets.std(ddof=1) / len(sets) ** 0.5),
            "chains": one.mean_loss.value,
            "chains_se": one.mean_loss.se,
        }
    return [row]


def spectrum_rows(one: Beside) -> Rows:
    """Eigenvalues by rank: mean and range over loss sets."""
    values = np.sort(one.data["eigenvalue"].values, 1)[:, ::-1]
    residuals = one.data["residual"].values
    return [
        {
            "component": one.name,
            "rank": rank + 1,
            "value": float(values[:, rank].mean()),
            "low": float(values[:, rank].min()),
            "high": float(values[:, rank].max()),
            "residual": float(residuals[:, rank].mean()),
        }
        for rank in range(values.shape[1])
    ]


def tables(components: Sequence[Beside]) -> dict[str, pl.DataFrame]:
    """All tables, by name."""
    reliability = pl.DataFrame([row for one in components for row in reliability_rows(one)])
    makers = {
        "terms": term_rows,
        "agreement": agreement_rows,
        "control": control_rows,
        "departure": departure_rows,
        "spectrum": spectrum_rows,
    }
    found = {
        name: pl.DataFrame([row for one in components for row in make(one)])
        for name, make in makers.items()
    }
    if found["control"].is_empty():
        found["control"] = pl.DataFrame(schema=CONTROL_COLUMNS)
    costs = [row for one in components for row in cost_rows(one, reliability)]
    scaling = scaling_rows(components[0].config)
    return {
        "reliability": reliability,
        "cost": pl.DataFrame(costs),
        "scaling": pl.DataFrame(scaling),
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    args = parser.parse_args()
    found = tables(load(args.results))
    for name, table in found.items():
        with atomic_path(args.results / FOLDER / f"{name}.parquet") as path:
            table.write_parquet(path)
    cost = found["cost"]
    for row in cost.filter(pl.col("half").is_finite()).iter_rows(named=True):
        Progress()(f"{row['component']}, {row['estimator']}: {row['half']:.3g} s for 0.5")


if __name__ == "__main__":
    run(main)
