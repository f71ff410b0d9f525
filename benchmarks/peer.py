"""devinterp 2.0.1 on the same model, text and settings, through its own public functions.

Its part of the work is one call of ``devinterp.slt.susceptibilities.susceptibilities``; what is
here makes models, datasets and settings of ours into its own, and its output into arrays.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cases import Case
from susceptibilities.models.attention_only import AttentionOnly, AttentionOnlyConfig
from susceptibilities.models.transformer import Transformer


def installed() -> bool:
    """Whether devinterp can be imported."""
    try:
        import devinterp  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return False
    return True


class _Hooked(AttentionOnly):
    """Our model with the few attributes by which devinterp knows a HookedTransformer.

    Parameter names are those of TransformerLens already. The forward pass is ours, which is
    faster than TransformerLens's own, with its hooks.
    """

    @property
    def cfg(self) -> SimpleNamespace:
        return SimpleNamespace(n_heads=self.config.n_heads, d_model=self.config.d_model)

    def forward(self, tokens: Tensor, return_type: str = "logits") -> Tensor:
        return super().forward(tokens)

    def to(self, *args: Any, print_details: bool = True, **kwargs: Any) -> _Hooked:
        return super().to(*args, **kwargs)


def as_peer(model: Transformer) -> torch.nn.Module:
    """The same model as devinterp takes it: a HookedTransformer or transformers' GPTNeoX."""
    shape = model.config
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    if isinstance(shape, AttentionOnlyConfig):
        hooked = _Hooked(shape)
        hooked.load_state_dict(state)
        return hooked.eval()
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM  # type: ignore[import-not-found]

    config = GPTNeoXConfig(
        vocab_size=shape.d_vocab,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        intermediate_size=shape.d_mlp,
        max_position_embeddings=shape.n_ctx,
        layer_norm_eps=shape.layer_norm_eps,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": shape.rotary_base,
            "partial_rotary_factor": shape.rotary_pct,
        },
        use_parallel_residual=True,
        tie_word_embeddings=False,
    )
    peer = GPTNeoXForCausalLM(config)
    own = set(peer.state_dict())
    peer.load_state_dict({_peer_name(name, own): value for name, value in state.items()})
    return peer.eval()


def _peer_name(name: str, own: set[str]) -> str:
    """transformers 5 calls the released ``embed_out`` ``lm_head``."""
    return name if name in own else name.replace("embed_out", "lm_head")


def run(case: Case, texts_folder: Path, out: Path) -> Any:
    """Prepare, and return a function that samples, writes to ``out`` and estimates.

    Chains have minibatches of their own (by default all share one order, and so their
    gradient's noise), and the baseline is taken on all base contexts once (by default on 32
    batches); all else is devinterp's default.
    """
    from datasets import Dataset
    from devinterp.slt import susceptibilities as slt  # type: ignore[import-not-found]
    from devinterp.slt.weight_restrictions import (  # type: ignore[import-not-found]
        create_param_masks,
    )

    model = as_peer(case.model())
    texts, settings = case.texts(texts_folder), case.sampler

    def dataset(tokens: np.ndarray) -> Any:
        made = Dataset.from_dict({"input_ids": tokens.tolist()})
        made.set_format("torch")
        return made

    base, probe = dataset(texts.base), dataset(texts.probes["probe"])
    heads = [name for name in case.components if name != "full"]
    masks = {name: create_param_masks(model, _restriction(name)) for name in heads}

    def call() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return slt.susceptibilities(
                model,
                base,
                {
                    "base": (base, case.base // settings.batch),
                    "probe": (probe, case.probe // settings.batch),
                },
                {"full": None, **masks},
                sampling_task="base",
                lr=settings.step_size,
                n_beta=settings.n_beta,
                localization=settings.localization,
                num_chains=settings.chains,
                num_draws=settings.draws,
                num_burnin_steps=settings.burn_in,
                num_steps_bw_draws=settings.thinning,
                batch_size=settings.batch,
                num_init_loss_batches=case.base // settings.batch,
                match_sampling_input_ids_across_chains=False,
                init_seed=case.seed,
                output_path=out / "samples.zarr",
                device="cpu",
            )

    return call


def _restriction(name: str) -> str:
    """Our name of a head as devinterp's: ``0:1`` is ``l0h1``."""
    return "l{}h{}".format(*name.split(":"))


def estimates(case: Case, texts_folder: Path, out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Chi (head, token) and leave-one-chain-out replicates (chain, head, token).

    Both by devinterp's own estimator, from what it wrote; tokens in our order.
    """
    import xarray as xr
    from devinterp.slt.susceptibilities import (  # type: ignore[import-not-found]
        compute_susceptibilities,
    )

    heads = [name for name in case.components if name != "full"]
    trees = {
        name: xr.open_datatree(
            out / f"samples_{name}.zarr", engine="zarr", consolidated=False
        ).load()
        for name in case.components
    }
    # devinterp shuffles the contexts of an observable; put them back.
    shuffled = trees["full"].dataset["input_ids_probe"].values
    place = {row.tobytes(): i for i, row in enumerate(shuffled)}

    def chi(kept: list[int], order: list[int]) -> np.ndarray:
        parts = {
            name: xr.DataTree(dataset=tree.to_dataset().isel(chain=kept))
            for name, tree in trees.items()
        }
        sus = compute_susceptibilities(parts, "base")["susceptibilities"]["sus"]
        values = sus.sel(wr=heads).values.T  # (head, batch * position)
        return values.reshape(len(heads), len(shuffled), -1)[:, order].reshape(len(heads), -1)

    order = [place[row.tobytes()] for row in case.texts(texts_folder).probes["probe"]]
    chains = range(case.sampler.chains)
    replicates = [chi([c for c in chains if c != left], order) for left in chains]
    return chi(list(chains), order), np.stack(replicates)


def losses_at(model: torch.nn.Module, weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """devinterp's own losses (context, position-1) of its model with our parameters."""
    from devinterp.slt.lm_loss import compute_per_token_loss  # type: ignore[import-not-found]

    own = set(model.state_dict())
    model.load_state_dict({_peer_name(name, own): value for name, value in weights.items()})
    with torch.no_grad():
        return torch.cat([compute_per_token_loss(model, rows) for rows in tokens.split(4)])
