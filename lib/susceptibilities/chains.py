"""The chains of one component: first the draws, then their losses, blocks of tokens outermost.

A draw is a vector of the component's weights, which is small; its losses are many. So the chains
run to their end before a loss is evaluated, and then all draws of all chains are evaluated
together on one block of contexts after another: what the component cannot change is computed
once a block, and nothing of the size of all draws times all tokens is ever held. Of a component
whose draws are too large to hold, groups of draws take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .directions import Directions
from .evaluation import BUDGET, ControlVariate, Precision, precision_error
from .losses import ComponentLosses, Prepared
from .posterior import Sampler, SamplerConfig

# Draws up to this size are held at a time.
DRAW_BYTES = 1 << 29
# Losses of a block, all chains and held draws together: some ten seconds of work.
BLOCK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 26}
# What the error of bfloat16 is measured on: the first contexts, the first draws of every chain.
_CHECKED_CONTEXTS = 8
_CHECKED_DRAWS = 8


@dataclass(frozen=True)
class Block:
    """Losses of some contexts: along some draws, or of the control variate.

    Attributes:
        rows: which of the evaluated contexts.
        draws: which draws ``shift`` has; none where it is None.
        shift: losses minus those at w*, (chain, draw, context, position-1).
        control: what the control variate takes off the mean over draws of each loss's shift,
            (chain, context, position-1).
        control_covariance: what it takes off the covariance over draws (with 1 / draws) of each
            loss with the mean loss of the base contexts, likewise.
    """

    rows: slice
    draws: slice
    shift: Tensor | None = None
    control: Tensor | None = None
    control_covariance: Tensor | None = None


class Collector(Protocol):
    """What is made of the blocks of a component's chains.

    Attributes:
        arrays: all that it has gathered; they are saved and put back with the chains' own state.
    """

    arrays: dict[str, NDArray[Any]]

    def add(self, block: Block) -> None:
        """Take a block in. Of every group of draws the base contexts come first."""
        ...

    def dataset(self) -> xr.Dataset:
        """The result, once all blocks are in."""
        ...


@dataclass
class Chains:
    """Chains of one component and what they are evaluated on.

    Args:
        losses: of the component.
        evaluated: contexts on which losses are measured.
        pool: contexts that minibatches are drawn from; ``pool_star``: their losses at w*.
        label: with the seed it makes the chains' random numbers.
        base: the first so many of the evaluated contexts are those of the observable L_n.
        control_variate: see `evaluation.Evaluation`.
        narrow: the same losses in bfloat16, used if their error is within the budget.

    Attributes:
        run: the sampler.
        g: L_n minus its value at w* of every draw evaluated so far, (chain, draw), float64.
        precision_error: of ``narrow``; NaN where there is none.
        seconds: work on sampling, on draws' losses and on the control variate: processor time,
            or time on the clock on a GPU.
        place: number of blocks done, of ``count``.

    Raises:
        ValueError: a control variate that is not exact for the sampler, or without base contexts.
    """

    losses: ComponentLosses
    evaluated: Prepared
    pool: Prepared
    pool_star: Tensor
    sampler: SamplerConfig
    seed: int
    label: str
    base: int = 0
    control_variate: ControlVariate = "none"
    narrow: ComponentLosses | None = None

    def __post_init__(self) -> None:
        c, w_star = self.sampler, self.losses.w_star
        if self.control_variate != "none" and c.method != "sgld":
            raise ValueError(
                f"control_variate: {self.control_variate!r} needs sampler.method: sgld, whose mean "
                f"drift is zero; found {c.method!r}: set control_variate to none"
            )
        if self.control_variate == "linear" and not self.base:
            raise ValueError("control_variate: 'linear' needs the base contexts of its observable")

        def gradient(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return self.losses.loss_and_gradient(weights, self.pool, rows)

        one = c.chains * w_star.numel() * w_star.element_size()
        held = min(c.draws, max(1, DRAW_BYTES // one))
        controlled = self.control_variate != "none"
        self.run = Sampler(
            gradient, w_star, len(self.pool.tokens), c, self.seed, self.label, held, controlled
        )
        self.g = torch.zeros(c.chains, c.draws, dtype=torch.float64, device=w_star.device)
        self.precision_error = float("nan")
        self.seconds = {"sampling": 0.0, "draws": 0.0, "control": 0.0}
        self.place = 0
        linear = self.control_variate == "linear"
        self._moved = Directions(c.chains, w_star, linear) if controlled else None
        self._rows = self._split(c.chains * (held + 2 * controlled + 2 * linear))
        self._groups = -(-c.draws // held)
        base = sum(rows.stop <= self.base for rows in self._rows)
        # b needs the observable of all draws: the base contexts' slopes along it come last.
        self.count = self._groups * len(self._rows) + linear * base

    def _split(self, draws: int) -> list[slice]:
        """Blocks of contexts; none has both base contexts and others."""
        contexts, length = self.evaluated.tokens.shape
        each = draws * length * self.losses.w_star.element_size()
        size = max(1, BLOCK_BYTES[self.losses.w_star.device.type] // each)
        spans = ((0, self.base), (self.base, contexts))
        return [slice(i, min(i + size, b)) for a, b in spans for i in range(a, b, size)]

    @property
    def precision(self) -> Precision:
        """What the losses are evaluated in."""
        return "bfloat16" if self.precision_error <= BUDGET else "float32"

    def blocks(self, after_step: Callable[[], None] = lambda: None) -> Iterator[Block]:
        """Sample, then evaluate; goes on after the blocks already done.

        ``after_step`` is called whenever `state` is one to go on from: after every step of the
        sampler, and after every block once the next is asked for.
        """
        while self.place < self.count:
            turn, number = divmod(self.place, len(self._rows))
            begin = self._clock()
            self.run.advance((turn + 1) * self.run.held, after_step)
            self.seconds["sampling"] += self._clock() - begin
            begin = self._clock()
            block, share = self._block(turn, self._rows[number])
            yield block
            spent = self._clock() - begin
            self.seconds["draws"] += (1 - share) * spent
            self.seconds["control"] += share * spent
            self.place += 1
            after_step()

    def _clock(self) -> float:
        if self.losses.w_star.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _block(self, turn: int, rows: slice) -> tuple[Block, float]:
        """Some contexts' losses along a group of draws, with the last group's those of the control
        variate; and the share of the work that is the control variate's."""
        run, moved, linear = self.run, self._moved, self.control_variate == "linear"
        weights, directions = run.draws, []
        draws = slice(turn * run.held, turn * run.held + weights.shape[1])
        if moved is not None and turn == self._groups:
            _, slopes = self._evaluate(weights[:, :0], [moved.b(run, self.g)], rows)
            return Block(rows, slice(0), None, None, *slopes), 1.0
        if self.place == 0 and self.narrow is not None:
            self.precision_error = self._measure_precision(self.narrow)
        if moved is not None:
            if rows.start == 0:
                moved.add(weights)
            if turn == self._groups - 1:
                directions.append(moved.a(run))
                if linear and rows.start >= self.base:
                    directions.append(moved.b(run, self.g))
        shift, slopes = self._evaluate(weights, directions, rows)
        if rows.stop <= self.base:
            losses = self.base * shift.shape[-1]
            self.g[:, draws] += shift.double().sum((2, 3)) / losses
            if moved is not None and rows.stop == self.base:
                moved.add_products(weights, self.g[:, draws])
        ends = 2 * len(directions)
        return Block(rows, draws, shift, *slopes), ends / (ends + weights.shape[1])

    def _evaluate(
        self,
        weights: Float[Tensor, "chain draw size"],
        directions: list[Float[Tensor, "chain size"]],
        rows: slice,
    ) -> tuple[Tensor, list[Tensor]]:
        """Shifts of the draws (chain, draw, context, position-1), and slopes at w* along the
        directions (chain, context, position-1).

        Slopes are central differences over the posterior's width, so no even part of a loss is in
        them, and what they are taken of is no smaller than the shifts.
        """
        width, w_star = self.sampler.localization**-0.5, self.losses.w_star
        lengths = [direction.norm(dim=-1, keepdim=True) for direction in directions]
        stack = [weights.flatten(0, 1)]
        for direction, length in zip(directions, lengths, strict=True):
            step = (width * direction / length.clamp_min(1e-300)).to(w_star.dtype)
            stack += [w_star + step, w_star - step]
        narrow = self.narrow if self.precision == "bfloat16" else None
        stacked = torch.cat(stack) if directions else stack[0]
        values = (narrow or self.losses).shifts(stacked, self.evaluated, rows)
        parts = values.split([len(part) for part in stack])
        slopes = [
            (parts[1 + 2 * i] - parts[2 + 2 * i]).double() * (length / (2 * width))[..., None]
            for i, length in enumerate(lengths)
        ]
        return parts[0].unflatten(0, weights.shape[:2]), slopes

    def _measure_precision(self, narrow: ComponentLosses) -> float:
        weights = self.run.draws[:, :_CHECKED_DRAWS]
        rows = slice(0, min(_CHECKED_CONTEXTS, self._rows[0].stop))
        found, exact = (
            losses.shifts(weights.flatten(0, 1), self.evaluated, rows).unflatten(
                0, weights.shape[:2]
            )
            for losses in (narrow, self.losses)
        )
        return precision_error(found, exact)

    def diagnostics(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """What diagnostics and health need, once all draws are done."""
        trace = self.run.trace
        baseline = self.pool_star.cpu()[trace.rows].mean(-1)
        return {
            "acceptance": (("chain", "draw"), trace.acceptance.numpy()),
            "distance": (("chain", "draw"), trace.distance.numpy()),
            "trace": (("chain", "step"), (trace.loss - baseline).numpy()),
            "died": (("chain",), trace.died.numpy()),
            "size": ((), np.int64(self.losses.component.size)),
            "precision_error": ((), self.precision_error),
        }

    def state(self) -> dict[str, Tensor]:
        """Everything that changes on the way."""
        parts: dict[str, Mapping[str, Tensor]] = {"run": self.run.state()}
        if self._moved is not None:
            parts["moved"] = self._moved.sums
        return {
            "place": torch.tensor([self.place, self.count]),
            "g": self.g,
            "precision_error": torch.tensor(self.precision_error, dtype=torch.float64),
            "seconds": torch.tensor(list(self.seconds.values()), dtype=torch.float64),
            **{f"{part}.{name}": v for part, state in parts.items() for name, v in state.items()},
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put a `state` of the same chains back.

        Raises:
            KeyError, RuntimeError, ValueError: it is of others, or its blocks were cut otherwise.
        """
        self.place, count = state["place"].tolist()
        if count != self.count:
            raise ValueError(f"expected {self.count} blocks, found {count}")
        self.g.copy_(state["g"])
        self.precision_error = float(state["precision_error"])
        self.seconds = dict(zip(self.seconds, state["seconds"].tolist(), strict=True))
        self.run.restore({k[4:]: v for k, v in state.items() if k.startswith("run.")})
        if self._moved is not None:
            for name, total in self._moved.sums.items():
                total.copy_(state[f"moved.{name}"])


def collect(
    chains: Chains, collector: Collector, after_step: Callable[[], None] = lambda: None
) -> xr.Dataset:
    """Run the chains to their end and give what the collector makes of them."""
    for block in chains.blocks(after_step):
        collector.add(block)
    return collector.dataset()
