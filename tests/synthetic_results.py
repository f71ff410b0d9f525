"""A results folder with invented numbers in the schemas of a real one, for tests of figures.

Chi is made of a planted uniform mode (rank-one part), two planted patterns over heads (mean
shift) and noise, with independent chains, so that every claim of sections 4.1 and 4.2 has a known
answer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from susceptibilities.control_variate import estimator_table
from susceptibilities.cubes import FORMS
from susceptibilities.store import write_json

SECTION_41 = "baker2025/s4_1_dataset_susceptibilities"
HEADS = [f"{layer}:{head}" for layer in range(2) for head in range(8)]
STAND_INS = {
    "biomedical": "pubmed_central",
    "encyclopedia": "wikipedia_en",
    "speeches": "freelaw",
    "python": "github",
    "cpp": "github-all",
    "mathematics": "dm_mathematics",
    "docstrings": "stackexchange",
    "scripture": "gutenberg",
    "services": "uspto_backgrounds",
    "translations": "europarl",
}
STEPS = [
    *(0, 80, 160, 240, 320, 400, 480, 560, 640, 720, 800, 1200, 1600, 2400, 3200, 4000),
    *(4800, 5600, 6400, 7200, 8000, 10000, 12000, 14000, 16000, 20000, 24000, 32000, 39920),
]
ROLES = dict.fromkeys(HEADS, "multigram") | {
    "0:1": "previous-token",
    "0:4": "previous-token",
    "0:5": "current-token",
    "1:6": "induction",
    "1:7": "induction",
}


def grown(steps: np.ndarray, middle: float, width: float = 0.6) -> np.ndarray:
    """A smooth rise from 0 to 1 around a step."""
    return 1.0 / (1.0 + np.exp(-(np.log(steps + 30.0) - np.log(middle)) / width))


def planted(chains: int, noise: float, seed: int) -> dict[str, np.ndarray]:
    """Parts by name, each (chain, probe, step, head); the last probe is the control, near zero."""
    rng = np.random.default_rng(seed)
    t = np.array(STEPS, dtype=float)
    names = [*STAND_INS, "mixture"]
    head = np.arange(16)
    # In the order of STAND_INS: how strongly each probe drives the three patterns.
    uniform = np.array([-0.6, -0.9, 0.8, 1.2, 0.9, 1.5, 0.4, 0.5, 0.7, -1.3, 0.0])
    second = np.array([0.6, 0.9, 0.4, -1.2, -0.8, -1.0, -0.1, 0.8, 0.1, 0.3, 0.0])
    third = np.array([-0.2, -0.1, 0.1, 0.1, -0.2, 1.6, -0.7, 0.1, -0.3, -0.3, 0.0])
    multigram = np.where(head < 8, 0.1, np.where(head < 14, -1.0, 0.2))
    multigram[[1, 4]] = 1.2
    induction = np.where(head >= 14, -1.2, 0.0)
    induction[[0, 5]] = 0.6
    size = np.where(head < 8, 1.0, 0.5)
    curve = grown(t, 300) * (1.0 - 0.35 * grown(t, 9000, 0.3))
    base = 0.03 * np.einsum("p,t,h->pth", uniform, curve, size)
    shift = 0.006 * np.einsum("p,t,h->pth", second, grown(t, 1500), multigram * size)
    shift += 0.006 * np.einsum("p,t,h->pth", third, grown(t, 6000, 0.3), induction * size)
    shape = (chains, len(names), len(t), 16)
    return {
        "rank_one": base * (1.0 + noise * rng.normal(size=(chains, 1, len(t), 16))),
        "mean_shift": shift + noise * 4e-3 * size * rng.normal(size=shape),
        "covariance": noise * 2e-3 * rng.normal(size=shape),
    }


def long_tables(chains: int, noise: float, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """susceptibility and replicates in the schemas of section 4.1."""
    parts = planted(chains, noise, seed)
    values = {"chi": sum(parts.values()), **parts}
    probes = [*STAND_INS, "mixture"]
    grid = np.indices((len(probes), len(STEPS), len(HEADS))).reshape(3, -1)
    keys = {
        "step": [STEPS[i] for i in grid[1]],
        "probe": [probes[i] for i in grid[0]],
        "component": [HEADS[i] for i in grid[2]],
    }
    tables, replicates = [], []
    for form in FORMS:
        array = np.asarray(values[form])
        left_out = np.stack([np.delete(array, c, 0).mean(0) for c in range(chains)])
        chain = array.std(0, ddof=1) / np.sqrt(chains)
        data = np.full_like(chain, 3e-4)
        tables.append(
            pl.DataFrame(keys).with_columns(
                form=pl.lit(form),
                value=array.mean(0).ravel(),
                se=np.hypot(chain, data).ravel(),
                se_chain=chain.ravel(),
                se_data=data.ravel(),
                n_chains=pl.lit(chains, pl.Int64),
                estimator=pl.lit("plain"),
            )
        )
        replicates += [
            pl.DataFrame(keys).with_columns(
                form=pl.lit(form), replicate=pl.lit(c, pl.Int64), value=left_out[c].ravel()
            )
            for c in range(chains)
        ]
    return pl.concat(tables), pl.concat(replicates)


def structure_tables(seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """heads.parquet and repeats.parquet."""
    rng = np.random.default_rng(seed)
    t = np.array(STEPS, dtype=float)
    rows = []
    for head, role in ROLES.items():
        for step, early, late in zip(STEPS, grown(t, 1500), grown(t, 9000, 0.25), strict=True):
            scores = {
                "previous_token": 0.02 + 0.7 * early * (role == "previous-token"),
                "prefix_matching": 0.01 + 0.45 * late * (role == "induction"),
                "current_token": 0.03 + 0.6 * early * (role == "current-token"),
            }
            row: dict[str, object] = {"step": step, "head": head, "role": role}
            for name, score in scores.items():
                row[name] = score + 0.01 * abs(rng.normal())
                row[f"{name}_se"] = 0.01
            rows.append(row)
    position = np.arange(1, 127)
    repeats = []
    for step, late in zip(STEPS, grown(t, 9000, 0.25), strict=True):
        loss = 7.6 + 1.2 * late - 3.6 * late * (position > 63)
        loss = loss + 0.08 * rng.normal(size=len(position))
        repeats.append(pl.DataFrame({"step": step, "position": position, "loss": loss, "se": 0.06}))
    return pl.DataFrame(rows), pl.concat(repeats)


def write_results(folder: Path, chains: int = 4, noise: float = 0.1, seed: int = 0) -> Path:
    """Write the folder ``results/<scale>`` that sections 4.1 and 4.2 read, and return it."""
    section = folder / SECTION_41
    for path in (section, folder / "structure", folder / "tokens", folder / "model"):
        path.mkdir(parents=True, exist_ok=True)
    susceptibility, replicates = long_tables(chains, noise, seed)
    susceptibility.write_parquet(section / "susceptibility.parquet")
    replicates.write_parquet(section / "replicates.parquet")
    control = long_tables(chains, 1.0, seed + 1)[0].with_columns(value=pl.col("value") * 0.01)
    control.filter(pl.col("step") == STEPS[-1]).write_parquet(section / "control.parquet")
    pl.DataFrame(
        {
            "form": FORMS,
            "size": [0.02, 1e-4, 0.02, 3e-3],
            "reliability": [0.97, 0.02, 0.99, 0.8],
            "reliability_se": [0.01, 0.05, 0.01, 0.05],
            "pc1_share": [0.9, 0.1, 0.99, 0.4],
        }
    ).write_parquet(section / "parts.parquet")
    heads, repeats = structure_tables(seed)
    heads.write_parquet(folder / "structure" / "heads.parquet")
    repeats.write_parquet(folder / "structure" / "repeats.parquet")
    domains = {name: {"stands_in_for": subset} for name, subset in STAND_INS.items()}
    write_json(folder / "tokens" / "manifest.json", {"domains": domains})
    base = np.random.default_rng(seed).integers(0, 2048, (120, 128)).astype(np.uint16)
    np.save(folder / "tokens" / "base.npy", base)
    write_json(folder / "model" / "model.json", {"label": "two-layer-10d", "steps": STEPS})
    plain = estimator_table(["full", *HEADS], ["plain"] * 17, None)
    step = pl.lit(STEPS[-1], pl.Int64)
    plain = plain.select(step.alias("step"), pl.lit(False).alias("control"), *plain.columns)
    plain.write_parquet(section / "estimator.parquet")
    settings = {"delta_h": 0.1, "sampler": {"n_beta": 30.0, "chains": chains, "draws": 4}}
    write_json(folder / "config.json", {"scale": "mini", "two_layer": settings})
    return folder
