"""How the fast path's cost grows with tokens, draws, layers, components and chains.

    python benchmarks/scaling.py            # a few minutes on one core

Writes benchmarks/results/scaling.json and scaling.png (``--out`` names another folder).
Processor time of one thread throughout; memory is of a process of its own for each point.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

import machine
from cases import SHIPPED
from susceptibilities import parts
from susceptibilities.blocks import memory_limits
from susceptibilities.components import component, head_names
from susceptibilities.losses import ComponentLosses, component_losses
from susceptibilities.models.gpt_neox import PYTHIA
from susceptibilities.models.loading import available_steps, load_checkpoint
from susceptibilities.models.shapes import new_model
from susceptibilities.models.transformer import Transformer
from susceptibilities.posterior import SamplerConfig
from susceptibilities.store import atomic_path, read_json, write_json
from susceptibilities.token_sampling import TokenTexts, sample_tokens

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
STYLE = HERE.parent / "figures" / "style.mplstyle"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#5D3A9B")

Row = dict[str, Any]


def processor_seconds(run: Callable[[], object], repeats: int) -> float:
    """Least processor time of a call, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def shipped() -> Transformer:
    """The shipped two-layer model."""
    return load_checkpoint(SHIPPED, available_steps(SHIPPED)[-1])


def neox(layers: int, vocabulary: int) -> Transformer:
    """A GPT-NeoX of Pythia-14M's widths with random weights."""
    shape = PYTHIA["14m"].model_copy(update={"n_layers": layers, "d_vocab": vocabulary})
    model = new_model(shape)
    model.initialise(torch.Generator().manual_seed(0))
    return model.eval()


def random_tokens(model: Transformer, contexts: int, context: int) -> np.ndarray:
    """Uniform random tokens (context, position)."""
    return np.random.default_rng(0).integers(0, model.config.d_vocab, (contexts, context))


def perturbed(losses: ComponentLosses, count: int) -> torch.Tensor:
    """Weight vectors as far from w* as draws are."""
    noise = torch.randn(count, len(losses.w_star), generator=torch.Generator().manual_seed(0))
    return losses.w_star + 0.05 * noise


def evaluation_microseconds(
    model: Transformer, name: str, draws: int, tokens: torch.Tensor, repeats: int, plain: bool
) -> float:
    """An evaluation, a draw and token."""
    part = component(name, model.config, dict(model.named_parameters()))
    losses = component_losses(model, part, plain=plain)
    weights, prepared = perturbed(losses, draws), losses.prepare(tokens)
    seconds = processor_seconds(lambda: losses.shifts(weights, prepared), repeats)
    return 1e6 * seconds / (draws * tokens[:, 1:].numel())


def gradient_microseconds(
    model: Transformer, name: str, chains: int, batch: int, tokens: torch.Tensor, repeats: int
) -> float:
    """A loss with its gradient, a chain and token of its minibatch."""
    part = component(name, model.config, dict(model.named_parameters()))
    losses = component_losses(model, part)
    weights, prepared = perturbed(losses, chains), losses.prepare(tokens)
    rows = torch.arange(chains * batch).view(chains, batch) % len(tokens)
    seconds = processor_seconds(lambda: losses.loss_and_gradient(weights, prepared, rows), repeats)
    return 1e6 * seconds / (rows.numel() * (tokens.shape[1] - 1))


def along_draws(tiny: bool) -> list[Row]:
    """Evaluation of heads of both layers, draws stacked."""
    model, rows = shipped(), []
    contexts, context, repeats = (2, 16, 1) if tiny else (32, 128, 3)
    tokens = torch.from_numpy(random_tokens(model, contexts, context))
    for layer in range(model.config.n_layers):
        for plain in (False, True):
            series = f"layer {layer}{', plain' if plain else ''}"
            for draws in (1, 4) if tiny else (1, 2, 4, 8, 16, 32):
                if plain and draws > 4:
                    continue
                found = evaluation_microseconds(model, f"{layer}:0", draws, tokens, repeats, plain)
                rows.append({"along": "draws", "series": series, "x": draws, "value": found})
    return rows


def along_layers(tiny: bool) -> list[Row]:
    """A head of every layer, in models of two depths; a small vocabulary shows the layers."""
    rows = []
    contexts, repeats = (4, 1) if tiny else (16, 3)
    for depth in (2,) if tiny else (6, 12):
        model = neox(depth, 512 if tiny else 4096)
        tokens = torch.from_numpy(random_tokens(model, contexts, 64))
        for layer in range(0, depth, 1 if depth < 8 else 2):
            found = evaluation_microseconds(model, f"{layer}:0", 8, tokens, repeats, False)
            row = {"along": "layers", "series": f"evaluation, {depth} layers", "x": layer}
            rows.append(row | {"value": found})
            found = gradient_microseconds(model, f"{layer}:0", 4, 4, tokens, repeats)
            row = {"along": "layers", "series": f"gradient, {depth} layers", "x": layer}
            rows.append(row | {"value": found})
    return rows


def along_chains(tiny: bool) -> list[Row]:
    """A gradient step, chains stacked."""
    model, rows = shipped(), []
    tokens = torch.from_numpy(random_tokens(model, 32, 128))
    for name in ("1:0",) if tiny else ("0:0", "1:0", "full"):
        for chains in (1, 2) if tiny else (1, 2, 4, 8, 16):
            found = gradient_microseconds(model, name, chains, 4, tokens, 1 if tiny else 5)
            rows.append({"along": "chains", "series": name, "x": chains, "value": found})
    return rows


def point(settings: dict[str, Any]) -> dict[str, float]:
    """Sample some heads of the shipped model from beginning to end, in this process."""
    torch.set_num_threads(1)
    limits = replace(memory_limits("cpu"), activations=settings["activation_bytes"])
    parts.memory_limits = lambda device: limits
    model = shipped()
    tokens = random_tokens(model, 16 + settings["contexts"], 128)
    texts = TokenTexts(tokens[:16], {"probe": tokens[16:]}, tokens[:16])
    chains = {"chains": 2, "burn_in": 2, "draws": settings["draws"], "batch": 4}
    posterior = {"n_beta": 30, "localization": 300, "step_size": 1e-3}
    sampler = SamplerConfig.model_validate({**chains, **posterior})
    names = head_names(model.config)[: settings["heads"]]
    before, start = machine.peak_memory(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "moments.zarr"
        sample_tokens(
            model, names, texts, sampler, 0, 0, "", out, torch.device("cpu"), lambda _: None
        )
        written = machine.folder_bytes(out)
    return {
        "processor_seconds": time.process_time() - start,
        "peak_bytes": machine.peak_memory() - before,
        "bytes_written": written,
    }


def whole_runs(tiny: bool) -> list[Row]:
    """Runs that grow in tokens (with memory) and in components."""
    kept, small = memory_limits("cpu").activations, 1 << 23
    sizes = (8,) if tiny else (32, 64, 128, 256, 512, 1024)
    counts = (2,) if tiny else (1, 2, 4, 8)
    runs = [("tokens", "activations kept", contexts, 1, kept) for contexts in sizes]
    runs += [("tokens", "made again", contexts, 1, small) for contexts in sizes]
    runs += [("components", "heads of one layer", 16, count, kept) for count in counts]
    rows = []
    for along, series, contexts, heads, limit in runs:
        settings = {
            "contexts": contexts,
            "heads": heads,
            "draws": 2 if tiny else 4,
            "activation_bytes": limit,
        }
        found = _process(settings)
        x = heads if along == "components" else contexts * 127
        rows.append({"along": along, "series": series, "x": x, **found})
    return rows


def _process(settings: dict[str, Any]) -> dict[str, float]:
    """`point` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "point.json"
        done = subprocess.run(
            [sys.executable, __file__, "--point", json.dumps(settings), "--out", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"a run of {settings} failed:\n{done.stderr[-4000:]}")
        return read_json(out)


PANELS: Sequence[tuple[str, str, str, str]] = (
    ("tokens", "processor_seconds", "tokens", "one head, 2 chains of 4 draws,\nseconds"),
    ("tokens", "peak_bytes", "tokens", "memory above start,\nMB"),
    ("tokens", "bytes_written", "tokens", "written,\nkB"),
    ("draws", "value", "draws stacked", "evaluation,\nµs a token and draw"),
    ("layers", "value", "layer of the head", "evaluation, gradient step,\nµs a token"),
    ("chains", "value", "chains stacked", "gradient step,\nµs a token and chain"),
    ("components", "processor_seconds", "heads of one layer", "a whole run,\nseconds"),
)
_SCALE = {"peak_bytes": 1e-6, "bytes_written": 1e-3}


def draw(rows: list[Row], path: Path) -> None:
    """One panel a quantity; axes from zero unless tokens grow by powers."""
    plt.style.use(STYLE)
    figure, grid = plt.subplots(2, 4, figsize=(9.5, 5.4), layout="constrained")
    axes = list(grid.flat)
    for ax, (along, name, x_label, title) in zip(axes, PANELS, strict=False):
        mine = [row for row in rows if row["along"] == along]
        for number, series in enumerate(dict.fromkeys(row["series"] for row in mine)):
            chosen = [row for row in mine if row["series"] == series]
            ax.plot(
                [row["x"] for row in chosen],
                [row[name] * _SCALE.get(name, 1.0) for row in chosen],
                "o-",
                color=COLORS[number % len(COLORS)],
                markersize=3,
                label=series,
            )
        _axes(ax, along, name)
        ax.set_xlabel(x_label)
        ax.set_title(title)
    for ax in axes[len(PANELS) :]:
        ax.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    plt.close(figure)


def _axes(ax: Axes, along: str, name: str) -> None:
    if along == "tokens":
        ax.set_xscale("log")
        if name != "peak_bytes":
            ax.set_yscale("log")
    elif along in ("draws", "chains"):
        ax.set_xscale("log", base=2)
    if ax.get_yscale() == "linear":
        # Room for the legend above the lines.
        ax.set_ylim(0, ax.get_ylim()[1] * (1.6 if len(ax.lines) > 1 else 1.05))
    if len(ax.lines) > 1:
        ax.legend(loc="upper left")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="seconds; for the tests")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.point:
        write_json(args.out, point(json.loads(args.point)))
        return
    rows: list[Row] = []
    for measure in (along_draws, along_layers, along_chains, whole_runs):
        print(measure.__name__.replace("_", " "), "...", file=sys.stderr, flush=True)
        rows += measure(args.tiny)
    result = {
        "machine": machine.description(),
        "load": os.getloadavg()[0],
        "matmul_peak": machine.matmul_peak(torch.float32, quick=args.tiny),
        "rows": rows,
    }
    write_json(args.out / "scaling.json", result)
    draw(rows, args.out / "scaling.png")
    for row in rows:
        values = ", ".join(
            f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float | int)
        )
        print(f"{row['along']}: {row['series']}: {values}")


if __name__ == "__main__":
    main()
