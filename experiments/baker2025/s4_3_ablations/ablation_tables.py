"""Susceptibility, ablation delta and loss of every token, compared pair by pair.

Writes correlations.parquet (of every pair, head, domain and part of chi), ceilings.parquet (the
largest that noise allows), density.parquet (the hexagons of Figures 7 and 31).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from susceptibilities.console import run
from susceptibilities.cubes import FORMS
from susceptibilities.jackknife import jackknife_se
from susceptibilities.naming import HEAD_PATTERN
from susceptibilities.per_token import (
    ABLATION,
    RELIABILITY,
    PerToken,
    folder_of,
    load_per_token,
)
from susceptibilities.store import atomic_path, read_json
from susceptibilities.subsets import place_of
from susceptibilities.token_errors import context_blocks, measure_array

FOLDER = "baker2025/s4_3_ablations"
PAIRS = ("susceptibility-ablation", "susceptibility-loss", "ablation-loss")
# Figure 7: rows and columns; Figure 31: its head, over all domains.
SUBSETS = ("github", "dm_mathematics")
HEADS = ("0:0", "1:2")
HEAD_31 = "0:0"
# Cells of the lattice along x and y (regular hexagons at the shape of the figures' panels).
LATTICE = {"fig7": (50, 18), "fig31": (34, 10)}
# Share of the tokens beyond either end of an axis, where a long tail would leave all the others
# in a few hexagons. They are counted.
TAIL = 0.001

Array = NDArray[np.float64]


def pearson(x: Array, y: Array) -> Array:
    """Correlation along the last axis, NaN where either is constant; shapes broadcast."""
    x = x - x.mean(-1, keepdims=True)
    y = y - y.mean(-1, keepdims=True)
    size = np.sqrt(np.square(x).sum(-1) * np.square(y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0, (x * y).sum(-1) / size, np.nan)


def spearman(x: Array, y: Array) -> Array:
    """`pearson` of the ranks (ties: their mean), which no tail of a distribution dominates."""
    return pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))


STATISTICS: dict[str, Callable[[Array, Array], Array]] = {"pearson": pearson, "spearman": spearman}


def load_ablation(results: Path, data: PerToken) -> Array:
    """Ablation deltas (head, token): loss with the head zero-ablated minus the loss, in nats."""
    path = folder_of(results, data.step) / ABLATION
    table = pl.read_parquet(path)
    if not table["index"].equals(data.tokens["index"].cast(table["index"].dtype)):
        raise ValueError(
            f"{path}: its {len(table)} tokens are not the {len(data.tokens)} of the per-token "
            "susceptibilities beside it; delete it and build it again"
        )
    return np.stack([table[head].to_numpy().astype(np.float64) for head in data.heads])


def rows_of_heads(data: PerToken, values: NDArray[Any]) -> Array:
    """Rows of ``data.heads`` along the second to last axis."""
    places = [data.components.index(head) for head in data.heads]
    return values[..., places, :].astype(np.float64)


def ceilings(table: pl.DataFrame, chains: int, control: bool) -> pl.DataFrame:
    """The largest correlation that the noise in a susceptibility allows, by head and form.

    It is the root of the reliability of all chains, which follows by Spearman and Brown from
    that of the largest sets of chains that were compared: k r / (1 + (k - 1) r), k times as many.

    Args:
        table: reliability.parquet of the per-token susceptibilities.
        chains: how many the estimates are from.

    Returns:
        ``measured`` (reliability of ``sets`` chains), ``reliability``, ``ceiling``; all ``se``
        over blocks of contexts.
    """
    size = int(table["chains"].max())  # type: ignore[arg-type]
    k = chains / size
    share = 1 + (k - 1) * pl.col("measured")
    return (
        table.filter((pl.col("chains") == size) & pl.col("component").str.contains(HEAD_PATTERN))
        .select(
            head="component",
            form="form",
            control=pl.lit(control),
            sets=pl.lit(size),
            measured="reliability",
            measured_se="se",
        )
        .with_columns(
            reliability=k * pl.col("measured") / share, se=k * pl.col("measured_se") / share**2
        )
        .with_columns(ceiling=pl.col("reliability").clip(0.0, 1.0).sqrt())
        .with_columns(
            ceiling_se=pl.when(pl.col("ceiling") > 0).then(pl.col("se") / (2 * pl.col("ceiling")))
        )
    )


def of_form(data: PerToken, deltas: Array, form: str, control: bool) -> list[pl.DataFrame]:
    """Correlations of one form with ablation delta and with loss, probe by probe."""
    found = []
    blocks = context_blocks(data.tokens)
    heads = len(data.heads)
    others = np.concatenate([deltas, data.tokens["loss"].to_numpy()[None]])
    values, replicates = (rows_of_heads(data, v[form]) for v in (data.value, data.replicates))
    for probe in data.probes:
        mask = data.where(probe)
        keys = {"probe": probe, "head": list(data.heads), "form": form, "control": control}
        mine = values[:, mask], replicates[..., mask]
        here, against = blocks[mask], others[:, mask]
        for statistic, measured in STATISTICS.items():
            if statistic != "pearson" and form != "chi":
                continue  # ranks take most of the time

            def both(
                x: Array,
                keep: NDArray[np.bool_],
                measured: Callable[[Array, Array], Array] = measured,
                against: Array = against,
            ) -> Array:
                x, y = x[:, keep], against[:, keep]
                return np.stack([measured(x, y[:heads]), measured(x, y[heads:])])

            value, se = measure_array(both, *mine, here)
            found += [
                pl.DataFrame(
                    {
                        **keys,
                        "pair": pair,
                        "statistic": statistic,
                        "value": value[place],
                        "se": se[place],
                        "df": min(data.chains, len(np.unique(here))) - 1,
                        "tokens": len(here),
                    }
                )
                for place, pair in enumerate(PAIRS[:2])
            ]
    return found


def without_susceptibility(data: PerToken, deltas: Array) -> list[pl.DataFrame]:
    """Correlations of ablation delta and loss: no chain has a part, errors over contexts alone."""
    blocks = context_blocks(data.tokens)
    loss = data.tokens["loss"].to_numpy()
    found = []
    for probe in data.probes:
        mask = data.where(probe)
        mine, against, here = deltas[:, mask], loss[mask][None], blocks[mask]
        for statistic, measured in STATISTICS.items():
            kept = [slice(None), *(here != b for b in np.unique(here))]
            value, *rest = (measured(mine[:, k], against[:, k]) for k in kept)
            found.append(
                pl.DataFrame(
                    {
                        "probe": probe,
                        "head": list(data.heads),
                        "form": None,
                        "control": False,
                        "pair": PAIRS[2],
                        "statistic": statistic,
                        "value": value,
                        "se": jackknife_se(np.stack(rest)),
                        "df": len(rest) - 1,
                        "tokens": len(here),
                    },
                    schema_overrides={"form": pl.String},
                )
            )
    return found


def with_intervals(table: pl.DataFrame) -> pl.DataFrame:
    """The table with the ends of the 95 % interval (Student t), ``low`` and ``high``."""
    half = stats.t.ppf(0.975, table["df"].to_numpy()) * table["se"].to_numpy()
    return table.with_columns(low=pl.col("value") - half, high=pl.col("value") + half)


def hexagons(x: Array, y: Array, lattice: tuple[int, int]) -> dict[str, Any]:
    """Counts of points in a hexagonal lattice over the bulk of the points.

    The lattice is that of two rectangular ones, shifted by half a cell against each other.

    Returns:
        Columns ``x``, ``y`` (centers of hexagons that hold any point), ``count``, ``width`` and
        ``height`` of the lattice's cell, and ``outside``, the points beyond the axes.
    """
    low, high = (np.quantile([x, y], q, axis=1) for q in (TAIL, 1 - TAIL))
    span = np.where(high > low, high - low, 1.0)
    cell = span / np.array(lattice)
    inside = ((x >= low[0]) & (x <= high[0])) & ((y >= low[1]) & (y <= high[1]))
    points = (np.stack([x, y], 1)[inside] - low) / cell
    whole, shifted = np.round(points), np.floor(points) + 0.5
    weight = np.array([1.0, 3.0])
    nearer = ((points - whole) ** 2 * weight).sum(1) < ((points - shifted) ** 2 * weight).sum(1)
    centers, count = np.unique(
        np.where(nearer[:, None], whole, shifted), axis=0, return_counts=True
    )
    at = low + centers * cell
    return {
        "x": at[:, 0],
        "y": at[:, 1],
        "count": count.astype(np.int64),
        "width": float(cell[0]),
        "height": float(cell[1]),
        "outside": int((~inside).sum()),
    }


def panels(data: PerToken, domains: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(figure, probe, head, pair) of every density that the figures show."""
    for subset in SUBSETS:
        place = place_of(subset, domains)
        if place is not None and place.probe in data.probes:
            yield from (("fig7", place.probe, h, PAIRS[0]) for h in HEADS if h in data.heads)
    if HEAD_31 in data.heads:
        for probe in data.probes:
            yield from (("fig31", probe, HEAD_31, pair) for pair in PAIRS)


def densities(data: PerToken, deltas: Array, domains: dict[str, Any]) -> pl.DataFrame:
    """Hexagons of every panel of Figures 7 and 31, published form."""
    rows = []
    for figure, probe, head, pair in panels(data, domains):
        mask = data.where(probe)
        quantity = {
            "susceptibility": data.of(head, "chi")[0][mask],
            "ablation": deltas[data.heads.index(head), mask],
            "loss": data.tokens["loss"].to_numpy()[mask],
        }
        one, two = pair.split("-")
        found = hexagons(quantity[one], quantity[two], LATTICE[figure])
        keys = {"figure": figure, "probe": probe, "head": head, "pair": pair}
        rows.append(pl.DataFrame({**keys, **found, "tokens": int(mask.sum())}))
    return pl.concat(rows) if rows else pl.DataFrame()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    data = load_per_token(results)
    deltas = load_ablation(results, data)
    settings = read_json(results / "config.json")["two_layer"]["per_token"]
    sources = [(data, False)]
    if data.step in settings["control_checkpoints"]:
        control = load_per_token(results, control=True, step=data.step)
        if not control.tokens.equals(data.tokens):
            raise ValueError(
                f"{folder_of(results, data.step, control=True)}: the n_beta = 0 control has other "
                "tokens than the susceptibilities: delete both and build them again"
            )
        sources.append((control, True))
    correlations, allowed = without_susceptibility(data, deltas), []
    for source, is_control in sources:
        for form in FORMS:
            correlations += of_form(source, deltas, form, is_control)
        table = pl.read_parquet(folder_of(results, data.step, is_control) / RELIABILITY)
        allowed.append(ceilings(table, source.chains, is_control))
    domains = read_json(results / "tokens" / "manifest.json")["domains"]
    tables = {
        "correlations": with_intervals(pl.concat(correlations)),
        "ceilings": pl.concat(allowed),
        "density": densities(data, deltas, domains),
    }
    for name, table in tables.items():
        with atomic_path(results / FOLDER / f"{name}.parquet") as path:
            table.with_columns(pl.col(pl.Float64).fill_nan(None)).write_parquet(path)
        print(f"{name}: {len(table)} rows")


if __name__ == "__main__":
    run(main)
