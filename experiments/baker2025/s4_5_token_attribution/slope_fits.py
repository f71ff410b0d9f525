"""Mean per-token against dataset susceptibility: points with errors on both axes, and lines.

Both axes are measured by chains of their own, so both have errors. Those of the horizontal axis
flatten an ordinary least-squares line and those of either axis lower the correlation. Deming's
line allows for both; the least-squares lines of y on x and of x on y are the two extremes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from susceptibilities.cubes import CONTROL_PROBE, Array, Axes, cube, full_cube
from susceptibilities.estimators import estimate_checkpoint
from susceptibilities.jackknife import Estimate, jackknife_se
from susceptibilities.per_token import PerToken
from susceptibilities.store import open_zarr
from susceptibilities.token_errors import context_blocks

STATISTICS = ("pearson", "fisher_z", "least_squares", "deming", "reverse", "intercept")


@dataclass(frozen=True)
class Resampled:
    """Dataset susceptibilities of one checkpoint with parts of the data left out.

    Attributes:
        chains: form -> (chain, component, probe), each with one chain number left out.
        blocks: form -> (block, component, probe), each with one block of contexts left out of
            the base sample and of every probe.
    """

    components: tuple[str, ...]
    probes: tuple[str, ...]
    chains: Mapping[str, Array]
    blocks: Mapping[str, Array]

    def of(
        self, kind: Mapping[str, Array], form: str, probes: tuple[str, ...], heads: tuple[str, ...]
    ) -> Array:
        """Replicates of one form, (replicate, probe, head)."""
        rows = [self.components.index(head) for head in heads]
        columns = [self.probes.index(probe) for probe in probes]
        return kind[form][:, rows][:, :, columns].transpose(0, 2, 1)


def resample(store: Path) -> Resampled | None:
    """Replicates of eq. 41 from the losses along the chains; None where they were not kept."""
    if not store.exists():
        return None
    losses = open_zarr(store).load()
    found = estimate_checkpoint(losses)
    return Resampled(
        tuple(losses.attrs["component"]),
        tuple(losses.attrs["probe"]),
        found.replicates,
        found.block_replicates,
    )


@dataclass(frozen=True)
class Points:
    """One point a probe and head. Arrays are (probe, head), replicates (..., probe, head).

    Attributes:
        x: dataset susceptibility; ``x_se`` its error over chains and contexts.
        x_chains, x_blocks: x with one chain, with one block of contexts left out; empty where
            the losses were not kept.
        y: mean per-token susceptibility; ``y_se`` its error over chains and contexts.
        y_chains, y_blocks: y with one chain, with one block of contexts left out.
    """

    probes: tuple[str, ...]
    heads: tuple[str, ...]
    x: Array
    x_se: Array
    x_chains: Array
    x_blocks: Array
    y: Array
    y_se: Array
    y_chains: Array
    y_blocks: Array

    @property
    def fitted(self) -> NDArray[np.bool_]:
        """(probe,): which probes a line is fitted to; the control probe is drawn only."""
        return np.array([probe != CONTROL_PROBE for probe in self.probes])


def points(
    data: PerToken, table: pl.DataFrame, resampled: Resampled | None, form: str = "chi"
) -> Points:
    """The points of one form at the checkpoint of the per-token run.

    Args:
        table: susceptibilities in the schema of section 4.1, or those of its n_beta = 0 control.

    Raises:
        ValueError: the table lacks the checkpoint, a probe or a head of the per-token run.
    """
    rows = table.filter(pl.col("step") == data.step)
    if rows.is_empty():
        steps = sorted(table["step"].unique().to_list()) if len(table) else []
        raise ValueError(
            f"no dataset susceptibilities at step {data.step}, where the per-token run is; found "
            f"steps {steps}: add the step to two_layer.checkpoints"
        )
    axes = Axes(data.probes, (data.step,), data.heads)
    x = full_cube(rows, axes, form)[:, 0]
    none = np.empty((0, *x.shape))
    masks = [data.where(probe) for probe in data.probes]
    places = [data.components.index(head) for head in data.heads]
    values, left_out = data.value[form][places], data.replicates[form][:, places]
    blocks = context_blocks(data.tokens)

    def means(tokens: NDArray[np.floating], keep: NDArray[np.bool_]) -> Array:
        # The replicates are in single precision; added up in double.
        return np.stack([tokens[:, m & keep].mean(1, dtype=np.float64) for m in masks])

    everything = np.ones(len(data.tokens), dtype=bool)
    y_chains = np.stack([means(r, everything) for r in left_out])
    y_blocks = np.stack([means(values, blocks != b) for b in np.unique(blocks)])
    names = (data.probes, data.heads)
    return Points(
        *names,
        x=x,
        x_se=cube(rows, axes, form, "se")[:, 0],
        x_chains=none if resampled is None else resampled.of(resampled.chains, form, *names),
        x_blocks=none if resampled is None else resampled.of(resampled.blocks, form, *names),
        y=means(values, everything),
        y_se=np.hypot(jackknife_se(y_chains), jackknife_se(y_blocks)),
        y_chains=y_chains,
        y_blocks=y_blocks,
    )


def line(x: Array, y: Array, noise_ratio: float) -> Array:
    """`STATISTICS` of points: Pearson r and atanh(r), slopes, and the least-squares intercept.

    Args:
        x, y: same shape.
        noise_ratio: mean error variance of y over that of x, which Deming's line needs;
            infinite where x has no error.
    """
    dx, dy = x.ravel() - x.mean(), y.ravel() - y.mean()
    xx, yy, xy = float(dx @ dx), float(dy @ dy), float(dx @ dy)
    if xx == 0 or yy == 0 or xy == 0:
        return np.full(len(STATISTICS), np.nan)
    slope = deming = xy / xx
    if np.isfinite(noise_ratio):
        excess = yy - noise_ratio * xx
        deming = (excess + np.sqrt(excess**2 + 4 * noise_ratio * xy**2)) / (2 * xy)
    r = xy / np.sqrt(xx * yy)
    # Points exactly on a line have no finite atanh.
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return np.array([r, z, slope, deming, yy / xy, y.mean() - slope * x.mean()])


def error_variances(p: Points) -> tuple[float, float]:
    """Mean error variance of the fitted points, of x and of y, each about its points' mean.

    What moves all points alike, such as the base contexts that every probe's mixture replaces,
    shifts a line and neither tilts nor blurs it.
    """
    kept = p.fitted

    def mean_variance(chains: Array, blocks: Array) -> float:
        errors = []
        for replicates in (chains[:, kept], blocks[:, kept]):
            errors.append(jackknife_se(replicates - replicates.mean((1, 2), keepdims=True)))
        return float(np.mean(np.square(errors).sum(0)))

    x = mean_variance(p.x_chains, p.x_blocks) if len(p.x_chains) else np.mean(p.x_se[kept] ** 2)
    return float(x), mean_variance(p.y_chains, p.y_blocks)


def noise_shares(p: Points) -> tuple[float, float]:
    """Share of the variance of x, and of y, over the fitted points that is error."""
    x, y = error_variances(p)
    return float(x / p.x[p.fitted].var()), float(y / p.y[p.fitted].var())


def fit(p: Points) -> dict[str, Estimate]:
    """The lines' statistics with their errors: jackknives over chains and over contexts of either
    run, added in squares.

    Where the losses of the dataset susceptibilities were not kept, the heads of each probe are
    moved together by their errors instead, since they share the probe's contexts.
    """
    kept = p.fitted
    x_noise, y_noise = error_variances(p)
    ratio = y_noise / x_noise if x_noise > 0 else float("inf")

    def of(x: Array, y: Array) -> Array:
        return line(x[kept], y[kept], ratio)

    value = of(p.x, p.y)
    resampled = [
        [of(p.x, y) for y in p.y_chains],
        [of(p.x, y) for y in p.y_blocks],
        [of(x, p.y) for x in p.x_chains],
        [of(x, p.y) for x in p.x_blocks],
    ]
    variance = np.sum([jackknife_se(np.stack(r)) ** 2 for r in resampled if r], axis=0)
    if not len(p.x_chains):
        for probe in range(len(p.probes)):
            moved = p.x.copy()
            moved[probe] += p.x_se[probe]
            variance = variance + (of(moved, p.y) - value) ** 2
    df = min(len(r) for r in resampled if r) - 1
    return {
        name: Estimate(float(v), float(se), df)
        for name, v, se in zip(STATISTICS, value, np.sqrt(variance), strict=True)
    }


def losses_of(results: Path, step: int, control: bool) -> Path:
    """Store of the losses that section 4.1 estimates a checkpoint from."""
    return results / "losses" / f"step_{step:06d}{'.control' if control else ''}.zarr"


def interval_of(name: str, found: Mapping[str, Estimate]) -> tuple[float, float]:
    """95 % interval of a statistic of `fit`; that of Pearson r by Fisher's z, within [-1, 1]."""
    if name != "pearson":
        return found[name].interval()
    low, high = found["fisher_z"].interval()
    return float(np.tanh(low)), float(np.tanh(high))
