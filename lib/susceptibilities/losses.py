"""Per-token losses, and their gradients, of a model with one component's weights replaced.

Many weight vectors of one component are handled at once. For an attention head everything
that its weights cannot change (the layers below it, the other heads of its layer) is computed
once for a set of contexts; only the head itself and the layers above are computed for every
weight vector. Other components take the plain path through the whole model, which is also the
oracle that the tests hold the fast one against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .components import Component
from .models.attention_only import AttentionOnly, causal_attention

# Rows of logits held at a time: 512 rows of a vocabulary of a few thousand stay in cache.
_ROWS = 512
# Contexts taken through the lower layers at a time.
_CONTEXTS = 8


def linear_losses(
    final: Float[Tensor, "row d_model"],
    weight: Float[Tensor, "d_model d_vocab"],
    bias: Float[Tensor, " d_vocab"],
    targets: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """-log p(target) of every row, a block of logits at a time."""
    losses = final.new_empty(len(final))
    for start in range(0, len(final), _ROWS):
        rows = slice(start, start + _ROWS)
        logits = torch.addmm(bias, final[rows], weight)
        losses[rows] = F.cross_entropy(logits, targets[rows], reduction="none")
    return losses


class _LinearLossSum(torch.autograd.Function):
    """Sum over rows of -log p(target); gradients are made in the forward pass, block by block.

    The gradient of the sum needs only softmax(logits) - onehot, so no logits are kept.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        final: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        groups: int,
    ) -> Tensor:
        losses = final.new_empty(len(final))
        needs_final, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        d_final = torch.empty_like(final) if needs_final else None
        d_weight = torch.zeros_like(weight) if needs_weight else None
        d_bias = torch.zeros_like(bias) if needs_bias else None
        for start in range(0, len(final), _ROWS):
            rows = slice(start, start + _ROWS)
            slope = torch.softmax(torch.addmm(bias, final[rows], weight), -1)
            index = targets[rows, None]
            losses[rows] = -slope.gather(1, index).log_().squeeze(1)
            slope.scatter_add_(1, index, slope.new_full(index.shape, -1.0))
            if d_final is not None:
                torch.mm(slope, weight.T, out=d_final[rows])
            if d_weight is not None:
                d_weight.addmm_(final[rows].T, slope)
            if d_bias is not None:
                d_bias += slope.sum(0)
        ctx.save_for_backward(*(g for g in (d_final, d_weight, d_bias) if g is not None))
        ctx.which = (needs_final, needs_weight, needs_bias)  # type: ignore[attr-defined]
        return losses.view(groups, -1).sum(-1)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors)  # type: ignore[attr-defined]
        d_final, d_weight, d_bias = (saved.pop(0) if w else None for w in ctx.which)  # type: ignore[attr-defined]
        groups = len(grad)
        if d_final is not None:
            d_final = (d_final.view(groups, -1) * grad[:, None]).view_as(d_final)
        if groups > 1 and (d_weight is not None or d_bias is not None):
            raise RuntimeError("gradients of the unembedding need one group at a time")
        d_weight = None if d_weight is None else d_weight * grad
        d_bias = None if d_bias is None else d_bias * grad
        return d_final, d_weight, d_bias, None, None


def linear_loss_sum(
    final: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, groups: int = 1
) -> Float[Tensor, " groups"]:
    """Differentiable sum of the losses of each of ``groups`` equal runs of rows."""
    return _LinearLossSum.apply(final, weight, bias, targets, groups)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Prepared:
    """Contexts with what does not depend on the weights of one layer's heads.

    Attributes:
        tokens: (context, position).
        source: normalised input of the layer, (context, position, d_model).
        output: residual stream after the layer at w*, same shape.

    ``source`` and ``output`` are None on the plain path, and for a set of contexts too large
    to keep them: they are then computed for the rows that are asked for.
    """

    tokens: Tensor
    source: Tensor | None = None
    output: Tensor | None = None


class ComponentLosses(Protocol):
    """Losses of one component's weight vectors; see `component_losses`."""

    component: Component
    w_star: Tensor

    def prepare(self, tokens: Int[Tensor, "context position"], keep: bool = True) -> Prepared:
        """Compute once what the component's weights cannot change.

        The result serves every component of the same ``depth``. With ``keep=False`` nothing is
        stored, and what a minibatch needs is computed when it is used.
        """
        ...

    @property
    def depth(self) -> int | None:
        """The layer whose `Prepared` this component uses; None on the plain path."""
        ...

    def losses(
        self, weights: Float[Tensor, "draw size"], prepared: Prepared
    ) -> Float[Tensor, "draw context position-1"]:
        """Per-token losses of every weight vector on the same contexts."""
        ...

    def loss_and_gradient(
        self,
        weights: Float[Tensor, "chain size"],
        prepared: Prepared,
        rows: Int[Tensor, "chain batch"],
    ) -> tuple[Float[Tensor, " chain"], Float[Tensor, "chain size"]]:
        """Mean loss per token and its gradient, each chain on its own rows of the contexts."""
        ...


class PlainLosses:
    """The whole model for every weight vector: any component, no shortcut."""

    def __init__(self, model: AttentionOnly, part: Component) -> None:
        self.model = model.requires_grad_(False)
        self.component = part
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        self.w_star = part.read(self.parameters)

    @property
    def depth(self) -> int | None:
        return None

    def prepare(self, tokens: Tensor, keep: bool = True) -> Prepared:
        return Prepared(tokens)

    def _final(self, parameters: dict[str, Tensor], tokens: Tensor) -> Tensor:
        stream = torch.func.functional_call(_Final(self.model), _prefixed(parameters), (tokens,))
        return stream[:, :-1].reshape(-1, stream.shape[-1])

    def losses(self, weights: Tensor, prepared: Prepared) -> Tensor:
        tokens = prepared.tokens
        results = []
        for vector in weights:
            parameters = self.component.substitute(self.parameters, vector)
            results.append(
                linear_losses(
                    self._final(parameters, tokens),
                    parameters["unembed.W_U"],
                    parameters["unembed.b_U"],
                    tokens[:, 1:].reshape(-1),
                ).view(len(tokens), -1)
            )
        return torch.stack(results)

    def loss_and_gradient(
        self, weights: Tensor, prepared: Prepared, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses, gradients = [], []
        for vector, tokens in zip(weights, prepared.tokens[rows], strict=True):
            leaf = vector.detach().requires_grad_()
            parameters = self.component.substitute(self.parameters, leaf)
            total = linear_loss_sum(
                self._final(parameters, tokens),
                parameters["unembed.W_U"],
                parameters["unembed.b_U"],
                tokens[:, 1:].reshape(-1),
            )
            loss = total[0] / tokens[:, 1:].numel()
            gradients.append(torch.autograd.grad(loss, leaf)[0])
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(gradients)


class _Final(torch.nn.Module):
    """The model up to the input of the unembedding, as a module for functional_call."""

    def __init__(self, model: AttentionOnly) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.ln_final(self.model.residual(tokens))


def _prefixed(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in parameters.items()}


class HeadLosses:
    """One attention head: the rest of the model is computed once, the head per weight vector."""

    def __init__(self, model: AttentionOnly, part: Component) -> None:
        assert part.head is not None
        self.model = model.requires_grad_(False)
        self.component = part
        self.layer, self.index = part.head
        self.w_star = part.read(dict(model.named_parameters()))

    @property
    def depth(self) -> int | None:
        return self.layer

    def prepare(self, tokens: Tensor, keep: bool = True) -> Prepared:
        if not keep:
            return Prepared(tokens)
        sources, outputs = [], []
        block = self.model.blocks[self.layer]
        with torch.no_grad():
            for rows in tokens.split(_CONTEXTS):
                stream = self.model.residual(rows, self.layer)
                source = block.ln1(stream)
                sources.append(source)
                outputs.append(stream + block.attn(source, self._positions(source)))
        return Prepared(tokens, torch.cat(sources), torch.cat(outputs))

    def _rows(self, prepared: Prepared, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """(source, residual stream without this head) of some contexts."""
        if prepared.source is None or prepared.output is None:
            prepared = self.prepare(prepared.tokens[rows])
            rows = slice(None)
        assert prepared.source is not None and prepared.output is not None
        source = prepared.source[rows]
        with torch.no_grad():
            own = self._head_output(self.w_star[None], source[None])[0]
        return source, prepared.output[rows] - own

    def _positions(self, source: Tensor) -> Tensor:
        return self.model.pos_embed.W_pos[: source.shape[-2]]

    def _head_output(self, weights: Tensor, source: Tensor) -> Tensor:
        """Output of the head: weights (S, P), source (S or 1, B, T, d) -> (S, B, T, d)."""
        w = {name.rsplit(".", 1)[1]: v for name, v in self.component.split(weights).items()}
        with_position = source + self._positions(source)
        count = len(weights)

        def project(x: Tensor, name: str) -> Tensor:
            weight, bias = w[f"W_{name}"], w[f"b_{name}"]
            if len(x) == 1 and count > 1:
                # One product for all weight vectors: (B*T, d) x (d, S*d_head).
                flat = x[0] @ weight.transpose(0, 1).flatten(1)
                out = flat.unflatten(-1, (count, -1)).permute(2, 0, 1, 3)
            else:
                out = (x.flatten(1, 2) @ weight).unflatten(1, x.shape[1:3])
            return out + bias[:, None, None]

        mixed = causal_attention(
            project(with_position, "Q"), project(with_position, "K"), project(source, "V")
        )
        return (mixed.flatten(1, 2) @ w["W_O"]).unflatten(1, mixed.shape[1:3])

    def _final(self, weights: Tensor, rest: Tensor, source: Tensor) -> Tensor:
        """Input of the unembedding at predicting positions, (S * B * (T - 1), d_model)."""
        stream = rest + self._head_output(weights, source)
        stream = stream.flatten(0, 1)
        positions = self._positions(source)
        for block in self.model.blocks[self.layer + 1 :]:
            stream = block(stream, positions)
        final = self.model.ln_final(stream[:, :-1])
        return final.flatten(0, 1)

    def losses(self, weights: Tensor, prepared: Prepared) -> Tensor:
        tokens, draws = prepared.tokens, len(weights)
        results = []
        # Blocks of contexts keep the stacked activations within a few MB.
        block = max(1, 4096 // (draws * tokens.shape[1]))
        with torch.no_grad():
            for start in range(0, len(tokens), block):
                rows = slice(start, start + block)
                targets = tokens[rows, 1:]
                source, rest = self._rows(prepared, rows)
                values = linear_losses(
                    self._final(weights, rest[None], source[None]),
                    self.model.unembed.W_U,
                    self.model.unembed.b_U,
                    targets.expand(draws, *targets.shape).reshape(-1),
                )
                results.append(values.view(draws, *targets.shape))
        return torch.cat(results, 1)

    def loss_and_gradient(
        self, weights: Tensor, prepared: Prepared, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        source, rest = self._rows(prepared, rows.flatten())
        targets = prepared.tokens[rows][..., 1:]
        leaf = weights.detach().requires_grad_()
        final = self._final(leaf, rest.unflatten(0, rows.shape), source.unflatten(0, rows.shape))
        sums = linear_loss_sum(
            final,
            self.model.unembed.W_U,
            self.model.unembed.b_U,
            targets.reshape(-1),
            groups=len(rows),
        )
        losses = sums / targets[0].numel()
        # Chains do not interact: the gradient of the sum holds each chain's own.
        gradient = torch.autograd.grad(losses.sum(), leaf)[0]
        return losses.detach(), gradient


def component_losses(model: AttentionOnly, part: Component) -> ComponentLosses:
    """The fastest exact evaluation for this component."""
    return HeadLosses(model, part) if part.head is not None else PlainLosses(model, part)


def token_losses_at(
    model: AttentionOnly, tokens: Int[Tensor, "context position"], block: int = _CONTEXTS
) -> Float[Tensor, "context position-1"]:
    """Loss of every token after the first at the model's own weights."""
    with torch.no_grad():
        parts = []
        for rows in tokens.split(block):
            final = model.ln_final(model.residual(rows))[:, :-1].flatten(0, 1)
            losses = linear_losses(
                final, model.unembed.W_U, model.unembed.b_U, rows[:, 1:].reshape(-1)
            )
            parts.append(losses.view(len(rows), -1))
    return torch.cat(parts)


def context_losses(
    model: AttentionOnly, tokens: Int[Tensor, "context position"], block: int = _CONTEXTS
) -> Float[Tensor, " context"]:
    """Mean loss per token of every context at the model's own weights."""
    return token_losses_at(model, tokens, block).mean(-1)
