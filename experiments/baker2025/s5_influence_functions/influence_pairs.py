"""Mean influence over kinds of pairs of tokens, by contexts, and how much of it is signal.

Reads the losses along chains that `influence_sample.py` keeps. Every number has the jackknife
error over chains and that over domains (over sequences, for those that repeat), added in squares.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
from influence_kinds import REPEATS, Array, Pairs, correlation_by_unit, kinds_of_pairs

from susceptibilities.console import run
from susceptibilities.diagnostics import unhealthy
from susceptibilities.influence import (
    BAKER,
    CORRELATION,
    Convention,
    CrossMoments,
    influence,
    merge_all,
)
from susceptibilities.jackknife import jackknife_se
from susceptibilities.store import atomic_path, open_zarr, write_json

FOLDER = "baker2025/s5_influence_functions"
CONVENTIONS: dict[str, Convention] = {"correlation": CORRELATION, "influence": BAKER}
RUNS = ("posterior", "control")
# Ways to split the chains in halves that are averaged over.
SPLITS = 10

# What is compared: the first kind of pair minus the second.
COMPARISONS = (
    ("same context", "other domain"),
    ("same domain", "other domain"),
    ("same context, other token", "other domain, other token"),
    ("same domain, other token", "other domain, other token"),
    ("same context, same token", "same context, other token"),
    ("same domain, same token", "same domain, other token"),
    ("other domain, same token", "other domain, other token"),
    ("second copy", "first copy"),
    ("copies of a token", "other tokens of both copies"),
)


@dataclass(frozen=True)
class Measured:
    """A mean with what its errors are made from.

    Attributes:
        value: over all chains and units.
        chains: with each chain left out; units: with each unit left out.
    """

    value: float
    chains: Array
    units: Array

    def minus(self, other: Measured) -> Measured:
        """The difference; both must come from the same chains and units."""
        return Measured(
            self.value - other.value, self.chains - other.chains, self.units - other.units
        )

    def row(self) -> dict[str, float]:
        """Columns of a table: value, standard error, its two parts, degrees of freedom."""
        units = self.units[np.isfinite(self.units)]
        parts = [jackknife_se(self.chains), jackknife_se(units) if len(units) > 1 else np.nan]
        return {
            "value": self.value,
            "se": float(np.hypot(*parts)),
            "se_chains": float(parts[0]),
            "se_units": float(parts[1]),
            "df": float(min(len(self.chains), len(units)) - 1),
        }


def measure(pairs: Pairs, value: Array, replicates: Array) -> Measured:
    """Mean influence over pairs from the matrix (N, N) and its replicates (chain, N, N)."""
    means = pairs.means(value)
    # A unit without such a pair is no replicate.
    units = np.where(np.isin(np.arange(pairs.count), pairs.here), means[1:], np.nan)
    chains = np.array([r[pairs.first, pairs.second].mean() for r in replicates])
    return Measured(float(means[0]), chains, units)


def load_runs(folder: Path) -> dict[str, Array]:
    """Traces (chain, draw, token) of both runs, of the chains that are healthy in both.

    Chains of one number have the same noise, so they are kept or left out together.
    """
    stores = {name: open_zarr(folder / f"{name}.zarr").load() for name in RUNS}
    reasons = [
        unhealthy(
            data["died"].values,
            data["distance"].values,
            int(data["size"]),
            float(data.attrs["sampler"]["localization"]),
        )
        for data in stores.values()
    ]
    kept = [not any(found) for found in zip(*reasons, strict=True)]
    return {name: data["shift"].values[kept].astype(np.float64) for name, data in stores.items()}


def context_table(tokens: pl.DataFrame, value: Array, replicates: Array) -> pl.DataFrame:
    """Mean over the pairs of tokens of every two contexts, a token with itself left out."""
    number = tokens.select(pl.struct("domain", "context").rle_id()).to_series().to_numpy()
    member = (number[:, None] == np.arange(number.max() + 1)).astype(np.float64)
    size = member.sum(0)
    pairs = np.outer(size, size) - np.diag(size)

    def mean(matrix: Array) -> Array:
        return (member.T @ matrix @ member - np.diag(member.T @ np.diag(matrix))) / pairs

    se = jackknife_se(np.stack([mean(r) for r in replicates]))
    labels = tokens.select("domain", "context").unique(maintain_order=True)
    rows, columns = np.indices(pairs.shape).reshape(2, -1)
    return pl.DataFrame(
        {
            "domain": labels["domain"].to_numpy()[rows],
            "context": labels["context"].to_numpy()[rows],
            "other_domain": labels["domain"].to_numpy()[columns],
            "other_context": labels["context"].to_numpy()[columns],
            "value": mean(value).ravel(),
            "se": se.ravel(),
        }
    )


def reliability_table(traces: Array, tokens: pl.DataFrame) -> pl.DataFrame:
    """Correlation between influences from ``m`` chains and from ``m`` others, by kind of pair.

    Over pairs of tokens from different contexts of text, all and those with the same predicted
    token, and over pairs of contexts. No Spearman-Brown correction; the error is a jackknife
    over domains.
    """
    kinds = kinds_of_pairs(tokens)
    sets = {
        "tokens": [k for k in ("same domain", "other domain") if k in kinds],
        "same token": [
            k for k in ("same domain, same token", "other domain, same token") if k in kinds
        ],
    }
    text = tokens.with_row_index("place").filter(pl.col("domain") != REPEATS)
    parts = CrossMoments.of(traces, traces)
    rows = []
    for size in range(1, len(traces) // 2 + 1):
        splits = [
            (one, two)
            for one in combinations(range(len(traces)), size)
            for two in combinations([c for c in range(len(traces)) if c not in one], size)
            if one < two
        ]
        # Evenly spread over all of them.
        chosen = np.unique(np.linspace(0, len(splits) - 1, SPLITS).astype(int))
        found: dict[str, list[Array]] = {}
        for one, two in (splits[i] for i in chosen):
            halves = [CORRELATION.apply(merge_all(parts[c] for c in s)) for s in (one, two)]
            for name, members in sets.items():
                if members:
                    r = correlation_by_unit([kinds[k] for k in members], *halves)
                    found.setdefault(name, []).append(r)
            found.setdefault("contexts", []).append(_context_correlation(text, *halves))
        for name, values in found.items():
            r = np.mean(values, 0)
            left_out = r[1:][np.isfinite(r[1:])]
            rows.append(
                {
                    "pairs": name,
                    "chains": size,
                    "draws": size * traces.shape[1],
                    "reliability": float(r[0]),
                    "se": float(jackknife_se(left_out)) if len(left_out) > 1 else float("nan"),
                }
            )
    return pl.DataFrame(rows)


def _context_correlation(text: pl.DataFrame, one: Array, two: Array) -> Array:
    """The same over pairs of different contexts, each a mean over its pairs of tokens."""
    place = text["place"].to_numpy()
    number = text.select(pl.struct("domain", "context").rle_id()).to_series().to_numpy()
    member = (number[:, None] == np.arange(number.max() + 1)).astype(np.float64)
    member /= member.sum(0)
    means = [member.T @ m[np.ix_(place, place)] @ member for m in (one, two)]
    domains = text.unique(["domain", "context"], maintain_order=True)["domain"]
    unit = domains.rle_id().to_numpy().astype(np.int64)
    first, second = np.triu_indices(len(unit), 1)
    pairs = Pairs(first, second, (unit[first], unit[second]), int(unit.max()) + 1)
    return correlation_by_unit([pairs], *means)


def losses_along(traces: Array, tokens: pl.DataFrame) -> dict[str, float]:
    """How far the chains are from w*: rise of the text's loss, and by how much the second copy of
    a repeated sequence is easier than the first (nats), at w* and along the chains."""
    text = (tokens["domain"] != REPEATS).to_numpy()
    rise = traces[..., text].mean((1, 2))
    position = tokens["position"].to_numpy()
    late = ~text & (position > position[~text].max() // 2)
    early = ~text & ~late
    loss = tokens["loss"].to_numpy()
    star = float(loss[early].mean() - loss[late].mean())
    change = traces[..., early].mean((1, 2)) - traces[..., late].mean((1, 2))
    return {
        "chains": len(traces),
        "draws": traces.shape[1],
        "rise": float(rise.mean()),
        "rise_se": float(rise.std(ddof=1) / np.sqrt(len(rise))),
        "gain_star": star,
        "gain": star + float(change.mean()),
        "gain_se": float(change.std(ddof=1) / np.sqrt(len(change))),
    }


def tables(tokens: pl.DataFrame, runs: Mapping[str, Array]) -> dict[str, pl.DataFrame]:
    """All tables from the tokens and the traces of both runs."""
    kinds = kinds_of_pairs(tokens)
    means, differences, contexts, sequence = [], [], [], []
    shown = tokens.with_row_index("place").filter(
        (pl.col("domain") == REPEATS) & (pl.col("context") == 0)
    )
    place = shown["place"].to_numpy()
    for name, convention in CONVENTIONS.items():
        found: dict[str, dict[str, Measured]] = {}
        for run_name, traces in runs.items():
            estimate = influence(CrossMoments.of(traces, traces), convention)
            values = (estimate.value, estimate.replicates)
            found[run_name] = {kind: measure(p, *values) for kind, p in kinds.items()}
            if name == "correlation":
                table = context_table(tokens, *values)
                contexts.append(table.with_columns(run=pl.lit(run_name)))
                rows, columns = np.indices((len(place), len(place))).reshape(2, -1)
                sequence.append(
                    pl.DataFrame(
                        {
                            "position": shown["position"].to_numpy()[rows],
                            "other_position": shown["position"].to_numpy()[columns],
                            "value": estimate.value[np.ix_(place, place)].ravel(),
                        }
                    ).with_columns(run=pl.lit(run_name))
                )
        found["posterior - control"] = {
            kind: found["posterior"][kind].minus(found["control"][kind]) for kind in kinds
        }
        for run_name, measured in found.items():
            labels = {"form": name, "run": run_name}
            means += [
                {**labels, "kind": kind, "pairs": len(kinds[kind].first), **m.row()}
                for kind, m in measured.items()
            ]
            differences += [
                {**labels, "kind": a, "minus": b, **measured[a].minus(measured[b]).row()}
                for a, b in COMPARISONS
                if a in kinds and b in kinds
            ]
    reliability = [
        reliability_table(traces, tokens).with_columns(run=pl.lit(name))
        for name, traces in runs.items()
    ]
    return {
        "pairs": pl.DataFrame(means),
        "differences": pl.DataFrame(differences),
        "contexts": pl.concat(contexts),
        "sequence": pl.concat(sequence),
        "reliability": pl.concat(reliability),
        "chains": pl.DataFrame(
            [{"run": name, **losses_along(traces, tokens)} for name, traces in runs.items()]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    folder: Path = parser.parse_args().results / FOLDER
    made = tables(pl.read_parquet(folder / "tokens.parquet"), load_runs(folder))
    for name, table in made.items():
        with atomic_path(folder / f"{name}.parquet") as path:
            table.write_parquet(path)
    # Nothing of the papers is measured here: eq. 49 is stated, without a number.
    write_json(folder / "measured.json", {})
    for row in made["chains"].iter_rows(named=True):
        print(
            f"{row['run']}: loss {row['rise']:.3f} ± {row['rise_se']:.3f} above w*; second copy "
            f"easier by {row['gain']:.3f} ± {row['gain_se']:.3f} (at w* {row['gain_star']:.3f})"
        )
    for row in made["pairs"].filter(pl.col("form") == "correlation").iter_rows(named=True):
        print(f"{row['run']}, {row['kind']}: {row['value']:.4f} ± {row['se']:.4f}")
    for row in made["reliability"].iter_rows(named=True):
        found = f"{row['reliability']:.3f} ± {row['se']:.3f}"
        print(f"{row['run']}, reliability over {row['pairs']}, {row['draws']} draws: {found}")


if __name__ == "__main__":
    run(main)
