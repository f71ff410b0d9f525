"""Throughput of the evaluation and of the sampler's step on one GPU, at a Pythia's shape.

    python benchmarks/gpu.py                                  # Pythia-1.4B's shape, random weights
    python benchmarks/gpu.py --shape 14m
    python benchmarks/gpu.py --shape tiny --device cpu        # that the script works: seconds

Measured in float32, tf32 and bfloat16 (the fast path's: the product that changes the logits is
bfloat16, all else tf32), for components at the bottom, in the middle and at the top of the model:
tokens x draws a second of the evaluation, tokens a second of the gradient step, their share of the
measured bfloat16 peak, and the memory. From these follow the hours of the papers' largest run, by
interpolation over layers. Written to benchmarks/results/<device>.json, with the rates by kind of
work from which `snakemake plan` plans runs on such a device.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import machine
from susceptibilities.components import Component, component, component_names
from susceptibilities.losses import Precision as LossPrecision
from susceptibilities.losses import component_losses
from susceptibilities.losses.logits import FinalShift, Reference
from susceptibilities.models.gpt_neox import PYTHIA, GPTNeoX, GPTNeoXConfig
from susceptibilities.models.transformer import Transformer
from susceptibilities.planning import work
from susceptibilities.planning.calibration import Clock, calibrate
from susceptibilities.planning.ground_truth import ground_truth_run
from susceptibilities.planning.operations import logits
from susceptibilities.planning.rates import AchievedRates, Precision
from susceptibilities.store import write_json

HERE = Path(__file__).parent
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
TINY = GPTNeoXConfig(n_layers=4, n_heads=2, d_model=32, n_ctx=32, d_vocab=128, d_mlp=64)
SHAPES = {**PYTHIA, "tiny": TINY}


@contextmanager
def products_in(precision: Precision) -> Iterator[LossPrecision]:
    """Let torch's float32 products be what the precision means; yields that of the losses."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    try:
        yield "bfloat16" if precision == "bfloat16" else "float32"
    finally:
        torch.set_float32_matmul_precision(before)


def peaks(device: str, quick: bool) -> dict[Precision, float]:
    """Best rate of a matrix product in each precision, operations a second."""
    found: dict[Precision, float] = {}
    for precision in PRECISIONS:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        with products_in(precision):
            found[precision] = machine.matmul_peak(dtype, device, quick)
    return found


def measured_names(shape: GPTNeoXConfig) -> list[str]:
    """A head and an MLP of the first, a middle, the last but one and the last layer; the ends."""
    layers = sorted({0, shape.n_layers // 2, shape.n_layers - 2, shape.n_layers - 1})
    inner = [name for layer in layers for name in (f"{layer}:0", f"mlp:{layer}")]
    return ["embed", *inner, "unembed"]


class Bench:
    """One model on one device.

    Args:
        vectors: weight vectors that are evaluated together; ``contexts`` of ``context`` tokens.
        chains, batch: of a gradient step.
    """

    def __init__(self, model: Transformer, device: str, args: argparse.Namespace) -> None:
        self.model, self.device = model, device
        self.shape = model.config
        self.clock = Clock(torch.device(device))
        self.vectors, self.chains, self.batch = args.draws, args.chains, args.batch
        generator = torch.Generator().manual_seed(0)
        size = (args.contexts, args.context)
        tokens = torch.randint(0, self.shape.d_vocab, size, generator=generator)
        self.tokens = tokens.to(device)
        rows = torch.arange(self.chains * self.batch).view(self.chains, self.batch)
        self.rows = (rows % args.contexts).to(device)
        self.context = args.context

    def part(self, name: str) -> Component:
        return component(name, self.shape, dict(self.model.named_parameters()))

    def _vectors(self, w_star: torch.Tensor, count: int) -> torch.Tensor:
        noise = torch.randn(count, len(w_star), device=self.device)
        return noise.mul_(0.01).add_(w_star)

    def measure(
        self, name: str, precision: Precision, peak: dict[Precision, float]
    ) -> dict[str, Any]:
        """Evaluation and step of one component; a component too large for the memory says so."""
        part = self.part(name)
        row: dict[str, Any] = {"component": name, "precision": precision, "weights": part.size}
        try:
            with products_in(precision) as losses_in:
                row |= self._evaluation(part, losses_in, peak)
                row |= self._gradient(part, peak)
        except torch.OutOfMemoryError as error:
            row["error"] = str(error).splitlines()[0]
        return row

    def _evaluation(
        self, part: Component, precision: LossPrecision, peak: dict[Precision, float]
    ) -> dict[str, float]:
        losses = component_losses(self.model, part, precision)
        prepared = losses.prepare(self.tokens)
        weights = self._vectors(losses.w_star, self.vectors)
        self._reset_memory()
        seconds = self.clock(lambda: losses.shifts(weights, prepared))
        contexts, context = self.tokens.shape
        counted = work.evaluation(part, self.shape, self.vectors, contexts, context)
        # Below the component nothing is computed: it has been prepared.
        counted += work.projected_outputs(part, self.shape, self.vectors)
        return {
            "token_draws_per_second": self.vectors * contexts * (context - 1) / seconds,
            "evaluation_share_of_bf16_peak": counted.operations / seconds / peak["bfloat16"],
            "evaluation_bytes": self._memory(),
        }

    def _gradient(self, part: Component, peak: dict[Precision, float]) -> dict[str, float]:
        losses = component_losses(self.model, part)
        prepared = losses.prepare(self.tokens)
        weights = self._vectors(losses.w_star, self.chains)
        self._reset_memory()
        seconds = self.clock(lambda: losses.loss_and_gradient(weights, prepared, self.rows))
        counted = work.gradient(part, self.shape, self.chains, self.batch, self.context)
        return {
            "gradient_tokens_per_second": self.rows.numel() * (self.context - 1) / seconds,
            "gradient_share_of_bf16_peak": counted.operations / seconds / peak["bfloat16"],
            "gradient_bytes": self._memory(),
        }

    def _reset_memory(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _memory(self) -> int:
        if self.device.startswith("cuda"):
            return torch.cuda.max_memory_allocated()
        return machine.peak_memory()

    def rates(self, precision: Precision) -> AchievedRates:
        """Rates by quantity, for the planner."""
        with products_in(precision) as losses_in:
            found = calibrate(self.shape, self.context, self.device, precision)
            if losses_in == "float32":
                return found
            evaluation = dict(found.evaluation) | {"logits": self._narrow_logits()}
        return found.model_copy(update={"evaluation": evaluation})

    @torch.no_grad()
    def _narrow_logits(self) -> float:
        """Operations a second from changed streams to losses, the product in bfloat16."""
        weight, bias = self.model.unembedding()
        rows = min(self.tokens.numel(), 4096)
        final = torch.randn(rows, self.shape.d_model, device=self.device)
        changed = final + 0.01 * torch.randn(self.vectors, *final.shape, device=self.device)
        targets = self.tokens.flatten()[:rows]
        reference = Reference.of(final, weight, bias, targets)
        shift = FinalShift(weight, narrow=True)
        seconds = self.clock(lambda: shift(reference, changed))
        return logits(rows, self.shape, self.vectors).operations / seconds


def by_component(
    shape: GPTNeoXConfig, rows: list[dict[str, Any]], quantity: str
) -> dict[str, float]:
    """Seconds a token of every component: of the measured ones, between them linear in the layer.

    Heads of the last layer, whose logits are of low rank, are not interpolated over.
    """
    seconds = {row["component"]: 1 / row[quantity] for row in rows if quantity in row}
    last = shape.n_layers - 1
    found = {}
    for name in component_names(shape):
        part = re.fullmatch(r"(mlp:)?(\d+)(?::\d+)?", name)
        if part is None:
            found[name] = seconds[name]
            continue
        layer, title = int(part[2]), "mlp:{}" if part[1] else "{}:0"
        known = [i for i in range(last) if title.format(i) in seconds]
        if layer == last or len(known) == 0:
            found[name] = seconds[title.format(last)]
        else:
            values = [seconds[title.format(i)] for i in known]
            found[name] = float(np.interp(layer, known, values))
    return found


def paper_hours(name: str, shape: GPTNeoXConfig, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Hours of 4.25M tokens, all components, at the papers' draws, from measured throughput.

    One gradient a step and one more for the acceptance of every draw; noise and update apart.
    """
    run = ground_truth_run(name)
    evaluate = by_component(shape, rows, "token_draws_per_second")
    step = by_component(shape, rows, "gradient_tokens_per_second")
    c = run.sampler
    evaluated = c.chains * c.draws * run.contexts * run.context
    stepped = c.chains * run.sampler.gradients * c.batch * run.context
    return {
        "evaluation_hours": evaluated * sum(evaluate.values()) / 3600,
        "gradient_hours": stepped * sum(step.values()) / 3600,
    }


def table(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| component | precision | evaluation, tokens x draws/s | share of bf16 peak | "
        "gradient, tokens/s | share of bf16 peak | memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["measurements"]:
        if "error" in row:
            lines.append(f"| {row['component']} | {row['precision']} | {row['error']} |||||")
            continue
        memory = max(row["evaluation_bytes"], row["gradient_bytes"]) / 1e9
        lines.append(
            f"| {row['component']} | {row['precision']} | {row['token_draws_per_second']:,.0f} | "
            f"{row['evaluation_share_of_bf16_peak']:.1%} | "
            f"{row['gradient_tokens_per_second']:,.0f} | "
            f"{row['gradient_share_of_bf16_peak']:.1%} | {memory:.1f} |"
        )
    for precision, hours in result["paper_run"].items():
        told = ", ".join(f"{kind.split('_')[0]} {value:,.1f}" for kind, value in hours.items())
        lines.append(f"\nHours of the papers' run in {precision}: {told}")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1.4b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--context", type=int, help="tokens of a context, 1024 by default")
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--draws", type=int, default=8, help="weight vectors evaluated together")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4, help="contexts of a chain's minibatch")
    parser.add_argument("--components", nargs="*", help="names; see components.component")
    parser.add_argument("--out", type=Path, help="JSON file, results/<device>.json by default")
    args = parser.parse_args()
    if args.device == "cpu" and args.shape not in ("tiny", "14m"):
        parser.error(
            f"found no GPU, and Pythia-{args.shape} takes hours on a CPU; expected --shape tiny "
            "or 14m with --device cpu"
        )
    return args


def main() -> None:
    args = parsed()
    shape, tiny = SHAPES[args.shape], args.shape == "tiny"
    args.context = args.context or min(1024, shape.n_ctx)
    peak = peaks(args.device, quick=tiny)
    about = machine.description(args.device)
    model = GPTNeoX(shape).to(args.device)
    model.initialise(torch.Generator(args.device).manual_seed(0))
    bench = Bench(model.eval(), args.device, args)
    result: dict[str, Any] = {
        "device": about["device"],
        "machine": about,
        "matmul_peak": peak,
        "shape_name": args.shape,
        "settings": {
            name: getattr(args, name)
            for name in ("context", "contexts", "draws", "chains", "batch")
        },
        "measurements": [],
        "paper_run": {},
        "achieved_rates": [],
    }
    names = args.components or measured_names(shape)
    for precision in PRECISIONS:
        rows = [bench.measure(name, precision, peak) for name in names]
        rates = bench.rates(precision)
        result["measurements"] += rows
        result["achieved_rates"].append(rates.model_dump(mode="json"))
        if not (args.components or tiny or any("error" in row for row in rows)):
            result["paper_run"][precision] = paper_hours(args.shape, shape, rows)
    rates_told = ", ".join(f"{name} {rate / 1e12:.2f} TFLOP/s" for name, rate in peak.items())
    print(f"{about['device']}: {rates_told}")
    print(table(result))
    name = re.sub(r"\W+", "-", about["device"]).strip("-").lower()
    if args.out or not tiny:
        write_json(args.out or HERE / "results" / f"{name}.json", result)


if __name__ == "__main__":
    main()
