"""A results folder with planted per-token susceptibilities, in the schemas of a real one.

Text is drawn at random from few tokens of the shipped tokenizer. What is planted:

- rank-one part: one vector over tokens for all heads, of ``COMMON`` by the token's text, times
  a size of its own for every head (``head_size``);
- mean shift: grows with the logarithm of the position in layer-1 multigram heads; is
  ``-REPEAT`` on the second and later occurrence of a bigram in induction heads; for the token
  ``BIMODAL`` and head 0:0 it is +/-``MODES`` by whether the token before is a backslash;
- covariance: noise alone. All parts carry independent noise in every chain.

In the n_beta = 0 control only the rank-one part is there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import NDArray

from susceptibilities.control_variate import estimator_table
from susceptibilities.estimators import FORMS
from susceptibilities.jackknife import jackknife_se
from susceptibilities.per_token import (
    ABLATION,
    ESTIMATOR,
    RELIABILITY,
    SUSCEPTIBILITY,
    TOKENS,
    folder_of,
)
from susceptibilities.store import read_json, write_json
from susceptibilities.token_sampling import token_table
from susceptibilities.tokens import load_tokenizer, token_strings
from synthetic_results import HEADS, ROLES, STAND_INS, STEPS, write_results

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "two-layer-10d"
COMPONENTS = ("full", *HEADS)
COMMON = {" ": -1.5, "\n": -1.0, " the": -0.6, " a": -0.5, " to": 0.2, "/": 0.4, "\\": 0.1}
COMMON |= {"ing": 0.8, "ed": 0.7, ")": 1.0, "]": 0.9, "1": 0.3, ",": -0.2, "://": 1.5, "http": 0.5}
BIMODAL, MODES, REPEAT, GROWTH = " to", 0.8, 0.5, 0.15


def head_size(component: str) -> float:
    """Size of the rank-one part of a component."""
    return 1.5 if component == "full" else (1.0 if component.startswith("0") else 0.3)


def _ids(strings: list[str]) -> NDArray[np.int64]:
    place = {text: number for number, text in enumerate(strings)}
    return np.array([place[text] for text in COMMON if text in place])


def _mean_shift(ids: NDArray[np.int64], strings: list[str]) -> dict[str, NDArray[np.float64]]:
    """Planted mean shift of every component, on the predicted tokens of ids (context, T)."""
    length = ids.shape[1]
    growth = np.broadcast_to(np.log(np.arange(1, length)), ids[:, 1:].shape)
    repeated = np.zeros(ids[:, 1:].shape)
    for row, context in enumerate(ids):
        seen = set()
        for place in range(1, length):
            pair = (context[place - 1], context[place])
            repeated[row, place - 1] = float(pair in seen)
            seen.add(pair)
    text = np.array(strings, dtype=object)[ids]
    after = np.where(text[:, :-1] == "\\", -MODES, MODES)
    modes = np.where(text[:, 1:] == BIMODAL, after, 0.0)
    planted = {}
    for name in COMPONENTS:
        value = np.zeros(ids[:, 1:].shape)
        if ROLES.get(name) == "multigram" and name.startswith("1"):
            value = value + GROWTH * growth
        if ROLES.get(name) == "induction":
            value = value - REPEAT * repeated
        if name == "0:0":
            value = value + modes
        planted[name] = value.ravel()
    return planted


def planted(
    results: Path,
    noise: float = 0.05,
    chains: int = 6,
    contexts: int = 20,
    length: int = 32,
    seed: int = 0,
) -> Path:
    """Write ``results`` (also what sections 4.1 and 4.2 read) with per-token tables; return it."""
    write_results(results, seed=seed)
    rng = np.random.default_rng(seed)
    strings = token_strings(load_tokenizer(MODEL))
    kinds = _ids(strings)
    probes: dict[str, NDArray[np.uint16]] = {}
    for place, name in enumerate([*STAND_INS, "mixture"]):
        # Every domain has its own mixture of the tokens.
        share = np.random.default_rng((seed, place)).dirichlet(np.full(len(kinds), 3.0))
        ids = rng.choice(kinds, (contexts, length), p=share).astype(np.uint16)
        ids[:, 0] = 0
        probes[name] = ids
        np.save(results / "tokens" / f"probe.{name}.npy", ids)
    order = sorted(probes)
    probes = {name: probes[name] for name in order}
    every = np.concatenate(list(probes.values())).astype(np.int64)
    losses = rng.gamma(1.5, 1.5, every[:, 1:].size)
    table = token_table(probes, strings, losses)
    common = np.array([COMMON[strings[token]] for token in every[:, 1:].ravel()])
    shift = _mean_shift(every, strings)
    step = STEPS[-1]
    for control in (False, True):
        folder = folder_of(results, step, control)
        folder.mkdir(parents=True)
        _write(folder, table, common, shift, step, control, chains, noise, rng)
    deltas = {head: 0.1 * rng.normal(size=len(table)).astype(np.float32) for head in HEADS}
    pl.DataFrame({"index": np.arange(len(table)), **deltas}).write_parquet(
        folder_of(results, step) / ABLATION
    )
    model = read_json(results / "model" / "model.json")
    write_json(results / "model" / "model.json", {**model, "path": MODEL.as_posix()})
    config = read_json(results / "config.json")
    config["two_layer"] |= {
        "seed": seed,
        "context": length,
        "per_token": {
            "checkpoints": [step],
            "control_checkpoints": [step],
            "contexts": contexts,
            "sampler": {"n_beta": 30.0, "chains": chains, "draws": 8, "batch": 4},
        },
    }
    write_json(results / "config.json", config)
    return results


def _write(
    folder: Path,
    table: pl.DataFrame,
    common: NDArray[np.float64],
    shift: dict[str, NDArray[np.float64]],
    step: int,
    control: bool,
    chains: int,
    noise: float,
    rng: np.random.Generator,
) -> None:
    shape = (chains, len(COMPONENTS), len(table))
    size = np.array([head_size(name) for name in COMPONENTS])
    # The unrestricted chains' noise is common to all components, as in a real rank-one part.
    shared = common + noise * rng.normal(size=(chains, 1, len(table)))
    parts = {
        "rank_one": shared * size[:, None],
        "mean_shift": np.stack([shift[name] for name in COMPONENTS]) * (0.0 if control else 1.0)
        + noise * rng.normal(size=shape),
        "covariance": 0.2 * noise * rng.normal(size=shape),
    }
    chi = {"chi": sum(parts.values()), **parts}
    variables, rows = {}, []
    for form in FORMS:
        values = np.asarray(chi[form])
        left_out = np.stack([np.delete(values, c, 0).mean(0) for c in range(chains)])
        variables[form] = (("component", "token"), values.mean(0))
        variables[f"{form}_se"] = (("component", "token"), jackknife_se(left_out))
        variables[f"{form}_replicate"] = (
            ("chain", "component", "token"),
            left_out.astype(np.float32),
        )
        for m in range(1, chains // 2 + 1):
            one, two = values[:m].mean(0), values[m : 2 * m].mean(0)
            rows += [
                {
                    "component": name,
                    "form": form,
                    "chains": m,
                    "draws": 8 * m,
                    "reliability": float(np.corrcoef(one[i], two[i])[0, 1]),
                    "se": 0.02,
                }
                for i, name in enumerate(COMPONENTS)
            ]
    data = xr.Dataset(variables)
    data.attrs = {
        "component": list(COMPONENTS),
        "step": step,
        "n_beta": 0.0 if control else 30.0,
        "draws": 8,
        "estimator": ["plain"] * len(COMPONENTS),
    }
    data.to_zarr(folder / SUSCEPTIBILITY, zarr_format=3, consolidated=False)
    estimator_table(COMPONENTS, ["plain"] * len(COMPONENTS), None).write_parquet(folder / ESTIMATOR)
    table.write_parquet(folder / TOKENS)
    pl.DataFrame(rows).write_parquet(folder / RELIABILITY)
