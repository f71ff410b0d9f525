"""The attention-only transformer of Baker et al.: weight for weight TransformerLens's.

Parameter names and shapes are those of TransformerLens's ``HookedTransformer`` with
``attn_only``, LayerNorm, biases and shortformer positions (position vectors are added to
the normalised inputs of Q and K only), so that published checkpoints load unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NoReturn, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn

from .transformer import (
    Transformer,
    attention_pattern,
    causal_attention,
    look_up,
    normalise,
    stacked_linear,
    token_losses,
)

__all__ = [
    "HEAD_PARAMETERS",
    "AttentionOnly",
    "AttentionOnlyConfig",
    "attention_pattern",
    "causal_attention",
    "token_losses",
]


HEAD_PARAMETERS = ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O")


class AttentionOnlyConfig(BaseModel):
    """Shape of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["attention_only"] = "attention_only"
    n_layers: PositiveInt
    n_heads: PositiveInt
    d_model: PositiveInt
    d_head: PositiveInt
    n_ctx: PositiveInt
    d_vocab: PositiveInt
    layer_norm_eps: float = 1e-5


class _LayerNorm(nn.Module):
    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(config.d_model))
        self.b = nn.Parameter(torch.zeros(config.d_model))
        self.eps = config.layer_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return normalise(x, self.w, self.b, self.eps)


class _Attention(nn.Module):
    W_Q: nn.Parameter
    W_K: nn.Parameter
    W_V: nn.Parameter
    b_Q: nn.Parameter
    b_K: nn.Parameter
    b_V: nn.Parameter

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__()
        heads, width, head = config.n_heads, config.d_model, config.d_head
        for name in "QKV":
            setattr(self, f"W_{name}", nn.Parameter(torch.empty(heads, width, head)))
            setattr(self, f"b_{name}", nn.Parameter(torch.zeros(heads, head)))
        self.W_O = nn.Parameter(torch.empty(heads, head, width))
        self.b_O = nn.Parameter(torch.zeros(width))

    def project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., head, position, d_head) of the normalised input."""
        heads, width, head = self.W_Q.shape
        with_position = x + positions
        projected = []
        for name, source in (("Q", with_position), ("K", with_position), ("V", x)):
            weight: Tensor = getattr(self, f"W_{name}")
            bias: Tensor = getattr(self, f"b_{name}")
            flat = _affine(source, weight.transpose(1, 2).reshape(heads * head, width), bias)
            projected.append(flat.unflatten(-1, (heads, head)).transpose(-2, -3))
        return projected[0], projected[1], projected[2]

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        # x: normalised residual stream (..., position, d_model)
        mixed = causal_attention(*self.project(x, positions))
        return F.linear(mixed.transpose(-2, -3).flatten(-2), self.W_O.flatten(0, 1).T, self.b_O)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Product with ``weight`` (out, d_model) plus ``bias`` of any shape of ``out`` entries."""
    if torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight) + bias.flatten()  # added in float32
    return F.linear(x, weight, bias.flatten())


class _Block(nn.Module):
    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__()
        self.ln1 = _LayerNorm(config)
        self.attn = _Attention(config)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.attn(self.ln1(x), positions)


class _Named(nn.Module):
    """Parameters under TransformerLens's names, with no computation of their own."""

    W_E: nn.Parameter
    W_pos: nn.Parameter
    W_U: nn.Parameter
    b_U: nn.Parameter

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))


class AttentionOnly(Transformer):
    """Attention-only transformer; ``forward`` gives logits, ``residual`` what precedes them."""

    config: AttentionOnlyConfig

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = _Named(W_E=(config.d_vocab, config.d_model))
        self.pos_embed = _Named(W_pos=(config.n_ctx, config.d_model))
        blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layers))
        self.blocks = cast("list[_Block]", blocks)
        self.ln_final = _LayerNorm(config)
        self.unembed = _Named(W_U=(config.d_model, config.d_vocab), b_U=(config.d_vocab,))

    def _positions(self, x: Tensor) -> Tensor:
        return self.pos_embed.W_pos[: x.shape[-2]]

    def embedded(self, tokens: Tensor, table: Tensor | None = None) -> Tensor:
        self._check_length(tokens)
        return F.embedding(tokens, self.embed.W_E) if table is None else look_up(tokens, table)

    def layer(self, index: int, stream: Tensor) -> Tensor:
        return self.blocks[index](stream, self._positions(stream))

    def attention_source(self, index: int, stream: Tensor) -> Tensor:
        return self.blocks[index].ln1(stream)

    def mlp_source(self, index: int, stream: Tensor) -> NoReturn:
        raise ValueError("the layers of an attention-only model have no MLP")

    def mlp(self, index: int, pieces: Mapping[str, Tensor], source: Tensor) -> NoReturn:
        raise ValueError("the layers of an attention-only model have no MLP")

    def head(
        self, index: int, pieces: Mapping[str, Tensor], source: Tensor
    ) -> tuple[Tensor, Tensor]:
        w = {name: pieces[f"blocks.{index}.attn.{name}"] for name in HEAD_PARAMETERS}
        both = torch.cat((w["W_Q"], w["W_K"]), -1)
        biases = torch.cat((w["b_Q"], w["b_K"]), -1)
        qk = stacked_linear(source + self._positions(source), both.transpose(1, 2), biases)
        v = stacked_linear(source, w["W_V"].transpose(1, 2), w["b_V"])
        q, k = qk.chunk(2, -1)
        return causal_attention(q, k, v), w["W_O"]

    def final_norm(self) -> tuple[Tensor, Tensor, float]:
        return self.ln_final.w, self.ln_final.b, self.ln_final.eps

    def unembedding(self, pieces: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if pieces is None:
            return self.unembed.W_U, self.unembed.b_U
        return pieces["unembed.W_U"], pieces["unembed.b_U"]

    def _project(self, index: int, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.blocks[index].attn.project(source, self._positions(source))

    def initialise(self, generator: torch.Generator, sinusoids: bool = False) -> None:
        """Draw initial weights: normal, 0.8 / sqrt(d_model) (TransformerLens's "gpt2" mode).

        With ``sinusoids`` the learned positions start from sinusoids of unit size, which
        brings previous-token heads forward by tens of millions of tokens in small runs.
        """
        scale = 0.8 / math.sqrt(self.config.d_model)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.split(".")[-1].startswith("W_"):
                    parameter.normal_(0.0, scale, generator=generator)
            if sinusoids:
                length, width = self.pos_embed.W_pos.shape
                rates = 10_000.0 ** (-torch.arange(0, width, 2) / width)
                angle = torch.arange(length)[:, None] * rates
                waves = torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :width]
                self.pos_embed.W_pos.copy_(waves)
