"""Section 4.5's tables: means against dataset susceptibilities, totals, and gaps of heads."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from slope_fits import Points, fit, interval_of, losses_of, noise_shares, points, resample
from token_totals import (
    PUBLISHED_TOKENS,
    TOTALS,
    Gap,
    all_gaps,
    by_token,
    noise_total,
    sample,
    space_with_errors,
    totals,
    totals_with_errors,
)

from susceptibilities.console import run
from susceptibilities.cubes import CONTROL_PROBE, PARTS, Array, long
from susceptibilities.estimators import FORMS
from susceptibilities.jackknife import Estimate
from susceptibilities.per_token import PerToken, load_per_token
from susceptibilities.store import atomic_path, read_json
from susceptibilities.subsets import place_of
from susceptibilities.token_errors import measure, measure_array

SOURCE = "baker2025/s4_1_dataset_susceptibilities"
FOLDER = "baker2025/s4_5_token_attribution"
PAIR, CODE = ("0:0", "0:1"), "github-all"  # the paper's heads and domain


def point_table(p: Points) -> pl.DataFrame:
    """Figure 9's points: ``dataset`` and ``mean`` with errors, and whether the line is theirs."""
    fitted = np.broadcast_to(p.fitted[:, None], p.x.shape)
    return long(
        [("probe", p.probes), ("component", p.heads)],
        dataset=p.x,
        dataset_se=p.x_se,
        mean=p.y,
        mean_se=p.y_se,
        fitted=fitted,
    )


def fit_table(p: Points) -> pl.DataFrame:
    """Statistics of the lines with 95 % intervals; the noise of either axis without."""
    found = fit(p)
    rows = [
        {"statistic": name, "value": e.value, "se": e.se, "low": low, "high": high}
        for name, e in found.items()
        for low, high in [interval_of(name, found)]
    ]
    noise = zip(("noise_dataset", "noise_mean"), noise_shares(p), strict=True)
    rows += [{"statistic": n, "value": v, "se": None, "low": None, "high": None} for n, v in noise]
    return pl.DataFrame(rows).with_columns(points=pl.lit(int(p.fitted.sum()) * len(p.heads)))


def total_table(data: PerToken, form: str, delta_h: float) -> pl.DataFrame:
    """`TOTALS` and the space token's moments of every probe and head, and noise alone's total."""
    tables = []
    for probe in data.probes:
        s = sample(data, probe, data.heads, form)
        value, se = totals_with_errors(s, delta_h)
        numbers = {name: value[:, i] for i, name in enumerate(TOTALS)}
        errors = {f"{name}_se": se[:, i] for i, name in enumerate(TOTALS)}
        space, space_se = space_with_errors(s)
        numbers |= {"space_mean": space[:, 0], "space_std": space[:, 1]}
        errors |= {"space_mean_se": space_se[:, 0], "space_std_se": space_se[:, 1]}
        table = long([("component", data.heads)], **numbers, **errors, noise=noise_total(s.se))
        found = {"probe": probe, "tokens": s.tokens, "spaces": int(s.is_space.sum())}
        columns = [pl.lit(value).alias(name) for name, value in found.items()]
        tables.append(table.with_columns(columns).fill_nan(None))
    return pl.concat(tables)


def chosen_gaps(data: PerToken, domains: Mapping[str, Any]) -> dict[str, Gap]:
    """The gaps that are taken apart: the paper's, and the largest ones here.

    ``paper`` is missing where the model or the corpus lacks its heads or its domain. The p of
    the others is corrected (Bonferroni) for all pairs of heads and probes they are chosen from.
    """
    found = all_gaps(data, tuple(p for p in data.probes if p != CONTROL_PROBE))
    chosen: dict[str, Gap] = {}
    place = place_of(CODE, domains)
    if place is not None:
        for gap in found:
            if gap.probe == place.probe and {gap.a, gap.b} == set(PAIR):
                chosen["paper"] = gap
    largest = {
        "clearest": max(found, key=lambda gap: gap.ratio),
        "largest": max(found, key=lambda gap: gap.sum.value),
    }
    for name, gap in largest.items():
        chosen[name] = replace(gap, p=min(1.0, gap.p * len(found)))
    return chosen


def by_sign(values: Array, keep: NDArray[np.bool_]) -> Array:
    """Differences of two heads' totals of positive and of negative values, (2,)."""
    both = totals(values, keep, 1.0)
    return (both[0] - both[1])[:2]


def gap_of(data: PerToken, gap: Gap, form: str) -> Estimate:
    """A gap of the sums in one form."""
    s = sample(data, gap.probe, (gap.a, gap.b), form)

    def difference(values: Array, keep: NDArray[np.bool_]) -> float:
        return float(PUBLISHED_TOKENS * (values[0, keep].mean() - values[1, keep].mean()))

    return measure(difference, s.values, s.replicates, s.blocks)


def gap_tables(
    data: PerToken, control: PerToken | None, gaps: Mapping[str, Gap]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row a chosen gap, with its parts and the control's, and one a gap and distinct token."""
    rows, tokens = [], []
    for name, gap in gaps.items():
        s = sample(data, gap.probe, (gap.a, gap.b))
        side, side_se = measure_array(by_sign, s.values, s.replicates, s.blocks)
        keys = {"gap_name": name, "probe": gap.probe, "head_a": gap.a, "head_b": gap.b}
        row = {**keys, "tokens": s.tokens, "gap": gap.sum.value, "gap_se": gap.sum.se}
        row |= {"ratio": gap.ratio, "p": gap.p}
        for sign, value, se in zip(("positive", "negative"), side, side_se, strict=True):
            row |= {f"{sign}_gap": float(value), f"{sign}_gap_se": float(se)}
        for form in PARTS:
            e = gap_of(data, gap, form)
            row |= {f"{form}_gap": e.value, f"{form}_gap_se": e.se}
        e = None if control is None else gap_of(control, gap, "chi")
        row |= {"control_gap": e and e.value, "control_gap_se": e and e.se}
        rows.append(row)
        table = by_token(s)
        # The paper explains the gap of the negative totals, the larger of the two.
        larger = float(max(side, key=abs))
        difference = pl.col("mean_a") - pl.col("mean_b")
        frequency = pl.col("count") / s.tokens
        tokens.append(
            table.select(
                *(pl.lit(text).alias(key) for key, text in keys.items()),
                pl.all(),
                frequency=frequency,
                share_of_side=PUBLISHED_TOKENS * frequency * difference / larger,
            )
        )
    return pl.DataFrame(rows), pl.concat(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<scale>")
    results: Path = parser.parse_args().results
    settings = read_json(results / "config.json")["two_layer"]
    domains = read_json(results / "tokens" / "manifest.json")["domains"]
    runs = {False: "susceptibility"}
    if settings["per_token"]["control_checkpoints"]:
        runs[True] = "control"
    tables: dict[str, list[pl.DataFrame]] = {"points": [], "fits": [], "totals": []}
    sides = {control: load_per_token(results, control) for control in runs}
    for control, name in runs.items():
        data = sides[control]
        dataset = pl.read_parquet(results / SOURCE / f"{name}.parquet")
        resampled = resample(losses_of(results, data.step, control))
        for form in FORMS:
            found = {"totals": total_table(data, form, settings["delta_h"])}
            # The control of the dataset susceptibilities may be at other checkpoints.
            if len(dataset) and data.step in dataset["step"]:
                p = points(data, dataset, resampled, form)
                found |= {"points": point_table(p), "fits": fit_table(p)}
            for key, table in found.items():
                tables[key].append(table.with_columns(form=pl.lit(form), control=pl.lit(control)))
    data = sides[False]
    gaps, tokens = gap_tables(data, sides.get(True), chosen_gaps(data, domains))
    frames = {key: pl.concat(parts) for key, parts in tables.items()}
    for key, frame in {**frames, "gaps": gaps, "gap_tokens": tokens}.items():
        with atomic_path(results / FOLDER / f"{key}.parquet") as path:
            frame.write_parquet(path)
    for row in frames["fits"].filter(pl.col("form") == "chi").iter_rows(named=True):
        print(f"control {row['control']}, {row['statistic']}: {row['value']:.3g} ± {row['se']}")
    for row in gaps.iter_rows(named=True):
        print(f"gap {row['gap_name']}: {row['head_a']} - {row['head_b']} on {row['probe']}")


if __name__ == "__main__":
    run(main)
