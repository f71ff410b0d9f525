"""What the chains of one checkpoint gave, put together from its shards.

With a control variate (`control_variate`), every chain has beside its moments what is to be taken
off its means, and it is used for the components for which the check says that it helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from .control_sums import ProductSums, VarianceSums
from .control_variate import CONTROLLED, Choice, Estimator, Offset
from .diagnostics import unhealthy
from .estimators import MIN_CHAINS
from .moments import Array, Moments
from .naming import component_order

# Attributes of a shard that are lists of its components, and not of the run.
_OF_COMPONENTS = ("component", "precision", "seconds")


@dataclass(frozen=True)
class Sampled:
    """The shards of one checkpoint put together, before an estimator is chosen.

    What is of single tokens is read when it is asked for, of the tokens in ``rows`` only: shards
    that were opened and not loaded never have to fit in memory.

    Attributes:
        components: ``full``, then the others as in the model (`naming.component_order`).
        healthy: which chains count, (component, chain).
        draws: kept draws of a chain, (component,).
        mean_g, square_g: of the observable along every chain, (component, chain).
        control_g: what the control variate takes off ``mean_g``; None without one.
        rows: which tokens.
    """

    components: tuple[str, ...]
    healthy: NDArray[np.bool_]
    draws: NDArray[np.int64]
    mean_g: Array
    square_g: Array
    control_g: Array | None
    attrs: dict[str, Any]
    shards: tuple[xr.Dataset, ...]
    order: tuple[int, ...]
    rows: slice = field(default_factory=lambda: slice(None))

    @classmethod
    def of(cls, shards: Iterable[xr.Dataset]) -> Sampled:
        """
        Raises:
            ValueError: shards of different runs, a component twice, the unrestricted chains
                missing, or a component with fewer than two healthy chains.
        """
        parts = tuple(shards)
        attrs = [{k: v for k, v in p.attrs.items() if k not in _OF_COMPONENTS} for p in parts]
        if any(a["identity"] != attrs[0]["identity"] for a in attrs):
            raise ValueError("shards of different runs: model, text or settings differ; resample")
        names = tuple(name for p in parts for name in p.attrs["component"])
        if len(set(names)) < len(names) or "full" not in names:
            raise ValueError(
                f"shards must hold every component once, 'full' among them; found {names}"
            )
        order = tuple(sorted(range(len(names)), key=lambda i: component_order(names[i])))
        names = tuple(names[i] for i in order)

        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([p[name].values for p in parts])[list(order)]

        healthy = _healthy(names, joined, attrs[0])
        for key in _OF_COMPONENTS:
            listed = [value for p in parts for value in p.attrs.get(key, [])]
            if len(listed) == len(names):
                attrs[0][key] = [listed[i] for i in order]
        return cls(
            names,
            healthy,
            joined("draws"),
            joined("mean_g"),
            joined("square_g"),
            joined("control_g") if "control_shift" in parts[0] else None,
            attrs[0],
            parts,
            order,
        )

    @property
    def tokens(self) -> int:
        """Tokens of the shards, those not in ``rows`` too."""
        return int(self.shards[0].sizes["token"])

    def at(self, rows: slice) -> Sampled:
        """The same, of some tokens."""
        return replace(self, rows=rows)

    def _of_tokens(self, name: str) -> Array:
        found = [p[name].isel(token=self.rows).values for p in self.shards]
        return np.concatenate(found)[list(self.order)]

    @property
    def mean_dl(self) -> Array:
        """Mean over draws of dL = s - g of every token, (component, chain, token)."""
        return self._of_tokens("mean_shift") - self.mean_g[..., None]

    @property
    def offset(self) -> Offset | None:
        """What the control variate takes off the means; None without one."""
        if self.control_g is None:
            return None
        shift = self._of_tokens("control_shift")
        return Offset(self.control_g, shift - self.control_g[..., None])

    @property
    def moments(self) -> Moments:
        """Of (g, dL) along every chain, leading axes (component, chain)."""
        # Cov(g, s - g) = Cov(g, s) - Var(g)
        return Moments(
            np.broadcast_to(self.draws.astype(np.float64)[:, None], self.mean_g.shape),
            self.mean_g,
            self.mean_dl,
            self._of_tokens("comoment") - self.square_g[..., None],
        )


def choose(parts: Sequence[Sampled], estimator: Estimator) -> Choice:
    """How the control variate is used, decided once for the tokens of all parts together.

    Args:
        parts: of the same chains; they are gone through twice, one at a time.

    Raises:
        ValueError: a control variate that is asked for and was not sampled.
    """
    first = parts[0]
    if first.control_g is None:
        if estimator == CONTROLLED:
            raise ValueError(
                f"step {first.attrs['step']}: the chains were sampled without a control variate; "
                "set two_layer.evaluation.control_variate: linear, and sample again"
            )
        return Choice.none(*first.healthy.shape)

    def entries() -> Iterator[tuple[Array, Array]]:
        for part in parts:
            offset = part.offset
            assert offset is not None
            yield part.mean_dl, offset.y

    healthy = first.healthy
    products = reduce(add, (ProductSums.of(*both, healthy) for both in entries()))
    times = products.coefficients()
    sums = reduce(add, (VarianceSums.of(*both, healthy, times) for both in entries()))
    return Choice.of(sums, first.control_g, estimator)


def _healthy(
    names: Sequence[str], joined: Callable[[str], Array], attrs: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """Which chains count, (component, chain); every component must have enough."""
    reasons = [
        unhealthy(died, distance, int(size), float(attrs["localization"]))
        for died, distance, size in zip(
            joined("died"), joined("distance"), joined("size"), strict=True
        )
    ]
    healthy = np.array([[not reason for reason in row] for row in reasons])
    if (counts := healthy.sum(1)).min() < MIN_CHAINS:
        worst = int(counts.argmin())
        raise ValueError(
            f"step {attrs['step']}, component {names[worst]}: {counts[worst]} healthy "
            f"chains, {MIN_CHAINS} needed; {'; '.join(filter(None, reasons[worst]))}"
        )
    return healthy
