"""Forecasts as text, for any model, settings and device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from ..models.shapes import Shape
from .calibration import measured_rates
from .forecast import ComponentPlan, Planner
from .jobs import Job, split
from .rates import MEASUREMENTS, Precision, Rates, Shares, published_rates
from .runs import Run

HERE = "here"
HOUR = 3600.0


@dataclass(frozen=True)
class Options:
    """How a plan is made.

    Attributes:
        device: ``here`` (this machine, measured), or a name of `rates.DEVICES`.
        precision: of all matrix products of a device that is not here.
        memory: bytes that may be used; all of the device's by default.
        job_hours: length of a job.
        measured: makes the rates of this machine for a shape and context.
    """

    device: str = HERE
    precision: Precision = "float32"
    memory: float | None = None
    job_hours: float = 1.0
    shares: Shares = field(default_factory=Shares)
    fused_logits: bool = False
    folder: Path = MEASUREMENTS
    measured: Callable[[Shape, int, str], Rates] = measured_rates

    @property
    def kind(self) -> Literal["cpu", "cuda"]:
        """Kind of the device."""
        here = self.device == HERE
        return "cpu" if here and not torch.cuda.is_available() else "cuda"

    def rates(self, shape: Shape, context: int) -> Rates:
        """Rates of the device."""
        if self.device == HERE:
            return self.measured(shape, context, self.kind)
        return published_rates(self.device, shape, self.precision, self.shares, self.folder)

    def planner(self, run: Run, rates: Rates) -> Planner:
        """Planner of a run."""
        return Planner(run, rates, self.kind, self.memory, self.fused_logits)


@dataclass(frozen=True)
class Totals:
    """Sums over the components and jobs of a run; ``start``: of its jobs before their chains."""

    sampling: float
    evaluation: float
    memory: float
    disk: float
    start: float
    jobs: int
    longest: float
    operations: float
    plain_operations: float

    @classmethod
    def of(cls, plans: Sequence[ComponentPlan], jobs: Sequence[Job], start: float) -> Totals:
        """Of all plans of a run, in jobs that take ``start`` each before their chains."""
        return cls(
            sum(p.sampling for p in plans),
            sum(p.evaluation for p in plans),
            max(p.memory for p in plans),
            sum(p.disk for p in plans),
            start * sum(job.does != "evaluation" for job in jobs),
            len(jobs),
            max(job.seconds for job in jobs),
            sum(p.operations for p in plans),
            sum(p.plain_operations for p in plans),
        )

    @property
    def seconds(self) -> float:
        """Of everything."""
        return self.start + self.sampling + self.evaluation


def duration(seconds: float) -> str:
    """Such as ``41 s``, ``12 min``, ``3.4 h``, ``1,472 h``."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / HOUR
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"


def size(number: float) -> str:
    """Bytes, such as ``1.3 GB``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number / 1e3:.0f} kB"


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows of text as columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(indent + "  ".join(cells).rstrip())
    return lines


def component_table(plans: Sequence[ComponentPlan]) -> list[str]:
    """One line a kind of component and layer, the times of all of them together."""
    groups: dict[str, list[ComponentPlan]] = {}
    for plan in plans:
        part = plan.part
        names = {"head": f"heads of layer {part.layer}", "mlp": f"MLP of layer {part.layer}"}
        groups.setdefault(names.get(part.kind, part.name), []).append(plan)
    columns = "components number weights_each sampling evaluation memory disk draws_held"
    rows = [[name.replace("_", " ") for name in f"{columns} chains_together".split()]]
    for name, group in groups.items():
        first = group[0]
        rows.append(
            [
                name,
                str(len(group)),
                f"{first.part.size:,}",
                duration(sum(p.sampling for p in group)),
                duration(sum(p.evaluation for p in group)),
                size(max(p.memory for p in group)),
                size(sum(p.disk for p in group)),
                "all" if first.turns == 1 else f"{first.held}, {first.turns} turns",
                str(first.chains_together),
            ]
        )
    return table(rows, "    ")


def totals_of(planner: Planner, job_hours: float) -> tuple[list[ComponentPlan], list[Job], Totals]:
    """Components, jobs and sums of a run."""
    plans = planner.components()
    jobs = split(plans, planner.run.contexts, job_hours * HOUR, planner.start)
    return plans, jobs, Totals.of(plans, jobs, planner.start)


def estimate(title: str, run: Run, options: Options, rates: Rates) -> tuple[list[str], Totals]:
    """Lines about one run on one device, component by component and in jobs; and the sums."""
    planner = options.planner(run, rates)
    plans, jobs, totals = totals_of(planner, options.job_hours)
    blocks = planner.blocks(run.sampler.chains * run.sampler.draws)
    lines = [
        title,
        f"  blocks: {blocks.rows_of_logits} rows of logits, {blocks.rows_of_stream} rows of "
        "stacked activations; times and disk are of all components of a line",
        *component_table(plans),
        f"  in all: {duration(totals.sampling)} sampling + {duration(totals.evaluation)} "
        f"evaluation + {duration(totals.start)} losses at w* = {duration(totals.seconds)}; memory "
        f"{size(totals.memory)}, disk {size(totals.disk)} before compression; "
        f"{totals.operations:.2e} operations, "
        f"{totals.plain_operations / totals.operations:.1f} times fewer than the plain path",
        f"  jobs of at most about {duration(options.job_hours * HOUR)}: {len(jobs):,}, the "
        f"longest {duration(totals.longest)}",
    ]
    if long := {job.names[0] for job in jobs if job.does == "sampling"}:
        scratch = max(plan.scratch for plan in plans if plan.part.name in long)
        pieces = sum(job.does == "evaluation" for job in jobs)
        lines.append(
            f"    {len(long)} components have a job for their chains (which cannot be cut, but "
            f"go on where a job ended) and {pieces:,} in all for the losses, by blocks of "
            f"contexts; the draws between the two take {size(scratch)} of disk at most"
        )
    return lines, totals
