"""Mean and variance of per-token susceptibilities by context length: curves, heads, shared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from length_statistics import (
    Layout,
    measure_signal,
    quarter_weights,
    rise_weights,
    shared_curve,
    signal_variances,
    spread,
)

from susceptibilities.console import Progress, run
from susceptibilities.cubes import FORMS, long
from susceptibilities.jackknife import Array, Estimate
from susceptibilities.naming import head_of
from susceptibilities.per_token import PerToken, load_per_token
from susceptibilities.store import atomic_path
from susceptibilities.token_errors import context_blocks, measure_array

FOLDER = "baker2025/s4_4_context_length"
# The mean over domains, every domain of the same weight; no probe has this name.
POOLED = "all domains"
SOURCES = ("run", "control")


def sources(results: Path) -> dict[str, PerToken]:
    """The run's per-token susceptibilities and, where there are any, the n_beta = 0 control's."""
    found = {"run": load_per_token(results)}
    try:
        found["control"] = load_per_token(results, control=True)
    except FileNotFoundError:
        print("no n_beta = 0 control: it is left out")
    return found


def heads_of(data: PerToken) -> list[str]:
    """The heads in the order of layers and numbers; shards may have been joined in another."""
    return sorted(data.heads, key=lambda name: head_of(name) or (0, 0))


def head_values(data: PerToken, form: str) -> tuple[Array, Array]:
    """(head, token) and (chain, head, token) of one form, in the order of ``heads_of``."""
    places = [data.components.index(head) for head in heads_of(data)]
    return data.value[form][places], data.replicates[form][:, places].astype(np.float64)


def head_quantities(layout: Layout, values: Array, keep: np.ndarray) -> Array:
    """Of every head (head, quantity, probe + 1): rise, quarters, both over the head's spread, and
    the variance over tokens of one length, averaged over lengths."""
    means = layout.means(values, keep)
    rise = means @ rise_weights(layout.lengths)
    quarters = means @ quarter_weights(layout.lengths)
    own = spread(layout, values, keep)[:, None]
    variance = layout.variances(values, keep).mean(-1)
    stacked = np.stack([rise, rise / own, quarters, quarters / own, variance], 1)
    return layout.with_pool(stacked[..., None])[..., 0]


QUANTITIES = ("rise", "rise_sd", "quarters", "quarters_sd", "variance")


def analyse(data: PerToken, form: str) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Tables ``curves``, ``heads`` and ``shared`` of one form."""
    layout = Layout.of(data.tokens)
    bins = layout.bins
    blocks = context_blocks(data.tokens)
    values, replicates = head_values(data, form)
    probes = [*layout.probes, POOLED]

    def curves(values: Array, keep: np.ndarray) -> Array:
        mean = bins.average(layout.with_pool(layout.means(values, keep)))
        own = spread(layout, values, keep)[:, None, None]
        variance = bins.average(layout.with_pool(layout.variances(values, keep)))
        return np.stack([mean, mean / own, variance])

    def signals(chains: Array, keep: np.ndarray) -> Array:
        by_length = layout.with_pool(signal_variances(layout, chains, keep))
        # The bins, and after them the mean over lengths.
        return np.concatenate([bins.average(by_length), by_length.mean(-1, keepdims=True)], -1)

    curve, curve_se = measure_array(curves, values, replicates, blocks)
    by_head = [(values[i], replicates[:, i]) for i in range(len(heads_of(data)))]
    clean = [measure_signal(signals, v, r, blocks) for v, r in by_head]
    signal, signal_se = (np.stack([found[i] for found in clean]) for i in (0, 1))
    contexts = np.full(len(probes), layout.contexts)
    contexts[-1] *= len(layout.domains)
    size = contexts[:, None] * (bins.high - bins.low + 1)
    axes: list[tuple[str, Sequence[object]]] = [("component", heads_of(data)), ("probe", probes)]
    table = long(
        [*axes, ("bin", range(len(bins.low)))],
        low=bins.low,
        high=bins.high,
        center=bins.center,
        tokens=size,
        mean=curve[0],
        mean_se=curve_se[0],
        scaled=curve[1],
        scaled_se=curve_se[1],
        variance=curve[2],
        variance_se=curve_se[2],
        signal=signal[..., :-1],
        signal_se=signal_se[..., :-1],
    )

    def quantities(values: Array, keep: np.ndarray) -> Array:
        return head_quantities(layout, values, keep)

    value, se = measure_array(quantities, values, replicates, blocks)
    heads = long(
        [("component", heads_of(data)), ("quantity", [*QUANTITIES, "signal"]), ("probe", probes)],
        value=np.concatenate([value, signal[:, None, :, -1]], 1),
        se=np.concatenate([se, signal_se[:, None, :, -1]], 1),
    )

    def one_curve(chains: Array, keep: np.ndarray) -> Array:
        return shared_curve(layout, chains, keep)

    (share, trace), (share_se, trace_se) = measure_signal(one_curve, values, replicates, blocks)
    df = min(data.chains, len(np.unique(blocks))) - 1
    # Where the curves are not clear of noise there is nothing to share.
    clear = Estimate(float(trace), float(trace_se), df).interval()[0] > 0
    shared = pl.DataFrame(
        {"share": [float(share) if clear else None], "se": [float(share_se) if clear else None]},
        schema={"share": pl.Float64, "se": pl.Float64},
    )
    return table, heads, shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    report = Progress()
    roles = pl.read_parquet(results / "structure" / "heads.parquet")
    roles = roles.filter(pl.col("step") == roles["step"].max()).select(
        component="head", role="role"
    )
    found: dict[str, list[pl.DataFrame]] = {"curves": [], "heads": [], "shared": []}
    for source, data in sources(results).items():
        for form in FORMS:
            for name, table in zip(found, analyse(data, form), strict=True):
                keys = [pl.lit(source).alias("source"), pl.lit(form).alias("form")]
                found[name].append(table.select(*keys, pl.all()))
            report(f"{source}, {form}: {data.step}")
    for name, tables in found.items():
        table = pl.concat(tables)
        if name != "shared":
            layers = [(head_of(h) or (0, 0))[0] for h in table["component"]]
            table = table.with_columns(layer=pl.Series(layers)).join(
                roles, on="component", how="left", maintain_order="left"
            )
        with atomic_path(results / FOLDER / f"{name}.parquet") as path:
            table.write_parquet(path)
    print(pl.concat(found["shared"]))


if __name__ == "__main__":
    run(main)
