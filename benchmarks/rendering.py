"""The comparison as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from measure import ALLOCATED, DEVINTERP, FAST, NARROW, PLAIN, VARIATE

TITLES = {
    DEVINTERP: "devinterp 2.0.1",
    PLAIN: "plain path",
    FAST: "fast path",
    NARROW: "fast path, bfloat16",
    VARIATE: "fast path, control variate",
    ALLOCATED: "the same, draws where the noise is",
}
# How many times less than devinterp's. Processor time, which others at work on the machine change
# least; with one thread it is the time on the clock of a machine that does nothing else.
RATIOS = ("processor_seconds", "chi_cost", "mean_shift_cost", "bytes_written")


def _rows(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _times(found: dict[str, Any], name: str) -> str:
    value = found.get(f"times_{name}")
    return "" if value is None else f"{value:.1f}"


def _factor(value: float, error: float) -> str:
    return f"{value:.2f}" if error == 1 else f"{value:.2f} (×÷ {error:.2f})"


def _cost(path: str, found: dict[str, Any]) -> list[str]:
    peak, start = found["peak_bytes"] / 1e6, found["before_bytes"] / 1e6
    own = f" ({found['own_share']:.0%})" if "own_share" in found else ""
    return [
        TITLES[path],
        f"{found['wall_seconds']:.1f}",
        f"{found['processor_seconds']:.1f}",
        f"{peak:.0f} ({peak - start:.0f})",
        f"{found['bytes_written'] / 1e6:.2f}",
        f"{found['microseconds']:,.0f}",
        f"{found['useful_share']:.0%}{own}",
        _times(found, "processor_seconds"),
        _times(found, "bytes_written"),
    ]


_COST = [
    "cost",
    "wall, s",
    "processor, s",
    "peak, MB (above start)",
    "written, MB",
    "µs a component, draw and 1000 tokens",
    "share of peak, useful (own)",
    "times faster",
    "times less written",
]


def _error(path: str, found: dict[str, Any]) -> list[str]:
    difference, variance = found["chi_difference"], found["variance"]
    return [
        TITLES[path],
        f"{difference['max']:.0e}" if difference else "",
        f"{found['typical_chi']:.1e}",
        f"{found['typical_se']:.1e}",
        _factor(*variance["chi"]),
        _factor(*variance["mean_shift"]),
        _times(found, "chi_cost"),
        _times(found, "mean_shift_cost"),
    ]


_ERROR = [
    "error",
    "largest difference in chi, same draws",
    "typical chi",
    "its se",
    "variance of chi",
    "of its mean-shift part",
    "times cheaper for the same se of chi",
    "of its mean-shift part",
]


def _by_layer(result: dict[str, Any]) -> list[str]:
    """Processor time of a head of each layer, and of the unrestricted chain, by path."""
    layers: dict[str, list[str]] = {}
    for name in result["case"]["components"]:
        layer = "unrestricted" if name == "full" else f"layer {name.split(':')[0]}"
        layers.setdefault(layer, []).append(name)
    rows = []
    for path, found in result["paths"].items():
        seconds = found["component_seconds"]
        means = [sum(seconds[n] for n in names) / len(names) for names in layers.values()]
        rows.append([TITLES[path], *(f"{mean:.2f}" for mean in means)])
    return _rows(["processor seconds of a component", *layers], rows)


def _phases(found: dict[str, Any]) -> str:
    phases = sorted(found["phase_seconds"].items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases if seconds >= 0.05)


def table(result: dict[str, Any]) -> str:
    """One case."""
    case, paths = result["case"], result["paths"]
    settings = case["sampler"]
    lines = [
        f"### {case['title'][0].upper()}{case['title'][1:]}",
        "",
        f"{len(case['components']) - 1} heads and the unrestricted chain; "
        f"{settings['chains']} chains of {settings['draws']} draws, one every "
        f"{settings['thinning']} steps after {settings['burn_in']}, minibatches of "
        f"{settings['batch']}; {result['tokens']:,} tokens "
        f"({case['base']} + {case['probe']} contexts of {case['context']}).",
        "",
        *_rows(_COST, (_cost(path, found) for path, found in paths.items())),
        "",
        *_rows(_ERROR, (_error(path, found) for path, found in paths.items())),
    ]
    if NARROW in paths:
        precisions = paths[NARROW]["precision"]
        lines += [
            "",
            f"bfloat16 was within its budget for {precisions.count('bfloat16')} of "
            f"{len(precisions)} components.",
        ]
    if agreement := result["agreement"]:
        expected = agreement["expected_rms_z"]
        told = "" if expected is None else f" ({expected:.2f} expected)"
        lines += [
            "",
            f"devinterp's own chains against the fast path's: root mean square difference of chi "
            f"{agreement['rms_z']:.2f} standard errors{told}; its standard errors are "
            f"{agreement['se_ratio']:.2f} times ours.",
        ]
    lines += ["", *_by_layer(result), "", "Where the processor's time goes, seconds:", ""]
    lines += [f"- {TITLES[path]}: {_phases(found)}" for path, found in paths.items()]
    return "\n".join(lines)


def report(result: dict[str, Any]) -> str:
    """The machine, and every case's tables."""
    about, peaks = result["machine"], result["matmul_peak"]
    rates = " and ".join(f"{peak / 1e9:.0f} GFLOP/s in {name}" for name, peak in peaks.items())
    first = (
        f"{about['device']}, one thread of {about['cores']}, torch {about['torch']}: matrix "
        f"products reach {rates}."
    )
    if result["load_before"] > 0.5:
        first += f" The machine was not idle (load {result['load_before']:.1f}): trust the ratios."
    return "\n\n".join([first, *map(table, result["cases"])])
