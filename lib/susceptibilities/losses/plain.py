"""The oracle: the whole model for every weight vector, one after another, without a shortcut."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..components import Component
from ..models.transformer import Transformer
from .interface import Prepared

# Contexts taken through the model at a time.
_CONTEXTS = 8


class PlainLosses:
    """`ComponentLosses` of any component of any model."""

    def __init__(self, model: Transformer, part: Component) -> None:
        self.model = model
        self.component = part
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        self.w_star = part.read(self.parameters)

    @property
    def depth(self) -> int | None:
        return None

    def prepare(self, tokens: Tensor, keep: bool = True) -> Prepared:
        return Prepared(tokens)

    def token_losses(self, vector: Tensor, tokens: Tensor) -> Tensor:
        """Losses (context, position-1) at one weight vector (P,), differentiable in it."""
        parameters = self.component.substitute(self.parameters, vector)
        logits = torch.func.functional_call(self.model, parameters, (tokens,))[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        return losses.view(len(tokens), -1)

    @torch.no_grad()
    def losses(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        blocks = prepared.tokens[rows or slice(None)].split(_CONTEXTS)
        return torch.stack([torch.cat([self.token_losses(w, b) for b in blocks]) for w in weights])

    def star(self, prepared: Prepared, rows: slice | None = None) -> Tensor:
        return self.losses(self.w_star[None], prepared, rows)[0]

    def shifts(self, weights: Tensor, prepared: Prepared, rows: slice | None = None) -> Tensor:
        return self.losses(weights, prepared, rows) - self.star(prepared, rows)

    def loss_and_gradient(
        self, weights: Tensor, prepared: Prepared, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, gradients = [], []
        for vector, tokens in zip(weights, prepared.tokens[rows], strict=True):
            leaf = vector.detach().requires_grad_()
            loss = self.token_losses(leaf, tokens).mean()
            gradients.append(torch.autograd.grad(loss, leaf)[0])
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(gradients)
