"""Per-token susceptibilities (Baker Definition 3.2, C.2): estimates, errors, and their store.

The susceptibility of token y in context x is eq. 41 with l_xy - L_n in the place of dL. With
s = l_xy - l_xy(w*) and g = L_n - L_n(w*), both along the same chain, dL is s - g up to a
constant, so everything follows from the moments of (g, s) of every token: the chains never
have to be kept. Chains with a control variate have what it takes off their means beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .control_variate import PLAIN, Estimator
from .estimators import FORMS
from .jackknife import jackknife_se
from .moments import Array
from .naming import head_of
from .store import atomic_path, open_zarr, read_json
from .token_errors import context_blocks
from .token_estimates import TokenMoments, estimate_tokens, load_shards

FOLDER = "per_token"
SUSCEPTIBILITY = "susceptibility.zarr"
TOKENS = "tokens.parquet"
RELIABILITY = "reliability.parquet"
ESTIMATOR = "estimator.parquet"
ABLATION = "ablation.parquet"

# Ways to split the chains in halves that are averaged over; more do not change the mean.
_SPLITS = 20


def folder_of(results: Path, step: int, control: bool = False) -> Path:
    """Folder of one checkpoint's per-token results."""
    return results / FOLDER / f"step_{step:06d}{'.control' if control else ''}"


@dataclass(frozen=True)
class PerToken:
    """Per-token susceptibilities of one checkpoint.

    Attributes:
        tokens: one row a predicted token, in the order probe, context, position: ``index``,
            ``probe``, ``context`` (row of the probe's contexts), ``position`` (of the token in
            its context, from 1), ``token`` (id), ``text``, ``loss`` (nats at w*).
        components: ``full`` and the heads.
        value: form -> (component, token).
        se: form -> (component, token), jackknife over chains.
        replicates: form -> (chain, component, token), each with one chain number left out of
            every component and of the unrestricted run.
        draws: kept draws a chain.
        estimators: of every component, ``plain`` or ``control_variate``.
    """

    tokens: pl.DataFrame
    components: tuple[str, ...]
    value: dict[str, Array]
    se: dict[str, Array]
    replicates: dict[str, NDArray[np.float32]]
    step: int
    n_beta: float
    draws: int
    estimators: tuple[str, ...] = ()

    @property
    def heads(self) -> tuple[str, ...]:
        """The attention heads among the components."""
        return tuple(name for name in self.components if head_of(name))

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes, in the order of the tokens."""
        return tuple(str(p) for p in self.tokens["probe"].unique(maintain_order=True))

    @property
    def chains(self) -> int:
        """Chains of every component."""
        return len(self.replicates["chi"])

    def of(self, component: str, form: str = "chi") -> tuple[Array, Array]:
        """Values (token,) and replicates (chain, token) of one component."""
        place = self.components.index(component)
        return self.value[form][place], self.replicates[form][:, place].astype(np.float64)

    def where(self, probe: str) -> NDArray[np.bool_]:
        """Mask of one probe's tokens."""
        return (self.tokens["probe"] == probe).to_numpy()

    def context_ids(self, results: Path, probe: str) -> NDArray[np.int64]:
        """Token ids (context, position) of a probe's contexts, the beginning token included."""
        chosen = self.tokens.filter(pl.col("probe") == probe)["context"].unique(maintain_order=True)
        rows = np.load(results / "tokens" / f"probe.{probe}.npy", allow_pickle=False)
        return rows[chosen.to_numpy()].astype(np.int64)


def load_per_token(
    results: Path,
    control: bool = False,
    step: int | None = None,
    estimator: Estimator = "checked",
) -> PerToken:
    """Read the per-token susceptibilities of a run.

    Args:
        results: folder of one scale.
        control: those of the n_beta = 0 chains.
        step: training step of the checkpoint; the last one measured by default.
        estimator: ``checked`` is what the run has saved, see `control_variate`; the others are
            estimated now, from the moments of the chains, where they are not the same.

    Raises:
        FileNotFoundError: they were not computed for that step, or the moments are gone.
        ValueError: the chains have no control variate, and it is asked for.
    """
    if step is None:
        settings = read_json(results / "config.json")["two_layer"]["per_token"]
        steps: list[int] = settings["control_checkpoints" if control else "checkpoints"]
        step = max(steps) if steps else -1
    folder = folder_of(results, step, control)
    if not (folder / SUSCEPTIBILITY).exists():
        raise FileNotFoundError(
            f"no per-token susceptibilities at {folder}: build them with "
            "`snakemake per_token`, or add the step to two_layer.per_token in the scale file"
        )
    data = open_zarr(folder / SUSCEPTIBILITY).load()
    components = tuple(data.attrs["component"])
    if not _made_by(data.attrs, estimator):
        data = estimate_tokens(TokenMoments.of(load_shards(folder), estimator))
    return PerToken(
        tokens=pl.read_parquet(folder / TOKENS),
        components=components,
        value={form: data[form].values for form in FORMS},
        se={form: data[f"{form}_se"].values for form in FORMS},
        replicates={form: data[f"{form}_replicate"].values for form in FORMS},
        step=int(data.attrs["step"]),
        n_beta=float(data.attrs["n_beta"]),
        draws=int(data.attrs["draws"]),
        estimators=tuple(data.attrs.get("estimator", [PLAIN] * len(components))),
    )


def _made_by(attrs: dict[str, Any], estimator: Estimator) -> bool:
    """Whether a store of `estimate_tokens` holds what this estimator would give."""
    # A store of chains without control variates may say nothing of them.
    used = set(attrs.get("estimator", [PLAIN]))
    return estimator == "checked" or used == {estimator}


def _correlations(one: Array, two: Array, blocks: NDArray[np.int64]) -> tuple[float, Array]:
    """Pearson r of two token vectors: of all tokens, and with each block left out."""
    count = int(blocks.max()) + 1
    # Sums of each block are enough for r without it.
    sums = np.stack(
        [np.bincount(blocks, v, count) for v in (one, two, one * one, two * two, one * two)]
    )
    size = np.bincount(blocks, minlength=count).astype(np.float64)

    def r(total: Array, number: Array) -> Array:
        a, b, aa, bb, ab = total / number
        return (ab - a * b) / np.sqrt(np.maximum((aa - a * a) * (bb - b * b), 1e-300))

    rest = r(sums.sum(1, keepdims=True) - sums, size.sum() - size)
    return float(r(sums.sum(1), size.sum())), rest


def reliability_table(
    moments: TokenMoments, tokens: pl.DataFrame, seed: int, sizes: Sequence[int] | None = None
) -> pl.DataFrame:
    """How much of the matrix is signal: the correlation over tokens between estimates from
    ``m`` chains and from ``m`` others, for every ``m`` up to half of the chains, or of ``sizes``.

    Averaged over ways to choose the chains; no Spearman-Brown correction. The standard error
    is a jackknife over blocks of contexts.
    """
    chains = moments.healthy.shape[1]
    blocks = context_blocks(tokens)
    rng = np.random.default_rng(seed)
    rows = []
    for size in sizes or range(1, chains // 2 + 1):
        pairs = [
            (one, two)
            for one in combinations(range(chains), size)
            for two in combinations([c for c in range(chains) if c not in one], size)
            if one < two
        ]
        if len(pairs) > _SPLITS:
            pairs = [pairs[i] for i in sorted(rng.choice(len(pairs), _SPLITS, replace=False))]
        for place, name in enumerate(moments.components):
            found: dict[str, list[tuple[float, Array]]] = {form: [] for form in FORMS}
            for one, two in pairs:
                healthy = [moments.healthy[[place, moments.full]][:, list(s)] for s in (one, two)]
                if not all(h.any(1).all() for h in healthy):
                    continue  # no chain left to estimate from
                a, b = moments.parts(place, one), moments.parts(place, two)
                for form in FORMS:
                    # Centered first: sums of squares of numbers near one another lose digits.
                    pair = (a[form] - a[form].mean(), b[form] - b[form].mean())
                    found[form].append(_correlations(*pair, blocks))
            for form, values in found.items():
                rows.append(
                    {
                        "component": name,
                        "form": form,
                        "chains": size,
                        "draws": size * int(moments.attrs["draws"]),
                        "reliability": float(np.mean([v for v, _ in values])),
                        "se": float(jackknife_se(np.mean([rest for _, rest in values], 0))),
                    }
                )
    return pl.DataFrame(rows)


def save_tokens(folder: Path, moments: TokenMoments, tokens: pl.DataFrame, seed: int) -> None:
    """Write the estimates, the token table, the reliabilities and the estimators' checks."""
    data = estimate_tokens(moments)
    with atomic_path(folder / ESTIMATOR) as path:
        moments.estimator_table().write_parquet(path)
    with atomic_path(folder / TOKENS) as path:
        tokens.write_parquet(path)
    with atomic_path(folder / RELIABILITY) as path:
        reliability_table(moments, tokens, seed).write_parquet(path)
    with atomic_path(folder / SUSCEPTIBILITY) as path:
        data.to_zarr(path, zarr_format=3, consolidated=False)
