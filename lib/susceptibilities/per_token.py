"""Per-token susceptibilities (Baker Definition 3.2, C.2): estimates, errors, and their store.

The susceptibility of token y in context x is eq. 41 with l_xy - L_n in the place of dL. With
s = l_xy - l_xy(w*) and g = L_n - L_n(w*), both along the same chain, dL is s - g up to a
constant, so everything follows from the moments of (g, s) of every token: the chains never
have to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import NDArray

from .cubes import head_of
from .diagnostics import unhealthy
from .estimators import FORMS, MIN_CHAINS, susceptibility_parts
from .jackknife import jackknife_se
from .moments import Array, Moments, merge_all
from .store import atomic_path, read_json
from .token_errors import context_blocks

FOLDER = "per_token"
SUSCEPTIBILITY = "susceptibility.zarr"
TOKENS = "tokens.parquet"
RELIABILITY = "reliability.parquet"
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
    """

    tokens: pl.DataFrame
    components: tuple[str, ...]
    value: dict[str, Array]
    se: dict[str, Array]
    replicates: dict[str, NDArray[np.float32]]
    step: int
    n_beta: float
    draws: int

    @property
    def heads(self) -> tuple[str, ...]:
        """The attention heads among the components."""
        return tuple(name for name in self.components if ":" in name)

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


def load_per_token(results: Path, control: bool = False, step: int | None = None) -> PerToken:
    """Read the per-token susceptibilities of a run.

    Args:
        results: folder of one scale.
        control: those of the n_beta = 0 chains.
        step: training step of the checkpoint; the last one measured by default.

    Raises:
        FileNotFoundError: they were not computed for that step.
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
    data = xr.open_zarr(folder / SUSCEPTIBILITY, consolidated=False).load()
    return PerToken(
        tokens=pl.read_parquet(folder / TOKENS),
        components=tuple(data.attrs["component"]),
        value={form: data[form].values for form in FORMS},
        se={form: data[f"{form}_se"].values for form in FORMS},
        replicates={form: data[f"{form}_replicate"].values for form in FORMS},
        step=int(data.attrs["step"]),
        n_beta=float(data.attrs["n_beta"]),
        draws=int(data.attrs["draws"]),
    )


@dataclass(frozen=True)
class TokenMoments:
    """Moments of (g, s) along every chain, read from the shards of one checkpoint.

    Attributes:
        moments: leading axes (component, chain), K tokens; y is s - g, that is dL of a token.
        healthy: which chains count, (component, chain).
    """

    components: tuple[str, ...]
    moments: Moments
    healthy: NDArray[np.bool_]
    attrs: dict[str, Any]

    @property
    def full(self) -> int:
        """Place of the unrestricted chains among the components."""
        return self.components.index("full")

    @classmethod
    def of(cls, shards: Iterable[xr.Dataset]) -> TokenMoments:
        """Put the shards of `token_sampling.sample_tokens` together: ``full``, then the heads.

        Raises:
            ValueError: shards of different runs, a component twice, the unrestricted chains
                missing, or a component with fewer than two healthy chains.
        """
        parts = list(shards)
        attrs = [{k: v for k, v in p.attrs.items() if k != "component"} for p in parts]
        if any(a["identity"] != attrs[0]["identity"] for a in attrs):
            raise ValueError("shards of different runs: model, text or settings differ; resample")
        names = tuple(name for p in parts for name in p.attrs["component"])
        if len(set(names)) < len(names) or "full" not in names:
            raise ValueError(
                f"shards must hold every component once, 'full' among them; found {names}"
            )

        order = sorted(range(len(names)), key=lambda i: head_of(names[i]) or (-1, 0))
        names = tuple(names[i] for i in order)

        def joined(name: str) -> Array:
            return np.concatenate([p[name].values for p in parts])[order]

        # Cov(g, s - g) = Cov(g, s) - Var(g)
        mean_g = joined("mean_g")
        moments = Moments(
            np.full(mean_g.shape, float(attrs[0]["draws"])),
            mean_g,
            joined("mean_shift") - mean_g[..., None],
            joined("comoment") - joined("square_g")[..., None],
        )
        reasons = [
            unhealthy(died, distance, int(size), float(attrs[0]["localization"]))
            for died, distance, size in zip(
                joined("died"), joined("distance"), joined("size"), strict=True
            )
        ]
        healthy = np.array([[not reason for reason in row] for row in reasons])
        if (counts := healthy.sum(1)).min() < MIN_CHAINS:
            worst = int(counts.argmin())
            raise ValueError(
                f"step {attrs[0]['step']}, component {names[worst]}: {counts[worst]} healthy "
                f"chains, {MIN_CHAINS} needed; {'; '.join(filter(None, reasons[worst]))}"
            )
        return cls(names, moments, healthy, attrs[0])

    def parts(self, component: int, chains: Sequence[int]) -> dict[str, Array]:
        """Chi and its parts, form -> (token,), from some chains of it and of the full run."""
        kept = np.zeros_like(self.healthy)
        kept[:, list(chains)] = self.healthy[:, list(chains)]

        def pooled(place: int) -> Moments:
            mine = self.moments[place].keep(kept[place])
            return merge_all(mine[chain] for chain in chains)

        return susceptibility_parts(pooled(component), pooled(self.full).mean_y)


def estimate_tokens(moments: TokenMoments) -> xr.Dataset:
    """Chi of every token, its parts, jackknife replicates over chains and standard errors."""
    chains = moments.healthy.shape[1]
    everything = range(chains)
    value: dict[str, list[Array]] = {form: [] for form in FORMS}
    left_out: dict[str, list[Array]] = {form: [] for form in FORMS}
    for place in range(len(moments.components)):
        whole = moments.parts(place, everything)
        rest = [moments.parts(place, [c for c in everything if c != chain]) for chain in everything]
        for form in FORMS:
            value[form].append(whole[form])
            left_out[form].append(np.stack([r[form] for r in rest]))
    variables: dict[str, Any] = {}
    for form in FORMS:
        replicates = np.stack(left_out[form], 1)  # (chain, component, token)
        variables[form] = (("component", "token"), np.stack(value[form]))
        variables[f"{form}_se"] = (("component", "token"), jackknife_se(replicates))
        variables[f"{form}_replicate"] = (
            ("chain", "component", "token"),
            replicates.astype(np.float32),
        )
    data = xr.Dataset(variables)
    for variable in data.data_vars.values():
        variable.attrs["units"] = "nats squared"
    data.attrs = {**moments.attrs, "component": list(moments.components)}
    return data


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


def reliability_table(moments: TokenMoments, tokens: pl.DataFrame, seed: int) -> pl.DataFrame:
    """How much of the matrix is signal: the correlation over tokens between estimates from
    ``m`` chains and from ``m`` others, for every ``m`` up to half of the chains.

    Averaged over ways to choose the chains; no Spearman-Brown correction. The standard error
    is a jackknife over blocks of contexts.
    """
    chains = moments.healthy.shape[1]
    blocks = context_blocks(tokens)
    rng = np.random.default_rng(seed)
    rows = []
    for size in range(1, chains // 2 + 1):
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
    """Write the estimates, the token table and the reliabilities of one checkpoint."""
    data = estimate_tokens(moments)
    with atomic_path(folder / TOKENS) as path:
        tokens.write_parquet(path)
    with atomic_path(folder / RELIABILITY) as path:
        reliability_table(moments, tokens, seed).write_parquet(path)
    with atomic_path(folder / SUSCEPTIBILITY) as path:
        data.to_zarr(path, zarr_format=3, consolidated=False)
