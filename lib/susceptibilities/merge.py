"""Shards of components and blocks of tokens -> one susceptibility matrix, little of it at a time.

A block of tokens is what was evaluated along one run of the chains, its shards are groups of
components of it, the unrestricted chains in one of them. The chains of a component have the same
draws in every block, so that all rows of a column are estimated from the same draws.

Whether a component's control variate is used is decided once, by the check over the tokens of all
blocks (`sampled.choose`). The shards are therefore read three times where they have one, and once
where they have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .control_variate import Estimator, estimator_table, names_of
from .estimators import FORMS
from .jackknife import jackknife_se
from .matrix import MATRIX, TOKENS, RowWriter, chunk_rows, matrix_arrays
from .moments import Array
from .sampled import Sampled, choose
from .shard_checks import check_blocks, open_block, table_checks
from .store import atomic_path, file_sha256
from .token_estimates import TokenMoments, estimates

ESTIMATOR = "estimator.parquet"

# Attributes that the matrix has from its shards.
_KEPT = ("step", "n_beta", "localization", "draws", "sampler", "evaluation", "seed")


def merge_shards(
    blocks: Sequence[Sequence[Path]],
    tokens: Sequence[pl.LazyFrame],
    out: Path,
    components: Sequence[str],
    model: str,
    estimator: Estimator = "checked",
    forms: Sequence[str] = FORMS,
) -> None:
    """Write the matrix of all shards to the folder ``out``, which is replaced as a whole.

    Memory does not grow with the tokens, but for 16 bytes a token of one block (losses at w*) and
    for the table, which polars streams; every open shard takes about 50 kB.

    Args:
        blocks: of every block of tokens, its shards: stores of `token_sampling.sample_tokens`.
        tokens: of every block its `token_table`; contexts of a probe numbered through.
        components: the columns, all that the model has (`components.component_names`). The
            shards must hold them and ``full``; columns are in the order of `naming`.
        model: label of the model.
        estimator: of the means over chains; ``checked`` decides for every component by all tokens.

    Raises:
        FileNotFoundError: a shard is not there.
        ValueError: a component is missing or there twice in a block, a block is given twice,
            shards are of different runs or have different draws, a component has fewer than two
            healthy chains, a table is of other tokens, or a value is not finite.
    """
    if not blocks or len(blocks) != len(tokens):
        raise ValueError(
            f"expected one token table a block and at least one block, found {len(blocks)} blocks "
            f"and {len(tokens)} tables"
        )
    opened = [open_block(n, paths, components) for n, paths in enumerate(blocks)]
    check_blocks(opened, blocks)
    table_checks(opened, tokens)
    pieces = list(_pieces(opened, chunk_rows(len(components))))
    choice = choose([piece for _, piece in pieces], estimator)

    first, counts = opened[0], [block.tokens for block in opened]
    names = first.components[1:]  # without the unrestricted chains
    used = dict(zip(first.components, names_of(choice.used), strict=True))
    attributes = {
        **{name: first.attrs[name] for name in _KEPT if name in first.attrs},
        "component": list(names),
        "model": model,
        "run": first.attrs.get("run", first.attrs["identity"]),
        "blocks": [block.attrs["identity"] for block in opened],
        "block_tokens": counts,
        "device": sorted({d for block in opened for d in _devices(block)}),
        "estimator": [used[name] for name in names],
    }
    with atomic_path(out) as temporary:
        temporary.mkdir()
        (
            pl.concat([table.drop("index", strict=False) for table in tokens])
            .with_row_index("index")
            .cast({"index": pl.Int64})
            .sink_parquet(temporary / TOKENS)
        )
        attributes["tokens_sha256"] = file_sha256(temporary / TOKENS)
        sizes = {"half": 2, "token": sum(counts), "component": len(names)}
        arrays = matrix_arrays(forms)
        writer = RowWriter(temporary / MATRIX, sizes, arrays, attributes, "nats squared")
        for row, piece in pieces:
            writer.write(row, _entries(TokenMoments.chosen(piece, choice), forms))
        table = estimator_table(first.components, list(used.values()), choice.check)
        table.write_parquet(temporary / ESTIMATOR)


def _devices(block: Sampled) -> list[str]:
    return [str(shard.attrs["device"]) for shard in block.shards if "device" in shard.attrs]


def _pieces(opened: Sequence[Sampled], step: int) -> Iterator[tuple[int, Sampled]]:
    """First row of the matrix and the moments of some tokens, chunk by chunk of the matrix."""
    before = 0
    for block in opened:
        after = before + block.tokens
        start = before
        while start < after:
            stop = min(after, (start // step + 1) * step)
            yield start, block.at(slice(start - before, stop - before))
            start = stop
        before = after


def halves_of(healthy: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """The healthy chains of one component, (chain,), dealt to two halves in turn."""
    chains = np.flatnonzero(healthy).tolist()
    return chains[0::2], chains[1::2]


def _entries(moments: TokenMoments, forms: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Rows of every array of the matrix, without the unrestricted chains' column."""
    names = [place for place in range(len(moments.components)) if place != moments.full]
    sizes = {"half": 2, "token": moments.moments.mean_y.shape[-1], "component": len(names)}
    found = {
        name: np.empty([sizes[d] for d in axes], np.float32)
        for name, axes in matrix_arrays(forms).items()
    }
    full = [moments.full_mean(half) for half in halves_of(moments.healthy[moments.full])]
    for place, (value, replicates) in enumerate(estimates(moments)):
        if place == moments.full:
            continue
        column = names.index(place)
        halves = [
            moments.parts(place, half, mean)
            for half, mean in zip(halves_of(moments.healthy[place]), full, strict=True)
        ]
        for form in forms:
            _finite(value[form], moments.components[place], form)
            found[form][:, column] = value[form]
            found[f"{form}_se"][:, column] = jackknife_se(replicates[form])
            found[f"{form}_half"][..., column] = np.stack([half[form] for half in halves])
    return found


def _finite(values: Array, component: str, form: str) -> None:
    if bad := int((~np.isfinite(values)).sum()):
        raise ValueError(
            f"component {component}: {bad} of {len(values)} tokens have a {form} that is not "
            "finite; its shard is damaged, or a chain diverged unseen: sample it again"
        )
