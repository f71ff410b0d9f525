"""A second or two of measurement: how fast this machine does each kind of work of a shape.

Every quantity of `work` is timed by itself on a block of the usual size, with the code that the
losses use, so that a planned time is a count of operations over a rate that was reached.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks import losses_blocks
from ..components import component
from ..losses.logits import FinalShift, LowRankShift, Reference, linear_loss_sum
from ..models.shapes import Shape, new_model
from ..models.transformer import Transformer
from ..posterior import Sampler, SamplerConfig
from .operations import (
    head,
    head_gradient,
    layer,
    layer_backward,
    logits,
    logits_gradient,
    low_rank_logits,
)
from .rates import AchievedRates, Precision, Rates, by_task, machine_memory
from .work import QUANTITIES, Quantity

# A timed block has at most this many operations, so that a wide model takes no longer.
_OPERATIONS = {"cpu": 2e9, "cuda": 2e12}
# Draws and chains that are stacked in a timed block.
_DRAWS = 8
_CHAINS = 4
# Weights of a made-up component: a step's time on few and on many gives both its parts.
_FEW, _MANY = 1000, 100_000
_STEPS = 20
_REPEATS = 5
# Seconds after which a call is not repeated.
_LONG = 0.3


@dataclass(frozen=True)
class Clock:
    """Times calls: the median of a few after one to warm up, or of fewer that take long.

    On a CPU with one thread it is processor time, which is the same when others are at work.
    """

    device: torch.device

    def now(self) -> float:
        """Seconds, once the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()

    def __call__(self, run: Callable[[], object]) -> float:
        times: list[float] = []
        while len(times) <= _REPEATS and sum(times) < _LONG:
            start = self.now()
            run()
            times.append(self.now() - start)
        return statistics.median(times[1:] or times)


def product_peak(device: torch.device | str = "cpu", side: int | None = None) -> float:
    """Rate of a float32 product of square matrices, floating-point operations a second."""
    device = torch.device(device)
    side = side or (1024 if device.type == "cpu" else 8192)
    a, b = torch.randn(2, side, side, device=device)
    return 2 * side**3 / Clock(device)(lambda: a @ b)


class _Blocks:
    """Blocks of the usual size of a model of one layer."""

    def __init__(self, shape: Shape, context: int, device: torch.device) -> None:
        vocabulary = shape.d_vocab
        if device.type == "cpu":
            # Beyond this width, more of it is no faster.
            vocabulary = min(vocabulary, max(2048, (1 << 23) // shape.d_model))
        update = {"n_layers": 1, "n_ctx": max(context, 2), "d_vocab": vocabulary}
        self.shape: Shape = shape.model_copy(update=update)
        self.limit = _OPERATIONS[device.type]
        # Of a wide model less than a context must do; attention is then little of its work.
        each = layer(1, context, self.shape).operations / context
        self.context = min(context, max(64, int(self.limit / each)))
        self.device = device
        self.generator = torch.Generator().manual_seed(0)
        model = new_model(self.shape)
        model.initialise(self.generator)
        self.model: Transformer = model.eval().requires_grad_(False).to(device)
        sizes = losses_blocks(device, self.shape, _DRAWS)
        rows = min(sizes.rows_of_stream, int(self.limit / each))
        self.stacked = max(1, rows // self.context)
        each = logits(1, self.shape).operations
        self.rows = max(16, min(sizes.rows_of_logits, int(self.limit / each / 2)))
        self.weight, self.bias = self.model.unembedding()
        self.targets = torch.randint(0, vocabulary, (self.rows,), generator=self.generator)
        self.targets = self.targets.to(device)

    def random(self, *sizes: int) -> Tensor:
        return torch.randn(sizes, generator=self.generator).to(self.device)

    def stream(self, *lead: int) -> Tensor:
        return self.random(*lead, self.context, self.shape.d_model)

    def head(self, pieces: dict[str, Tensor], source: Tensor) -> Tensor:
        mixed, output = self.model.head(0, pieces, source)
        return torch.bmm(mixed.flatten(1, -2), output)

    def head_weights(self, count: int) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
        parameters = dict(self.model.named_parameters())
        part = component("0:0", self.shape, parameters)
        return part.read(parameters).repeat(count, 1), part.split

    @torch.no_grad()
    def evaluation(self, clock: Clock) -> dict[Quantity, float]:
        """Rates without gradients."""
        shape, context = self.shape, self.context
        stack = self.stream(self.stacked)
        weights, split = self.head_weights(_DRAWS)
        few = max(1, self.stacked // _DRAWS)
        source = self.model.attention_source(0, self.stream(few))
        final = self.random(self.rows, shape.d_model)
        changed = final + 0.01 * self.random(_DRAWS, self.rows, shape.d_model)
        shift = FinalShift(self.weight, narrow=False)
        reference = Reference.of(final, self.weight, self.bias, self.targets)
        low_rank = LowRankShift(self.model.final_norm(), self.weight, self.bias)
        output = self.random(_DRAWS, shape.d_head, shape.d_model)
        mixed = self.random(_DRAWS, self.rows, shape.d_head)
        projected, rest = low_rank.project(output), low_rank.rest_logits(final)
        star = reference.losses
        return {
            "layers": layer(self.stacked, context, shape).operations
            / clock(lambda: self.model.layer(0, stack)),
            "head": head(_DRAWS, few, context, shape).operations
            / clock(lambda: self.head(split(weights), source)),
            "logits": logits(self.rows, shape, _DRAWS).operations
            / clock(lambda: shift(reference, changed)),
            "low_rank_logits": low_rank_logits(_DRAWS, self.rows, shape).operations
            / clock(lambda: low_rank(star, final, rest, self.targets, mixed, output, projected)),
        }

    def gradient(self, clock: Clock) -> dict[Quantity, float]:
        """Rates with gradients; logits have no low rank here."""
        shape, context = self.shape, self.context
        stacked = max(1, self.stacked // 2)
        stack = self.stream(stacked).requires_grad_()
        batch = max(1, stacked // _CHAINS)
        weights, split = self.head_weights(_CHAINS)
        leaf = weights.requires_grad_()
        source = self.model.attention_source(0, self.stream(_CHAINS, batch))
        final = self.random(self.rows, shape.d_model).requires_grad_()

        def layers() -> None:
            torch.autograd.grad(self.model.layer(0, stack).sum(), stack)

        def heads() -> None:
            torch.autograd.grad(self.head(split(leaf), source).sum(), leaf)

        def last() -> None:
            loss = linear_loss_sum(final, self.weight, self.bias, self.targets)
            torch.autograd.grad(loss[0], final)

        both = layer(stacked, context, shape) + layer_backward(stacked, context, shape)
        return {
            "layers": both.operations / clock(layers),
            "head": head_gradient(_CHAINS, batch, context, shape).operations / clock(heads),
            "logits": logits_gradient(self.rows, shape).operations / clock(last),
        }


def _step_seconds(device: torch.device, size: int) -> float:
    """Time of a step of the sampler, its gradient left out, of all `_CHAINS`."""
    settings = {"n_beta": 1, "localization": 1, "step_size": 1e-3, "batch": 1, "draws": 1}
    config = SamplerConfig.model_validate({**settings, "chains": _CHAINS, "burn_in": _STEPS})
    zeros = torch.zeros(_CHAINS, size, device=device)
    loss = torch.zeros(_CHAINS, device=device)
    run = Sampler(lambda *_: (loss, zeros), zeros[0], 1, config, 0, "calibration")
    clock = Clock(device)
    start = clock.now()
    run.advance(1)
    return (clock.now() - start) / config.steps


def calibrate(
    shape: Shape,
    context: int,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> AchievedRates:
    """Measure this machine's rates for a shape, in seconds.

    Products run at torch's present settings; ``precision`` only names them.
    """
    device = torch.device(device)
    blocks, clock = _Blocks(shape, context, device), Clock(device)
    few, many = _step_seconds(device, _FEW), _step_seconds(device, _MANY)
    weight = max(1e-12, (many - few) / (_CHAINS * (_MANY - _FEW)))
    return AchievedRates(
        shape=shape,
        context=context,
        precision=precision,
        evaluation=blocks.evaluation(clock),
        gradient=blocks.gradient(clock),
        step_seconds=max(1e-9, few - weight * _CHAINS * _FEW),
        weight_seconds=weight,
    )


def measured_rates(shape: Shape, context: int, device: torch.device | str = "cpu") -> Rates:
    """Rates of this machine for a shape, by a calibration of a second or two."""
    device = torch.device(device)
    peak, found = product_peak(device), calibrate(shape, context, device)
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[1]
    else:
        name, memory = f"this machine, {torch.get_num_threads()} thread a job", machine_memory()
    shares = ", ".join(
        f"{quantity.replace('_', ' ')} {found.evaluation[quantity] / peak:.0%}"
        for quantity in QUANTITIES
    )
    gradients = ", ".join(
        f"{quantity.replace('_', ' ')} {rate / peak:.0%}"
        for quantity, rate in found.gradient.items()
    )
    return Rates(
        name,
        "float32",
        float(memory),
        f"measured now: matrix products {peak / 1e9:.0f} GFLOP/s; of this an evaluation reaches "
        f"{shares}; a gradient {gradients}",
        peak,
        float("inf"),
        found.step_seconds or 0.0,
        found.weight_seconds or 0.0,
        by_task(found.evaluation, found.gradient),
    )
