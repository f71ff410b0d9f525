"""A run cut into jobs of a stated length, by component group and block of contexts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from .forecast import ComponentPlan


@dataclass(frozen=True)
class Job:
    """Work that is started by itself.

    Attributes:
        does: ``all`` (the chains and their losses), ``sampling`` or ``evaluation``.
        contexts: first and last (excluded) of the evaluated contexts.
        seconds, memory: how long, bytes.
    """

    does: str
    names: tuple[str, ...]
    contexts: tuple[int, int]
    seconds: float
    memory: float


def split(
    plans: Iterable[ComponentPlan], contexts: int, seconds: float, start: float = 0.0
) -> list[Job]:
    """Jobs of at most about ``seconds``, by component group and block of contexts.

    Neighbouring components that fit share a job. One that takes longer gets a job for its chains
    (these cannot be cut; a job that ends before them goes on from its saved state) and one for
    every block of contexts, which read the draws from a file.

    Args:
        start: seconds that a job with chains takes before its first component.
    """
    jobs: list[Job] = []
    group: list[ComponentPlan] = []

    def close() -> None:
        if group:
            names = tuple(plan.part.name for plan in group)
            total, memory = sum(p.seconds for p in group), max(p.memory for p in group)
            jobs.append(Job("all", names, (0, contexts), start + total, memory))
            group.clear()

    for plan in plans:
        name = (plan.part.name,)
        if start + plan.seconds > seconds:
            close()
            jobs.append(Job("sampling", name, (0, 0), start + plan.sampling, plan.memory))
            blocks = min(contexts, max(1, math.ceil(plan.evaluation / seconds)))
            edges = [round(i * contexts / blocks) for i in range(blocks + 1)]
            for first, last in pairwise(edges):
                share = plan.evaluation * (last - first) / contexts
                jobs.append(Job("evaluation", name, (first, last), share, plan.memory))
            continue
        if start + sum(p.seconds for p in group) + plan.seconds > seconds:
            close()
        group.append(plan)
    close()
    return jobs
