"""A results folder with invented values, holding all that the report reads."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import polars as pl

from susceptibilities.render import Highlight, highlight_page, write_table, write_text
from susceptibilities.store import write_json

SECTION_1 = "baker2025/s4_1_dataset_susceptibilities"
SECTION_2 = "baker2025/s4_2_trajectory_pca"
NASTY = '<img src="http://evil.example/x.png"> & "quoted"'

MEASURED: dict[str, dict[str, Any]] = {
    SECTION_1: {
        "baker2025.alg1.identity": {
            "value": 0,
            "se": 0.0,
            "n": 120,
            "holds": True,
            "statistic": "contexts that change when the base sample is mixed with itself",
            "bound": "0",
        },
        "baker2025.def.zero": {
            "value": 1.9,
            "se": None,
            "n": 16,
            "holds": True,
            "statistic": "largest |chi| / se of `mixture` over 16 heads",
            "bound": "corrected p >= 0.05",
            "carried_by": "rank-one",
        },
        "baker2025.s41.signs": {
            "value": [0.81, -0.012],
            "se": [0.06, 0.002],
            "n": 16,
            "holds": False,
            "statistic": "share of heads with positive chi at the last checkpoint",
            "bound": "more than half, and a previous-token head negative",
            "carried_by": "rank-one",
            "note": "python: 13 heads positive, 1 negative, 2 within their error of zero.",
        },
        "baker2025.s41.hackernews": {
            "value": None,
            "se": None,
            "n": 0,
            "holds": None,
            "note": "Not tested: no stand-in for hackernews in this corpus.",
        },
        "baker2025.s41.github_00": {"value": 0.0312, "se": 0.0041, "n": 4},
        "baker2025.s41.github_01": {"value": 0.0278, "se": 0.0045, "n": 4},
    },
    SECTION_2: {
        "baker2025.fig13.top3": {"value": 0.9931, "se": 0.0012, "n": 4},
        "baker2025.fig6.pc1_uniform": {
            "value": 0.71,
            "se": 0.04,
            "n": 4,
            "holds": True,
            "statistic": "smallest loading over largest, all of one sign",
            "bound": "above 0.5",
            "carried_by": "rank-one, mean shift",
        },
        "baker2025.fig6.pc2_loadings": {
            "holds": None,
            "statistic": "mean loading of the multigram heads",
            "bound": "below 0 by 2 se",
            "carried_by": "no part alone",
            "note": NASTY,
        },
    },
}

FIGURES: dict[str, list[dict[str, str]]] = {
    SECTION_1: [
        {
            "name": f"fig{number}",
            "caption": f"Susceptibility of every head to {domain} over training.",
            "paper_shows": "layer-1 heads fall apart after step 8,500, and 0:1 turns negative.",
        }
        for number, domain in (
            (3, "github"),
            (4, "freelaw"),
            *((n, f"dataset {n}") for n in range(16, 24)),
        )
    ],
    SECTION_2: [
        {"name": "fig6", "caption": "Loadings of the PCs on heads.", "paper_shows": NASTY},
        {"name": "fig13", "caption": "Scree plot of the joint PCA.", "paper_shows": "98 % in 3."},
        {"name": "table1", "caption": "Totals by head."},
    ],
}
NOT_DRAWN = "fig4"
TABLE = "table1"  # a table and nothing else
PAGE = "fig16"  # a picture and a page


def config(scale: str = "mini", *, hub: bool = False) -> dict[str, Any]:
    """A resolved scale file; ``hub``: the paper's own model and text."""
    text = {
        "kind": "hub",
        "name": "pile",
        "train": {"repo": "timaeus/dsir-pile-1m-2"},
        "domains": {"github": {"repo": "timaeus/pile-github"}},
    }
    model = {"kind": "hub", "repo": "georgeyw/L2W256-3m-rr"}
    return {
        "scale": scale,
        "corpus": text if hub else {"name": "packages", "kind": "packages"},
        "two_layer": {
            "model": model if hub else {"kind": "folder", "path": "models/two-layer-10d"},
            "checkpoints": [0, 500, 40000],
            "seed": 0,
            "sampler": {
                "method": "sgld",
                "n_beta": 30,
                "localization": 300,
                "chains": 4,
                "burn_in": 40,
            },
        },
    }


def write_png(path: Path, width: int = 900, height: int = 420) -> None:
    """A plain picture: horizontal stripes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes([255 if y // 30 % 2 else 215] * width) for y in range(height))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def write_experiments(folder: Path) -> None:
    """claims.yaml and figures.yaml of two sections (JSON is YAML too)."""
    for section, measured in MEASURED.items():
        (folder / section).mkdir(parents=True)
        listed = {"claims": [{"id": claim} for claim in measured]}
        write_json(folder / section / "claims.yaml", listed)
        write_json(folder / section / "figures.yaml", FIGURES[section])


def write_results(
    results: Path, *, scale: str = "mini", hub: bool = False, bare: bool = False
) -> None:
    """Everything the report reads; ``bare`` leaves out all that a run may lack."""
    write_json(results / "config.json", config(scale, hub=hub))
    for section, measured in MEASURED.items():
        write_json(results / section / "measured.json", measured)
    if bare:
        return
    names = [figure["name"] for figures in FIGURES.values() for figure in figures]
    for name in [*names, "structure"]:
        if name not in (NOT_DRAWN, TABLE):
            write_png(results / "figures" / f"{name}.png")
    totals = pl.DataFrame({"head": ["0:0", NASTY], "total": [167995.0, -150179.0]})
    write_table(results / "tables" / TABLE, totals, {"head": "Head", "total": "Total"}, "Totals")
    text = {
        "title": "Three heads",
        "panels": [
            {
                "label": "python",
                "tokens": [NASTY, "\n"],
                "tracks": [{"name": "0:0", "limit": 0.5, "values": [None, -0.25]}],
            }
        ],
    }
    page = highlight_page(Highlight.model_validate(text))
    write_text(results / "pages" / f"{PAGE}.html", page)
    write_json(
        results / "model" / "model.json",
        {"label": "two-layer-10d", "sha256": {"0": "ab" * 32, "40000": "cd" * 32}},
    )
    source = {"package": "sympy", "version": "1.14.0", "sha256": "00"}
    entry = {"documents": 388, "bytes": 5366911, "contexts": {"base": 3000, "probe": 500}}
    domains = {
        "python": {**entry, "stands_in_for": "github", "sources": [source]},
        NASTY: {**entry, "sources": [{"path": "text"}]},
    }
    write_json(results / "tokens" / "manifest.json", {"context": 128, "domains": domains})
    _write_tables(results)
    benchmarks = {
        "sample_000500": "61.5\t0:01:01\t812.5",
        "sample_000500.control": "60.0\t0:01:00\t700.0",
        "compare": "2.5\t0:00:02\t-",
    }
    (results / "benchmarks").mkdir()
    for name, line in benchmarks.items():
        (results / "benchmarks" / f"{name}.tsv").write_text(f"s\th:m:s\tmax_rss\n{line}\n")


def _write_tables(results: Path) -> None:
    section = results / SECTION_1
    parts = pl.DataFrame(
        {
            "form": ["chi", "covariance", "rank_one", "mean_shift"],
            "size": [0.0212, 8.1e-5, 0.0205, 0.0018],
            "reliability": [0.69, 0.01, 0.71, 0.22],
            "reliability_se": [0.04, 0.05, 0.04, 0.06],
            "pc1_share": [0.993, 0.19, 0.999, 0.30],
        }
    )
    parts.write_parquet(section / "parts.parquet")
    parts.with_columns(pl.col("size") * 0.3).write_parquet(section / "control_parts.parquet")
    _health().write_parquet(section / "health.parquet")
    pl.DataFrame(
        [
            {"step": 40000, "component": head, "chain": chain, "t": t, "loss": loss}
            for head in ("full", "0:0", "1:7")
            for chain in range(4)
            for t in range(80)
            for loss in [0.02 * (1 - 0.95**t) + 0.004 * ((7 * t + 13 * chain) % 11 - 5) / 5]
        ]
    ).write_parquet(section / "traces.parquet")
    long = pl.DataFrame(
        [
            {"step": step, "component": head, "form": form, "value": value, "se": 0.0008}
            for step in (500, 40000)
            for head in ("0:0", "1:7")
            for form, value in (("chi", 0.02), ("covariance", 1e-4), ("rank_one", 0.021))
        ]
    )
    long.write_parquet(section / "susceptibility.parquet")
    control = long.filter(pl.col("step") == 40000).with_columns(pl.col("value") * 0.3)
    control.write_parquet(section / "control.parquet")
    pl.DataFrame(
        {
            "claim": ["baker2025.fig6.pc1_uniform"] * 2,
            "convention": ["second_factor=full", "second_factor=same_chain"],
            "value": [0.71, 0.12],
            "holds": [True, None],
        }
    ).write_parquet(results / SECTION_2 / "sensitivity.parquet")
    (results / "structure").mkdir()
    pl.DataFrame(
        {
            "step": [500, 40000, 40000],
            "head": ["0:0", "0:0", "1:6"],
            "role": ["multigram", "previous-token", "induction"],
            "previous_token": [0.02, 0.51, 0.03],
            "previous_token_se": [0.001, 0.004, 0.001],
            "prefix_matching": [0.01, 0.01, 0.34],
            "current_token": [0.2, 0.05, 0.02],
        }
    ).write_parquet(results / "structure" / "heads.parquet")


def _health() -> pl.DataFrame:
    def row(step: int, component: str, chain: int, control: bool) -> dict[str, Any]:
        bad = component == "1:7" and chain == 3
        return {
            "step": step,
            "component": component,
            "chain": chain,
            "control": control,
            "rhat": 1.0 + 0.01 * chain,
            "ess": 40.0 - 30 * control,
            "lag1": float("nan") if control else 0.79,
            "acceptance": None if control else 0.93,
            "distance": 0.12,
            "rise": 0.02 * (step > 0),
            "healthy": not bad,
            "reason": f"diverged at step 31: {NASTY}" if bad else "",
        }

    return pl.DataFrame(
        [
            row(step, component, chain, control)
            for control in (False, True)
            for step in ((40000,) if control else (0, 500, 40000))
            for component in ("0:0", "1:7", "full")
            for chain in range(4)
        ]
    )
