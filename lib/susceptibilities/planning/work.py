"""Work of an evaluation or a gradient step, for every kind of component.

Counted is what `losses` computes: what the component cannot change once for all draws, and the
component, the layers above it and the logits for every draw; for a head of the last layer,
products of the head's width in place of the model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..components import Component, component
from ..models.shapes import Shape, new_model
from .operations import (
    Cost,
    attention_gradient,
    head,
    head_gradient,
    layer,
    layer_backward,
    logits,
    logits_gradient,
    low_rank_logits,
    mlp,
    mlp_gradient,
    product,
)

# What a rate is stated for. `head`: a head by itself, for every draw; `layers`: all else before
# the logits; `logits` and `low_rank_logits`: from the stream to the losses.
Quantity = Literal["head", "layers", "logits", "low_rank_logits"]
QUANTITIES: tuple[Quantity, ...] = ("head", "layers", "logits", "low_rank_logits")


@dataclass(frozen=True)
class Work:
    """Costs by quantity."""

    costs: Mapping[Quantity, Cost] = field(default_factory=dict)

    def __add__(self, other: Work) -> Work:
        total = dict(self.costs)
        for quantity, cost in other.costs.items():
            total[quantity] = total.get(quantity, Cost()) + cost
        return Work(total)

    def __mul__(self, times: float) -> Work:
        return Work({quantity: cost * times for quantity, cost in self.costs.items()})

    @property
    def operations(self) -> float:
        """Of all matrix products."""
        return sum(cost.operations for cost in self.costs.values())


def components_of(shape: Shape, names: Iterable[str]) -> list[Component]:
    """Components of a model of this shape, without making its weights."""
    with torch.device("meta"):
        parameters = dict(new_model(shape).named_parameters())
    return [component(name, shape, parameters) for name in names]


def is_low_rank(part: Component, shape: Shape) -> bool:
    """Whether the logits change by products of the head's width."""
    last = part.kind == "head" and part.layer == shape.n_layers - 1
    return last and 2 * shape.d_head <= shape.d_model


def layers_above(part: Component, shape: Shape) -> int:
    """Layers that every draw goes through."""
    if part.kind == "unembed":
        return 0
    return shape.n_layers if part.layer is None else shape.n_layers - 1 - part.layer


def evaluation(
    part: Component,
    shape: Shape,
    draws: int,
    contexts: float,
    length: int,
    fused: bool = True,
    in_memory: bool = True,
) -> Work:
    """Losses of ``draws`` weight vectors on a block of contexts; `shared` comes to it."""
    rows, predicted = contexts * length, contexts * (length - 1)
    above = layers_above(part, shape)
    if part.kind == "full":
        # Every draw has layers of its own.
        work = Work({"layers": layer(contexts, length, shape, fused) * (draws * above)})
    else:
        work = Work({"layers": layer(draws * contexts, length, shape, fused) * above})
    if part.kind == "mlp":
        added = Cost(passes=rows * shape.d_model * (2 + 3 * draws))
        work += Work({"layers": mlp(rows, shape, draws) + added})
    if is_low_rank(part, shape):
        own = head(draws, contexts, length, shape, fused, predicted)
        last = low_rank_logits(draws, predicted, shape, in_memory)
        return work + Work({"head": own, "low_rank_logits": last})
    if part.kind == "head":
        work += Work({"head": head(draws, contexts, length, shape, fused)})
    return work + Work({"logits": logits(predicted, shape, draws, in_memory)})


def shared(
    part: Component,
    shape: Shape,
    contexts: float,
    length: int,
    groups: int = 1,
    fused: bool = True,
    in_memory: bool = True,
) -> Work:
    """What all draws have in common on a block of contexts: everything at w*.

    Args:
        groups: groups of draws that are stacked; each takes the component's own part off the
            stream.
    """
    rows, predicted = contexts * length, contexts * (length - 1)
    work = Work({"layers": layer(contexts, length, shape, fused) * shape.n_layers})
    work += Work({"logits": logits(predicted, shape, 1, in_memory)})
    if is_low_rank(part, shape):
        work += Work({"logits": product(predicted, shape.d_model, shape.d_vocab)})
        groups = 1
    if part.kind == "head":
        return work + Work({"head": head(1, contexts, length, shape, fused) * groups})
    if part.kind == "mlp":
        return work + Work({"layers": mlp(rows, shape) * groups})
    return work


def projected_outputs(part: Component, shape: Shape, draws: int) -> Work:
    """The output matrices of a head of the last layer times the unembedding, once a draw; and
    the final norm's bias times it."""
    if not is_low_rank(part, shape):
        return Work()
    return Work({"logits": product(draws * shape.d_head + 1, shape.d_model, shape.d_vocab)})


def streams_below(part: Component, shape: Shape, contexts: float, length: int) -> Work:
    """The residual stream up to and with the component's layer, which gradient steps start from."""
    depth = shape.n_layers if part.kind == "unembed" else 0
    depth = depth if part.layer is None else part.layer + 1
    return Work({"layers": layer(contexts, length, shape) * depth})


def gradient(
    part: Component,
    shape: Shape,
    chains: int,
    batch: float,
    length: int,
    fused: bool = True,
    in_memory: bool = True,
) -> Work:
    """One loss and gradient of all chains, ``batch`` contexts each; `streams_below` is apart."""
    predicted = batch * (length - 1)
    if part.kind == "unembed":
        last = logits_gradient(predicted, shape, 1, chains, in_memory)
        return Work({"logits": last + _bias_gradient(predicted * chains, shape)})
    if part.kind == "full":
        each = layer(batch, length, shape, fused)
        each += layer_backward(batch, length, shape, fused, weights=True)
        last = logits_gradient(predicted, shape, 2, chains, in_memory)
        last += _bias_gradient(predicted * chains, shape)
        return Work({"layers": each * (chains * shape.n_layers), "logits": last})
    sequences = chains * batch
    each = layer(sequences, length, shape, fused) + layer_backward(sequences, length, shape, fused)
    last = logits_gradient(chains * predicted, shape, 1, 1, in_memory)
    work = Work({"layers": each * layers_above(part, shape), "logits": last})
    if part.kind == "head":
        own = head_gradient(chains, batch, length, shape, fused)
        return work + Work({"head": own + head(1, sequences, length, shape, fused)})
    if part.kind == "mlp":
        own = mlp_gradient(chains, batch, length, shape)
        return work + Work({"layers": own + mlp(sequences * length, shape)})
    return work


def _bias_gradient(rows: float, shape: Shape) -> Cost:
    """Of the unembedding's bias, where it has one."""
    return product(1, rows, shape.d_vocab if shape.kind == "attention_only" else 0)


def plain_evaluation(
    shape: Shape, draws: int, contexts: float, length: int, fused: bool = True
) -> Work:
    """The whole model for every weight vector, at every position."""
    return Work(
        {
            "layers": layer(contexts, length, shape, fused) * (draws * shape.n_layers),
            "logits": logits(contexts * length, shape, draws),
        }
    )


def plain_gradient(
    part: Component, shape: Shape, chains: int, batch: float, length: int, fused: bool = True
) -> Work:
    """The whole model forwards, and back down to the component.

    A head is put into its layer's matrices, all of which are then differentiated.
    """
    outputs = 2 if part.kind == "full" else 1
    last = product(batch * length, shape.d_model, shape.d_vocab, chains * outputs)
    back = layer_backward(batch, length, shape, fused, weights=part.kind == "full")
    back = back * layers_above(part, shape)
    if part.kind == "head":
        back += attention_gradient(batch, length, shape, fused)
    elif part.kind == "mlp":
        back += mlp_gradient(1, batch, length, shape) + mlp(batch * length, shape) * -1
    work = plain_evaluation(shape, chains, batch, length, fused)
    return work + Work({"layers": back * chains, "logits": last})
