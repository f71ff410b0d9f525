"""Which domain of a corpus takes the place of a subset of the Pile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The paper has two code sets and speaks of both as code from GitHub (Appendix A, 4.5).
NEAREST = {"github-all": "github"}


@dataclass(frozen=True)
class Place:
    """A domain in the place of a subset of the Pile."""

    probe: str
    subset: str

    @property
    def is_stand_in(self) -> bool:
        return self.probe != self.subset

    def __str__(self) -> str:
        return f"{self.probe} (for {self.subset})" if self.is_stand_in else self.probe


def place_of(subset: str, domains: Mapping[str, Any]) -> Place | None:
    """The domain of that name, else the one that declares to stand in for it, else the domain of
    the nearest subset (`NEAREST`), else None.

    Args:
        domains: name -> entry of the corpus manifest, with an optional ``stands_in_for``.
    """
    if subset in domains:
        return Place(subset, subset)
    for name, entry in domains.items():
        if isinstance(entry, Mapping) and entry.get("stands_in_for") == subset:
            return Place(name, subset)
    nearest = NEAREST.get(subset)
    return Place(nearest, subset) if nearest is not None and nearest in domains else None


def absent(subset: str) -> str:
    """What to say where there is no domain for the subset."""
    return f"this corpus has no domain named {subset} and none that stands in for it"
