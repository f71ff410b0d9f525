"""This project's paths and devinterp 2.0.1, side by side in one run.

    python benchmarks/compare.py            # all heads of both models, about ten minutes
    python benchmarks/compare.py --quick    # three heads of each, about two minutes

Every path gets the same model, text, components, chains, draws and settings, a process of its
own and one thread, one after another. Prints a table for each model; the whole run is also
written as JSON to benchmarks/results/compare.json (``--out``; a quick run writes only there).
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
import same_draws
from cases import NAMES, Case, cases
from measure import CHI, DEVINTERP, FAST, NARROW, PATHS, PLAIN, RESULT, VARIATE
from susceptibilities.components import Component
from susceptibilities.jackknife import jackknife_se
from susceptibilities.models.shapes import Shape
from susceptibilities.planning import work
from susceptibilities.store import read_json, write_json

HERE = Path(__file__).parent
TITLES = {
    DEVINTERP: "devinterp 2.0.1",
    PLAIN: "plain path",
    FAST: "fast path",
    NARROW: "fast path, bfloat16",
    VARIATE: "fast path, control variate",
}


# How many times less than devinterp's. Processor time, which others at work on the machine change
# least; with one thread it is the time on the clock of a machine that does nothing else.
_RATIOS = ("processor_seconds", "chi_cost", "mean_shift_cost", "bytes_written")


def useful_operations(case: Case, shape: Shape, parts: list[Component]) -> float:
    """Operations of the matrix products that the fast path needs for the draws and steps."""
    contexts, length, settings = case.base + case.probe, case.context, case.sampler
    total = 0.0
    for part in parts:
        evaluated = (
            work.evaluation(part, shape, case.draws, contexts, length)
            + work.shared(part, shape, contexts, length)
            + work.projected_outputs(part, shape, case.draws)
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
    found: dict[str, dict[str, Any]] = {}
    chi: dict[str, Any] = {}
    for path in paths:
        print(f"{case.name}: {TITLES[path]} ...", file=sys.stderr, flush=True)
        run_process("measure.py", str(folder), path)
        found[path] = read_json(folder / path / RESULT)
        with np.load(folder / path / CHI) as file:
            chi[path] = dict(file)
    print(f"{case.name}: all paths on the same draws ...", file=sys.stderr, flush=True)
    run_process("same_draws.py", str(folder))
    differences = read_json(folder / same_draws.RESULT)

    model = case.model()
    shape, parts = model.config, case.parts(model)
    useful, plain = (count(case, shape, parts) for count in (useful_operations, plain_operations))
    evaluated = len(parts) * case.draws * case.tokens
    for path, result in found.items():
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
            part: _variance_ratio(chi[path], replicates)
            for part, replicates in (
                ("chi", "replicates"),
                ("mean_shift", "mean_shift_replicates"),
            )
        }
        for part, ratio in result["variance"].items():
            result[f"{part}_cost"] = result["processor_seconds"] * ratio
    if DEVINTERP in found:
        for result in found.values():
            for name in _RATIOS:
                result[f"times_{name}"] = found[DEVINTERP][name] / result[name]
    return {
        "case": case.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": case.tokens,
        "operations": {"useful": useful, "whole_model": plain},
        "paths": found,
        "agreement": _agreement(chi),
    }


def _variance_ratio(found: dict[str, np.ndarray], replicates: str) -> float:
    """Variance over that of the same draws without the control variate, of the median head.

    Each is a sum over tokens of the squared jackknife error; replicates (chain, head, token).
    """
    if f"plain_{replicates}" not in found:
        return 1.0
    with_it, without = (
        np.square(jackknife_se(found[name])).sum(-1) for name in (replicates, f"plain_{replicates}")
    )
    return float(np.median(with_it / without))


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


def table(result: dict[str, Any]) -> str:
    """One case as a Markdown table."""
    settings = result["case"]["sampler"]
    lines = [
        f"**{result['case']['title']}**: {len(result['case']['components']) - 1} heads and the "
        f"unrestricted chain, {settings['chains']} chains of {settings['draws']} draws "
        f"(every {settings['thinning']} steps after {settings['burn_in']}), "
        f"minibatches of {settings['batch']}, {result['tokens']:,} tokens "
        f"({result['case']['base']} + {result['case']['probe']} contexts of "
        f"{result['case']['context']}).",
        "",
        "| | wall, s | processor, s | peak, MB (above start) | written, MB | "
        "us per component, draw, 1000 tokens | share of peak: useful (own) | "
        "largest difference in chi | typical chi, se | variance of chi (mean shift) | "
        "times faster: same draws | same se of chi (mean shift) | times less written |",
        "|" + "---|" * 13,
    ]
    for path, found in result["paths"].items():
        peak, start = found["peak_bytes"] / 1e6, found["before_bytes"] / 1e6
        own = f" ({found['own_share']:.0%})" if "own_share" in found else ""
        difference = found["chi_difference"]
        times = ["", "", ""]
        if "times_chi_cost" in found:
            draws, chi, mean_shift, written = (found[f"times_{name}"] for name in _RATIOS)
            times = [f"{draws:.1f}", f"{chi:.1f} ({mean_shift:.1f})", f"{written:.1f}"]
        cells = [
            TITLES[path],
            f"{found['wall_seconds']:.1f}",
            f"{found['processor_seconds']:.1f}",
            f"{peak:.0f} ({peak - start:.0f})",
            f"{found['bytes_written'] / 1e6:.2f}",
            f"{found['microseconds']:,.0f}",
            f"{found['useful_share']:.0%}{own}",
            f"{difference['max']:.0e}" if difference else "",
            f"{found['typical_chi']:.1e}, {found['typical_se']:.1e}",
            f"{found['variance']['chi']:.2f} ({found['variance']['mean_shift']:.2f})",
            *times,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if agreement := result["agreement"]:
        expected = agreement["expected_rms_z"]
        lines += [
            "",
            f"devinterp against the fast path, chains of their own: root mean square difference "
            f"{agreement['rms_z']:.2f} standard errors ({expected or np.inf:.2f} expected); its "
            f"standard errors are {agreement['se_ratio']:.2f} times ours.",
        ]
    lines += ["", *_by_layer(result), "", "Where the processor's time goes, seconds:", ""]
    for path, found in result["paths"].items():
        phases = sorted(found["phase_seconds"].items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases if seconds >= 0.05)
        lines.append(f"- {TITLES[path]}: {told}")
    return "\n".join(lines)


def _by_layer(result: dict[str, Any]) -> list[str]:
    """Processor time of a head of each layer, and of the unrestricted chain, by path."""
    layers: dict[str, list[str]] = {}
    for name in result["case"]["components"]:
        layer = "unrestricted" if name == "full" else f"layer {name.split(':')[0]}"
        layers.setdefault(layer, []).append(name)
    lines = [
        "| processor time of a component, s | " + " | ".join(layers) + " |",
        "|" + "---|" * (len(layers) + 1),
    ]
    for path, found in result["paths"].items():
        seconds = found["component_seconds"]
        means = [sum(seconds[n] for n in names) / len(names) for names in layers.values()]
        lines.append(f"| {TITLES[path]} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return lines


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
    out = args.out or (HERE / "results" / "compare.json" if args.size == "default" else None)
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
    about = result["machine"]
    print(
        f"{about['device']}, {about['threads']} thread, torch {about['torch']}; matrix products "
        + ", ".join(f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items())
    )
    for found in result["cases"]:
        print(f"\n{table(found)}")
    if out:
        write_json(out, result)


if __name__ == "__main__":
    main()
