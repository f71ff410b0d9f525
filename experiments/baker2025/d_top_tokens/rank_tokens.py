"""Tokens with the largest susceptibilities: ranked occurrences, lists, counts, and agreement.

Appendix D (the top three distinct tokens of every head and dataset), Appendix E and Figure 30
(which tokens the top k are), and what the paper does not give: how much of each top k comes back
from other chains, other heads and chains that know no loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from top_ranking import (
    FOLDER,
    SIGNS,
    Inputs,
    distinct,
    halves,
    list_k,
    load_inputs,
    overlaps,
    ranked,
    scaled_k,
    shared,
    three_heads,
    top_masks,
)
from top_sample import sample

from susceptibilities.console import run
from susceptibilities.cubes import PARTS
from susceptibilities.estimators import FORMS
from susceptibilities.highlight import save_highlight
from susceptibilities.jackknife import Array
from susceptibilities.per_token import PerToken
from susceptibilities.store import atomic_path
from susceptibilities.token_errors import context_blocks, measure_array

SHOWN = 10  # occurrences shown for each head, domain and sign
TAIL = 8  # tokens of the context shown before an occurrence

Row = dict[str, Any]


def tail_of(ids: np.ndarray, position: int, strings: list[str]) -> list[str]:
    """The last tokens of the context of the token at ``position``, decoded one by one."""
    return [strings[i] for i in ids[max(0, position - TAIL) : position]]


def heads_of(run_data: PerToken, form: str, mask: np.ndarray) -> tuple[Array, Array]:
    """Values (head, token) and replicates (chain, head, token) of some tokens, heads only."""
    places = [run_data.components.index(head) for head in run_data.heads]
    values = run_data.value[form][places][:, mask]
    return values, run_data.replicates[form][:, places][:, :, mask].astype(np.float64)


def top_rows(inputs: Inputs, probe: str) -> Iterator[Row]:
    """The top occurrences of every head, both signs, with what each value is made of."""
    data, control = inputs.data, inputs.control
    mask = data.where(probe)
    tokens = data.tokens.filter(pl.col("probe") == probe)
    ids = data.context_ids(inputs.results, probe)
    row_of = {c: i for i, c in enumerate(tokens["context"].unique(maintain_order=True))}
    values, replicates = heads_of(data, "chi", mask)
    k = list_k(len(tokens))
    estimates = [half for pair in halves(values, replicates) for half in pair]
    kept = {sign: np.mean([top_masks(e, k)[sign] for e in estimates], axis=0) for sign in SIGNS}
    for place, head in enumerate(data.heads):
        component = data.components.index(head)
        for sign in SIGNS:
            for rank, at in enumerate(ranked(values[place], SHOWN, sign), 1):
                token = tokens.row(int(at), named=True)
                index = np.flatnonzero(mask)[at]
                yield {
                    "component": head,
                    "probe": probe,
                    "sign": sign,
                    "rank": rank,
                    "index": token["index"],
                    "context": token["context"],
                    "position": token["position"],
                    "before": tail_of(
                        ids[row_of[token["context"]]], token["position"], inputs.strings
                    ),
                    "text": token["text"],
                    "value": float(values[place, at]),
                    "se": float(data.se["chi"][component, index]),
                    **{part: float(data.value[part][component, index]) for part in PARTS},
                    "control": float(control.value["chi"][component, index]) if control else None,
                    "loss": token["loss"],
                    "kept": float(kept[sign][place, at]),
                }


def list_rows(inputs: Inputs, name: str, form: str, probe: str) -> Iterator[Row]:
    """The first distinct tokens of every head's top hundred, both signs."""
    source = inputs.runs[name]
    mask = source.where(probe)
    tokens = source.tokens.filter(pl.col("probe") == probe)
    ids = source.context_ids(inputs.results, probe)
    row_of = {c: i for i, c in enumerate(tokens["context"].unique(maintain_order=True))}
    values, _ = heads_of(source, form, mask)
    k = list_k(len(tokens))
    for place, head in enumerate(source.heads):
        for sign in SIGNS:
            order = ranked(values[place], k, sign)
            chosen = tokens["token"].to_numpy()[order]
            different = len(np.unique(chosen))
            for rank, at in enumerate(distinct(chosen.tolist()), 1):
                token = tokens.row(int(order[at]), named=True)
                yield {
                    "run": name,
                    "form": form,
                    "component": head,
                    "probe": probe,
                    "sign": sign,
                    "k": k,
                    "distinct": different,
                    "rank": rank,
                    "token": token["token"],
                    "text": token["text"],
                    "before": tail_of(
                        ids[row_of[token["context"]]], token["position"], inputs.strings
                    )[-2:],
                    "value": float(values[place, order[at]]),
                }


def overlap_rows(inputs: Inputs, name: str, form: str, probe: str) -> Iterator[Row]:
    """Agreement of the top k with other halves, heads, the control and chi; blocks left out.

    ``left_out`` is null for all contexts; the other rows are for the jackknife over blocks.
    """
    source = inputs.runs[name]
    mask = source.where(probe)
    blocks = context_blocks(source.tokens)[mask]
    values, replicates = heads_of(source, form, mask)
    chi = heads_of(inputs.data, "chi", mask)[0]
    control = None
    if inputs.control is not None and name == "posterior":
        control = heads_of(inputs.control, form, mask)
    for left_out in (None, *np.unique(blocks).tolist()):
        keep = np.ones(len(blocks), dtype=bool) if left_out is None else blocks != left_out
        # The same share of fewer tokens.
        k = max(1, round(list_k(int(mask.sum())) * keep.mean()))
        against = None if control is None else (control[0][:, keep], control[1][:, :, keep])
        found = overlaps(values[:, keep], replicates[:, :, keep], k, against)
        tops = top_masks(values[:, keep], k), top_masks(chi[:, keep], k)
        for sign in SIGNS:
            agreed = found[sign]
            with_chi = np.diag(shared(tops[0][sign], tops[1][sign], k))
            for place, head in enumerate(source.heads):
                yield {
                    "run": name,
                    "form": form,
                    "component": head,
                    "probe": probe,
                    "sign": sign,
                    "left_out": left_out,
                    "k": k,
                    "tokens": int(keep.sum()),
                    "halves": float(agreed.own[place]),
                    "opposite": float(agreed.opposite[place]),
                    "heads": float(agreed.others[place]),
                    "control": None if agreed.control is None else float(agreed.control[place]),
                    "chi": float(with_chi[place]),
                    "chance": k / int(keep.sum()),
                }


def count_rows(inputs: Inputs, name: str, form: str, probe: str, k: int) -> Iterator[Row]:
    """How often each token is among the top k of the three heads of Figure 30."""
    source = inputs.runs[name]
    mask = source.where(probe)
    tokens = source.tokens.filter(pl.col("probe") == probe)
    ids, number = np.unique(tokens["token"].to_numpy(), return_inverse=True)
    occurrences = np.bincount(number)
    text = dict(zip(tokens["token"], tokens["text"], strict=True))
    blocks = context_blocks(source.tokens)[mask]
    for head in three_heads(source.heads, inputs.roles):
        values, replicates = (array[..., mask] for array in source.of(head, form))
        for sign in SIGNS:

            def counted(array: Array, keep: np.ndarray, sign: int = sign) -> Array:
                """Counts of every token among the top k, scaled to k where blocks are left out."""
                fewer = max(1, round(k * keep.mean()))
                chosen = number[keep][ranked(array[keep], fewer, sign)]
                return np.bincount(chosen, minlength=len(ids)) * np.float64(k / fewer)

            count, se = measure_array(counted, values, replicates, blocks)
            for place in np.flatnonzero(count):
                yield {
                    "run": name,
                    "form": form,
                    "component": head,
                    "probe": probe,
                    "sign": sign,
                    "k": k,
                    "tokens": len(tokens),
                    "token": int(ids[place]),
                    "text": text[int(ids[place])],
                    "count": round(float(count[place])),
                    "se": float(se[place]),
                    "occurrences": int(occurrences[place]),
                    "expected": k * occurrences[place] / len(tokens),
                }


def tables(inputs: Inputs) -> dict[str, pl.DataFrame]:
    """``top``, ``lists``, ``overlap`` and ``counts``, of every form and of the control's chi."""
    cases = [("posterior", form) for form in FORMS]
    if inputs.control is not None:
        cases.append(("control", "chi"))
    probes = inputs.data.probes
    k = scaled_k(int(inputs.data.where(probes[0]).sum()))
    rows: dict[str, list[Row]] = {
        "top": [row for probe in probes for row in top_rows(inputs, probe)],
        "lists": [],
        "overlap": [],
        "counts": [],
    }
    for name, form in cases:
        for probe in probes:
            rows["lists"] += list_rows(inputs, name, form, probe)
            rows["overlap"] += overlap_rows(inputs, name, form, probe)
            rows["counts"] += count_rows(inputs, name, form, probe, k)
    return {name: pl.DataFrame(found, infer_schema_length=None) for name, found in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    inputs = load_inputs(results)
    for name, table in tables(inputs).items():
        with atomic_path(results / FOLDER / f"{name}.parquet") as path:
            table.write_parquet(path)
        print(f"{name}: {len(table)} rows")
    figure, page = sample(inputs)
    save_highlight(results / FOLDER / "fig1.highlight.json", figure)
    save_highlight(results / FOLDER / "fig1_parts.highlight.json", page)


if __name__ == "__main__":
    run(main)
