"""What every transformer of the project offers, and the parts that its kinds share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:  # the shapes know the models
    from .shapes import Shape


class Transformer(nn.Module, ABC):
    """A causal language model, taken apart layer by layer.

    Streams have any leading axes: (..., position, d_model). Weights of many draws come as
    ``pieces``: parameters by name with a leading axis of S draws, as `Component.split` gives
    them. A ``source`` of at most three axes, (context, position, d_model), is shared by all S,
    and then taken through one matrix product; with four, (S, context, position, d_model), every
    draw has its own.

    All of it can be differentiated, twice under ``SDPBackend.MATH``, and goes through
    ``torch.func.functional_call``.
    """

    config: Shape

    @abstractmethod
    def embedded(
        self, tokens: Int[Tensor, "... position"], table: Float[Tensor, "S V d_model"] | None = None
    ) -> Float[Tensor, "... position d_model"]:
        """Residual stream before the first layer.

        Args:
            table: S embedding matrices instead of the model's own; the result then has a
                leading axis S, and ``tokens`` are (context, position) or (S, context, position).

        Raises:
            ValueError: the context is longer than the model's.
        """

    @abstractmethod
    def layer(
        self, index: int, stream: Float[Tensor, "... position d_model"]
    ) -> Float[Tensor, "... position d_model"]:
        """Residual stream after a layer, given the one before it."""

    @abstractmethod
    def attention_source(
        self, index: int, stream: Float[Tensor, "... position d_model"]
    ) -> Float[Tensor, "... position d_model"]:
        """Normalised input of a layer's attention, given the stream before the layer."""

    @abstractmethod
    def mlp_source(
        self, index: int, stream: Float[Tensor, "... position d_model"]
    ) -> Float[Tensor, "... position d_model"]:
        """Normalised input of a layer's MLP, given the stream before the layer.

        Raises:
            ValueError: the layers have no MLP.
        """

    @abstractmethod
    def head(
        self, index: int, pieces: Mapping[str, Tensor], source: Tensor
    ) -> tuple[Float[Tensor, "S ... position d_head"], Float[Tensor, "S d_head d_model"]]:
        """(mixed, output) of S draws of a head of layer ``index``.

        The head adds ``mixed @ output`` to the residual stream. (The output bias is shared by
        the layer and belongs to no head.)
        """

    @abstractmethod
    def mlp(
        self, index: int, pieces: Mapping[str, Tensor], source: Tensor
    ) -> Float[Tensor, "S ... position d_model"]:
        """What S draws of the MLP of layer ``index`` add to the residual stream.

        Raises:
            ValueError: the layers have no MLP.
        """

    @abstractmethod
    def final_norm(self) -> tuple[Tensor, Tensor, float]:
        """Weight, bias (d_model,) and epsilon of the LayerNorm before the unembedding."""

    @abstractmethod
    def unembedding(
        self, pieces: Mapping[str, Tensor] | None = None
    ) -> tuple[Float[Tensor, "... d_model V"], Float[Tensor, "... V"] | None]:
        """Weight and bias (None where there is none); of ``pieces``, with a leading axis S."""

    @abstractmethod
    def initialise(self, generator: torch.Generator, sinusoids: bool = False) -> None:
        """Draw the weights that training starts from.

        Args:
            sinusoids: learned positions start from sinusoids.

        Raises:
            ValueError: ``sinusoids`` for a model without learned positions.
        """

    @abstractmethod
    def _project(self, index: int, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (..., head, position, d_head) as attention uses them."""

    def residual(
        self, tokens: Int[Tensor, "... position"], layers: int | None = None
    ) -> Float[Tensor, "... position d_model"]:
        """Residual stream after the first ``layers`` layers (all by default)."""
        stream = self.embedded(tokens)
        for index in range(self.config.n_layers if layers is None else layers):
            stream = self.layer(index, stream)
        return stream

    def final(
        self, stream: Float[Tensor, "... position d_model"]
    ) -> Float[Tensor, "... position d_model"]:
        """Input of the unembedding, given the stream after the last layer."""
        return normalise(stream, *self.final_norm())

    def forward(self, tokens: Int[Tensor, "... position"]) -> Float[Tensor, "... position V"]:
        """Logits of the next token at every position."""
        weight, bias = self.unembedding()
        return F.linear(self.final(self.residual(tokens)), weight.T, bias)

    def attention_patterns(
        self, tokens: Int[Tensor, "context position"]
    ) -> Float[Tensor, "layer context head query key"]:
        """Attention pattern of every head, as ``forward`` uses it."""
        patterns = []
        stream = self.embedded(tokens)
        for index in range(self.config.n_layers):
            q, k, _ = self._project(index, self.attention_source(index, stream))
            patterns.append(attention_pattern(q, k))
            stream = self.layer(index, stream)
        return torch.stack(patterns)

    def _check_length(self, tokens: Tensor) -> None:
        if tokens.shape[-1] > self.config.n_ctx:
            raise ValueError(f"context of {tokens.shape[-1]} tokens, model has {self.config.n_ctx}")


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def look_up(
    tokens: Int[Tensor, "... position"], table: Float[Tensor, "S V d_model"]
) -> Float[Tensor, "S context position d_model"]:
    """Rows of S embedding matrices, for tokens that they share or each for its own."""
    # One matrix of S * V rows: its backward pass adds up much faster than that of an index.
    first = torch.arange(len(table), device=tokens.device) * table.shape[1]
    return F.embedding(tokens + first[:, None, None], table.flatten(0, 1))


def stacked_linear(
    source: Tensor, weight: Float[Tensor, "S out d_in"], bias: Float[Tensor, "S out"]
) -> Float[Tensor, "S ... out"]:
    """``F.linear`` with S weights; a ``source`` of at most three axes is shared by them.

    Raises:
        ValueError: ``source`` has four axes, and the first is neither 1 nor S.
    """
    count = len(weight)
    if source.ndim > 3 and len(source) == 1:
        source = source[0]
    if source.ndim <= 3:
        flat = F.linear(source, weight.flatten(0, 1), bias.flatten())
        return flat.unflatten(-1, (count, -1)).movedim(-2, 0)
    if len(source) != count:
        raise ValueError(f"{count} draws of the weights, but inputs for {len(source)}")
    return own_linear(source, weight, bias)


def own_linear(
    source: Float[Tensor, "S ... d_in"],
    weight: Float[Tensor, "S out d_in"],
    bias: Float[Tensor, "S out"],
) -> Float[Tensor, "S ... out"]:
    """``F.linear`` with S weights, each on its own input."""
    flat = torch.baddbmm(bias[:, None], source.flatten(1, -2), weight.transpose(1, 2))
    return flat.unflatten(1, source.shape[1:-1])


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over earlier positions, scores divided by sqrt(d_head).

    Args:
        q, k, v: shape (..., position, d_head).
    """
    # Under autocast q, k and v may still be float32 here (by a float32 bias added to them).
    narrow = q.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if q.device.type == "cpu" and narrow:
        # In bfloat16 on a CPU the fused kernel's backward pass takes half of a training step;
        # these products take half as long, and a third once compiled.
        return attention_pattern(q, k) @ v
    if q.ndim == 4:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # The fused kernels take four axes only.
    wide = [_four_axes(x) for x in (q, k, v)]
    return F.scaled_dot_product_attention(wide[0], wide[1], wide[2], is_causal=True).view(v.shape)


def _four_axes(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-3:]) if x.ndim > 4 else x[(None,) * (4 - x.ndim)]


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


def token_losses(
    logits: Float[Tensor, "batch position d_vocab"], tokens: Int[Tensor, "batch position"]
) -> Float[Tensor, "batch position-1"]:
    """Loss of every token after the first, -log p(y | x), in float32 at least."""
    wide = logits[:, :-1].float() if logits.dtype.itemsize < 4 else logits[:, :-1]
    chosen = wide.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.logsumexp(wide, -1) - chosen
