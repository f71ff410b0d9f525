"""Errors of statistics over tokens: blocks keep contexts whole, intervals cover the truth."""

from __future__ import annotations

import numpy as np
import polars as pl

from susceptibilities.jackknife import jackknife_se
from susceptibilities.token_errors import context_blocks, measure, measure_array


def tokens(contexts: int, length: int, probes: tuple[str, ...] = ("a", "b")) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"probe": probe, "context": context, "position": position}
            for probe in probes
            for context in range(5, 5 + contexts)
            for position in range(1, length)
        ]
    )


def test_blocks_hold_whole_contexts_of_every_probe() -> None:
    table = tokens(12, 4)
    blocks = context_blocks(table)
    assert sorted(set(blocks)) == list(range(10))
    per_context = table.with_columns(block=blocks).group_by("probe", "context")
    assert (per_context.agg(pl.col("block").n_unique())["block"] == 1).all()
    for block in range(10):
        assert set(table.filter(blocks == block)["probe"]) == {"a", "b"}
    assert context_blocks(tokens(3, 4)).max() == 2  # no empty block


def test_the_interval_of_a_mean_covers_the_truth() -> None:
    """Chains, contexts and tokens each add noise; 95 % intervals cover about 95 % of the time."""
    rng = np.random.default_rng(0)
    table = tokens(20, 6, ("a",))
    blocks = context_blocks(table)
    context = table["context"].to_numpy() - 5
    covered, runs = 0, 300
    for _ in range(runs):
        by_context = rng.normal(size=20)[context] + 0.5 * rng.normal(size=len(table))
        chains = by_context + 0.8 * rng.normal(size=(6, 1)) + 0.3 * rng.normal(size=(6, len(table)))
        left_out = np.stack([np.delete(chains, c, 0).mean(0) for c in range(6)])
        found = measure(lambda x, keep: x[keep].mean(), chains.mean(0), left_out, blocks)
        low, high = found.interval()
        covered += low <= 0.0 <= high
    assert found.df == 5
    assert 0.92 <= covered / runs <= 0.995


def test_arrays_are_measured_entry_by_entry() -> None:
    rng = np.random.default_rng(1)
    table = tokens(10, 5, ("a",))
    blocks = context_blocks(table)
    values, replicates = rng.normal(size=(3, len(table))), rng.normal(size=(4, 3, len(table)))
    value, se = measure_array(lambda x, keep: x[:, keep].mean(1), values, replicates, blocks)
    one = measure(lambda x, keep: x[keep].mean(), values[1], replicates[:, 1], blocks)
    assert np.isclose(value[1], one.value) and np.isclose(se[1], one.se)
    rest = [values[1][blocks != b].mean() for b in range(10)]
    chain = jackknife_se(replicates[:, 1].mean(1))
    assert np.isclose(one.se, np.hypot(chain, jackknife_se(np.array(rest))))
