"""The per-token response matrix: PCA, what makes it, what lies at its ends, reliability."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from response_ends import end_tables
from response_reliability import reliability_tables

from susceptibilities.categories import category_table
from susceptibilities.console import Progress, run
from susceptibilities.cubes import FORMS, PARTS, long
from susceptibilities.jackknife import Array, Estimate
from susceptibilities.naming import head_of
from susceptibilities.per_token import RELIABILITY, PerToken, folder_of, load_per_token
from susceptibilities.response_matrix import (
    RESPONSE_FORMS,
    Mask,
    Response,
    ResponsePCA,
    mean_correlation,
    measure_on_pca,
    measure_pca,
    one_vector,
    part_shares,
    response_of,
    uniformity,
)
from susceptibilities.store import atomic_path
from susceptibilities.token_errors import measure_array

FOLDER = "arditi2026/response_matrix"
ALL = "all heads"
SCALINGS = {"standardized": True, "centered": False}
# Of the first components everything is measured; of the others, the variance.
FIRST = 3


def sources(results: Path) -> dict[str, PerToken]:
    """The run's per-token susceptibilities and, where there are any, the n_beta = 0 control's."""
    found = {"run": load_per_token(results)}
    try:
        found["control"] = load_per_token(results, control=True)
    except FileNotFoundError:
        print("no n_beta = 0 control: it is left out")
    return found


def roles_of(results: Path) -> dict[str, str]:
    """Head -> role, by the model's own attention scores at its last checkpoint."""
    heads = pl.read_parquet(results / "structure" / "heads.parquet")
    final = heads.filter(pl.col("step") == heads["step"].max())
    return dict(zip(final["head"], final["role"], strict=True))


def circuit(heads: tuple[str, ...], roles: Mapping[str, str]) -> list[int]:
    """Columns of the induction circuit: previous-token heads and induction heads."""
    return [i for i, h in enumerate(heads) if roles.get(h) in ("previous-token", "induction")]


def signs(heads: tuple[str, ...], roles: Mapping[str, str]) -> dict[int, tuple[list[int], int]]:
    """PC1 positive on average, PC2 positive on the induction circuit."""
    return {0: (list(range(len(heads))), 1), 1: (circuit(heads, roles), 1)}


def scopes(response: Response) -> dict[str, Response]:
    """All heads together, and each layer by itself where it has more than one head."""
    layers = {f"layer {n}": response.layer(n) for n in response.layers}
    return {ALL: response, **{name: r for name, r in layers.items() if len(r.heads) > 1}}


def with_interval(table: pl.DataFrame, df: int) -> pl.DataFrame:
    """Add ``low`` and ``high``, the 95 % interval of ``value`` (Student t)."""
    half = Estimate(0.0, 1.0, df).interval()[1]
    return table.with_columns(
        low=pl.col("value") - half * pl.col("se"), high=pl.col("value") + half * pl.col("se")
    )


UNIFORM = ("cosine to the uniform vector", "smallest loading", "mean correlation between heads")


def pca_tables(
    response: Response, roles: Mapping[str, str], form: str, standardize: bool
) -> tuple[dict[str, pl.DataFrame], ResponsePCA]:
    """One PCA: its variance, loadings (pc from 1), whether PC1 loads on all heads alike and how
    alike the heads are, and the mean loadings of the heads of every role in every layer."""
    groups: dict[tuple[int, str], list[int]] = {}
    for place, head in enumerate(response.heads):
        key = ((head_of(head) or (-1, 0))[0], roles.get(head, "unknown"))
        groups.setdefault(key, []).append(place)
    first = min(FIRST, len(response.heads))

    def more(own: ResponsePCA, values: Array, _keep: Mask) -> Array:
        means = [own.loadings[places, :first].mean(0) for places in groups.values()]
        return np.concatenate([*means, uniformity(own), [mean_correlation(values[0])]])

    found = measure_pca(
        response.value[form],
        response.replicates[form],
        response.blocks,
        standardize,
        signs(response.heads, roles),
        more=more,
    )
    pcs = ("pc", range(1, len(found.pca.share) + 1))
    tables = {
        "variance": long(
            [pcs],
            share=found.pca.share,
            se=found.share_se,
            cumulative=found.pca.share.cumsum(),
            cumulative_se=found.cumulative_se,
            identified=found.identified,
        ),
        "loadings": long(
            [("component", response.heads), pcs], value=found.pca.loadings, se=found.loadings_se
        ).filter(pl.col("pc") <= FIRST),
        "uniform": long(
            [("quantity", UNIFORM)],
            value=found.more[-len(UNIFORM) :],
            se=found.more_se[-len(UNIFORM) :],
        ),
        "by_role": pl.DataFrame(
            {
                "layer": [layer for layer, _ in groups for _ in range(first)],
                "role": [role for _, role in groups for _ in range(first)],
                "heads": [len(places) for places in groups.values() for _ in range(first)],
                "pc": [*range(1, first + 1)] * len(groups),
                "value": found.more[: -len(UNIFORM)],
                "se": found.more_se[: -len(UNIFORM)],
            }
        ),
    }
    for name in ("uniform", "by_role"):
        tables[name] = with_interval(tables[name], response.df)
    return tables, found.pca


CONSTRUCTION = (
    "PC1's share",
    "share along the rank-one direction",
    "cosine of PC1 to the rank-one direction",
    "correlation of PC1's scores with the rank-one vector",
)


def made_of(
    response: Response, pca: ResponsePCA, standardize: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Which parts chi and its first components come from, and how far the rank-one part alone
    gives PC1. In the first table pc 0 is the variance of all components."""
    count = min(FIRST, len(pca.variance)) + 1
    rank_one = 1 + PARTS.index("rank_one")

    def found(own: ResponsePCA, values: Array, _keep: Mask) -> Array:
        shares = [part_shares(own, values[0], part)[:count] for part in values[1:]]
        built = [float(own.share.max()), *one_vector(own, values[0], values[rank_one])]
        return np.concatenate([*shares, built])

    value, se = measure_on_pca(
        found, *response.stacked(("chi", *PARTS)), response.blocks, pca, standardize
    )
    cut = len(PARTS) * count
    shares = long(
        [("part", PARTS), ("pc", range(count))],
        value=value[:cut].reshape(-1, count),
        se=se[:cut].reshape(-1, count),
    )
    built = long([("quantity", CONSTRUCTION)], value=value[cut:], se=se[cut:])
    return with_interval(shares, response.df), with_interval(built, response.df)


def sizes(response: Response) -> pl.DataFrame:
    """Standard deviation over tokens of every head in every form, and their root mean square."""
    values, replicates = response.stacked(RESPONSE_FORMS)

    def deviation(found: Array, keep: Mask) -> Array:
        each = np.asarray(found, dtype=np.float64)[..., keep].std(-1)
        return np.concatenate([each, np.sqrt(np.square(each).mean(1, keepdims=True))], 1)

    value, se = measure_array(deviation, values, replicates, response.blocks)
    table = long(
        [("form", RESPONSE_FORMS), ("component", (*response.heads, ALL))], value=value, se=se
    )
    return with_interval(table, response.df)


BESIDE_CONTROL = (
    "correlation over tokens",
    "ratio of sizes",
    "correlation of the chains' deviations",
)


def beside_control(run_response: Response, control: Response) -> pl.DataFrame:
    """How the run stands to its n_beta = 0 control, form by form, mean over heads.

    The deviations are those of single chains from the mean of all: where both runs drew the same
    random numbers, these agree too, and the comparison is free of most of the noise.
    """
    tables = []
    for form in RESPONSE_FORMS:
        both = (run_response, control)
        values = np.stack([r.value[form] for r in both])
        replicates = np.stack([r.replicates[form] for r in both], 1)
        single = replicates - replicates.mean(0)

        def found(given: Array, keep: Mask) -> list[float]:
            one, other = given[0][:, keep], given[1][:, keep]
            r = [np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)]
            return [float(np.mean(r)), float(np.mean(one.std(1) / other.std(1)))]

        value, se = measure_array(found, values, replicates, run_response.blocks)
        noise = [
            np.corrcoef(single[:, 0, head].ravel(), single[:, 1, head].ravel())[0, 1]
            for head in range(values.shape[1])
        ]
        tables.append(
            pl.DataFrame(
                {
                    "form": [form] * len(BESIDE_CONTROL),
                    "quantity": BESIDE_CONTROL,
                    "value": [*value, float(np.mean(noise))],
                    "se": [*se, float(np.std(noise) / np.sqrt(len(noise)))],
                }
            )
        )
    return pl.concat(tables)


def tables_of(
    data: PerToken, results: Path, roles: Mapping[str, str], control: bool
) -> dict[str, pl.DataFrame]:
    """All tables of the run or of its control."""
    found: dict[str, list[pl.DataFrame]] = {}
    response = response_of(data)

    def add(name: str, table: pl.DataFrame, **labels: str) -> None:
        columns = [pl.lit(value).alias(key) for key, value in labels.items()]
        found.setdefault(name, []).append(table.select(*columns, pl.all()))

    categories = category_table(data, results)[response.rows]
    tokens = data.tokens[response.rows]
    for scope, own in scopes(response).items():
        for scaling, standardize in SCALINGS.items():
            # The other way to scale is shown beside, for chi of the run alone.
            if control and not standardize:
                continue
            for form in RESPONSE_FORMS if standardize else ("chi",):
                labels = {"scope": scope, "scaling": scaling}
                tables, pca = pca_tables(own, roles, form, standardize)
                for name, table in tables.items():
                    add(name, table, **labels, form=form)
                if form == "chi":
                    shares, built = made_of(own, pca, standardize)
                    add("made_of", shares, **labels)
                    add("construction", built, **labels)
                if scope == ALL and standardize:
                    enrichment, ends = end_tables(own, form, pca, categories, tokens, FIRST)
                    add("enrichment", with_interval(enrichment, own.df), form=form)
                    add("ends", ends, form=form)
    add("sizes", sizes(response))
    reliability = pl.read_parquet(folder_of(results, data.step, control) / RELIABILITY)
    growth, half = reliability_tables(response, reliability, data.draws)
    add("reliability", growth)
    add("half", half)
    return {name: pl.concat(tables) for name, tables in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    progress = Progress()
    roles = roles_of(results)
    found: dict[str, list[pl.DataFrame]] = {}
    given = sources(results)
    if "control" in given:
        beside = beside_control(response_of(given["run"]), response_of(given["control"]))
        found["beside_control"] = [beside]
    else:
        empty = {"form": pl.String, "quantity": pl.String, "value": pl.Float64, "se": pl.Float64}
        found["beside_control"] = [pl.DataFrame(schema=empty)]
    for source, data in given.items():
        for name, table in tables_of(data, results, roles, source == "control").items():
            found.setdefault(name, []).append(
                table.select(pl.lit(source).alias("source"), pl.all())
            )
        progress(f"{source}: {len(data.tokens)} tokens, {len(data.heads)} heads")
    for name, tables in found.items():
        with atomic_path(results / FOLDER / f"{name}.parquet") as path:
            pl.concat(tables).write_parquet(path)
    first = pl.concat(found["variance"]).filter(
        (pl.col("scope") == ALL) & (pl.col("scaling") == "standardized") & (pl.col("pc") == 1)
    )
    for row in first.iter_rows(named=True):
        if row["form"] in FORMS:
            print(f"{row['source']}, {row['form']}: share of PC1 {row['share']:.4f}")


if __name__ == "__main__":
    run(main)
