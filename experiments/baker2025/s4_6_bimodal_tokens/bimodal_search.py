"""Search for bimodal tokens: every frequent token, head and domain, for chi and each of its parts.

Writes search.parquet (one dip test a row), modes.parquet (one token and domain a row, for the
head with the smallest p-value of chi), power.parquet (what the test could have seen), and for
the strongest tokens values.parquet (for the histograms) and typical.parquet (contexts near the
center of either mode).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from mode_statistics import LEVEL, Mask, Sample, are_two_modes, covariates_of, describe
from numpy.typing import NDArray

from susceptibilities.bimodality import benjamini_hochberg, dip_test, power
from susceptibilities.categories import repeated_bigrams
from susceptibilities.console import Progress, run
from susceptibilities.cubes import FORMS
from susceptibilities.occurrences import Texts
from susceptibilities.per_token import PerToken, load_per_token
from susceptibilities.store import atomic_path
from susceptibilities.token_errors import context_blocks

FOLDER = "baker2025/s4_6_bimodal_tokens"
# A token is tested in a domain where it occurs at least so often, in so many contexts.
MIN_COUNT, MIN_CONTEXTS = 40, 10
# Strongest cases for which values and contexts are kept, and contexts of each mode.
SHOWN, TYPICAL = 12, 5
POWER_DISTANCES, POWER_SHARES, POWER_DRAWS = (3.0, 4.0, 6.0), (0.5, 0.2), 200
BEFORE_AND_AFTER = 40  # tokens decoded on either side of a typical occurrence

SEARCH_SCHEMA = {
    "control": pl.Boolean,
    "form": pl.String,
    "probe": pl.String,
    "token": pl.Int64,
    "text": pl.String,
    "component": pl.String,
    "count": pl.Int64,
    "contexts": pl.Int64,
    "effective": pl.Float64,
    "dip": pl.Float64,
    "p": pl.Float64,
}
NUMBERS = (
    *("share", "lower", "lower_se", "lower_sd", "upper", "upper_se", "upper_sd", "distance"),
    *("distance_se", "gain", "split", "same", "chance", "kappa", "kappa_se", "gap"),
    *("gap_covariance", "gap_rank_one", "gap_mean_shift", "auc_loss", "auc_position", "auc_repeat"),
)
MODES_SCHEMA = {
    "rank": pl.Int64,
    **{k: v for k, v in SEARCH_SCHEMA.items() if k not in ("control", "form")},
    "p_adjusted": pl.Float64,
    "two_modes": pl.Boolean,
    "heads": pl.Int64,
    "control_p": pl.Float64,
    "control_p_adjusted": pl.Float64,
    **dict.fromkeys(NUMBERS, pl.Float64),
}
VALUES_SCHEMA = {
    "rank": pl.Int64,
    "index": pl.Int64,
    "upper": pl.Boolean,
    **dict.fromkeys((*FORMS, "control"), pl.Float64),
}
POWER_SCHEMA = {name: pl.Float64() for name in ("effective", "distance", "share", "level", "power")}
TYPICAL_SCHEMA = {
    "rank": pl.Int64,
    "upper": pl.Boolean,
    "context": pl.Int64,
    "position": pl.Int64,
    "value": pl.Float64,
    "se": pl.Float64,
    "before": pl.String,
    "text": pl.String,
    "after": pl.String,
}


class Group(NamedTuple):
    """A token in a domain, and its occurrences (rows of the token table)."""

    probe: str
    token: int
    text: str
    indices: NDArray[np.int64]


def frequent(tokens: pl.DataFrame) -> list[Group]:
    """Tokens that occur at least `MIN_COUNT` times, in at least `MIN_CONTEXTS` contexts."""
    counts = (
        tokens.with_row_index("row")
        .group_by("probe", "token", maintain_order=True)
        .agg(pl.col("text").first(), pl.col("row"), pl.col("context").n_unique().alias("contexts"))
        .filter((pl.col("row").list.len() >= MIN_COUNT) & (pl.col("contexts") >= MIN_CONTEXTS))
    )
    return [
        Group(row["probe"], row["token"], row["text"], np.array(row["row"], dtype=np.int64))
        for row in counts.iter_rows(named=True)
    ]


def dips(data: PerToken, groups: Sequence[Group], control: bool) -> list[dict[str, Any]]:
    """A dip test of every group, head and form; and of the loss at w*, which has no head."""
    loss = data.tokens["loss"].to_numpy()
    contexts = data.tokens["context"].to_numpy()
    rows = []
    for group in groups:
        samples = [
            (form, head, data.value[form][data.components.index(head), group.indices])
            for form in FORMS
            for head in data.heads
        ]
        if not control:
            samples.append(("loss", "", loss[group.indices]))
        for form, head, values in samples:
            test = dip_test(values, contexts[group.indices])
            rows.append(
                {
                    "control": control,
                    "form": form,
                    "probe": group.probe,
                    "token": group.token,
                    "text": group.text,
                    "component": head,
                    "count": test.count,
                    "contexts": test.contexts,
                    "effective": test.effective,
                    "dip": test.dip,
                    "p": test.p,
                }
            )
    return rows


def corrected(table: pl.DataFrame) -> pl.DataFrame:
    """Add p_adjusted: Benjamini-Hochberg over all tests of one form, control apart."""
    parts = [
        part.with_columns(p_adjusted=pl.Series(benjamini_hochberg(part["p"].to_list())))
        for part in table.partition_by("control", "form", maintain_order=True)
    ]
    empty = table.clear().with_columns(p_adjusted=pl.lit(None, pl.Float64))
    return pl.concat(parts) if parts else empty


def strongest(search: pl.DataFrame) -> pl.DataFrame:
    """Of every token and domain the head with the smallest p-value of chi, and in how many heads
    the test rejects; with the p-value of the same head in the control."""
    keys = ["probe", "token"]
    chi = search.filter((pl.col("form") == "chi") & ~pl.col("control"))
    heads = chi.group_by(keys).agg(heads=(pl.col("p_adjusted") <= LEVEL).sum().cast(pl.Int64))
    control = search.filter((pl.col("form") == "chi") & pl.col("control")).select(
        *keys,
        "component",
        pl.col("p").alias("control_p"),
        pl.col("p_adjusted").alias("control_p_adjusted"),
    )
    return (
        chi.sort("p", "effective", descending=[False, True], maintain_order=True)
        .unique(keys, keep="first", maintain_order=True)
        .join(heads, on=keys, how="left", maintain_order="left")
        .join(control, on=[*keys, "component"], how="left", maintain_order="left")
    )


def repeats(data: PerToken, results: Path) -> Mask:
    """Whether each token ends a bigram that its context has had before, (token,)."""
    return np.concatenate(
        [repeated_bigrams(data.context_ids(results, probe)).ravel() for probe in data.probes]
    )


def typical(
    data: PerToken, texts: Texts, sample: Sample, head: str, row: dict[str, Any]
) -> list[dict[str, Any]]:
    """Occurrences nearest to the center of either mode, at most one a context."""
    values = sample.values["chi"]
    se = data.se["chi"][data.components.index(head), sample.indices]
    found = []
    for upper in (False, True):
        mine = np.flatnonzero((values > row["split"]) == upper)
        center = row["upper" if upper else "lower"]
        seen: set[int] = set()
        for place in mine[np.argsort(np.abs(values[mine] - center), kind="stable")]:
            if len(seen) == TYPICAL:
                break
            if int(sample.contexts[place]) in seen:
                continue
            seen.add(int(sample.contexts[place]))
            index = int(sample.indices[place])
            around = texts.around(index, BEFORE_AND_AFTER)
            found.append(
                {
                    "rank": row["rank"],
                    "upper": upper,
                    "context": int(sample.contexts[place]),
                    "position": int(data.tokens["position"][index]),
                    "value": float(values[place]),
                    "se": float(se[place]),
                    "before": around.before,
                    "text": around.text,
                    "after": around.after,
                }
            )
    return found


def search(
    data: PerToken, control: PerToken | None, texts: Texts, repeated: Mask
) -> dict[str, pl.DataFrame]:
    """All tables of the search, by name.

    Args:
        repeated: from `repeats`.
    """
    groups = frequent(data.tokens)
    progress = Progress()
    rows = dips(data, groups, control=False)
    if control is not None:
        rows += dips(control, groups, control=True)
    tests = corrected(pl.DataFrame(rows, schema=SEARCH_SCHEMA))
    progress(f"{len(tests)} dip tests of {len(groups)} tokens")
    blocks = context_blocks(data.tokens)
    indices = {(group.probe, group.token): group.indices for group in groups}
    described = []
    for row in strongest(tests).iter_rows(named=True):
        places = indices[row["probe"], row["token"]]
        sample = Sample.of(data, row["component"], places, blocks)
        if sample.varies("chi"):
            about = describe(sample, "chi", covariates_of(data, repeated, places), errors=False)
            row |= about | {"two_modes": are_two_modes(row["p_adjusted"], about)}
            described.append(row)
    described.sort(key=lambda row: (not row["two_modes"], row["p"], -row["gain"]))
    progress(f"{sum(row['two_modes'] for row in described)} tokens of {len(described)} bimodal")
    values, contexts = [], []
    for rank, row in enumerate(described, start=1):
        row["rank"] = rank
        if rank > SHOWN:
            continue
        places = indices[row["probe"], row["token"]]
        sample = Sample.of(data, row["component"], places, blocks)
        row |= describe(sample, "chi", covariates_of(data, repeated, places))
        contexts += typical(data, texts, sample, row["component"], row)
        frame = pl.DataFrame({"index": places, **sample.values}).with_columns(
            rank=pl.lit(rank, pl.Int64),
            upper=pl.col("chi") > row["split"],
            control=pl.lit(None, pl.Float64)
            if control is None
            else pl.Series(Sample.of(control, row["component"], places, blocks).values["chi"]),
        )
        values.append(frame.select(*VALUES_SCHEMA))
    return {
        "search": tests,
        "modes": pl.DataFrame(
            [{name: row.get(name) for name in MODES_SCHEMA} for row in described],
            schema=MODES_SCHEMA,
        ),
        "values": pl.concat(values) if values else pl.DataFrame(schema=VALUES_SCHEMA),
        "typical": pl.DataFrame(contexts, schema=TYPICAL_SCHEMA),
        "power": powers(tests),
    }


def powers(tests: pl.DataFrame) -> pl.DataFrame:
    """What the dip test can see with the median effective number of values of this run: by
    itself, and as the smallest p-value of all tests of chi."""
    chi = tests.filter((pl.col("form") == "chi") & ~pl.col("control"))
    if not len(chi):
        return pl.DataFrame(schema=POWER_SCHEMA)
    size = float(np.median(chi["effective"].to_numpy()))
    rows = [
        (size, distance, share, level, power(size, distance, share, level, POWER_DRAWS))
        for distance in POWER_DISTANCES
        for share in POWER_SHARES
        for level in (LEVEL, LEVEL / len(chi))
    ]
    return pl.DataFrame(rows, schema=POWER_SCHEMA, orient="row")


def load_control(results: Path, data: PerToken) -> PerToken | None:
    """The n_beta = 0 control of the same tokens, where there is one."""
    try:
        control = load_per_token(results, control=True)
    except FileNotFoundError:
        return None
    same = ["probe", "context", "position", "token"]
    if not control.tokens.select(same).equals(data.tokens.select(same)):
        raise ValueError(
            f"{results}: the control's tokens are not those of step {data.step}; build the "
            "per-token susceptibilities of both again"
        )
    return control


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    data = load_per_token(results)
    tables = search(data, load_control(results, data), Texts(data, results), repeats(data, results))
    for name, table in tables.items():
        with atomic_path(results / FOLDER / f"{name}.parquet") as path:
            table.write_parquet(path)


if __name__ == "__main__":
    run(main)
