"""From a checkpoint to the moments of every token's loss: no loss of a single draw is kept.

Memory and disk are those of two numbers a chain and token (three with a control variate), however
many draws there are.
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
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .chains import Block, Chains, collect
from .evaluation import Evaluation
from .losses import token_losses_at
from .models.transformer import Transformer
from .parts import Job, component_parts, device_name, read_part, write_store
from .posterior import SamplerConfig
from .sampling import DIAGNOSTIC_UNITS
from .store import fingerprint
from .tokens import Contexts

_UNITS = {
    "mean_g": "nats per token: mean over draws of L_n - L_n(w*)",
    "square_g": "sum over draws of (L_n - mean)^2",
    "mean_shift": "nats: mean over draws of a token's loss minus its value at w*",
    "comoment": "sum over draws of (L_n - mean)(token's loss - mean)",
    "control_g": "nats per token: what the control variate takes off mean_g",
    "control_shift": "nats: what it takes off mean_shift",
    "star": "nats: a token's loss at w*",
}


# Tokens in a chunk of a store: a part of its tokens can be read without the others.
CHUNK = 4096


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
        return _identity({"base": self.base, "pool": self.pool, **self.probes})

    def run_identity(self) -> str:
        """Hash of the texts on which the chains and their observable depend: all but the probes'.

        Blocks of tokens of one run differ in their probes alone.
        """
        return _identity({"base": self.base, "pool": self.pool})


def _identity(arrays: Mapping[str, Contexts]) -> str:
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
    """Moments of g and of token shifts s over the draws; a `chains.Collector`.

    The evaluated contexts after the base ones are the tokens'. Deviations are from a group of
    draws' own mean, in float64, and groups are merged (Chan, Golub and LeVeque 1983).
    """

    def __init__(self, chains: Chains) -> None:
        if not chains.base:
            raise ValueError("the moments of tokens need the base contexts of their observable")
        self.chains = chains
        contexts, length = chains.evaluated.tokens.shape
        # A loss for every token after the first.
        self._positions = length - 1
        count = (contexts - chains.base) * self._positions
        shapes = {"mean_shift": (count,), "comoment": (count,)}
        # Those of g are of the mean loss of the base contexts.
        if chains.control_variate != "none":
            shapes |= {"control_shift": (count,), "control_g": ()}
        self.arrays: dict[str, NDArray[np.float64]] = {
            name: np.zeros((chains.sampler.chains, *shape)) for name, shape in shapes.items()
        }

    def add(self, block: Block) -> None:
        base = block.rows.stop <= self.chains.base
        if not base:
            self._add_shift(block.shift.double().flatten(2), block)
        if block.control is None:
            return
        if base:
            losses = self.chains.base * self._positions
            self.arrays["control_g"] += block.control.sum((1, 2)).cpu().numpy() / losses
        else:
            places, control = self._places(block), block.control.flatten(1)
            self.arrays["control_shift"][:, places] = control.cpu().numpy()

    def _places(self, block: Block) -> slice:
        """Where the block's tokens are among all tokens."""
        first, last = block.rows.start - self.chains.base, block.rows.stop - self.chains.base
        return slice(first * self._positions, last * self._positions)

    def _add_shift(self, shift: Float[Tensor, "chain draw token"], block: Block) -> None:
        before, own = block.draws.start, block.draws.stop - block.draws.start
        g, places = self.chains.g, self._places(block)
        mean, mean_g = shift.mean(1), g[:, block.draws].mean(1)
        deviation = g[:, block.draws] - mean_g[:, None]
        comoment = torch.einsum("cd,cdt->ct", deviation, shift - mean[:, None])
        held, held_mean = self.arrays["comoment"], self.arrays["mean_shift"]
        if before:
            share = own / (before + own)
            step = mean.cpu().numpy() - held_mean[:, places]
            step_g = (mean_g - g[:, :before].mean(1)).cpu().numpy()
            held[:, places] += comoment.cpu().numpy() + before * share * step_g[:, None] * step
            held_mean[:, places] += share * step
        else:
            held[:, places], held_mean[:, places] = comoment.cpu().numpy(), mean.cpu().numpy()

    def dataset(self) -> xr.Dataset:
        g = self.chains.g.cpu().numpy()
        mean_g = g.mean(1)
        variables = {
            name: (("chain", "token") if array.ndim == 2 else ("chain",), array)
            for name, array in self.arrays.items()
        }
        return xr.Dataset(
            {
                "mean_g": (("chain",), mean_g),
                "square_g": (("chain",), np.square(g - mean_g[:, None]).sum(1)),
                **variables,
                **self.chains.diagnostics(),
            }
        )


def token_moments(chains: Chains) -> xr.Dataset:
    """Run the chains of one component; moments of g, and of every token after the base contexts."""
    return collect(chains, StreamedMoments(chains))


def sample_tokens(
    model: Transformer,
    names: list[str],
    texts: TokenTexts,
    sampler: SamplerConfig,
    seed: int,
    step: int,
    model_hash: str,
    out: Path,
    device: torch.device,
    report: Callable[[str], None] = print,
    evaluation: Evaluation | None = None,
) -> None:
    """Sample some components of one checkpoint and write the tokens' moments to ``out`` (Zarr).

    A run may be split into shards of components, which `token_estimates.TokenMoments.of` puts
    together, and into blocks of tokens: other probes, everything else the same. The chains do not
    depend on the probes, so the same component has the same draws in every block (to the bit, on
    one kind of device). They are sampled again for every block, which should therefore be large
    enough for the evaluation to be most of the work. `merge.merge_shards` makes one matrix of all
    shards and blocks. An interrupted shard goes on, see `parts.component_parts`.

    Raises:
        ValueError: every chain of a component diverged.
        RuntimeError: another process is writing the same store.
    """
    evaluation = evaluation or Evaluation()
    identity = {
        "step": step,
        "model": model_hash,
        "texts": texts.identity(),
        "sampler": sampler.model_dump(),
        "evaluation": evaluation.model_dump(),
        "seed": seed,
        "per_token": True,
    }
    # Its own chains: those of the dataset susceptibilities are an independent measurement.
    label = f"step {step} per-token"
    base, contexts = len(texts.base), texts.evaluated()
    job = Job(model, contexts, texts.pool, sampler, seed, label, identity, base, evaluation)
    with component_parts(job, names, StreamedMoments, out, device, report) as parts:
        tokens = torch.from_numpy(contexts[base:].astype(np.int64)).to(device)
        star = token_losses_at(model, tokens).double().flatten().cpu().numpy()
        attributes = {
            "identity": fingerprint(identity),
            "run": fingerprint({**identity, "texts": texts.run_identity()}),
            "component": names,
            "step": step,
            "n_beta": sampler.n_beta,
            "localization": sampler.localization,
            "draws": sampler.draws,
            "sampler": sampler.model_dump(),
            "evaluation": evaluation.model_dump(),
            "seed": seed,
            "device": device_name(device),
        }
        shared = xr.Dataset({"star": (("token",), star)}, attrs=attributes)
        units = {**_UNITS, **DIAGNOSTIC_UNITS}
        chunks = {"token": CHUNK}
        write_store(out, map(read_part, parts), shared, units, sampler.sizes, chunks)


def token_table(
    probes: Mapping[str, Contexts], strings: list[str], losses: np.ndarray, first: int = 0
) -> pl.DataFrame:
    """One row a predicted token, in the order in which they are evaluated.

    Args:
        probes: contexts of every probe, (context, position).
        strings: text of every token id.
        losses: at w*, (token,).
        first: number of every probe's first context. For a block of tokens: its place among all
            contexts of the probe.

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
                    "context": rows.ravel() + first,
                    "position": places.ravel() + 1,
                    "token": targets.ravel().astype(np.int64),
                }
            )
        )
    table = pl.concat(frames).with_row_index("index").cast({"index": pl.Int64})
    text = pl.Series("text", [strings[token] for token in table["token"]], pl.String)
    return table.with_columns(text, pl.Series("loss", losses, pl.Float64))
