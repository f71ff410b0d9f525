"""Joint trajectory PCA of a run's tables: which heads have which role, signs, long tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from .cubes import PARTS, Array, Axes, full_cube, long, replicate_cubes
from .naming import head_of
from .pca import JackknifedPCA, JointPCA, jackknife_pca, joint_pca, orient


@dataclass(frozen=True)
class Roles:
    """Columns of the heads of each kind, by the roles that this model's own scores give them.

    Attributes:
        previous: previous-token heads of the first layer.
        current: current-token heads of the first layer.
        multigram: multigram heads of the last layer.
        induction: induction heads of the last layer.
        last: all heads of the last layer.
    """

    previous: tuple[int, ...]
    current: tuple[int, ...]
    multigram: tuple[int, ...]
    induction: tuple[int, ...]
    last: tuple[int, ...]

    @classmethod
    def of(cls, heads: Sequence[str], roles: Mapping[str, str]) -> Roles:
        """Args: names of the columns; head name -> role."""
        layers = [(head_of(name) or (0, 0))[0] for name in heads]
        first, last = min(layers), max(layers)

        def columns(role: str | None, layer: int) -> tuple[int, ...]:
            return tuple(
                i
                for i, name in enumerate(heads)
                if layers[i] == layer and role in (None, roles.get(name))
            )

        return cls(
            previous=columns("previous-token", first),
            current=columns("current-token", first),
            multigram=columns("multigram", last),
            induction=columns("induction", last),
            last=columns(None, last),
        )

    def others(self, group: Sequence[int]) -> tuple[int, ...]:
        """Heads of the last layer that are not in the group."""
        return tuple(i for i in self.last if i not in group)


def anchors(roles: Roles, heads: int) -> dict[int, tuple[Sequence[int], int]]:
    """Signs as in the paper's Figure 6, by this model's own roles.

    PC1 positive on average; PC2 positive on the previous-token heads (the paper's 0:1); PC3
    negative on the induction heads (the paper's 1:6 and 1:7).
    """
    return {0: (range(heads), 1), 1: (roles.previous, 1), 2: (roles.induction, -1)}


@dataclass(frozen=True)
class Analysis:
    """The PCA of one form of the susceptibility, with its axes and roles.

    Attributes:
        parts: name -> part of chi in the same unit and sign, (probe, step, head).
    """

    axes: Axes
    roles: Roles
    found: JackknifedPCA
    parts: dict[str, Array]

    def tables(self, form: str) -> dict[str, pl.DataFrame]:
        """Long tables ``loadings``, ``variance``, ``contributions`` and ``scores``; pc from 1."""
        found, pca = self.found, self.found.pca
        pcs = ("pc", range(1, len(pca.share) + 1))
        heads, probes = ("component", self.axes.heads), ("probe", self.axes.probes)
        tables = {
            "loadings": long([heads, pcs], value=pca.loadings, se=found.loadings_se),
            "variance": long(
                [pcs],
                share=pca.share,
                se=found.share_se,
                cumulative=pca.share.cumsum(),
                cumulative_se=found.cumulative_se,
                identified=found.identified,
            ),
            "contributions": long(
                [probes, pcs], value=pca.contributions, se=found.contributions_se
            ),
            "scores": long(
                [probes, ("step", self.axes.steps), pcs], value=pca.scores, se=found.scores_se
            ),
        }
        return {
            name: table.select(pl.lit(form).alias("form"), pl.all())
            for name, table in tables.items()
        }


def analyse(
    susceptibility: pl.DataFrame,
    replicates: pl.DataFrame,
    roles: Mapping[str, str],
    form: str,
    factor: float = 1.0,
) -> Analysis:
    """Joint PCA, with errors over chains, of one form times a factor.

    Heads only, and without the control probe: `Axes.of` leaves out the rest.
    """
    axes = Axes.of(susceptibility)
    values = full_cube(susceptibility, axes, form)
    repeated = replicate_cubes(replicates, axes, form, values)
    own = Roles.of(axes.heads, roles)
    found = jackknife_pca(factor * values, factor * repeated, anchors(own, len(axes.heads)))
    parts = {part: factor * full_cube(susceptibility, axes, part) for part in PARTS}
    return Analysis(axes, own, found, parts)


def control_pca(control: pl.DataFrame, roles: Mapping[str, str]) -> tuple[Axes, JointPCA] | None:
    """Joint PCA of the n_beta = 0 control, without errors.

    None where its rows (probe x step) are too few to speak of three directions.
    """
    if not len(control):
        return None
    axes = Axes.of(control)
    if len(axes.probes) * len(axes.steps) < 5:
        return None
    own = Roles.of(axes.heads, roles)
    pca = joint_pca(full_cube(control, axes, "chi"))
    return axes, orient(pca, anchors(own, len(axes.heads)))
