"""How fast a device does each kind of work: measured where it can be, else from published peaks.

A measurement of a GPU is a JSON file (`DeviceResult`) that ``benchmarks/gpu.py`` leaves in
``benchmarks/results``. Without one, a GPU is given assumed shares of its published peaks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from ..models.shapes import Shape, mlp_width
from ..store import read_json
from .operations import Cost
from .work import Quantity, Work

Task = Literal["evaluation", "gradient"]
Precision = Literal["bfloat16", "tf32", "float32"]
_BYTES: dict[Precision, int] = {"bfloat16": 2, "tf32": 4, "float32": 4}
# Losses are taken in float32 whatever the products are in.
_LOSS_BYTES = 4
# Numbers that a step of the sampler reads and writes for every weight of a chain: the noise, the
# drift, the proposal, the sum of gradients in double precision.
_UPDATE_NUMBERS = 32
# Assumed of a GPU until measured: what one step of the sampler takes in launches alone.
ASSUMED_STEP_SECONDS = 2e-3
MEASUREMENTS = Path("benchmarks/results")


class RatesError(ValueError):
    """A device is unknown, or a file of measurements is wrong."""


@dataclass(frozen=True)
class Device:
    """A device as its maker describes it: dense products, no sparsity.

    Attributes:
        memory, bandwidth: bytes, bytes a second.
        peaks: floating-point operations a second.
    """

    name: str
    memory: float
    bandwidth: float
    peaks: Mapping[Precision, float]


_HOPPER: dict[Precision, float] = {"bfloat16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12}
DEVICES = {
    "h100": Device("NVIDIA H100 SXM", 80e9, 3.35e12, _HOPPER),
    "h200": Device("NVIDIA H200 SXM", 141e9, 4.8e12, _HOPPER),
    "a100": Device(
        "NVIDIA A100 SXM",
        80e9,
        2.039e12,
        {"bfloat16": 312e12, "tf32": 156e12, "float32": 19.5e12},
    ),
}


@dataclass(frozen=True)
class Shares:
    """What is assumed to be reached of a GPU's published peaks until it is measured."""

    products: float = 0.4
    bandwidth: float = 0.7

    def __post_init__(self) -> None:
        for name, share in (("products", self.products), ("bandwidth", self.bandwidth)):
            if not 0 < share <= 1:
                raise RatesError(f"share of {name}: expected more than 0, at most 1; found {share}")


class AchievedRates(BaseModel):
    """Floating-point operations a second that a device reached, as `work` counts them.

    Attributes:
        shape: of the model; a measurement serves every model of the same widths.
        context: tokens of a context.
        evaluation, gradient: by quantity; what is left out is planned from the peaks.
        step_seconds, weight_seconds: a sampler step's time beside its gradient, for the step
            and for every weight of every chain.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    shape: Shape
    context: PositiveInt
    precision: Precision
    evaluation: dict[Quantity, PositiveFloat] = {}
    gradient: dict[Quantity, PositiveFloat] = {}
    step_seconds: PositiveFloat | None = None
    weight_seconds: PositiveFloat | None = None


class DeviceResult(BaseModel):
    """A file of measurements: ``{"device": "NVIDIA H200", "achieved_rates": [...]}``."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    device: str
    achieved_rates: list[AchievedRates]


@dataclass(frozen=True)
class Rates:
    """Rates of one device for one shape and precision.

    Attributes:
        memory: bytes of the device.
        source: where the rates are from, in words.
        achieved: measured operations a second.
        peak, bandwidth: for what is not measured: operations, bytes a second that are reached.
        step_seconds, weight_seconds: see `AchievedRates`.
    """

    device: str
    precision: Precision
    memory: float
    source: str
    peak: float
    bandwidth: float
    step_seconds: float
    weight_seconds: float
    achieved: Mapping[tuple[Task, Quantity], float] = field(default_factory=dict)

    def seconds(self, task: Task, work: Work) -> float:
        """Time of the work."""
        return sum(self._seconds(task, quantity, cost) for quantity, cost in work.costs.items())

    def _seconds(self, task: Task, quantity: Quantity, cost: Cost) -> float:
        if (task, quantity) in self.achieved:
            return cost.operations / self.achieved[task, quantity]
        width = _BYTES[self.precision]
        passes_width = _LOSS_BYTES if "logits" in quantity else width
        # A product overlaps with its own reads and writes; other passes over memory wait.
        products = max(cost.operations / self.peak, cost.traffic * width / self.bandwidth)
        return products + cost.passes * passes_width / self.bandwidth


def measurements(folder: Path) -> dict[Path, DeviceResult]:
    """All files of measurements in a folder; other JSON files are passed over.

    Raises:
        RatesError: a file has measurements that are not as `DeviceResult` says.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        value = read_json(path)
        if not (isinstance(value, dict) and "achieved_rates" in value):
            continue
        try:
            found[path] = DeviceResult.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise RatesError(
                f"{path}: {place}: {first['msg']}, found {first['input']!r:.60}; run "
                "benchmarks/gpu.py again, or remove the file"
            ) from None
    return found


def published_rates(
    name: str,
    shape: Shape,
    precision: Precision,
    shares: Shares | None = None,
    folder: Path = MEASUREMENTS,
) -> Rates:
    """Rates of a device of `DEVICES`, with what ``folder`` has measured of it.

    Raises:
        RatesError: there is no such device.
    """
    shares = shares or Shares()
    if name not in DEVICES:
        raise RatesError(f"device {name!r} is unknown; expected one of {', '.join(DEVICES)}")
    device = DEVICES[name]
    bandwidth = shares.bandwidth * device.bandwidth
    source = (
        f"assumed: {shares.products:.0%} of the published {precision} peak "
        f"({device.peaks[precision] / 1e12:.0f} TFLOP/s), {shares.bandwidth:.0%} of the memory's "
        f"{device.bandwidth / 1e12:.2f} TB/s"
    )
    achieved: dict[tuple[Task, Quantity], float] = {}
    step = weight = None
    for path, result in measurements(folder).items():
        if name not in result.device.lower():
            continue
        for measured in result.achieved_rates:
            if widths(measured.shape) == widths(shape) and measured.precision == precision:
                achieved = by_task(measured.evaluation, measured.gradient)
                step, weight = measured.step_seconds, measured.weight_seconds
                source = f"measured: {path.name}"
    return Rates(
        device.name,
        precision,
        device.memory,
        source,
        shares.products * device.peaks[precision],
        bandwidth,
        step or ASSUMED_STEP_SECONDS,
        weight or _UPDATE_NUMBERS * 4 / bandwidth,
        achieved,
    )


def by_task(
    evaluation: Mapping[Quantity, float], gradient: Mapping[Quantity, float]
) -> dict[tuple[Task, Quantity], float]:
    """Rates of both tasks in one table."""
    tasks: list[tuple[Task, Mapping[Quantity, float]]] = [
        ("evaluation", evaluation),
        ("gradient", gradient),
    ]
    return {(task, quantity): rate for task, rates in tasks for quantity, rate in rates.items()}


def widths(shape: Shape) -> tuple[int, ...]:
    """What of a shape a rate depends on."""
    return (shape.d_model, shape.n_heads, shape.d_head, mlp_width(shape), shape.d_vocab)


def machine_memory() -> float:
    """Bytes of memory of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
