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

from .blocks import memory_limits
from .directions import Direction
from .evaluation import BUDGET, ControlVariate, Precision, precision_error
from .losses import ComponentLosses, Prepared
from .posterior import Sampler, SamplerConfig

# What the error of bfloat16 is measured on: the first contexts, the first draws of every chain.
_CHECKED_CONTEXTS = 8
_CHECKED_DRAWS = 8


@dataclass(frozen=True)
class Block:
    """Losses of some contexts along some draws.

    Attributes:
        rows: which of the evaluated contexts.
        draws: which draws ``shift`` has.
        shift: losses minus those at w*, (chain, draw, context, position-1).
        control: what the control variate takes off the mean over draws of each loss's shift,
            (chain, context, position-1); with the last draws, if there is one.
    """

    rows: slice
    draws: slice
    shift: Tensor
    control: Tensor | None = None


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
        ValueError: a control variate that is not exact for the sampler.
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

        def gradient(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return self.losses.loss_and_gradient(weights, self.pool, rows)

        one = c.chains * w_star.numel() * w_star.element_size()
        self._limits = memory_limits(w_star.device)
        held = min(c.draws, max(1, self._limits.draws // one))
        controlled = self.control_variate != "none"
        self.run = Sampler(
            gradient, w_star, len(self.pool.tokens), c, self.seed, self.label, held, controlled
        )
        self.g = torch.zeros(c.chains, c.draws, dtype=torch.float64, device=w_star.device)
        self.precision_error = float("nan")
        self.seconds = {"sampling": 0.0, "draws": 0.0, "control": 0.0}
        self.place = 0
        self._direction = Direction(c.chains, w_star) if controlled else None
        self._rows = self._split(c.chains * (held + 2 * controlled))
        self._groups = -(-c.draws // held)
        self.count = self._groups * len(self._rows)

    def _split(self, draws: int) -> list[slice]:
        """Blocks of contexts; none has both base contexts and others."""
        contexts, length = self.evaluated.tokens.shape
        each = draws * length * self.losses.w_star.element_size()
        size = max(1, self._limits.losses // each)
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
        run, direction, weights, a = self.run, self._direction, self.run.draws, None
        draws = slice(turn * run.held, turn * run.held + weights.shape[1])
        if self.place == 0 and self.narrow is not None:
            self.precision_error = self._measure_precision(self.narrow)
        if direction is not None:
            if rows.start == 0:
                direction.add(weights)
            if turn == self._groups - 1:
                a = direction.a(run)
        shift, control = self._evaluate(weights, a, rows)
        if rows.stop <= self.base:
            losses = self.base * shift.shape[-1]
            self.g[:, draws] += shift.double().sum((2, 3)) / losses
        ends = 0 if a is None else 2
        return Block(rows, draws, shift, control), ends / (ends + weights.shape[1])

    def _evaluate(
        self,
        weights: Float[Tensor, "chain draw size"],
        a: Float[Tensor, "chain size"] | None,
        rows: slice,
    ) -> tuple[Tensor, Tensor | None]:
        """Shifts of the draws (chain, draw, context, position-1), and the control variate (chain,
        context, position-1): (loss(w* + a) - loss(w* - a)) / 2, the odd part of a loss along a.

        No even part of the loss is in it. For the part linear in the weights its expectation is
        exactly zero; for odd parts of higher order as far as the law of a, which is made of the
        injected noise, is symmetric: `control_variate.check` guards that.
        """
        stack, w_star = [weights.flatten(0, 1)], self.losses.w_star
        if a is not None:
            step = a.to(w_star.dtype)
            stack += [w_star + step, w_star - step]
        narrow = self.narrow if self.precision == "bfloat16" else None
        stacked = stack[0] if a is None else torch.cat(stack)
        values = (narrow or self.losses).shifts(stacked, self.evaluated, rows)
        shift, *ends = values.split([len(part) for part in stack])
        control = (ends[0].double() - ends[1].double()) / 2 if ends else None
        return shift.unflatten(0, weights.shape[:2]), control

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
            "draws": ((), np.int64(self.sampler.draws)),
            "precision_error": ((), self.precision_error),
        }

    def state(self) -> dict[str, Tensor]:
        """Everything that changes on the way."""
        direction = {} if self._direction is None else {"direction": self._direction.total}
        return {
            "place": torch.tensor([self.place, self.count]),
            "g": self.g,
            "precision_error": torch.tensor(self.precision_error, dtype=torch.float64),
            "seconds": torch.tensor(list(self.seconds.values()), dtype=torch.float64),
            **direction,
            **{f"run.{name}": value for name, value in self.run.state().items()},
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
        if self._direction is not None:
            self._direction.total.copy_(state["direction"])


def collect(
    chains: Chains, collector: Collector, after_step: Callable[[], None] = lambda: None
) -> xr.Dataset:
    """Run the chains to their end and give what the collector makes of them."""
    for block in chains.blocks(after_step):
        collector.add(block)
    return collector.dataset()
