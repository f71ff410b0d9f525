"""From a checkpoint to the moments of every token's loss: streamed, so no chain is kept.

Memory and disk are those of two numbers a chain and token, however many draws there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
import xarray as xr

from .losses import token_losses_at
from .models.attention_only import AttentionOnly
from .posterior import SamplerConfig
from .sampling import Chains, Job, component_parts, device_name
from .store import atomic_path, fingerprint
from .tokens import Contexts

_UNITS = {
    "mean_g": "nats per token: mean over draws of L_n - L_n(w*)",
    "square_g": "sum over draws of (L_n - mean)^2",
    "mean_shift": "nats: mean over draws of a token's loss minus its value at w*",
    "comoment": "sum over draws of (L_n - mean)(token's loss - mean)",
    "star": "nats: a token's loss at w*",
}


@dataclass(frozen=True)
class TokenTexts:
    """Token contexts of a per-token run, each of shape (context, position).

    Attributes:
        base: n contexts of the training distribution, on which L_n is measured.
        probes: contexts whose every token is evaluated, by probe.
        pool: contexts that minibatches are drawn from.
    """

    base: Contexts
    probes: Mapping[str, Contexts]
    pool: Contexts

    def evaluated(self) -> Contexts:
        """Base contexts, then every probe's, in one array."""
        return np.concatenate([self.base, *self.probes.values()])

    def identity(self) -> str:
        """Hash of every token."""
        arrays = {"base": self.base, "pool": self.pool, **self.probes}
        return fingerprint(
            {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in arrays.items()}
        )


def read_probes(folder: Path, contexts: int) -> dict[str, Contexts]:
    """The first ``contexts`` contexts of every probe, by name, from a folder of token arrays."""
    return {
        path.name.removeprefix("probe.").removesuffix(".npy"): np.load(path)[:contexts]
        for path in sorted(folder.glob("probe.*.npy"))
    }


class StreamedMoments:
    """Running moments of g (chain,) and of token shifts s (chain, token), one draw at a time."""

    def __init__(self, chains: int, tokens: int) -> None:
        self.count = 0
        self.mean_g, self.square_g = np.zeros(chains), np.zeros(chains)
        self.mean_shift, self.comoment = np.zeros((chains, tokens)), np.zeros((chains, tokens))

    def add(self, g: np.ndarray, shift: np.ndarray) -> None:
        """Welford's update, in float64."""
        self.count += 1
        before = g - self.mean_g
        self.mean_g += before / self.count
        self.square_g += before * (g - self.mean_g)
        self.mean_shift += (shift - self.mean_shift) / self.count
        self.comoment += before[:, None] * (shift - self.mean_shift)


def token_moments(chains: Chains, base: int) -> xr.Dataset:
    """Run the chains of one component; moments of (g, s) of every token after ``base`` contexts."""
    _, contexts, length = chains.star.shape
    moments = StreamedMoments(chains.sampler.chains, (contexts - base) * length)
    for shift in chains.shifts():
        g = shift[:, :base].double().mean((1, 2))
        tokens = shift[:, base:].flatten(1).double()
        moments.add(g.cpu().numpy(), tokens.cpu().numpy())
    return xr.Dataset(
        {
            "mean_g": (("chain",), moments.mean_g),
            "square_g": (("chain",), moments.square_g),
            "mean_shift": (("chain", "token"), moments.mean_shift),
            "comoment": (("chain", "token"), moments.comoment),
            **chains.diagnostics(),
        }
    )


def sample_tokens(
    model: AttentionOnly,
    names: list[str],
    texts: TokenTexts,
    sampler: SamplerConfig,
    seed: int,
    step: int,
    model_hash: str,
    out: Path,
    device: torch.device,
    report: Callable[[str], None] = print,
) -> None:
    """Sample some components of one checkpoint and write the tokens' moments to ``out`` (Zarr).

    A run may be split into shards of components; `per_token.TokenMoments.of` puts them
    together. An interrupted shard goes on, see `sampling.component_parts`.

    Raises:
        ValueError: every chain of a component diverged.
        RuntimeError: another process is writing the same store.
    """
    identity = {
        "step": step,
        "model": model_hash,
        "texts": texts.identity(),
        "sampler": sampler.model_dump(),
        "seed": seed,
        "per_token": True,
    }
    # Its own chains: those of the dataset susceptibilities are an independent measurement.
    label = f"step {step} per-token"
    job = Job(model, texts.evaluated(), texts.pool, sampler, seed, label, identity)
    base = len(texts.base)

    def work(chains: Chains) -> xr.Dataset:
        return token_moments(chains, base)

    with component_parts(job, names, work, out, device, report) as parts:
        data = xr.concat(parts, "component", join="exact", coords="minimal", compat="override")
        tokens = torch.from_numpy(texts.evaluated()[base:].astype(np.int64)).to(device)
        star = token_losses_at(model, tokens).double().flatten().cpu().numpy()
        data = data.assign(star=(("token",), star))
        for name, units in _UNITS.items():
            data[name].attrs["units"] = units
        data.attrs = {
            "identity": fingerprint(identity),
            "component": names,
            "step": step,
            "n_beta": sampler.n_beta,
            "localization": sampler.localization,
            "draws": sampler.draws,
            "sampler": sampler.model_dump(),
            "seed": seed,
            "device": device_name(device),
        }
        with atomic_path(out) as temporary:
            data.to_zarr(temporary, zarr_format=3, consolidated=False)


def token_table(
    probes: Mapping[str, Contexts], strings: list[str], losses: np.ndarray
) -> pl.DataFrame:
    """One row a predicted token, in the order in which they are evaluated.

    Args:
        probes: contexts of every probe, (context, position).
        strings: text of every token id.
        losses: at w*, (token,).

    Returns:
        Columns ``index``, ``probe``, ``context``, ``position``, ``token``, ``text``, ``loss``.
    """
    frames = []
    for probe, contexts in probes.items():
        targets = contexts[:, 1:]
        rows, places = np.indices(targets.shape)
        frames.append(
            pl.DataFrame(
                {
                    "probe": np.full(targets.size, probe),
                    "context": rows.ravel(),
                    "position": places.ravel() + 1,
                    "token": targets.ravel().astype(np.int64),
                }
            )
        )
    table = pl.concat(frames).with_row_index("index").cast({"index": pl.Int64})
    text = pl.Series("text", [strings[token] for token in table["token"]], pl.String)
    return table.with_columns(text, pl.Series("loss", losses, pl.Float64))
