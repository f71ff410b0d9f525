"""From the input of the unembedding to losses, a block of logits at a time.

The full array of logits is never held, and neither is a log-softmax for the backward pass.
Differences to the losses at w* come from the change of the logits: with log p* the log
probabilities at w* and D the change,

    loss - loss* = log sum_v exp(log p*_v + D_v) - D_target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..blocks import logit_rows

# Columns of the vocabulary that are taken at a time on a CPU: a block of logits stays in cache.
_COLUMNS = 2048


def row_blocks(rows: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Slices of at most `logit_rows` rows."""
    size = logit_rows(device, vocabulary)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def columns(vocabulary: int, device: torch.device) -> list[slice]:
    """Slices of the vocabulary."""
    size = _COLUMNS if device.type == "cpu" else vocabulary
    return [slice(i, min(i + size, vocabulary)) for i in range(0, vocabulary, size)]


def _product(
    base: Tensor | None, x: Tensor, weight: Tensor, buffer: Tensor
) -> Float[Tensor, "row columns"]:
    """base + x @ weight in the memory of ``buffer``: fresh memory costs as much as a sum."""
    out = buffer[: len(x) * weight.shape[1]].view(len(x), -1)
    if base is None:
        return torch.mm(x, weight, out=out)
    return torch.addmm(base, x, weight, out=out)


def _buffer(like: Tensor, vocabulary: int) -> Tensor:
    """Room for one block of logits of the rows of ``like``."""
    widest = max(c.stop - c.start for c in columns(vocabulary, like.device))
    return like.new_empty(like.shape[-2] * widest)


def log_sum_exp(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
    """log sum exp over the vocabulary."""
    if logits.device.type != "cpu":
        return torch.logsumexp(logits, -1)
    # On a CPU the fused cross entropy takes half the time of torch.logsumexp.
    first = logits[:, 0]
    target = torch.zeros(len(logits), dtype=torch.long)
    return F.cross_entropy(logits, target, reduction="none") + first


def _target_logits(
    final: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> Float[Tensor, " row"]:
    own = (final * weight.T[targets]).sum(-1)
    return own if bias is None else own + bias[targets]


def linear_losses(
    final: Float[Tensor, "row d_model"],
    weight: Float[Tensor, "d_model d_vocab"],
    bias: Float[Tensor, " d_vocab"] | None,
    targets: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """-log p(target) of every row."""
    losses = final.new_empty(len(final))
    vocabulary = weight.shape[1]
    for rows in row_blocks(len(final), vocabulary, final.device):
        block = final[rows]
        buffer = _buffer(block, vocabulary)
        parts = [
            log_sum_exp(
                _product(None if bias is None else bias[some], block, weight[:, some], buffer)
            )
            for some in columns(vocabulary, final.device)
        ]
        losses[rows] = torch.logsumexp(torch.stack(parts), 0)
    return losses - _target_logits(final, weight, bias, targets)


def _softmax(
    x: Tensor, weight: Tensor, bias: Tensor | None, some: list[slice]
) -> tuple[list[Tensor], Float[Tensor, "part row"]]:
    """Softmax within each part of the vocabulary, and each part's log sum of exponentials."""
    buffer = _buffer(x, weight.shape[1])
    slopes, parts = [], []
    for c in some:
        logits = _product(None if bias is None else bias[c], x, weight[:, c], buffer)
        slope = torch.softmax(logits, -1)
        largest, where = logits.max(-1, keepdim=True)
        parts.append((largest - slope.gather(1, where).log()).squeeze(1))
        slopes.append(slope)
    return slopes, torch.stack(parts)


class _LinearLossSum(torch.autograd.Function):
    """Sum over rows of -log p(target); gradients are made in the forward pass, block by block.

    The gradient of the sum needs only softmax(logits) - onehot, so no logits are kept.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx,
        final: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        groups: int,
    ) -> Tensor:
        losses = final.new_empty(len(final))
        needs_final, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        d_final = torch.empty_like(final) if needs_final else None
        d_weight = torch.zeros_like(weight) if needs_weight else None
        d_bias = torch.zeros_like(bias) if needs_bias and bias is not None else None
        some = columns(weight.shape[1], final.device)
        for rows in row_blocks(len(final), weight.shape[1], final.device):
            x = final[rows]
            slopes, parts = _softmax(x, weight, bias, some)
            whole = torch.logsumexp(parts, 0)
            shares = torch.exp(parts - whole)[..., None]
            target = targets[rows]
            losses[rows] = whole - _target_logits(x, weight, bias, target)
            if d_final is not None:
                slope = -weight.T[target]
                for c, p, share in zip(some, slopes, shares, strict=True):
                    slope += share * (p @ weight[:, c].T)
                d_final[rows] = slope
            for c, p, share in zip(some, slopes, shares, strict=True):
                if d_weight is not None:
                    d_weight[:, c] += (share * x).T @ p
                if d_bias is not None:
                    d_bias[c] += share[:, 0] @ p
            if d_weight is not None:
                d_weight.index_add_(1, target, x.T, alpha=-1)
            if d_bias is not None:
                d_bias.index_add_(0, target, torch.ones_like(losses[rows]), alpha=-1)
        ctx.save_for_backward(*(g for g in (d_final, d_weight, d_bias) if g is not None))
        ctx.which = (d_final is not None, d_weight is not None, d_bias is not None)  # type: ignore[attr-defined]
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
    final: Float[Tensor, "row d_model"],
    weight: Float[Tensor, "d_model d_vocab"],
    bias: Float[Tensor, " d_vocab"] | None,
    targets: Int[Tensor, " row"],
    groups: int = 1,
) -> Float[Tensor, " groups"]:
    """Differentiable sum of the losses of each of ``groups`` equal runs of rows."""
    return _LinearLossSum.apply(final, weight, bias, targets, groups)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Reference:
    """The model at w* on a block of rows, from which changed losses are counted.

    Attributes:
        final: input of the unembedding, (row, d_model).
        log_p: log probabilities, (row, d_vocab).
        targets: (row,).
    """

    final: Tensor
    log_p: Tensor
    targets: Tensor

    @classmethod
    def of(cls, final: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Reference:
        """One block of rows; the caller bounds its size."""
        logits = final.new_empty(len(final), weight.shape[1])
        buffer, parts = _buffer(final, weight.shape[1]), []
        for c in columns(weight.shape[1], final.device):
            some = _product(None if bias is None else bias[c], final, weight[:, c], buffer)
            logits[:, c] = some
            parts.append(log_sum_exp(some))
        whole = torch.logsumexp(torch.stack(parts), 0)
        return cls(final, logits.sub_(whole[:, None]), targets)

    @property
    def losses(self) -> Float[Tensor, " row"]:
        """Losses at w*."""
        return -self.log_p.gather(1, self.targets[:, None]).squeeze(1)


class FinalShift:
    """Changes of the losses where the input of the unembedding changes.

    Args:
        narrow: take the product of the change with the unembedding in bfloat16. The change of
            the target's logit is exact all the same, so the rounding is averaged over the
            vocabulary.
    """

    def __init__(self, weight: Float[Tensor, "d_model d_vocab"], narrow: bool) -> None:
        self.rows = weight.T.contiguous()  # to gather the targets' columns from
        self.narrow = narrow
        self.columns = columns(weight.shape[1], weight.device)
        parts = (weight[:, c].contiguous() for c in self.columns)
        self.weight = [part.bfloat16() if narrow else part for part in parts]

    def __call__(
        self, reference: Reference, final: Float[Tensor, "draw row d_model"]
    ) -> Float[Tensor, "draw row"]:
        delta = final - reference.final
        buffer = _buffer(reference.final, reference.log_p.shape[1])
        parts = []
        for c, weight in zip(self.columns, self.weight, strict=True):
            log_p = reference.log_p[:, c]
            for change in delta:
                if self.narrow:
                    logits = buffer[: log_p.numel()].view(log_p.shape)
                    torch.add(log_p, change.bfloat16() @ weight, out=logits)
                else:
                    logits = _product(log_p, change, weight, buffer)
                parts.append(log_sum_exp(logits))
        own = (delta * self.rows[reference.targets]).sum(-1)
        return _total(parts, len(delta)) - own


def _total(parts: list[Tensor], draws: int) -> Float[Tensor, "draw row"]:
    """Log sum of exponentials of the whole vocabulary from those of its parts, draws inside."""
    return torch.logsumexp(torch.stack(parts).unflatten(0, (-1, draws)), 0)


def unembedding_shift(
    reference: Reference,
    weight: Float[Tensor, "d_model d_vocab"],
    bias: Float[Tensor, " d_vocab"] | None,
    narrow: bool,
) -> Float[Tensor, " row"]:
    """Changes of the losses where the unembedding changes by ``weight`` and ``bias``."""
    buffer, parts = _buffer(reference.final, weight.shape[1]), []
    for c in columns(weight.shape[1], weight.device):
        log_p = reference.log_p[:, c]
        if narrow:
            logits = log_p + (reference.final.bfloat16() @ weight[:, c].bfloat16())
        else:
            logits = _product(log_p, reference.final, weight[:, c], buffer)
        parts.append(log_sum_exp(logits if bias is None else logits.add_(bias[c])))
    own = _target_logits(reference.final, weight, bias, reference.targets)
    return torch.logsumexp(torch.stack(parts), 0) - own


class LowRankShift:
    """Changes of the losses where a head of the last layer changes, from products of its rank.

    The residual stream is rest + mixed W_O. LayerNorm's centering and scale are folded into the
    unembedding U, W_c = (1 - 1/d) (weight U), so that

        logits = (rest W_c + mixed (W_O W_c)) / deviation + (bias U + b),

    with rest W_c made once for all draws, and W_O W_c of d_head rows.
    """

    def __init__(
        self,
        norm: tuple[Tensor, Tensor, float],
        weight: Float[Tensor, "d_model d_vocab"],
        bias: Float[Tensor, " d_vocab"] | None,
    ) -> None:
        scale, shift, self.eps = norm
        scaled = scale[:, None] * weight
        self.weight = scaled - scaled.mean(0)
        self.rows = self.weight.T.contiguous()
        self.constant = shift @ weight if bias is None else shift @ weight + bias

    def project(
        self, output: Float[Tensor, "draw d_head d_model"]
    ) -> Float[Tensor, "draw d_head+1 d_vocab"]:
        """W_O W_c of every draw, and the constant as one more row."""
        constant = self.constant.expand(len(output), 1, -1)
        return torch.cat([output @ self.weight, constant], 1)

    def rest_logits(self, rest: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """rest W_c."""
        return rest @ self.weight

    def __call__(
        self,
        star: Float[Tensor, " row"],
        rest: Float[Tensor, "row d_model"],
        rest_logits: Float[Tensor, "row d_vocab"],
        targets: Int[Tensor, " row"],
        mixed: Float[Tensor, "draw row d_head"],
        output: Float[Tensor, "draw d_head d_model"],
        projected: Float[Tensor, "draw d_head+1 d_vocab"],
    ) -> Float[Tensor, "draw row"]:
        """Losses minus ``star``."""
        stream = torch.baddbmm(rest.expand(len(mixed), *rest.shape), mixed, output)
        # The normalisation's scale; torch.var takes several times longer.
        inverse = torch.native_layer_norm(stream, stream.shape[-1:], None, None, self.eps)[2]
        own = (stream * self.rows[targets]).sum(-1) * inverse[..., 0] + self.constant[targets]
        # With the constant as a row of the product there is one pass over the logits less.
        scaled = torch.cat([mixed * inverse, torch.ones_like(inverse)], -1)
        buffer, parts = _buffer(rest, rest_logits.shape[1]), []
        for c in columns(rest_logits.shape[1], rest.device):
            base = rest_logits[:, c]
            logits = buffer[: base.numel()].view(base.shape)
            for draw, left in enumerate(scaled):
                torch.mul(base, inverse[draw], out=logits)
                parts.append(log_sum_exp(logits.addmm_(left, projected[draw][:, c])))
        return _total(parts, len(mixed)) - own - star
