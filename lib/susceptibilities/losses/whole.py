"""Losses of components that reach the logits: the unembedding, and the unrestricted chain."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..components import Component
from ..models.transformer import Transformer
from .interface import Precision, Prepared
from .logits import linear_loss_sum, linear_losses, unembedding_shift
from .stacked import Activations, StackedLosses


class UnembedLosses(StackedLosses):
    """The unembedding: the whole residual stream is below it."""

    @property
    def depth(self) -> int | None:
        return self.model.config.n_layers

    def _streams(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            below = self.model.residual(tokens)
        return below, below

    def stream(self, weights: Tensor, block: Activations) -> Tensor:
        return block.above.expand(len(weights), *block.above.shape[-3:])

    def unembedding(self, weights: Float[Tensor, " size"]) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.model.unembedding(self.component.split(weights[None]))
        return weight[0], None if bias is None else bias[0]

    @torch.no_grad()
    def shifts(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        narrow = self.precision == "bfloat16"
        found = []
        for block in self._blocks(prepared, rows):
            reference = self._reference(block)
            values = []
            for change in weights - self.w_star:
                weight, bias = self.unembedding(change)
                values.append(unembedding_shift(reference, weight, bias, narrow))
            found.append(torch.stack(values).view(len(weights), len(block.tokens), -1))
        return torch.cat(found, 1)

    def loss_and_gradient(
        self, weights: Tensor, prepared: Prepared, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        found, gradients = [], []
        # Chain by chain: each has logits of its own.
        for vector, batch in zip(weights, rows, strict=True):
            leaf = vector.detach().requires_grad_()
            final = self.final(leaf[None], prepared, batch).flatten(0, 2)
            targets = prepared.tokens[batch][:, 1:].flatten()
            loss = linear_loss_sum(final, *self.unembedding(leaf), targets)[0] / len(targets)
            gradients.append(torch.autograd.grad(loss, leaf)[0])
            found.append(loss.detach())
        return torch.stack(found), torch.stack(gradients)


class FullLosses(StackedLosses):
    """All weights: the whole model for every draw, in float32 at any ``precision``."""

    def __init__(
        self, model: Transformer, part: Component, precision: Precision = "float32"
    ) -> None:
        super().__init__(model, part, "float32")
        self._whole = _Final(model)

    def final(
        self, weights: Tensor, prepared: Prepared, rows: Tensor
    ) -> Float[Tensor, "draw batch position-1 d_model"]:
        every = (self.component.substitute(self.parameters, vector) for vector in weights)
        return torch.stack([self._one(parameters, prepared.tokens[rows]) for parameters in every])

    def _one(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        named = {f"model.{name}": value for name, value in parameters.items()}
        return torch.func.functional_call(self._whole, named, (tokens,))

    def unembedding(self, weights: Float[Tensor, " size"]) -> tuple[Tensor, Tensor | None]:
        return self._unembedding(self.component.substitute(self.parameters, weights))

    def _unembedding(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        # With a draw's axis, as the model expects.
        weight, bias = self.model.unembedding({k: v[None] for k, v in parameters.items()})
        return weight[0], None if bias is None else bias[0]

    @torch.no_grad()
    def shifts(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        # Draws outermost: nothing is shared by them, and each is unpacked once.
        star = self.star(prepared, rows)
        shifts = star.new_empty(len(weights), *star.shape)
        for vector, shift in zip(weights, shifts, strict=True):
            parameters = self.component.substitute(self.parameters, vector)
            unembedding, done = self._unembedding(parameters), 0
            for block in self._blocks(prepared, rows):
                final = self._one(parameters, block.tokens).flatten(0, 1)
                here = slice(done, done := done + len(block.tokens))
                losses = linear_losses(final, *unembedding, block.targets).view_as(star[here])
                torch.sub(losses, star[here], out=shift[here])
        return shifts

    def loss_and_gradient(
        self, weights: Tensor, prepared: Prepared, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        found, gradients = [], torch.empty_like(weights)
        for vector, gradient, batch in zip(weights, gradients, rows, strict=True):
            # By parameter: the way back to one flat vector would copy all of it several times.
            pieces = self.component.split(vector.detach())
            parameters = {name: piece.requires_grad_() for name, piece in pieces.items()}
            tokens = prepared.tokens[batch]
            final, targets = self._one(parameters, tokens).flatten(0, 1), tokens[:, 1:].flatten()
            total = linear_loss_sum(final, *self._unembedding(parameters), targets)
            loss = total[0] / len(targets)
            slopes = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            for place, slope in zip(self.component.split(gradient).values(), slopes, strict=True):
                place.copy_(slope)
            found.append(loss.detach())
        return torch.stack(found), gradients


class _Final(torch.nn.Module):
    """The model up to the input of the unembedding, as a module for functional_call."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.final(self.model.residual(tokens)[:, :-1])
