"""This project's paths and devinterp 2.0.1, side by side in one run.

    python benchmarks/compare.py            # all heads of both models, about ten minutes
    python benchmarks/compare.py --quick    # three heads of each, about two minutes

Every path gets the same model, text, components, chains, draws and settings, a process of its
own and one thread, one after another. Prints a table for each model. A whole run is also written
as JSON to benchmarks/results/compare.json (``--out``; a quick run writes only there), and its
tables into benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import machine
import peer
import rendering
import same_draws
from cases import NAMES, Case, cases
from measure import (
    ALLOCATED,
    CHI,
    DEVINTERP,
    FAST,
    NARROW,
    PATHS,
    PLAIN,
    RESULT,
    VARIATE,
    sampler_of,
)
from susceptibilities.components import Component
from susceptibilities.jackknife import jackknife_se
from susceptibilities.models.shapes import Shape
from susceptibilities.planning import work
from susceptibilities.posterior import SamplerConfig
from susceptibilities.store import read_json, write_json

HERE = Path(__file__).parent
DEFAULT_OUT = HERE / "results" / "compare.json"
README = HERE / "README.md"
# What stands between these lines of the README is a whole run's.
MARKS = ("<!-- compare.py writes from here -->", "<!-- to here -->")


def useful_operations(
    case: Case, sampler: SamplerConfig, shape: Shape, parts: list[Component]
) -> float:
    """Operations of the matrix products that the fast path needs for the draws and steps."""
    contexts, length = case.base + case.probe, case.context
    total = 0.0
    for part in parts:
        settings = sampler.of(part.name)
        draws = settings.chains * settings.draws
        evaluated = (
            work.evaluation(part, shape, draws, contexts, length)
            + work.shared(part, shape, contexts, length)
            + work.projected_outputs(part, shape, draws)
            + work.streams_below(part, shape, case.base, length)
        )
        step = work.gradient(part, shape, settings.chains, settings.batch, length)
        total += (evaluated + step * settings.steps).operations
    return total


def plain_operations(case: Case, shape: Shape, parts: list[Component]) -> float:
    """Operations of the matrix products of the same draws and steps, the whole model each time."""
    contexts, length, settings = case.base + case.probe, case.context, case.sampler
    evaluated = work.plain_evaluation(shape, case.draws, contexts, length).operations
    steps = [
        work.plain_gradient(part, shape, settings.chains, settings.batch, length).operations
        for part in parts
    ]
    return len(parts) * evaluated + settings.steps * sum(steps)


def run_process(script: str, *arguments: str) -> None:
    """Run one of the scripts beside this one, on one thread."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS")}
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env={**os.environ, **threads, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments[1:])} failed:\n{done.stderr[-4000:]}")


def run_case(case: Case, folder: Path, paths: list[str], peaks: dict[str, float]) -> dict[str, Any]:
    """All paths of one case, and the differences between them."""
    folder.mkdir()
    (folder / "case.json").write_text(case.model_dump_json(), encoding="utf-8")
    case.write_tokens(folder)
    if case.shape is not None:
        # Statistics of a model that has learned nothing say nothing.
        paths = [path for path in paths if path not in (VARIATE, ALLOCATED)]
    found: dict[str, dict[str, Any]] = {}
    chi: dict[str, Any] = {}
    for path in paths:
        print(f"{case.name}: {rendering.TITLES[path]} ...", file=sys.stderr, flush=True)
        run_process("measure.py", str(folder), path)
        found[path] = read_json(folder / path / RESULT)
        with np.load(folder / path / CHI) as file:
            chi[path] = dict(file)
    print(f"{case.name}: all paths on the same draws ...", file=sys.stderr, flush=True)
    run_process("same_draws.py", str(folder))
    differences = read_json(folder / same_draws.RESULT)

    model = case.model()
    shape, parts = model.config, case.parts(model)
    plain = plain_operations(case, shape, parts)
    for path, result in found.items():
        sampler = sampler_of(case, path)
        useful = useful_operations(case, sampler, shape, parts)
        evaluated = case.tokens * sampler.chains * sum(sampler.of(p.name).draws for p in parts)
        se = jackknife_se(chi[path]["replicates"])
        result |= {
            "microseconds": result["processor_seconds"] * 1e9 / evaluated,
            "useful_share": useful / result["processor_seconds"] / peaks["float32"],
            "typical_se": float(np.median(se)),
            "typical_chi": float(np.median(np.abs(chi[path]["chi"]))),
            "chi_difference": differences.get(path),
        }
        if path in (DEVINTERP, PLAIN):
            result["own_share"] = plain / result["processor_seconds"] / peaks["float32"]
        result["variance"] = {
            part: _variance_ratio(chi, path, replicates)
            for part, replicates in (
                ("chi", "replicates"),
                ("mean_shift", "mean_shift_replicates"),
            )
        }
        for part, (ratio, _) in result["variance"].items():
            result[f"{part}_cost"] = result["processor_seconds"] * ratio
    if DEVINTERP in found:
        for result in found.values():
            for name in rendering.RATIOS:
                result[f"times_{name}"] = found[DEVINTERP][name] / result[name]
    return {
        "case": case.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": case.tokens,
        "operations": {
            "useful": useful_operations(case, case.sampler, shape, parts),
            "whole_model": plain,
        },
        "paths": found,
        "agreement": _agreement(chi),
    }


def _log_variances(replicates: np.ndarray) -> np.ndarray:
    """Log of the variance of an estimate, of all chains and without each of them.

    The variance is summed over tokens, its logarithm averaged over heads.

    Args:
        replicates: the estimate without each chain, (chain, head, token).
    """
    chains = len(replicates)
    # A chain's own share, but for what all have in common.
    own = -(chains - 1) * replicates
    kept = [np.arange(chains) != left for left in range(chains + 1)]
    sums = [own[k].var(0, ddof=1).sum(-1) / k.sum() for k in kept[-1:] + kept[:-1]]
    return np.log(sums).mean(-1)


def _variance_ratio(chi: dict[str, Any], path: str, replicates: str) -> tuple[float, float]:
    """Variance over that of the plain estimator with the case's draws, and its error as a factor.

    With the control variate alone that is from the same chains; with other draws from those of
    the fast path.
    """
    if path in (DEVINTERP, PLAIN, FAST, NARROW):
        return 1.0, 1.0
    mine = _log_variances(chi[path][replicates])
    if path == VARIATE:
        difference = mine - _log_variances(chi[path][f"plain_{replicates}"])
        error = jackknife_se(difference[1:])
        return float(np.exp(difference[0])), float(np.exp(error))
    if FAST not in chi:
        return float("nan"), float("nan")
    other = _log_variances(chi[FAST][replicates])
    error = np.hypot(jackknife_se(mine[1:]), jackknife_se(other[1:]))
    return float(np.exp(mine[0] - other[0])), float(np.exp(error))


def _agreement(chi: dict[str, Any]) -> dict[str, float | None] | None:
    """devinterp's chi against the fast path's: chains of their own, so in standard errors."""
    if not {DEVINTERP, FAST} <= set(chi):
        return None
    one, two = chi[DEVINTERP], chi[FAST]
    error = np.hypot(jackknife_se(one["replicates"]), jackknife_se(two["replicates"]))
    chains = len(one["replicates"])
    freedom = 2 * (chains - 1)
    return {
        "rms_z": float(np.sqrt(np.square((one["chi"] - two["chi"]) / error).mean())),
        "expected_rms_z": float(np.sqrt(freedom / (freedom - 2))) if chains > 2 else None,
        "correlation": float(np.corrcoef(one["chi"].ravel(), two["chi"].ravel())[0, 1]),
        "se_ratio": float(
            np.median(jackknife_se(one["replicates"]) / jackknife_se(two["replicates"]))
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const="quick", dest="size")
    size.add_argument(
        "--tiny", action="store_const", const="tiny", dest="size", help="seconds; for the tests"
    )
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS, help="all by default")
    parser.add_argument("--cases", nargs="+", choices=NAMES, default=NAMES, help="both by default")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    args.size = args.size or "default"
    whole = args.size == "default" and set(args.paths) == set(PATHS) and len(args.cases) == 2
    out = args.out or (DEFAULT_OUT if whole else None)
    paths = [path for path in args.paths if path != DEVINTERP or peer.installed()]
    if len(paths) < len(args.paths):
        print(
            "devinterp is not installed and is left out; `pip install -e '.[benchmarks]'` adds it",
            file=sys.stderr,
        )
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    peaks = {
        name: machine.matmul_peak(getattr(torch, name), quick=args.size == "tiny")
        for name in ("float32", "bfloat16")
    }
    result: dict[str, Any] = {
        "machine": machine.description(),
        "load_before": load,
        "matmul_peak": peaks,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        for case in (case for case in cases(args.size) if case.name in args.cases):
            found = run_case(case, Path(scratch) / case.name, paths, peaks)
            result["cases"].append(found)
    told = rendering.report(result)
    print(told)
    if out:
        write_json(out, result)
    if out == DEFAULT_OUT:
        before, _, rest = README.read_text(encoding="utf-8").partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        text = "\n".join([MARKS[0], "", told, "", MARKS[1]])
        README.write_text(f"{before}{text}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
