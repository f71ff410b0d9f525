"""Figure 32: the context that repeats itself most, for three highlights; and what repeats share.

Writes fig32.highlight.json (the sample) and repeats.parquet: over all tokens of all domains, the
correlation of each quantity with whether the token ends a repeated n-gram.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ablation_tables import FOLDER, load_ablation, pearson, rows_of_heads
from numpy.typing import NDArray

from susceptibilities.console import run
from susceptibilities.cubes import FORMS
from susceptibilities.highlight import Highlight, Kind, Panel, Track, save_highlight
from susceptibilities.per_token import PerToken, load_per_token
from susceptibilities.store import atomic_path, read_json
from susceptibilities.subsets import place_of
from susceptibilities.token_errors import context_blocks, measure_array
from susceptibilities.tokens import CONTROL_PROBE, load_tokenizer, token_strings

SUBSET = "enron_emails"
HEAD = "1:4"
# What counts as a repeat: this many tokens, as many of them different. Less would count rulers
# such as "-----" and single common phrases.
LENGTH = 4
DISTINCT = 3

Array = NDArray[np.float64]


def repeated(tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens of one context end an n-gram that stands in it before.

    Occurrences may overlap. The beginning token is part of no n-gram.

    Args:
        tokens: ids (T,), the beginning token first.

    Returns:
        Shape (T,).
    """
    seen: set[tuple[int, ...]] = set()
    found = np.zeros(len(tokens), dtype=bool)
    for end in range(LENGTH, len(tokens)):
        gram = tuple(int(t) for t in tokens[end - LENGTH + 1 : end + 1])
        found[end] = gram in seen and len(set(gram)) >= DISTINCT
        seen.add(gram)
    return found


@dataclass(frozen=True)
class Sample:
    """A context, and how it was chosen.

    Attributes:
        among: what it was chosen from, in words.
        row: number of the context among those of its probe that were measured.
        repeats: which of its tokens are repeats, (T,).
    """

    probe: str
    among: str
    row: int
    repeats: NDArray[np.bool_]


def choose(
    contexts: Mapping[str, NDArray[np.int64]], domains: Mapping[str, Any], subset: str = SUBSET
) -> Sample:
    """The context with the most repeats; of equal ones the first.

    Of the domain in the place of ``subset``, or of all domains where there is none.
    """
    place = place_of(subset, domains)
    if place is not None and place.probe in contexts:
        probes, among = [place.probe], f"{place}"
    else:
        probes = [p for p in contexts if p != CONTROL_PROBE]
        among = f"all domains (none for {subset})"
    best: Sample | None = None
    for probe in probes:
        for row, tokens in enumerate(contexts[probe]):
            found = repeated(tokens)
            if best is None or found.sum() > best.repeats.sum():
                best = Sample(probe, among, row, found)
    if best is None:
        raise ValueError("no contexts to choose from: expected those of one domain at least")
    return best


def head_of_sample(heads: tuple[str, ...], roles: Mapping[str, str]) -> str:
    """The paper's head where the model has it, else the last layer's first multigram head."""
    if HEAD in heads:
        return HEAD
    layer = heads[-1].split(":")[0]
    last = [h for h in heads if h.split(":")[0] == layer]
    return next((h for h in last if roles.get(h) == "multigram"), last[-1])


def shared(
    data: PerToken,
    control: PerToken | None,
    deltas: Array,
    contexts: Mapping[str, NDArray[np.int64]],
) -> pl.DataFrame:
    """Correlation over the tokens of all domains between being a repeat and each quantity.

    Domains differ in both, so each is taken relative to its mean over the domain's tokens.
    """
    probes = [p for p in data.probes if p != CONTROL_PROBE]
    mask = data.tokens["probe"].is_in(probes).to_numpy()
    flags = np.concatenate([repeated(c)[1:] for p in probes for c in contexts[p]]).astype(float)
    domain = data.tokens.filter(mask)["probe"].rank("dense").to_numpy().astype(np.int64) - 1
    blocks = context_blocks(data.tokens)[mask]

    def statistic(values: Array, keep: NDArray[np.bool_]) -> Array:
        group = domain[keep]
        size = np.maximum(np.bincount(group), 1)

        def centered(v: Array) -> Array:
            return v - (np.bincount(group, v) / size)[group]

        rows = np.stack([centered(row) for row in values[:, keep]])
        return pearson(rows, centered(flags[keep])[None])

    rows = []

    def add(
        quantity: str, form: str | None, is_control: bool, values: Array, replicates: Array
    ) -> None:
        value, se = measure_array(statistic, values, replicates, blocks)
        rows.append(
            pl.DataFrame(
                {
                    "quantity": quantity,
                    "form": form,
                    "control": is_control,
                    "head": list(data.heads),
                    "value": value,
                    "se": se,
                    "repeats": int(flags.sum()),
                    "tokens": len(flags),
                },
                schema_overrides={"form": pl.String},
            )
        )

    for source in filter(None, (data, control)):
        for form in FORMS:
            values = rows_of_heads(source, source.value[form])[:, mask]
            replicates = rows_of_heads(source, source.replicates[form])[:, :, mask]
            add("susceptibility", form, source is control, values, replicates)
    loss = np.broadcast_to(data.tokens["loss"].to_numpy()[mask], deltas[:, mask].shape)
    # No chain has a part in these two: two equal replicates leave the error over contexts.
    for quantity, values in (("ablation", deltas[:, mask]), ("loss", loss)):
        add(quantity, None, False, values, np.stack([values, values]))
    return pl.concat(rows)


def spec(
    data: PerToken,
    deltas: Array,
    sample: Sample,
    strings: list[str],
    roles: Mapping[str, str],
    common: pl.DataFrame,
) -> Highlight:
    """The sample as three panels: susceptibility, ablation delta, loss."""
    head = head_of_sample(data.heads, roles)
    name = f"{head} {roles.get(head, '')}".rstrip()
    length = len(sample.repeats)
    mask = data.where(sample.probe)
    here = slice(sample.row * (length - 1), (sample.row + 1) * (length - 1))
    quantities: dict[Kind, Array] = {
        "susceptibility": data.of(head, "chi")[0],
        "ablation": deltas[data.heads.index(head)],
        "loss": data.tokens["loss"].to_numpy(),
    }
    labels = {
        "susceptibility": f"susceptibility of {head}",
        "ablation": f"ablation delta of {head}",
        "loss": "loss",
    }
    panels = []
    for kind, quantity in quantities.items():
        values = quantity[mask][here].tolist()
        track = Track(
            name="model" if kind == "loss" else name,
            kind=kind,
            limit=max(map(abs, values)),
            values=[None, *values],
        )
        panels.append(Panel(label=labels[kind], tokens=strings, tracks=[track]))
    mine = common.filter(
        (pl.col("head") == head) & (pl.col("form").is_null() | (pl.col("form") == "chi"))
    )
    known = mine.filter(pl.col("value").is_not_null() & pl.col("se").is_not_null())
    spelled = "; ".join(
        f"{row['quantity']}{' at nβ = 0' if row['control'] else ''} "
        + f"{row['value']:.2f} ± {row['se']:.2f}".replace("-", "−")
        for row in known.iter_rows(named=True)
    )
    return Highlight(
        title=f"One sample of {sample.probe} by three measures, head {name}",
        subtitle=(
            f"Context {sample.row + 1} of {int(mask.sum()) // (length - 1)}: "
            f"{int(sample.repeats.sum())} of its {length - 1} tokens end a {LENGTH}-gram that "
            f"stands in it before, the most of {sample.among}. Full color: the largest of the "
            "sample, each measure by itself. Correlation with being such a repeat, over all "
            f"tokens of all domains: {spelled or 'too few repeats to say'}."
        ),
        opacity="squared",
        columns=len(panels),
        panels=panels,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    data = load_per_token(results)
    settings = read_json(results / "config.json")["two_layer"]["per_token"]
    has_control = data.step in settings["control_checkpoints"]
    control = load_per_token(results, control=True, step=data.step) if has_control else None
    deltas = load_ablation(results, data)
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    contexts = {probe: data.context_ids(results, probe) for probe in data.probes}
    domains = read_json(results / "tokens" / "manifest.json")["domains"]
    sample = choose(contexts, domains)
    model = Path(read_json(results / "model" / "model.json")["path"])
    vocabulary = token_strings(load_tokenizer(model))
    common = shared(data, control, deltas, contexts)
    with atomic_path(results / FOLDER / "repeats.parquet") as path:
        common.with_columns(pl.col(pl.Float64).fill_nan(None)).write_parquet(path)
    strings = [vocabulary[t] for t in contexts[sample.probe][sample.row]]
    roles = dict(zip(final["head"], final["role"], strict=True))
    found = spec(data, deltas, sample, strings, roles, common.fill_nan(None))
    save_highlight(results / FOLDER / "fig32.highlight.json", found)
    print(found.subtitle)


if __name__ == "__main__":
    run(main)
