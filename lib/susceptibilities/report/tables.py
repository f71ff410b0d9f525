"""Tables of the report, from the saved Parquet files of a run. Nothing is estimated here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ..claims import InputError
from .numbers import format_count, format_number

FORMS = {
    "chi": "χ, published form",
    "covariance": "covariance",
    "rank_one": "rank-one",
    "mean_shift": "mean shift",
}
LISTED = 25  # rows of a list of chains left out


@dataclass(frozen=True)
class Table:
    """A captioned table. Columns in ``text`` are words, the others numbers."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = (0,)
    note: str = ""


def read_table(path: Path, columns: Sequence[str]) -> pl.DataFrame | None:
    """Read a Parquet file, or None where the run has none or it has no rows.

    Raises:
        InputError: a column that the report needs is missing.
    """
    if not path.exists():
        return None
    table = pl.read_parquet(path)
    if table.is_empty():
        return None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; found {table.columns}")
    return table


def number(row: Mapping[str, Any], name: str) -> str:
    """Column ``name`` of a row with the error in ``<name>_se``, if there is one."""
    value = row.get(name)
    return "" if value is None else format_number(value, row.get(f"{name}_se"))


def parts_table(section: Path, file: str = "parts.parquet", caption: str = "") -> Table | None:
    """Size, reliability and PC1 share of chi and of its three parts."""
    columns = ("size", "reliability", "pc1_share")
    table = read_table(section / file, ["form", *columns])
    if table is None:
        return None
    rows = {row["form"]: row for row in table.iter_rows(named=True)}
    return Table(
        caption or "How large each part of χ is, and how well two halves of the chains agree on it",
        ("Part", "Size", "Reliability over chains", "Share of PC1"),
        [
            (label, *(number(rows[form], name) for name in columns))
            for form, label in FORMS.items()
            if form in rows
        ],
        note="Size: standard deviation over checkpoints, heads and probes. Reliability: "
        "correlation of the estimates from two halves of the chains; 0 is noise, 1 is certain.",
    )


def parts_sentence(section: Path) -> str:
    """Which part is largest and which is most reliable, in words."""
    table = read_table(section / "parts.parquet", ["form", "size", "reliability"])
    if table is None:
        return ""
    rows = {row["form"]: row for row in table.iter_rows(named=True)}
    parts = [rows[form] for form in FORMS if form != "chi" and form in rows]
    if not parts or "chi" not in rows or not rows["chi"]["size"]:
        return ""
    largest = max(parts, key=lambda row: row["size"])
    text = (
        f"In this run the largest part is the {FORMS[largest['form']]} part: its size is "
        f"{largest['size'] / rows['chi']['size']:.0%} of that of χ"
    )
    known = [row for row in parts if row["reliability"] is not None]
    if not known:
        return text + "."
    surest = max(known, key=lambda row: row["reliability"])
    also = (
        "It is also the most reliable"
        if surest is largest
        else (f"The most reliable is the {FORMS[surest['form']]} part")
    )
    return f"{text}. {also} (reliability {number(surest, 'reliability')})."


HEALTH = ("step", "component", "chain", "control", "healthy", "reason")
DIAGNOSTICS = {
    "rhat": "R-hat",
    "ess": "Effective sample size",
    "lag1": "Lag-1 autocorrelation",
    "acceptance": "MALA acceptance",
    "distance": "Distance from w*",
    "rise": "Rise of the loss",
}


def health_tables(section: Path) -> list[Table]:
    """Diagnostics of the chains beside those of the control, and the chains left out."""
    table = read_table(section / "health.parquet", HEALTH)
    if table is None:
        return []
    runs = {
        "sampling": table.filter(~pl.col("control")),
        "control (n_beta = 0)": table.filter(pl.col("control")),
    }
    runs = {name: run for name, run in runs.items() if not run.is_empty()}
    rows = [
        ("Chains", *(format_count(run.height) for run in runs.values())),
        (
            "Chains left out",
            *(format_count(run.filter(~pl.col("healthy")).height) for run in runs.values()),
        ),
    ]
    for name, label in DIAGNOSTICS.items():
        if name in table.columns:
            rows.append((label, *(_spread(run[name]) for run in runs.values())))
    tables = [
        Table(
            "Diagnostics over all chains: median, and the range that holds 95 % of them",
            ("Diagnostic", *runs),
            rows,
            note="R-hat is near 1 where chains agree. The control samples from the prior around "
            "w* alone: what it shows is not about the loss.",
        )
    ]
    bad = table.filter(~pl.col("healthy")).sort("step", "component", "chain")
    if not bad.is_empty():
        tables.append(
            Table(
                f"Chains left out of every estimate, with the reason ({bad.height})",
                ("Checkpoint", "Component", "Chain", "Run", "Reason"),
                [
                    (
                        str(row["step"]),
                        row["component"],
                        str(row["chain"]),
                        "control" if row["control"] else "sampling",
                        row["reason"] or "",
                    )
                    for row in bad.head(LISTED).iter_rows(named=True)
                ],
                text=(1, 3, 4),
                note=f"The first {LISTED} are listed." if bad.height > LISTED else "",
            )
        )
    return tables


def _spread(values: pl.Series) -> str:
    finite = values.cast(pl.Float64).drop_nulls().drop_nans()
    if finite.is_empty():
        return "not measured"
    middle, low, high = (finite.quantile(q, "linear") or 0.0 for q in (0.5, 0.025, 0.975))
    return f"{format_number(middle)} ({format_number(low)} to {format_number(high)})"


def control_tables(section: Path) -> list[Table]:
    """The parts of chi in the n_beta = 0 control, and chi there beside the sampled one."""
    parts = parts_table(
        section, "control_parts.parquet", "The parts of χ in the n_beta = 0 control"
    )
    return [table for table in (_control_sizes(section), parts) if table is not None]


def _control_sizes(section: Path) -> Table | None:
    columns = ["step", "form", "value", "se"]
    control = read_table(section / "control.parquet", columns)
    sampled = read_table(section / "susceptibility.parquet", columns)
    if control is None or sampled is None:
        return None
    sampled = sampled.filter(pl.col("step").is_in(control["step"].unique().to_list()))

    def size(table: pl.DataFrame, form: str) -> str:
        values = table.filter(pl.col("form") == form)
        middle = values.select(pl.col("value").abs().median(), pl.col("se").median()).row(0)
        if middle[0] is None:
            return ""
        return f"{format_number(middle[0])} (se {format_number(middle[1])})"

    return Table(
        "The n_beta = 0 control beside the sampled posterior: median absolute value",
        ("Part", "Sampling", "Control"),
        [
            (label, size(sampled, form), size(control, form))
            for form, label in FORMS.items()
            if size(control, form)
        ],
        note="At the checkpoints where the control was run; in brackets the median standard "
        "error. The control's chains have the same noise and minibatch orders as the sampled ones: "
        "the two differ by what the loss does alone, and are no independent repetitions. A "
        "conclusion that the control shares does not come from the loss.",
    )


def sensitivity_table(results: Path) -> Table | None:
    """How each conclusion moves under the named conventions."""
    rows: list[tuple[str, ...]] = []
    for path in sorted(results.glob("*/*/sensitivity.parquet")):
        table = read_table(path, ["claim", "convention", "value", "holds"])
        for row in table.iter_rows(named=True) if table is not None else ():
            value = row["value"]
            text = (
                value
                if isinstance(value, str) or value is None
                else format_number(value, row.get("se"))
            )
            rows.append((row["claim"], row["convention"], text or "", _holds(row["holds"])))
    if not rows:
        return None
    return Table(
        "Each conclusion under every convention",
        ("Claim", "Convention", "Value", "Conclusion"),
        rows,
        text=(0, 1, 3),
    )


def _holds(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "undecided" if value is None else ("holds" if value else "fails")


def structure_table(results: Path) -> Table | None:
    """Structural scores and role of every head at the last checkpoint."""
    scores = ("previous_token", "prefix_matching", "current_token")
    table = read_table(results / "structure" / "heads.parquet", ["step", "head", "role", *scores])
    if table is None:
        return None
    last = table.filter(pl.col("step") == pl.col("step").max()).sort("head")
    return Table(
        f"Heads of the model at its last checkpoint, step {last['step'][0]}",
        ("Head", "Role", "Previous token", "Prefix matching", "Current token"),
        [
            (row["head"], row["role"], *(number(row, name) for name in scores))
            for row in last.iter_rows(named=True)
        ],
        text=(0, 1),
        note="Mean attention to the previous token, to the token after the last occurrence of "
        "the current one (random repeated tokens), and to the current token.",
    )


def data_table(manifest: Mapping[str, Any]) -> Table | None:
    """Domains of the corpus: source, version, the subset each stands in for, sizes."""
    domains: Mapping[str, Any] = manifest.get("domains", {})
    if not domains:
        return None
    length = manifest.get("context", 0)
    return Table(
        "Domains of the text",
        ("Domain", "Stands in for", "Source", "Documents", "Text", "Tokens used"),
        [
            (
                name,
                str(entry.get("stands_in_for") or ""),
                _source(entry),
                format_count(entry.get("documents")),
                f"{entry['bytes'] / 1e6:.1f} MB" if "bytes" in entry else "",
                format_count(sum(entry.get("contexts", {}).values()) * length),
            )
            for name, entry in domains.items()
        ],
        text=(0, 1, 2),
        note="Tokens used: contexts of every split that this run has packed, the sampler’s and "
        "the probes’; training read other documents.",
    )


def _source(entry: Mapping[str, Any]) -> str:
    sources = entry.get("sources") or [entry.get("source") or {}]
    texts = []
    for source in sources:
        if not isinstance(source, Mapping):
            texts.append(str(source))
            continue
        name = next(
            (source[k] for k in ("package", "repo", "path", "generator") if k in source), ""
        )
        texts.append(" ".join(str(x) for x in (name, source.get("version", "")) if x != ""))
    return ", ".join(text for text in texts if text)
