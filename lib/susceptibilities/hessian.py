"""The mean loss of a set of contexts near w*: its gradient and Hessian-vector products.

The Hessian is that of one component's weights, all others at w*. It is never formed.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .losses import ComponentLosses, Prepared

# Contexts in one backward pass: the logits of 8 contexts of 128 tokens take tens of MB.
_CONTEXTS = 8
# Rows of logits changed at a time.
_ROWS = 512
# What products at one point share is kept up to this size.
KEPT_BYTES = {"cpu": 1 << 30, "cuda": 1 << 34}
# Numbers that a graph is taken to hold for every token and dimension of the stream.
_HELD = 200


@runtime_checkable
class Factored(Protocol):
    """Losses that say what enters the unembedding, and the unembedding, differentiably."""

    def final(
        self, weights: Float[Tensor, "draw size"], prepared: Prepared, rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "draw batch position-1 d_model"]: ...

    def unembedding(self, weights: Float[Tensor, " size"]) -> tuple[Tensor, Tensor | None]: ...


class LossSet:
    """L_n on a stated set of contexts, as a function of one component's weights.

    This class takes Hessian-vector products as central differences of gradients, which any
    `ComponentLosses` has; they are exact where the loss is a quadratic. `ExactLossSet` needs
    no step; `loss_set` chooses.

    Attributes:
        losses: the component's losses.
        prepared: the contexts, as the component's ``prepare`` returns them.
        step: displacement |h v| of the differences.
    """

    def __init__(
        self,
        losses: ComponentLosses,
        tokens: Int[Tensor, "context position"],
        keep: bool = True,
        step: float = 1e-2,
    ) -> None:
        self.losses = losses
        self.prepared = losses.prepare(tokens, keep)
        self.step = step

    @property
    def contexts(self) -> int:
        """Contexts of the set."""
        return len(self.prepared.tokens)

    def blocks(self) -> list[Tensor]:
        """Rows of the contexts, a few at a time."""
        device = self.prepared.tokens.device
        return list(torch.arange(self.contexts, device=device).split(_CONTEXTS))

    def gradient(self, weights: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        """Gradient of the mean loss per token, in float64."""
        total = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
        for rows in self.blocks():
            _, gradient = self.losses.loss_and_gradient(weights[None], self.prepared, rows[None])
            total += gradient[0].double() * (len(rows) / self.contexts)
        return total

    def product(
        self, weights: Float[Tensor, " size"], vector: Float[Tensor, " size"]
    ) -> Float[Tensor, " size"]:
        """Hessian at ``weights`` times ``vector``, in float64."""
        h = self.step / float(vector.norm())
        move = (h * vector).to(weights.dtype)
        return (self.gradient(weights + move) - self.gradient(weights - move)) / (2 * h)


class ExactLossSet(LossSet):
    """Exact products for every component of a model, with no graph through the logits.

    The loss is that of the logits f W + b. With x(w) = (f, W, b), J its derivative, and the
    loss's gradient g and Hessian C in x, the product is J' C J v + (derivative of J v)' g. The
    vocabulary enters only in g and C J v, which are made a block of logits at a time.

    Products at one point share what does not depend on the vector: the graph of J' g and the
    probabilities. They are kept while the point stays the same, up to `KEPT_BYTES`.
    """

    _point: Tensor | None = None
    _kept: dict[int, _Pulled]

    def product(self, weights: Tensor, vector: Tensor) -> Tensor:
        if self._point is None or not torch.equal(self._point, weights):
            self._point, self._kept = weights.clone(), {}
        total = torch.zeros_like(weights, dtype=torch.float64)
        chosen = vector.to(weights.dtype)
        for number, rows in enumerate(self.blocks()):
            pulled = self._kept.get(number) or self._pull(weights, rows)
            held = sum(kept.bytes for kept in self._kept.values() if kept is not pulled)
            if held + pulled.bytes <= KEPT_BYTES[weights.device.type]:
                self._kept[number] = pulled
            share = len(rows) / len(pulled.targets) / self.contexts
            total += pulled.product(chosen).double() * share
        return total

    def _pull(self, weights: Tensor, rows: Tensor) -> _Pulled:
        losses = self.losses
        assert isinstance(losses, Factored)
        targets = self.prepared.tokens[rows][:, 1:].reshape(-1)
        leaf = weights.detach().clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # fused kernels cannot be differentiated twice
            final = losses.final(leaf[None], self.prepared, rows)[0].flatten(0, 1)
            return _Pulled(leaf, final, *losses.unembedding(leaf), targets)


def kept_bytes(tokens: int, d_model: int, d_vocab: int, each: int = 4) -> int:
    """About what is kept for a token of a loss set; numbers of ``each`` bytes."""
    return each * tokens * (_HELD * d_model + d_vocab)


class _Pulled:
    """J' g of some contexts as a function of the weights and of g, ready for products.

    Args:
        leaf: the component's weights, (size,).
        final: input of the unembedding, (token, d_model).
        weight: (d_model, d_vocab); ``bias``: (d_vocab,) or None.
        targets: (token,).
    """

    def __init__(
        self, leaf: Tensor, final: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> None:
        self.leaf, self.final, self.weight, self.bias = leaf, final, weight, bias
        self.targets = targets
        self.bytes = kept_bytes(len(final), weight.shape[0], weight.shape[1], final.element_size())
        with torch.no_grad():
            logits = final @ weight if bias is None else torch.addmm(bias, final, weight)
            self.p = torch.softmax(logits, -1)
        # Parts of x that depend on the component's weights.
        x = {"final": final, "weight": weight, "bias": bias}
        self.live = {k: v for k, v in x.items() if v is not None and v.requires_grad}
        self.slopes = [slope.requires_grad_() for slope in self._slopes()]
        with sdpa_kernel(SDPBackend.MATH):
            (self.pulled,) = torch.autograd.grad(
                list(self.live.values()), leaf, self.slopes, create_graph=True
            )

    def product(self, vector: Tensor) -> Tensor:
        """Hessian of the sum of the losses, times ``vector``."""
        with sdpa_kernel(SDPBackend.MATH):
            # J' g . v: its derivatives are the second term, and J v.
            second, *along = torch.autograd.grad(
                self.pulled,
                (self.leaf, *self.slopes),
                vector,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            bends = self._bends(dict(zip(self.live, along, strict=True)))
            (first,) = torch.autograd.grad(
                list(self.live.values()), self.leaf, bends, retain_graph=True
            )
        return first + second

    def _residual(self, rows: slice) -> Tensor:
        """Probabilities, less one for the token that came, (token, d_vocab)."""
        index = self.targets[rows, None]
        return self.p[rows].scatter_add(1, index, self.p.new_full(index.shape, -1.0))

    @torch.no_grad()
    def _slopes(self) -> list[Tensor]:
        """Gradient of the sum of the losses in each live part."""
        found = {name: torch.zeros_like(part) for name, part in self.live.items()}
        for rows in self._blocks():
            residual = self._residual(rows)
            if "final" in found:
                found["final"][rows] = residual @ self.weight.T
            if "weight" in found:
                found["weight"] += self.final[rows].T @ residual
            if "bias" in found:
                found["bias"] += residual.sum(0)
        return list(found.values())

    @torch.no_grad()
    def _bends(self, along: dict[str, Tensor]) -> list[Tensor]:
        """Hessian of the sum of the losses in each live part, times a change of them."""
        found = {name: torch.zeros_like(part) for name, part in self.live.items()}
        for rows in self._blocks():
            p = self.p[rows]
            change = torch.zeros_like(p)
            if "final" in along:
                change += along["final"][rows] @ self.weight
            if "weight" in along:
                change += self.final[rows] @ along["weight"]
            if "bias" in along:
                change += along["bias"]
            change.mul_(p)
            change.addcmul_(p, change.sum(-1, keepdim=True), value=-1.0)
            if "final" in found:
                found["final"][rows] = change @ self.weight.T
            if "bias" in found:
                found["bias"] += change.sum(0)
            if "weight" in found:
                found["weight"] += self.final[rows].T @ change
            if "weight" in found and "final" in found:
                residual = self._residual(rows)
                found["final"][rows] += residual @ along["weight"].T
                found["weight"] += along["final"][rows].T @ residual
        return list(found.values())

    def _blocks(self) -> list[slice]:
        return [slice(start, start + _ROWS) for start in range(0, len(self.final), _ROWS)]


def loss_set(
    losses: ComponentLosses, tokens: Int[Tensor, "context position"], keep: bool = True
) -> LossSet:
    """Exact Hessian-vector products where there are any, differences of gradients otherwise.

    Args:
        keep: as in ``losses.prepare``.
    """
    return (ExactLossSet if isinstance(losses, Factored) else LossSet)(losses, tokens, keep)
