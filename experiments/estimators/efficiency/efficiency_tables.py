"""Checks of the control variate, standard errors per unit of work, and thinning, as tables.

Reads what the chains have left: moments and costs of the per-token chains, the checks of all
chains, and the losses along the chains of section 4.1, which keep single draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xarray as xr

from susceptibilities.allocation import Allocation, variances
from susceptibilities.console import Progress, run
from susceptibilities.control_variate import CHECKED, CONTROLLED, PLAIN, Estimator
from susceptibilities.efficiency import (
    Costs,
    draw_correlation,
    efficiency,
    thinning_row,
    typical,
)
from susceptibilities.estimators import FORMS, healthy_chains
from susceptibilities.evaluation import Evaluation
from susceptibilities.naming import head_of
from susceptibilities.per_token import ESTIMATOR, TOKENS, folder_of, reliability_table
from susceptibilities.posterior import SamplerConfig
from susceptibilities.store import atomic_path, open_zarr, read_json
from susceptibilities.token_estimates import TokenMoments, estimate_tokens, load_shards

FOLDER = "estimators/efficiency"
SECTION_41 = "baker2025/s4_1_dataset_susceptibilities"
PER_TOKEN, DATASET = "per-token", "section 4.1"
# Single contexts on which the correlation of draws is measured, beside their mean.
CONTEXTS = 100


def group_of(component: str) -> str:
    """Components that cost and respond alike: the heads of a layer, and each other by itself."""
    head = head_of(component)
    return "whole model" if component == "full" else f"layer {head[0]}" if head else component


def checks_table(results: Path, settings: Mapping[str, Any]) -> pl.DataFrame:
    """The checks of all chains, one row a component and checkpoint.

    Columns ``source`` (which chains), ``control`` (n_beta = 0), ``step``, ``group``, and those of
    `control_variate.estimator_table`.
    """
    per_token = settings["per_token"]
    parts = []
    for control, key in ((False, "checkpoints"), (True, "control_checkpoints")):
        for step in per_token[key]:
            table = pl.read_parquet(folder_of(results, step, control) / ESTIMATOR)
            place = {"step": pl.lit(step, pl.Int64), "control": pl.lit(control)}
            parts.append(table.with_columns(source=pl.lit(PER_TOKEN), **place))
    dataset = pl.read_parquet(results / SECTION_41 / ESTIMATOR)
    parts.append(dataset.with_columns(source=pl.lit(DATASET)).select(parts[0].columns))
    group = pl.col("component").map_elements(group_of, return_dtype=pl.String)
    return pl.concat(parts).with_columns(group=group)


def costs_of(data: TokenMoments, settings: Mapping[str, Any], base: int) -> list[Costs]:
    """Costs of every component's per-token chains; ``base``: base contexts."""
    predicted = settings["context"] - 1
    sampler = SamplerConfig.model_validate(data.attrs["sampler"])
    tokens = base * predicted + data.moments.mean_y.shape[-1]
    seconds = data.attrs.get("seconds", [None] * len(data.components))
    evaluation = Evaluation.model_validate(data.attrs["evaluation"])
    return [
        Costs.of(sampler.of(name), evaluation, sampler.batch * predicted, tokens, measured)
        for name, measured in zip(data.components, seconds, strict=True)
    ]


def efficiency_table(
    shards: Sequence[xr.Dataset], tokens: pl.DataFrame, settings: Mapping[str, Any], base: int
) -> pl.DataFrame:
    """Standard error, reliability and work of each estimator, one row a component and form.

    The estimators: plain, with the control variate for all components, and ``checked``, as the run
    uses them. ``se`` is that of a typical token, ``size`` the standard deviation of the values
    over tokens, ``difference`` the typical difference to the plain estimator in its standard
    errors, ``efficiency`` the precision per unit of work relative to the plain estimator.
    """
    checked = TokenMoments.of(shards)
    names: tuple[Estimator, ...] = (PLAIN, CONTROLLED, CHECKED) if checked.check else (PLAIN,)
    costs = costs_of(checked, settings, base)
    precision = checked.attrs.get("precision", ["float32"] * len(costs))
    half = [checked.healthy.shape[1] // 2]
    plain: xr.Dataset | None = None
    tables = []
    for name in names:
        moments = checked if name == CHECKED else TokenMoments.of(shards, name)
        data = estimate_tokens(moments)
        plain = data if plain is None else plain
        reliability = reliability_table(moments, tokens, settings["seed"], half)
        rows = []
        for place, component in enumerate(moments.components):
            cost = costs[place]
            for form in FORMS:
                value, se = (data[f"{form}{end}"].values[place] for end in ("", "_se"))
                before, plain_se = (plain[f"{form}{end}"].values[place] for end in ("", "_se"))
                work, plain_work = (cost.work(e != PLAIN) for e in (name, PLAIN))
                evaluations = cost.draws + (0 if name == PLAIN else cost.control)
                rows.append(
                    {
                        "component": component,
                        "group": group_of(component),
                        "form": form,
                        "estimator": name,
                        "se": typical(se),
                        "size": float(value.std()),
                        "difference": typical((value - before) / np.maximum(plain_se, 1e-300)),
                        "gradients": cost.chains * cost.gradients,
                        "evaluations": cost.chains * evaluations,
                        "tokens": cost.tokens,
                        "measured": cost.seconds is not None,
                        "precision": precision[place],
                        "work": work,
                        "efficiency": efficiency(typical(se), work, typical(plain_se), plain_work),
                    }
                )
        found = pl.DataFrame(rows).join(
            reliability.select("component", "form", "reliability", reliability_se="se"),
            on=["component", "form"],
            how="left",
        )
        tables.append(found)
    return pl.concat(tables)


def allocation_table(moments: TokenMoments, settings: Mapping[str, Any], base: int) -> pl.DataFrame:
    """Where the noise of chi comes from, one row a head; and how draws are best shared out.

    Columns ``share`` (of the variance over chains, that of E_full[dL]) and, the same in all rows,
    the ratio of draws and its precision per unit of work.
    """
    heads = [i for i, name in enumerate(moments.components) if head_of(name)]
    each = [[float(v.sum()) for v in variances(moments, place)] for place in heads]
    costs = costs_of(moments, settings, base)
    thinning = settings["per_token"]["sampler"]["thinning"]

    def marginal(places: Sequence[int]) -> float:
        """Work of one more draw of every chain of these components."""
        some = (costs[place] for place in places)
        return sum(c.chains * (thinning * c.gradient + c.draw) for c in some)

    found = Allocation(
        unrestricted_variance=sum(unrestricted for unrestricted, _ in each),
        own_variance=sum(own for _, own in each),
        unrestricted_draws=costs[moments.full].draws,
        own_draws=costs[heads[0]].draws,
        unrestricted_cost=marginal([moments.full]),
        own_cost=marginal(heads),
    )
    return pl.DataFrame(
        {
            "component": [moments.components[place] for place in heads],
            "group": [group_of(moments.components[place]) for place in heads],
            "share": [unrestricted / (unrestricted + own) for unrestricted, own in each],
        }
    ).with_columns(
        present=found.unrestricted_draws / found.own_draws,
        best=found.best,
        used=found.used,
        equal=found.equal,
    )


def correlations(stores: Sequence[Path]) -> dict[tuple[str, str], tuple[float, float]]:
    """Correlation of neighbouring draws with its error: (group, observable) -> pair.

    Observables: ``L_n``, and the losses of single contexts, most of whose variance is their own.
    All checkpoints together.
    """
    values: dict[tuple[str, str], list[np.ndarray]] = {}
    healthy: dict[str, list[np.ndarray]] = {}
    for path in stores:
        losses = open_zarr(path).load()
        kept, _ = healthy_chains(losses)
        shift = losses["base_shift"].values
        for place, component in enumerate(losses.attrs["component"]):
            group = group_of(component)
            healthy.setdefault(group, []).append(kept[place])
            own = shift[place, :, : int(losses["draws"][place])]
            mean, single = own.mean(-1, keepdims=True), own[..., :CONTEXTS]
            values.setdefault((group, "L_n"), []).append(mean)
            values.setdefault((group, "a context's loss"), []).append(single)
    return {
        key: draw_correlation(np.stack(parts), np.stack(healthy[key[0]]))
        for key, parts in values.items()
    }


def dataset_costs(losses: xr.Dataset, predicted: int) -> dict[str, Costs]:
    """Costs of the chains of section 4.1 at one checkpoint, by component.

    Args:
        predicted: tokens that a context predicts.
    """
    sampler = SamplerConfig.model_validate(losses.attrs["sampler"])
    evaluation = Evaluation.model_validate(losses.attrs.get("evaluation", {}))
    contexts = losses["base_star"].size + losses["probe_star"].size
    names = losses.attrs["component"]
    return {
        name: Costs.of(
            sampler.of(name),
            evaluation,
            sampler.batch * predicted,
            contexts * predicted,
            measured,
        )
        for name, measured in zip(
            names, losses.attrs.get("seconds", [None] * len(names)), strict=True
        )
    }


def thinning_table(
    stores: Sequence[Path], per_token: TokenMoments, settings: Mapping[str, Any], base: int
) -> pl.DataFrame:
    """The best thinning and what the present one loses, by group, observable and kind of chains.

    Draws are kept by the chains of section 4.1 only; where the others have the same step, n_beta
    and localization, their draws fall out of step as fast.
    """
    costs = {
        DATASET: dataset_costs(open_zarr(stores[-1]), settings["context"] - 1),
        PER_TOKEN: dict(
            zip(per_token.components, costs_of(per_token, settings, base), strict=True)
        ),
    }
    samplers = {DATASET: settings["sampler"], PER_TOKEN: settings["per_token"]["sampler"]}
    same = all(
        samplers[DATASET][key] == samplers[PER_TOKEN][key]
        for key in ("method", "n_beta", "localization", "step_size")
    )
    own = samplers[DATASET]["thinning"]
    rows = []
    for (group, observable), (rho, se) in correlations(stores).items():
        for kind, of_kind in costs.items():
            members = [c for name, c in of_kind.items() if group_of(name) == group]
            if not members or np.isnan(rho) or (kind == PER_TOKEN and not same):
                continue
            thinning = samplers[kind]["thinning"]
            # At the thinning of these chains, if it falls geometrically.
            power = thinning / own
            there, low, high = (max(r, 0.0) ** power for r in (rho, rho - se, rho + se))
            row = thinning_row(there, (high - low) / 2, thinning, members)
            rows.append({"group": group, "observable": observable, "source": kind, **row})
    return pl.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    settings = read_json(results / "config.json")["two_layer"]
    step = max(settings["per_token"]["checkpoints"])
    folder = folder_of(results, step)
    base = len(np.load(results / "tokens" / "base.npy", allow_pickle=False))
    shards = load_shards(folder)
    stores = [results / f"losses/step_{s:06d}.zarr" for s in settings["checkpoints"]]
    moments = TokenMoments.of(shards)
    tables = {
        "checks": checks_table(results, settings),
        "efficiency": efficiency_table(shards, pl.read_parquet(folder / TOKENS), settings, base),
        "allocation": allocation_table(moments, settings, base),
        "thinning": thinning_table(stores, moments, settings, base),
    }
    for name, table in tables.items():
        with atomic_path(results / FOLDER / f"{name}.parquet") as path:
            table.write_parquet(path)
    used = tables["checks"]["estimator"] == CONTROLLED
    Progress()(f"control variate used for {used.sum()} of {len(used)} components")


if __name__ == "__main__":
    run(main)
