"""Losses of many weight vectors of one component at once, from the layer below it upwards.

What the component cannot change is computed once for a block of contexts: the layers below, the
other parts of its layer, the logits at w*. The draws are stacked inside, so that only the
component, the layers above it and the change of the logits are computed for every draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..blocks import gradient_rows, logit_rows, losses_blocks, memory_limits
from ..components import Component
from ..models.transformer import Transformer
from .interface import Precision, Prepared
from .logits import (
    FinalShift,
    LowRankShift,
    Reference,
    linear_loss_sum,
    linear_losses,
)

# Contexts taken through the lower layers at a time.
_CONTEXTS = 8


@dataclass(frozen=True)
class Activations:
    """A block of contexts: tokens, and the residual stream before and after the layer at w*.

    Axes (context, ...), shared by all draws, or (draw, context, ...).
    """

    tokens: Tensor
    below: Tensor
    above: Tensor

    @property
    def targets(self) -> Int[Tensor, " row"]:
        """Tokens to predict, one row after another."""
        return self.tokens[..., 1:].flatten()


class StackedLosses:
    """`ComponentLosses` by stacking; subclasses say what a component does to the stream.

    Attributes:
        first: number of the first layer above the component.
    """

    def __init__(
        self, model: Transformer, part: Component, precision: Precision = "float32"
    ) -> None:
        self.model = model
        self.component = part
        self.precision: Precision = precision
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.parameters = dict(model.named_parameters())
        self.w_star = part.read(self.parameters)
        self.weight, self.bias = model.unembedding()
        self.first = 0 if self.depth is None else self.depth + 1

    @property
    def depth(self) -> int | None:
        return self.component.layer

    def prepare(self, tokens: Tensor, keep: bool = True) -> Prepared:
        if not keep or self.depth is None:
            return Prepared(tokens)
        parts = [self._streams(rows) for rows in tokens.split(_CONTEXTS)]
        below, above = (torch.cat(p) for p in zip(*parts, strict=True))
        return Prepared(tokens, below, above)

    @torch.no_grad()
    def _streams(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Residual stream before and after the component's layer at w*."""
        below = self.model.residual(tokens, self.depth or 0)
        return below, below if self.depth is None else self.model.layer(self.depth, below)

    def activations(self, prepared: Prepared, rows: slice | Tensor) -> Activations:
        """What a block of contexts needs, kept or computed now."""
        tokens = prepared.tokens[rows]
        if prepared.below is None or prepared.above is None:
            return Activations(tokens, *self._streams(tokens))
        return Activations(tokens, prepared.below[rows], prepared.above[rows])

    def stream(
        self, weights: Float[Tensor, "draw size"], block: Activations
    ) -> Float[Tensor, "draw context position d_model"]:
        """Residual stream after the component."""
        raise NotImplementedError

    def _to_final(self, stream: Tensor) -> Float[Tensor, "... position-1 d_model"]:
        """From after the component to the input of the unembedding, at predicting positions."""
        for index in range(self.first, self.model.config.n_layers):
            stream = self.model.layer(index, stream)
        return self.model.final(stream[..., :-1, :])

    def final(
        self, weights: Float[Tensor, "draw size"], prepared: Prepared, rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "draw batch position-1 d_model"]:
        """Input of the unembedding at predicting positions; differentiable in the weights."""
        return self._to_final(self.stream(weights, self.activations(prepared, rows)))

    def unembedding(self, weights: Float[Tensor, " size"]) -> tuple[Tensor, Tensor | None]:
        """Weight (d_model, d_vocab) and bias (d_vocab,) at one weight vector, differentiable."""
        return self.weight, self.bias

    def _blocks(self, prepared: Prepared, rows: slice | None) -> Iterator[Activations]:
        """Contexts whose logits are one block."""
        start, stop, _ = (rows or slice(None)).indices(len(prepared.tokens))
        for first in range(start, stop, step := self._contexts(prepared)):
            yield self.activations(prepared, slice(first, min(first + step, stop)))

    def _contexts(self, prepared: Prepared) -> int:
        """Contexts in a block."""
        rows = logit_rows(self.w_star.device, self.weight.shape[1])
        return max(1, rows // (prepared.tokens.shape[1] - 1))

    def _groups(self, weights: Tensor, prepared: Prepared) -> tuple[Tensor, ...]:
        """Draws whose stacked activations of a block are held together."""
        sizes = losses_blocks(weights.device, self.model.config, len(weights))
        block = self._contexts(prepared) * prepared.tokens.shape[1]
        return weights.split(max(1, sizes.rows_of_stream // block))

    def _reference(self, block: Activations) -> Reference:
        final = self._to_final(block.above).flatten(0, 1)
        return Reference.of(final, self.weight, self.bias, block.targets)

    @torch.no_grad()
    def star(self, prepared: Prepared, rows: slice | None = None) -> Tensor:
        found = []
        for block in self._blocks(prepared, rows):
            final = self._to_final(block.above).flatten(0, 1)
            losses = linear_losses(final, self.weight, self.bias, block.targets)
            found.append(losses.view(len(block.tokens), -1))
        return torch.cat(found)

    @torch.no_grad()
    def shifts(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        shift = FinalShift(self.weight, narrow=self.precision == "bfloat16")
        groups = self._groups(weights, prepared)
        found = []
        for block in self._blocks(prepared, rows):
            reference = self._reference(block)
            values = [
                shift(reference, self._to_final(self.stream(group, block)).flatten(1, 2))
                for group in groups
            ]
            found.append(torch.cat(values).view(len(weights), len(block.tokens), -1))
        return torch.cat(found, 1)

    def losses(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        return self.star(prepared, rows) + self.shifts(weights, prepared, rows)

    def loss_and_gradient(
        self, weights: Tensor, prepared: Prepared, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        found = [
            self._gradient(some, prepared, own)
            for some, own in zip(*self._together(weights, prepared, rows), strict=True)
        ]
        losses, gradients = zip(*found, strict=True)
        return torch.cat(losses), torch.cat(gradients)

    def _together(
        self, weights: Tensor, prepared: Prepared, rows: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Chains and their rows, in groups whose activations a GPU holds together."""
        chains = len(weights)
        if weights.device.type != "cpu":
            config = self.model.config
            most = gradient_rows(weights.device, config, config.n_layers - self.first + 1)
            chains = max(1, most // (rows.shape[1] * prepared.tokens.shape[1]))
        return weights.split(chains), rows.split(chains)

    def _gradient(self, weights: Tensor, prepared: Prepared, rows: Tensor) -> tuple[Tensor, Tensor]:
        block = self._own_rows(prepared, rows)
        leaf = weights.detach().requires_grad_()
        final = self._to_final(self.stream(leaf, block)).flatten(0, 2)
        sums = linear_loss_sum(final, self.weight, self.bias, block.targets, groups=len(rows))
        losses = sums / (len(block.targets) // len(rows))
        # Chains do not interact: the gradient of the sum holds each chain's own.
        gradient = torch.autograd.grad(losses.sum(), leaf)[0]
        return losses.detach(), gradient

    def _own_rows(self, prepared: Prepared, rows: Tensor) -> Activations:
        """Every chain's own contexts, axes (chain, context, ...)."""
        flat = self.activations(prepared, rows.flatten())
        return Activations(
            flat.tokens.unflatten(0, rows.shape),
            flat.below.unflatten(0, rows.shape),
            flat.above.unflatten(0, rows.shape),
        )


class HeadLosses(StackedLosses):
    """An attention head."""

    def _head(self, weights: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        """What the head mixes (draw, ..., position, d_head), and its output matrices."""
        assert self.depth is not None
        source = self.model.attention_source(self.depth, below)
        return self.model.head(self.depth, self.component.split(weights), source)

    @torch.no_grad()
    def _rest(self, block: Activations) -> Tensor:
        """Residual stream after the layer without this head."""
        mixed, output = self._head(self.w_star[None], block.below.flatten(0, -3))
        return block.above - (mixed[0] @ output[0]).view_as(block.above)

    def stream(self, weights: Tensor, block: Activations) -> Tensor:
        mixed, output = self._head(weights, block.below)
        own = torch.bmm(mixed.flatten(1, -2), output)
        return self._rest(block) + own.unflatten(1, mixed.shape[1:-1])

    @torch.no_grad()
    def shifts(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        config = self.model.config
        if self.first < config.n_layers or 2 * config.d_head > config.d_model:
            return super().shifts(weights, prepared, rows)
        low_rank = LowRankShift(self.model.final_norm(), self.weight, self.bias)
        each = (config.d_head + 1) * self.weight.numel() // len(self.weight) * 4
        some = weights.split(max(1, memory_limits(weights.device).projected // each))
        return torch.cat([self._last_layer(low_rank, w, prepared, rows) for w in some])

    def _last_layer(
        self, low_rank: LowRankShift, weights: Tensor, prepared: Prepared, rows: slice | None
    ) -> Tensor:
        groups = self._groups(weights, prepared)
        projected: dict[int, Tensor] = {}
        found = []
        for block in self._blocks(prepared, rows):
            star = self._reference(block).losses
            rest = self._rest(block)[:, :-1].flatten(0, 1)
            rest_logits = low_rank.rest_logits(rest)
            for number, group in enumerate(groups):
                mixed, output = self._head(group, block.below)
                if number not in projected:
                    projected[number] = low_rank.project(output)
                z = mixed[:, :, :-1].flatten(1, 2)
                values = low_rank(
                    star, rest, rest_logits, block.targets, z, output, projected[number]
                )
                found.append(values.view(len(group), len(block.tokens), -1))
        blocks = [torch.cat(found[i : i + len(groups)]) for i in range(0, len(found), len(groups))]
        return torch.cat(blocks, 1)


class MLPLosses(StackedLosses):
    """An MLP."""

    def _mlp(self, weights: Tensor, below: Tensor) -> Tensor:
        assert self.depth is not None
        source = self.model.mlp_source(self.depth, below)
        return self.model.mlp(self.depth, self.component.split(weights), source)

    def stream(self, weights: Tensor, block: Activations) -> Tensor:
        with torch.no_grad():
            own = self._mlp(self.w_star[None], block.below.flatten(0, -3))[0]
            rest = block.above - own.view_as(block.above)
        return rest + self._mlp(weights, block.below)


class EmbedLosses(StackedLosses):
    """The token embedding: nothing below it, everything above."""

    def stream(self, weights: Tensor, block: Activations) -> Tensor:
        (table,) = self.component.split(weights).values()
        return self.model.embedded(block.tokens, table)
