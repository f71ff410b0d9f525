"""Whether shards are those of one matrix: complete, of one run, with the same draws, aligned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from .sampled import Sampled
from .store import open_zarr

# Chains with the same random numbers differ by rounding on another kind of device, relative to
# the size of what is compared; chains with others by about the size itself.
_ROUNDING = 1e-3
# A token's loss at w* in its table and in its shard: the same number, or that of another token.
_LOSS = 1e-4
# What can differ between runs, in the words of a shard's attributes.
_SETTINGS = ("step", "sampler", "evaluation", "seed")


def open_block(number: int, paths: Sequence[Path], components: Sequence[str]) -> Sampled:
    """The shards of one block of tokens, with every component and ``full`` exactly once.

    Raises:
        FileNotFoundError: a shard is not there.
        ValueError: a component is missing, there twice or unknown, or shards are of different
            runs.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"block {number}: no shard {path}; sample it first")
    shards = [open_zarr(path) for path in paths]
    holders: dict[str, list[Path]] = {}
    for path, shard in zip(paths, shards, strict=True):
        for name in shard.attrs["component"]:
            holders.setdefault(name, []).append(path)
    expected = {"full", *components}
    if missing := [name for name in ("full", *components) if name not in holders]:
        raise ValueError(
            f"block {number}: no shard holds {', '.join(missing)}; found {len(holders)} components "
            f"in {_listed(paths)}: add the shards of the others"
        )
    for name, found in holders.items():
        if len(found) > 1:
            raise ValueError(
                f"block {number}: component {name} is in {_listed(found)}; give every shard once"
            )
        if name not in expected:
            raise ValueError(
                f"block {number}: {found[0]} holds component {name}, which is not among the "
                f"{len(components)} of this matrix"
            )
    for path, shard in zip(paths, shards, strict=True):
        if shard.attrs["identity"] != shards[0].attrs["identity"]:
            differ = _differing(shard.attrs, shards[0].attrs) or "model or text"
            raise ValueError(
                f"block {number}: {path} and {paths[0]} are of different runs: {differ} differ; "
                "sample one of them again"
            )
    return Sampled.of(shards)


def _listed(paths: Sequence[Path]) -> str:
    return " and ".join(str(path) for path in paths)


def _differing(one: dict, other: dict) -> str:
    return ", ".join(name for name in _SETTINGS if one.get(name) != other.get(name))


def check_blocks(opened: Sequence[Sampled], paths: Sequence[Sequence[Path]]) -> None:
    """Blocks are of one run, have the same draws, and none is given twice.

    Raises:
        ValueError: they are not.
    """
    first = opened[0]
    seen: dict[str, int] = {}
    for number, block in enumerate(opened):
        identity = block.attrs["identity"]
        if identity in seen:
            raise ValueError(
                f"blocks {seen[identity]} and {number} hold the same tokens: "
                f"{paths[seen[identity]][0]} and {paths[number][0]}"
            )
        seen[identity] = number
        if number == 0:
            continue
        if "run" not in block.attrs or "run" not in first.attrs:
            raise ValueError(
                f"block {number}: its shards, or those of block 0, do not say which run they are "
                "of; sample them again with this version"
            )
        if block.attrs["run"] != first.attrs["run"]:
            differ = _differing(block.attrs, first.attrs) or "model, base or pool"
            raise ValueError(
                f"blocks 0 and {number} are of different runs: {differ} differ "
                f"({paths[0][0]}, {paths[number][0]}); sample one of them again"
            )
        _same_draws(first, block, number)


def _same_draws(first: Sampled, block: Sampled, number: int) -> None:
    for name in ("healthy", "draws", "mean_g", "square_g", "control_g"):
        mine, other = getattr(block, name), getattr(first, name)
        if mine is None or other is None:  # the same for both: settings are in the identity
            continue
        for component, a, b in zip(first.components, mine, other, strict=True):
            counted = first.healthy[first.components.index(component)]
            if a.ndim and name != "healthy":
                a, b = a[counted], b[counted]
            size = np.abs(np.asarray(b, np.float64)).max()
            difference = np.abs(np.asarray(a, np.float64) - b).max()
            if not difference <= _ROUNDING * size:
                raise ValueError(
                    f"component {component} has other chains in block {number} than in block 0: "
                    f"{name} differs by {difference:.3g} of {size:.3g}. The same settings, seed "
                    "and version give the same draws: sample one of the blocks again"
                )


def table_checks(opened: Sequence[Sampled], tables: Sequence[pl.LazyFrame]) -> None:
    """Every table has the tokens of its block, and no context is in two of them.

    Raises:
        ValueError: it has not.
    """
    contexts = []
    for number, (block, table) in enumerate(zip(opened, tables, strict=True)):
        losses = table.select("loss").collect()["loss"].to_numpy()
        star = block.shards[0]["star"].values
        if len(losses) != len(star):
            raise ValueError(
                f"block {number}: its shards have {len(star)} tokens, its table {len(losses)} rows"
            )
        wrong = ~(np.abs(losses - star) <= _LOSS)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"block {number}: {wrong.sum()} of {len(star)} losses at w* in its table are not "
                f"those of its shards, the first in row {row}: {losses[row]:.4g}, expected "
                f"{star[row]:.4g}. The table must have the tokens in the order of evaluation"
            )
        place = pl.lit(number).alias("block")
        contexts.append(table.select("probe", "context", place).unique())
    shared = (
        pl.concat(contexts)
        .group_by("probe", "context")
        .agg(pl.col("block").sort())
        .filter(pl.col("block").list.len() > 1)
        .sort("probe", "context")
        .collect()
    )
    if len(shared):
        probe, context, blocks = shared.row(0)
        raise ValueError(
            f"context {context} of {probe} is in the tables of blocks {blocks}; number the "
            "contexts of a probe through (token_table's `first`)"
        )
