"""The attention-only transformer of Baker et al.: weight for weight TransformerLens's.

Parameter names and shapes are those of TransformerLens's ``HookedTransformer`` with
``attn_only``, LayerNorm, biases and shortformer positions (position vectors are added to
the normalised inputs of Q and K only), so that published checkpoints load unchanged.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn


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


def normalise(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis."""
    return F.layer_norm(x, x.shape[-1:], w, b, eps)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over earlier positions, scores divided by sqrt(d_head).

    Args:
        q, k, v: shape (..., position, d_head).
    """
    # Under autocast q, k and v are still float32 here (a float32 bias has been added to them).
    narrow = q.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if q.device.type != "cpu" or not narrow:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # In bfloat16 on a CPU the fused kernel's backward pass takes half of a training step;
    # these products take half as long, and a third once compiled.
    return attention_pattern(q, k) @ v


def attention_pattern(q: Tensor, k: Tensor) -> Tensor:
    """Attention of every position to itself and earlier ones; rows sum to one.

    Args:
        q, k: shape (..., position, d_head).

    Returns:
        Shape (..., query position, key position).
    """
    length = q.shape[-2]
    mask = torch.full((length, length), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask
    return scores.softmax(-1)


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
        """Queries, keys and values (batch, head, position, d_head) of the normalised input."""
        with_position = x + positions
        heads, width, head = self.W_Q.shape
        projected = []
        for name, source in (("Q", with_position), ("K", with_position), ("V", x)):
            weight: Tensor = getattr(self, f"W_{name}")
            bias: Tensor = getattr(self, f"b_{name}")
            flat = F.linear(source, weight.transpose(1, 2).reshape(heads * head, width))
            flat = flat + bias.reshape(-1)
            projected.append(flat.unflatten(-1, (heads, head)).transpose(1, 2))
        return projected[0], projected[1], projected[2]

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        # x: normalised residual stream (batch, position, d_model)
        heads, width, head = self.W_Q.shape
        mixed = causal_attention(*self.project(x, positions))
        return F.linear(
            mixed.transpose(1, 2).flatten(-2), self.W_O.reshape(heads * head, width).T, self.b_O
        )


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


class AttentionOnly(nn.Module):
    """Attention-only transformer; ``forward`` gives logits, ``residual`` what precedes them."""

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = _Named(W_E=(config.d_vocab, config.d_model))
        self.pos_embed = _Named(W_pos=(config.n_ctx, config.d_model))
        blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layers))
        self.blocks = cast("list[_Block]", blocks)
        self.ln_final = _LayerNorm(config)
        self.unembed = _Named(W_U=(config.d_model, config.d_vocab), b_U=(config.d_vocab,))

    def residual(
        self, tokens: Int[Tensor, "batch position"], layers: int | None = None
    ) -> Float[Tensor, "batch position d_model"]:
        """Residual stream after the first ``layers`` layers (all by default)."""
        if tokens.shape[1] > self.config.n_ctx:
            raise ValueError(f"context of {tokens.shape[1]} tokens, model has {self.config.n_ctx}")
        x = F.embedding(tokens, self.embed.W_E)
        positions = self.pos_embed.W_pos[: tokens.shape[1]]
        for block in self.blocks[: self.config.n_layers if layers is None else layers]:
            x = block(x, positions)
        return x

    def forward(
        self, tokens: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch position d_vocab"]:
        """Logits of the next token at every position."""
        final = self.ln_final(self.residual(tokens))
        return F.linear(final, self.unembed.W_U.T, self.unembed.b_U)

    def attention_patterns(
        self, tokens: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "layer batch head query key"]:
        """Attention pattern of every head, as ``forward`` uses it."""
        patterns = []
        x = self.residual(tokens, 0)
        positions = self.pos_embed.W_pos[: tokens.shape[1]]
        for block in self.blocks:
            q, k, _ = block.attn.project(block.ln1(x), positions)
            patterns.append(attention_pattern(q, k))
            x = block(x, positions)
        return torch.stack(patterns)

    def initialise(self, generator: torch.Generator, sinusoids: bool) -> None:
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


def token_losses(
    logits: Float[Tensor, "batch position d_vocab"], tokens: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch position-1"]:
    """Loss of every token after the first, -log p(y | x), in float32 at least."""
    wide = logits[:, :-1].float() if logits.dtype.itemsize < 4 else logits[:, :-1]
    chosen = wide.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.logsumexp(wide, -1) - chosen
