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


def row_blocks(rows: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Slices of at most `logit_rows` rows."""
    size = logit_rows(device, vocabulary)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """x @ weight + bias, in ``out``: fresh memory for every block costs as much as the sum."""
    return torch.mm(x, weight, out=out) if bias is None else torch.addmm(bias, x, weight, out=out)


def log_sum_exp(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
    """log sum exp over the vocabulary."""
    if logits.device.type != "cpu":
        return torch.logsumexp(logits, -1)
    # On a CPU the fused cross entropy takes half the time of torch.logsumexp.
    first = logits[:, 0]
    target = torch.zeros(len(logits), dtype=torch.long)
    return F.cross_entropy(logits, target, reduction="none") + first


def _buffer(final: Tensor, weight: Tensor) -> Tensor:
    """Room for one block of logits."""
    rows = min(len(final), logit_rows(final.device, weight.shape[1]))
    return final.new_empty(rows, weight.shape[1])


def linear_losses(
    final: Float[Tensor, "row d_model"],
    weight: Float[Tensor, "d_model d_vocab"],
    bias: Float[Tensor, " d_vocab"] | None,
    targets: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """-log p(target) of every row."""
    losses = final.new_empty(len(final))
    logits = _buffer(final, weight)
    for rows in row_blocks(len(final), weight.shape[1], final.device):
        block = affine(final[rows], weight, bias, logits[: rows.stop - rows.start])
        losses[rows] = F.cross_entropy(block, targets[rows], reduction="none")
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
        bias: Tensor | None,
        targets: Tensor,
        groups: int,
    ) -> Tensor:
        losses = final.new_empty(len(final))
        needs_final, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        d_final = torch.empty_like(final) if needs_final else None
        d_weight = torch.zeros_like(weight) if needs_weight else None
        d_bias = torch.zeros_like(bias) if needs_bias and bias is not None else None
        logits, slopes = _buffer(final, weight), _buffer(final, weight)
        for rows in row_blocks(len(final), weight.shape[1], final.device):
            count = rows.stop - rows.start
            block = affine(final[rows], weight, bias, logits[:count])
            slope = torch.softmax(block, -1, out=slopes[:count])
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
        logits = affine(final, weight, bias, final.new_empty(len(final), weight.shape[1]))
        return cls(final, logits.sub_(log_sum_exp(logits)[:, None]), targets)

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
        self.weight = weight
        self.rows = weight.T.contiguous()  # to gather the targets' columns from
        self.narrow = weight.bfloat16() if narrow else None

    def __call__(
        self, reference: Reference, final: Float[Tensor, "draw row d_model"]
    ) -> Float[Tensor, "draw row"]:
        delta = final - reference.final
        chosen = self.rows[reference.targets]
        result = final.new_empty(final.shape[:2])
        logits = torch.empty_like(reference.log_p)
        for draw, change in enumerate(delta):
            if self.narrow is None:
                torch.addmm(reference.log_p, change, self.weight, out=logits)
            else:
                torch.add(reference.log_p, change.bfloat16() @ self.narrow, out=logits)
            result[draw] = log_sum_exp(logits) - (change * chosen).sum(-1)
        return result


def unembedding_shift(
    reference: Reference,
    weight: Float[Tensor, "d_model d_vocab"],
    bias: Float[Tensor, " d_vocab"] | None,
    narrow: bool,
) -> Float[Tensor, " row"]:
    """Changes of the losses where the unembedding changes by ``weight`` and ``bias``."""
    if narrow:
        logits = reference.log_p + (reference.final.bfloat16() @ weight.bfloat16())
    else:
        logits = torch.addmm(reference.log_p, reference.final, weight)
    own = (reference.final * weight.T[reference.targets]).sum(-1)
    if bias is not None:
        logits += bias
        own = own + bias[reference.targets]
    return log_sum_exp(logits) - own


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
        result = mixed.new_empty(mixed.shape[:2])
        logits = torch.empty_like(rest_logits)
        stream = torch.baddbmm(rest.expand(len(mixed), *rest.shape), mixed, output)
        # The normalisation's scale; torch.var takes several times longer.
        inverse = torch.native_layer_norm(stream, stream.shape[-1:], None, None, self.eps)[2]
        own = (stream * self.rows[targets]).sum(-1) * inverse[..., 0] + self.constant[targets]
        # With the constant as a row of the product there is one pass over the logits less.
        scaled = torch.cat([mixed * inverse, torch.ones_like(inverse)], -1)
        for draw, left in enumerate(scaled):
            torch.mul(rest_logits, inverse[draw], out=logits)
            result[draw] = log_sum_exp(logits.addmm_(left, projected[draw]))
        return result - own - star
