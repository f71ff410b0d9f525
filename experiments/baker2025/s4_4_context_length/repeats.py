"""What repeats do to the susceptibilities: later minus first instances, and the example shown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from length_curves import FOLDER, POOLED, head_values, heads_of, sources
from length_statistics import Layout, spread
from repeated_sequences import (
    INSTANCES,
    NGRAM,
    Example,
    Repeats,
    find_repeats,
    longest_repeat,
    mean_difference,
    without_length,
)

from susceptibilities.console import run
from susceptibilities.cubes import FORMS, long
from susceptibilities.highlight import Highlight, Panel, Track, save_highlight
from susceptibilities.jackknife import Array
from susceptibilities.naming import head_of
from susceptibilities.per_token import PerToken, load_per_token
from susceptibilities.store import atomic_path, read_json
from susceptibilities.token_errors import context_blocks, measure_array

# Later instances by their number in the context; all are compared with the first.
LATER = {"second": (2, 2), "later": (3, 10**9)}
MEASURES = ("difference", "difference_sd", "beyond_length", "beyond_length_sd")
SCHEMA = {
    "source": pl.String,
    "form": pl.String,
    "component": pl.String,
    "probe": pl.String,
    "instance": pl.String,
    "measure": pl.String,
    "value": pl.Float64,
    "se": pl.Float64,
    "pairs": pl.Int64,
    "contexts": pl.Int64,
}
# Tokens of the repeated sequence that are shown of each instance, as the paper shows the
# beginnings of three lines; and where the bars of a panel's heads are.
SHOWN = 24
PLACES = {
    1: ("",),
    2: ("first head named", "second head named"),
    3: ("first head named", "second head named", "third head named"),
}


def ids_of(data: PerToken, layout: Layout) -> np.ndarray:
    """Predicted tokens, (context of every probe in turn, length)."""
    return data.tokens["token"].to_numpy().astype(np.int64).reshape(-1, layout.lengths)


def repeat_table(data: PerToken, form: str) -> pl.DataFrame:
    """Differences of every head between later instances and the first, by probe and pooled.

    ``difference`` as it is; ``beyond_length`` after subtracting what tokens that repeat nothing
    have on average in the same domain and bin of context lengths; ``_sd`` over the head's
    standard deviation over tokens.
    """
    layout = Layout.of(data.tokens)
    values, replicates = head_values(data, form)
    return _rows(data, layout, values, replicates, heads_of(data)).with_columns(form=pl.lit(form))


def loss_table(data: PerToken) -> pl.DataFrame:
    """The same for the loss at w*, which has no error over chains."""
    loss = data.tokens["loss"].to_numpy()[None]
    replicates = np.stack([loss, loss])
    table = _rows(data, Layout.of(data.tokens), loss, replicates, ["loss"])
    return table.with_columns(form=pl.lit("loss"))


def _rows(
    data: PerToken, layout: Layout, values: Array, replicates: Array, names: Sequence[str]
) -> pl.DataFrame:
    repeats = find_repeats(ids_of(data, layout))
    blocks = context_blocks(data.tokens)
    place = np.arange(len(data.tokens))
    probe = place // (layout.contexts * layout.lengths)
    cells = probe * len(layout.bins.low) + layout.bins.of[place % layout.lengths]
    domain = np.isin(probe, layout.domains)
    scopes = {name: probe == i for i, name in enumerate(layout.probes)} | {POOLED: domain}
    chosen = {
        (scope, name): inside[repeats.again] & (repeats.number >= low) & (repeats.number <= high)
        for scope, inside in scopes.items()
        for name, (low, high) in LATER.items()
    }
    # Without any one block something must be left, or there is no error.
    usable = {
        key: mask for key, mask in chosen.items() if len(np.unique(blocks[repeats.again[mask]])) > 1
    }
    if not usable:
        return pl.DataFrame(schema=SCHEMA)

    def statistic(values: Array, keep: np.ndarray) -> Array:
        own = spread(layout, values, keep)
        rest = without_length(values, cells, ~repeats.seen, keep)
        rows = []
        for mask in usable.values():
            plain = mean_difference(values, repeats, mask, keep)
            beyond = mean_difference(rest, repeats, mask, keep)
            rows.append(np.stack([plain, plain / own, beyond, beyond / own], -1))
        return np.stack(rows, 1)

    value, se = measure_array(statistic, values, replicates, blocks)
    keys = list(usable)
    table = long(
        [("component", list(names)), ("pick", range(len(keys))), ("measure", MEASURES)],
        value=value,
        se=se,
    )
    picks = pl.DataFrame(
        {
            "pick": range(len(keys)),
            "probe": [scope for scope, _ in keys],
            "instance": [name for _, name in keys],
            "pairs": [int(mask.sum()) for mask in usable.values()],
            "contexts": [_contexts(repeats, mask, layout) for mask in usable.values()],
        }
    )
    return table.join(picks, on="pick", maintain_order="left").drop("pick")


def _contexts(repeats: Repeats, mask: np.ndarray, layout: Layout) -> int:
    return len(np.unique(repeats.again[mask] // layout.lengths))


def find_example(data: PerToken) -> tuple[str, Example] | None:
    """Domain and place of the example; the control probe is not searched."""
    layout = Layout.of(data.tokens)
    ids = ids_of(data, layout).reshape(len(layout.probes), layout.contexts, layout.lengths)
    found = longest_repeat(ids[layout.domains].reshape(-1, layout.lengths))
    if found is None:
        return None
    domain, context = divmod(found.context, layout.contexts)
    probe = layout.probes[layout.domains[domain]]
    return probe, Example(context, found.starts, found.length)


def example_table(data: PerToken, form: str = "chi") -> pl.DataFrame:
    """Susceptibilities of every head at every token of every instance of the example."""
    found = find_example(data)
    if found is None:
        return pl.DataFrame()
    probe, example = found
    layout = Layout.of(data.tokens)
    first = layout.probes.index(probe) * layout.contexts + example.context
    frames = []
    for number, start in enumerate(example.starts, 1):
        places = first * layout.lengths + start + np.arange(example.length)
        tokens = data.tokens[places].select("probe", "context", "position", "token", "text", "loss")
        keys = [
            pl.lit(number).alias("instance"),
            pl.Series("offset", range(example.length)),
        ]
        for head in heads_of(data):
            row = data.components.index(head)
            frames.append(
                tokens.with_columns(
                    *keys,
                    component=pl.lit(head),
                    form=pl.lit(form),
                    value=pl.Series(data.value[form][row][places]),
                    se=pl.Series(data.se[form][row][places]),
                )
            )
    return pl.concat(frames)


def head_groups(heads: Sequence[str]) -> list[list[str]]:
    """Heads of one layer by twos or threes, whichever fills every group: bars of one panel.

    With two to four layers the groups of the layers take turns, so that each layer is a column.
    """
    layers: dict[int, list[str]] = {}
    for head in heads:
        layers.setdefault((head_of(head) or (0, 0))[0], []).append(head)
    size = next(n for n in (3, 2, 1) if all(len(row) % n == 0 for row in layers.values()))
    columns = [[row[i : i + size] for i in range(0, len(row), size)] for row in layers.values()]
    if 2 <= len(columns) <= 4 and len({len(column) for column in columns}) == 1:
        return [group for row in zip(*columns, strict=True) for group in row]
    return [group for column in columns for group in column]


def lines_of(table: pl.DataFrame, head: str, instances: Sequence[int]) -> pl.DataFrame:
    """Text and value of a head's instances, one line each; marks of lines have no value."""
    frames = []
    for number in instances:
        rows = table.filter((pl.col("instance") == number) & (pl.col("component") == head))
        rows = rows.sort("offset").select("text", "value")
        before = [f"{number}▸"] if not frames else ["\n", f"{number}▸"]
        if frames and str(frames[-1]["text"][-1]).endswith("\n"):
            before = before[1:]
        marks = pl.DataFrame({"text": before}).with_columns(value=pl.lit(None, pl.Float64))
        frames += [marks, rows]
    return pl.concat(frames)


def highlight(
    table: pl.DataFrame, heads: Sequence[str], roles: Mapping[str, str], name: str
) -> Highlight:
    """Figure 8: the first instances below each other, once for every two or three heads.

    The full color is the largest |value| of all that is shown, the same for all heads.

    Args:
        name: the domain as figures call it.
    """
    instances = sorted(table["instance"].unique())[: INSTANCES[0]]
    shown = table.filter(pl.col("instance").is_in(instances) & (pl.col("offset") < SHOWN))
    limit = float(shown["value"].abs().max())  # type: ignore[arg-type]
    groups = head_groups(heads)
    places = PLACES[len(groups[0])]
    layers = len({(head_of(head) or (0, 0))[0] for head in heads})
    panels = []
    for group in groups:
        lines = [lines_of(shown, head, instances) for head in group]
        tracks = [
            Track(name=place, limit=limit, values=line["value"].to_list())
            for place, line in zip(places, lines, strict=True)
        ]
        label = " · ".join(f"{head} {roles.get(head, '')}".rstrip() for head in group)
        panels.append(Panel(label=label, tokens=lines[0]["text"].to_list(), tracks=tracks))
    length, total = int(table["offset"].max()) + 1, table["instance"].n_unique()  # type: ignore[operator]
    times = "three times" if total >= INSTANCES[0] else "twice"
    first = table.filter(pl.col("offset") == 0).unique("instance").sort("instance")
    part = f", of which the first {SHOWN} are shown" if length > SHOWN else ""
    begins = ", ".join(str(position) for position in first["position"].to_list())
    return Highlight(
        title="Change along a context: instances of a repeated sequence",
        subtitle=(
            f"{name}, context {table['context'][0]}. The longest sequence of tokens that comes "
            f"{times} in one context of any domain: {length} tokens{part}; instances begin at "
            f"positions {begins}. One color bar a head; the same scale for all heads."
        ),
        # Deeper models fill two columns in turn.
        columns=layers if layers <= 4 else 2,
        panels=panels,
    )


def nothing_repeats(data: PerToken) -> Highlight:
    """What to show where no context repeats a sequence: the beginning of the first one."""
    head = heads_of(data)[0]
    rows = data.tokens.head(SHOWN)
    values = data.of(head)[0][: len(rows)]
    track = Track(name=head, limit=float(np.abs(values).max()), values=values.tolist())
    return Highlight(
        title="Change along a context: nothing repeats",
        subtitle=(
            f"No sequence of {NGRAM} or more tokens comes twice in a context of this sample. "
            f"Shown is the beginning of the first context of {rows['probe'][0]}."
        ),
        panels=[Panel(label="no repeat", tokens=rows["text"].to_list(), tracks=[track])],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    roles = dict(zip(final["head"], final["role"], strict=True))
    data = load_per_token(results)
    frames = []
    for source, one in sources(results).items():
        tables = [repeat_table(one, form) for form in FORMS]
        tables += [loss_table(one)] if source == "run" else []
        frames += [table.with_columns(source=pl.lit(source)) for table in tables if len(table)]
    # Without any repeat the table is written with its columns and no rows.
    found = pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)
    found = found.select(*SCHEMA).cast(SCHEMA)  # type: ignore[arg-type]
    with atomic_path(results / FOLDER / "repeats.parquet") as path:
        found.write_parquet(path)
    example = example_table(data)
    if len(example):
        domains = read_json(results / "tokens" / "manifest.json")["domains"]
        probe = example["probe"][0]
        subset = domains.get(probe, {}).get("stands_in_for")
        name = f"{probe} (for {subset})" if subset and subset != probe else probe
        spec = highlight(example, heads_of(data), roles, name)
    else:
        spec = nothing_repeats(data)
    save_highlight(results / FOLDER / "fig8.highlight.json", spec)
    with atomic_path(results / FOLDER / "example.parquet") as path:
        example.write_parquet(path)
    print(spec.subtitle)


if __name__ == "__main__":
    run(main)
