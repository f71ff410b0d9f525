"""What a run would cost before it starts: time, memory and disk, by component and in jobs.

The work is counted (`work`), and a device's rates (`rates`) make time of it. What is kept and what
is computed again follows from the device's memory (`blocks`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from ..blocks import (
    FLOAT,
    LOGITS_COPIES,
    Blocks,
    Limits,
    losses_blocks,
    memory_limits,
    row_bytes,
    stream_numbers,
)
from ..components import Component
from ..models.shapes import parameter_count
from .rates import Rates
from .runs import PlanError, Run
from .work import (
    Work,
    components_of,
    evaluation,
    gradient,
    is_low_rank,
    layers_above,
    plain_evaluation,
    plain_gradient,
    projected_outputs,
    shared,
    streams_below,
)

# Bytes of a process before it has a model: the interpreter and its libraries; on a GPU, the
# device's own.
_PROCESS = {"cpu": 330e6, "cuda": 1e9}
# What a process holds for every byte it uses: on a CPU a heap keeps gaps where blocks have been.
_HEAP = {"cpu": 1.5, "cuda": 1.0}
# Numbers a weight and chain that a step of the sampler holds at a time.
_SAMPLER_NUMBERS = {"sgld": 8, "rmsprop": 11}
_GIGA = 1e9
# Of the memory beside the model; the rest goes to an allocator's gaps.
_USABLE = 0.9


@dataclass(frozen=True)
class ComponentPlan:
    """Cost of one component.

    Attributes:
        sampling, evaluation: seconds.
        operations: of both; ``plain_operations``: of the whole model for every step and draw.
        memory: bytes at most; ``scratch``: of all draws' weights; ``disk``: of the results.
        held: draws of a chain that are held at a time; ``turns``: times that takes.
        chains_together: chains whose gradients are computed together.
    """

    part: Component
    sampling: float
    evaluation: float
    operations: float
    plain_operations: float
    memory: float
    scratch: float
    disk: float
    held: int
    turns: int
    chains_together: int

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.sampling + self.evaluation


@dataclass(frozen=True)
class Planner:
    """Plans the components of a run on a device.

    Args:
        memory: bytes of the device that may be used, all by default.
        fused_logits: the loss is taken by a kernel that never stores the logits.
    """

    run: Run
    rates: Rates
    device: str = "cpu"
    memory: float | None = None
    fused_logits: bool = False

    def components(self) -> list[ComponentPlan]:
        """Plans of all components, in order.

        Raises:
            PlanError: one does not fit the memory even one chain at a time.
        """
        parts = components_of(self.run.shape, self.run.names)
        # Components of one kind and layer cost the same.
        places = [(part.kind, part.layer) for part in parts]
        layers = Counter(layer for _, layer in places)
        plans: dict[object, ComponentPlan] = {}
        for part, place in zip(parts, places, strict=True):
            if place not in plans:
                neighbours = 1 if part.layer is None else layers[part.layer]
                plans[place] = self._plan(part, neighbours)
        return [replace(plans[place], part=part) for part, place in zip(parts, places, strict=True)]

    def blocks(self, draws: int) -> Blocks:
        """Sizes of blocks for ``draws`` weight vectors."""
        return losses_blocks(self.device, self.run.shape, draws, int(self._available))

    @cached_property
    def kept_contexts(self) -> int:
        """Contexts whose streams below and above a layer are kept, of one purpose."""
        return self._limits.activations // 2 // self._stream_bytes

    @cached_property
    def start(self) -> float:
        """Seconds for the losses at w* of the minibatches' contexts, which every job with chains
        begins with."""
        once = plain_evaluation(self.run.shape, 1, self.run.pool, self.run.context)
        return self.rates.seconds("evaluation", once)

    @property
    def _stream_bytes(self) -> int:
        """Of a context's streams below and above a layer."""
        return 2 * FLOAT * self.run.context * self.run.shape.d_model

    @cached_property
    def _limits(self) -> Limits:
        return memory_limits(self.device, int(self._available))

    @cached_property
    def _available(self) -> float:
        """Bytes beside the process and the model."""
        everything = self.memory or self.rates.memory
        fixed = _PROCESS[self.device] + FLOAT * parameter_count(self.run.shape)
        if everything <= fixed:
            raise PlanError(
                f"{everything / _GIGA:.2f} GB of memory; the process and the model take "
                f"{fixed / _GIGA:.2f} GB: use a device with more"
            )
        return everything - fixed

    def _plan(self, part: Component, neighbours: int) -> ComponentPlan:
        run, c = self.run, self.run.sampler.of(part.name)
        one = c.chains * part.size * FLOAT
        held = min(c.draws, max(1, self._limits.draws // one))
        below = streams_below(part, run.shape, 1, run.context)
        evaluated, used = self._evaluation(part, held)
        # Streams below a layer serve all components of the layer while they are kept.
        if run.contexts <= self.kept_contexts:
            evaluated += below * (run.contexts / neighbours - used)
        stored = not self.fused_logits
        stepped = gradient(part, run.shape, c.chains, c.batch, run.context, in_memory=stored)
        stepped = stepped * c.gradients
        kept = run.pool <= self.kept_contexts
        stepped += below * (run.pool / neighbours if kept else c.gradients * c.chains * c.batch)
        update = self.rates.step_seconds + self.rates.weight_seconds * c.chains * part.size
        plain = plain_gradient(part, run.shape, c.chains, c.batch, run.context) * c.gradients
        plain += plain_evaluation(run.shape, c.chains * c.draws, run.contexts, run.context)
        together, memory = self._memory(part, held)
        return ComponentPlan(
            part,
            self.rates.seconds("gradient", stepped) + c.steps * update,
            self.rates.seconds("evaluation", evaluated),
            stepped.operations + evaluated.operations,
            plain.operations,
            memory,
            one * c.draws,
            run.disk,
            held,
            -(-c.draws // held),
            together,
        )

    def _evaluation(self, part: Component, held: int) -> tuple[Work, float]:
        """Work of all evaluations, with the streams below computed every time they are needed;
        and how many contexts' that are."""
        run, c, limits = self.run, self.run.sampler.of(part.name), self._limits
        turns, rest = divmod(c.draws - 1, held)
        # The control variate is evaluated together with the last draws.
        groups = [(c.chains * held, turns), (c.chains * (rest + 1 + run.controls), 1)]
        total, contexts = Work(), 0.0
        for vectors, times in groups:
            blocks = self.blocks(vectors)
            each = max(1, min(run.contexts, blocks.rows_of_logits // (run.context - 1)))
            repeats = 1
            if is_low_rank(part, run.shape):
                wide = (run.shape.d_head + 1) * run.shape.d_vocab * FLOAT
                repeats = -(-vectors // max(1, limits.projected // wide))
            stacked = max(1, blocks.rows_of_stream // (each * run.context))
            stacks, stored = -(-vectors // stacked), not self.fused_logits
            common = shared(part, run.shape, each, run.context, stacks, in_memory=stored)
            block = evaluation(part, run.shape, vectors, each, run.context, in_memory=stored)
            block += common * repeats
            calls = math.ceil(run.contexts * vectors * run.context * FLOAT / limits.losses)
            total += block * (times * run.contexts / each)
            total += projected_outputs(part, run.shape, vectors) * (times * calls)
            contexts += times * repeats * run.contexts
        return total, contexts

    def _memory(self, part: Component, held: int) -> tuple[int, float]:
        """(chains whose gradients are computed together, bytes at most)."""
        run, c, shape = self.run, self.run.sampler, self.run.shape
        fixed = (self.memory or self.rates.memory) - self._available
        available = _USABLE * self._available
        vectors = c.chains * max(held, 1)
        blocks = self.blocks(vectors)
        kept = self._stream_bytes * sum(
            contexts for contexts in (run.contexts, run.pool) if contexts <= self.kept_contexts
        )
        logits = LOGITS_COPIES * FLOAT * shape.d_vocab * blocks.rows_of_logits
        losses = 4 * min(self._limits.losses, vectors * run.contexts * run.context * FLOAT)
        evaluating = logits + FLOAT * stream_numbers(shape) * blocks.rows_of_stream + losses
        numbers = _SAMPLER_NUMBERS[c.method] + 2 * run.controls
        draws = c.chains * (held + 1) * part.size * FLOAT
        each, layers = c.batch * run.context, layers_above(part, shape)
        for together in (n for n in range(c.chains, 0, -1) if c.chains % n == 0):
            rows, sampler = together * each, together * numbers * FLOAT * part.size
            stepping = (
                sampler
                + rows * row_bytes(shape, layers)
                + min(logits, LOGITS_COPIES * FLOAT * shape.d_vocab * rows)
            )
            needed = _HEAP[self.device] * (kept + draws + max(evaluating, stepping))
            if needed <= available:
                return together, fixed + needed
        raise PlanError(
            f"component {part.name} needs {needed / _GIGA:.1f} GB beside the model, of which "
            f"{draws / _GIGA:.1f} GB for draws and {stepping / _GIGA:.1f} GB for a step of one "
            f"chain; there are {available / _GIGA:.1f} GB: lower sampler.batch (now {c.batch}), "
            "or use a device with more memory"
        )
